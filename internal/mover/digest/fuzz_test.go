package digest_test

import (
	"errors"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// FuzzMap opens any file as the map of a volume. Whatever it holds, reading ends with digests that add up or with
// ErrDamaged, and once every segment is set anew the map tells only what it was told.
func FuzzMap(f *testing.F) {
	const size = digest.SegmentSize + 3*digest.BlockSize + 5
	whole := &memory{}
	m, err := digest.CreateMap(whole, digest.Geometry{Size: size})
	if err != nil {
		f.Fatal(err)
	}
	if err := m.SetSegment(1, []digest.Digest{{1}, {2}, digest.Zero, {3}}); err != nil {
		f.Fatal(err)
	}
	f.Add(int64(size), whole.b)
	f.Add(int64(size), whole.b[:5000])
	f.Add(int64(1), []byte("LBdigest"))
	f.Add(int64(0), []byte{})
	f.Fuzz(func(t *testing.T, size int64, raw []byte) {
		if size < 1 || size > 3*digest.SegmentSize {
			return
		}
		geo := digest.Geometry{Size: size}
		file := &memory{b: raw}
		m, err := digest.OpenMap(file, geo)
		if err != nil {
			if !errors.Is(err, digest.ErrDamaged) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		segments, err := m.Segments()
		if err != nil && !errors.Is(err, digest.ErrDamaged) {
			t.Fatalf("an error of another kind: %v", err)
		}
		if err == nil && len(segments) != geo.Segments() {
			t.Fatalf("%d segments in %d bytes", len(segments), size)
		}
		for s := range geo.Segments() {
			blocks, damaged := m.Blocks(s)
			switch {
			case damaged != nil && !errors.Is(damaged, digest.ErrDamaged):
				t.Fatalf("an error of another kind: %v", damaged)
			case damaged == nil && (len(blocks) != geo.SegmentBlocks(s) || digest.Segment(blocks) != segments[s]):
				t.Fatalf("segment %d has %d blocks that do not add up", s, len(blocks))
			}
		}
		want := make([]digest.Digest, geo.Segments())
		for s := range want {
			blocks := make([]digest.Digest, geo.SegmentBlocks(s))
			blocks[len(blocks)-1] = digest.Digest{byte(s + 1)}
			want[s] = digest.Segment(blocks)
			if err := m.SetSegment(s, blocks); err != nil {
				t.Fatal(err)
			}
		}
		if root, err := m.Root(); err != nil || root != digest.Root(want) {
			t.Fatalf("the root is %s, %v", root, err)
		}
		for s := range want {
			if blocks, err := m.Blocks(s); err != nil || blocks[len(blocks)-1] != (digest.Digest{byte(s + 1)}) {
				t.Fatalf("segment %d: %v", s, err)
			}
		}
	})
}
