package change

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linux/fiemap.h and linux/fs.h.
const (
	fsIocFiemap = 0xC020660B // _IOWR('f', 11, struct fiemap)

	fiemapSync = 0x1 // write the file out first

	extentLast      = 0x1
	extentUnwritten = 0x800
	extentMerged    = 0x1000
	extentShared    = 0x2000

	// extentPlain are the flags under which an address says what the content is. Any other one, known or yet to be
	// invented (unknown, delayed, encoded, inline, unaligned), means that it does not.
	extentPlain = extentLast | extentUnwritten | extentMerged | extentShared
)

// fiemapBatch is how many extents one call asks for: 56 KiB of memory.
const fiemapBatch = 1024

// fiemapExtent is struct fiemap_extent.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// fiemapRequest is struct fiemap with room for a batch.
type fiemapRequest struct {
	start, length uint64
	flags         uint32
	mapped, count uint32
	_             uint32
	extents       [fiemapBatch]fiemapExtent
}

// content is what the map says about a run of a file.
type content int

const (
	zeros  content = iota // a hole, or reserved and never written
	stored                // at a known address
	opaque                // something the address does not tell
)

// run is a part of a file with one kind of content.
type run struct {
	start, end int64
	what       content
	address    int64 // of start, when stored
}

// mapReader walks a file's block map from 0 to size; its memory does not depend on the file's.
type mapReader struct {
	file    *os.File
	size    int64
	at      int64 // everything before was returned
	asked   int64 // everything before was asked of the kernel
	request fiemapRequest
	read    int // extents of the request that were returned
	last    bool
	pending *run
}

func newMapReader(f *os.File, size int64) *mapReader {
	return &mapReader{file: f, size: size, request: fiemapRequest{flags: fiemapSync}}
}

// next returns the run that follows the one before without a gap. At the end it is empty.
func (m *mapReader) next(ctx context.Context) (run, error) {
	if m.at >= m.size {
		return run{start: m.size, end: m.size}, nil
	}
	if m.pending == nil {
		if err := m.load(ctx); err != nil {
			return run{}, err
		}
	}
	r := *m.pending
	if r.start > m.at { // what no extent covers is a hole
		r = run{start: m.at, end: min(r.start, m.size)}
	} else {
		m.pending = nil
	}
	r.end = min(r.end, m.size)
	m.at = r.end
	return r, nil
}

// load sets pending to the next extent that ends behind at, or to an endless one behind the last.
func (m *mapReader) load(ctx context.Context) error {
	for {
		if m.read == int(m.request.mapped) {
			if m.last {
				m.pending = &run{start: math.MaxInt64, end: math.MaxInt64}
				return nil
			}
			if err := m.ask(ctx); err != nil {
				return err
			}
			continue
		}
		e := m.request.extents[m.read]
		m.read++
		r := run{start: int64(e.logical), end: int64(e.logical + e.length), address: int64(e.physical), what: stored}
		switch {
		case e.flags&^uint32(extentPlain) != 0:
			r.what = opaque
		case e.flags&extentUnwritten != 0:
			r.what = zeros
		}
		if r.end <= m.at {
			continue
		}
		if r.start < m.at {
			r.address += m.at - r.start
			r.start = m.at
		}
		m.pending = &r
		return nil
	}
}

// ask reads the next batch. The kernel's map ends with an extent marked last, or with an empty answer.
func (m *mapReader) ask(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q := &m.request
	q.start, q.length, q.count, q.mapped = uint64(m.asked), uint64(m.size-m.asked), fiemapBatch, 0
	m.read = 0
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.file.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(q)))
	if errno != 0 {
		return os.NewSyscallError("fiemap", errno)
	}
	q.flags = 0
	if q.mapped == 0 {
		m.last = true
		return nil
	}
	final := q.extents[q.mapped-1]
	end := int64(final.logical + final.length)
	if end <= m.asked {
		return fmt.Errorf("the block map of %s does not go on behind byte %d", m.file.Name(), m.asked)
	}
	m.asked = end
	m.last = final.flags&extentLast != 0 || end >= m.size
	return nil
}

// NotComparable is a pair of files whose block maps cannot be compared.
type NotComparable struct{ Base, Volume, Problem string }

func (n *NotComparable) Error() string {
	return fmt.Sprintf("compare the block maps of %s and %s: %s", n.Base, n.Volume, n.Problem)
}

// compareFiles lists where the file volume differs from the file base. Two blocks at one address are one block: the
// file system gives a block to a second file only by sharing it, and writes to a shared block go to a new one.
func compareFiles(ctx context.Context, base, volume string, size int64) (List, error) {
	p, err := openPair(base, volume, size)
	if err != nil {
		return List{}, err
	}
	defer p.close()
	if err := p.comparable(); err != nil {
		return List{}, err
	}
	b := newBuilder(size)
	// What the base did not have is listed whole, holes too: nobody says what a copy has there.
	common := min(size, p.baseSize)
	if err := compareMaps(ctx, newMapReader(p.base, common), newMapReader(p.volume, common), b); err != nil {
		return List{}, p.explain(err)
	}
	b.add(common, size-common)
	return b.list(), nil
}

