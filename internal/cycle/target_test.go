package cycle

import (
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// keeping is a target of epoch 2 with all it needs, at rest.
func keeping() Target {
	target := stand(v1alpha1.RoleTarget, 2)
	p := Recovery{Point: "p1", Time: noon.Add(-time.Minute), Epoch: 2}
	return Target{Now: noon, Wanted: target, InForce: target, Retain: 3, Recorded: p, Snapshots: []Snapshot{taken("data"), taken("wal")}, Replica: replica(p)}
}

func replica(p Recovery) Replica {
	return Replica{Pair: Present, Spool: Present, Receiver: Present, Door: true, State: &Received{Committed: p, Applied: p, Progress: "idle"}}
}

func TestATargetKeepsAReplica(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Target)
		want expectation
	}{
		{"at rest", func(*Target) {}, expectation{Rest, ReasonReady, true, "", ""}},
		{"receiving", func(s *Target) { s.Replica.State.Busy, s.Replica.State.Progress = true, "receiving" }, expectation{Rest, ReasonReceiving, true, "", "receiving"}},
		{"a problem", func(s *Target) { s.Problem = &Problem{"ClaimNotBound", "claim x"} }, expectation{Wait, "ClaimNotBound", false, "", "claim x"}},
		{"no pair", func(s *Target) { s.Replica = Replica{} }, expectation{MakePair, ReasonReplicaPreparing, false, "", ""}},
		{"no spool", func(s *Target) { s.Replica = Replica{Pair: Partial} }, expectation{MakeSpool, ReasonReplicaPreparing, false, "", ""}},
		{"no receiver", func(s *Target) { s.Replica = Replica{Pair: Partial, Spool: Present} }, expectation{StartReceiver, ReasonReceiverStarting, false, "", ""}},
		{"files need no pair", func(s *Target) { s.Replica = Replica{Files: true} }, expectation{MakeSpool, ReasonReplicaPreparing, false, "", ""}},
		{"files at rest", func(s *Target) { s.Replica.Pair, s.Replica.Files = Absent, true }, expectation{Rest, ReasonReady, true, "", ""}},
		{"files instead of blocks: the way to the receiver first", func(s *Target) { s.Replica.Spool = Outdated }, expectation{CloseReceiver, ReasonLeavingTarget, false, "", ""}},
		{"files instead of blocks: then the receiver", func(s *Target) { s.Replica.Spool, s.Replica.Door = Outdated, false }, expectation{RemoveReceiver, ReasonLeavingTarget, false, "", ""}},
		{"files instead of blocks: then the pair", func(s *Target) { s.Replica = Replica{Spool: Outdated, Pair: Present} }, expectation{RemovePair, ReasonLeavingTarget, false, "", ""}},
		{"blocks instead of files: then the spool", func(s *Target) { s.Replica = Replica{Spool: Outdated, Files: true} }, expectation{RemoveSpool, ReasonLeavingTarget, false, "", ""}},
		{"a receiver of another epoch", func(s *Target) { s.Replica.Receiver = Outdated }, expectation{StartReceiver, ReasonReceiverStarting, false, "", ""}},
		{"no way to the receiver", func(s *Target) { s.Replica.Door = false }, expectation{StartReceiver, ReasonReceiverStarting, false, "", ""}},
		{"a receiver that starts", func(s *Target) { s.Replica.Receiver, s.Replica.Trouble = Partial, "image" }, expectation{Wait, ReasonReceiverStarting, false, "", "image"}},
		{"a receiver that is silent", func(s *Target) { s.Replica.State, s.Replica.Trouble = nil, "refused" }, expectation{Wait, ReasonReceiverSilent, false, "", "refused"}},
		{"the claims have other volumes: the way to the receiver first", func(s *Target) { s.Replica.Pair = Outdated }, expectation{CloseReceiver, ReasonLeavingTarget, false, "", ""}},
		{"the claims have other volumes: then the receiver", func(s *Target) { s.Replica.Pair, s.Replica.Door = Outdated, false }, expectation{RemoveReceiver, ReasonLeavingTarget, false, "", ""}},
		{"another epoch", func(s *Target) { s.Wanted.Epoch = 3 }, expectation{TakeRole, ReasonRoleTaken, false, "", "epoch 3"}},
		{"a promotion taken back: receiver", func(s *Target) { s.Replica.Sealed = true }, expectation{RemoveReceiver, ReasonLeavingTarget, false, "", ""}},
		{"a promotion taken back: pair", func(s *Target) { s.Replica = Replica{Pair: Partial, Spool: Present, Sealed: true} }, expectation{RemovePair, ReasonLeavingTarget, false, "", ""}},
		{"a promotion taken back: spool", func(s *Target) { s.Replica = Replica{Spool: Present, Sealed: true} }, expectation{RemoveSpool, ReasonLeavingTarget, false, "", ""}},
		{"pods use the claims: no session any more", func(s *Target) { s.Users = []string{"app-0"} }, expectation{CloseReceiver, ReasonClaimsInUse, false, "", "app-0"}},
		{"pods use the claims: it settles", func(s *Target) {
			s.Users, s.Replica.Door, s.Replica.State.Applied = []string{"app-0"}, false, Recovery{}
		}, expectation{Wait, ReasonClaimsInUse, false, "", "app-0"}},
		{"pods use the claims: nothing is left", func(s *Target) { s.Users, s.Replica = []string{"app-0"}, Replica{} }, expectation{Wait, ReasonClaimsInUse, false, "", "app-0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := keeping()
			c.edit(&s)
			check(t, NextTarget(s), c.want)
		})
	}
}

