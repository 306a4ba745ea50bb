package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// Busy reports that a device is in use by somebody else, such as a mounted file system.
type Busy struct{ Path string }

func (b *Busy) Error() string {
	return fmt.Sprintf("device %s is in use by a mounted file system or another process: end that before it is written", b.Path)
}

// File is a block device or an image file. What is aligned goes past the page cache where the storage allows it;
// the rest, such as the last bytes of an odd-sized image, through it.
type File struct {
	path   string
	size   int64
	plain  *os.File
	direct *os.File
	// useDirect turns false for good when the storage refuses direct I/O.
	useDirect  atomic.Bool
	canPunch   atomic.Bool
	canReserve atomic.Bool
	// canTell says that the kernel tells holes (of a volume that is written) or what its page cache has (of one that
	// is read).
	canTell  atomic.Bool
	readOnly bool

	mu       sync.Mutex
	reserved []digest.Extent // allocated ahead and perhaps never written, in the order of the calls
}

var _ Volume = (*File)(nil)

// OpenReader opens a volume to read it.
func OpenReader(path string) (*File, error) { return open(path, os.O_RDONLY) }

// Open opens a volume to write it. A block device is claimed: nobody can mount it meanwhile, and one that is mounted
// is refused with Busy.
func Open(path string) (*File, error) { return open(path, os.O_RDWR) }

func open(path string, mode int) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	device := info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
	if !device && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open volume %s: it is neither a block device nor a file", path)
	}
	claim := 0
	if device && mode == os.O_RDWR {
		claim = unix.O_EXCL
	}
	plain, err := os.OpenFile(path, mode|claim, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, &Busy{Path: path}
	}
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	size, err := plain.Seek(0, io.SeekEnd)
	if err != nil {
		_ = plain.Close()
		return nil, fmt.Errorf("size of volume %s: %w", path, err)
	}
	f := &File{path: path, size: size, plain: plain, readOnly: mode == os.O_RDONLY}
	f.canTell.Store(f.readOnly || !device)
	f.canPunch.Store(true)
	f.canReserve.Store(!device)
	// The claim, if any, is held by the first descriptor; the second one needs none.
	if d, err := os.OpenFile(path, mode|unix.O_DIRECT, 0); err == nil {
		f.direct = d
		f.useDirect.Store(true)
	}
	return f, nil
}

// Size is the length in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt implements Reader.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	if f.useDirect.Load() && aligned(p, off) && off < f.size && !f.cached(off, int64(len(p))) {
		n := min(int64(len(p)), f.size-off) &^ (Align - 1)
		got, err := f.direct.ReadAt(p[:n], off)
		switch {
		case err == nil:
			done = got
		case errors.Is(err, unix.EINVAL):
			f.useDirect.Store(false)
		default:
			return got, fmt.Errorf("read volume: %w", err)
		}
	}
	if done == len(p) {
		return done, nil
	}
	n, err := f.plain.ReadAt(p[done:], off+int64(done))
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read volume: %w", err)
	}
	return done + n, err
}

// cached reports that the page cache has all of a part of a volume that is only read: copying it from there costs less
// than asking the disk again. What is also written is compared with its digests, and that is about the disk's content.
func (f *File) cached(off, length int64) bool {
	if !f.readOnly || !f.canTell.Load() {
		return false
	}
	var have unix.Cachestat_t
	length = min(length, f.size-off)
	err := unix.Cachestat(uint(f.plain.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(length)}, &have, 0)
	if err != nil {
		f.canTell.Store(false) // a kernel before 6.5, or a sandbox that does not let it pass
		return false
	}
	page := int64(os.Getpagesize())
	return int64(have.Cache)*page >= length
}

