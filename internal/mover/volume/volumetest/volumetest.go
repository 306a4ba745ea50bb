// Package volumetest is the contract of volume.Volume as tests: whatever implements it passes Run.
package volumetest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// Run checks a volume against the contract. open gives the same volume each time; at first it holds zeros only. Its
// size is at least 3 MiB.
func Run(t *testing.T, open func(t *testing.T) volume.Volume) {
	v := open(t)
	size := v.Size()
	if size < 3<<20 {
		t.Fatalf("volume of %d bytes is too small for this test", size)
	}
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	at := func(off, n int64) {
		t.Helper()
		// Memory that is aligned and memory that is not, since volumes may treat them apart.
		for _, skip := range []int{0, 1} {
			got := volume.Buffer(int(n) + 1)[skip : int(n)+skip]
			if k, err := v.ReadAt(got, off); k != len(got) {
				t.Fatalf("read %d bytes at %d: %d, %v", n, off, k, err)
			}
			if !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("%d bytes at %d are not what was written", n, off)
			}
		}
	}
	at(0, size)

	// Offsets and lengths on and off the boundaries that direct I/O, sectors and blocks care about.
	for _, off := range []int64{0, 1, 511, 512, 4096, 4097, 65536, 1<<20 - 1, 1 << 20, size - 70000, size - 4096, size - 1} {
		for _, n := range []int64{1, 512, 4096, 4095, 65536, 1 << 20} {
			if off+n > size {
				continue
			}
			for _, skip := range []int{0, 1} {
				p := volume.Buffer(int(n) + 1)[skip : int(n)+skip]
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if k, err := v.WriteAt(p, off); k != len(p) || err != nil {
					t.Fatalf("write %d bytes at %d: %d, %v", n, off, k, err)
				}
				copy(want[off:], p)
				at(off, n)
			}
		}
	}
	at(0, size)

	for _, x := range [][2]int64{{0, 65536}, {65536, 1 << 20}, {4097, 3}, {size - 65536, 65536}, {size - 1, 1}, {100, 5000}} {
		if err := v.Zero(x[0], x[1]); err != nil {
			t.Fatalf("zero %d bytes at %d: %v", x[1], x[0], err)
		}
		clear(want[x[0] : x[0]+x[1]])
		at(0, size)
	}
	if err := v.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}

	if n, err := v.ReadAt(make([]byte, 10), size-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := v.ReadAt(make([]byte, 10), size); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read behind the end: %d, %v", n, err)
	}
	if _, err := v.WriteAt(make([]byte, 10), size-4); err == nil {
		t.Error("a write over the end was accepted")
	}
	if err := v.Zero(size-4, 10); err == nil {
		t.Error("zeros over the end were accepted")
	}
	at(0, size)
	if err := v.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	v = open(t)
	at(0, size)
	if err := v.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}
