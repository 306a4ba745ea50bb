package localcsi

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// usage is who uses a volume now, as the kernel tells it.
type usage struct {
	devices []*loop.Device // open handles, writable ones first

	staged    []mount.Entry // mounts of its file system at staging paths: nobody writes through these
	mounted   []mount.Entry // its other mounts: pods
	written   []mount.Entry // nodes of its writable devices in pods
	readNodes []mount.Entry // nodes of its read-only devices in pods

	notes []pool.Staging // of staging paths that are still there
	table mount.Table
}

// observe reads who uses the volume. The caller holds the volume's lock and closes the usage.
func (d *Driver) observe(id string) (*usage, error) {
	file, err := loop.Identify(d.pool.VolumeData(id))
	if err != nil {
		return nil, err
	}
	notes, err := d.pool.Stagings(id)
	if err != nil {
		return nil, err
	}
	// Devices first: a handle keeps its number from being given to another file while mounts are compared.
	devices, err := loop.Find(file)
	if err != nil {
		return nil, err
	}
	table, err := mount.Read()
	if err != nil {
		loop.CloseAll(devices)
		return nil, err
	}
	u := &usage{devices: devices, table: table}
	for _, n := range notes {
		if exists(n.Path) {
			u.notes = append(u.notes, n)
		}
	}
	for _, device := range devices {
		if err := u.add(device); err != nil {
			u.close()
			return nil, err
		}
	}
	return u, nil
}

func (u *usage) add(device *loop.Device) error {
	for _, e := range u.table.OfDevice(device.Rdev()) {
		if u.isStaging(e.Point) {
			u.staged = append(u.staged, e)
			continue
		}
		u.mounted = append(u.mounted, e)
	}
	nodes, err := u.table.OfNode(device.Rdev())
	if err != nil {
		return err
	}
	if device.ReadOnly {
		u.readNodes = append(u.readNodes, nodes...)
		return nil
	}
	u.written = append(u.written, nodes...)
	return nil
}

func (u *usage) isStaging(point string) bool {
	for _, n := range u.notes {
		if !n.Block && resolve(n.Path) == point {
			return true
		}
	}
	return false
}

// close gives the handles up; devices that clear themselves and have no other user detach now.
func (u *usage) close() {
	loop.CloseAll(u.devices)
	u.devices = nil
}

// device returns the writable or the read-only device, if there is one.
func (u *usage) device(readOnly bool) *loop.Device {
	for _, d := range u.devices {
		if d.ReadOnly == readOnly {
			return d
		}
	}
	return nil
}

// fileSystem returns the mounts of the volume's file system, wherever they are.
func (u *usage) fileSystem() []mount.Entry {
	return append(append([]mount.Entry(nil), u.staged...), u.mounted...)
}

// publications returns the places where pods have the volume.
func (u *usage) publications() []mount.Entry {
	return append(append(append([]mount.Entry(nil), u.mounted...), u.written...), u.readNodes...)
}

// idle tells whether nobody uses the volume nor has it staged.
func (u *usage) idle() bool {
	if len(u.staged) > 0 || len(u.publications()) > 0 {
		return false
	}
	for _, n := range u.notes {
		if n.Block {
			return false
		}
	}
	return true
}

// attach returns the volume's device of that kind, and attaches one when there is none.
func (d *Driver) attach(u *usage, id string, readOnly bool) (*loop.Device, error) {
	if device := u.device(readOnly); device != nil {
		return device, device.Refresh()
	}
	device, err := loop.Attach(d.pool.VolumeData(id), Name+" "+id, readOnly)
	if err != nil {
		return nil, err
	}
	u.devices = append(u.devices, device)
	return device, nil
}

// note writes down that the volume is staged at s.Path.
func (d *Driver) note(u *usage, id string, s pool.Staging) error {
	if slices.Contains(u.notes, s) {
		return nil
	}
	keep := slices.DeleteFunc(slices.Clone(u.notes), func(n pool.Staging) bool { return n.Path == s.Path })
	u.notes = append(keep, s)
	return d.pool.SetStagings(id, u.notes)
}

