package digest

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Storage is where a map lives: the part of a file that a map needs.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
}

// A stored map, all integers little endian:
//
//	 0        8        12       16       20       24
//	+--------+--------+--------+--------+--------+----------------------+
//	| magic  | version| block  | segment  (u64)  | volume size (u64)    |   header, 4096 bytes, rest zero
//	+--------+--------+--------+-----------------+----------------------+
//	| segment digests, 32 bytes each, padded with zeros to 4096         |
//	+-------------------------------------------------------------------+
//	| block digests, 32 bytes each                                      |
//	+-------------------------------------------------------------------+
//
// Zero content has a zero digest, so the map of a sparse volume is a sparse file.
const (
	mapMagic   = "LBdigest"
	mapVersion = 1
	mapPage    = 4096
)

// ErrDamaged reports that a stored map does not hold together; it must be built again from its volume.
var ErrDamaged = fmt.Errorf("digest map is damaged")

// Map is the stored digest map of one volume. It reads and writes through; it keeps nothing in memory, so a map of a
// volume of any size costs a segment's digests at a time. It is not safe for concurrent use.
//
// A map says nothing about which instant it describes: whoever keeps it binds it to one, and drops it when the volume
// may have been written by anybody else.
type Map struct {
	file Storage
	geo  Geometry
}

// CreateMap makes file the map of a volume of this geometry that holds zeros only.
func CreateMap(file Storage, geo Geometry) (*Map, error) {
	if err := file.Truncate(0); err != nil {
		return nil, fmt.Errorf("empty digest map: %w", err)
	}
	m := &Map{file: file, geo: geo}
	if err := file.Truncate(m.blockAt(geo.Blocks())); err != nil {
		return nil, fmt.Errorf("size digest map: %w", err)
	}
	head := make([]byte, mapPage)
	copy(head, mapMagic)
	binary.LittleEndian.PutUint32(head[8:], mapVersion)
	binary.LittleEndian.PutUint32(head[12:], BlockSize)
	binary.LittleEndian.PutUint64(head[16:], SegmentSize)
	binary.LittleEndian.PutUint64(head[24:], uint64(geo.Size))
	if _, err := file.WriteAt(head, 0); err != nil {
		return nil, fmt.Errorf("write digest map: %w", err)
	}
	return m, nil
}

// OpenMap opens the map of a volume of this geometry. The caller checks Root against the one it remembers.
func OpenMap(file Storage, geo Geometry) (*Map, error) {
	head := make([]byte, mapPage)
	if _, err := file.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: header: %w", ErrDamaged, err)
	}
	same := string(head[:8]) == mapMagic &&
		binary.LittleEndian.Uint32(head[8:]) == mapVersion &&
		binary.LittleEndian.Uint32(head[12:]) == BlockSize &&
		binary.LittleEndian.Uint64(head[16:]) == SegmentSize &&
		binary.LittleEndian.Uint64(head[24:]) == uint64(geo.Size)
	if !same {
		return nil, fmt.Errorf("%w: its header is not that of a volume of %d bytes", ErrDamaged, geo.Size)
	}
	return &Map{file: file, geo: geo}, nil
}

func (m *Map) segmentAt(s int) int64 { return mapPage + int64(s)*Size }

func (m *Map) blockAt(b int64) int64 {
	pages := (int64(m.geo.Segments())*Size + mapPage - 1) / mapPage
	return mapPage + pages*mapPage + b*Size
}

// Segments reads all segment digests.
func (m *Map) Segments() ([]Digest, error) {
	return m.read(m.segmentAt(0), m.geo.Segments(), "segment digests")
}

// Blocks reads the block digests of segment s and checks them against the segment's own.
func (m *Map) Blocks(s int) ([]Digest, error) {
	blocks, err := m.rawBlocks(s)
	if err != nil {
		return nil, err
	}
	kept, err := m.read(m.segmentAt(s), 1, "segment digest")
	if err != nil {
		return nil, err
	}
	if Segment(blocks) != kept[0] {
		return nil, fmt.Errorf("%w: blocks of segment %d do not add up to its digest", ErrDamaged, s)
	}
	return blocks, nil
}

// Held reads the block digests of segment s as they stand, without a check against the segment's own: what is laid over
// them may have been interrupted.
func (m *Map) Held(s int) ([]Digest, error) { return m.rawBlocks(s) }

// Update overlays block digests beginning at byte offset at. The segments touched must be sealed afterwards.
func (m *Map) Update(at int64, blocks []Digest) error {
	return m.write(m.blockAt(at/BlockSize), blocks)
}

// Seal computes the digest of segment s again from its blocks, and returns it.
func (m *Map) Seal(s int) (Digest, error) {
	blocks, err := m.rawBlocks(s)
	if err != nil {
		return Digest{}, err
	}
	d := Segment(blocks)
	return d, m.write(m.segmentAt(s), []Digest{d})
}

// SetSegment writes a whole segment: its blocks and its digest.
func (m *Map) SetSegment(s int, blocks []Digest) error {
	if err := m.Update(m.geo.SegmentStart(s), blocks); err != nil {
		return err
	}
	return m.write(m.segmentAt(s), []Digest{Segment(blocks)})
}

// Root digests the whole volume from the segment digests.
func (m *Map) Root() (Digest, error) {
	segments, err := m.Segments()
	if err != nil {
		return Digest{}, err
	}
	return Root(segments), nil
}

// Sync makes everything written durable.
func (m *Map) Sync() error {
	if err := m.file.Sync(); err != nil {
		return fmt.Errorf("sync digest map: %w", err)
	}
	return nil
}

func (m *Map) rawBlocks(s int) ([]Digest, error) {
	return m.read(m.blockAt(int64(s)*BlocksPerSegment), m.geo.SegmentBlocks(s), "block digests")
}

func (m *Map) read(at int64, n int, what string) ([]Digest, error) {
	raw := make([]byte, n*Size)
	if got, err := m.file.ReadAt(raw, at); got != len(raw) {
		return nil, fmt.Errorf("%w: read %s: %w", ErrDamaged, what, err)
	}
	out := make([]Digest, n)
	for i := range out {
		copy(out[i][:], raw[i*Size:])
	}
	return out, nil
}

func (m *Map) write(at int64, digests []Digest) error {
	raw := make([]byte, 0, len(digests)*Size)
	for i := range digests {
		raw = append(raw, digests[i][:]...)
	}
	if _, err := m.file.WriteAt(raw, at); err != nil {
		return fmt.Errorf("write digest map: %w", err)
	}
	return nil
}
