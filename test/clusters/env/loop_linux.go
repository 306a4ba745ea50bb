package env

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// file names a file by what stays the same in every mount namespace. Loop devices belong to the whole host, but the
// paths they show for their files are those inside a cluster, where both clusters have the same ones.
type file struct{ device, inode uint64 }

// loop is an attached loop device.
type loop struct {
	path   string // on the host, as /dev/loop3
	device uint64 // its own number
	file   file   // what is behind it
	behind uint64 // the number of the device behind it, if it is a device: the kubelet holds block volumes so
	shown  string // the path of what is behind it, in the sight of whoever attached it
}

// loopsOf lists the loop devices that hold data of the cluster, those on top (to be detached first) first: on files of
// its folder, on file systems that are on such devices, or on such devices themselves.
func loopsOf(c Cluster) ([]loop, error) {
	attached, err := loops()
	if err != nil || len(attached) == 0 {
		return nil, err
	}
	files, err := filesIn(c.path("var"), c.path("var/lib/containerd"))
	if err != nil {
		return nil, err
	}
	orphans := orphaned(attached)
	var found []loop
	ours := map[uint64]bool{}
	for again := true; again; {
		again = false
		for _, l := range attached {
			if ours[l.device] || !(files[l.file] || ours[l.file.device] || ours[l.behind] || orphans[l.device]) {
				continue
			}
			ours[l.device], again = true, true
			found = append([]loop{l}, found...)
		}
	}
	return found, nil
}

// orphaned are devices on files that had a driver's path in some cluster and are in the sight of no process of any
// cluster now. On btrfs a file's device number says nothing about the disk below, so this is the only trace
// that a dead cluster leaves of them.
func orphaned(attached []loop) map[uint64]bool {
	all := map[uint64]bool{}
	var views []int
	for _, l := range attached {
		if !strings.HasPrefix(l.shown, "/var/lib/lifeboat-csi/") {
			continue
		}
		if views == nil {
			views = append(distinctViews(), os.Getpid())
		}
		if !seen(l, views) {
			all[l.device] = true
		}
	}
	return all
}

func seen(l loop, views []int) bool {
	for _, pid := range views {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/root%s", pid, l.shown), &st); err == nil && (file{st.Dev, st.Ino}) == l.file {
			return true
		}
	}
	return false
}

// distinctViews is one process for each mount namespace of every running cluster, of whatever slot.
func distinctViews() []int {
	mounts, err := hierarchies()
	if err != nil {
		return nil
	}
	tops, err := filepath.Glob(filepath.Join(mounts[0], "lifeboat-[0-9]-*"))
	if err != nil {
		return nil
	}
	known := map[string]bool{}
	var views []int
	for _, top := range tops {
		for _, pid := range processesBelow(top) {
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil && !known[ns] {
				known[ns] = true
				views = append(views, pid)
			}
		}
	}
	return views
}

func filesIn(dir, except string) (map[file]bool, error) {
	files := map[file]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreMissing(err)
		}
		if path == except {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		files[file{st.Dev, st.Ino}] = true
		return nil
	})
	return files, err
}

func loops() ([]loop, error) {
	entries, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []loop
	for _, entry := range entries {
		l := loop{path: "/dev/" + strings.Split(entry, "/")[3]}
		shown, err := os.ReadFile(entry)
		if err != nil {
			continue // detached meanwhile
		}
		l.shown = strings.TrimSpace(string(shown))
		var st unix.Stat_t
		if err := unix.Stat(l.path, &st); err != nil {
			continue
		}
		l.device = st.Rdev
		fd, err := unix.Open(l.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(fd)
		unix.Close(fd)
		if err != nil {
			continue
		}
		l.file, l.behind = file{info.Device, info.Inode}, info.Rdevice
		all = append(all, l)
	}
	return all, nil
}

// detachLoops frees the loop devices that a dead cluster leaves: the kernel keeps them, and what is mounted from them,
// attached after all processes and mounts are gone.
func detachLoops(c Cluster) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := loopsOf(c)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("loop device %s still holds data of %s (%s): something on the host has it open or mounted", left[0].path, c.Name, left[0].shown)
		}
		for _, l := range left {
			if err := detach(l.path); err != nil {
				return err
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// detach asks for the device to be freed as soon as nobody has it open.
func detach(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}
