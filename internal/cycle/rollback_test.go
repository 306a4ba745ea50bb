package cycle

import (
	"testing"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-105: a rollback stands between receiver and pair: never beside the receiver, never unsaved, never promoted half-way.
func TestAPromotionGoesBackToAPointBeforeTheClaimsAreFree(t *testing.T) {
	sealed := Replica{Pair: Present, Spool: Present, Sealed: true}
	with := func(edit func(*Replica)) Replica {
		r := sealed
		edit(&r)
		return r
	}
	wanted := Rollback{Point: "p1"}
	begun := Rollback{Point: "p1", Begun: true}
	state := func(b Rollback, clones Presence, mover MoverState) Rollback {
		b.Clones, b.Mover = clones, Mover{State: mover}
		return b
	}
	for _, c := range []struct {
		name    string
		replica Replica
		back    Rollback
		step    Step
		reason  string
	}{
		{"the receiver goes first", with(func(r *Replica) { r.Receiver = Present }), wanted, RemoveReceiver, ReasonLeavingTarget},
		{"also while it ends", with(func(r *Replica) { r.Receiver = Partial }), wanted, RemoveReceiver, ReasonLeavingTarget},
		{"it is saved before anything is made", sealed, wanted, BeginRollback, ReasonRollingBack},
		{"also when all of it is there", sealed, state(wanted, Present, MoverRunning), BeginRollback, ReasonRollingBack},
		{"clones", sealed, begun, MakeRollback, ReasonRollingBack},
		{"clones are waited for", sealed, state(begun, Partial, MoverAbsent), Wait, ReasonRollingBack},
		{"the Job", sealed, state(begun, Present, MoverAbsent), StartRollback, ReasonRollingBack},
		{"it runs", sealed, state(begun, Present, MoverRunning), Wait, ReasonRollingBack},
		{"it failed", sealed, state(begun, Present, MoverFailed), Wait, ReasonRollbackFailed},
		{"another one's pods go first", sealed, Rollback{Point: "p1", Begun: true, Clones: Present, Others: []string{"Pod x"}}, RemoveRollback, ReasonRollingBack},
		{"it is through, though its clones are gone", sealed, state(begun, Absent, MoverCommitted), RecordRollback, ReasonRollingBack},
		{"the point is not kept", sealed, Rollback{Point: "p1", Problem: "no such point"}, Wait, ReasonPointNotKept},
		{"it is not kept, and nothing was touched yet", Replica{Pair: Present, Spool: Present, Receiver: Present, Door: true}, Rollback{Point: "p1", Problem: "no such point"}, Wait, ReasonPointNotKept},
		{"recorded: what it left goes", with(func(r *Replica) { r.Rollback = []string{"Job x"} }), Rollback{}, RemoveRollback, ReasonRollingBack},
		{"then the pair", sealed, Rollback{}, RemovePair, ReasonLeavingTarget},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Source{Own: true, Wanted: Stand{v1alpha1.RoleSource, 2}, InForce: Stand{v1alpha1.RoleTarget, 1}, Replica: c.replica, Rollback: c.back}
			d := NextSource(s)
			if d.Step != c.step || d.Reason != c.reason || d.Ready {
				t.Errorf("%+v, want %s %s", d, c.step, c.reason)
			}
		})
	}
	taken := Target{Wanted: Stand{v1alpha1.RoleTarget, 1}, InForce: Stand{v1alpha1.RoleTarget, 1}, Replica: with(func(r *Replica) { r.Rollback = []string{"Pod x"} })}
	if d := NextTarget(taken); d.Step != RemoveRollback {
		t.Errorf("taken back: %+v, what writes to the replica goes first", d)
	}
	taken.Replica.Rollback = nil
	if d := NextTarget(taken); d.Step != RemovePair {
		t.Errorf("taken back: %+v, then the replica is set up anew", d)
	}
}
