package env

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
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
	var found []loop
	ours := map[uint64]bool{}
	for again := true; again; {
		again = false
		for _, l := range attached {
			if ours[l.device] || !(files[l.file] || ours[l.file.device] || ours[l.behind]) {
				continue
			}
			ours[l.device], again = true, true
			found = append([]loop{l}, found...)
			inside, err := filesOnBtrfs(l, c.Dir)
			if err != nil {
				return nil, err
			}
			maps.Copy(files, inside)
		}
	}
	return found, nil
}

// filesOnBtrfs lists the files of a btrfs that is on the loop device and in use, perhaps by nothing but a further loop
// device on one of its files: the numbers that btrfs gives its files' devices do not lead to the disk below, so one has
// to look. The mount for it is seen by one process only and vanishes with it. Other file systems have none.
func filesOnBtrfs(l loop, at string) (map[file]bool, error) {
	if used, err := filepath.Glob("/sys/fs/btrfs/*/devices/" + filepath.Base(l.path)); err != nil || len(used) == 0 {
		return nil, err
	}
	const look = `mount -t btrfs "$0" "$1" && find "$1" -type f -printf '%D %i\n'`
	out, err := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", look, l.path, at).Output()
	if err != nil {
		return nil, fmt.Errorf("look for files on %s: %w", l.path, withOutput(err))
	}
	files := map[file]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		var f file
		if _, err := fmt.Sscan(line, &f.device, &f.inode); err == nil {
			files[f] = true
		}
	}
	return files, nil
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
		_ = unix.Close(fd)
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
