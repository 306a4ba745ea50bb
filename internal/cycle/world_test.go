package cycle

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// The world is two clusters that keep one group of two volumes in step: API objects, a driver, an engine, an application.
// Each cluster asks NextSource or NextTarget and carries the step out effect by effect; a crash drops what is left of
// a step. Content is a number per volume that the application raises.

const members = 2

type point struct {
	id      string
	epoch   int64
	at      time.Time
	content [members]int
}

func (p *point) recovery() Recovery {
	if p == nil {
		return Recovery{}
	}
	return Recovery{Point: p.id, Time: p.at, Epoch: p.epoch}
}

type snap struct {
	ready   bool
	content int
	at      time.Time
	size    int
}

// cluster is one side: what its API server keeps, its status, its volumes.
type cluster struct {
	name    string
	peer    *cluster
	wanted  Stand // as in the spec
	handed  bool  // by a plan
	app     bool  // pods of the application run
	volumes [members]int
	whole   [members]int // what the volumes held when they were last of one point, or the application's

	// status
	taken    int64 // an epoch of its own, good as long as the spec is what it was
	takenFor Stand
	inForce  Stand
	session  *Session
	last     *Ended
	failures int
	recovery Recovery // as source: committed on the peer; as target: recorded
	base     string
	ready    bool
	well     bool
	observed Stand
	trigger  string

	// objects
	saved     map[string]bool // points that were in the status before anything was made for them
	snapshots map[string]map[int]*snap
	clones    map[string]map[int]int
	jobs      map[string]string // point -> running, committed
	kept      map[string]map[int]*snap
	pair      bool
	spool     bool
	sealed    bool
	receiver  bool
	door      bool
	committed *point // in the spool
	applied   *point

	// size is the volumes', wish what the peer last said its are, request what the claims ask for, fits what the pair was made for,
	// carries the size each session's clones have.
	size, wish, request, fits int
	carries                   map[string]int
}

type world struct {
	t        *testing.T
	now      time.Time
	east     *cluster
	west     *cluster
	effects  int
	crashAt  int
	crashed  bool
	points   int
	trace    []string
	writable int // volumes' content the application wrote last
}

func newWorld(t *testing.T, crashAt int) *world {
	w := &world{t: t, now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), crashAt: crashAt}
	make1 := func(name string, role v1alpha1.Role) *cluster {
		return &cluster{name: name, wanted: Stand{role, 1}, saved: map[string]bool{}, snapshots: map[string]map[int]*snap{},
			clones: map[string]map[int]int{}, jobs: map[string]string{}, kept: map[string]map[int]*snap{}, size: 1, request: 1, carries: map[string]int{}}
	}
	w.east, w.west = make1("east", v1alpha1.RoleSource), make1("west", v1alpha1.RoleTarget)
	w.east.peer, w.west.peer = w.west, w.east
	w.east.app = true
	return w
}

// stand is role and epoch as the controller derives them from spec and status.
func (c *cluster) stand() Stand {
	s := Stand{c.wanted.Role, max(c.wanted.Epoch, c.inForce.Epoch)}
	if s.Role == v1alpha1.RoleSource && c.takenFor == c.wanted {
		s.Epoch = max(s.Epoch, c.taken)
	}
	return s
}

func (c *cluster) reached() bool { return c.inForce == c.stand() }

