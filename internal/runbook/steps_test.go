package runbook

import "fmt"

// A move is one thing that can happen in a world. broken names the invariant that it breaks, if any.
type move struct {
	what   string
	to     world
	broken string
}

// moves are all things that can happen next: a manager takes its next instant, crashes, or something else goes on.
// They are told in words only when somebody reads them.
func (m model) moves(w world, tell bool) []move {
	out := make([]move, 0, 16)
	add := func(to world, format string, args ...any) {
		if to == w {
			return
		}
		what := ""
		if tell {
			what = fmt.Sprintf(format, args...)
		}
		out = append(out, move{what: what, to: to})
	}
	for c := range m.n {
		m.manage(w, c, add, &out)
		m.replicate(w, c, add)
		m.run(w, c, add)
		m.capture(w, c, add)
		if w.edits > 0 {
			for wanted := int8(1); wanted <= int8(m.n); wanted++ {
				to := w
				p := &to.clusters[c].plan
				if p.wanted == wanted || !p.mayEdit(int8(c+1), wanted) {
					continue
				}
				p.wanted = wanted
				to.clusters[c].manager.edited = to.clusters[c].manager.phase > 0
				to.edits--
				add(to, "on %s somebody sets primaryCluster to %s", name(int8(c+1)), name(wanted))
			}
		}
	}
	return out
}

// manage is the manager of cluster c: it reads, asks its peers and decides, does, saves; it may crash between any two.
func (m model) manage(w world, c int, add func(world, string, ...any), out *[]move) {
	k := w.clusters[c].manager
	who := name(int8(c + 1))
	if k.phase > 0 {
		to := w
		to.clusters[c].manager = manager{}
		add(to, "the manager of %s restarts", who)
	}
	switch k.phase {
	case 0:
		add(m.read(w, c), "%s reads its own cluster", who)
	case 1:
		for _, answers := range m.allAnswers(c) {
			for _, late := range []bool{false, true} {
				if late && k.looked.plan.op.id == 0 {
					continue // nothing to be late with
				}
				to, d := m.ask(w, c, answers, late)
				add(to, "%s decides %s %s (%s)", who, d.Action, d.Step, d.Reason)
			}
		}
	case 2:
		for _, ok := range []bool{true, false} {
			to := w
			if m.effect(&to, c, ok) {
				to.clusters[c].manager.phase = 3
				to.clusters[c].manager.looked = looked{}
			} else {
				to.clusters[c].manager = manager{}
			}
			add(to, "%s does %s, done: %t", who, k.next.action, ok)
		}
	case 3:
		to, broken := m.commit(w, c)
		add(to, "%s saves %s", who, k.next.action)
		(*out)[len(*out)-1].broken = broken
	}
}

func (m model) read(w world, c int) world {
	k := &w.clusters[c]
	k.manager = manager{phase: 1, looked: looked{k.plan, k.data, k.app, k.snap}}
	return w
}

func (m model) ask(w world, c int, answers [most]answer, late bool) (world, Decision) {
	d := m.decide(w, c, answers, late)
	k := &w.clusters[c].manager
	if d.Action == Rest {
		*k = manager{}
		return w, d
	}
	k.phase, k.next = 2, wordsOf(d)
	if d.Action != Capture {
		k.looked = looked{} // only Capture needs what was read
	}
	return w, d
}

// commit saves unless the plan was edited since it was read.
func (m model) commit(w world, c int) (world, string) {
	broken := ""
	k := w.clusters[c].manager
	before := w.clusters[c].plan
	if !k.edited {
		m.save(&w, c)
		after, app := w.clusters[c].plan, w.clusters[c].app
		ended := Result(k.next.result.String())
		switch {
		case after.epoch < before.epoch:
			broken = "an epoch never goes back"
		case Action(k.next.action.String()) == Close && ended != Completed && !app.wanted:
			broken = "an undone move leaves the application running where it was"
		}
	}
	w.clusters[c].manager = manager{}
	return w, broken
}

func (m model) allAnswers(c int) [][most]answer {
	all := [][most]answer{{}}
	for i := range m.n {
		if i == c {
			continue
		}
		var more [][most]answer
		for _, a := range all {
			for _, one := range []answer{answered, unanswered, lost} {
				a[i] = one
				more = append(more, a)
			}
		}
		all = more
	}
	return all
}

