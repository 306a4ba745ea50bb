package cycle

import (
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/queue"
	"lifeboat.dev/lifeboat/internal/schedule"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func stand(role v1alpha1.Role, epoch int64) Stand { return Stand{role, epoch} }

// atRest is a source of epoch 2 whose last session was committed and recorded, with a schedule that is not due.
func atRest() Source {
	source, target := stand(v1alpha1.RoleSource, 2), stand(v1alpha1.RoleTarget, 2)
	last := Recovery{Point: "p1", Time: noon.Add(-5 * time.Minute), Epoch: 2}
	return Source{
		Now: noon, Wanted: source, InForce: source, Create: true, Scheduled: true, Look: schedule.Look{Next: noon.Add(3 * time.Minute)},
		Recovery: last, Last: &Ended{Point: "p1", Committed: true, Trigger: TriggerSchedule, FinishedAt: noon.Add(-4 * time.Minute)},
		Peer: Peer{Name: "west", Link: v1alpha1.LinkConnected, Asked: true, Found: true, Stand: target, InForce: target, ReceiverReady: true, Members: true, Agreed: true, Recovery: last},
	}
}

// inSession is the same source with a session whose mover runs.
func inSession() Source {
	s := atRest()
	s.Session = &Session{Point: "p2", Epoch: 2, Trigger: TriggerSchedule, StartedAt: noon.Add(-20 * time.Second), CutAt: noon.Add(-18 * time.Second)}
	s.Snapshots = []Snapshot{taken("data"), taken("wal")}
	s.Clones, s.Mover = Present, Mover{State: MoverRunning, Message: "transferring"}
	return s
}

func taken(claim string) Snapshot {
	return Snapshot{Claim: claim, Exists: true, CreatedAt: noon.Add(-19 * time.Second), Cut: true, Ready: true}
}

type expectation struct {
	step    Step
	reason  string
	ready   bool
	trigger string
	says    string
}

func check(t *testing.T, d Decision, want expectation) {
	t.Helper()
	if d.Step != want.step || d.Reason != want.reason || d.Ready != want.ready || d.Trigger != want.trigger || !strings.Contains(d.Message, want.says) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	if d.Message == "" || d.Phase == "" {
		t.Errorf("no message or no phase: %+v", d)
	}
	if (d.Step == Wait || d.Step == Rest || d.Step == FollowMover || d.Step == RemoveMover || d.Step == RemovePair) && d.Poll == 0 {
		t.Errorf("%s without a pause would spin", d.Step)
	}
}

func TestWhenASessionBegins(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Source)
		want expectation
	}{
		{"nothing is due", func(*Source) {}, expectation{Rest, ReasonReady, true, "", "next run"}},
		{"the schedule is due", func(s *Source) { s.Look = schedule.Look{Due: true} }, expectation{StartSession, ReasonSessionDue, true, TriggerSchedule, ""}},
		{"a trigger that was not answered", func(s *Source) { s.TriggerNow = "go" }, expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
		{"the schedule is due while a move holds the application offline", func(s *Source) { s.Moving, s.Look = true, schedule.Look{Due: true} },
			expectation{Rest, ReasonReady, true, "", "being moved"}},
		{"the move asks for its session", func(s *Source) { s.Moving, s.TriggerNow, s.Look = true, "go", schedule.Look{Due: true} },
			expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
		{"a trigger that was answered", func(s *Source) { s.TriggerNow = "go"; s.Last.TriggerNow = "go" }, expectation{Rest, ReasonReady, true, "", ""}},
		{"a trigger that was answered by a failure stays answered", func(s *Source) {
			s.TriggerNow = "go"
			s.Last = &Ended{Trigger: TriggerNow, TriggerNow: "go", FinishedAt: noon.Add(-time.Hour)}
			s.Failures = 1
		}, expectation{Rest, ReasonRetryLater, true, "", "failed"}},
		{"nothing was ever committed", func(s *Source) { s.Recovery, s.Last = Recovery{}, nil }, expectation{StartSession, ReasonSessionDue, true, TriggerFirst, ""}},
		{"nothing was committed in this epoch", func(s *Source) { s.Recovery.Epoch = 1 }, expectation{StartSession, ReasonSessionDue, true, TriggerFirst, ""}},
		{"nothing was ever committed, and the schedule is due too", func(s *Source) { s.Recovery, s.Last, s.Look = Recovery{}, nil, schedule.Look{Due: true} },
			expectation{StartSession, ReasonSessionDue, true, TriggerFirst, ""}},
		{"the first failed a moment ago, and the schedule is due", func(s *Source) {
			s.Recovery, s.Look = Recovery{}, schedule.Look{Due: true}
			s.Last, s.Failures = &Ended{Trigger: TriggerFirst, FinishedAt: noon.Add(-time.Second)}, 1
		}, expectation{StartSession, ReasonSessionDue, true, TriggerSchedule, ""}},
		{"the first failed a moment ago", func(s *Source) {
			s.Recovery = Recovery{}
			s.Last, s.Failures = &Ended{Trigger: TriggerFirst, FinishedAt: noon.Add(-29 * time.Second)}, 1
		}, expectation{Rest, ReasonRetryLater, true, "", ""}},
		{"the first failed half a minute ago", func(s *Source) {
			s.Recovery = Recovery{}
			s.Last, s.Failures = &Ended{Trigger: TriggerFirst, FinishedAt: noon.Add(-30 * time.Second)}, 1
		}, expectation{StartSession, ReasonSessionDue, true, TriggerFirst, ""}},
		{"a scheduled one failed: it is tried again before the schedule", func(s *Source) {
			s.Last, s.Failures = &Ended{Trigger: TriggerSchedule, FinishedAt: noon.Add(-2 * time.Minute)}, 2
		}, expectation{StartSession, ReasonSessionDue, true, TriggerSchedule, ""}},
		{"suspended", func(s *Source) { s.Suspended, s.Look, s.TriggerNow = true, schedule.Look{Due: true}, "go" }, expectation{Rest, ReasonSuspended, true, "", "suspendReplication"}},
		{"sessions of others come first", func(s *Source) {
			s.Look, s.Turn = schedule.Look{Due: true}, &queue.Turn{Running: 16, Limit: 16, Ahead: 3}
		},
			expectation{Wait, ReasonItsTurn, true, "", "its turn: 16 of at most 16 sessions run, 3 replications are closer to their objective"}},
		{"it is its turn", func(s *Source) {
			s.Look, s.Turn = schedule.Look{Due: true}, &queue.Turn{Go: true, Running: 15, Limit: 16}
		},
			expectation{StartSession, ReasonSessionDue, true, TriggerSchedule, ""}},
		{"a trigger waits for no turn", func(s *Source) { s.TriggerNow, s.Turn = "go", &queue.Turn{Running: 16, Limit: 16} },
			expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
		{"the first session waits for its turn", func(s *Source) {
			s.Recovery, s.Last, s.Turn = Recovery{}, nil, &queue.Turn{Running: 16, Limit: 16}
		}, expectation{Wait, ReasonItsTurn, true, "", "its turn"}},
		{"the schedule cannot be used", func(s *Source) { s.Unscheduled = &Problem{"SchedulePolicyMissing", "policy x"} },
			expectation{Wait, "SchedulePolicyMissing", false, "", "policy x"}},
		{"the schedule cannot be used, and a failed session would be tried again", func(s *Source) {
			s.Unscheduled = &Problem{"SchedulePolicyMissing", "policy x"}
			s.Last, s.Failures = &Ended{Trigger: TriggerSchedule, FinishedAt: noon.Add(-time.Hour)}, 1
		}, expectation{Wait, "SchedulePolicyMissing", false, "", "policy x"}},
		{"the schedule cannot be used, but somebody asks", func(s *Source) {
			s.Unscheduled, s.TriggerNow = &Problem{"SchedulePolicyMissing", "policy x"}, "go"
		}, expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
		{"a problem", func(s *Source) { s.Problem = &Problem{"ClaimMissing", "claim x"}; s.TriggerNow = "go" }, expectation{Wait, "ClaimMissing", false, "", "claim x"}},
		{"leftovers go first", func(s *Source) { s.Stale, s.TriggerNow = []string{"Job j"}, "go" }, expectation{Tidy, ReasonTidying, true, "", "Job j"}},
		{"the target was made anew: it knows no former point", func(s *Source) {
			s.TriggerNow = "go"
			s.Peer.Recovery = Recovery{Point: "p0", Time: noon.Add(-time.Hour)}
		},
			expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
		{"the same, a moment after it was committed", func(s *Source) {
			s.TriggerNow, s.Last.FinishedAt = "go", noon.Add(-time.Second)
			s.Peer.Recovery = Recovery{Point: "p0", Time: noon.Add(-time.Hour)}
		}, expectation{Wait, ReasonPeerFinishing, true, "", "west"}},
		{"the receiver records, and nothing is due", func(s *Source) { s.Peer.ReceiverReady, s.Peer.Well = false, true }, expectation{Rest, ReasonReady, true, "", ""}},
		{"the receiver records, and a session is due", func(s *Source) { s.Peer.ReceiverReady, s.Peer.Well, s.TriggerNow = false, true, "go" },
			expectation{Wait, ReasonPeerFinishing, true, "", "west"}},
		{"the target committed a point this side believes failed", func(s *Source) {
			s.TriggerNow, s.Last.FinishedAt = "go", noon.Add(-time.Second)
			s.Peer.Recovery = Recovery{Point: "p2", Time: noon}
		}, expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := atRest()
			c.edit(&s)
			check(t, NextSource(s), c.want)
		})
	}
}

func TestWhatMustBeTrueOfThePeer(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Source)
		want expectation
	}{
		{"no answer yet", func(s *Source) { s.Peer = Peer{Name: "west", Link: v1alpha1.LinkUnknown} }, expectation{Wait, ReasonLinkUnknown, false, "", "west"}},
		{"the link is lost", func(s *Source) { s.Peer = Peer{Name: "west", Link: v1alpha1.LinkLost, Trouble: "timeout"} }, expectation{Wait, ReasonLinkLost, false, "", "timeout"}},
		{"wrong trust", func(s *Source) { s.Peer = Peer{Name: "west", Link: v1alpha1.LinkRefused, Trouble: "unknown CA"} }, expectation{Wait, ReasonLinkRefused, false, "", "unknown CA"}},
		{"namespace not allowed", func(s *Source) {
			s.Peer = Peer{Name: "west", Link: v1alpha1.LinkConnected, Refuses: true, Trouble: "namespaces"}
		}, expectation{Wait, ReasonPeerRefuses, false, "", "namespaces"}},
		{"nothing there", func(s *Source) { s.Peer.Found, s.Peer.PrepareDue = false, true }, expectation{PreparePeer, ReasonPeerPreparing, false, "", ""}},
		{"nothing there, just asked", func(s *Source) { s.Peer.Found, s.Peer.Prepared = false, "claim x" }, expectation{Wait, ReasonPeerPreparing, false, "", "claim x"}},
		{"nothing there, declined", func(s *Source) { s.Peer.Found, s.Peer.Declined = false, &Problem{"PeerConflict", "2Gi"} }, expectation{Wait, "PeerConflict", false, "", "2Gi"}},
		{"nothing there, made by hand", func(s *Source) { s.Peer.Found, s.Create, s.Peer.PrepareDue = false, false, true }, expectation{Wait, ReasonPeerMissing, false, "", "peerObjects"}},
		// M-086, M-087, M-088: both sides' members, map and sizes are compared before anything is cut.
		{"nothing was compared in this epoch", func(s *Source) { s.Peer.Agreed, s.Recovery.Epoch, s.Peer.PrepareDue = false, 1, true }, expectation{PreparePeer, ReasonPeerPreparing, false, "", ""}},
		{"they differ", func(s *Source) {
			s.Peer.Agreed, s.Recovery.Epoch, s.Peer.Declined = false, 1, &Problem{"PeerConflict", "pvcMap"}
		}, expectation{Wait, "PeerConflict", false, "", "pvcMap"}},
		{"they differ, made by hand", func(s *Source) {
			s.Create, s.Peer.Agreed, s.Recovery.Epoch, s.Peer.Declined = false, false, 1, &Problem{"PeerConflict", "pvcMap"}
		}, expectation{Wait, "PeerConflict", false, "", "pvcMap"}},
		{"the epoch of what was made by hand follows too", func(s *Source) { s.Create, s.Peer.Stand.Epoch, s.Peer.PrepareDue = false, 1, true }, expectation{PreparePeer, ReasonPeerPreparing, false, "", ""}},
		{"other members", func(s *Source) { s.Peer.Members, s.Peer.PrepareDue = false, true }, expectation{PreparePeer, ReasonPeerPreparing, false, "", ""}},
		{"something is missing there", func(s *Source) { s.Peer.Lacks, s.Peer.PrepareDue = true, true }, expectation{PreparePeer, ReasonPeerPreparing, false, "", ""}},
		{"the peer is a source too", func(s *Source) { s.Peer.Stand.Role = v1alpha1.RoleSource }, expectation{Wait, ReasonPeerIsSource, false, "", "source too"}},
		{"the peer still becomes a target", func(s *Source) { s.Peer.InForce.Role = v1alpha1.RoleSource }, expectation{Wait, ReasonPeerPreparing, false, "", "west"}},
		{"the peer is ahead", func(s *Source) { s.Peer.Stand.Epoch, s.Peer.PrepareDue = 3, true }, expectation{Wait, ReasonStaleEpoch, false, "", "epoch 3"}},
		{"the peer is ahead and a source", func(s *Source) { s.Peer.Stand = stand(v1alpha1.RoleSource, 3) }, expectation{Wait, ReasonStaleEpoch, false, "", "spec.role"}},
		{"the peer is ahead in force", func(s *Source) { s.Peer.InForce.Epoch = 3 }, expectation{Wait, ReasonStaleEpoch, false, "", ""}},
		{"the peer is behind", func(s *Source) { s.Peer.Stand.Epoch, s.Peer.PrepareDue = 1, true }, expectation{PreparePeer, ReasonPeerPreparing, false, "", ""}},
		{"the peer's epoch is not in force yet", func(s *Source) { s.Peer.InForce.Epoch = 1 }, expectation{Wait, ReasonPeerPreparing, false, "", ""}},
		{"the receiver is not ready", func(s *Source) {
			s.Peer.ReceiverReady, s.Peer.WaitingFor, s.Peer.PrepareDue = false, "pods mount", true
		},
			expectation{Wait, ReasonPeerPreparing, false, "", "pods mount"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := atRest()
			s.TriggerNow = "go"
			c.edit(&s)
			check(t, NextSource(s), c.want)
		})
	}
}

func TestASessionFromBeginningToEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Source)
		want expectation
	}{
		{"nothing is cut", func(s *Source) {
			s.Session.CutAt, s.Snapshots = time.Time{}, []Snapshot{{Claim: "data"}, {Claim: "wal"}}
		},
			expectation{TakeSnapshots, ReasonSessionRunning, true, "", "data, wal"}},
		{"one is missing a moment after the other", func(s *Source) {
			s.Session.CutAt, s.Snapshots[1] = time.Time{}, Snapshot{Claim: "wal"}
			s.Snapshots[0].CreatedAt = noon.Add(-CutWithin)
		}, expectation{TakeSnapshots, ReasonSessionRunning, true, "", "wal"}},
		{"one is missing long after the other", func(s *Source) {
			s.Session.CutAt, s.Snapshots[1] = time.Time{}, Snapshot{Claim: "wal"}
			s.Snapshots[0].CreatedAt = noon.Add(-CutWithin - time.Second)
		}, expectation{FailSession, ReasonCutInterrupted, true, "", "wal"}},
		{"one is not usable yet", func(s *Source) {
			s.Session.CutAt, s.Snapshots[0].Ready, s.Snapshots[0].Error = time.Time{}, false, "quota"
		}, expectation{Wait, ReasonSnapshotsPending, true, "", "quota"}},
		{"one never becomes usable", func(s *Source) {
			s.Session.CutAt, s.Snapshots[0].Ready, s.Snapshots[0].Error = time.Time{}, false, "quota"
			s.Session.StartedAt = noon.Add(-SnapshotPatience - time.Second)
		}, expectation{FailSession, ReasonSnapshotsFailed, true, "", "quota"}},
		{"all are usable", func(s *Source) { s.Session.CutAt = time.Time{} }, expectation{RecordCut, ReasonSessionRunning, true, "", ""}},
		{"all are usable, long ago", func(s *Source) {
			s.Session.CutAt, s.Session.StartedAt = time.Time{}, noon.Add(-time.Hour)
		}, expectation{RecordCut, ReasonSessionRunning, true, "", ""}},
		{"no clones", func(s *Source) { s.Clones, s.Mover = Absent, Mover{} }, expectation{MakeClones, ReasonSessionRunning, true, "", ""}},
		{"clones that are not bound", func(s *Source) { s.Clones, s.Mover, s.Trouble = Partial, Mover{}, "quota" }, expectation{Wait, ReasonSessionRunning, true, "", "quota"}},
		{"no mover", func(s *Source) { s.Mover = Mover{} }, expectation{StartMover, ReasonSessionRunning, true, "", ""}},
		{"a mover that is being removed", func(s *Source) { s.Mover.State = MoverEnding }, expectation{Wait, ReasonSessionRunning, true, "", ""}},
		{"a mover that runs", func(*Source) {}, expectation{FollowMover, ReasonSessionRunning, true, "", "transferring"}},
		{"a mover that is through", func(s *Source) { s.Mover.State = MoverCommitted }, expectation{CommitSession, ReasonSessionEnded, true, "", "p2"}},
		{"a mover that is through, though the snapshots are gone", func(s *Source) { s.Mover.State, s.Snapshots = MoverCommitted, []Snapshot{{Claim: "data"}} },
			expectation{CommitSession, ReasonSessionEnded, true, "", "p2"}},
		{"a mover that was refused", func(s *Source) { s.Mover = Mover{State: MoverRefused, Message: "sizes"} }, expectation{FailSession, ReasonMoverRefused, true, "", "sizes"}},
		{"a Job that gave up", func(s *Source) { s.Mover = Mover{State: MoverFailed, Message: "crashed"} }, expectation{FailSession, ReasonMoverFailed, true, "", "crashed"}},
		{"snapshots vanish under a running mover", func(s *Source) { s.Snapshots[0] = Snapshot{Claim: "data"} }, expectation{RemoveMover, ReasonSnapshotsVanished, true, "", "data"}},
		{"snapshots vanish, the mover is gone", func(s *Source) { s.Snapshots[0], s.Mover = Snapshot{Claim: "data"}, Mover{} },
			expectation{FailSession, ReasonSnapshotsVanished, true, "", "data"}},
		{"suspending lets it end", func(s *Source) { s.Suspended = true }, expectation{FollowMover, ReasonSessionRunning, true, "", ""}},
		{"a group that broke lets it end", func(s *Source) { s.Problem = &Problem{"ClaimMissing", "x"} }, expectation{FollowMover, ReasonSessionRunning, true, "", ""}},
		{"the epoch grew: the mover goes", func(s *Source) { s.Wanted.Epoch = 3 }, expectation{RemoveMover, ReasonAborted, false, "", "epoch became 3"}},
		{"the epoch grew: then the session", func(s *Source) { s.Wanted.Epoch, s.Mover = 3, Mover{} }, expectation{FailSession, ReasonAborted, false, "", ""}},
		{"the epoch grew: a mover that is through is believed", func(s *Source) { s.Wanted.Epoch, s.Mover.State = 3, MoverCommitted },
			expectation{CommitSession, ReasonSessionEnded, true, "", ""}},
		{"the epoch grew: then it is in force", func(s *Source) { s.Wanted.Epoch, s.Session, s.Mover = 3, nil, Mover{} }, expectation{TakeRole, ReasonRoleTaken, false, "", "epoch 3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := inSession()
			c.edit(&s)
			check(t, NextSource(s), c.want)
		})
	}
}

