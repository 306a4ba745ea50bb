package volume_test

import (
	"testing"
	"unsafe"

	"lifeboat.dev/lifeboat/internal/mover/volume"
)

func TestAPoolGivesTheLastBufferFirstAndKeepsNoMoreThanAgreed(t *testing.T) {
	p := volume.NewPool(8192, 2)
	at := func(b []byte) *byte { return unsafe.SliceData(b) }
	a, b, c := p.Get(), p.Get(), p.Get()
	if len(a) != 8192 || !volume.Aligned(a) {
		t.Fatalf("a buffer of %d bytes, aligned %t", len(a), volume.Aligned(a))
	}
	p.Put(a)
	p.Put(b[:10])
	p.Put(c) // one more than is kept
	if x, y := p.Get(), p.Get(); at(x) != at(b) || at(y) != at(a) || len(x) != 8192 {
		t.Error("not the buffers that were given back, the last one first")
	}
	p.Put(a)
	p.Empty()
	if at(p.Get()) == at(a) {
		t.Error("an emptied pool kept a buffer")
	}
}