func (w *world) see(c *cluster) (Source, Target) {
	var snaps, keeps []Snapshot
	var clones Presence
	var mover Mover
	replica := Replica{Sealed: c.sealed, Door: c.door}
	has := func(b bool) Presence {
		if b {
			return Present
		}
		return Absent
	}
	replica.Pair, replica.Spool, replica.Receiver = has(c.pair), has(c.spool), has(c.receiver)
	if c.receiver {
		replica.State = &Received{Busy: len(c.peer.jobs) > 0 && w.connected(c.peer), Committed: c.committed.recovery(), Applied: c.applied.recovery()}
	}
	if c.session != nil {
		for m := range members {
			s := Snapshot{Claim: fmt.Sprint("m", m)}
			if have := c.snapshots[c.session.Point][m]; have != nil {
				s.Exists, s.CreatedAt, s.Ready, s.Cut = true, have.at, have.ready, have.ready
			}
			snaps = append(snaps, s)
		}
		clones = has(len(c.clones[c.session.Point]) == members)
		switch c.jobs[c.session.Point] {
		case "running":
			mover.State = MoverRunning
		case "committed":
			mover.State = MoverCommitted
		case "refused":
			mover.State = MoverRefused
		}
	}
	var stale, leftover []string
	for p := range c.jobs {
		leftover = append(leftover, "job "+p)
		if c.session == nil || c.session.Point != p {
			stale = append(stale, "job "+p)
		}
	}
	for p := range c.clones {
		leftover = append(leftover, "clone "+p)
		if c.session == nil || c.session.Point != p {
			stale = append(stale, "clone "+p)
		}
	}
	for p := range c.snapshots {
		leftover = append(leftover, "snapshot "+p)
		if p != c.base && (c.session == nil || c.session.Point != p) {
			stale = append(stale, "snapshot "+p)
		}
	}
	if c.applied != nil {
		for m := range members {
			s := Snapshot{Claim: fmt.Sprint("m", m)}
			if have := c.kept[c.applied.id][m]; have != nil {
				s.Exists, s.Cut, s.CreatedAt = true, have.ready, have.at
			}
			keeps = append(keeps, s)
		}
	}
	var users []string
	if c.app {
		users = []string{"app-0"}
	}
	source := Source{
		Own:     c.handed || c.taken > 0 && c.takenFor == c.wanted,
		Cluster: c.name, Now: w.now, Wanted: c.stand(), InForce: c.inForce, TriggerNow: c.trigger, Create: true, Session: c.session, Last: c.last, Failures: c.failures,
		Recovery: c.recovery, Snapshots: snaps, Clones: clones, Mover: mover, Stale: stale, Replica: replica,
		Peer: Peer{Name: c.peer.name, Link: v1alpha1.LinkConnected, Asked: true, Found: true, Stand: c.peer.stand(), InForce: c.peer.inForce, PrepareDue: true,
			ReceiverReady: c.peer.ready, Well: c.peer.well, Quiet: c.peer.session == nil && c.peer.observed == c.peer.wanted, Members: true, Agreed: true, Recovery: c.peer.recovery},
	}
	if c.size != c.peer.size {
		source.Peer.Sizes = []Sizes{{Claim: "m0", PeerClaim: "m0", Here: int64(c.size), There: int64(c.peer.size)}}
		source.Peer.PrepareDue = c.peer.wish != c.size
	}
	target := Target{
		Now: w.now, Wanted: c.stand(), InForce: c.inForce, Users: users, Session: c.session, Mover: mover, Leftover: leftover,
		Replica: replica, Recorded: c.recovery, Retain: 2, Snapshots: keeps, SourceQuiet: source.Peer.Quiet,
	}
	if c.wish > c.size {
		target.Growth = []Growth{{Claim: "m0", From: int64(c.size), To: int64(c.wish), Asked: c.request == c.wish}}
	}
	if c.pair && c.fits != c.size {
		target.Misfit = "the claims have grown"
	}
	return source, target
}

func (w *world) connected(c *cluster) bool { return c.peer.receiver && c.peer.door }

