package delta

import (
	"context"
	"fmt"
	"io"
	"sync"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// check reads what the delta is about to change and compares it with the base. already: everything is as it shall be.
func (a *application) check(ctx context.Context) (already bool, err error) {
	if a.head.Full {
		return false, nil
	}
	c := &checker{application: a, already: true, base: make([][]digest.Digest, len(a.targets))}
	for v := range a.targets {
		if a.options.Full && a.end.Base[v] == digest.Unknown {
			return false, &NotKnown{Volume: a.targets[v].Name, What: "the delta does not say what the whole volume holds at its base; check only what changes, or export with the base's digest map"}
		}
		c.base[v] = make([]digest.Digest, a.head.geo(v).Segments())
		for s := range c.base[v] {
			c.base[v][s] = digest.Unknown
		}
	}
	if err := a.pass(ctx, c.look, c.judge); err != nil {
		return false, err
	}
	if a.options.Full {
		for v := range a.targets {
			if err := c.whole(ctx, v); err != nil {
				return false, err
			}
		}
	}
	return c.already, nil
}

// checker compares volumes with a delta. look runs side by side, judge in order.
type checker struct {
	*application
	already bool
	base    [][]digest.Digest // of segments, as far as they were found; by volume
}

var blockBuffers = sync.Pool{New: func() any { b := volume.Buffer(windowSize); return &b }}

func (c *checker) look(s step) (step, error) {
	memory := blockBuffers.Get().(*[]byte)
	defer blockBuffers.Put(memory)
	var err error
	switch {
	case s.window != nil:
		err = c.lookAtWindow(s, *memory)
	case s.hole != nil:
		err = c.lookAtHole(s, *memory)
	case s.segment.Base != digest.Unknown || s.segment.After != digest.Unknown:
		err = c.lookAtRest(s, *memory)
	}
	return s, err
}

// read digests a run of whole blocks of a volume, a window's length at most.
func (c *checker) read(v int, offset, length int64, buf []byte) ([]digest.Digest, error) {
	if err := readFull(c.targets[v].Volume, c.targets[v].Name, buf[:length], offset); err != nil {
		return nil, err
	}
	return digest.Blocks(buf[:length]), nil
}

// lookAtWindow reads the blocks that a window touches, run by run, and tries the delta on them.
func (c *checker) lookAtWindow(s step, buf []byte) error {
	w, f := s.window, &s.of.found
	for b := 0; b < w.blocks(); b++ {
		if w.cover(b) == untouched {
			continue
		}
		last := b
		for last+1 < w.blocks() && w.cover(last+1) != untouched {
			last++
		}
		from, _ := w.span(b)
		_, to := w.span(last)
		blocks, err := c.read(w.volume, w.offset+int64(from), int64(to-from), buf)
		if err != nil {
			return err
		}
		for i, d := range blocks {
			f.blocks[w.block(b+i)] = d
			if w.cover(b+i) == partly {
				at, end := w.span(b + i)
				p := buf[at-from : end-from]
				w.onto(b+i, p)
				f.unfit[w.block(b+i)] = digest.Block(p) != w.next[b+i]
			}
		}
		b = last
	}
	return nil
}

func (c *checker) lookAtHole(s step, buf []byte) error {
	f, h := &s.of.found, s.hole
	for at := h.Offset; at < h.Offset+h.Length; at += windowSize {
		blocks, err := c.read(h.Volume, at, min(windowSize, h.Offset+h.Length-at), buf)
		if err != nil {
			return err
		}
		copy(f.blocks[at%digest.SegmentSize/digest.BlockSize:], blocks)
	}
	return nil
}

// lookAtRest reads the blocks of a segment that the delta does not touch.
func (c *checker) lookAtRest(s step, buf []byte) error {
	f, g := &s.of.found, c.head.geo(s.segment.Volume)
	n := g.SegmentBlocks(s.segment.Number)
	for b := 0; b < n; b++ {
		if s.segment.touched[b] {
			continue
		}
		end := b + 1
		for end < n && !s.segment.touched[end] && end-b < windowBlocks {
			end++
		}
		from, _ := blockExtent(g, s.segment.Number, b)
		last, length := blockExtent(g, s.segment.Number, end-1)
		blocks, err := c.read(s.segment.Volume, from, last+length-from, buf)
		if err != nil {
			return err
		}
		copy(f.blocks[b:], blocks)
		b = end - 1
	}
	return nil
}

// judge decides on a segment once everything of it was looked at.
func (c *checker) judge(s step) error {
	if s.segment == nil {
		return nil
	}
	f := &s.of.found
	d, g := s.segment, c.head.geo(s.segment.Volume)
	n := g.SegmentBlocks(d.Number)
	before, after := f.blocks, f.blocks
	i := 0
	for b := range n {
		if !d.touched[b] {
			continue
		}
		before[b], after[b] = d.Blocks[i], d.next[b]
		i++
		if err := c.judgeBlock(s, f, b, before[b]); err != nil {
			return err
		}
	}
	if d.Base == digest.Unknown && d.After == digest.Unknown {
		return nil
	}
	base := digest.Segment(before[:n])
	if d.Base != digest.Unknown && base != d.Base {
		return c.wrong(d.Volume, g.SegmentStart(d.Number), g.SegmentLen(d.Number), d.Base, base)
	}
	if got := digest.Segment(after[:n]); d.After != digest.Unknown && got != d.After {
		return &Corrupt{At: s.at, What: fmt.Sprintf("segment %d of volume %s would come to %s instead of %s", d.Number, c.targets[d.Volume].Name, got, d.After)}
	}
	c.base[d.Volume][d.Number] = base
	return nil
}

// judgeBlock accepts a block that is at the base or at the point, and one that is torn between them where that may be.
func (c *checker) judgeBlock(s step, f *finding, b int, base digest.Digest) error {
	d := s.segment
	found, next := f.blocks[b], d.next[b]
	if found != next {
		c.already = false
	}
	offset, length := blockExtent(c.head.geo(d.Volume), d.Number, b)
	known := base != digest.Unknown
	switch {
	case found == next:
		return nil
	case f.unfit[b] && known && found == base:
		return &Corrupt{At: s.at, What: fmt.Sprintf("block of volume %s at %d would not come to %s", c.targets[d.Volume].Name, offset, next)}
	case !f.unfit[b] && (!known || found == base || c.torn):
		return nil
	}
	err := c.wrong(d.Volume, offset, length, base, found)
	err.Torn = !f.unfit[b]
	return err
}

func (c *checker) wrong(v int, offset, length int64, expected, found digest.Digest) *WrongBase {
	return &WrongBase{Volume: c.targets[v].Name, Offset: offset, Length: length, Expected: expected, Found: found, Base: c.head.Base}
}

// whole reads the segments of a volume that the delta does not touch, and compares the volume's root.
func (c *checker) whole(ctx context.Context, v int) error {
	g, t, next := c.head.geo(v), c.targets[v], 0
	segments := c.base[v]
	err := inOrder(ctx, 2*workers(), func() (int, error) {
		for next < len(segments) && segments[next] != digest.Unknown {
			next++
		}
		if next == len(segments) {
			return 0, io.EOF
		}
		next++
		return next - 1, nil
	}, func(s int) (struct{}, error) {
		memory := blockBuffers.Get().(*[]byte)
		defer blockBuffers.Put(memory)
		blocks := make([]digest.Digest, 0, g.SegmentBlocks(s))
		start := g.SegmentStart(s)
		for at := start; at < start+g.SegmentLen(s); at += windowSize {
			part, err := c.read(v, at, min(windowSize, start+g.SegmentLen(s)-at), *memory)
			if err != nil {
				return struct{}{}, err
			}
			blocks = append(blocks, part...)
		}
		// Each worker has its own element.
		segments[s] = digest.Segment(blocks)
		return struct{}{}, nil
	}, func(struct{}) error { return nil })
	if err != nil {
		return err
	}
	if got := digest.Root(segments); got != c.end.Base[v] {
		return &WrongBase{Volume: t.Name, Length: g.Size, Expected: c.end.Base[v], Found: got, Base: c.head.Base}
	}
	return nil
}
