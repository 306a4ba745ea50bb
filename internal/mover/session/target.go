package session

import (
	"slices"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Load asks for the block digests of a segment of what the replica holds, as the digest map has them. The answer is a
// Loaded.
type Load struct{ Volume, Segment int }

// Loaded answers a Load.
type Loaded struct {
	Volume, Segment int
	Digests         []digest.Digest
}

// Store asks for a record to be kept: Data, Hole or SegmentEnd. After is the position reached with it. Answers come as
// Durable.
type Store struct {
	Record wire.Message
	After  wire.Position
}

// Durable says that every record up to a position would survive a crash.
type Durable struct{ Position wire.Position }

// Commit asks for the point to be recorded, applied and made durable. The answer is Applied.
type Commit struct{}

// Applied answers a Commit.
type Applied struct{}

// Target walks the target's side of one connection after the Welcome. It stores only records that come in order and
// segments whose content is proven; the bytes of a Data must have been checked against its digests before Step.
type Target struct {
	point   string
	shape   shape
	tier    wire.Tier
	expect  [][]digest.Digest // per volume and segment, what will be held once everything stored is applied
	cursor  wire.Position     // accepted so far
	durable wire.Position
	overlay map[int]digest.Digest // of the segment at the cursor: blocks that were sent, by index in the segment
	bases   map[[2]int][]digest.Digest
	loads   int
	closed  *wire.Close
	commits bool
	done    bool
}

// NewTarget begins with a welcomed source. expect holds, in a tier that compares, the segment digests of what the
// replica holds; else it is ignored. Records of an earlier connection are given to Restore before the first Step.
func NewTarget(hello wire.Hello, tier wire.Tier, expect [][]digest.Digest) *Target {
	t := &Target{
		point: hello.Point, shape: hello.Members, tier: tier, expect: expect,
		overlay: map[int]digest.Digest{}, bases: map[[2]int][]digest.Digest{},
	}
	if !tier.Compares() {
		t.expect = make([][]digest.Digest, len(t.shape))
		for v := range t.shape {
			t.expect[v] = make([]digest.Digest, t.shape.geo(v).Segments())
			for s := range t.expect[v] {
				t.expect[v][s] = digest.Unknown
			}
		}
	}
	return t
}

// Restore takes a record an earlier connection stored, in order.
func (t *Target) Restore(record wire.Message) error {
	after, err := t.place(record)
	if err != nil {
		return err
	}
	if end, ok := record.(wire.SegmentEnd); ok {
		t.expect[end.Volume][end.Segment] = end.Digest
	}
	t.accept(record, after)
	t.durable = t.cursor
	return nil
}

// Rejoin begins another connection of the same delta. Everything accepted is durable.
func (t *Target) Rejoin() {
	t.durable, t.loads, t.closed, t.commits = t.cursor, 0, nil, false
	clear(t.bases)
}

// Cursor is the position everything accepted lies before.
func (t *Target) Cursor() wire.Position { return t.cursor }

// Done reports that the source has been told that its point is committed.
func (t *Target) Done() bool { return t.done }

// Progress is how many bytes of the group are dealt with, and of how many.
func (t *Target) Progress() (done, total int64) {
	return t.shape.bytesBefore(t.cursor), t.shape.bytesBefore(t.shape.end())
}

// Opening lists the messages that follow the Welcome: the segment digests the source needs.
func (t *Target) Opening() []wire.Message {
	var out []wire.Message
	for v := range t.shape {
		digests := t.expect[v]
		if !t.tier.Compares() {
			digests = digests[:t.proven(v)]
		}
		for first := 0; first < len(digests); first += wire.MaxDigests {
			out = append(out, wire.SegmentDigests{
				Volume: v, First: first, Digests: digests[first:min(first+wire.MaxDigests, len(digests))],
			})
		}
	}
	return out
}

// proven is how many segments of volume v have ended.
func (t *Target) proven(v int) int {
	switch {
	case v < t.cursor.Volume:
		return len(t.expect[v])
	case v == t.cursor.Volume:
		return t.cursor.Segment
	}
	return 0
}

// Step takes what happened and says what to do. After an error the connection is over.
func (t *Target) Step(e Event) ([]Action, error) {
	switch e := e.(type) {
	case wire.Pulse:
		return nil, nil
	case wire.Failed:
		return nil, &Remote{Kind: e.Kind, Text: e.Text}
	case wire.Want:
		return t.onWant(e)
	case Loaded:
		return t.onLoaded(e)
	case wire.Data, wire.Hole:
		return t.onRecord(e)
	case wire.SegmentEnd:
		return t.onSegmentEnd(e)
	case Durable:
		return t.onDurable(e)
	case wire.Close:
		return t.onClose(e)
	case Applied:
		t.done = true
		return []Action{Send{Message: wire.Committed{Point: t.point}}}, nil
	}
	return nil, violation("a target does not expect %T", e)
}

func (t *Target) onWant(w wire.Want) ([]Action, error) {
	if w.Volume >= len(t.shape) || w.Segment >= t.shape.geo(w.Volume).Segments() {
		return nil, violation("it wants segment %d of volume %d", w.Segment, w.Volume)
	}
	if w.Volume < t.cursor.Volume || w.Volume == t.cursor.Volume && w.Segment < t.cursor.Segment {
		return nil, violation("it wants segment %d of volume %d, which has ended", w.Segment, w.Volume)
	}
	if t.loads+len(t.bases) >= Lookahead {
		return nil, violation("it wants block digests of more than %d segments at a time", Lookahead)
	}
	if !t.tier.Compares() {
		blocks := make([]digest.Digest, t.shape.geo(w.Volume).SegmentBlocks(w.Segment))
		for i := range blocks {
			blocks[i] = digest.Unknown
		}
		t.loads++
		return t.onLoaded(Loaded{Volume: w.Volume, Segment: w.Segment, Digests: blocks})
	}
	t.loads++
	return []Action{Load{Volume: w.Volume, Segment: w.Segment}}, nil
}

func (t *Target) onLoaded(l Loaded) ([]Action, error) {
	t.loads--
	t.bases[[2]int{l.Volume, l.Segment}] = l.Digests
	return []Action{Send{Message: wire.BlockDigests{
		Volume: l.Volume, Segment: l.Segment, Digests: t.pending(l.Volume, l.Segment, l.Digests),
	}}}, nil
}

// pending is a segment's block digests as they will be once everything stored is applied.
func (t *Target) pending(volume, segment int, base []digest.Digest) []digest.Digest {
	out := append([]digest.Digest(nil), base...)
	if volume != t.cursor.Volume || segment != t.cursor.Segment {
		return out
	}
	for i, d := range t.overlay {
		out[i] = d
	}
	return out
}

// extent is the part of a volume a record is about, and what the blocks it touches will hold: a block that further
// records complete is Unknown until then.
func extent(record wire.Message) (volume int, x digest.Extent, digests []digest.Digest) {
	switch m := record.(type) {
	case wire.Data:
		digests = m.Digests
		if m.More {
			digests = append(slices.Clip(digests), digest.Unknown)
		}
		return m.Volume, digest.Extent{Offset: m.Offset, Length: int64(m.Length)}, digests
	case wire.Hole:
		blocks := (m.Length + digest.BlockSize - 1) / digest.BlockSize
		return m.Volume, digest.Extent{Offset: m.Offset, Length: m.Length}, make([]digest.Digest, blocks)
	}
	return 0, digest.Extent{}, nil
}

// place checks that a record may come now, and says where it leads.
func (t *Target) place(record wire.Message) (wire.Position, error) {
	if t.closed != nil || t.cursor == t.shape.end() {
		return wire.Position{}, violation("a %s after the end", record.Type())
	}
	volume, segment := t.cursor.Volume, t.cursor.Segment
	if end, ok := record.(wire.SegmentEnd); ok {
		if end.Volume != volume || end.Segment != segment {
			return wire.Position{}, violation("segment %d of volume %d ends in place of segment %d of volume %d", end.Segment, end.Volume, segment, volume)
		}
		return t.shape.after(volume, segment), nil
	}
	at, x, _ := extent(record)
	geo := t.shape.geo(volume)
	from := max(t.cursor.Offset, geo.SegmentStart(segment))
	to := geo.SegmentStart(segment) + geo.SegmentLen(segment)
	end := x.Offset + x.Length
	if at != volume || x.Offset < from || end > to || x.Offset%t.grain(record) != 0 {
		return wire.Position{}, violation("a record of volume %d from %d to %d in place of volume %d from %d to %d", at, x.Offset, end, volume, from, to)
	}
	if end%t.grain(record) != 0 && end != geo.Size {
		return wire.Position{}, violation("a record of volume %d ends at %d, which is no multiple of %d", at, end, t.grain(record))
	}
	return wire.Position{Volume: at, Segment: segment, Offset: end}, nil
}

// grain is what a record's end is a multiple of. Where the target's blocks do not matter, or the record is a hole, it
// has whole blocks: nothing of a block would be known otherwise.
func (t *Target) grain(record wire.Message) int64 {
	if _, hole := record.(wire.Hole); hole || !t.tier.Compares() {
		return digest.BlockSize
	}
	return wire.Grain
}

// accept takes a record that place allowed.
func (t *Target) accept(record wire.Message, after wire.Position) {
	if end, ok := record.(wire.SegmentEnd); ok {
		delete(t.bases, [2]int{end.Volume, end.Segment})
		clear(t.overlay)
		t.cursor = after
		return
	}
	volume, x, digests := extent(record)
	first := int((x.Offset - t.shape.geo(volume).SegmentStart(t.cursor.Segment)) / digest.BlockSize)
	for i, d := range digests {
		t.overlay[first+i] = d
	}
	t.cursor = after
}

func (t *Target) onRecord(e Event) ([]Action, error) {
	record := e.(wire.Message)
	if d, ok := record.(wire.Data); ok && d.Codec == wire.CodecApart {
		return nil, violation("a record without its bytes")
	}
	after, err := t.place(record)
	if err != nil {
		return nil, err
	}
	if d, ok := record.(wire.Data); ok && unproven(d, t.shape[d.Volume].Size) {
		return nil, violation("a record of volume %d at %d has a whole block and does not prove it", d.Volume, d.Offset)
	}
	if _, asked := t.bases[[2]int{t.cursor.Volume, t.cursor.Segment}]; !asked && t.tier.Compares() {
		return nil, violation("a record of a segment whose block digests it did not ask for")
	}
	t.accept(record, after)
	return []Action{Store{Record: record, After: after}}, nil
}

// unproven reports that a block lies whole in a record that does not say its digest. Of a block that lies partly in it,
// the digest may be unknown: whoever needs it reads the replica.
func unproven(d wire.Data, size int64) bool {
	for i, known := range d.Digests {
		from := d.Offset&^(digest.BlockSize-1) + int64(i)*digest.BlockSize
		to := min(from+digest.BlockSize, size)
		if known == digest.Unknown && from >= d.Offset && to <= d.Offset+int64(d.Length) {
			return true
		}
	}
	return false
}

func (t *Target) onSegmentEnd(end wire.SegmentEnd) ([]Action, error) {
	after, err := t.place(end)
	if err != nil {
		return nil, err
	}
	if got := t.segmentDigest(end.Volume, end.Segment); got != end.Digest {
		return nil, &Integrity{What: "segment as received", Want: end.Digest, Got: got}
	}
	t.expect[end.Volume][end.Segment] = end.Digest
	t.accept(end, after)
	return []Action{Store{Record: end, After: after}}, nil
}

// segmentDigest is what the segment at the cursor will hold.
func (t *Target) segmentDigest(volume, segment int) digest.Digest {
	base, asked := t.bases[[2]int{volume, segment}]
	if len(t.overlay) == 0 && !asked {
		return t.expect[volume][segment]
	}
	if !asked {
		base = make([]digest.Digest, t.shape.geo(volume).SegmentBlocks(segment))
		for i := range base {
			base[i] = digest.Unknown
		}
	}
	return digest.Segment(t.pending(volume, segment, base))
}

func (t *Target) onDurable(d Durable) ([]Action, error) {
	t.durable = d.Position
	out := []Action{Send{Message: wire.Ack{Durable: d.Position}}}
	return t.commitWhenWhole(out), nil
}

func (t *Target) onClose(c wire.Close) ([]Action, error) {
	if t.closed != nil || t.cursor != t.shape.end() {
		return nil, violation("closed at %+v, before the end", t.cursor)
	}
	if got := Closing(t.point, t.shape, t.expect); got != c.Digest {
		return nil, &Integrity{What: "delta as received", Want: c.Digest, Got: got}
	}
	t.closed = &c
	return t.commitWhenWhole(nil), nil
}

// commitWhenWhole asks for the commit once: when the delta is closed, proven and durable.
func (t *Target) commitWhenWhole(out []Action) []Action {
	if t.closed == nil || t.commits || t.durable != t.shape.end() {
		return out
	}
	t.commits = true
	return append(out, Commit{})
}