// replicate is what the replication on cluster c may do.
func (m model) replicate(w world, c int, add func(world, string, ...any)) {
	if !m.hasData {
		return
	}
	k := &w.clusters[c]
	who := name(int8(c + 1))
	s := k.data.session
	if k.data.role == source && k.data.inForce == source && !s.running {
		to := k.plan.op.to
		if k.data.trigger != 0 && k.data.trigger != k.data.answered && to != 0 {
			add(m.startSession(w, c, to, k.data.trigger), "%s starts session %s", who, k.data.trigger)
		}
		for peer := int8(1); peer <= int8(m.n); peer++ {
			if int(peer) == c+1 {
				continue
			}
			if m.lacksFirst(w, c, peer) {
				add(m.startSession(w, c, peer, 0), "%s starts the first session to %s", who, name(peer))
			}
			if w.schedules > 0 {
				next := m.startSession(w, c, peer, 0)
				next.schedules--
				add(next, "%s starts a scheduled session to %s", who, name(peer))
			}
		}
	}
	if s.running {
		if m.receives(w, s) {
			add(m.commitSession(w, c, true), "%s commits session %s", who, s.trigger)
			add(m.commitSession(w, c, false), "session %s of %s is committed and %s does not learn it", s.trigger, who, who)
		}
		add(m.endSession(w, c, false), "session %s of %s fails", s.trigger, who)
	}
	add(m.takeRole(w, c), "the role of %s comes into force", who)
}

// lacksFirst: a target in the source's epoch has no recovery point yet.
func (m model) lacksFirst(w world, c int, peer int8) bool {
	t := w.clusters[peer-1].data
	return t.inForce == target && t.epochIn == w.clusters[c].data.epochIn && t.points[0].id == 0
}

func (m model) startSession(w world, c int, peer int8, trigger word) world {
	k := &w.clusters[c]
	k.data.session = session{running: true, trigger: trigger, epoch: k.data.epochIn, cut: k.data.content, to: peer}
	return w
}

// receives: the target is a target, in the session's epoch.
func (m model) receives(w world, s session) bool {
	t := w.clusters[s.to-1].data
	return t.inForce == target && t.epochIn == s.epoch
}

func (m model) commitSession(w world, c int, learned bool) world {
	s := &w.clusters[c].data.session
	t := &w.clusters[s.to-1].data
	if s.id == 0 {
		w.points++
		s.id = w.points
		t.points = [2]point{{s.id, s.epoch}, t.points[0]}
		t.content = s.cut
	}
	if !learned {
		return w
	}
	return m.endSession(w, c, true)
}

func (m model) endSession(w world, c int, committed bool) world {
	d := &w.clusters[c].data
	if d.session.trigger != 0 {
		d.answered, d.committed, d.answeredPoint = d.session.trigger, committed, 0
		if committed {
			d.answeredPoint = d.session.id
		}
	}
	d.session = session{}
	return w
}

// takeRole puts the role that is asked for in force: a volume that pods use does not become a target.
func (m model) takeRole(w world, c int) world {
	k := &w.clusters[c]
	d := &k.data
	if d.role == target && d.inForce == source && k.app.running {
		return w
	}
	if d.role != d.inForce {
		w = m.endSession(w, c, false)
		d = &w.clusters[c].data
		d.points = [2]point{}
	}
	d.inForce, d.epochIn = d.role, d.epoch
	return w
}

// run is what the application's pods on cluster c may do.
func (m model) run(w world, c int, add func(world, string, ...any)) {
	k := &w.clusters[c]
	who := name(int8(c + 1))
	if k.app.wanted && !k.app.running && (!m.hasData || k.data.inForce == source) {
		to := w
		to.clusters[c].app.running = true
		add(to, "the pods of %s start", who)
	}
	if !k.app.wanted && k.app.running {
		to := w
		to.clusters[c].app.running = false
		add(to, "the pods of %s stop", who)
	}
	if k.app.running && w.writes > 0 {
		add(m.write(w, c), "the application on %s writes", who)
	}
}

func (m model) write(w world, c int) world {
	w.writes--
	w.written++
	w.clusters[c].data.content = w.written
	return w
}

// capture is what the application snapshot of cluster c may do.
func (m model) capture(w world, c int, add func(world, string, ...any)) {
	k := &w.clusters[c]
	who := name(int8(c + 1))
	switch SnapshotState(k.snap.state.String()) {
	case SnapshotCapturing:
		add(m.captured(w, c), "%s has captured the objects", who)
		failed := w
		failed.clusters[c].snap.state = intern(string(SnapshotFailed))
		add(failed, "%s cannot capture the objects", who)
	case SnapshotCompleted:
		for i := range m.n {
			if i != c && !k.snap.on[i] && k.plan.op.id == k.snap.id {
				add(m.pushed(w, c, i), "%s sends the objects to %s", who, name(int8(i+1)))
			}
		}
	}
}

func (m model) captured(w world, c int) world {
	k := &w.clusters[c]
	k.snap.state, k.snap.counts = intern(string(SnapshotCompleted)), k.app.wanted
	return w
}

func (m model) pushed(w world, c, peer int) world {
	s := w.clusters[c].snap
	w.clusters[c].snap.on[peer] = true
	w.clusters[peer].snap = snap{id: s.id, state: s.state, counts: s.counts}
	return w
}

