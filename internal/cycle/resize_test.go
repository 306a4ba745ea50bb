package cycle

import (
	"testing"
)

const gib = 1 << 30

// growing is a target at rest whose claim data must become larger.
func growing() Target {
	s := keeping()
	s.Growth = []Growth{{Claim: "data", From: gib, To: 2 * gib}}
	s.SourceQuiet = true
	return s
}

// M-153, M-155: what serves the replica goes, the claims grow, and the replica is set up anew.
func TestATargetGrows(t *testing.T) {
	arrived := Recovery{Point: "p2", Time: noon, Epoch: 2}
	// Each edit is what the step before it has done.
	steps := []struct {
		name string
		edit func(*Target)
		want expectation
	}{
		{"what arrived is recorded first", func(s *Target) { s.Replica.State.Committed, s.Replica.State.Applied = arrived, arrived }, expectation{RecordPoint, ReasonReady, true, "", "p2"}},
		{"no session can begin", func(s *Target) { s.Recorded = arrived }, expectation{CloseReceiver, ReasonGrowing, true, "", "growing claim data from 1Gi to 2Gi"}},
		{"the source may run one still", func(s *Target) { s.Replica.Door, s.SourceQuiet, s.SourceTrouble = false, false, "no route" }, expectation{Wait, ReasonGrowing, true, "", "no route"}},
		{"it is quiet, the receiver is not", func(s *Target) { s.SourceQuiet, s.Replica.State.Busy = true, true }, expectation{Wait, ReasonGrowing, true, "", "apply"}},
		{"the replica holds all", func(s *Target) { s.Replica.State.Busy = false }, expectation{SealSpool, ReasonGrowing, true, "", ""}},
		{"the receiver goes", func(s *Target) { s.Replica.Sealed = true }, expectation{RemoveReceiver, ReasonGrowing, true, "", ""}},
		{"M-155: until its pod is gone", func(s *Target) { s.Replica.Receiver, s.Replica.State = Partial, nil }, expectation{RemoveReceiver, ReasonGrowing, true, "", ""}},
		{"then the pair", func(s *Target) { s.Replica.Receiver = Absent }, expectation{RemovePair, ReasonGrowing, true, "", ""}},
		{"then the spool", func(s *Target) { s.Replica.Pair = Absent }, expectation{RemoveSpool, ReasonGrowing, true, "", ""}},
		{"then the volumes are detached", func(s *Target) { s.Replica, s.Attached = Replica{}, []string{"node-1"} }, expectation{Wait, ReasonGrowing, true, "", "node-1"}},
		{"then the claims grow", func(s *Target) { s.Attached = nil }, expectation{GrowClaims, ReasonGrowing, true, "", ""}},
		{"the driver takes its time", func(s *Target) { s.Growth[0].Asked, s.Growth[0].Trouble = true, "the pool is full" }, expectation{Wait, ReasonGrowing, true, "", "the pool is full"}},
		{"then all is made anew", func(s *Target) { s.Growth = nil }, expectation{MakePair, ReasonReplicaPreparing, false, "", ""}},
	}
	s := growing()
	for _, step := range steps {
		step.edit(&s)
		t.Run(step.name, func(t *testing.T) {
			d := NextTarget(s)
			check(t, d, step.want)
			if s.Spoils(d) {
				t.Error("the volumes' recovery point is forgotten")
			}
		})
	}
}

func TestAReplicaThatDoesNotFitIsMadeAnew(t *testing.T) {
	s := keeping()
	s.Misfit, s.SourceQuiet = "claim data was grown by hand", true
	check(t, NextTarget(s), expectation{CloseReceiver, ReasonGrowing, true, "", "grown by hand"})
	s.Users = []string{"app-0"}
	check(t, NextTarget(s), expectation{CloseReceiver, ReasonClaimsInUse, false, "", "app-0"})
}

// A class that does not let claims grow is named, and the replica stays what it is: it can still be promoted.
func TestATargetThatCannotGrowKeepsItsReplica(t *testing.T) {
	s := growing()
	s.Growth[0].Cannot = "its storage class slow has not allowVolumeExpansion"
	check(t, NextTarget(s), expectation{Wait, ReasonCannotGrow, false, "", "slow"})
	s.Replica.Receiver = Outdated
	check(t, NextTarget(s), expectation{StartReceiver, ReasonReceiverStarting, false, "", ""})
	s.Replica = Replica{}
	check(t, NextTarget(s), expectation{Wait, ReasonCannotGrow, false, "", "slow"})
}

// M-154: no session starts while sizes differ. M-152: what is larger on the target cannot be made smaller.
func TestASourceHoldsSessionsWhileSizesDiffer(t *testing.T) {
	smaller := Sizes{Claim: "data", PeerClaim: "data-copy", Here: 2 * gib, There: gib}
	larger := Sizes{Claim: "wal", PeerClaim: "wal", Here: 2 * gib, There: 3 * gib}
	for _, c := range []struct {
		name string
		edit func(*Source)
		want expectation
	}{
		{"sizes are equal", func(s *Source) {}, expectation{StartSession, ReasonSessionDue, true, TriggerNow, ""}},
		{"smaller there", func(s *Source) { s.Peer.Sizes, s.Peer.PrepareDue = []Sizes{smaller}, true }, expectation{GrowPeer, ReasonGrowing, true, "", "claim data-copy from 1Gi to 2Gi"}},
		{"asked a moment ago", func(s *Source) {
			s.Peer.Sizes, s.Peer.WaitingFor = []Sizes{smaller}, "waiting for the receiver"
		}, expectation{Wait, ReasonGrowing, true, "", "waiting for the receiver"}},
		{"a person must act there", func(s *Source) {
			s.Peer.Sizes, s.Peer.WaitingFor, s.Peer.Stuck = []Sizes{smaller}, "class slow", true
		}, expectation{Wait, ReasonGrowing, false, "", "class slow"}},
		{"it declines", func(s *Source) {
			s.Peer.Sizes, s.Peer.Declined = []Sizes{smaller}, &Problem{"PeerConflict", "differ"}
		}, expectation{Wait, "PeerConflict", false, "", "differ"}},
		{"larger there", func(s *Source) { s.Peer.Sizes = []Sizes{smaller, larger} }, expectation{Wait, ReasonSizesDiffer, false, "", "claim wal has 3Gi on cluster west and claim wal has 2Gi here"}},
		{"made by hand there", func(s *Source) { s.Create, s.Peer.Sizes, s.Peer.PrepareDue = false, []Sizes{smaller}, true }, expectation{GrowPeer, ReasonGrowing, true, "", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := atRest()
			s.TriggerNow = "now"
			c.edit(&s)
			check(t, NextSource(s), c.want)
		})
	}
}
