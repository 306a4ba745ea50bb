package digest_test

import (
	"errors"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

func TestZeroIsAMark(t *testing.T) {
	for _, n := range []int{1, 63, 64, 65, 4096, digest.BlockSize} {
		p := make([]byte, n)
		if digest.Block(p) != digest.Zero || !digest.IsZero(p) {
			t.Errorf("%d zeros are not zero", n)
		}
		for _, i := range []int{0, n / 2, n - 1} {
			p[i] = 1
			if digest.Block(p) == digest.Zero || digest.IsZero(p) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
}

// The digests are stored by targets and sent between versions: they never change.
func TestDigestsAreTheGoldenOnes(t *testing.T) {
	block := digest.Block([]byte("lifeboat"))
	for name, c := range map[string]struct {
		got  digest.Digest
		want string
	}{
		"block":   {block, "a3b3f146eb3e319b7d2341ab082286eba36527c53cb327ada3f1d4c21f16682e"},
		"segment": {digest.Segment([]digest.Digest{block, digest.Zero}), "1a1f45b2fbdfb0fcd2eaa6e733483a76f5f7c7a6f3bf209ff49055ce82ea180b"},
		"root":    {digest.Root([]digest.Digest{block, digest.Zero}), "93c99b99e6f1653894cc0f8098b8483bba8455ae4940d285732c74c428a11eaa"},
	} {
		if c.got.String() != c.want {
			t.Errorf("%s is %s", name, c.got)
		}
	}
}

func TestLevelsFold(t *testing.T) {
	x := digest.Block([]byte("x"))
	if digest.Segment([]digest.Digest{digest.Zero, digest.Zero}) != digest.Zero {
		t.Error("a segment of zeros is not zero")
	}
	if digest.Segment([]digest.Digest{x, digest.Unknown}) != digest.Unknown {
		t.Error("a segment with an unknown block is known")
	}
	if digest.Segment([]digest.Digest{x}) == digest.Root([]digest.Digest{x}) {
		t.Error("a segment passes for a volume")
	}
	if digest.Segment([]digest.Digest{x, digest.Zero}) == digest.Segment([]digest.Digest{digest.Zero, x}) {
		t.Error("order does not matter")
	}
}

func TestDifferencesCoverExactlyWhatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := digest.Geometry{Size: rapid.Int64Range(1, 2*digest.SegmentSize).Draw(t, "size")}
		s := rapid.IntRange(0, g.Segments()-1).Draw(t, "segment")
		mine := make([]digest.Digest, g.SegmentBlocks(s))
		theirs := slices.Clone(mine)
		differs := map[int]bool{}
		for range rapid.IntRange(0, 20).Draw(t, "changes") {
			i := rapid.IntRange(0, len(mine)-1).Draw(t, "block")
			theirs[i] = digest.Digest{1}
			differs[i] = true
		}
		if rapid.Bool().Draw(t, "unknown") {
			mine[0], theirs[0] = digest.Unknown, digest.Unknown
			differs[0] = true
		}
		end := int64(-1)
		for _, x := range g.Differences(s, mine, theirs) {
			if x.Offset <= end || x.Length <= 0 || x.Offset+x.Length > g.SegmentStart(s)+g.SegmentLen(s) {
				t.Fatalf("extent %+v after %d", x, end)
			}
			end = x.Offset + x.Length
			for at := x.Offset; at < end; at += digest.BlockSize {
				i := int((at - g.SegmentStart(s)) / digest.BlockSize)
				if !differs[i] {
					t.Fatalf("block %d is the same", i)
				}
				delete(differs, i)
			}
		}
		if len(differs) > 0 {
			t.Fatalf("blocks %v were missed", differs)
		}
	})
}

// memory is a file in memory that grows as it is written.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if grow := off + int64(len(p)) - int64(len(m.b)); grow > 0 {
		m.b = append(m.b, make([]byte, grow)...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	if size <= int64(len(m.b)) {
		m.b = m.b[:size]
		return nil
	}
	m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
	return nil
}

func (m *memory) Sync() error { return nil }

func TestAMapKeepsWhatItIsTold(t *testing.T) {
	geo := digest.Geometry{Size: 2*digest.SegmentSize + 5*digest.BlockSize + 1}
	file := &memory{b: []byte("something from before")}
	m, err := digest.CreateMap(file, geo)
	if err != nil {
		t.Fatal(err)
	}
	root, err := m.Root()
	if err != nil || root != digest.Zero {
		t.Fatalf("a new map has root %s, %v", root, err)
	}
	x := digest.Block([]byte("x"))
	if err := m.SetSegment(0, slices.Repeat([]digest.Digest{x}, digest.BlocksPerSegment)); err != nil {
		t.Fatal(err)
	}
	if err := m.Update(2*digest.SegmentSize+5*digest.BlockSize, []digest.Digest{x}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Blocks(2); !errors.Is(err, digest.ErrDamaged) {
		t.Errorf("a segment that was not sealed passes: %v", err)
	}
	if d, err := m.Seal(2); err != nil || d == digest.Zero {
		t.Fatal(d, err)
	}
	again, err := digest.OpenMap(file, geo)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := again.Blocks(2)
	if err != nil || len(blocks) != 6 || blocks[5] != x || blocks[4] != digest.Zero {
		t.Errorf("segment 2 is %v, %v", blocks, err)
	}
	segments, err := again.Segments()
	if err != nil || len(segments) != 3 || segments[1] != digest.Zero || segments[2] != digest.Segment(blocks) {
		t.Errorf("segments are %v, %v", segments, err)
	}
}

func TestAMapOfAnotherVolumeIsRefused(t *testing.T) {
	file := &memory{}
	if _, err := digest.CreateMap(file, digest.Geometry{Size: 100}); err != nil {
		t.Fatal(err)
	}
	if _, err := digest.OpenMap(file, digest.Geometry{Size: 101}); !errors.Is(err, digest.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if _, err := digest.OpenMap(&memory{}, digest.Geometry{Size: 100}); !errors.Is(err, digest.ErrDamaged) {
		t.Errorf("an empty file: %v", err)
	}
}

func TestASumTellsUnknownListsApart(t *testing.T) {
	a := []digest.Digest{digest.Unknown, digest.Block([]byte("a"))}
	b := []digest.Digest{digest.Unknown, digest.Block([]byte("b"))}
	if digest.Root(a) != digest.Root(b) || digest.Sum(a) == digest.Sum(b) {
		t.Error("two lists with an unknown segment are the same")
	}
}
