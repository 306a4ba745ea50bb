package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// A delta is frames, one behind the other, and one sum:
//
//	+------+----------------------------------------------+-----+--------------+
//	| Head | for each segment with changes, in order:     | End | sum          |
//	|      | (Data | Hole)..., SegmentBase, SegmentEnd    |     | BLAKE3, 32   |
//	+------+----------------------------------------------+-----+--------------+
//
// Data, Hole and SegmentEnd are frames of package wire. Head, SegmentBase and End are frames of this package, all
// integers little endian:
//
//	 0      4    5    6      8        12        16
//	+------+----+----+------+--------+---------+----------------+
//	| LBdf | ver| typ| zero | length | crc32c  | payload        |
//	+------+----+----+------+--------+---------+----------------+
//
// length is the payload's; crc32c (Castagnoli) covers the first 12 bytes and the payload. Bytes after the last known
// field of a payload are ignored. The sum covers every byte before it; nothing follows it.
const (
	frameMagic    = "LBdf"
	formatVersion = 1
	headerSize    = 16
	// maxFrame bounds a payload of this package: a head with every volume a group may have.
	maxFrame = 1 << 18

	typeHead        = 1
	typeSegmentBase = 2
	typeEnd         = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendFrame(b []byte, kind byte, payload []byte) []byte {
	start := len(b)
	b = append(b, frameMagic...)
	b = append(b, formatVersion, kind, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	sum := crc32.Update(crc32.Checksum(b[start:], castagnoli), castagnoli, payload)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, payload...)
}

// payload of a Head:
//
//	+------------------+-----------+-----------+------------+---------------+-----------+----------------------------+
//	| replication text | full flag | base text | point text | instant (i64) | count u16 | count x (name text, size u64)|
//	+------------------+-----------+-----------+------------+---------------+-----------+----------------------------+
//
// A text is its length (u16) and bytes; a flag is one byte; an instant is nanoseconds since 1970 UTC, 0 when unknown.
func (h *Head) payload() []byte {
	b := appendText(nil, h.Replication)
	b = appendFlag(b, h.Full)
	b = appendText(b, h.Base)
	b = appendText(b, h.Point)
	var instant int64
	if !h.PointTime.IsZero() {
		instant = h.PointTime.UnixNano()
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(instant))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.Members)))
	for _, m := range h.Members {
		b = appendText(b, m.Name)
		b = binary.LittleEndian.AppendUint64(b, uint64(m.Size))
	}
	return b
}

func parseHead(payload []byte) (Head, error) {
	r := fields{b: payload}
	h := Head{Replication: r.text(), Full: r.flag(), Base: r.text(), Point: r.text()}
	if instant := int64(r.u64()); instant != 0 {
		h.PointTime = time.Unix(0, instant).UTC()
	}
	for n := r.u16(); n > 0 && r.err == nil; n-- {
		name, size := r.text(), r.u64()
		h.Members = append(h.Members, wire.Member{Name: name, Size: int64(min(size, wire.MaxVolumeSize+1))})
	}
	if r.err != nil {
		return h, r.err
	}
	return h, h.check()
}

// segmentBase is what a segment holds at the base: its own digest and those of the blocks its records touch, in
// order. digest.Unknown: it was not read. A full delta has none.
//
//	+------------+---------------+-------------+-----------+------------------+
//	| volume u16 | segment (u32) | digest (32) | count u16 | count x digest   |
//	+------------+---------------+-------------+-----------+------------------+
type segmentBase struct {
	volume  int
	segment int
	digest  digest.Digest
	blocks  []digest.Digest
}

func (s *segmentBase) payload() []byte {
	b := make([]byte, 0, 40+len(s.blocks)*digest.Size)
	b = binary.LittleEndian.AppendUint16(b, uint16(s.volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(s.segment))
	b = append(b, s.digest[:]...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s.blocks)))
	for i := range s.blocks {
		b = append(b, s.blocks[i][:]...)
	}
	return b
}

func parseSegmentBase(payload []byte) (segmentBase, error) {
	r := fields{b: payload}
	s := segmentBase{volume: int(r.u16()), segment: int(r.u32()), digest: r.digest()}
	n := int(r.u16())
	if n > digest.BlocksPerSegment {
		return s, fmt.Errorf("%d digests for a segment", n)
	}
	for ; n > 0 && r.err == nil; n-- {
		s.blocks = append(s.blocks, r.digest())
	}
	return s, r.err
}

// payload of an End:
//
//	+---------------+------------------+------------------+-----------+------------------------------+--------------+
//	| records (u64) | data bytes (u64) | hole bytes (u64) | count u16 | count x (base, after digests)| closing (32) |
//	+---------------+------------------+------------------+-----------+------------------------------+--------------+
//
// The digests are the volumes' roots, by member. They stand at the end because they are known only when everything
// has been read, and a delta is written in one go.
func (e *End) payload() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(e.Records))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.DataBytes))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.HoleBytes))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(e.After)))
	for v := range e.After {
		b = append(b, e.Base[v][:]...)
		b = append(b, e.After[v][:]...)
	}
	return append(b, e.Closing[:]...)
}

func parseEnd(payload []byte) (End, error) {
	r := fields{b: payload}
	e := End{Records: int64(r.u64()), DataBytes: int64(r.u64()), HoleBytes: int64(r.u64())}
	for n := r.u16(); n > 0 && r.err == nil; n-- {
		e.Base, e.After = append(e.Base, r.digest()), append(e.After, r.digest())
	}
	e.Closing = r.digest()
	return e, r.err
}

// closing digests what a delta is about: the head's payload and the roots.
func closing(h *Head, base, after []digest.Digest) digest.Digest {
	b := append([]byte("lifeboat delta file 1"), h.payload()...)
	for v := range after {
		b = append(b, base[v][:]...)
		b = append(b, after[v][:]...)
	}
	return blake3.Sum256(b)
}

func appendText(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendFlag(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

var errCut = errors.New("fields are cut short")

// fields takes fields off a payload's front; after the first mistake it yields zero values and keeps the mistake.
type fields struct {
	b   []byte
	err error
}

func (r *fields) take(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.err = errCut
	}
	if r.err != nil {
		return make([]byte, min(n, digest.Size))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *fields) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *fields) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *fields) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *fields) flag() bool  { return r.take(1)[0] != 0 }

func (r *fields) text() string {
	n := int(r.u16())
	if r.err == nil && n > wire.MaxName {
		r.err = fmt.Errorf("a text of %d bytes, at most %d are allowed", n, wire.MaxName)
	}
	return string(r.take(n))
}

func (r *fields) digest() digest.Digest { return digest.Digest(r.take(digest.Size)) }