// step lets a cluster look once and act once.
func (w *world) step(c *cluster) Decision {
	source, target := w.see(c)
	var d Decision
	if c.wanted.Role == v1alpha1.RoleSource {
		d = NextSource(source)
	} else {
		d = NextTarget(target)
	}
	w.trace = append(w.trace, fmt.Sprintf("%s %s %s", c.name, d.Step, d.Reason))
	for _, effect := range w.act(c, d) {
		if w.crashAt > 0 && w.effects == w.crashAt && !w.crashed {
			w.crashed = true
			w.trace = append(w.trace, c.name+" CRASH")
			break
		}
		w.effects++
		effect()
		w.invariants(c)
	}
	c.well, c.observed = d.Ready, c.wanted
	if d.Step != StartSession {
		c.ready = d.Ready && c.inForce.Role == v1alpha1.RoleTarget && c.reached() && (c.applied == nil || c.applied.id == c.recovery.Point)
	}
	return d
}

// act lists the effects of a step in order. Saving the status is one effect.
func (w *world) act(c *cluster, d Decision) []func() {
	var effects []func()
	do := func(f func()) { effects = append(effects, f) }
	end := func(ended Ended) {
		ended.Point, ended.Trigger, ended.TriggerNow, ended.FinishedAt = c.session.Point, c.session.Trigger, c.trigger, w.now
		if ended.Committed {
			c.recovery = Recovery{Point: c.session.Point, Time: c.session.CutAt, Epoch: c.session.Epoch}
			c.base, c.failures = "", 0
			if len(c.snapshots[c.session.Point]) == members {
				c.base = c.session.Point
			}
		} else {
			c.failures++
		}
		c.last, c.session = &ended, nil
	}
	switch d.Step {
	case TakeRole:
		do(func() {
			c.inForce = c.stand()
			if c.wanted.Role == v1alpha1.RoleTarget {
				c.base = ""
			}
		})
	case TakeEpoch:
		do(func() { c.taken, c.takenFor = d.Epoch, c.wanted })
	case PreparePeer:
		do(func() { c.peer.wanted.Epoch = max(c.peer.wanted.Epoch, c.stand().Epoch) })
	case StartSession:
		w.points++
		p := fmt.Sprintf("p%02d", w.points)
		do(func() {
			c.session = &Session{Point: p, Epoch: c.inForce.Epoch, Trigger: d.Trigger, StartedAt: w.now}
			c.saved[p] = true
		})
	case TakeSnapshots:
		p := c.session.Point
		for m := range members {
			if c.snapshots[p][m] != nil {
				continue
			}
			do(func() {
				if c.snapshots[p] == nil {
					c.snapshots[p] = map[int]*snap{}
				}
				c.snapshots[p][m] = &snap{content: c.volumes[m], at: w.now, size: c.size}
			})
		}
	case RecordCut:
		do(func() { next := *c.session; next.CutAt = c.snapshots[next.Point][0].at; c.session = &next })
	case MakeClones:
		p := c.session.Point
		for m := range members {
			do(func() {
				if c.clones[p] == nil {
					c.clones[p] = map[int]int{}
				}
				c.clones[p][m] = c.snapshots[p][m].content
				c.carries[p] = c.snapshots[p][m].size
			})
		}
	case GrowPeer:
		do(func() { c.peer.wish = c.size })
	case GrowClaims:
		do(func() { c.request = c.wish })
	case StartMover:
		p := c.session.Point
		do(func() {
			if len(c.clones[p]) != members {
				w.t.Fatalf("mover of %s started without all its clones\n%v", p, w.trace)
			}
			c.jobs[p] = "running"
		})
	case RemoveMover:
		p := c.session.Point
		do(func() { delete(c.jobs, p) })
	case CommitSession:
		do(func() { end(Ended{Committed: true}) })
	case FailSession:
		do(func() { end(Ended{}) })
	case Tidy:
		all := c.wanted.Role == v1alpha1.RoleTarget
		mine := func(p string) bool { return !all && c.session != nil && c.session.Point == p }
		for p := range c.jobs {
			if !mine(p) {
				do(func() { delete(c.jobs, p) })
			}
		}
		for p := range c.clones {
			if !mine(p) {
				do(func() { delete(c.clones, p) })
			}
		}
		for p := range c.snapshots {
			if !mine(p) && (all || p != c.base) {
				do(func() { delete(c.snapshots, p) })
			}
		}
	case MakePair:
		do(func() { c.pair, c.fits = true, c.size })
	case RemovePair:
		do(func() { c.pair = false })
	case MakeSpool:
		do(func() { c.spool, c.sealed, c.committed, c.applied = true, false, nil, nil })
	case SealSpool:
		do(func() {
			if c.applied != nil {
				c.recovery = c.applied.recovery()
			}
			c.sealed = true
		})
	case RemoveSpool:
		do(func() { c.spool, c.sealed, c.committed, c.applied = false, false, nil, nil })
	case StartReceiver:
		do(func() { c.receiver = true })
		if c.wanted.Role == v1alpha1.RoleTarget {
			do(func() { c.door = true })
		}
	case CloseReceiver:
		do(func() { c.door = false })
	case RemoveReceiver:
		do(func() { c.door = false })
		do(func() { c.receiver = false })
	case TakeRecoveryPoint:
		p := c.applied.id
		for m := range members {
			do(func() {
				if c.kept[p] == nil {
					c.kept[p] = map[int]*snap{}
				}
				c.kept[p][m] = &snap{content: c.volumes[m], at: w.now}
			})
		}
	case RecordPoint:
		do(func() { c.recovery = c.applied.recovery() })
	}
	return effects
}