func TestAnApplicationThatWaitsIsNotKeptWaiting(t *testing.T) {
	promoting := func(s *Source) {
		s.InForce, s.Own, s.Session = stand(v1alpha1.RoleTarget, 1), true, nil
		s.Replica = Replica{Pair: Present, Spool: Present, Sealed: true, Receiver: Partial}
	}
	for _, c := range []struct {
		name string
		edit func(*Source)
		poll time.Duration
	}{
		{"a mover that runs, the application too", func(*Source) {}, Steady},
		{"a mover that runs while a move holds the application offline", func(s *Source) { s.Moving = true }, Hasty},
		{"clones of a move", func(s *Source) { s.Moving, s.Clones, s.Mover = true, Partial, Mover{} }, Hasty},
		{"a replica that is being promoted", promoting, Hasty},
		{"a lost link", func(s *Source) {
			s.Moving, s.Session, s.TriggerNow = true, nil, "go"
			s.Peer = Peer{Name: "west", Link: v1alpha1.LinkLost, Trouble: "timeout"}
		}, CalmTarget},
		{"nothing is asked for", func(s *Source) { s.Moving, s.Session = true, nil }, Steady},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := inSession()
			c.edit(&s)
			if d := NextSource(s); d.Poll != c.poll {
				t.Errorf("%s (%s) is looked at again in %s, want %s", d.Step, d.Message, d.Poll, c.poll)
			}
		})
	}
}

