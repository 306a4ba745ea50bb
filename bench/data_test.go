package main

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

func TestTextCompressesLikeProse(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20 // what the engine compresses at a time
	piece := make([]byte, size)
	if _, err := io.ReadFull(newText(1), piece); err != nil {
		t.Fatal(err)
	}
	if ratio := size / float64(len(enc.EncodeAll(piece, nil))); ratio < 2.3 || ratio > 2.5 {
		t.Errorf("text compresses %.2f to 1, want about 2.4", ratio)
	}
}

func TestTextGoesOnWhereItStopped(t *testing.T) {
	whole, parts := make([]byte, 1000), make([]byte, 1000)
	_, _ = io.ReadFull(newText(1), whole)
	pieces := newText(1)
	for i := 0; i < len(parts); i += 7 {
		_, _ = io.ReadFull(pieces, parts[i:min(i+7, len(parts))])
	}
	if !bytes.Equal(whole, parts) {
		t.Error("read in pieces it is another text")
	}
}

func TestScatteredCoversItsShareAndNeverOverlaps(t *testing.T) {
	const size = 64 << 20
	for _, fraction := range []float64{0, 0.001, 0.01, 0.1} {
		all := scattered(size, fraction, 4<<10, 64<<10, 1)
		end := int64(0)
		for i, e := range all {
			if e.Offset < end || e.Length <= 0 || e.Offset%4096 != 0 || e.Length%4096 != 0 {
				t.Fatalf("%g: extent %d is %+v, behind %d", fraction, i, e, end)
			}
			end = e.Offset + e.Length
		}
		if end > size {
			t.Errorf("%g: the last extent ends at %d of %d", fraction, end, size)
		}
		if want, got := fraction*size, float64(total(all)); got < want || got > want+4096 {
			t.Errorf("%g: %.0f bytes are covered, want %.0f", fraction, got, want)
		}
	}
}

func TestEveryTurnChangesOtherPlaces(t *testing.T) {
	a, b := scattered(64<<20, 0.01, 4<<10, 64<<10, 1), scattered(64<<20, 0.01, 4<<10, 64<<10, 2)
	same := 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			same++
		}
	}
	if same > len(a)/2 {
		t.Errorf("%d of %d extents are the same", same, len(a))
	}
}

func TestRewriteChangesOnlyWhatItSays(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, path := range []string{a, b} {
		if err := writeFile(path, 1<<20, random(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := sameFile(a, b); err != nil {
		t.Fatal(err)
	}
	where := []digest.Extent{{Offset: 8192, Length: 4096}, {Offset: 1<<20 - 4096, Length: 4096}}
	if err := rewrite(a, where, 2); err != nil {
		t.Fatal(err)
	}
	if sameFile(a, b) == nil {
		t.Error("files that differ are taken for the same")
	}
	if _, err := pour(a, b, where); err != nil {
		t.Fatal(err)
	}
	if err := sameFile(a, b); err != nil {
		t.Errorf("after the changed extents were copied: %v", err)
	}
}

func TestSameBytesSeesEveryDifference(t *testing.T) {
	long := bytes.Repeat([]byte{7}, 1<<20)
	for name, pair := range map[string][2][]byte{
		"content":      {{1, 2, 3}, {1, 2, 4}},
		"shorter":      {{1, 2, 3}, {1, 2}},
		"longer":       {{1, 2}, {1, 2, 3}},
		"one is empty": {{1}, nil},
		"at a buffer":  {long, append(long[:len(long):len(long)], 0)},
	} {
		if sameBytes(bytes.NewReader(pair[0]), bytes.NewReader(pair[1])) == nil {
			t.Errorf("%s: taken for the same", name)
		}
	}
	if err := sameBytes(bytes.NewReader(long), bytes.NewReader(bytes.Clone(long))); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	if err := sameBytes(io.MultiReader(bytes.NewReader(long), failing{broken}), bytes.NewReader(long)); !errors.Is(err, broken) {
		t.Errorf("a read that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