// turn lets the driver, the engine and the application do one thing each, then time pass.
func (w *world) turn() {
	for _, c := range []*cluster{w.east, w.west} {
		for _, sets := range []map[string]map[int]*snap{c.snapshots, c.kept} {
			for _, set := range sets {
				for _, s := range set {
					s.ready = true
				}
			}
		}
		// A committed delta is applied volume by volume, a turn each: a crash of the receiver in between leaves a mixture until it is redone.
		if c.receiver && c.pair && c.committed != nil && (c.applied == nil || c.applied.id != c.committed.id) {
			next := slices.IndexFunc([]int{0, 1}, func(m int) bool { return c.volumes[m] != c.committed.content[m] })
			if next >= 0 {
				c.volumes[next] = c.committed.content[next]
			}
			if c.volumes == c.committed.content {
				c.applied, c.whole = c.committed, c.volumes
			}
		}
		for p, state := range c.jobs {
			peer := c.peer
			if state != "running" || !w.connected(c) || peer.inForce.Epoch > c.inForce.Epoch {
				continue
			}
			switch {
			case peer.size != c.carries[p]:
				c.jobs[p] = "refused"
			case peer.applied != nil && peer.applied.id == p:
				c.jobs[p] = "committed"
			case peer.committed == nil || peer.committed.id != p:
				whole := &point{id: p, epoch: c.inForce.Epoch, at: c.session.CutAt}
				for m := range members {
					whole.content[m] = c.clones[p][m]
				}
				peer.committed = whole
			}
		}
		// The driver grows volumes in its own time. A claim whose pods run grows too, as the application's does.
		if c.request > c.size {
			c.size = c.request
			if c.inForce.Role == v1alpha1.RoleTarget && (c.receiver || c.pair || c.spool) {
				w.t.Fatalf("%s: a volume grew beside a receiver\n%s", c.name, lines(w.trace)) // M-155
			}
		}
		if c.app && c.inForce.Role == v1alpha1.RoleSource {
			w.writable++
			for m := range members {
				c.volumes[m] = w.writable
			}
			c.whole = c.volumes
		}
	}
	w.now = w.now.Add(time.Second)
}

