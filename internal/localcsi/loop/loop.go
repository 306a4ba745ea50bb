// Package loop turns files into block devices by the kernel's loop driver.
//
// It knows which file stands behind which device by the file's device and inode numbers, which the kernel
// keeps for as long as the device is attached. It never trusts the path of a backing file: that path changes
// its meaning between mount namespaces and after a file system was mounted again.
//
// A Device is an open handle. While it is open the kernel cannot give the device number to another file;
// close it when the number is no longer used. Begin reading at Attach and Find.
package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sectorSize is what file systems copied between volumes expect: a file system made with 512-byte sectors
// cannot be mounted from a device with larger ones, the reverse works.
const sectorSize = 512

// major is the loop driver's major device number (Linux, Documentation/admin-guide/devices.txt).
const major = 7

// FileID names a file by what the kernel knows of it.
type FileID struct {
	Dev   uint64 // device number of the file system, as in stat(2)
	Inode uint64
}

// Identify returns the identity of the file at path.
func Identify(path string) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return FileID{Dev: st.Dev, Inode: st.Ino}, nil
}

// Device is an attached loop device, held open.
type Device struct {
	Number    int
	Backing   FileID
	ReadOnly  bool
	AutoClear bool // detaches by itself when the last opener or mount goes away
	DirectIO  bool

	below uint64 // number of the device it was attached to, when its file is a device's node
	file  *os.File
}

// Path is the device's node.
func (d *Device) Path() string { return nodePath(d.Number) }

// Rdev is the device's number, as mountinfo and stat report it.
func (d *Device) Rdev() uint64 { return unix.Mkdev(major, uint32(d.Number)) }

// Close gives the handle up. The device stays attached unless it was detached or clears itself.
func (d *Device) Close() error { return d.file.Close() }

// Attach puts a new loop device over the file at path, with direct I/O where the file system can do it, and
// stores name beside it for people who look with losetup. Without direct I/O the data would be cached twice.
func Attach(path, name string, readOnly bool) (*Device, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	backing, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = backing.Close() }()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach a loop device to %s: %w (is the loop driver there, and /dev the host's?)", path, err)
	}
	defer func() { _ = control.Close() }()

	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: sectorSize}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], name)
	// Another process may take the free device between the two calls, so the next free one is tried.
	for range 64 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		file, err := openNode(number, mode)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(file.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			_ = file.Close()
			continue
		}
		if err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("attach %s to %s: %w", nodePath(number), path, err)
		}
		d, attached, err := status(number, file)
		if err == nil && !attached {
			err = unix.ENXIO
		}
		if err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("read %s just attached to %s: %w", nodePath(number), path, err)
		}
		return d, nil
	}
	return nil, fmt.Errorf("attach a loop device to %s: every free device was taken by others", path)
}

// Find returns the devices over the file, lowest number first. The caller closes them.
func Find(id FileID) ([]*Device, error) {
	return list(func(d *Device) bool { return d.Backing == id })
}

// OnFileSystem returns the devices whose files lie on the file system with this device number. The caller
// closes them.
func OnFileSystem(dev uint64) ([]*Device, error) {
	return list(func(d *Device) bool { return d.Backing.Dev == dev })
}

// StackedOn returns the devices that were attached to the node of the device with this number. The kubelet puts
// one over each block device it gives to a pod, to keep it from going away. The caller closes them.
func StackedOn(rdev uint64) ([]*Device, error) {
	return list(func(d *Device) bool { return d.below == rdev })
}

// CloseAll closes every handle.
func CloseAll(devices []*Device) {
	for _, d := range devices {
		_ = d.Close()
	}
}

// Detach takes the file off the device once nobody else has it open or mounted; until then the device
// remains and clears itself later. The handle is closed.
func (d *Device) Detach() error {
	err := unix.IoctlSetInt(int(d.file.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil
	}
	if closed := d.file.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", d.Path(), err)
	}
	return nil
}

// Refresh makes the device as large as its file has become.
func (d *Device) Refresh() error {
	if err := unix.IoctlSetInt(int(d.file.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("refresh the size of %s: %w", d.Path(), err)
	}
	return nil
}

// SetAutoClear says whether the device detaches by itself when its last user is gone.
func (d *Device) SetAutoClear(on bool) error {
	if d.AutoClear == on {
		return nil
	}
	info, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	if err != nil {
		return fmt.Errorf("read the status of %s: %w", d.Path(), err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if on {
		info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	if err := unix.IoctlLoopSetStatus64(int(d.file.Fd()), info); err != nil {
		return fmt.Errorf("change the flags of %s: %w", d.Path(), err)
	}
	d.AutoClear = on
	return nil
}

// Sync writes out what writers of the device left in the page cache, and drops the cache, so that the file
// behind the device holds everything and the next reader sees the file.
func (d *Device) Sync() error {
	if err := unix.Fsync(int(d.file.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", d.Path(), err)
	}
	return nil
}

// Claimed tells whether a mounted file system, in whatever mount namespace, holds the device.
func (d *Device) Claimed() (bool, error) {
	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "open exclusively", Path: d.Path(), Err: err}
	}
	return false, unix.Close(fd)
}

// list opens every attached device and returns those that keep says yes to, sorted by number.
func list(keep func(*Device) bool) ([]*Device, error) {
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat("/sys/block"); err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var found []*Device
	for _, dir := range attached {
		number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
		if err != nil {
			continue
		}
		d, err := Open(number)
		if err != nil {
			CloseAll(found)
			return nil, err
		}
		if d == nil {
			continue
		}
		if !keep(d) {
			_ = d.Close()
			continue
		}
		found = append(found, d)
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Number < found[j].Number })
	return found, nil
}

// Open returns the device with this number, or nil when it is not attached to anything. The caller closes it.
func Open(number int) (*Device, error) {
	file, err := openNode(number, os.O_RDONLY)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d, attached, err := status(number, file)
	if err != nil || !attached {
		_ = file.Close()
		return nil, err
	}
	return d, nil
}

func status(number int, file *os.File) (*Device, bool, error) {
	info, err := unix.IoctlLoopGetStatus64(int(file.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read the status of %s: %w", nodePath(number), err)
	}
	return &Device{
		Number:    number,
		Backing:   FileID{Dev: info.Device, Inode: info.Inode},
		ReadOnly:  info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		AutoClear: info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
		DirectIO:  info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		below:     info.Rdevice,
		file:      file,
	}, true, nil
}

// openNode opens the device's node and makes the node first where /dev is not kept by the kernel.
func openNode(number, mode int) (*os.File, error) {
	file, err := os.OpenFile(nodePath(number), mode, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	err = unix.Mknod(nodePath(number), unix.S_IFBLK|0o660, int(unix.Mkdev(major, uint32(number))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: nodePath(number), Err: err}
	}
	return os.OpenFile(nodePath(number), mode, 0)
}

func nodePath(number int) string { return fmt.Sprintf("/dev/loop%d", number) }
