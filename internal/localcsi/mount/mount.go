// Package mount reads the kernel's mount table and changes it.
//
// What is mounted is read from mountinfo each time, never remembered. A table that cannot be read is an error,
// never "nothing is mounted": a driver that guesses here unmounts nothing and loses track of writers.
// Begin reading at Read and Table.
package mount

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one line of mountinfo (proc_pid_mountinfo(5)).
type Entry struct {
	Dev     uint64 // device number of the mounted file system
	Root    string // what part of the file system is mounted
	Point   string // where
	Options []string
	Type    string
	Source  string   // what the file system said it was mounted from
	Super   []string // options of the file system itself, shared by all its mounts
}

// ReadOnly tells whether this mount refuses writes; the file system may still be writable elsewhere.
func (e Entry) ReadOnly() bool { return has(e.Options, "ro") || has(e.Super, "ro") }

// FileSystemReadOnly tells whether the file system as a whole refuses writes.
func (e Entry) FileSystemReadOnly() bool { return has(e.Super, "ro") }

// Table is the mount table of this process's mount namespace, in the kernel's order.
type Table []Entry

// Read returns the present mount table.
func Read() (Table, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer func() { _ = f.Close() }()
	return Parse(f)
}

// Parse reads a table in mountinfo's format.
func Parse(r io.Reader) (Table, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	var t Table
	for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		e, err := parseLine(line)
		if err != nil {
			return nil, err
		}
		t = append(t, e)
	}
	return t, nil
}

// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
// id parent dev root point options optional... - type source super
func parseLine(line string) (Entry, error) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 6 || len(r) < 3 {
		return Entry{}, fmt.Errorf("read the mount table: line %q has not the form of mountinfo", line)
	}
	major, minor, _ := strings.Cut(l[2], ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return Entry{}, fmt.Errorf("read the mount table: device %q: %w", l[2], err)
	}
	return Entry{
		Dev:     unix.Mkdev(uint32(ma), uint32(mi)),
		Root:    unescape(l[3]),
		Point:   unescape(l[4]),
		Options: strings.Split(l[5], ","),
		Type:    r[0],
		Source:  unescape(r[1]),
		Super:   strings.Split(r[2], ","),
	}, nil
}

// unescape undoes mountinfo's \ooo for space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// At returns the topmost mount at path. Symbolic links in path are followed; a path that does not exist has
// nothing mounted on it.
func (t Table) At(path string) (Entry, bool, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, false, nil
	}
	if err != nil {
		return Entry{}, false, fmt.Errorf("look for a mount at %s: %w", path, err)
	}
	for i := len(t) - 1; i >= 0; i-- {
		if t[i].Point == real {
			return t[i], true, nil
		}
	}
	return Entry{}, false, nil
}

// OfDevice returns the mounts of the file system on the device.
func (t Table) OfDevice(dev uint64) []Entry {
	var found []Entry
	for _, e := range t {
		if e.Dev == dev {
			found = append(found, e)
		}
	}
	return found
}

// OfNode returns the mounts that put the block device's node somewhere else.
func (t Table) OfNode(rdev uint64) ([]Entry, error) {
	var found []Entry
	for _, e := range t {
		if e.Type != "devtmpfs" && e.Type != "tmpfs" {
			continue
		}
		if e.Root == "/" {
			continue
		}
		var st unix.Stat_t
		err := unix.Lstat(e.Point, &st)
		if errors.Is(err, unix.ENOENT) {
			continue // hidden below a later mount
		}
		if err != nil {
			return nil, fmt.Errorf("look at the mount %s: %w", e.Point, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == rdev {
			found = append(found, e)
		}
	}
	return found, nil
}

// perMount are the options that mount(2) takes as flags, with the flags to set and to clear.
var perMount = map[string]struct{ set, clear uintptr }{
	"defaults":      {},
	"rw":            {0, unix.MS_RDONLY},
	"ro":            {unix.MS_RDONLY, 0},
	"suid":          {0, unix.MS_NOSUID},
	"nosuid":        {unix.MS_NOSUID, 0},
	"dev":           {0, unix.MS_NODEV},
	"nodev":         {unix.MS_NODEV, 0},
	"exec":          {0, unix.MS_NOEXEC},
	"noexec":        {unix.MS_NOEXEC, 0},
	"sync":          {unix.MS_SYNCHRONOUS, 0},
	"async":         {0, unix.MS_SYNCHRONOUS},
	"dirsync":       {unix.MS_DIRSYNC, 0},
	"atime":         {0, unix.MS_NOATIME},
	"noatime":       {unix.MS_NOATIME, unix.MS_RELATIME | unix.MS_STRICTATIME},
	"diratime":      {0, unix.MS_NODIRATIME},
	"nodiratime":    {unix.MS_NODIRATIME, 0},
	"relatime":      {unix.MS_RELATIME, unix.MS_NOATIME | unix.MS_STRICTATIME},
	"norelatime":    {0, unix.MS_RELATIME},
	"strictatime":   {unix.MS_STRICTATIME, unix.MS_NOATIME | unix.MS_RELATIME},
	"nostrictatime": {0, unix.MS_STRICTATIME},
	"lazytime":      {unix.MS_LAZYTIME, 0},
	"nolazytime":    {0, unix.MS_LAZYTIME},
}

// Options are mount options as people write them ("noatime", "data=ordered").
type Options []string

// split separates what the kernel takes as flags from what it hands to the file system.
func (o Options) split() (flags uintptr, data string) {
	var rest []string
	for _, option := range o {
		for _, one := range strings.Split(option, ",") {
			if f, ok := perMount[one]; ok {
				flags = flags&^f.clear | f.set
				continue
			}
			if one != "" {
				rest = append(rest, one)
			}
		}
	}
	return flags, strings.Join(rest, ",")
}

// Has tells whether the option stands there, alone or with a value.
func (o Options) Has(name string) bool {
	for _, option := range o {
		for _, one := range strings.Split(option, ",") {
			if one == name || strings.HasPrefix(one, name+"=") {
				return true
			}
		}
	}
	return false
}

// Mount mounts the file system on device at point.
func Mount(device, point, fsType string, options Options) error {
	flags, data := options.split()
	if err := unix.Mount(device, point, fsType, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s, options %q) at %s: %w", device, fsType, strings.Join(options, ","), point, err)
	}
	return nil
}

// Bind makes what is at source also appear at target, refusing writes there when readOnly. When the second
// step fails nothing remains mounted.
func Bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	var st unix.Statfs_t
	err := unix.Statfs(target, &st)
	if err == nil {
		// A remount replaces all flags of the mount, so those it has are given again.
		keep := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
		if st.Flags&stRelatime != 0 {
			keep |= unix.MS_RELATIME
		}
		err = unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|keep, "")
	}
	if err != nil {
		err = fmt.Errorf("make the mount at %s read-only: %w", target, err)
		return errors.Join(err, Unmount(target))
	}
	return nil
}

// stRelatime is ST_RELATIME of statfs(2); its other flags have the values of their MS_ counterparts, as far
// as Bind uses them.
const stRelatime = 0x1000

// Unmount removes every mount at point. Nothing mounted there is fine.
func Unmount(point string) error {
	for {
		t, err := Read()
		if err != nil {
			return err
		}
		top, mounted, err := t.At(point)
		if err != nil {
			return err
		}
		if !mounted {
			return nil
		}
		if err := unix.Unmount(top.Point, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", top.Point, err)
		}
	}
}

func has(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}