func (w *world) invariants(c *cluster) {
	fail := func(rule string) {
		w.t.Fatalf("%s: %s\ntrace:\n%s", c.name, rule, lines(w.trace))
	}
	for _, made := range []map[string]bool{keys(c.snapshots), keys(c.clones), keys(c.jobs)} {
		for p := range made {
			if !c.saved[p] {
				fail("something was made for " + p + " before it was saved")
			}
		}
	}
	if len(c.jobs) > 1 {
		fail("two movers at once")
	}
	if c.inForce.Role == v1alpha1.RoleSource && (c.pair || c.receiver || c.spool) && c.reached() {
		fail("source in force beside a replica")
	}
	if c.inForce.Role == v1alpha1.RoleTarget && (len(c.jobs) > 0 || len(c.clones) > 0 || len(c.snapshots) > 0) {
		fail("target in force beside a session")
	}
	if (c.pair || c.receiver) && c.app {
		fail("a receiver beside the application's pods")
	}
	if c.base != "" && len(c.snapshots[c.base]) != members && c.wanted.Role == v1alpha1.RoleSource {
		fail("the base's snapshots are gone")
	}
	if !c.spool && c.volumes != c.whole && !c.app {
		fail("the spool was removed from a half-applied replica")
	}
	for p, set := range c.kept {
		for m, s := range set {
			if c.applied != nil && c.applied.id == p && s.content != c.applied.content[m] {
				fail("a recovery point was taken of something else")
			}
		}
	}
}

func keys[V any](m map[string]V) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

func lines(trace []string) string {
	out := ""
	for _, l := range trace {
		out += l + "\n"
	}
	return out
}

// until turns the world until done, both clusters looking once a turn.
func (w *world) until(what string, done func() bool) {
	for range 400 {
		if done() {
			return
		}
		w.step(w.east)
		w.step(w.west)
		w.turn()
	}
	w.t.Fatalf("never: %s\ntrace:\n%s", what, lines(w.trace[max(0, len(w.trace)-60):]))
}

func (w *world) committedBy(c *cluster, token string) func() bool {
	return func() bool {
		return c.session == nil && c.last != nil && c.last.Committed && c.last.TriggerNow == token && c.peer.recovery.Point == c.last.Point && len(c.jobs) == 0
	}
}

// trigger asks for sessions until one is committed, as a plan does that sees one fail.
func (w *world) sync(c *cluster, name string) {
	for try := 0; ; try++ {
		token := fmt.Sprint(name, try)
		c.trigger = token
		w.until(token, func() bool { return c.session == nil && c.last != nil && c.last.TriggerNow == token })
		if c.last.Committed {
			w.until(token+" recorded", w.committedBy(c, token))
			return
		}
		if try > 5 {
			w.t.Fatalf("%s fails for ever\n%s", name, lines(w.trace))
		}
	}
}

// story is a first copy, a second session, a planned move to west and home again.
func (w *world) story() {
	w.sync(w.east, "first")
	w.sync(w.east, "second")
	w.east.request = 2
	w.turn()
	w.sync(w.east, "grown")
	if w.west.size != 2 || w.west.fits != 2 || w.east.carries[w.east.last.Point] != 2 {
		w.t.Fatalf("the claims grew, the replica did not: %d, pair for %d", w.west.size, w.west.fits)
	}
	move := func(from, to *cluster, epoch int64) {
		from.app = false
		w.turn()
		w.sync(from, "final-to-"+to.name)
		want := from.volumes
		from.wanted = Stand{v1alpha1.RoleTarget, epoch}
		w.until("hand over", from.reached)
		to.wanted, to.handed = Stand{v1alpha1.RoleSource, epoch}, true
		w.until("promote", to.reached)
		to.handed = false
		if to.volumes != want {
			w.t.Fatalf("%s has %v after the move, want %v\n%s", to.name, to.volumes, want, lines(w.trace))
		}
		to.app = true
		w.until("reverse replication", func() bool {
			return to.last != nil && to.last.Committed && to.recovery.Epoch == epoch && to.session == nil
		})
	}
	move(w.east, w.west, 2)
	move(w.west, w.east, 3)
	w.sync(w.east, "after")
	w.until("all is tidy", func() bool {
		return w.east.session == nil && len(w.east.clones) == 0 && len(w.east.jobs) == 0 && len(w.east.snapshots) == 1
	})
}

