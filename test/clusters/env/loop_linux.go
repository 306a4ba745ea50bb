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
	path   string
	device uint64 // its own number
	file   file   // what is behind it
}

// loopsOf lists the loop devices whose data is in the folder, also those that stand on a file system which is itself
// on such a loop device: the innermost (to be detached first) first.
func loopsOf(dir string) ([]loop, error) {
	files, err := filesIn(dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	attached, err := loops()
	if err != nil {
		return nil, err
	}
	var found []loop
	ours := map[string]bool{}
	devices := map[uint64]bool{}
	for again := true; again; {
		again = false
		for _, l := range attached {
			if ours[l.path] || (!files[l.file] && !devices[l.file.device]) {
				continue
			}
			ours[l.path], devices[l.device], again = true, true, true
			found = append([]loop{l}, found...)
		}
	}
	return found, nil
}

func filesIn(dir string) (map[file]bool, error) {
	files := map[file]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreMissing(err)
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
			continue // detached meanwhile
		}
		l.file = file{info.Device, info.Inode}
		all = append(all, l)
	}
	return all, nil
}

// detachLoops frees the loop devices that a dead cluster leaves: the kernel keeps them, and what is mounted from them,
// attached after all processes and mounts are gone.
func detachLoops(dir string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := loopsOf(dir)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("loop device %s still holds files of %s: something on the host has it open or mounted", left[0].path, dir)
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
