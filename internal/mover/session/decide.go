package session

import (
	"fmt"
	"strings"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

const (
	// Window is how many bytes of records a source may have unacknowledged. It costs no memory, neither side keeps
	// them; it covers the bandwidth-delay product of a long fast link and several syncs of a target.
	Window = 256 << 20
	// Lookahead is how many segments a source may compare ahead of the one it sends.
	Lookahead = 16
)

// Half is a delta that has begun to arrive.
type Half struct {
	Point  string
	Epoch  uint64
	Tier   wire.Tier
	Direct bool
	Reason string
	Cursor wire.Position
}

// Holding is what a target durably holds.
type Holding struct {
	Replication string
	Epoch       uint64 // the highest it has seen
	Members     []wire.Member
	Committed   *Point // nil when there is none; what is committed is also applied
	Half        *Half  // nil when no delta has begun
	// Mixed says that a direct copy was left half-way: the replica is no instant of anything.
	Mixed bool
	// Written says that the replica holds data from another time, such as a former primary's, that must survive
	// until a whole delta is there.
	Written bool
}

// Decision is what a target does with a source it serves. The order is an argument: first the epoch is raised
// durably, then the delta of another instant is dropped, then the source is welcomed.
type Decision struct {
	Raise    bool // the source's epoch is higher: adopt it
	DropHalf bool
	Welcome  wire.Welcome
}

// Decide answers a Hello. The refusals come first and the stale epoch before all: a source that lost its right to
// write learns that, whatever else is wrong.
func Decide(h Holding, hello wire.Hello) (Decision, *Refusal) {
	if r := Refuse(h, hello); r != nil {
		return Decision{}, r
	}
	d := Decision{
		Raise:    hello.Epoch > h.Epoch,
		DropHalf: h.Half != nil && (h.Half.Point != hello.Point || h.Half.Epoch != hello.Epoch),
		Welcome:  wire.Welcome{Window: Window, Lookahead: Lookahead},
	}
	w := &d.Welcome
	// A half direct copy that is dropped has already overwritten part of the replica.
	mixed := (h.Mixed && !(d.Raise && h.Written)) || d.DropHalf && h.Half.Direct
	switch {
	case h.Committed != nil && h.Committed.ID == hello.Point && h.Committed.Epoch == hello.Epoch:
		w.Tier, w.Committed = wire.TierDigest, true
		w.Reason = "the target already holds this recovery point"
	case h.Half != nil && !d.DropHalf:
		w.Tier, w.Direct, w.Reason = h.Half.Tier, h.Half.Direct, h.Half.Reason
		w.Start, w.Resumed = h.Half.Cursor, true
	case h.Committed != nil && !mixed:
		w.Tier = wire.TierDigest
		w.Reason = fmt.Sprintf("the target holds recovery point %s and no list of changed blocks is at hand: digests are compared", h.Committed.ID)
	case mixed:
		w.Tier, w.Direct = wire.TierDigest, true
		w.Reason = "an earlier first copy was left half-way: digests find what it already brought"
	case h.Written:
		w.Tier = wire.TierDigest
		w.Reason = "the replica holds data from before: digests find what differs, and it stays as it is until the delta is whole"
	default:
		w.Tier, w.Direct = wire.TierFull, true
		w.Reason = "the target has no recovery point yet: everything is sent, straight onto the replica"
	}
	return d, nil
}

// Refuse says why a target that holds h will never serve this source; nil when it will.
func Refuse(h Holding, hello wire.Hello) *Refusal {
	if hello.Replication != h.Replication {
		return &Refusal{Kind: wire.RefusedReplication, Mismatches: []wire.Mismatch{{
			Object: "replication", Field: "name", Source: hello.Replication, Target: h.Replication,
		}}}
	}
	if hello.Epoch < h.Epoch {
		return &Refusal{Kind: wire.RefusedEpoch, Mismatches: []wire.Mismatch{{
			Object: "replication " + h.Replication, Field: "epoch",
			Source: fmt.Sprint(hello.Epoch), Target: fmt.Sprint(h.Epoch),
		}}}
	}
	if !sameNames(h.Members, hello.Members) {
		return &Refusal{Kind: wire.RefusedMembers, Mismatches: []wire.Mismatch{{
			Object: "replication " + h.Replication, Field: "volumes",
			Source: list(hello.Members), Target: list(h.Members),
		}}}
	}
	var sizes []wire.Mismatch
	for i, m := range h.Members {
		if theirs := hello.Members[i]; theirs.Size != m.Size {
			sizes = append(sizes, wire.Mismatch{
				Object: "volume " + m.Name, Field: "size",
				Source: fmt.Sprintf("%d bytes", theirs.Size), Target: fmt.Sprintf("%d bytes", m.Size),
			})
		}
	}
	if sizes != nil {
		return &Refusal{Kind: wire.RefusedSizes, Mismatches: sizes}
	}
	return nil
}

// sameNames compares names in order: volumes are known by their index from here on.
func sameNames(a, b []wire.Member) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name {
			return false
		}
	}
	return true
}

func list(members []wire.Member) string {
	names := make([]string, 0, len(members))
	for _, m := range members {
		names = append(names, m.Name)
	}
	return "[" + strings.Join(names, " ") + "]"
}