// handStory is a failover by hand and home again: roles alone are set, old source first, and epochs advance by themselves.
func (w *world) handStory() {
	w.sync(w.east, "first")
	exchange := func(from, to *cluster) {
		epoch := from.inForce.Epoch
		from.app = false
		w.turn()
		w.sync(from, "final-to-"+to.name)
		want := from.volumes
		from.wanted.Role = v1alpha1.RoleTarget
		w.until("hand over", func() bool { return from.inForce.Role == v1alpha1.RoleTarget })
		to.wanted.Role = v1alpha1.RoleSource
		w.until("promote", func() bool { return to.inForce.Role == v1alpha1.RoleSource })
		if to.volumes != want || to.inForce.Epoch <= epoch {
			w.t.Fatalf("%s has %v in epoch %d, want %v in more than %d\n%s", to.name, to.volumes, to.inForce.Epoch, want, epoch, lines(w.trace))
		}
		to.app = true
		w.until("reverse replication", func() bool {
			return to.last != nil && to.last.Committed && to.recovery.Epoch == to.inForce.Epoch && to.session == nil && from.inForce.Epoch == to.inForce.Epoch
		})
	}
	exchange(w.east, w.west)
	exchange(w.west, w.east)
	w.sync(w.east, "after")
}

// M-125, M-143: whatever effect a manager dies before, roles by hand are exchanged and back, and nothing is lost.
func TestRolesByHandSurviveACrashBetweenAnyTwoEffects(t *testing.T) {
	dry := newWorld(t, 0)
	dry.handStory()
	for crashAt := 1; crashAt < dry.effects; crashAt++ {
		w := newWorld(t, crashAt)
		w.handStory()
		if !w.crashed {
			t.Fatalf("crash %d never came", crashAt)
		}
	}
}

func TestTheStoryWithoutACrash(t *testing.T) {
	newWorld(t, 0).story()
}

// Whatever effect the manager dies before, the story ends the same.
func TestACrashBetweenAnyTwoEffectsHeals(t *testing.T) {
	dry := newWorld(t, 0)
	dry.story()
	if dry.effects < 60 {
		t.Fatalf("the story has only %d effects", dry.effects)
	}
	for crashAt := 1; crashAt < dry.effects; crashAt++ {
		w := newWorld(t, crashAt)
		w.story()
		if !w.crashed {
			t.Fatalf("crash %d never came", crashAt)
		}
	}
}

// Objects that somebody removes by hand are made again, or the session fails and the next one starts.
func TestRemovedObjectsHeal(t *testing.T) {
	removals := map[string]func(c *cluster){
		"mover":     func(c *cluster) { clear(c.jobs) },
		"clones":    func(c *cluster) { clear(c.clones); clear(c.jobs) },
		"pair":      func(c *cluster) { c.peer.receiver, c.peer.pair = false, false },
		"receiver":  func(c *cluster) { c.peer.receiver = false },
		"way to it": func(c *cluster) { c.peer.door = false },
		"session's snapshots": func(c *cluster) {
			if c.session != nil {
				delete(c.snapshots, c.session.Point)
			}
		},
	}
	for name, remove := range removals {
		for after := range 25 {
			w := newWorld(t, 0)
			w.sync(w.east, "first")
			w.east.trigger = "second"
			for range after {
				w.step(w.east)
				w.step(w.west)
				w.turn()
			}
			remove(w.east)
			w.sync(w.east, name)
		}
	}
}

