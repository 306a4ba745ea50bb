// Package volume is an array of bytes that can be read, written, zeroed and made durable: a block device or an image
// file. It knows how the kernel likes to be asked (direct I/O, holes). It knows nothing of sessions, digests or who
// may write when.
//
// Begin with Volume, the contract; File is the implementation, volumetest its proof.
package volume

import "unsafe"

// Align is the alignment, of offset, length and memory, at which File can bypass the page cache.
const Align = 4096

// Reader is a volume that is only read.
type Reader interface {
	// Size is the volume's length in bytes; it does not change while the volume is open.
	Size() int64
	// ReadAt fills p from off. Reading beyond Size is io.EOF, as for any io.ReaderAt. It is safe for concurrent use.
	ReadAt(p []byte, off int64) (int, error)
	Close() error
}

// Volume is a volume that is also written.
type Volume interface {
	Reader
	// WriteAt writes p whole at off, within Size. After a crash any part of it may be there or not, until Sync.
	WriteAt(p []byte, off int64) (int, error)
	// Zero makes length bytes from off read as zeros; it frees their space where the storage can.
	Zero(off, length int64) error
	// Sync makes everything written and zeroed before durable.
	Sync() error
}

// Reserver is a volume whose space can be allocated ahead of writing it.
type Reserver interface {
	Reserve(off, length int64)
}

// Aligned reports that File can write p as it is, without a copy in the kernel.
func Aligned(p []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Align == 0 }

func aligned(p []byte, off int64) bool { return off%Align == 0 && Aligned(p) }
