package delta

import (
	"bufio"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// wireVersion is that of the frames of package wire in format 1.
const wireVersion = 2

// Writer writes a delta: records of a segment in order, then EndSegment, segment after segment in order, then Close.
// Anything out of order is a mistake of the caller and panics. A write that fails ends it.
type Writer struct {
	out  *bufio.Writer
	hash *blake3.Hasher
	head Head
	end  End

	hole    wire.Hole // not written yet, it may grow; Length 0: none
	touched int       // blocks of the segment at hand
	scratch []byte
	err     error
}

// NewWriter writes the head.
func NewWriter(out io.Writer, h Head) (*Writer, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("head of a delta: %w", err)
	}
	w := &Writer{hash: blake3.New(), head: h}
	w.out = bufio.NewWriterSize(io.MultiWriter(out, w.hash), 1<<20)
	w.frame(typeHead, h.payload())
	return w, w.err
}

// Record adds a record of the segment at hand. Holes that touch become one.
func (w *Writer) Record(m wire.Message) error {
	switch m := m.(type) {
	case wire.Hole:
		if w.hole.Length > 0 && w.hole.Volume == m.Volume && w.hole.Offset+w.hole.Length == m.Offset {
			w.hole.Length += m.Length
			break
		}
		w.flushHole()
		w.hole = m
	case wire.Data:
		w.flushHole()
		w.end.Records++
		w.end.DataBytes += int64(m.Length)
		w.touched += len(m.Digests)
		w.message(m)
	default:
		panic(fmt.Sprintf("delta: %s is no record", m.Type()))
	}
	return w.err
}

// EndSegment ends the segment at hand: what it holds at the base and at the point, and at the base each of the blocks
// that records touched, in order.
func (w *Writer) EndSegment(v, s int, base, after digest.Digest, blocks []digest.Digest) error {
	w.flushHole()
	if !w.head.Full {
		if len(blocks) != w.touched {
			panic(fmt.Sprintf("delta: %d digests for %d blocks", len(blocks), w.touched))
		}
		b := segmentBase{volume: v, segment: s, digest: base, blocks: blocks}
		w.frame(typeSegmentBase, b.payload())
	}
	w.touched = 0
	w.message(wire.SegmentEnd{Volume: v, Segment: s, Digest: after})
	return w.err
}

// Close ends the delta with the roots of the volumes, see End. Without it there is none.
func (w *Writer) Close(base, after []digest.Digest) (End, error) {
	w.end.Base, w.end.After = base, after
	w.end.Closing = closing(&w.head, base, after)
	w.frame(typeEnd, w.end.payload())
	w.keep(w.out.Flush())
	if w.err == nil {
		w.end.Sum = digest.Digest(w.hash.Sum(nil))
		_, err := w.out.Write(w.end.Sum[:])
		w.keep(err)
		w.keep(w.out.Flush())
	}
	return w.end, w.err
}

func (w *Writer) flushHole() {
	if w.hole.Length == 0 {
		return
	}
	w.end.Records++
	w.end.HoleBytes += w.hole.Length
	w.touched += int((w.hole.Length + digest.BlockSize - 1) / digest.BlockSize)
	w.message(w.hole)
	w.hole = wire.Hole{}
}

func (w *Writer) frame(kind byte, payload []byte) {
	w.scratch = appendFrame(w.scratch[:0], kind, payload)
	w.write(w.scratch)
}

func (w *Writer) message(m wire.Message) {
	head, body := wire.EncodeAs(w.scratch[:0], m, wireVersion)
	w.scratch = head
	w.write(head)
	w.write(body)
}

func (w *Writer) write(b []byte) {
	if w.err == nil {
		_, err := w.out.Write(b)
		w.keep(err)
	}
}

func (w *Writer) keep(err error) {
	if w.err == nil && err != nil {
		w.err = fmt.Errorf("write delta: %w", err)
	}
}