func TestATargetRecordsWhatWasApplied(t *testing.T) {
	arrived := func(s *Target) {
		p := Recovery{Point: "p2", Time: noon, Epoch: 2}
		s.Replica.State.Committed, s.Replica.State.Applied = p, p
	}
	for _, c := range []struct {
		name string
		edit func(*Target)
		want expectation
	}{
		{"it is not applied yet", func(s *Target) { s.Replica.State.Applied, s.Replica.State.Busy = Recovery{}, true }, expectation{Rest, ReasonReceiving, true, "", ""}},
		{"nothing is cut", func(s *Target) { s.Snapshots = []Snapshot{{Claim: "data"}, {Claim: "wal"}} }, expectation{TakeRecoveryPoint, ReasonRecoveryPoint, true, "", "data, wal"}},
		{"the driver has not cut yet", func(s *Target) { s.Snapshots[1].Cut, s.Snapshots[1].Ready = false, false }, expectation{Wait, ReasonRecoveryPoint, true, "", "wal"}},
		{"it is cut, though not usable yet", func(s *Target) { s.Snapshots[1].Ready = false }, expectation{RecordPoint, ReasonReady, true, "", "p2"}},
		{"the driver never cuts", func(s *Target) {
			s.Snapshots[1] = Snapshot{Claim: "wal", Exists: true, CreatedAt: noon.Add(-RecoveryPointPatience - time.Second), Error: "quota"}
		}, expectation{RecordPoint, ReasonRecoveryPointNotKept, true, "", "quota"}},
		{"none are kept", func(s *Target) { s.Retain, s.Snapshots = 0, nil }, expectation{RecordPoint, ReasonReady, true, "", "p2"}},
		{"surplus waits until it is recorded", func(s *Target) { s.Surplus = []string{"p0"} }, expectation{RecordPoint, ReasonReady, true, "", "p2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := keeping()
			arrived(&s)
			c.edit(&s)
			check(t, NextTarget(s), c.want)
		})
	}
	s := keeping()
	s.Surplus = []string{"p0"}
	check(t, NextTarget(s), expectation{DropRecoveryPoints, ReasonTidying, true, "", "p0"})
}

func TestLeavingASource(t *testing.T) {
	leaving := func() Target {
		s := inSession()
		return Target{Now: noon, Wanted: stand(v1alpha1.RoleTarget, 3), InForce: stand(v1alpha1.RoleSource, 2), Users: []string{"app-0"},
			Session: s.Session, Mover: s.Mover, Leftover: []string{"Job j"}, Attached: []string{"node-1"}, Problem: &Problem{"ClaimMissing", "x"}}
	}
	// Each edit takes away what the step before it has dealt with.
	steps := []struct {
		name string
		edit func(*Target)
		want expectation
	}{
		{"pods first, named", func(*Target) {}, expectation{Wait, ReasonClaimsInUse, false, "", "app-0"}},
		{"then the mover", func(s *Target) { s.Users = nil }, expectation{RemoveMover, ReasonAborted, false, "", "p2"}},
		{"until its pods are gone", func(s *Target) { s.Mover.State = MoverEnding }, expectation{RemoveMover, ReasonAborted, false, "", "p2"}},
		{"then the session", func(s *Target) { s.Mover = Mover{} }, expectation{FailSession, ReasonAborted, false, "", "p2"}},
		{"then all that sessions left", func(s *Target) { s.Session = nil }, expectation{Tidy, ReasonLeavingSource, false, "", "Job j"}},
		{"then the volumes are detached", func(s *Target) { s.Leftover = nil }, expectation{Wait, ReasonVolumesAttached, false, "", "node-1"}},
		{"then the role is taken", func(s *Target) { s.Attached = nil }, expectation{TakeRole, ReasonRoleTaken, false, "", "epoch 3"}},
	}
	s := leaving()
	for _, step := range steps {
		step.edit(&s)
		t.Run(step.name, func(t *testing.T) { check(t, NextTarget(s), step.want) })
	}
	through := leaving()
	through.Users, through.Mover.State = nil, MoverCommitted
	check(t, NextTarget(through), expectation{CommitSession, ReasonSessionEnded, true, "", "p2"})
}

