package delta

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Source is a volume whose changes are exported, and what is known of its base.
type Source struct {
	Name   string
	Volume volume.Reader

	// Base is the volume at the base, Map its digests there. One of them is set, or neither for a full delta.
	Base volume.Reader
	Map  *digest.Map

	// Listed says that Extents are all that changed since the base: nothing else is compared. In a full delta they are
	// all that was ever written: the rest is zero and not read. They are in order and do not overlap.
	Listed  bool
	Extents []digest.Extent

	// NewMap, if any, becomes the digests of the volume. It needs every block's digest: with a list that takes Map.
	NewMap *digest.Map
}

// ExportOptions say how a delta is made.
type ExportOptions struct {
	Replication string
	Base        string // the point; empty: it has no name
	Point       string
	PointTime   time.Time // zero: unknown
	// Uncompressed turns compression off.
	Uncompressed bool
	// Quick, with a list and without a map, reads only blocks that changed: Apply can then check those, and not the
	// rest of their segments.
	Quick bool
}

// Export writes the delta between the base and the sources' volumes, which must not change meanwhile. Each is read
// once, front to back.
func Export(ctx context.Context, out io.Writer, sources []Source, o ExportOptions) (End, error) {
	e, err := newExport(sources, o)
	if err != nil {
		return End{}, err
	}
	if e.out, err = NewWriter(out, e.head); err != nil {
		return End{}, err
	}
	jobs := jobs{export: e}
	if err := inOrder(ctx, 2*workers(), jobs.next, e.read, e.take); err != nil {
		return End{}, err
	}
	base, after := make([]digest.Digest, len(sources)), make([]digest.Digest, len(sources))
	for v := range sources {
		base[v], after[v] = digest.Root(e.base[v]), digest.Root(e.after[v])
		if e.head.Full {
			base[v] = digest.Unknown
		}
	}
	return e.out.Close(base, after)
}

// export is one run of Export.
type export struct {
	head    Head
	sources []Source
	quick   bool
	pack    *packer
	out     *Writer

	base, after [][]digest.Digest // roots of segments, by volume
	// Of the segment at hand.
	now, was []digest.Digest
	blocks   []digest.Digest // at the base, of touched blocks
}

func newExport(sources []Source, o ExportOptions) (*export, error) {
	e := &export{sources: sources, quick: o.Quick}
	e.head = Head{
		Replication: o.Replication, Base: o.Base, Point: o.Point, PointTime: o.PointTime,
		Full: len(sources) > 0 && sources[0].full(),
	}
	for _, s := range sources {
		if s.full() != e.head.Full {
			return nil, &NotKnown{Volume: s.Name, What: "some volumes have a base and some have none: a delta starts from one instant of all"}
		}
		if s.Base != nil && s.Base.Size() != s.Volume.Size() {
			return nil, &SizeDiffers{Volume: s.Name, Delta: s.Base.Size(), Here: s.Volume.Size()}
		}
		if s.NewMap != nil && s.Listed && s.Map == nil && !s.full() {
			return nil, &NotKnown{Volume: s.Name, What: "the digests of what a list leaves out are not known: give the base's map too, or no list"}
		}
		e.head.Members = append(e.head.Members, wire.Member{Name: s.Name, Size: s.Volume.Size()})
	}
	if err := e.head.check(); err != nil {
		return nil, err
	}
	for v := range sources {
		n := e.head.geo(v).Segments()
		e.base, e.after = append(e.base, make([]digest.Digest, 0, n)), append(e.after, make([]digest.Digest, 0, n))
	}
	if o.Uncompressed {
		return e, nil
	}
	var err error
	e.pack, err = newPacker()
	return e, err
}

func (s *Source) full() bool { return s.Base == nil && s.Map == nil }

// job is one window of a volume, or a whole segment that is not looked at.
type job struct {
	volume  int
	segment int
	offset  int64
	length  int
	ends    bool // the segment

	skip   bool            // the whole segment, which is as it was or, in a full delta, zero
	same   []digest.Digest // of a segment to skip: its blocks, as far as they are known
	listed [windowGrains]bool
	read   [windowBlocks]bool // blocks to be read; of others: was, or zero in a full delta
	was    [windowBlocks]digest.Digest
}

