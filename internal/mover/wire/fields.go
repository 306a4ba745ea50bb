package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

var errCut = errors.New("fields are cut short")

// appendText appends a string as its length (u16) and bytes, shortened to limit.
func appendText(b []byte, s string, limit int) []byte {
	if len(s) > limit {
		s = s[:limit]
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendDigests(b []byte, digests []digest.Digest) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(digests)))
	for i := range digests {
		b = append(b, digests[i][:]...)
	}
	return b
}

func appendFlag(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// reader takes fields off a payload's front; after the first mistake it yields zero values and keeps the mistake.
type reader struct {
	b       []byte
	version int // of the frame
	err     error
}

// ended reports that no fields are left: the message was made by an older version.
func (r *reader) ended() bool { return len(r.b) == 0 }

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.err = errCut
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) flag() bool { return r.u8() != 0 }

// count reads a u16 that may not exceed limit.
func (r *reader) count(limit int, what string) int {
	n := int(r.u16())
	if r.err == nil && n > limit {
		r.err = fmt.Errorf("%d %s, at most %d are allowed", n, what, limit)
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) text(limit int, what string) string {
	return string(r.take(r.count(limit, "bytes of "+what)))
}

// bytesIn reads a position or size in a volume.
func (r *reader) bytesIn(what string) int64 {
	v := r.u64()
	if r.err == nil && v > MaxVolumeSize {
		r.err = fmt.Errorf("%s %d is beyond the largest volume", what, v)
	}
	if r.err != nil {
		return 0
	}
	return int64(v)
}

func (r *reader) volume() int { return int(r.u16()) }

func (r *reader) digest() (d digest.Digest) {
	copy(d[:], r.take(digest.Size))
	return d
}

func (r *reader) digests() []digest.Digest {
	n := r.count(MaxDigests, "digests")
	raw := r.take(n * digest.Size)
	if raw == nil {
		return nil
	}
	out := make([]digest.Digest, n)
	for i := range out {
		copy(out[i][:], raw[i*digest.Size:])
	}
	return out
}