func TestLeavingATarget(t *testing.T) {
	p := Recovery{Point: "p1", Time: noon, Epoch: 2}
	leaving := func() Source {
		s := atRest()
		s.Wanted, s.InForce, s.Own = stand(v1alpha1.RoleSource, 3), stand(v1alpha1.RoleTarget, 2), true
		s.Replica, s.TriggerNow = replica(p), "go"
		s.Replica.State = &Received{Busy: true, Committed: p, Progress: "applying"}
		return s
	}
	steps := []struct {
		name string
		edit func(*Source)
		want expectation
	}{
		{"no session can begin any more", func(s *Source) { s.Peer.InForce.Role = v1alpha1.RoleSource }, expectation{CloseReceiver, ReasonLeavingTarget, false, "", ""}},
		{"the peer's movers are waited for", func(s *Source) { s.Replica.Door = false }, expectation{Wait, ReasonPeerIsSource, false, "", "west"}},
		{"what the spool holds is applied", func(s *Source) { s.Peer.InForce.Role = v1alpha1.RoleTarget }, expectation{Wait, ReasonApplying, false, "", "applying"}},
		{"a receiver that is busy is waited for", func(s *Source) { s.Replica.State.Applied = p }, expectation{Wait, ReasonApplying, false, "", ""}},
		{"then the spool is sealed", func(s *Source) { s.Replica.State.Busy = false }, expectation{SealSpool, ReasonLeavingTarget, false, "", "p1"}},
		{"then the receiver goes", func(s *Source) { s.Replica.Sealed = true }, expectation{RemoveReceiver, ReasonLeavingTarget, false, "", ""}},
		{"until its pods are gone", func(s *Source) { s.Replica.Receiver, s.Replica.State = Partial, nil }, expectation{RemoveReceiver, ReasonLeavingTarget, false, "", ""}},
		{"then the pair", func(s *Source) { s.Replica.Receiver = Absent }, expectation{RemovePair, ReasonLeavingTarget, false, "", ""}},
		{"until it is gone", func(s *Source) { s.Replica.Pair = Partial }, expectation{RemovePair, ReasonLeavingTarget, false, "", ""}},
		{"then the spool", func(s *Source) { s.Replica.Pair = Absent }, expectation{RemoveSpool, ReasonLeavingTarget, false, "", ""}},
		{"then the role is taken", func(s *Source) { s.Replica = Replica{} }, expectation{TakeRole, ReasonRoleTaken, false, "", "epoch 3"}},
	}
	s := leaving()
	for _, step := range steps {
		step.edit(&s)
		t.Run(step.name, func(t *testing.T) { check(t, NextSource(s), step.want) })
	}

	for _, c := range []struct {
		name string
		edit func(*Replica)
		want expectation
	}{
		{"the receiver was removed by hand: it is needed once more", func(r *Replica) { r.Receiver = Absent }, expectation{StartReceiver, ReasonLeavingTarget, false, "", ""}},
		{"so was the pair", func(r *Replica) { r.Receiver, r.Pair = Absent, Absent }, expectation{MakePair, ReasonLeavingTarget, false, "", ""}},
		{"the receiver is silent: nothing is known", func(r *Replica) { r.State = nil }, expectation{Wait, ReasonReceiverSilent, false, "", ""}},
		{"a former source received nothing yet: its volumes hold the point it left with", func(r *Replica) { r.State = &Received{} }, expectation{SealSpool, ReasonLeavingTarget, false, "", "p1"}},
		{"the spool was removed by hand", func(r *Replica) { r.Spool = Absent }, expectation{RemoveReceiver, ReasonLeavingTarget, false, "", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := leaving()
			s.Replica.Door = false
			c.edit(&s.Replica)
			check(t, NextSource(s), c.want)
		})
	}
}

