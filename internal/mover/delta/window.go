package delta

import (
	"fmt"
	"sync"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

const (
	windowSize     = wire.MaxRecord
	windowBlocks   = windowSize / digest.BlockSize
	windowGrains   = windowSize / wire.Grain
	blockGrains    = digest.BlockSize / wire.Grain
	segmentWindows = digest.SegmentSize / windowSize
)

// window is what a delta holds of one aligned MiB of a volume: the unit of work. It never crosses a segment.
//
// Invariant: a block is touched if and only if one of its grains is set; next is meaningful for touched blocks only.
// A hole is a block that is set whole, is zero, and has nothing in data.
type window struct {
	volume int
	offset int64 // a multiple of windowSize
	length int   // windowSize, or less at the volume's end
	data   []byte
	set    [windowGrains]bool
	hole   [windowBlocks]bool
	next   [windowBlocks]digest.Digest
	packed []byte // memory for the packed form
}

var windows = sync.Pool{New: func() any { return &window{data: volume.Buffer(windowSize)} }}

// newWindow is an empty window; its data holds anything.
func newWindow(v int, offset, size int64) *window {
	w := windows.Get().(*window)
	w.volume, w.offset, w.length = v, offset, int(min(windowSize, size-offset))
	w.set, w.hole = [windowGrains]bool{}, [windowBlocks]bool{}
	return w
}

// release gives the memory back.
func (w *window) release() { windows.Put(w) }

func (w *window) segment() int { return int(w.offset / digest.SegmentSize) }

// blocks is how many blocks the window has; the last may be short.
func (w *window) blocks() int { return (w.length + digest.BlockSize - 1) / digest.BlockSize }

// span is where block b lies in data.
func (w *window) span(b int) (from, to int) {
	return b * digest.BlockSize, min((b+1)*digest.BlockSize, w.length)
}

// grains is where block b's grains lie in set.
func (w *window) grains(b int) (from, to int) {
	from, to = w.span(b)
	return from / wire.Grain, (to + wire.Grain - 1) / wire.Grain
}

// block is the number of the window's block b in its segment.
func (w *window) block(b int) int {
	return int(w.offset%digest.SegmentSize)/digest.BlockSize + b
}

// cover is how much of a block a delta holds.
type cover int

const (
	untouched cover = iota
	partly
	wholly
)

func (w *window) cover(b int) cover {
	from, to := w.grains(b)
	n := 0
	for _, set := range w.set[from:to] {
		if set {
			n++
		}
	}
	switch n {
	case 0:
		return untouched
	case to - from:
		return wholly
	}
	return partly
}

// setAll marks the whole of block b.
func (w *window) setAll(b int) {
	from, to := w.grains(b)
	for g := from; g < to; g++ {
		w.set[g] = true
	}
}

// setHole makes block b a hole.
func (w *window) setHole(b int) {
	w.setAll(b)
	w.hole[b], w.next[b] = true, digest.Zero
}

// prove checks the blocks the window holds whole against their digests.
func (w *window) prove() error {
	for b := range w.blocks() {
		if w.hole[b] || w.cover(b) != wholly {
			continue
		}
		from, to := w.span(b)
		if got := digest.Block(w.data[from:to]); got != w.next[b] {
			return fmt.Errorf("block of volume %d at %d has digest %s instead of %s", w.volume, w.offset+int64(from), got, w.next[b])
		}
	}
	return nil
}

// records cuts the window into the records that carry it, in order: whole zero blocks as holes, runs of grains as
// data that alias the window's memory.
func (w *window) records() []wire.Message {
	var out []wire.Message
	grains := (w.length + wire.Grain - 1) / wire.Grain
	for g := 0; g < grains; {
		b := g / blockGrains
		switch {
		case !w.set[g]:
			g++
		case w.hole[b]:
			from, to := w.span(b)
			out = append(out, wire.Hole{Volume: w.volume, Offset: w.offset + int64(from), Length: int64(to - from)})
			_, g = w.grains(b)
		default:
			end := g
			for end < grains && w.set[end] && !w.hole[end/blockGrains] {
				end++
			}
			out = append(out, w.dataRecord(g, end))
			g = end
		}
	}
	return out
}

// dataRecord is the record of the grains from g to end.
func (w *window) dataRecord(g, end int) wire.Data {
	from, to := g*wire.Grain, min(end*wire.Grain, w.length)
	first, last := g/blockGrains, (end-1)/blockGrains
	m := wire.Data{Volume: w.volume, Offset: w.offset + int64(from), Length: to - from, Payload: w.data[from:to]}
	// A later run in the last block: its digest comes with that one.
	_, blockEnd := w.grains(last)
	for _, set := range w.set[end:blockEnd] {
		m.More = m.More || set
	}
	if m.More {
		last--
	}
	m.Digests = append([]digest.Digest(nil), w.next[first:last+1]...)
	return m
}

// put takes the part of a record that lies in the window, p being the record's bytes, unpacked.
func (w *window) put(m wire.Data, p []byte) {
	for i, d := range m.Digests {
		at := (m.Offset/digest.BlockSize+int64(i))*digest.BlockSize - w.offset
		if at >= 0 && at < int64(w.length) {
			w.next[at/digest.BlockSize] = d
		}
	}
	from, to := w.clip(m.Offset, int64(m.Length))
	copy(w.data[from:to], p[w.offset+from-m.Offset:])
	for g := from / wire.Grain; g < (to+wire.Grain-1)/wire.Grain; g++ {
		w.set[g] = true
	}
}

// putHole takes the part of a hole that lies in the window.
func (w *window) putHole(m wire.Hole) {
	from, to := w.clip(m.Offset, m.Length)
	for b := from / digest.BlockSize; b < (to+digest.BlockSize-1)/digest.BlockSize; b++ {
		w.setHole(int(b))
	}
}

// clip is the part of an extent that lies in the window, as it lies in data.
func (w *window) clip(offset, length int64) (from, to int64) {
	return max(offset-w.offset, 0), min(offset+length-w.offset, int64(w.length))
}

// over lays a later window on top of w: what both hold is as the later one has it.
func (w *window) over(later *window) {
	for b := range later.blocks() {
		switch {
		case later.cover(b) == untouched:
			continue
		case later.hole[b]:
			w.setHole(b)
			continue
		}
		from, to := w.span(b)
		if w.hole[b] {
			clear(w.data[from:to])
			w.hole[b] = false
		}
		later.onto(b, w.data[from:to])
		for g, end := w.grains(b); g < end; g++ {
			w.set[g] = w.set[g] || later.set[g]
		}
		w.next[b] = later.next[b]
		if w.next[b] == digest.Zero && w.cover(b) == wholly {
			w.setHole(b)
		}
	}
}

// onto writes what the window holds of block b into p, the block's bytes.
func (w *window) onto(b int, p []byte) {
	if w.hole[b] {
		clear(p)
		return
	}
	start, _ := w.span(b)
	from, to := w.grains(b)
	for g := from; g < to; g++ {
		if w.set[g] {
			at, end := g*wire.Grain, min((g+1)*wire.Grain, w.length)
			copy(p[at-start:end-start], w.data[at:end])
		}
	}
}
