package volume_test

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"lifeboat.dev/lifeboat/internal/mover/volume"
)

func TestBuffersAreAlignedAndApart(t *testing.T) {
	var all [][]byte
	for i := range 60 {
		for _, n := range []int{1, 4096, 64 << 10, 256 << 10, 256<<10 + 1, 1 << 20, 1<<20 + 70<<10, 8 << 20, 9 << 20} {
			b := volume.Buffer(n)
			if len(b) != n || cap(b) != n || !volume.Aligned(b) {
				t.Fatalf("a buffer of %d bytes, room for %d, aligned %t; want %d", len(b), cap(b), volume.Aligned(b), n)
			}
			for _, at := range []int{0, n / 2, n - 1} {
				if b[at] != 0 {
					t.Fatalf("byte %d of a new buffer of %d is %d", at, n, b[at])
				}
			}
			for at := 0; at < n; at += 4096 {
				b[at] = byte(i + 1)
			}
			b[n-1] = byte(i + 1)
			all = append(all, b)
		}
		if len(all) > 100 {
			all = all[9:]
		}
		for k, b := range all {
			want := byte(i + 1 - (len(all)-1-k)/9)
			if b[0] != want || b[len(b)-1] != want {
				t.Fatalf("buffer %d of %d bytes was overwritten by another", k, len(b))
			}
		}
	}
}

func TestBuffersThatNobodyUsesAreFreed(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	held := make([][]byte, 64)
	for i := range held {
		held[i] = volume.Buffer(1 << 20)
	}
	full := heap()
	runtime.KeepAlive(held)
	held = nil
	if after := heap(); full-before < 64<<20 || after-before > 1<<20 {
		t.Errorf("64 buffers of 1 MiB took %d bytes, and %d once nobody had them", full-before, after-before)
	}
}

// TestLargeBuffersLieOnHugePages asks the kernel.
func TestLargeBuffersLieOnHugePages(t *testing.T) {
	enabled, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil || strings.Contains(string(enabled), "[never]") {
		t.Skipf("this kernel gives no huge pages: %s%v", enabled, err)
	}
	var held [][]byte
	huge := 0
	for range 32 {
		b := volume.Buffer(1 << 20)
		for at := 0; at < len(b); at += 4096 {
			b[at] = 1
		}
		held = append(held, b)
	}
	for _, b := range held {
		if onHugePages(t, b) {
			huge++
		}
	}
	runtime.KeepAlive(held)
	if huge < len(held)/2 {
		t.Errorf("%d of %d buffers lie where the kernel has huge pages", huge, len(held))
	}
}

// onHugePages reports that the mapping b lies in has huge pages.
func onHugePages(t *testing.T, b []byte) bool {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	inside := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to uintptr
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); n == 2 {
			inside = from <= at && at < to
			continue
		}
		var size int
		if n, _ := fmt.Sscanf(lines.Text(), "AnonHugePages: %d kB", &size); n == 1 && inside {
			return size > 0
		}
	}
	return false
}