// broken names an invariant that does not hold in a world; empty when all hold.
func (m model) broken(w world) string {
	writers, running := 0, 0
	for c := range m.n {
		k := w.clusters[c]
		standing := StandingOf(name(int8(c+1)), *k.plan.copy())
		if standing == Primary || standing == Taking {
			writers++
		}
		if k.app.running {
			running++
		}
		if !m.hasData {
			continue
		}
		if k.app.running && k.data.content != w.written {
			return "the application never runs without every acknowledged write"
		}
		if (standing == Primary || standing == Taking) && k.data.inForce == source && k.data.content != w.written {
			return "a writable primary holds every acknowledged write"
		}
		if k.app.running && k.data.inForce != source {
			return "no pod runs on a replica"
		}
	}
	switch {
	case writers > 1:
		return "never two primaries"
	case running > 1:
		return "the application never runs on two sides"
	}
	return ""
}

// calm lets a world go on without faults or people: every manager reconciles, everything that can succeed does.
func (m model) calm(w world) world {
	for c := range m.n {
		switch w.clusters[c].manager.phase {
		case 0:
			w = m.read(w, c)
		case 1:
			w, _ = m.ask(w, c, [most]answer{}, false)
		case 2:
			if m.effect(&w, c, true) {
				w.clusters[c].manager.phase = 3
			} else {
				w.clusters[c].manager = manager{}
			}
		case 3:
			w, _ = m.commit(w, c)
		}
		k := w.clusters[c]
		if m.hasData {
			switch s := k.data.session; {
			case s.running && m.receives(w, s):
				w = m.commitSession(w, c, true)
			case s.running:
				w = m.endSession(w, c, false)
			case k.data.role == source && k.data.inForce == source && k.data.trigger != 0 && k.data.trigger != k.data.answered && k.plan.op.to != 0:
				w = m.startSession(w, c, k.plan.op.to, k.data.trigger)
			case k.data.role == source && k.data.inForce == source:
				for peer := int8(1); peer <= int8(m.n); peer++ {
					if int(peer) != c+1 && !w.clusters[c].data.session.running && m.lacksFirst(w, c, peer) {
						w = m.startSession(w, c, peer, 0)
					}
				}
			}
			w = m.takeRole(w, c)
		}
		k = w.clusters[c]
		switch {
		case k.app.wanted && (!m.hasData || k.data.inForce == source):
			w.clusters[c].app.running = true
		case !k.app.wanted:
			w.clusters[c].app.running = false
		}
		switch SnapshotState(k.snap.state.String()) {
		case SnapshotCapturing:
			w = m.captured(w, c)
		case SnapshotCompleted:
			for i := range m.n {
				if i != c && k.plan.op.id == k.snap.id && !k.snap.on[i] {
					w = m.pushed(w, c, i)
				}
			}
		}
	}
	return w
}

// unsettled tells what is left to do in a world that has been calm for long; empty when all is well.
func (m model) unsettled(w world) string {
	first := w.clusters[0].plan
	if m.disputed(w) {
		return "" // nothing was claimed and people have to agree first
	}
	for c := range m.n {
		k := w.clusters[c]
		who := name(int8(c + 1))
		isPrimary := int(k.plan.primary) == c+1
		switch p := k.plan; {
		case p.primary == 0:
			return who + " knows no primary"
		case p.primary != first.primary || p.epoch != first.epoch:
			return "the copies do not agree on primary and epoch"
		case p.wanted != p.primary:
			return who + " wants another primary than there is"
		case p.op != operation{}:
			return who + " still has an operation in step " + p.op.step.String()
		case isPrimary != k.app.running:
			return fmt.Sprintf("the application runs on %s: %t", who, k.app.running)
		case !m.hasData:
			continue
		case isPrimary != (k.data.inForce == source) || isPrimary != (k.data.role == source):
			return fmt.Sprintf("the data of %s is %s", who, k.data.inForce.api())
		case k.data.epochIn != p.epoch:
			return fmt.Sprintf("the data of %s is in epoch %d", who, k.data.epochIn)
		}
	}
	return ""
}

// disputed: nobody has claimed the plan, and the copies name different primaries, or one where the application does not run.
func (m model) disputed(w world) bool {
	differ := false
	for c := range m.n {
		if w.clusters[c].plan.primary != 0 {
			return false
		}
		wanted := w.clusters[c].plan.wanted
		differ = differ || wanted != w.clusters[0].plan.wanted || !w.clusters[wanted-1].app.running
	}
	return differ
}

// settled caches where calm worlds lead.
type settled map[world]bool

// settles follows a world while it is calm; it names what does not come to rest, empty when all does.
func (m model) settles(w world, known settled) string {
	w.edits, w.writes, w.schedules = 0, 0, 0
	var path []world
	for range 400 {
		if known[w] {
			break
		}
		path = append(path, w)
		next := m.calm(w)
		if problem := m.broken(next); problem != "" {
			return problem
		}
		w = next
		if m.unsettled(w) == "" {
			known[w] = true
			break
		}
	}
	if !known[w] {
		return "does not settle: " + m.unsettled(w)
	}
	for _, p := range path {
		known[p] = true
	}
	return ""
}

func (m model) settlesIf(asked bool, w world, known settled) string {
	if !asked {
		return ""
	}
	return m.settles(w, known)
}
