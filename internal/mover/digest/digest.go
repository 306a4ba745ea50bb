// Package digest says what a volume holds without holding it: one BLAKE3 digest per block of 64 KiB, one per
// segment of 64 MiB over its blocks, and one root per volume over its segments. Two sides that compare top down
// exchange a few bytes for what is equal and 32 KiB for each segment that is not.
//
// It knows bytes, geometry and the layout of a stored map. It never reads a volume, opens no file and keeps no
// clock. Begin with Geometry, then Block, Segment and Root; Map is their stored form.
package digest

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/zeebo/blake3"
)

const (
	// BlockSize is the unit of comparison, in bytes.
	BlockSize = 64 << 10
	// SegmentSize is the unit of proof: a session proves segment after segment, and starts again at one.
	SegmentSize = 64 << 20
	// BlocksPerSegment is how many block digests a full segment has.
	BlocksPerSegment = SegmentSize / BlockSize
	// Size is the length of a digest in bytes.
	Size = 32
)

// Digest is the BLAKE3-256 of some content, or one of the two marks Zero and Unknown.
type Digest [Size]byte

// Zero stands for content that is all zero bytes, whatever its length. It is not BLAKE3 of zeros: a mark keeps the
// map of a sparse volume sparse, and costs no hashing.
var Zero Digest

// Unknown stands for content nobody has read. It equals no content, so it never hides a difference.
var Unknown = func() (d Digest) {
	for i := range d {
		d[i] = 0xff
	}
	return d
}()

// String is the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Block digests one block's content.
func Block(p []byte) Digest {
	if IsZero(p) {
		return Zero
	}
	return blake3.Sum256(p)
}

// IsZero reports whether p holds zero bytes only. It reads eight words at a time: on a sparse volume this is the
// whole cost of a scan.
func IsZero(p []byte) bool {
	for len(p) >= 64 {
		x := binary.LittleEndian.Uint64(p) | binary.LittleEndian.Uint64(p[8:]) |
			binary.LittleEndian.Uint64(p[16:]) | binary.LittleEndian.Uint64(p[24:]) |
			binary.LittleEndian.Uint64(p[32:]) | binary.LittleEndian.Uint64(p[40:]) |
			binary.LittleEndian.Uint64(p[48:]) | binary.LittleEndian.Uint64(p[56:])
		if x != 0 {
			return false
		}
		p = p[64:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Blocks digests p block by block. p begins at a block boundary; its last block may be short.
func Blocks(p []byte) []Digest {
	return AppendBlocks(make([]Digest, 0, (len(p)+BlockSize-1)/BlockSize), p)
}

// AppendBlocks appends the digests of p's blocks to out.
func AppendBlocks(out []Digest, p []byte) []Digest {
	for len(p) > 0 {
		n := min(BlockSize, len(p))
		out = append(out, Block(p[:n]))
		p = p[n:]
	}
	return out
}

// Segment digests a segment from the digests of its blocks. One unknown block makes the segment unknown; blocks that
// are all zero make it Zero.
func Segment(blocks []Digest) Digest { return fold('S', blocks) }

// Root digests a volume from the digests of its segments, by the same two exceptions as Segment.
func Root(segments []Digest) Digest { return fold('R', segments) }

// Sum tells lists of segment digests apart, Unknown ones included, which Root does not.
func Sum(segments []Digest) Digest {
	h := blake3.New()
	_, _ = h.Write([]byte{'L'})
	for i := range segments {
		_, _ = h.Write(segments[i][:])
	}
	return Digest(h.Sum(nil))
}

// fold hashes a level under its own letter, so that no digest of one level can pass for one of another.
func fold(level byte, parts []Digest) Digest {
	zero := true
	for i := range parts {
		if parts[i] == Unknown {
			return Unknown
		}
		zero = zero && parts[i] == Zero
	}
	if zero {
		return Zero
	}
	h := blake3.New()
	_, _ = h.Write([]byte{level})
	for i := range parts {
		_, _ = h.Write(parts[i][:])
	}
	return Digest(h.Sum(nil))
}

// Geometry is the shape of a volume of Size bytes.
type Geometry struct{ Size int64 }

// Blocks is the number of blocks; the last may be short.
func (g Geometry) Blocks() int64 { return (g.Size + BlockSize - 1) / BlockSize }

// Segments is the number of segments; the last may be short.
func (g Geometry) Segments() int { return int((g.Size + SegmentSize - 1) / SegmentSize) }

// SegmentStart is the byte offset of segment s.
func (g Geometry) SegmentStart(s int) int64 { return int64(s) * SegmentSize }

// SegmentLen is the length of segment s in bytes.
func (g Geometry) SegmentLen(s int) int64 {
	return min(SegmentSize, g.Size-int64(s)*SegmentSize)
}

// SegmentBlocks is the number of blocks in segment s.
func (g Geometry) SegmentBlocks(s int) int {
	return int((g.SegmentLen(s) + BlockSize - 1) / BlockSize)
}

// Extent is a run of bytes of a volume.
type Extent struct{ Offset, Length int64 }

// Differences lists, in order, the runs of blocks of segment s whose digests differ between mine and theirs. Both
// hold SegmentBlocks(s) digests. An unknown block always differs.
func (g Geometry) Differences(s int, mine, theirs []Digest) []Extent {
	var out []Extent
	start := g.SegmentStart(s)
	for i := range mine {
		if mine[i] == theirs[i] && mine[i] != Unknown {
			continue
		}
		at := start + int64(i)*BlockSize
		length := min(BlockSize, g.Size-at)
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length == at {
			out[n-1].Length += length
			continue
		}
		out = append(out, Extent{Offset: at, Length: length})
	}
	return out
}
