// Package filesystem recognises, makes, checks, grows and freezes the file systems inside volumes.
//
// It reads content before it writes any: Blank must say yes before Format may be asked. It makes file systems
// with the stock tools and names the package of a missing one. It mounts nothing.
// Begin reading at Probe and Blank.
package filesystem

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is a file system as mount(2) names it.
type Kind string

const (
	None  Kind = ""
	Ext4  Kind = "ext4"
	XFS   Kind = "xfs"
	Btrfs Kind = "btrfs"
)

// minimum is the smallest volume in bytes the tools make the file system on (mkfs.xfs(8) since 5.19: 300 MiB;
// ext4 with a journal: 1024 blocks of journal and room beside it).
var minimum = map[Kind]int64{Ext4: 8 << 20, XFS: 300 << 20}

// Minimum is the smallest volume in bytes that can hold the file system.
func Minimum(k Kind) int64 { return minimum[k] }

// Supported tells whether volumes may be formatted with k.
func Supported(k Kind) bool { return k == Ext4 || k == XFS }

// Found is what a superblock says.
type Found struct {
	Kind Kind  // None when no known file system begins here
	Size int64 // bytes the file system spans
}

// Probe reads the superblock of the file system in r, if there is one it knows.
func Probe(r io.ReaderAt) (Found, error) {
	head := make([]byte, 68<<10)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Found{}, fmt.Errorf("look for a file system: %w", err)
	}
	head = head[:n]
	switch {
	case isExt(head):
		return Found{Ext4, extSize(head[1024:])}, nil
	case bytes.HasPrefix(head, []byte("XFSB")) && len(head) >= 512:
		// xfs_dsb: sb_blocksize be32 at 4, sb_dblocks be64 at 8.
		return Found{XFS, int64(binary.BigEndian.Uint32(head[4:])) * int64(binary.BigEndian.Uint64(head[8:]))}, nil
	case len(head) >= 0x10048 && string(head[0x10040:0x10048]) == "_BHRfS_M":
		// btrfs_super_block at 64 KiB: magic at 0x40, total_bytes le64 at 0x70.
		return Found{Btrfs, int64(binary.LittleEndian.Uint64(head[0x10070:]))}, nil
	}
	return Found{}, nil
}

func isExt(head []byte) bool {
	return len(head) >= 2048 && binary.LittleEndian.Uint16(head[1024+0x38:]) == 0xEF53
}

// extSize reads ext4_super_block: s_blocks_count_lo le32 at 0x4, s_log_block_size le32 at 0x18,
// s_feature_incompat le32 at 0x60 (0x80: 64bit), s_blocks_count_hi le32 at 0x150.
func extSize(sb []byte) int64 {
	blocks := uint64(binary.LittleEndian.Uint32(sb[0x4:]))
	if binary.LittleEndian.Uint32(sb[0x60:])&0x80 != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	return int64(blocks) << (10 + binary.LittleEndian.Uint32(sb[0x18:]))
}

// Blank tells whether f holds nothing but zeros. Holes cost nothing; reading stops at the first byte that is
// not zero, so only written zeros are read through.
func Blank(f *os.File) (bool, error) {
	buffer := make([]byte, 1<<20)
	for at := int64(0); ; {
		at64, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for data in %s: %w", f.Name(), err)
		}
		n, err := f.ReadAt(buffer, at64)
		if len(bytes.Trim(buffer[:n], "\x00")) > 0 {
			return false, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if n == 0 {
			return true, nil
		}
		at = at64 + int64(n)
	}
}

// MissingTool is a program this machine or image lacks.
type MissingTool struct{ Tool, Package string }

func (m *MissingTool) Error() string {
	return fmt.Sprintf("%s is not installed: add the package %s (Debian: apt-get install %s)", m.Tool, m.Package, m.Package)
}

var packages = map[string]string{
	"mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs",
	"mkfs.xfs": "xfsprogs", "xfs_growfs": "xfsprogs",
	"mkfs.btrfs": "btrfs-progs", "btrfs": "btrfs-progs",
}

// Format makes a file system of kind k in the regular file at path, which is blank. The tools find out by
// themselves that a hole reads as zeros and leave inode tables unwritten.
func Format(ctx context.Context, path string, k Kind) error {
	switch k {
	case Ext4:
		return run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", path)
	case XFS:
		return run(ctx, "mkfs.xfs", "-q", "-f", path)
	case Btrfs:
		return run(ctx, "mkfs.btrfs", "-q", "-f", path)
	}
	return fmt.Errorf("make a file system of type %q: only ext4 and xfs are supported", k)
}

