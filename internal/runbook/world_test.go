package runbook

import (
	"fmt"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// A world is a few clusters as the rules meet them: what is durable, what a manager holds in memory between two
// instants of one reconcile, and what replication, workloads and people do meanwhile. It is one comparable
// value, so that histories that lead to the same world are explored once.
//
// Time is left out: whatever may take long may take for ever, until the faults stop.

const most = 3 // clusters

// word stands for a text; worlds hold words so that they stay small and comparable.
type word uint8

var (
	words   = []string{""}
	wordIDs = map[string]word{"": 0}
)

func intern(text string) word {
	if w, ok := wordIDs[text]; ok {
		return w
	}
	if len(words) == 256 {
		panic("too many words in one model")
	}
	w := word(len(words))
	words, wordIDs[text] = append(words, text), w
	return w
}

func (w word) String() string { return words[w] }

type role uint8

const (
	noRole role = iota
	source
	target
)

func (r role) api() v1alpha1.Role {
	return [...]v1alpha1.Role{"", v1alpha1.RoleSource, v1alpha1.RoleTarget}[r]
}

// operation, grant and plan are what one cluster's API server keeps of the plan. Clusters are numbered from 1; 0 is none.
type operation struct {
	id                  word
	from, to            int8
	step                word
	pre, offline, final int8
	undo                word
	point               int8
}

type grant struct {
	epoch, to int8
	id        word
	point     int8
}

type plan struct {
	found           bool
	wanted, primary int8
	epoch           int8
	op              operation
	grant           grant
	begun           int8 // operations begun here, for their ids
	result          word // of the newest ended operation
}

// point is a recovery point: ids grow with time.
type point struct{ id, epoch int8 }

type session struct {
	running bool
	trigger word
	epoch   int8
	cut     int8 // the content it carries
	to      int8
	id      int8
}

// data is a Replication and the volumes behind it. content is how many writes the volumes contain.
type data struct {
	role, inForce  role
	epoch, epochIn int8
	trigger        word
	session        session
	answered       word
	committed      bool
	answeredPoint  int8
	points         [2]point
	content        int8
}

// app is the workloads: what they are told and what pods do.
type app struct{ wanted, running bool }

// snap is the newest application snapshot of an operation on a cluster. counts tells whether the workloads had
// replicas when it was captured.
type snap struct {
	id     word
	state  word
	on     [most]bool
	counts bool
}

// looked is what a manager read of its own cluster.
type looked struct {
	plan plan
	data data
	app  app
	snap snap
}

// decided is a Decision in words.
type decided struct {
	action       word
	step         word
	peer         int8
	epoch, point int8
	token        word
	undo         word
	result       word
}

// manager is the memory of a running manager: 0 nothing, 1 has read its cluster, 2 has decided, 3 has done the
// effect and not yet saved. edited is true when its plan changed after it was read: the save will be refused.
type manager struct {
	phase  int8
	edited bool
	looked looked
	next   decided
}

type cluster struct {
	plan    plan
	data    data
	app     app
	snap    snap
	manager manager
}

type world struct {
	clusters [most]cluster
	written  int8 // writes acknowledged so far
	points   int8 // recovery points made so far
	// What people and schedules may still do.
	edits, writes, schedules int8
}

// model is the fixed part: how many clusters there are, whether the plan has data, and the rules under test.
type model struct {
	n       int
	hasData bool
	next    func(Seen) Decision
}

func name(c int8) string { return [...]string{"", "a", "b", "c"}[c] }

func number(name string) int8 {
	if name == "" {
		return 0
	}
	return int8(name[0]-'a') + 1
}

// protected is the world in which a runs the application, and the others follow with a first recovery point.
func (m model) protected(edits, writes, schedules int8) world {
	w := world{edits: edits, writes: writes, schedules: schedules}
	if m.hasData {
		w.points = 1
	}
	for i := range m.n {
		c := &w.clusters[i]
		c.plan = plan{found: true, wanted: 1, primary: 1, epoch: 1}
		if m.hasData {
			c.data = data{role: target, inForce: target, epoch: 1, epochIn: 1, points: [2]point{{1, 1}}}
		}
	}
	w.clusters[0].app = app{wanted: true, running: true}
	if m.hasData {
		w.clusters[0].data = data{role: source, inForce: source, epoch: 1, epochIn: 1}
	}
	return w
}

// unclaimed is the same world before anybody knows a primary.
func (m model) unclaimed(edits int8) world {
	w := m.protected(edits, 0, 0)
	for i := range m.n {
		w.clusters[i].plan.primary, w.clusters[i].plan.epoch = 0, 0
	}
	return w
}

// copies keeps what plans look like to the rules, which only read them: there are few plans in very many worlds.
var copies = map[plan]*Copy{}

func (p plan) copy() *Copy {
	if c, ok := copies[p]; ok {
		return c
	}
	c := p.make()
	copies[p] = &c
	return &c
}

func (p plan) make() Copy {
	c := Copy{Found: p.found, Wanted: name(p.wanted), Primary: name(p.primary), Epoch: int64(p.epoch)}
	if o := p.op; o.id != 0 {
		c.Operation = &Operation{ID: o.id.String(), From: name(o.from), To: name(o.to), Step: v1alpha1.OperationStep(o.step.String()),
			PreSyncs: int(o.pre), Offlines: int(o.offline), FinalSyncs: int(o.final), Undo: o.undo.String(), FinalPoint: pointName(o.point)}
	}
	if g := p.grant; g.epoch != 0 {
		c.Grant = &Grant{Epoch: int64(g.epoch), To: name(g.to), Operation: g.id.String(), Point: pointName(g.point)}
	}
	return c
}

var pointNames = func() (names [100]string) {
	for i := 1; i < len(names); i++ {
		names[i] = fmt.Sprintf("p%03d", i)
	}
	return names
}()

func pointName(p int8) string { return pointNames[p] }

func pointNumber(name string) int8 {
	if name == "" {
		return 0
	}
	var p int8
	if _, err := fmt.Sscanf(name, "p%03d", &p); err != nil {
		panic(err)
	}
	return p
}

func (d data) seen(m model) Data {
	if !m.hasData {
		return Data{}
	}
	out := Data{Named: true, Found: true, Role: d.role.api(), Epoch: int64(d.epoch), RoleInForce: d.inForce.api(), EpochInForce: int64(d.epochIn),
		Promoted: d.inForce == source, Trigger: d.trigger.String()}
	if d.session.running && d.session.trigger != 0 {
		out.Sessions = append(out.Sessions, Session{Trigger: d.session.trigger.String(), State: SessionRunning})
	}
	if d.answered != 0 {
		state := SessionFailed
		if d.committed {
			state = SessionCommitted
		}
		out.Sessions = append(out.Sessions, Session{Trigger: d.answered.String(), State: state, Point: pointName(d.answeredPoint)})
	}
	for _, p := range d.points {
		if p.id != 0 {
			out.Points = append(out.Points, Point{pointName(p.id), int64(p.epoch)})
		}
	}
	return out
}

func (a app) seen() App {
	return App{Known: true, Stopped: !a.running && !a.wanted, Ready: a.running == a.wanted}
}

func (s snap) seen(m model, id word) Snapshot {
	if s.id != id || id == 0 {
		return Snapshot{}
	}
	out := Snapshot{State: SnapshotState(s.state.String())}
	for i := range m.n {
		if s.on[i] {
			out.On = append(out.On, name(int8(i+1)))
		}
	}
	return out
}

// answer is what became of the questions to a peer.
type answer int

const (
	answered answer = iota
	unanswered
	lost
)

// decide asks the rules, with what manager c read before and what its peers answer now.
// late is true when the present step has outlasted all patience.
func (m model) decide(w world, c int, answers [most]answer, late bool) Decision {
	l := w.clusters[c].manager.looked
	s := Seen{Self: name(int8(c + 1)), Own: *l.plan.copy(), Data: l.data.seen(m), App: l.app.seen(), Snapshot: l.snap.seen(m, l.plan.op.id),
		Limits: Limits{Attempts: 2, Stop: time.Hour, Ready: time.Hour, OtherPeers: time.Hour, Hold: time.Hour}}
	if late {
		s.InStep = 2 * time.Hour
	}
	for i := range m.n {
		if i == c {
			continue
		}
		p := Peer{Name: name(int8(i + 1))}
		switch answers[i] {
		case answered:
			p.Reach = Connected
			p.Copy = w.clusters[i].plan.copy()
			p.AppRuns = No
			if w.clusters[i].app.running {
				p.AppRuns = Yes
			}
			if m.hasData {
				d := w.clusters[i].data.seen(m)
				p.Data = &d
			}
		case lost:
			p.Reach = Lost
		}
		s.Peers = append(s.Peers, p)
	}
	return m.next(s)
}

func wordsOf(d Decision) decided {
	out := decided{action: intern(string(d.Action)), step: intern(string(d.Step)), peer: number(d.Peer), epoch: int8(d.Epoch),
		point: pointNumber(d.Point), token: intern(d.Token), result: intern(string(d.Result))}
	if d.Action == Undo {
		// Failures differ only for people; that it was no edit is what counts.
		out.undo = intern(ReasonSessionFailed)
		if d.Reason == ReasonAbortedByEdit {
			out.undo = intern(ReasonAbortedByEdit)
		}
	}
	return out
}

// effect does what a decision does outside the plan's status. more is true when a save follows. ok chooses
// between the outcomes of effects that may not be done yet.
func (m model) effect(w *world, c int, ok bool) (more bool) {
	k := &w.clusters[c]
	d, held := k.manager.next, k.manager.looked
	switch Action(d.action.String()) {
	case Rest:
		return false
	case Capture:
		if k.snap.id != held.plan.op.id {
			k.snap = snap{id: held.plan.op.id, state: intern(string(SnapshotCapturing))}
		}
		return false
	case Sync:
		k.data.trigger = d.token
		return false
	case Stop:
		k.app.wanted = false
		return !k.app.running && d.step != 0
	case Start:
		k.app.wanted = true
		return ok
	case Demote:
		// The API refuses an epoch that goes back.
		if d.epoch >= k.data.epoch {
			k.data.role, k.data.epoch = target, d.epoch
		}
		return false
	case Promote:
		if d.epoch >= k.data.epoch {
			k.data.role, k.data.epoch = source, d.epoch
		}
		return false
	case Restore:
		if !ok {
			return false
		}
		if k.snap.counts {
			k.app.wanted = true
		}
		return true
	case Align:
		if !k.manager.edited && k.plan.mayEdit(int8(c+1), d.peer) {
			k.plan.wanted = d.peer
		}
		return false
	}
	return true
}

// mayEdit is the API's rule for edits of spec.primaryCluster.
func (p plan) mayEdit(self, wanted int8) bool {
	return p.wanted == wanted || p.primary == 0 || wanted == p.primary || self == p.primary
}

// save writes the status that a decision asks for. The caller has checked that the plan was not edited meanwhile.
func (m model) save(w *world, c int) {
	k := &w.clusters[c]
	d, p := k.manager.next, &k.plan
	self := int8(c + 1)
	enter := func(step word) {
		p.op.step = step
		switch v1alpha1.OperationStep(step.String()) {
		case v1alpha1.StepPreSync:
			p.op.pre++
		case v1alpha1.StepOffline:
			p.op.offline++
		case v1alpha1.StepFinalSync:
			p.op.final++
		}
	}
	switch Action(d.action.String()) {
	case Claim:
		p.primary, p.epoch = self, d.epoch
	case Follow:
		p.primary, p.epoch = d.peer, d.epoch
		if p.op.id != 0 {
			p.op, p.result = operation{}, intern(string(Completed))
		}
	case Begin:
		p.begun++
		p.op = operation{id: intern(fmt.Sprintf("%s%d", name(self), p.begun)), from: self, to: d.peer}
		enter(d.step)
	case Enter, Restore, Start, Stop:
		if d.point != 0 {
			p.op.point = d.point
		}
		enter(d.step)
	case Undo:
		p.op.undo = d.undo
		enter(d.step)
	case GrantEpoch:
		p.grant = grant{epoch: d.epoch, to: d.peer, id: p.op.id, point: d.point}
	case Accept:
		// The operation is the grantor's, which it showed in the same answer and keeps until this one is done.
		from := w.clusters[d.peer-1].plan
		p.op = operation{id: from.op.id, from: d.peer, to: self, point: d.point}
		p.epoch = d.epoch
		enter(d.step)
	case Finish:
		p.primary = self
		enter(d.step)
	case Close:
		p.op, p.result = operation{}, d.result
	}
}