// compareMaps adds to b where two files of equal size differ.
func compareMaps(ctx context.Context, one, other *mapReader, b *builder) error {
	x, err := one.next(ctx)
	if err != nil {
		return err
	}
	y, err := other.next(ctx)
	if err != nil {
		return err
	}
	for at := int64(0); at < one.size; {
		end := min(x.end, y.end)
		if differ(x, y, at) {
			b.add(at, end-at)
		}
		at = end
		if x.end == at {
			if x, err = one.next(ctx); err != nil {
				return err
			}
		}
		if y.end == at {
			if y, err = other.next(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// differ tells whether two runs that both cover at may have different content there.
func differ(x, y run, at int64) bool {
	if x.what != y.what || x.what == opaque {
		return true
	}
	return x.what == stored && x.address+(at-x.start) != y.address+(at-y.start)
}

// pair is two open files.
type pair struct {
	base, volume *os.File
	baseSize     int64
}

func openPair(base, volume string, size int64) (_ *pair, err error) {
	p := &pair{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.base, err = os.Open(base); err != nil {
		return nil, fmt.Errorf("open the earlier instant: %w", err)
	}
	if p.volume, err = os.Open(volume); err != nil {
		return nil, fmt.Errorf("open the volume: %w", err)
	}
	for _, f := range []*os.File{p.base, p.volume} {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, p.refuse("%s is no regular file; only files share blocks", f.Name())
		}
		if f == p.base {
			p.baseSize = info.Size()
			continue
		}
		if info.Size() != size {
			return nil, &SizeDiffers{Origin: "the block map of " + volume, Listed: info.Size(), Size: size}
		}
	}
	return p, nil
}

func (p *pair) close() {
	for _, f := range []*os.File{p.base, p.volume} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (p *pair) refuse(format string, args ...any) error {
	return &NotComparable{Base: p.base.Name(), Volume: p.volume.Name(), Problem: fmt.Sprintf(format, args...)}
}

func (p *pair) explain(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return p.refuse("the file system shows no block maps")
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("compare the block maps of %s and %s: %w", p.base.Name(), p.volume.Name(), err)
}

// comparable refuses files whose addresses do not mean the same. Only file systems whose addresses are known to be
// addresses on one device are let in: an overlay, for one, shows those of whatever lies below.
func (p *pair) comparable() error {
	base, err := placeOf(p.base)
	if err != nil {
		return p.explain(err)
	}
	volume, err := placeOf(p.volume)
	if err != nil {
		return p.explain(err)
	}
	switch {
	case base.kind != unix.XFS_SUPER_MAGIC && base.kind != unix.BTRFS_SUPER_MAGIC:
		return p.refuse("%s is on no file system whose files share blocks; XFS and btrfs are known", p.base.Name())
	case base != volume:
		return p.refuse("they are not on the same file system")
	}
	return nil
}

// place is what two files have in common whose addresses can be compared.
type place struct {
	kind     int64
	device   uint64   // XFS: of the file system
	id       [16]byte // btrfs: of the file system; its subvolumes have devices of their own
	realtime bool     // XFS: the file's data is on the realtime device
}

func placeOf(f *os.File) (place, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return place{}, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	at := place{kind: int64(fs.Type)}
	switch at.kind {
	case unix.BTRFS_SUPER_MAGIC:
		id, err := btrfsID(f)
		at.id = id
		return at, err
	case unix.XFS_SUPER_MAGIC:
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return place{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
		}
		at.device = st.Dev
		realtime, err := onRealtime(f)
		at.realtime = realtime
		return at, err
	}
	return at, nil
}

// btrfsID is the identity of the file system, by BTRFS_IOC_FS_INFO: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args),
// 1024 bytes with the 16 of fsid at 16.
func btrfsID(f *os.File) (id [16]byte, err error) {
	var info [1024]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8400941F, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return id, os.NewSyscallError("btrfs_ioc_fs_info", errno)
	}
	copy(id[:], info[16:])
	return id, nil
}

// onRealtime reads FS_IOC_FSGETXATTR: _IOR('X', 31, struct fsxattr), 28 bytes, fsx_xflags le32 first; bit 0 is
// FS_XFLAG_REALTIME.
func onRealtime(f *os.File) (bool, error) {
	var attributes [7]uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x801C581F, uintptr(unsafe.Pointer(&attributes))); errno != 0 {
		return false, os.NewSyscallError("fsgetxattr", errno)
	}
	return attributes[0]&1 != 0, nil
}

// NotAFile is a volume that cannot tell what was written to it.
type NotAFile struct{ Path string }

func (n *NotAFile) Error() string {
	return fmt.Sprintf("%s does not tell what was ever written to it: a device or a file system without holes", n.Path)
}

// allocatedInFile lists the parts of the file that are not holes. Space that is reserved and not written counts as
// a hole, unless data for it waits in memory.
func allocatedInFile(ctx context.Context, path string, size int64) (List, error) {
	f, err := os.Open(path)
	if err != nil {
		return List{}, fmt.Errorf("list what was written: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return List{}, fmt.Errorf("list what was written: %w", err)
	}
	if !info.Mode().IsRegular() {
		return List{}, &NotAFile{path}
	}
	if info.Size() != size {
		return List{}, &SizeDiffers{Origin: "the holes of " + path, Listed: info.Size(), Size: size}
	}
	b := newBuilder(size)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return List{}, err
		}
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if errors.Is(err, unix.EINVAL) {
			return List{}, &NotAFile{path}
		}
		if err != nil {
			return List{}, fmt.Errorf("list what was written to %s: %w", path, err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil { // not ENXIO: data was just found there
			return List{}, fmt.Errorf("list what was written to %s: %w", path, err)
		}
		end := min(hole, size)
		b.add(data, end-data)
		at = end
	}
	return b.list(), nil
}
