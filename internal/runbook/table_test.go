package runbook

import (
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// ready is a primary east that is asked to move to west, where everything fits.
func ready() Seen {
	point := Point{"20300501t120000-aaaaaa", 1}
	return Seen{
		Self: "east",
		Own:  Copy{Found: true, Wanted: "west", Primary: "east", Epoch: 1},
		App:  App{Known: true, Ready: true},
		Data: Data{Named: true, Found: true, Role: v1alpha1.RoleSource, Epoch: 1, RoleInForce: v1alpha1.RoleSource, EpochInForce: 1, Promoted: true, Points: []Point{point}},
		Peers: []Peer{{Name: "west", Reach: Connected, AppRuns: No,
			Copy: &Copy{Found: true, Wanted: "east", Primary: "east", Epoch: 1},
			Data: &Data{Named: true, Found: true, Role: v1alpha1.RoleTarget, Epoch: 1, RoleInForce: v1alpha1.RoleTarget, EpochInForce: 1, Points: []Point{point}}}},
		Limits: Limits{Attempts: 3, Stop: time.Minute, Ready: time.Minute, OtherPeers: time.Second, Hold: time.Second},
	}
}

func TestAMoveBeginsOnlyWhenEverythingFits(t *testing.T) {
	if d := Next(ready()); d.Action != Begin || d.Peer != "west" || d.Step != v1alpha1.StepCaptureObjects {
		t.Fatalf("what fits does not begin: %+v", d)
	}
	for _, c := range []struct {
		name    string
		change  func(*Seen)
		reason  string
		refused bool
		says    string
	}{
		{"nothing is asked", func(s *Seen) { s.Own.Wanted = "east" }, ReasonInStep, false, "runs on this cluster"},
		{"a cluster that is not of the plan", func(s *Seen) { s.Own.Wanted = "north" }, ReasonPeerNotListed, true, "cluster north is not in spec.preferredClusterList"},
		{"not paired", func(s *Seen) { s.Peers[0].Reach = Unpaired }, ReasonPeerNotPaired, true, "pair the clusters first"},
		{"the link is refused", func(s *Seen) { s.Peers[0].Reach, s.Peers[0].Trouble = Refused, "wrong CA" }, ReasonPeerRefused, true, "wrong CA"},
		{"the peer is lost", func(s *Seen) { s.Peers[0].Reach, s.Peers[0].Copy = Lost, nil }, ReasonPeerUnreachable, false, "stays where it is"},
		{"the peer did not answer this once", func(s *Seen) { s.Peers[0].Reach, s.Peers[0].Copy = Unknown, nil }, ReasonPeerUnknown, false, "waiting for an answer"},
		{"the peer has no copy", func(s *Seen) { s.Peers[0].Copy = &Copy{} }, ReasonPeerHasNoPlan, false, "no copy of the plan"},
		{"the peer has an older spec", func(s *Seen) { s.Peers[0].Behind = true }, ReasonPeerOutOfStep, false, "another spec"},
		{"the peer follows another epoch", func(s *Seen) { s.Own.Epoch, s.Data.Epoch, s.Data.EpochInForce = 3, 3, 3 }, ReasonPeerOutOfStep, false, "epoch 1, this one east in epoch 3"},
		{"the peer is not done", func(s *Seen) { s.Peers[0].Copy.Operation = &Operation{ID: "op1", To: "east"} }, ReasonPeerBusy, false, "op1"},
		{"the application runs there already", func(s *Seen) { s.Peers[0].AppRuns = Yes }, ReasonApplicationOnPeer, true, "already run on cluster west"},
		{"the workloads cannot be read", func(s *Seen) { s.App = App{Waiting: "forbidden"} }, ReasonApplicationUnknown, false, "forbidden"},
		{"no Replication", func(s *Seen) { s.Data = Data{Named: true} }, ReasonReplicationMissing, true, "does not exist"},
		{"the Replication was turned by hand", func(s *Seen) { s.Data.Role = v1alpha1.RoleTarget }, ReasonReplicationChanged, true, "must be source"},
		{"the Replication is on its way", func(s *Seen) { s.Data.Promoted, s.Data.Waiting = false, "pods to end" }, ReasonReplicationNotReady, false, "pods to end"},
		{"suspended", func(s *Seen) { s.Data.Suspended = true }, ReasonSuspended, true, "set suspendReplication to false"},
		{"sessions fail", func(s *Seen) { s.Data.Trouble = "disk full" }, ReasonReplicationFailing, false, "disk full"},
		{"the peer's Replication is not known", func(s *Seen) { s.Peers[0].Data = nil }, ReasonReplicationNotReady, false, "cannot be read"},
		{"the peer's Replication is no target yet", func(s *Seen) { s.Peers[0].Data.RoleInForce = "" }, ReasonReplicationNotReady, false, "nothing yet in epoch 1; it must be target"},
		{"no first copy", func(s *Seen) { s.Peers[0].Data.Points = nil }, ReasonNoRecoveryPoint, false, "no recovery point of epoch 1"},
		{"only points of the epoch before", func(s *Seen) { s.Peers[0].Data.Points[0].Epoch = 0 }, ReasonNoRecoveryPoint, false, "no recovery point of epoch 1"},
		{"a peer knows a newer epoch", func(s *Seen) { s.Peers[0].Copy.Epoch = 2 }, ReasonSuperseded, true, "writes in epoch 1, but cluster west knows epoch 2"},
		{"a peer claims the same epoch", func(s *Seen) { s.Peers[0].Copy.Primary = "west" }, ReasonSuperseded, true, "nothing is done here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := ready()
			c.change(&s)
			d := Next(s)
			if d.Action != Rest || d.Reason != c.reason || d.Refused != c.refused || !strings.Contains(d.Message, c.says) {
				t.Errorf("got %s %s refused %t: %s", d.Action, d.Reason, d.Refused, d.Message)
			}
		})
	}
}

