package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Segment is the end of a segment with changes: what it holds before and after.
type Segment struct {
	Volume, Number int
	// Base is digest.Unknown when it was not read, and in a full delta.
	Base, After digest.Digest
	// Blocks are the digests at the base of the blocks the records touched, in order; nil in a full delta.
	Blocks []digest.Digest
}

// Item is what a Reader yields: wire.Data, wire.Hole or Segment.
type Item any

// Reader reads a delta front to back and refuses whatever is not one: it checks every frame, their order and limits,
// and at the end the sum over all of it. It does not look into records, see unpacker. A caller must not act on what it
// reads before the end was reached once, but for writing it where nobody looks.
type Reader struct {
	in   *bufio.Reader
	hash *blake3.Hasher
	at   int64
	head Head
	end  *End

	place    place
	segments int
	base     *segmentBase
	counted  End
	payload  []byte
}

// place is how far a delta has been read, as a position in its volumes.
type place struct {
	volume, segment int
	open            bool  // the segment has records and has not ended
	offset          int64 // records before it were taken
	more            bool  // the last record's last block goes on
	touched         int   // blocks of the open segment
}

// NewReader reads the head.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: bufio.NewReaderSize(in, 256<<10), hash: blake3.New(), place: place{segment: -1}}
	_, kind, payload, _, err := r.frame()
	if err != nil {
		return nil, err
	}
	if kind != typeHead {
		return nil, r.corrupt("it does not begin with a head", nil)
	}
	if r.head, err = parseHead(payload); err != nil {
		return nil, r.corrupt("head", err)
	}
	return r, nil
}

// Head is the delta's head. It is protected by a checksum; it is proven once Next has returned io.EOF.
func (r *Reader) Head() Head { return r.head }

// End is known once Next has returned io.EOF.
func (r *Reader) End() End { return *r.end }

// Next is the next item, or io.EOF at the delta's end, proven whole. A Data's Payload is valid until the next call.
func (r *Reader) Next() (Item, error) {
	for {
		own, kind, payload, header, err := r.frame()
		if err != nil {
			return nil, err
		}
		var item Item
		switch {
		case own && kind == typeSegmentBase:
			err = r.segmentBase(payload)
		case own && kind == typeEnd:
			return nil, r.finish(payload)
		case own:
			err = fmt.Errorf("unknown frame %d", kind)
		default:
			item, err = r.message(header, payload)
		}
		if err != nil {
			return nil, r.corrupt("frame", err)
		}
		if item != nil {
			return item, nil
		}
	}
}

func (r *Reader) message(h wire.Header, payload []byte) (Item, error) {
	m, err := wire.Parse(h, payload)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case wire.Data:
		if m.Codec != wire.CodecNone && m.Codec != wire.CodecZstd {
			return nil, fmt.Errorf("codec %d is not known", m.Codec)
		}
		r.counted.Records++
		r.counted.DataBytes += int64(m.Length)
		if err := r.record(m.Volume, m.Offset, int64(m.Length), len(m.Digests), m.More); err != nil {
			return nil, err
		}
		if r.head.Full && !m.WholeBlocks(r.head.Members[m.Volume].Size) {
			return nil, fmt.Errorf("a full delta holds part of a block in the record at %d", m.Offset)
		}
		return m, nil
	case wire.Hole:
		if r.place.more && r.place.offset/digest.BlockSize == m.Offset/digest.BlockSize {
			return nil, errors.New("a hole in a block that goes on")
		}
		r.counted.Records++
		r.counted.HoleBytes += m.Length
		if err := r.record(m.Volume, m.Offset, m.Length, int((m.Length+digest.BlockSize-1)/digest.BlockSize), false); err != nil {
			return nil, err
		}
		if end := m.Offset + m.Length; end%digest.BlockSize != 0 && end != r.head.Members[m.Volume].Size {
			return nil, fmt.Errorf("a hole ends at %d, inside a block", end)
		}
		return m, nil
	case wire.SegmentEnd:
		return r.segmentEnd(m)
	}
	return nil, fmt.Errorf("a %s does not belong here", m.Type())
}

// record moves the place behind a record: it lies in its volume, behind the one before, and in a block that the one
// before had ended, unless that one said that it goes on.
func (r *Reader) record(v int, offset, length int64, blocks int, more bool) error {
	if v >= len(r.head.Members) {
		return fmt.Errorf("volume %d of %d", v, len(r.head.Members))
	}
	size := r.head.Members[v].Size
	end := offset + length
	if end > size || end != size && end%wire.Grain != 0 {
		return fmt.Errorf("a record from %d to %d of volume %d of %d bytes", offset, end, v, size)
	}
	p := &r.place
	s := int(offset / digest.SegmentSize)
	switch {
	case p.open && (v != p.volume || s != p.segment):
		return fmt.Errorf("a record of volume %d at %d before segment %d of volume %d ends", v, offset, p.segment, p.volume)
	case !p.open && (v < p.volume || v == p.volume && s <= p.segment):
		return fmt.Errorf("a record of volume %d at %d behind segment %d of volume %d", v, offset, p.segment, p.volume)
	case r.base != nil:
		return errors.New("a record behind its segment's base")
	case p.open && offset < p.offset:
		return fmt.Errorf("a record at %d behind one that ends at %d", offset, p.offset)
	}
	// The last block of the record before: it goes on here, or it does not, as that one said.
	same := p.open && (p.offset-1)/digest.BlockSize == offset/digest.BlockSize
	if p.open && same != p.more {
		return fmt.Errorf("a record at %d and one that ends at %d do not agree whether that one's last block goes on", offset, p.offset)
	}
	if !p.open {
		*p = place{volume: v, segment: s, open: true}
	}
	p.offset, p.more = end, more
	p.touched += blocks
	return nil
}