// forget removes the note of path.
func (d *Driver) forget(u *usage, id, path string) error {
	keep := slices.DeleteFunc(slices.Clone(u.notes), func(n pool.Staging) bool { return n.Path == path })
	if len(keep) == len(u.notes) {
		return nil
	}
	u.notes = keep
	return d.pool.SetStagings(id, keep)
}

// yield unmounts the file system from staging paths where no publication uses it. Publishing mounts it again.
func (u *usage) yield() error {
	if len(u.mounted) > 0 {
		return nil
	}
	for _, e := range u.staged {
		if err := mount.Unmount(e.Point); err != nil {
			return err
		}
	}
	u.staged = nil
	return nil
}

// endOnDemand takes back what publications staged for themselves, when the last one is gone.
func (d *Driver) endOnDemand(id string) error {
	u, err := d.observe(id)
	if err != nil {
		return err
	}
	defer u.close()
	if len(u.mounted) > 0 {
		return nil
	}
	for _, n := range slices.Clone(u.notes) {
		if !n.OnDemand {
			continue
		}
		if err := mount.Unmount(n.Path); err != nil {
			return err
		}
		if err := d.forget(u, id, n.Path); err != nil {
			return err
		}
	}
	return nil
}

// release detaches the volume's devices when nobody uses or has staged it. A device that is still open
// somewhere clears itself when that ends.
func (d *Driver) release(id string) error {
	u, err := d.observe(id)
	if err != nil {
		return err
	}
	defer u.close()
	if !u.idle() {
		return nil
	}
	return u.detach()
}

// detach detaches the devices of a volume that nobody uses. What is stacked on them was left by a kubelet that
// was killed: a living one takes its own away before it unpublishes.
func (u *usage) detach() error {
	var errs []error
	for _, device := range u.devices {
		stacked, err := loop.StackedOn(device.Rdev())
		errs = append(errs, err)
		for _, above := range stacked {
			errs = append(errs, above.Detach())
		}
		errs = append(errs, device.Detach())
	}
	u.devices = nil
	return errors.Join(errs...)
}

// repair thaws what an interrupted driver had frozen and detaches devices that nobody uses.
func (d *Driver) repair() error {
	volumes, err := d.pool.Volumes()
	if err != nil {
		return err
	}
	attached, err := d.attachedFiles()
	if err != nil {
		return err
	}
	for _, v := range volumes {
		file, err := loop.Identify(d.pool.VolumeData(v.ID))
		if err != nil {
			return fmt.Errorf("repair volume %s: %w", v.ID, err)
		}
		if !attached[file] {
			continue
		}
		if err := d.thaw(v.ID); err != nil {
			return fmt.Errorf("repair volume %s: %w", v.ID, err)
		}
		if err := d.release(v.ID); err != nil {
			return fmt.Errorf("repair volume %s: %w", v.ID, err)
		}
	}
	return nil
}

// attachedFiles returns the pool's files that have a loop device.
func (d *Driver) attachedFiles() (map[loop.FileID]bool, error) {
	dev, err := d.pool.Device()
	if err != nil {
		return nil, err
	}
	devices, err := loop.OnFileSystem(dev)
	if err != nil {
		return nil, err
	}
	defer loop.CloseAll(devices)
	files := map[loop.FileID]bool{}
	for _, device := range devices {
		files[device.Backing] = true
	}
	return files, nil
}

// unclaimed waits until no file system holds the device any more. A container that has just ended may hold the
// last mount for a moment, where this process cannot see it.
func unclaimed(ctx context.Context, device *loop.Device) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		claimed, err := device.Claimed()
		if err != nil || !claimed {
			return !claimed, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-ticker.C:
		}
	}
}

// resolve returns path as the mount table names it.
func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}