func TestWhatHappensDuringAMove(t *testing.T) {
	during := func(step v1alpha1.OperationStep) Seen {
		s := ready()
		s.Own.Operation = &Operation{ID: "op1", From: "east", To: "west", Step: step, PreSyncs: 1, Offlines: 1, FinalSyncs: 1, FinalPoint: "20300501t130000-bbbbbb"}
		s.Snapshot = Snapshot{State: SnapshotCompleted, On: []string{"west"}}
		if step == v1alpha1.StepFinalSync || step == v1alpha1.StepHandover {
			s.App = App{Known: true, Stopped: true}
			s.Peers[0].Data.Points = []Point{{"20300501t130000-bbbbbb", 1}}
		}
		return s
	}
	nothing := func(*Seen) {}
	answers := func(state SessionState, early bool) func(*Seen) {
		return func(s *Seen) {
			s.Data.Trigger = Token(*s.Own.Operation)
			s.Data.Sessions = []Session{{Trigger: s.Data.Trigger, State: state, Point: "p", Early: early}}
		}
	}
	for _, c := range []struct {
		name   string
		step   v1alpha1.OperationStep
		change func(*Seen)
		action Action
		to     v1alpha1.OperationStep
		reason string
	}{
		{"the snapshot is there", v1alpha1.StepCaptureObjects, nothing, Enter, v1alpha1.StepPreSync, ReasonNextStep},
		{"it is not made yet", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Snapshot = Snapshot{} }, Capture, "", ReasonSnapshotRunning},
		{"the target does not have it", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Snapshot.On = nil; s.InStep = time.Hour }, Rest, "", ReasonSnapshotSending},
		{"another peer does not have it", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Peers = append(s.Peers, Peer{Name: "north", Reach: Connected}) }, Rest, "", ReasonSnapshotSending},
		{"another peer never gets it", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Peers = append(s.Peers, Peer{Name: "north", Reach: Connected}); s.InStep = time.Hour }, Enter, v1alpha1.StepPreSync, ReasonNextStep},
		{"another peer is lost", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Peers = append(s.Peers, Peer{Name: "north", Reach: Lost}) }, Enter, v1alpha1.StepPreSync, ReasonNextStep},
		{"no data, no sessions", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Data = Data{} }, Enter, v1alpha1.StepOffline, ReasonNextStep},
		{"the capture failed", v1alpha1.StepCaptureObjects, func(s *Seen) { s.Snapshot.State = SnapshotFailed }, Undo, v1alpha1.StepRollback, ReasonSnapshotFailed},
		{"a session is asked for", v1alpha1.StepPreSync, nothing, Sync, "", ReasonSessionRunning},
		{"it runs", v1alpha1.StepPreSync, answers(SessionRunning, false), Rest, "", ReasonSessionRunning},
		{"it is committed", v1alpha1.StepPreSync, answers(SessionCommitted, false), Enter, v1alpha1.StepOffline, ReasonNextStep},
		{"it failed", v1alpha1.StepPreSync, answers(SessionFailed, false), Enter, v1alpha1.StepPreSync, ReasonSessionRetried},
		{"it failed for the last time", v1alpha1.StepPreSync, func(s *Seen) { s.Own.Operation.PreSyncs = 3; answers(SessionFailed, false)(s) }, Undo, v1alpha1.StepRollback, ReasonSessionFailed},
		{"a scheduled one runs after it", v1alpha1.StepPreSync, func(s *Seen) {
			answers(SessionCommitted, false)(s)
			s.Data.Sessions = append([]Session{{Trigger: s.Data.Trigger, State: SessionRunning}}, s.Data.Sessions...)
		}, Enter, v1alpha1.StepOffline, ReasonNextStep},
		{"the application is stopped", v1alpha1.StepOffline, nothing, Stop, v1alpha1.StepFinalSync, ReasonApplicationStopping},
		{"it does not stop", v1alpha1.StepOffline, func(s *Seen) { s.InStep = time.Hour }, Undo, v1alpha1.StepRollback, ReasonOfflineTimedOut},
		{"the final session began before the application was offline", v1alpha1.StepFinalSync, answers(SessionCommitted, true), Enter, v1alpha1.StepFinalSync, ReasonSessionRetried},
		{"the final session is committed", v1alpha1.StepFinalSync, answers(SessionCommitted, false), Enter, v1alpha1.StepHandover, ReasonNextStep},
		{"the application was started again", v1alpha1.StepFinalSync, func(s *Seen) { s.App.Stopped = false }, Enter, v1alpha1.StepOffline, ReasonApplicationStarted},
		{"it is started again and again", v1alpha1.StepFinalSync, func(s *Seen) { s.App.Stopped = false; s.Own.Operation.Offlines = 3 }, Undo, v1alpha1.StepRollback, ReasonApplicationStarted},
		{"nobody knows whether it was", v1alpha1.StepFinalSync, func(s *Seen) { s.App.Known = false }, Rest, "", ReasonApplicationUnknown},
		{"everything is ready for the handover", v1alpha1.StepHandover, nothing, GrantEpoch, "", ReasonGranted},
		{"the application was started before the handover", v1alpha1.StepHandover, func(s *Seen) { s.App.Stopped = false }, Enter, v1alpha1.StepOffline, ReasonApplicationStarted},
		{"the target does not show the point yet", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Data.Points = nil }, Rest, "", ReasonPointNotHeld},
		{"the target shows a later point", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Data.Points[0].ID = "20300501t140000-cccccc" }, GrantEpoch, "", ReasonGranted},
		{"the target shows an earlier point for long", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Data.Points[0].ID = "20300501t120000-aaaaaa"; s.InStep = time.Hour }, Enter, v1alpha1.StepFinalSync, ReasonPointNotHeld},
		{"it never shows it", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Data.Points = nil; s.InStep = time.Hour; s.Own.Operation.FinalSyncs = 3 }, Undo, v1alpha1.StepRollback, ReasonPointNotHeld},
		{"the target's Replication cannot be read", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Data = nil }, Rest, "", ReasonReplicationNotReady},
		{"the target is silent at the last moment", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Reach, s.Peers[0].Copy = Unknown, nil }, Rest, "", ReasonPeerUnknown},
		{"the target is lost at the last moment", v1alpha1.StepHandover, func(s *Seen) { s.Peers[0].Reach, s.Peers[0].Copy = Lost, nil }, Undo, v1alpha1.StepRollback, ReasonPeerUnreachable},
		{"the wish is taken back at the last moment", v1alpha1.StepHandover, func(s *Seen) { s.Own.Wanted = "east" }, Undo, v1alpha1.StepRollback, ReasonAbortedByEdit},
		{"suspended in the middle", v1alpha1.StepPreSync, func(s *Seen) { s.Data.Suspended = true }, Undo, v1alpha1.StepRollback, ReasonSuspended},
		{"the Replication is gone", v1alpha1.StepPreSync, func(s *Seen) { s.Data = Data{Named: true} }, Undo, v1alpha1.StepRollback, ReasonReplicationChanged},
		{"started on the target by hand", v1alpha1.StepPreSync, func(s *Seen) { s.Peers[0].AppRuns = Yes }, Undo, v1alpha1.StepRollback, ReasonApplicationOnPeer},
		{"a newer epoch ends even the undoing", v1alpha1.StepRollback, func(s *Seen) { s.Own.Operation.Undo = ReasonSessionFailed; s.Peers[0].Copy.Epoch = 2 }, Rest, "", ReasonSuperseded},
		{"undoing starts the application", v1alpha1.StepRollback, func(s *Seen) { s.Own.Operation.Undo = ReasonSessionFailed }, Start, v1alpha1.StepComplete, ReasonRollingBack},
		{"then takes the wish back", v1alpha1.StepComplete, func(s *Seen) { s.Own.Operation.Undo = ReasonSessionFailed }, Align, "", ReasonRollingBack},
		{"then ends", v1alpha1.StepComplete, func(s *Seen) { s.Own.Operation.Undo = ReasonSessionFailed; s.Own.Wanted = "east" }, Close, "", ReasonRollingBack},
		{"after an abort a new wish is left alone", v1alpha1.StepComplete, func(s *Seen) { s.Own.Operation.Undo = ReasonAbortedByEdit }, Close, "", ReasonRequestReversed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := during(c.step)
			c.change(&s)
			d := Next(s)
			if d.Action != c.action || d.Step != c.to || d.Reason != c.reason {
				t.Errorf("got %s %s %s: %s", d.Action, d.Step, d.Reason, d.Message)
			}
		})
	}
}

