package delta

import (
	"context"
	"io"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Summary is what a delta says of itself, proven.
type Summary struct {
	Head Head
	End  End
	// Bytes is the length of the delta.
	Bytes int64
	// Packed is what the carried bytes take in the delta; End.DataBytes is what they are unpacked.
	Packed int64
	// Segments counts the segments with changes.
	Segments int
	// Volumes has one for each member.
	Volumes []VolumeSummary
}

// VolumeSummary is what a delta holds of one volume.
type VolumeSummary struct {
	Data, Holes          int   // records
	DataBytes, HoleBytes int64 // of the volume
	Extents              int   // runs of changed bytes; data and holes that touch are one
	Largest              int64 // of the extents, in bytes
}

// Extent is a run of bytes of a volume that a delta holds.
type Extent struct {
	Volume         int
	Offset, Length int64
	Hole           bool
}

// Verify reads a delta and proves what can be proven without a volume: that every byte is as it was written, that
// nothing is missing, and that each block it holds whole has its digest. visit, if any, is called for each record.
func Verify(ctx context.Context, in io.Reader, visit func(Head, Extent) error) (Summary, error) {
	r, err := NewReader(in)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Head: r.Head(), Volumes: make([]VolumeSummary, len(r.Head().Members))}
	c := counter{into: &s, last: -1}
	err = walk(ctx, r, true, func(m wire.Message) error {
		e, packed := extent(m)
		c.count(e, packed)
		if visit != nil {
			return visit(s.Head, e)
		}
		return nil
	}, step.prove, func(d step) error {
		if d.segment != nil {
			s.Segments++
			return d.ends(s.Head)
		}
		return nil
	})
	if err != nil {
		return Summary{}, err
	}
	s.End, s.Bytes = r.End(), r.at+digest.Size
	return s, nil
}

// walk runs a delta through the three stages of a pipeline to its proven end, and gives windows back.
func walk(ctx context.Context, r *Reader, wide bool, record func(wire.Message) error, work func(step) (step, error), take func(step) error) error {
	a := newAssembler(r, wide)
	a.record = record
	return inOrder(ctx, 2*workers(), a.next, work, func(s step) error {
		if s.window != nil {
			defer s.window.release()
		}
		return take(s)
	})
}

// ends checks the digest of a segment that the delta touched whole.
func (s step) ends(h Head) error {
	n := h.geo(s.segment.Volume).SegmentBlocks(s.segment.Number)
	for b := range n {
		if !s.segment.touched[b] {
			return nil
		}
	}
	if got := digest.Segment(s.segment.next[:n]); got != s.segment.After && s.segment.After != digest.Unknown {
		return &Corrupt{At: s.at, What: "segment has digest " + got.String() + " instead of " + s.segment.After.String()}
	}
	return nil
}

func extent(m wire.Message) (e Extent, packed int) {
	switch m := m.(type) {
	case wire.Data:
		return Extent{Volume: m.Volume, Offset: m.Offset, Length: int64(m.Length)}, len(m.Payload)
	case wire.Hole:
		return Extent{Volume: m.Volume, Offset: m.Offset, Length: m.Length, Hole: true}, 0
	}
	return Extent{}, 0
}

// counter adds records up; it remembers the run of bytes at hand.
type counter struct {
	into *Summary
	last int   // volume
	end  int64 // of the last record
	run  int64 // bytes of the extent that ends there
}

func (c *counter) count(e Extent, packed int) {
	v := &c.into.Volumes[e.Volume]
	if e.Hole {
		v.Holes++
		v.HoleBytes += e.Length
	} else {
		v.Data++
		v.DataBytes += e.Length
		c.into.Packed += int64(packed)
	}
	if e.Volume != c.last || e.Offset != c.end {
		v.Extents++
		c.run = 0
	}
	c.run += e.Length
	c.last, c.end = e.Volume, e.Offset+e.Length
	v.Largest = max(v.Largest, c.run)
}
