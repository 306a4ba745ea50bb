package session_test

import (
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// A half delta that was cut where a volume of odd size ends, before the end of its last segment was said, ends with a
// whole block all the same: it goes on, and nothing of it is sent again.
func TestAHalfDeltaCutAtAnOddEndGoesOn(t *testing.T) {
	size := members[1].Size - 5
	odd := []wire.Member{members[0], {Name: "log", Size: size}, members[2]}
	h := hello("p1", 1)
	h.Members = odd
	d, refusal := session.Decide(session.Holding{
		Replication: "r", Epoch: 1, Members: odd, Committed: &session.Point{ID: "p0", Epoch: 1},
		Half: &session.Half{Point: "p1", Epoch: 1, Tier: wire.TierDigest, Cursor: wire.Position{Volume: 1, Offset: size}},
	}, h)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if d.DropHalf || !d.Welcome.Resumed || d.Welcome.Start != (wire.Position{Volume: 1, Offset: size}) {
		t.Errorf("decided %+v", d)
	}
}