func TestAGrantThatAnotherEpochOvertookIsHistory(t *testing.T) {
	west := Seen{Self: "west", Own: Copy{Found: true, Wanted: "east", Primary: "east", Epoch: 1}, Peers: []Peer{
		{Name: "east", Reach: Connected, Copy: &Copy{Found: true, Primary: "east", Epoch: 1, Grant: &Grant{Epoch: 2, To: "west", Operation: "op1"}}},
		{Name: "north", Reach: Connected, Copy: &Copy{Found: true, Primary: "east", Epoch: 1}},
	}}
	if d := Next(west); d.Action != Accept || d.Epoch != 2 {
		t.Fatalf("a grant is not accepted: %+v", d)
	}
	west.Peers[1].Copy = &Copy{Found: true, Primary: "north", Epoch: 3}
	if d := Next(west); d.Action != Follow || d.Peer != "north" || d.Epoch != 3 {
		t.Fatalf("a newer claim is not followed: %+v", d)
	}
	west.Peers[1].Copy = &Copy{Found: true, Primary: "east", Epoch: 2, Operation: &Operation{To: "north"}}
	if d := Next(west); d.Action != Rest {
		t.Fatalf("an epoch that another cluster took is taken twice: %+v", d)
	}
}

func TestANewPrimaryWantsThePointItWasPromised(t *testing.T) {
	west := Seen{Self: "west", Own: Copy{Found: true, Wanted: "east", Primary: "east", Epoch: 1},
		Data:  Data{Named: true, Found: true, Role: v1alpha1.RoleTarget, Epoch: 1, Points: []Point{{"20300501t120000-aaaaaa", 1}}},
		Peers: []Peer{{Name: "east", Reach: Connected, Copy: &Copy{Found: true, Primary: "east", Epoch: 1, Grant: &Grant{Epoch: 2, To: "west", Point: "20300501t130000-bbbbbb"}}}}}
	if d := Next(west); d.Action != Rest || d.Reason != ReasonPointNotHeld || !strings.Contains(d.Message, "20300501t130000-bbbbbb, the newest here is 20300501t120000-aaaaaa") {
		t.Fatalf("accepted without the point: %+v", d)
	}
	west.Data.Points = []Point{{"20300501t140000-cccccc", 1}, {"20300501t130000-bbbbbb", 1}}
	if d := Next(west); d.Action != Accept {
		t.Fatalf("a point on top of the promised one is not taken: %+v", d)
	}
	west.Own.Operation = &Operation{ID: "op1", From: "east", To: "west", Step: v1alpha1.StepPromote, FinalPoint: "20300501t130000-bbbbbb"}
	west.Own.Epoch, west.Data.Points = 2, []Point{{"20300501t120000-aaaaaa", 1}}
	if d := Next(west); d.Action != Rest || d.Reason != ReasonPointNotHeld {
		t.Fatalf("promoted without the point: %+v", d)
	}
}

func TestAStandbyIsNeverDemotedUnasked(t *testing.T) {
	west := Seen{Self: "west", Own: Copy{Found: true, Wanted: "east", Primary: "east", Epoch: 1},
		Data: Data{Named: true, Found: true, Role: v1alpha1.RoleSource, Epoch: 1}}
	if d := Next(west); d.Action != Rest || !d.Refused || d.Reason != ReasonReplicationChanged {
		t.Fatalf("%+v", d)
	}
	west.Own.Epoch, west.Own.Grant = 2, &Grant{Epoch: 2, To: "east"}
	if d := Next(west); d.Action != Demote || d.Epoch != 2 {
		t.Fatalf("what was handed over is not demoted: %+v", d)
	}
}
