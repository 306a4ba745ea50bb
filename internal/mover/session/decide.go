package session

import (
	"fmt"
	"strings"

	"lifeboat.dev/lifeboat/internal/mover/digest"
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
	Verify bool
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
	// TooLarge is a point whose delta the spool cannot hold, while what the replica holds is kept elsewhere too: it may
	// go straight onto the replica.
	TooLarge string
}

// Decision is what a target does with a source it serves. The order is an argument: first the epoch is raised
// durably, then the delta of another instant is dropped, then the source is welcomed.
type Decision struct {
	Raise    bool // the source's epoch is higher: adopt it
	DropHalf bool
	Welcome  wire.Welcome
}

// Decide answers a Hello. The refusals come first and the stale epoch before all: a source that lost its right to
// write learns that, whatever else is wrong. After that the cheapest honest tier is chosen, and the reason says why it
// is not a cheaper one.
func Decide(h Holding, hello wire.Hello) (Decision, *Refusal) {
	if r := Refuse(h, hello); r != nil {
		return Decision{}, r
	}
	d := Decision{
		Raise:   hello.Epoch > h.Epoch,
		Welcome: wire.Welcome{Window: Window, Lookahead: Lookahead},
	}
	here := h.Committed != nil && h.Committed.ID == hello.Point && h.Committed.Epoch == hello.Epoch
	// A list of changes tells nothing of what else was written to the replica since, such as while it was primary:
	// each such time began with a new epoch.
	listed := hello.Base != "" && h.Committed != nil && !h.Mixed && h.Committed.ID == hello.Base &&
		h.Committed.Epoch == hello.Epoch && h.Epoch == hello.Epoch && !hello.Verify
	mixed := h.Mixed && !(d.Raise && h.Written)
	// A copy straight onto the replica has nothing to compare with.
	verifies := hello.Verify && !mixed && (h.Committed != nil || h.Written)
	d.DropHalf = h.Half != nil && !goesOn(h.Half, hello, here, listed, verifies)
	w := &d.Welcome
	// A half direct copy that is dropped has already overwritten part of the replica.
	mixed = mixed || d.DropHalf && h.Half.Direct
	switch {
	case here && !hello.Verify:
		w.Tier, w.Committed = wire.TierDigest, true
		w.Reason = "the target already holds this recovery point"
	case h.Half != nil && !d.DropHalf:
		w.Tier, w.Reason = continued(h.Half, hello, listed)
		w.Direct, w.Verify = h.Half.Direct, h.Half.Verify
		w.Start, w.Resumed = h.Half.Cursor, true
	case verifies && !mixed:
		w.Tier, w.Verify = wire.TierDigest, true
		w.Reason = "asked to verify: both sides are read and compared, block by block"
	case listed && !mixed:
		w.Tier = wire.TierCBT
		w.Reason = fmt.Sprintf("the source has a list of what changed since recovery point %s, which the target holds", hello.Base)
	case h.Committed != nil && !mixed:
		w.Tier = wire.TierDigest
		w.Reason = fmt.Sprintf("the target holds recovery point %s and %s: digests are compared", h.Committed.ID, whyNotListed(h, hello))
	case mixed:
		w.Tier, w.Direct = wire.TierDigest, true
		w.Reason = "an earlier first copy was left half-way: digests find what it already brought"
	case h.Written:
		w.Tier = wire.TierDigest
		w.Reason = "the replica holds data from before: digests find what differs, and it stays as it is until the delta is whole"
	case hello.Allocated:
		w.Tier, w.Direct = wire.TierAllocated, true
		w.Reason = "the target has no recovery point yet: everything that was ever written is sent, straight onto the replica"
	default:
		w.Tier, w.Direct = wire.TierFull, true
		w.Reason = "the target has no recovery point yet and the source cannot tell what was never written: everything is sent, straight onto the replica"
	}
	if !w.Committed && !w.Resumed && !w.Direct && h.TooLarge == hello.Point && hello.Point != "" {
		w.Direct = true
		w.Reason += "; the spool cannot hold the delta, and the recovery point is kept elsewhere: it goes straight onto the replica"
	}
	return d, nil
}

// goesOn reports that a half delta is of this source's instant and can be continued.
func goesOn(half *Half, hello wire.Hello, here, listed, verifies bool) bool {
	switch {
	case half.Point != hello.Point || half.Epoch != hello.Epoch || half.Verify != verifies:
		return false
	case here && !hello.Verify:
		return false
	case half.Tier == wire.TierCBT && half.Cursor.Offset != int64(half.Cursor.Segment)*digest.SegmentSize:
		// Of blocks that changed in part only the list tells how the segment goes on.
		return listed
	}
	return true
}

// continued is the tier for the rest of a half delta: the source may know more or less than before. What began by
// comparing goes on by comparing.
func continued(half *Half, hello wire.Hello, listed bool) (wire.Tier, string) {
	tier := wire.TierFull
	switch {
	case half.Tier == wire.TierCBT && listed:
		tier = wire.TierCBT
	case half.Tier.Compares():
		tier = wire.TierDigest
	case hello.Allocated:
		tier = wire.TierAllocated
	}
	if tier == half.Tier {
		return tier, half.Reason
	}
	return tier, fmt.Sprintf("goes on in tier %s where an earlier connection in tier %s was cut", tier, half.Tier)
}

// whyNotListed says why a list of changes does not serve.
func whyNotListed(h Holding, hello wire.Hello) string {
	switch {
	case hello.Note != "":
		return hello.Note
	case hello.Base == "":
		return "no list of changed blocks is at hand"
	case h.Committed.ID != hello.Base:
		return fmt.Sprintf("the source's list of changes leads from %s", hello.Base)
	}
	return "the replica may have been written since, in another epoch"
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
		if a[i].Name != b[i].Name || a[i].Kind != b[i].Kind {
			return false
		}
	}
	return true
}

func list(members []wire.Member) string {
	names := make([]string, 0, len(members))
	for _, m := range members {
		name := m.Name
		if m.Kind != wire.KindBlocks {
			name += " (" + m.Kind.String() + ")"
		}
		names = append(names, name)
	}
	return "[" + strings.Join(names, " ") + "]"
}
