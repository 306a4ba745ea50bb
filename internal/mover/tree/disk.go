package tree

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Everything below a root is reached from its descriptor, name by name, and never through a symbolic link: whoever can
// write into the tree cannot lead this process out of it.

// folder is an open directory that several goroutines use.
type folder struct {
	fd   int
	path string
	refs atomic.Int32
	// acl is what files made here inherit: 0 unknown, 1 nothing, 2 an access control list.
	acl atomic.Int32
	// making is held while a name is made here. The kernel makes one name of a directory at a time: without it the others
	// would not sleep but spin in the kernel, and take the processors from whoever has work.
	making sync.Mutex
}

func newFolder(fd int, path string) *folder {
	f := &folder{fd: fd, path: path}
	f.refs.Store(1)
	return f
}

func (f *folder) hold() *folder {
	f.refs.Add(1)
	return f
}

func (f *folder) release() {
	if f != nil && f.refs.Add(-1) == 0 {
		_ = unix.Close(f.fd)
	}
}

// again repeats a call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
}

func openRoot(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open tree %s: %w", path, err)
	}
	return fd, nil
}

// openAt opens one name of a directory.
func openAt(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = again(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// pathChunk bounds what one system call is given, below the kernel's PATH_MAX.
const pathChunk = 4000

// openDirBelow opens a directory by its path below root.
func openDirBelow(root int, path string) (int, error) {
	if path == "" {
		return openAt(root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	at, owned := root, false
	for path != "" {
		var part string
		part, path = cutPath(path)
		next, err := openPart(at, part)
		if owned {
			_ = unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at, owned = next, true
	}
	return at, nil
}

func cutPath(path string) (part, rest string) {
	if len(path) <= pathChunk {
		return path, ""
	}
	i := strings.LastIndexByte(path[:pathChunk], '/')
	return path[:i], path[i+1:]
}

// openPart opens a directory some names below another.
func openPart(at int, part string) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	err = again(func() error {
		fd, err = unix.Openat2(at, part, &how)
		return err
	})
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return fd, err
	}
	// A kernel or sandbox without openat2.
	fd = -1
	for name := range strings.SplitSeq(part, "/") {
		next, err := openAt(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
		at, fd = next, next
	}
	return fd, nil
}

// splitPath is a path's directory and last name.
func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// below reports whether path lies below dir.
func below(dir, path string) bool {
	return dir == "" && path != "" || len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

func statAt(dir int, name string) (st unix.Stat_t, err error) {
	err = again(func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

// metaOf is an entry as the file system has it.
func metaOf(st *unix.Stat_t) (m wire.TreeMeta, err error) {
	m = wire.TreeMeta{
		Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid,
		Modified: st.Mtim.Sec, ModifiedNs: uint32(st.Mtim.Nsec), Changed: st.Ctim.Sec, ChangedNs: uint32(st.Ctim.Nsec),
		Inode: st.Ino, Links: uint32(st.Nlink),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		m.Kind, m.Size = wire.TreeFile, st.Size
	case unix.S_IFDIR:
		m.Kind = wire.TreeDirectory
	case unix.S_IFLNK:
		m.Kind = wire.TreeSymlink
	case unix.S_IFIFO:
		m.Kind = wire.TreeFifo
	case unix.S_IFSOCK:
		m.Kind = wire.TreeSocket
	case unix.S_IFCHR:
		m.Kind = wire.TreeCharDevice
	case unix.S_IFBLK:
		m.Kind = wire.TreeBlockDevice
	default:
		return m, fmt.Errorf("file type %o is not known", st.Mode&unix.S_IFMT)
	}
	if m.Kind == wire.TreeCharDevice || m.Kind == wire.TreeBlockDevice {
		m.DeviceMajor, m.DeviceMinor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return m, nil
}

// sparse reports whether a file has fewer bytes on disk than it is long.
func sparse(st *unix.Stat_t) bool { return st.Blocks*512 < st.Size }

// namesIn lists a directory, sorted.
func namesIn(dir int) ([]string, error) {
	fd, err := openAt(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

// procPath is a path to a name of an open directory, for the calls that have no descriptor of their own kind.
func procPath(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }

// carried reports whether an extended attribute belongs to the content rather than to the node.
func carried(name string) bool { return name != "security.selinux" && name != "" }

// noXattrs reports that a file system has no extended attributes of the kind asked for.
func noXattrs(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOSYS)
}

// xattrs are the calls on extended attributes of one entry, by descriptor or by path.
type xattrs struct {
	fd   int
	path string // used when fd is negative; not followed
}

func (x xattrs) list(b []byte) (int, error) {
	if x.fd >= 0 {
		return unix.Flistxattr(x.fd, b)
	}
	return unix.Llistxattr(x.path, b)
}

func (x xattrs) get(name string, b []byte) (int, error) {
	if x.fd >= 0 {
		return unix.Fgetxattr(x.fd, name, b)
	}
	return unix.Lgetxattr(x.path, name, b)
}

func (x xattrs) set(name string, value []byte) error {
	if x.fd >= 0 {
		return unix.Fsetxattr(x.fd, name, value, 0)
	}
	return unix.Lsetxattr(x.path, name, value, 0)
}

func (x xattrs) remove(name string) error {
	if x.fd >= 0 {
		return unix.Fremovexattr(x.fd, name)
	}
	return unix.Lremovexattr(x.path, name)
}

// names lists the attributes that are carried, sorted.
func (x xattrs) names() ([]string, error) {
	var small [1024]byte
	b := small[:]
	n, err := x.list(b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, wire.MaxTreeXattr)
		n, err = x.list(b)
	}
	if noXattrs(err) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for name := range strings.SplitSeq(string(b[:n]), "\x00") {
		if carried(name) {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out, nil
}

// all reads the attributes that are carried.
func (x xattrs) all() ([]wire.TreeXattr, error) {
	names, err := x.names()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var out []wire.TreeXattr
	room := wire.MaxTreeXattrs
	for _, name := range names {
		b := make([]byte, 256)
		n, err := x.get(name, b)
		if errors.Is(err, unix.ERANGE) {
			b = make([]byte, wire.MaxTreeXattr)
			n, err = x.get(name, b)
		}
		if noXattrs(err) {
			continue // listed, but a virtual one of the file system
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		if room -= len(name) + n; room < 0 {
			return nil, fmt.Errorf("its extended attributes are more than %d bytes, which is more than is carried", wire.MaxTreeXattrs)
		}
		out = append(out, wire.TreeXattr{Name: name, Value: b[:n]})
	}
	return out, nil
}

// become makes the attributes that are carried exactly these.
func (x xattrs) become(want []wire.TreeXattr) error {
	have, err := x.names()
	if err != nil {
		return err
	}
	for _, name := range have {
		wanted := false
		for i := range want {
			wanted = wanted || want[i].Name == name
		}
		if wanted {
			continue
		}
		if err := x.remove(name); err != nil && !noXattrs(err) {
			return fmt.Errorf("remove attribute %s: %w", name, err)
		}
	}
	for i := range want {
		if !carried(want[i].Name) {
			continue
		}
		if err := x.set(want[i].Name, want[i].Value); err != nil {
			return fmt.Errorf("set attribute %s: %w", want[i].Name, err)
		}
	}
	return nil
}

func timesOf(m *wire.TreeMeta) [2]unix.Timespec {
	return [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: m.Modified, Nsec: int64(m.ModifiedNs)}}
}

// setTimes sets the times of an open file; utimensat without a path is the only call that takes a descriptor.
func setTimes(fd int, m *wire.TreeMeta) error {
	ts := timesOf(m)
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return syscall.Errno(errno)
	}
	return nil
}

// syncAll makes everything written to the file system of an open directory durable.
func syncAll(fd int) error {
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("sync the tree's file system: %w", err)
	}
	return nil
}
