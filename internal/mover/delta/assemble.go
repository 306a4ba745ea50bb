package delta

import (
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// step is one of the three things a delta is made of, in the order of volumes and offsets.
type step struct {
	window  *window    // what the delta holds of one MiB
	hole    *wire.Hole // whole windows that are zero, in one segment
	segment *segmentStep
	of      *segmentStep // the segment it belongs to, which ends later
	at      int64        // byte of the delta before which it lies
}

// segmentStep is the end of a segment and which of its blocks the delta touched.
type segmentStep struct {
	Segment
	touched [digest.BlocksPerSegment]bool
	next    [digest.BlocksPerSegment]digest.Digest // of the touched ones
	found   finding
}

// finding is what a segment of a volume holds, for whoever looks.
type finding struct {
	// blocks are the digests of its blocks.
	blocks [digest.BlocksPerSegment]digest.Digest
	// unfit marks blocks that do not come to their digest when the delta is laid over them.
	unfit [digest.BlocksPerSegment]bool
}

// before orders steps of two deltas of the same volumes; a segment's end is behind its windows.
func (s step) before(o step) bool {
	v, offset := s.place()
	w, other := o.place()
	return v < w || v == w && offset < other
}

// place is where the step ends.
func (s step) place() (v int, end int64) {
	switch {
	case s.window != nil:
		return s.window.volume, s.window.offset
	case s.hole != nil:
		return s.hole.Volume, s.hole.Offset
	}
	return s.segment.Volume, int64(s.segment.Number)*digest.SegmentSize + digest.SegmentSize - 1
}

// assembler turns the items of a Reader into steps.
type assembler struct {
	in   *Reader
	wide bool // whole windows of a hole come as one step
	// record, if any, is called for each record as it is read.
	record func(wire.Message) error

	window  *window // being filled
	item    Item    // taken from it up to at
	at, end int64
	raw     []byte // of a Data
	scratch []byte
	segment *segmentStep // being filled
}

func newAssembler(in *Reader, wide bool) *assembler { return &assembler{in: in, wide: wide} }

// next is the next step, or io.EOF when the delta was read whole.
func (a *assembler) next() (step, error) {
	for {
		if a.item == nil {
			if err := a.take(); err != nil {
				return step{}, err
			}
		}
		if s, ok := a.item.(Segment); ok {
			if a.window != nil {
				return a.flush(), nil
			}
			done := a.segment
			done.Segment = s
			a.item, a.segment = nil, nil
			return step{segment: done, of: done, at: a.in.at}, nil
		}
		v, size := a.volume()
		start := a.at - a.at%windowSize
		if a.window != nil && a.window.offset != start {
			return a.flush(), nil
		}
		if hole, ok := a.item.(wire.Hole); ok && a.wide && a.window == nil {
			if whole := a.wholeWindows(hole, size); whole != nil {
				return step{hole: whole, of: a.segment, at: a.in.at}, nil
			}
		}
		if a.window == nil {
			a.window = newWindow(v, start, size)
		}
		switch m := a.item.(type) {
		case wire.Data:
			a.window.put(m, a.raw)
		case wire.Hole:
			a.window.putHole(m)
		}
		a.advance(min(a.end, start+windowSize))
	}
}

// take reads the next item.
func (a *assembler) take() error {
	item, err := a.in.Next()
	if err != nil {
		return err
	}
	a.item = item
	switch m := item.(type) {
	case wire.Data:
		a.at, a.end = m.Offset, m.Offset+int64(m.Length)
		if a.scratch == nil && m.Codec != wire.CodecNone {
			a.scratch = make([]byte, windowSize)
		}
		if a.raw, err = unpack(m, a.scratch); err != nil {
			return a.in.corrupt("record", err)
		}
	case wire.Hole:
		a.at, a.end = m.Offset, m.Offset+m.Length
	}
	if a.segment == nil {
		a.segment = &segmentStep{}
	}
	if m, ok := item.(wire.Message); ok && a.record != nil {
		return a.record(m)
	}
	return nil
}

func (a *assembler) volume() (v int, size int64) {
	switch m := a.item.(type) {
	case wire.Data:
		v = m.Volume
	case wire.Hole:
		v = m.Volume
	}
	return v, a.in.head.Members[v].Size
}

// wholeWindows takes as many whole windows of a hole as there are at once.
func (a *assembler) wholeWindows(m wire.Hole, size int64) *wire.Hole {
	to := a.end - a.end%windowSize
	if a.end == size {
		to = size
	}
	if a.at%windowSize != 0 || to <= a.at {
		return nil
	}
	out := wire.Hole{Volume: m.Volume, Offset: a.at, Length: to - a.at}
	for b := a.at % digest.SegmentSize / digest.BlockSize; b*digest.BlockSize < a.at%digest.SegmentSize+out.Length; b++ {
		a.segment.touched[b] = true
	}
	a.advance(to)
	return &out
}

func (a *assembler) advance(to int64) {
	a.at = to
	if a.at == a.end {
		a.item = nil
	}
}

func (a *assembler) flush() step {
	w := a.window
	a.window = nil
	for b := range w.blocks() {
		if w.cover(b) != untouched {
			a.segment.touched[w.block(b)], a.segment.next[w.block(b)] = true, w.next[b]
		}
	}
	return step{window: w, of: a.segment, at: a.in.at}
}

// prove is a window's own proof as a stage of a pipeline.
func (s step) prove() (step, error) {
	if s.window != nil {
		if err := s.window.prove(); err != nil {
			return s, &Corrupt{At: s.at, What: "record", Err: err}
		}
	}
	return s, nil
}