// jobs walks through the volumes.
type jobs struct {
	*export
	volume, segment int
	at              int64 // in the volume
	extent          int   // the first that does not end before at
	touched         bool  // the segment at hand has extents
	was             []digest.Digest
}

func (j *jobs) next() (job, error) {
	for j.volume < len(j.sources) && j.at == j.head.Members[j.volume].Size {
		j.volume, j.segment, j.at, j.extent, j.was = j.volume+1, 0, 0, 0, nil
	}
	if j.volume == len(j.sources) {
		return job{}, io.EOF
	}
	s, g := &j.sources[j.volume], j.head.geo(j.volume)
	j.segment = int(j.at / digest.SegmentSize)
	end := g.SegmentStart(j.segment) + g.SegmentLen(j.segment)
	out := job{volume: j.volume, segment: j.segment, offset: j.at}
	if j.at == g.SegmentStart(j.segment) {
		j.touched = !s.Listed || j.listed(s, j.at, end)
		if !j.touched {
			out.skip, out.ends, j.at = true, true, end
		}
		j.was = nil
		if s.Map != nil {
			var err error
			if j.was, err = s.Map.Blocks(j.segment); err != nil {
				return job{}, &VolumeError{s.Name, err}
			}
		}
		if out.skip {
			out.same = j.was
			return out, nil
		}
	}
	out.length = int(min(windowSize, end-j.at))
	j.plan(s, &out)
	j.at += int64(out.length)
	out.ends = j.at == end
	return out, nil
}

// listed reports whether an extent lies between from and to.
func (j *jobs) listed(s *Source, from, to int64) bool {
	for j.extent < len(s.Extents) && s.Extents[j.extent].Offset+s.Extents[j.extent].Length <= from {
		j.extent++
	}
	return j.extent < len(s.Extents) && s.Extents[j.extent].Offset < to
}

// plan says what of a window is read.
func (j *jobs) plan(s *Source, out *job) {
	first := int(out.offset%digest.SegmentSize) / digest.BlockSize
	for b := range out.was {
		out.was[b] = digest.Unknown
		if first+b < len(j.was) {
			out.was[b] = j.was[first+b]
		}
	}
	end := out.offset + int64(out.length)
	if s.Listed && j.listed(s, out.offset, end) {
		for _, x := range s.Extents[j.extent:] {
			if x.Offset >= end {
				break
			}
			from, to := max(x.Offset-out.offset, 0), min(x.Offset+x.Length-out.offset, int64(out.length))
			for g := from / wire.Grain; g < (to+wire.Grain-1)/wire.Grain; g++ {
				out.listed[g] = true
			}
		}
	}
	for b := range out.read {
		out.read[b] = !s.Listed || slices.Contains(out.listed[b*blockGrains:(b+1)*blockGrains], true) ||
			!s.full() && s.Map == nil && !j.quick
	}
}

// result is what became of a job.
type result struct {
	job
	window   *window // nil: the job was to skip
	now, was [windowBlocks]digest.Digest
	records  []wire.Message
	touched  bool
}

// read reads a window and finds what changed.
func (e *export) read(j job) (result, error) {
	r := result{job: j, was: j.was}
	if j.skip {
		return r, nil
	}
	s := &e.sources[j.volume]
	w := newWindow(j.volume, j.offset, s.Volume.Size())
	r.window = w
	if err := e.readBlocks(s.Volume, s.Name, w, w.data, &j.read); err != nil {
		return r, err
	}
	for b := range w.blocks() {
		from, to := w.span(b)
		switch {
		case j.read[b]:
			r.now[b] = digest.Block(w.data[from:to])
		case s.full():
			r.now[b] = digest.Zero
		default:
			r.now[b] = r.was[b]
		}
	}
	if err := e.compare(s, &r); err != nil {
		return r, err
	}
	for b := range w.blocks() {
		if w.cover(b) != untouched {
			r.touched = true
			w.next[b] = r.now[b]
			if w.cover(b) == wholly && r.now[b] == digest.Zero {
				w.setHole(b)
			}
		}
	}
	if r.touched {
		r.records = e.pack.packAll(w)
	}
	return r, nil
}