func (r *Reader) segmentBase(payload []byte) error {
	b, err := parseSegmentBase(payload)
	p := &r.place
	switch {
	case err != nil:
		return err
	case r.head.Full:
		return errors.New("a full delta with the base of a segment")
	case !p.open || r.base != nil || b.volume != p.volume || b.segment != p.segment:
		return fmt.Errorf("the base of segment %d of volume %d does not belong here", b.segment, b.volume)
	case len(b.blocks) != p.touched:
		return fmt.Errorf("%d digests at the base for %d blocks", len(b.blocks), p.touched)
	}
	r.base = &b
	return nil
}

func (r *Reader) segmentEnd(m wire.SegmentEnd) (Item, error) {
	p := &r.place
	out := Segment{Volume: m.Volume, Number: m.Segment, After: m.Digest, Base: digest.Unknown}
	switch {
	case !p.open || m.Volume != p.volume || m.Segment != p.segment || p.more:
		return nil, fmt.Errorf("the end of segment %d of volume %d does not belong here", m.Segment, m.Volume)
	case r.base != nil:
		out.Base, out.Blocks = r.base.digest, r.base.blocks
	case !r.head.Full:
		return nil, fmt.Errorf("segment %d of volume %d has no base", m.Segment, m.Volume)
	case p.touched != r.head.geo(m.Volume).SegmentBlocks(m.Segment):
		return nil, fmt.Errorf("a full delta holds %d blocks of segment %d of volume %d", p.touched, m.Segment, m.Volume)
	}
	p.open, p.touched, r.base = false, 0, nil
	r.segments++
	return out, nil
}

// finish reads the end and the sum. It returns io.EOF when all is well.
func (r *Reader) finish(payload []byte) error {
	end, err := parseEnd(payload)
	n := len(r.head.Members)
	switch {
	case err != nil:
	case r.place.open:
		err = fmt.Errorf("segment %d of volume %d has not ended", r.place.segment, r.place.volume)
	case len(end.After) != n:
		err = fmt.Errorf("roots of %d volumes instead of %d", len(end.After), n)
	case end.Closing != closing(&r.head, end.Base, end.After):
		err = errors.New("the closing digest is not that of head and roots")
	case end.Records != r.counted.Records || end.DataBytes != r.counted.DataBytes || end.HoleBytes != r.counted.HoleBytes:
		err = fmt.Errorf("%d records were written, %d are here", end.Records, r.counted.Records)
	case r.head.Full && r.segments != r.allSegments():
		err = fmt.Errorf("a full delta holds %d of %d segments", r.segments, r.allSegments())
	}
	if err != nil {
		return r.corrupt("end", err)
	}
	end.Sum = digest.Digest(r.hash.Sum(nil))
	var sum digest.Digest
	if _, err := io.ReadFull(r.in, sum[:]); err != nil {
		return r.failed(err)
	}
	if sum != end.Sum {
		return r.corrupt(fmt.Sprintf("its sum is %s, its end says %s", end.Sum, sum), nil)
	}
	if _, err := r.in.ReadByte(); err == nil {
		return r.corrupt("something follows its end", nil)
	} else if !errors.Is(err, io.EOF) {
		return r.failed(err)
	}
	r.end = &end
	return io.EOF
}

func (r *Reader) allSegments() int {
	n := 0
	for v := range r.head.Members {
		n += r.head.geo(v).Segments()
	}
	return n
}

// frame reads the next frame, of this package or of package wire, and checks its header and sum.
func (r *Reader) frame() (own bool, kind byte, payload []byte, h wire.Header, err error) {
	var head [headerSize]byte
	if err := r.read(head[:]); err != nil {
		return false, 0, nil, h, err
	}
	own = string(head[:4]) == frameMagic
	length := int(binary.LittleEndian.Uint32(head[8:]))
	switch {
	case !own && r.at == headerSize:
		return false, 0, nil, h, r.corrupt("it does not begin as a delta does", nil)
	case own && length > maxFrame:
		return false, 0, nil, h, r.corrupt(fmt.Sprintf("a frame of %d bytes", length), nil)
	case !own:
		if h, err = wire.ParseHeader(head[:]); err == nil && h.Version != wireVersion {
			err = fmt.Errorf("a record of protocol %d", h.Version)
		}
		if err != nil {
			return false, 0, nil, h, r.corrupt("frame", err)
		}
	}
	if cap(r.payload) < length {
		r.payload = make([]byte, max(length, 64<<10))
		if length > 64<<10 {
			r.payload = make([]byte, wire.MaxPayload)
		}
	}
	payload = r.payload[:length]
	if err := r.read(payload); err != nil {
		return false, 0, nil, h, err
	}
	if own {
		sum := crc32.Update(crc32.Checksum(head[:12], castagnoli), castagnoli, payload)
		if sum != binary.LittleEndian.Uint32(head[12:]) {
			return false, 0, nil, h, r.corrupt("a frame's checksum differs", nil)
		}
		if head[4] != formatVersion {
			return false, 0, nil, h, &TooNew{Version: head[4]}
		}
	}
	return own, head[5], payload, h, nil
}

func (r *Reader) read(p []byte) error {
	if _, err := io.ReadFull(r.in, p); err != nil {
		return r.failed(err)
	}
	_, _ = r.hash.Write(p)
	r.at += int64(len(p))
	return nil
}

// failed tells a delta that ends early from one that cannot be read.
func (r *Reader) failed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return r.corrupt("it ends here", nil)
	}
	return fmt.Errorf("read delta: %w", err)
}

func (r *Reader) corrupt(what string, err error) error {
	return &Corrupt{At: r.at, What: what, Err: err}
}