func TestVolumesWithoutARecoveryPointAreNotPromoted(t *testing.T) {
	s := atRest()
	s.Wanted, s.InForce, s.Own = stand(v1alpha1.RoleSource, 3), stand(v1alpha1.RoleTarget, 2), true
	s.Replica, s.Recovery = replica(Recovery{}), Recovery{}
	s.Replica.Door = false
	check(t, NextSource(s), expectation{Wait, ReasonNothingToPromote, false, "", "delete"})
}

func TestWhatSpoilsTheRecordedPoint(t *testing.T) {
	used, others, back := keeping(), keeping(), keeping()
	used.Users, others.Replica.Pair, back.Replica.Sealed = []string{"app-0"}, Outdated, true
	for _, c := range []struct {
		name   string
		target Target
		spoils bool
	}{{"pods use the claims", used, true}, {"the claims have other volumes", others, true}, {"a promotion taken back", back, false}, {"at rest", keeping(), false}} {
		if got := c.target.Spoils(NextTarget(c.target)); got != c.spoils {
			t.Errorf("%s: spoils %v", c.name, got)
		}
	}
}

// No source may commit once the spool is sealed, also one that nobody can ask.
func TestTheFormerSourceIsFenced(t *testing.T) {
	p := Recovery{Point: "p1", Time: noon, Epoch: 2}
	silent := Peer{Name: "west", Link: v1alpha1.LinkLost, Trouble: "timeout"}
	for _, c := range []struct {
		name string
		edit func(*Source)
		want expectation
	}{
		{"the peer is a target", func(*Source) {}, expectation{SealSpool, ReasonLeavingTarget, false, "", ""}},
		{"the peer has no such replication", func(s *Source) { s.Peer = Peer{Name: "west", Asked: true} }, expectation{SealSpool, ReasonLeavingTarget, false, "", ""}},
		{"the peer leaves its role", func(s *Source) { s.Peer.InForce.Role, s.Peer.WaitingFor = v1alpha1.RoleSource, "app-0" }, expectation{Wait, ReasonPeerIsSource, false, "", "app-0"}},
		{"the peer has no session and will start none", func(s *Source) { s.Peer.InForce.Role, s.Peer.Quiet = v1alpha1.RoleSource, true }, expectation{SealSpool, ReasonLeavingTarget, false, "", ""}},
		{"the peer has no session now", func(s *Source) {
			s.Peer.Stand.Role, s.Peer.InForce.Role, s.Peer.Quiet = v1alpha1.RoleSource, v1alpha1.RoleSource, true
		}, expectation{Wait, ReasonPeerIsSource, false, "", "first"}},
		{"the peer stays a source", func(s *Source) { s.Peer.Stand.Role, s.Peer.InForce.Role = v1alpha1.RoleSource, v1alpha1.RoleSource }, expectation{Wait, ReasonPeerIsSource, false, "", "first"}},
		{"no answer, and no new epoch", func(s *Source) { s.Peer, s.Wanted.Epoch = silent, 2 }, expectation{Wait, ReasonLinkLost, false, "", "acknowledgePeerLost"}},
		{"no answer: the receiver is started in the new epoch", func(s *Source) { s.Peer, s.Replica.Receiver = silent, Outdated }, expectation{StartReceiver, ReasonLeavingTarget, false, "", "epoch 3"}},
		{"no answer: it is waited for", func(s *Source) { s.Peer, s.Replica.Receiver = silent, Partial }, expectation{Wait, ReasonReceiverStarting, false, "", "epoch 3"}},
		{"no answer: it runs in the new epoch", func(s *Source) { s.Peer = silent }, expectation{SealSpool, ReasonLeavingTarget, false, "", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := atRest()
			s.Wanted, s.InForce, s.Own, s.Replica = stand(v1alpha1.RoleSource, 3), stand(v1alpha1.RoleTarget, 2), true, replica(p)
			s.Replica.Door = false
			c.edit(&s)
			check(t, NextSource(s), c.want)
		})
	}
}

// A Replication that is new on this side takes its role at once, unless something of a target is there.
func TestTheFirstRole(t *testing.T) {
	s := atRest()
	s.InForce = Stand{}
	check(t, NextSource(s), expectation{TakeRole, ReasonRoleTaken, false, "", ""})
	s.Replica = Replica{Pair: Present}
	check(t, NextSource(s), expectation{TakeEpoch, ReasonEpochTaken, false, "", "epoch 2"})
	s.Own = true
	check(t, NextSource(s), expectation{RemovePair, ReasonLeavingTarget, false, "", ""})
	fresh := Target{Wanted: stand(v1alpha1.RoleTarget, 1)}
	check(t, NextTarget(fresh), expectation{TakeRole, ReasonRoleTaken, false, "", ""})
}