// compare marks the grains that changed, and digests the base where it is at hand.
func (e *export) compare(s *Source, r *result) error {
	w := r.window
	var base []byte
	if s.Base != nil {
		memory := blockBuffers.Get().(*[]byte)
		defer blockBuffers.Put(memory)
		base = *memory
		changed := r.read
		for b := range changed {
			changed[b] = changed[b] && r.candidate(s, b)
		}
		if err := e.readBlocks(s.Base, s.Name+" at its base", w, base, &changed); err != nil {
			return err
		}
	}
	for b := range w.blocks() {
		from, to := w.span(b)
		switch {
		case s.full():
			w.setAll(b)
		case !r.read[b]:
		case !r.candidate(s, b):
			// It is not listed, so it is as it was; it was read to know the segment.
			r.was[b] = r.now[b]
		case s.Base != nil:
			r.was[b] = digest.Block(base[from:to])
			for g, end := w.grains(b); g < end; g++ {
				at, to := g*wire.Grain, min((g+1)*wire.Grain, w.length)
				w.set[g] = !bytes.Equal(base[at:to], w.data[at:to])
			}
		case r.now[b] != r.was[b] || r.was[b] == digest.Unknown:
			for g, end := w.grains(b); g < end; g++ {
				w.set[g] = !s.Listed || r.listed[g]
			}
		}
	}
	return nil
}

// candidate reports whether block b may have changed.
func (j *job) candidate(s *Source, b int) bool {
	return !s.Listed || slices.Contains(j.listed[b*blockGrains:(b+1)*blockGrains], true)
}

// readBlocks reads runs of the window's blocks into p, where they lie in it.
func (e *export) readBlocks(v volume.Reader, name string, w *window, p []byte, which *[windowBlocks]bool) error {
	for b := 0; b < w.blocks(); b++ {
		if !which[b] {
			continue
		}
		last := b
		for last+1 < w.blocks() && which[last+1] {
			last++
		}
		from, _ := w.span(b)
		_, to := w.span(last)
		if err := readFull(v, name, p[from:to], w.offset+int64(from)); err != nil {
			return err
		}
		b = last
	}
	return nil
}

// take writes a window's records, and the end of its segment.
func (e *export) take(r result) error {
	if r.skip {
		return e.skipped(r)
	}
	defer r.window.release()
	n := r.window.blocks()
	e.now, e.was = append(e.now, r.now[:n]...), append(e.was, r.was[:n]...)
	for b := range n {
		if r.touched && r.window.cover(b) != untouched {
			e.blocks = append(e.blocks, r.was[b])
		}
	}
	for _, m := range r.records {
		if err := e.out.Record(m); err != nil {
			return err
		}
	}
	if !r.ends {
		return nil
	}
	base, after := digest.Segment(e.was), digest.Segment(e.now)
	if len(e.blocks) > 0 {
		if err := e.out.EndSegment(r.volume, r.segment, base, after, e.blocks); err != nil {
			return err
		}
	}
	err := e.keep(r.volume, r.segment, base, after, e.now)
	e.now, e.was, e.blocks = e.now[:0], e.was[:0], e.blocks[:0]
	return err
}

// skipped takes a segment that was not looked at.
func (e *export) skipped(r result) error {
	s, g := &e.sources[r.volume], e.head.geo(r.volume)
	if s.full() {
		hole := wire.Hole{Volume: r.volume, Offset: g.SegmentStart(r.segment), Length: g.SegmentLen(r.segment)}
		if err := e.out.Record(hole); err != nil {
			return err
		}
		if err := e.out.EndSegment(r.volume, r.segment, digest.Unknown, digest.Zero, nil); err != nil {
			return err
		}
		return e.keep(r.volume, r.segment, digest.Unknown, digest.Zero, nil)
	}
	same := digest.Unknown
	if r.same != nil {
		same = digest.Segment(r.same)
	}
	return e.keep(r.volume, r.segment, same, same, r.same)
}

// keep takes the digests of a segment, in order. Without blocks it is zero, and so is a new map.
func (e *export) keep(v, s int, base, after digest.Digest, blocks []digest.Digest) error {
	e.base[v], e.after[v] = append(e.base[v], base), append(e.after[v], after)
	if m := e.sources[v].NewMap; m != nil && blocks != nil {
		if err := m.SetSegment(s, blocks); err != nil {
			return fmt.Errorf("volume %s: %w", e.sources[v].Name, err)
		}
	}
	return nil
}