// WriteAt implements Volume.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > f.size {
		return 0, fmt.Errorf("write volume %s: %d bytes at %d are beyond its %d bytes", f.path, len(p), off, f.size)
	}
	done := 0
	if f.useDirect.Load() && aligned(p, off) {
		n := len(p) &^ (Align - 1)
		got, err := f.direct.WriteAt(p[:n], off)
		switch {
		case err == nil:
			done = got
		case errors.Is(err, unix.EINVAL):
			f.useDirect.Store(false)
		default:
			return got, fmt.Errorf("write volume: %w", err)
		}
	}
	if done == len(p) {
		return done, nil
	}
	n, err := f.plain.WriteAt(p[done:], off+int64(done))
	if err != nil {
		return done + n, fmt.Errorf("write volume: %w", err)
	}
	return done + n, nil
}

// Reserve allocates the space for length bytes from off of a file, which makes writing them cheaper; what they read as
// stays the same. Where that cannot be done, nothing is: it is only for speed.
func (f *File) Reserve(off, length int64) {
	if !f.canReserve.Load() || off < 0 || off >= f.size {
		return
	}
	length = min(length, f.size-off)
	if err := unix.Fallocate(int(f.plain.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, length); err != nil {
		f.canReserve.Store(false)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.reserved) >= keptReserved {
		// What is forgotten counts as reserved from the first to the last byte.
		f.reserved = append(f.reserved[:0], hull(f.reserved))
	}
	f.reserved = append(f.reserved, digest.Extent{Offset: off, Length: length})
}

// keptReserved bounds what is remembered of Reserve.
const keptReserved = 1024

func hull(of []digest.Extent) digest.Extent {
	from, to := of[0].Offset, of[0].Offset+of[0].Length
	for _, e := range of[1:] {
		from, to = min(from, e.Offset), max(to, e.Offset+e.Length)
	}
	return digest.Extent{Offset: from, Length: to - from}
}

// hole reports that a part of a file holds nothing and takes no space: there is nothing to zero. Space that was reserved
// reads as a hole too and is none, so where this File reserved any the answer is no.
func (f *File) hole(off, length int64) bool {
	if !f.canTell.Load() || length == 0 {
		return false
	}
	f.mu.Lock()
	for _, e := range f.reserved {
		if off < e.Offset+e.Length && e.Offset < off+length {
			f.mu.Unlock()
			return false
		}
	}
	f.mu.Unlock()
	data, err := unix.Seek(int(f.plain.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return true // nothing but holes from here to the end
	case err != nil:
		f.canTell.Store(false)
		return false
	}
	return data >= off+length
}

// Zero implements Volume. A hole stays as it is: to punch one again would wait for every write under way, and hold up
// those behind. Storage that cannot free space is read first and written only where it is not zero: that is
// cheaper than writing, and thin storage stays thin.
func (f *File) Zero(off, length int64) error {
	if off < 0 || off+length > f.size {
		return fmt.Errorf("zero volume %s: %d bytes at %d are beyond its %d bytes", f.path, length, off, f.size)
	}
	if f.hole(off, length) {
		return nil
	}
	if f.canPunch.Load() {
		err := unix.Fallocate(int(f.plain.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			f.canPunch.Store(false)
		case errors.Is(err, unix.EINVAL): // not aligned to the device's blocks
		default:
			return fmt.Errorf("zero volume %s: %w", f.path, err)
		}
	}
	return f.writeZeros(off, length)
}

func (f *File) writeZeros(off, length int64) error {
	const step = 1 << 20
	have, zeros := Buffer(step), Buffer(step)
	for length > 0 {
		n := min(step, length)
		if _, err := f.ReadAt(have[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("zero volume %s: %w", f.path, err)
		}
		if !digest.IsZero(have[:n]) {
			if _, err := f.WriteAt(zeros[:n], off); err != nil {
				return fmt.Errorf("zero volume %s: %w", f.path, err)
			}
		}
		off += n
		length -= n
	}
	return nil
}

// Sync implements Volume. One call covers both descriptors: they are the same inode or device.
func (f *File) Sync() error {
	if err := f.plain.Sync(); err != nil {
		return fmt.Errorf("sync volume %s: %w", f.path, err)
	}
	return nil
}

// Close releases the volume and its claim; it does not sync.
func (f *File) Close() error {
	err := f.plain.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return err
}
