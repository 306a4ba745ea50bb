package cycle

import (
	"testing"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-084: of several peers a target receives from one, the source of the newest epoch.
func TestATargetReceivesFromTheNewestSource(t *testing.T) {
	source := func(epoch int64) Peer {
		return Peer{Asked: true, Found: true, Stand: stand(v1alpha1.RoleSource, epoch), InForce: stand(v1alpha1.RoleSource, epoch)}
	}
	target, silent := Peer{Asked: true, Found: true, Stand: stand(v1alpha1.RoleTarget, 1), InForce: stand(v1alpha1.RoleTarget, 1)}, Peer{}
	leaving := source(1)
	leaving.Stand.Role = v1alpha1.RoleTarget
	for _, c := range []struct {
		name    string
		a, b    Peer
		former  Receipt
		inForce int64
		want    Receipt
	}{
		{"the first choice", target, source(1), Receipt{}, 1, Receipt{"b", 1}},
		{"no source yet", target, target, Receipt{}, 1, Receipt{"a", 0}},
		{"nobody answers at first", silent, silent, Receipt{}, 1, Receipt{"a", 0}},
		{"it stays", source(1), target, Receipt{"a", 1}, 1, Receipt{"a", 1}},
		{"nobody answers any more", silent, silent, Receipt{"b", 1}, 1, Receipt{"b", 1}},
		{"the source is silent, the other a target", silent, target, Receipt{"a", 1}, 1, Receipt{"a", 1}},
		{"the other took over while the source is silent", silent, source(3), Receipt{"a", 1}, 1, Receipt{"b", 3}},
		{"the other took over, and the former source does not know", source(1), source(3), Receipt{"a", 1}, 1, Receipt{"b", 3}},
		{"the former source is not gone back to", source(1), silent, Receipt{"b", 3}, 3, Receipt{"b", 3}},
		{"nor once its epoch is known to be old", source(1), target, Receipt{"b", 3}, 3, Receipt{"b", 3}},
		{"the epoch came before the link was chosen", silent, source(3), Receipt{"a", 1}, 3, Receipt{"b", 3}},
		{"two of one epoch: what is stays", source(3), source(3), Receipt{"a", 3}, 3, Receipt{"a", 3}},
		{"another of one epoch, while the source is silent", silent, source(3), Receipt{"a", 3}, 3, Receipt{"a", 3}},
		{"another of one epoch, and the former says it is none", target, source(3), Receipt{"a", 3}, 3, Receipt{"b", 3}},
		{"a source that leaves its role", leaving, target, Receipt{"a", 1}, 1, Receipt{"a", 1}},
	} {
		if got := Receiving([]Giver{{"a", c.a}, {"b", c.b}}, c.former, c.inForce); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	if got := Receiving([]Giver{{"a", silent}}, Receipt{}, 1); got.Rlink != "a" {
		t.Errorf("the only link: %+v", got)
	}
}

// Whatever peers say in whatever order, the epoch received from never goes back, and data of two sources of one epoch do not follow
// each other while the first may go on.
func TestReceivingNeverGoesBack(t *testing.T) {
	var said []Peer
	said = append(said, Peer{})
	for epoch := int64(1); epoch <= 3; epoch++ {
		for _, role := range []v1alpha1.Role{v1alpha1.RoleSource, v1alpha1.RoleTarget} {
			for _, in := range []v1alpha1.Role{v1alpha1.RoleSource, v1alpha1.RoleTarget} {
				said = append(said, Peer{Asked: true, Found: true, Stand: stand(role, epoch), InForce: stand(in, epoch)})
			}
		}
	}
	for _, a := range said {
		for _, b := range said {
			for _, former := range []Receipt{{}, {"a", 0}, {"a", 1}, {"a", 2}, {"b", 2}, {"b", 3}, {"gone", 2}} {
				for inForce := int64(1); inForce <= 3; inForce++ {
					got := Receiving([]Giver{{"a", a}, {"b", b}}, former, inForce)
					if former.Rlink != "gone" && got.Epoch < former.Epoch {
						t.Fatalf("a %+v, b %+v, in epoch %d: from %+v to %+v", a, b, inForce, former, got)
					}
					was := map[string]Peer{"a": a, "b": b}[former.Rlink]
					if former.Rlink != "gone" && former.Epoch > 0 && got.Rlink != former.Rlink && got.Epoch == former.Epoch && (!was.Asked || gives(was)) {
						t.Fatalf("a %+v, b %+v, in epoch %d: from %+v to %+v though the former may go on", a, b, inForce, former, got)
					}
				}
			}
		}
	}
}

// M-099: a link whose peer is away, or whose session runs, holds no other back.
func TestEveryLinkGoesItsOwnWay(t *testing.T) {
	free, away, busy := atRest(), atRest(), inSession()
	free.Rlink, away.Rlink, busy.Rlink = "free", "away", "busy"
	away.Peer = Peer{Name: "north", Link: v1alpha1.LinkLost}
	free.TriggerNow, away.TriggerNow = "go", "go"
	d := NextSources([]Source{away, busy, free})
	if d[0].Reason != ReasonLinkLost || d[1].Step != FollowMover || d[2].Step != StartSession {
		t.Errorf("%+v", d)
	}
}

// The role is one for all links: it is left when nothing of any link's sessions is left, and a newer epoch comes into force together.
func TestTheRoleIsTakenByAllLinksAtOnce(t *testing.T) {
	old, done := inSession(), atRest()
	old.Rlink, done.Rlink = "old", "done"
	old.Wanted.Epoch, done.Wanted.Epoch = 3, 3
	d := NextSources([]Source{old, done})
	if d[0].Step != RemoveMover || d[1].Step != Wait {
		t.Errorf("beside a session of the older epoch: %+v", d)
	}
	old.Session = nil
	if d = NextSources([]Source{old, done}); d[0].Step != TakeRole || d[1].Step != TakeRole {
		t.Errorf("after it: %+v", d)
	}

	base := Target{Now: noon, Wanted: stand(v1alpha1.RoleTarget, 2), InForce: stand(v1alpha1.RoleSource, 2)}
	one, two := base, base
	one.Rlink, two.Rlink = "one", "two"
	two.Session, two.Mover = inSession().Session, Mover{State: MoverRunning}
	e := NextTargets([]Target{one, two})
	if e[0].Step != Wait || e[1].Step != RemoveMover {
		t.Errorf("demotion beside a session: %+v", e)
	}
	two.Session, two.Leftover = nil, []string{"VolumeSnapshot s"}
	if e = NextTargets([]Target{one, two}); e[0].Step != Wait || e[1].Step != Tidy {
		t.Errorf("demotion beside a base: %+v", e)
	}
	two.Leftover = nil
	if e = NextTargets([]Target{one, two}); e[0].Step != TakeRole || e[1].Step != TakeRole {
		t.Errorf("demotion: %+v", e)
	}
}

// T-22: a receiver of another link is gone before one of the new link starts, also at a promotion.
func TestStraysGoFirst(t *testing.T) {
	s := keeping()
	s.Replica.Receiver, s.Replica.Strays = Absent, []string{"Deployment lb-app-a-receiver"}
	check(t, NextTarget(s), expectation{RemoveStrays, ReasonReplicaPreparing, false, "", "lb-app-a-receiver"})
	p := atRest()
	p.Wanted, p.InForce, p.Own, p.Replica = stand(v1alpha1.RoleSource, 3), stand(v1alpha1.RoleTarget, 2), true, s.Replica
	check(t, NextSource(p), expectation{RemoveStrays, ReasonLeavingTarget, false, "", "lb-app-a-receiver"})
}
