package volume

import (
	"sync"
	"unsafe"
	"weak"

	"golang.org/x/sys/unix"
)

const (
	// hugePage is what a kernel calls one: 512 pages that lie side by side.
	hugePage = 2 << 20
	// slabSize is how much memory on huge pages is made at a time. Buffers share it, and it goes when the last of them does.
	slabSize = 4 * hugePage
	// largeFrom is from what length on a buffer lies on huge pages.
	largeFrom = 64 << 10
)

// Buffer is memory of n bytes that File reads into and writes from without a copy in the kernel. It holds zeros at first.
// Large ones lie on huge pages where the kernel has them: direct I/O pins and maps memory page by page, and a disk takes
// 1 MiB that lies side by side as one piece instead of 256.
func Buffer(n int) []byte {
	if n >= largeFrom && n <= slabSize {
		return carve(n)
	}
	return makeAligned(n, Align)
}

// makeAligned makes n bytes that begin at a multiple of align.
func makeAligned(n, align int) []byte {
	raw := make([]byte, n+align)
	skip := 0
	if over := int(uintptr(unsafe.Pointer(unsafe.SliceData(raw))) % uintptr(align)); over != 0 {
		skip = align - over
	}
	return raw[skip : skip+n : skip+n]
}

// slab is the memory that large buffers are cut from, each part once. It is known weakly: what keeps it are the buffers.
var slab struct {
	sync.Mutex
	memory weak.Pointer[[slabSize]byte]
	used   int
}

func carve(n int) []byte {
	slab.Lock()
	defer slab.Unlock()
	memory := slab.memory.Value()
	if memory == nil || slab.used+n > slabSize {
		memory = makeSlab()
		slab.memory, slab.used = weak.Make(memory), 0
	}
	b := memory[slab.used : slab.used+n : slab.used+n]
	slab.used = (slab.used + n + Align - 1) &^ (Align - 1)
	return b
}

// makeSlab asks for huge pages, for memory that is new and, on a kernel that can (6.1), for memory that was used before.
// Where there are none, ordinary ones do.
func makeSlab() *[slabSize]byte {
	memory := makeAligned(slabSize, hugePage)
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(memory, unix.MADV_COLLAPSE)
	return (*[slabSize]byte)(memory)
}