// A move that is taken back before the other side took over leaves the source a source.
func TestDemotionTakenBackWhileTheApplicationRuns(t *testing.T) {
	w := newWorld(t, 0)
	w.sync(w.east, "first")
	w.east.wanted = Stand{v1alpha1.RoleTarget, 2}
	for range 10 {
		if d := w.step(w.east); d.Reason != ReasonClaimsInUse {
			t.Fatalf("demotion under a running application: %+v", d)
		}
	}
	if len(w.east.snapshots) == 0 {
		t.Fatal("the base was removed though the role was never left")
	}
	w.east.wanted = Stand{v1alpha1.RoleSource, 2}
	w.west.wanted = Stand{v1alpha1.RoleTarget, 2}
	w.sync(w.east, "again")
}

// M-154: whenever the source grows, no session ever carries sizes that differ, and the replica keeps its point until the next.
func TestGrowthAtAnyMoment(t *testing.T) {
	for after := range 30 {
		w := newWorld(t, 0)
		w.sync(w.east, "first")
		w.east.trigger = "second"
		for range after {
			w.step(w.east)
			w.step(w.west)
			w.turn()
		}
		w.east.request = 2
		lost := false
		w.until("grown", func() bool {
			lost = lost || w.west.recovery.Point == ""
			return w.west.size == 2
		})
		if lost {
			t.Fatalf("after %d turns: the replica's recovery point was forgotten while it grew\n%s", after, lines(w.trace))
		}
		w.sync(w.east, "third")
	}
}

// A replica whose claims grow is promoted with the point it has, wherever the growth is.
func TestPromotionWhileClaimsGrow(t *testing.T) {
	for after := range 20 {
		w := newWorld(t, 0)
		w.sync(w.east, "first")
		w.east.app = false
		w.turn()
		w.sync(w.east, "final")
		want := w.east.volumes
		w.east.request = 2
		for range after {
			w.turn()
			w.step(w.east)
			w.step(w.west)
		}
		w.east.wanted, w.west.wanted = Stand{v1alpha1.RoleTarget, 2}, Stand{v1alpha1.RoleSource, 2}
		w.until("promoted", func() bool { return w.west.inForce == w.west.wanted })
		if w.west.volumes != want {
			t.Fatalf("promoted with %v, want %v\n%s", w.west.volumes, want, lines(w.trace))
		}
	}
}

// A promotion that is taken back on the way sets the replica up anew.
func TestPromotionTakenBackAnywhere(t *testing.T) {
	for after := range 12 {
		w := newWorld(t, 0)
		w.sync(w.east, "first")
		w.east.app = false
		w.east.wanted = Stand{v1alpha1.RoleTarget, 1}
		w.until("east is target", w.east.reached)
		w.west.wanted = Stand{v1alpha1.RoleSource, 1}
		for range after {
			if w.west.inForce.Role == v1alpha1.RoleSource {
				break
			}
			w.step(w.west)
			w.turn()
		}
		w.west.wanted = Stand{v1alpha1.RoleTarget, 1}
		w.until("west is target", w.west.reached)
		w.east.wanted = Stand{v1alpha1.RoleSource, 1}
		w.sync(w.east, "again")
	}
}

// A promotion asked for while the source still runs a session waits for it to be gone, wherever the session is.
func TestAPromotionWaitsForTheFormerSourcesSession(t *testing.T) {
	for after := range 14 {
		w := newWorld(t, 0)
		w.sync(w.east, "first")
		w.east.app = false
		w.east.trigger = "late"
		for range after {
			w.step(w.east)
			w.step(w.west)
			w.turn()
		}
		want := w.east.volumes
		w.west.wanted, w.east.wanted = Stand{v1alpha1.RoleSource, 2}, Stand{v1alpha1.RoleTarget, 2}
		w.until("promoted", func() bool {
			if w.west.reached() && (w.east.session != nil || len(w.east.jobs) > 0) && w.east.jobs[w.east.last.Point] != "committed" {
				t.Fatalf("promoted beside a source's session\n%s", lines(w.trace))
			}
			return w.west.reached()
		})
		if got := w.west.volumes; got[0] != got[1] || got[0] > want[0] {
			t.Fatalf("promoted with %v", got)
		}
	}
}