func TestBackoffDoublesAndEnds(t *testing.T) {
	want := []time.Duration{30, 30, 60, 120, 240, 480, 900, 900, 900}
	for failures, seconds := range want {
		if got := Backoff(failures); got != seconds*time.Second {
			t.Errorf("Backoff(%d) = %s, want %ds", failures, got, seconds)
		}
	}
	if Backoff(1) <= CalmTarget {
		t.Error("a target may not have noticed what a failed session committed when the next one starts")
	}
}

// A source that was taken over from while its session ran has no target to refuse the mover: the peer itself tells.
func TestASessionEndsWhenThePeerHasALaterEpoch(t *testing.T) {
	s := inSession()
	s.Peer.Stand, s.Peer.InForce = stand(v1alpha1.RoleSource, 3), stand(v1alpha1.RoleTarget, 2)
	check(t, NextSource(s), expectation{RemoveMover, ReasonStaleEpoch, true, "", "epoch 3"})
	s.Mover = Mover{State: MoverCommitted}
	check(t, NextSource(s), expectation{CommitSession, ReasonSessionEnded, true, "", ""})
	s.Mover = Mover{}
	check(t, NextSource(s), expectation{FailSession, ReasonStaleEpoch, true, "", "epoch 3"})
	s.Session = nil
	check(t, NextSource(s), expectation{Wait, ReasonStaleEpoch, false, "", "set spec.role to target"})
}
