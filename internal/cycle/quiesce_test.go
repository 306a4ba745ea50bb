package cycle

import (
	"fmt"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// quiescing is a source whose session is at a state of its Rules, with nothing cut yet.
func quiescing(state v1alpha1.QuiesceState, run RunState) Source {
	s := inSession()
	s.Session.CutAt, s.Clones, s.Mover = time.Time{}, Absent, Mover{}
	s.Snapshots = []Snapshot{{Claim: "data"}, {Claim: "wal"}}
	s.Session.Quiescence = &Quiescence{Pre: "freeze", Post: "thaw", State: state, Run: run, Holds: 1, HoldLimit: time.Minute, QuiescedAt: noon.Add(-5 * time.Second)}
	return s
}

func TestTheStepsOfQuiescing(t *testing.T) {
	cutAll := func(s *Source) { s.Snapshots = []Snapshot{taken("data"), taken("wal")} }
	for _, c := range []struct {
		name  string
		state v1alpha1.QuiesceState
		run   RunState
		edit  func(*Source)
		want  expectation
		fault string
	}{
		{"nothing is cut before the application is quiesced", v1alpha1.QuiesceWaiting, RunUnknown, nil, expectation{BeginQuiesce, ReasonQuiescing, true, "", "Rule freeze"}, ""},
		{"another session has the Rule", v1alpha1.QuiesceWaiting, RunUnknown, func(s *Source) { s.Session.Quiescence.Busy = "Rule freeze is being run" },
			expectation{Wait, ReasonRuleBusy, true, "", "Rule freeze is being run"}, ""},
		{"the Rule has gone", v1alpha1.QuiesceWaiting, RunUnknown, func(s *Source) { s.Session.Quiescence.Unusable = &Problem{"RuleMissing", "create it"} },
			expectation{FailSession, "RuleMissing", true, "", "create it"}, ""},
		{"the begin is saved", v1alpha1.QuiesceQuiescing, RunReserved, nil, expectation{Quiesce, ReasonQuiescing, true, "", "Rule freeze"}, ""},
		{"the commands run", v1alpha1.QuiesceQuiescing, RunQuiescing, nil, expectation{Wait, ReasonQuiescing, true, "", ""}, ""},
		{"the commands are through", v1alpha1.QuiesceQuiescing, RunQuiesced, nil, expectation{RecordQuiesced, ReasonQuiesced, true, "", ""}, ""},
		{"a command failed", v1alpha1.QuiesceQuiescing, RunFailed, func(s *Source) { s.Session.Quiescence.Trouble = "code 1" }, expectation{Resume, ReasonResuming, true, "", "Rule thaw"}, ReasonPreCutRuleFailed},
		{"the manager that ran them has ended", v1alpha1.QuiesceQuiescing, RunUnknown, nil, expectation{Resume, ReasonResuming, true, "", ""}, ReasonQuiesceInterrupted},
		{"quiesced: the members are cut", v1alpha1.QuiesceQuiesced, RunQuiesced, nil, expectation{TakeSnapshots, ReasonSessionRunning, true, "", "data, wal"}, ""},
		{"one is not cut yet", v1alpha1.QuiesceQuiesced, RunQuiesced, func(s *Source) { cutAll(s); s.Snapshots[1].Cut, s.Snapshots[1].Ready = false, false },
			expectation{Wait, ReasonSnapshotsPending, true, "", "wal"}, ""},
		{"all are cut, and what holds has answered; that they cannot be used yet holds nobody", v1alpha1.QuiesceQuiesced, RunQuiesced,
			func(s *Source) { cutAll(s); s.Snapshots[1].Ready = false; s.Session.Quiescence.Proven = true }, expectation{Resume, ReasonResuming, true, "", ""}, ""},
		{"all are cut, and what holds has not answered", v1alpha1.QuiesceQuiesced, RunFailed, func(s *Source) { cutAll(s); s.Session.Quiescence.Trouble = "lost" },
			expectation{Resume, ReasonResuming, true, "", ""}, ReasonQuiesceLost},
		{"all are cut, but the manager that held has ended", v1alpha1.QuiesceQuiesced, RunUnknown, cutAll, expectation{Resume, ReasonResuming, true, "", ""}, ReasonQuiesceLost},
		{"commands that hold nothing outlast the manager", v1alpha1.QuiesceQuiesced, RunUnknown, func(s *Source) { cutAll(s); s.Session.Quiescence.Holds = 0 },
			expectation{Resume, ReasonResuming, true, "", ""}, ""},
		{"it stands still for too long", v1alpha1.QuiesceQuiesced, RunQuiesced, func(s *Source) { s.Session.Quiescence.QuiescedAt = noon.Add(-61 * time.Second) },
			expectation{Resume, ReasonResuming, true, "", ""}, ReasonQuiescedTooLong},
		{"the cut fails", v1alpha1.QuiesceQuiesced, RunQuiesced, func(s *Source) { cutAll(s); s.Snapshots[1] = Snapshot{Claim: "wal"} },
			expectation{Resume, ReasonResuming, true, "", ""}, ReasonCutInterrupted},
		{"the session is aborted", v1alpha1.QuiesceQuiesced, RunQuiesced, func(s *Source) { s.Wanted.Epoch = 3 }, expectation{Resume, ReasonResuming, true, "", ""}, ReasonAborted},
		{"the session is aborted before anything was run", v1alpha1.QuiesceWaiting, RunUnknown, func(s *Source) { s.Wanted.Epoch = 3 },
			expectation{FailSession, ReasonAborted, false, "", ""}, ""},
		{"it is let go", v1alpha1.QuiesceResuming, RunResuming, nil, expectation{Wait, ReasonResuming, true, "", ""}, ""},
		{"it was let go", v1alpha1.QuiesceResuming, RunResumed, nil, expectation{RecordResumed, ReasonResuming, true, "", ""}, ""},
		{"the manager that let it go has ended", v1alpha1.QuiesceResuming, RunUnknown, nil, expectation{Resume, ReasonResuming, true, "", ""}, ""},
		{"then the session goes on", v1alpha1.QuiesceResumed, RunUnknown, cutAll, expectation{RecordCut, ReasonSessionRunning, true, "", ""}, ""},
		{"or ends", v1alpha1.QuiesceResumed, RunUnknown, func(s *Source) { s.Session.Quiescence.Fault = &Problem{ReasonPreCutRuleFailed, "code 1"} },
			expectation{FailSession, ReasonPreCutRuleFailed, true, "", "code 1"}, ""},
		{"nothing is cut afterwards", v1alpha1.QuiesceResumed, RunUnknown, func(s *Source) { cutAll(s); s.Snapshots[1] = Snapshot{Claim: "wal"} },
			expectation{FailSession, ReasonSnapshotsVanished, true, "", "wal"}, ""},
		{"nor in another way", v1alpha1.QuiesceResumed, RunUnknown, func(s *Source) {
			cutAll(s)
			s.Session.Together, s.Session.MayPart, s.Snapshots[1].Ready, s.Snapshots[1].Error = true, true, false, "refused"
			s.Snapshots[0].CreatedAt = noon.Add(-time.Minute)
		}, expectation{Wait, ReasonSnapshotsPending, true, "", "refused"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := quiescing(c.state, c.run)
			if c.edit != nil {
				c.edit(&s)
			}
			d := NextSource(s)
			check(t, d, c.want)
			fault := ""
			if d.Fault != nil {
				fault = d.Fault.Reason
			}
			if fault != c.fault {
				t.Errorf("the session ends for %q, want %q", fault, c.fault)
			}
			if d.Step == Wait && s.Session.Quiescence.open() && d.Poll > Hasty {
				t.Errorf("an application that stands still waits for %s", d.Poll)
			}
		})
	}
}

func TestADemotionLetsTheApplicationGoBeforeItsPodsAreGone(t *testing.T) {
	s := quiescing(v1alpha1.QuiesceQuiesced, RunQuiesced)
	target := Target{Now: noon, Wanted: stand(v1alpha1.RoleTarget, 2), InForce: s.InForce, Session: s.Session, Users: []string{"db-0"}}
	if d := NextTarget(target); d.Step != Resume || d.Fault == nil || d.Fault.Reason != ReasonAborted {
		t.Errorf("%+v", d)
	}
	s.Session.Quiescence.State, s.Session.Quiescence.Fault = v1alpha1.QuiesceResumed, &Problem{ReasonAborted, "demoted"}
	if d := NextTarget(target); d.Reason != ReasonClaimsInUse {
		t.Errorf("%+v", d)
	}
}

// stillness is a session with Rules as far as it matters for them: what is saved, what this manager runs, and how things really are.
type stillness struct {
	q       Quiescence
	fault   bool
	ended   string // how the session went: "cut" or "failed"
	held    bool   // the application stands still by a command that holds it, of this manager
	frozen  bool   // it stands still by a command that has ended
	cut     [2]int // per member: 0 not asked, 1 asked, 2 cut while it stood still, 3 cut otherwise
	aborted bool
	crashes int
}

func (w stillness) still() bool { return w.held || w.frozen }

// source is what is seen of it.
func (w stillness) source() Source {
	s := quiescing(w.q.State, w.q.Run)
	q := w.q
	if w.fault {
		q.Fault = &Problem{"Fault", "as saved"}
	}
	if q.Run == RunFailed {
		q.Trouble = "lost"
	}
	s.Session.Quiescence = &q
	if w.aborted {
		s.Wanted.Epoch = 3
	}
	for i, state := range w.cut {
		if state > 0 {
			s.Snapshots[i].Exists, s.Snapshots[i].CreatedAt, s.Snapshots[i].Cut, s.Snapshots[i].Ready = true, noon, state > 1, state > 1
		}
	}
	return s
}

// step takes the decided step; saved is false when the manager ends before the status is.
func (w stillness) step(saved bool) stillness {
	s := w.source()
	// What holds answers when all is cut, as the controller asks it.
	if q := s.Session.Quiescence; q.State == v1alpha1.QuiesceQuiesced && q.Holds > 0 && allCut(s.Snapshots) && q.Run == RunQuiesced {
		if w.held {
			w.q.Proven, s.Session.Quiescence.Proven = true, true
		} else {
			w.q.Run, s.Session.Quiescence.Run, s.Session.Quiescence.Trouble = RunFailed, RunFailed, "no answer"
		}
	}
	d := NextSource(s)
	was := w
	switch d.Step {
	case BeginQuiesce:
		w.q.Run, w.q.State = RunReserved, v1alpha1.QuiesceQuiescing
	case Quiesce:
		w.q.Run = RunQuiescing
	case RecordQuiesced:
		w.q.State = v1alpha1.QuiesceQuiesced
	case TakeSnapshots:
		for i := range w.cut {
			w.cut[i] = max(w.cut[i], 1)
		}
	case Resume:
		w.held = false
		if w.q.Run != RunResumed {
			w.q.Run = RunResuming
		}
		w.q.State, w.fault = v1alpha1.QuiesceResuming, w.fault || d.Fault != nil
	case RecordResumed:
		w.q.State, w.q.Run = v1alpha1.QuiesceResumed, RunUnknown
	case RecordCut:
		w.ended = "cut"
	case FailSession:
		w.ended = "failed"
	}
	if !saved {
		w.q.State, w.fault, w.ended = was.q.State, was.fault, was.ended
		return w.crash()
	}
	return w
}

// crash ends the manager: what it held is let go, and it knows nothing any more.
func (w stillness) crash() stillness {
	w.crashes++
	w.held, w.q.Run, w.q.Proven = false, RunUnknown, false
	return w
}

// progress is what commands and drivers do by themselves, without any failure.
func (w stillness) progress() []stillness {
	var out []stillness
	add := func(change func(*stillness)) {
		next := w
		change(&next)
		out = append(out, next)
	}
	switch w.q.Run {
	case RunQuiescing:
		add(func(n *stillness) { n.q.Run, n.held, n.frozen = RunQuiesced, n.q.Holds > 0, n.q.Holds == 0 })
	case RunResuming:
		add(func(n *stillness) { n.q.Run, n.frozen = RunResumed, false })
	}
	for i, state := range w.cut {
		if state == 1 {
			add(func(n *stillness) {
				n.cut[i] = 3
				if n.still() {
					n.cut[i] = 2
				}
			})
		}
	}
	return out
}

// trouble is what may go wrong at any time.
func (w stillness) trouble() []stillness {
	var out []stillness
	if w.crashes < 2 {
		out = append(out, w.crash(), w.step(false))
	}
	if !w.aborted {
		next := w
		next.aborted = true
		out = append(out, next)
	}
	if w.held {
		next := w
		next.held = false // it ended by itself, which nobody has noticed yet
		out = append(out, next)
	}
	if w.q.Run == RunQuiesced && !w.held && w.q.Holds > 0 || w.q.Run == RunQuiescing {
		next := w
		next.q.Run, next.held, next.frozen = RunFailed, false, next.frozen || next.q.Holds == 0 // a command may fail when it has done half
		out = append(out, next)
	}
	return out
}

// Whatever fails, and whenever the manager ends: no session ends with its application standing still, none makes a point of members that were
// cut while it did not, and each ends.
func TestNoSessionEndsWithItsApplicationStandingStill(t *testing.T) {
	for holds := range 2 {
		first := stillness{q: Quiescence{Pre: "freeze", Post: "thaw", State: v1alpha1.QuiesceWaiting, Holds: holds, HoldLimit: time.Minute, QuiescedAt: noon}}
		seen, queue := map[stillness]bool{first: true}, []stillness{first}
		ends := map[string]int{}
		for len(queue) > 0 {
			w := queue[0]
			queue = queue[1:]
			if w.ended != "" {
				ends[w.ended]++
				if w.still() {
					t.Fatalf("the session has %s and its application stands still: %+v", w.ended, w)
				}
				if w.ended == "cut" && w.cut != [2]int{2, 2} {
					t.Fatalf("a point was made of members that were not all cut while the application stood still: %+v", w)
				}
				continue
			}
			mustEnd(t, w)
			for _, next := range append(append(w.progress(), w.trouble()...), w.step(true)) {
				if !seen[next] {
					seen[next] = true
					queue = append(queue, next)
				}
			}
		}
		t.Logf("with %d commands that hold: %d states, ends %v", holds, len(seen), ends)
		if ends["cut"] == 0 || ends["failed"] == 0 || len(seen) < 100 {
			t.Errorf("too little was looked at: %d states, ends %v", len(seen), ends)
		}
	}
}

// mustEnd lets nothing fail any more.
func mustEnd(t *testing.T, w stillness) {
	t.Helper()
	for n := 0; w.ended == ""; n++ {
		if n > 100 {
			t.Fatalf("the session does not end: %+v: %s", w, fmt.Sprint(NextSource(w.source())))
		}
		if next := w.progress(); len(next) > 0 {
			w = next[0]
			continue
		}
		w = w.step(true)
	}
}
