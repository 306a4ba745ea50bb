// Package session holds the rules of a replication session, apart from everything that carries them out: what a
// target answers a source (Decide), what a source does next (Source), and what a target does with what it is sent
// (Target). Messages and results of reads go in, messages to send and work to do come out. There is no socket, file,
// clock or goroutine here, so a test can cut, delay and repeat at every step.
//
// A session goes through the group once, in order: volume after volume, segment after segment. A Position says how far
// it is. For each segment the source finds what differs, sends it, and ends the segment with the digest the target
// must then hold; the target stores nothing it has not checked, and acknowledges only what is durable. After the last
// segment one digest over all of them closes the delta.
//
// Begin with Decide, then Source.Step and Target.Step.
package session

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Point is a recovery point: one instant of a whole group, as a session of an epoch committed it.
type Point struct {
	ID    string    `json:"id"`
	Time  time.Time `json:"time"`
	Epoch uint64    `json:"epoch"`
	// Cut is how the members were cut, in the source's word; empty when it did not say.
	Cut string `json:"cut,omitempty"`
}

// Action is something the driver of a Source or Target must do: one of Send, Scan, Read, Load, Store, Commit.
type Action any

// Send asks for a message to be sent, in order.
type Send struct {
	Message wire.Message
	// Frees is the Seq of the Read whose buffer may be used again once this message is written; 0 is none.
	Frees uint64
}

// Event is something that happened: a wire.Message that arrived, or the result of an Action.
type Event any

// Refusal is a target's answer to a source it will not serve. Trying again does not help; somebody must change
// something.
type Refusal struct {
	Kind       wire.RefusalKind
	Mismatches []wire.Mismatch
}

// Error names both sides and what to do.
func (r *Refusal) Error() string {
	var b strings.Builder
	advice := ""
	switch r.Kind {
	case wire.RefusedReplication:
		b.WriteString("the target serves another replication")
		advice = "; point the source at its own target"
	case wire.RefusedEpoch:
		b.WriteString("the source's epoch is stale")
		advice = "; another cluster has become primary since, this one must not replicate"
	case wire.RefusedMembers:
		b.WriteString("the groups differ")
		advice = "; give both sides the same volumes"
	case wire.RefusedSizes:
		b.WriteString("volumes differ in size")
		advice = "; grow the smaller one to exactly the other's size"
	default:
		fmt.Fprintf(&b, "the target refuses (kind %d)", r.Kind)
	}
	for i, m := range r.Mismatches {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s %s: source has %s, target has %s", sep, m.Object, m.Field, m.Source, m.Target)
	}
	return b.String() + advice
}

// Message is the refusal as it is sent.
func (r *Refusal) Message() wire.Refused { return wire.Refused{Kind: r.Kind, Mismatches: r.Mismatches} }

// Violation reports that the other side did what the protocol does not allow.
type Violation struct{ What string }

func (v *Violation) Error() string { return "the peer broke the protocol: " + v.What }

func violation(format string, args ...any) error {
	return &Violation{What: fmt.Sprintf(format, args...)}
}

// Integrity reports that content is not what a digest says it must be. Nothing of it is kept.
type Integrity struct {
	What      string
	Want, Got digest.Digest
}

func (i *Integrity) Error() string {
	return fmt.Sprintf("%s has digest %.16s instead of %.16s", i.What, i.Got, i.Want)
}

// shape is the geometry of a group and the walk through it.
type shape []wire.Member

func (g shape) geo(v int) digest.Geometry { return digest.Geometry{Size: g[v].Size} }

// end is the position behind the last volume.
func (g shape) end() wire.Position { return wire.Position{Volume: len(g)} }

// after is the position behind segment s of volume v.
func (g shape) after(v, s int) wire.Position {
	if s+1 == g.geo(v).Segments() {
		return wire.Position{Volume: v + 1}
	}
	return wire.Position{Volume: v, Segment: s + 1, Offset: g.geo(v).SegmentStart(s + 1)}
}

// inside reports whether p is a place in the group, its end included.
func (g shape) inside(p wire.Position) bool {
	if p.Volume >= len(g) {
		return p == g.end()
	}
	geo := g.geo(p.Volume)
	if p.Segment >= geo.Segments() {
		return false
	}
	start := geo.SegmentStart(p.Segment)
	return p.Offset >= start && p.Offset <= start+geo.SegmentLen(p.Segment)
}

// bytesBefore is how many bytes of the group lie before p.
func (g shape) bytesBefore(p wire.Position) int64 {
	var n int64
	for v := 0; v < p.Volume && v < len(g); v++ {
		n += g[v].Size
	}
	return n + p.Offset
}

// Closing is the digest that ends a delta: over the point, and each volume's name, size and root.
func Closing(point string, members []wire.Member, segments [][]digest.Digest) digest.Digest {
	h := blake3.New()
	text := func(s string) {
		_, _ = h.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(s))))
		_, _ = h.Write([]byte(s))
	}
	text("lifeboat delta 1")
	text(point)
	for v, m := range members {
		text(m.Name)
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(m.Size)))
		root := digest.Root(segments[v])
		_, _ = h.Write(root[:])
	}
	return digest.Digest(h.Sum(nil))
}

// Records turns bytes read from a volume into the records that carry them: blocks of zeros as holes, the rest as data.
// The bytes begin at a block; digests are those of p's blocks, Unknown where a block was not read whole. pieces say what
// of them is to be carried, in order, aligned to wire.Grain; none is all. A block of zeros is carried whole, whatever
// piece of it was asked for.
func Records(volume int, offset int64, p []byte, digests []digest.Digest, pieces []digest.Extent) []wire.Message {
	if pieces == nil {
		pieces = []digest.Extent{{Offset: offset, Length: int64(len(p))}}
	}
	var out []wire.Message
	at := int64(0) // of p: everything before is dealt with
	for n, x := range pieces {
		from, end := max(at, x.Offset-offset), x.Offset-offset+x.Length
		for from < end {
			i := from / digest.BlockSize
			zero := digests[i] == digest.Zero
			j := i + 1
			for j*digest.BlockSize < end && (digests[j] == digest.Zero) == zero {
				j++
			}
			to := min(j*digest.BlockSize, int64(len(p)))
			if zero {
				from = i * digest.BlockSize
				out = append(out, wire.Hole{Volume: volume, Offset: offset + from, Length: to - from})
			} else {
				to = min(to, end)
				d := wire.Data{Volume: volume, Offset: offset + from, Length: int(to - from), Payload: p[from:to]}
				d.More = n+1 < len(pieces) && to == end && (pieces[n+1].Offset-offset)/digest.BlockSize == j-1 &&
					digests[j-1] != digest.Unknown
				known := j
				if d.More {
					known--
				}
				d.Digests = digests[i:known]
				out = append(out, d)
			}
			from = to
		}
		at = max(at, from)
	}
	return out
}