// Check repairs what can be repaired without losing anything before an unmounted file system is mounted; XFS
// does that itself when it is mounted.
func Check(ctx context.Context, device string, k Kind) error {
	if k != Ext4 {
		return nil
	}
	err := run(ctx, "e2fsck", "-p", device)
	var exit *exec.ExitError
	// e2fsck(8): 1 means errors were corrected.
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil
	}
	return err
}

// GrowsMounted tells whether this process may grow a mounted file system of kind k. For ext4 the kernel wants
// CAP_SYS_RESOURCE, which root lacks in some sandboxes.
func GrowsMounted(k Kind) (bool, error) {
	if k != Ext4 {
		return true, nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read this process's capabilities: %w", err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0, nil
}

// GrowUnmounted makes an ext4 file system that is not mounted as large as its device. It checks the whole file
// system first, which takes time where there are many files.
func GrowUnmounted(ctx context.Context, device string) error {
	err := run(ctx, "e2fsck", "-f", "-p", device)
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return err
	}
	return run(ctx, "resize2fs", device)
}

// Grow makes the mounted file system as large as its device.
func Grow(ctx context.Context, device, point string, k Kind) error {
	switch k {
	case Ext4:
		return run(ctx, "resize2fs", device)
	case XFS:
		return run(ctx, "xfs_growfs", "-d", point)
	case Btrfs:
		return run(ctx, "btrfs", "filesystem", "resize", "max", point)
	}
	return fmt.Errorf("grow a file system of type %q: only ext4 and xfs are supported", k)
}

// MakeSubvolume makes a btrfs subvolume at path: a folder that can be cut at one instant.
func MakeSubvolume(ctx context.Context, path string) error {
	return run(ctx, "btrfs", "subvolume", "create", path)
}

// CutSubvolume makes the read-only copy to of the subvolume from, of one instant: what a writer was told is durable
// is in it, with everything that was durable before.
func CutSubvolume(ctx context.Context, from, to string) error {
	return run(ctx, "btrfs", "subvolume", "snapshot", "-r", from, to)
}

// RemoveSubvolume removes a subvolume and all that is in it.
func RemoveSubvolume(ctx context.Context, path string) error {
	return run(ctx, "btrfs", "subvolume", "delete", path)
}

// IsSubvolume tells whether the folder at path is a btrfs subvolume: those have an inode number of their own
// (BTRFS_FIRST_FREE_OBJECTID).
func IsSubvolume(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fs.Type == unix.BTRFS_SUPER_MAGIC && st.Ino == 256, nil
}

// Sync writes everything out that was written to the file system mounted at point.
func Sync(point string) error {
	return withDir(point, "sync", func(fd int) error { return unix.Syncfs(fd) })
}

// Freeze makes writers of the file system mounted at point wait, and its device consistent, until Thaw. It
// returns false when somebody else froze it already.
func Freeze(point string) (bool, error) {
	err := withDir(point, "freeze", func(fd int) error { return unix.IoctlSetInt(fd, fiFreeze, 0) })
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	return err == nil, err
}

// Thaw lets writers continue. A file system that is not frozen is fine.
func Thaw(point string) error {
	err := withDir(point, "thaw", func(fd int) error { return unix.IoctlSetInt(fd, fiThaw, 0) })
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

func withDir(point, verb string, do func(fd int) error) error {
	dir, err := os.Open(point)
	if err != nil {
		return fmt.Errorf("%s the file system at %s: %w", verb, point, err)
	}
	defer func() { _ = dir.Close() }()
	if err := do(int(dir.Fd())); err != nil {
		return fmt.Errorf("%s the file system at %s: %w", verb, point, err)
	}
	return nil
}

// run runs a tool and puts what it said into the error.
func run(ctx context.Context, tool string, args ...string) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	path, err := exec.LookPath(tool)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + tool); err != nil {
			return &MissingTool{tool, packages[tool]}
		}
	}
	cmd.Path, cmd.Err = path, nil
	output, err := cmd.CombinedOutput()
	if err != nil {
		said := strings.Join(strings.Fields(string(output)), " ")
		return fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, said)
	}
	return nil
}
