package localcsi

import (
	"context"
	"errors"
	"io"
	"os"

	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

func (d *Driver) stageBlock(t target) error {
	u, err := d.observe(t.id)
	if err != nil {
		return err
	}
	defer u.close()
	if err := d.note(u, t.id, pool.Staging{Path: t.path, Block: true}); err != nil {
		return err
	}
	_, err = d.attach(u, t.id, t.wish.readOnly)
	return err
}

// stageFileSystem mounts the volume's file system at the staging path. An empty volume gets one first.
func (d *Driver) stageFileSystem(ctx context.Context, v pool.Volume, t target, s pool.Staging) error {
	u, err := d.observe(t.id)
	if err != nil {
		return err
	}
	defer u.close()
	there, mounted, err := u.table.At(t.path)
	if err != nil {
		return err
	}
	if mounted {
		if err := u.mustBe(there, t); err != nil {
			return err
		}
		return d.note(u, t.id, s)
	}
	if err := u.refuseFileSystem(t); err != nil {
		return err
	}
	if err := os.MkdirAll(t.path, 0o750); err != nil {
		return err
	}
	found, err := d.content(ctx, u, v, t)
	if err != nil {
		return err
	}
	if err := d.note(u, t.id, s); err != nil {
		return err
	}
	device, err := d.attach(u, t.id, false)
	if err != nil {
		return err
	}
	wanted := found.Size < v.Size&^4095 && !t.wish.readOnly && !mount.Options(t.wish.options).Has("ro")
	if err := checkUnmounted(ctx, device, found.Kind, wanted); err != nil {
		return refuse(codes.Internal, "the file system of volume %s has errors that are not safe to repair unasked: %v", t.id, err)
	}
	if err := mount.Mount(device.Path(), t.path, string(found.Kind), mountOptions(found.Kind, t.wish)); err != nil {
		return err
	}
	// From here on the mount keeps the device; without it the device goes by itself, also when a whole node is
	// killed. Before the mount it would have gone at once.
	if err := device.SetAutoClear(true); err != nil {
		return err
	}
	if err := d.thawAt(t.id, t.path); err != nil {
		return err
	}
	if !wanted {
		return nil
	}
	return growMounted(ctx, t.id, device.Path(), t.path, found.Kind)
}

// checkUnmounted repairs what a crash left in a file system before it is mounted, and grows it now if that will
// not be possible later. A file system that is mounted elsewhere already is left alone.
func checkUnmounted(ctx context.Context, device *loop.Device, kind filesystem.Kind, grow bool) error {
	claimed, err := device.Claimed()
	if err != nil || claimed {
		return err
	}
	if err := filesystem.Check(ctx, device.Path(), kind); err != nil {
		return err
	}
	later, err := filesystem.GrowsMounted(kind)
	if err != nil || later || !grow {
		return err
	}
	return filesystem.GrowUnmounted(ctx, device.Path())
}

// growMounted grows a mounted file system to its device's size, if it is smaller.
func growMounted(ctx context.Context, id, device, point string, kind filesystem.Kind) error {
	able, err := filesystem.GrowsMounted(kind)
	if err != nil {
		return err
	}
	if able {
		return filesystem.Grow(ctx, device, point, kind)
	}
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	found, err := filesystem.Probe(f)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || found.Size >= size&^4095 {
		return err
	}
	return refuse(codes.FailedPrecondition,
		"volume %s: the driver has not the capability SYS_RESOURCE, without which a mounted ext4 does not grow; it grows when its pods have ended and one starts again", id)
}

// mountOptions adds what this driver's volumes need: copies of an XFS volume have its UUID, and what is deleted
// inside a volume is given back to the pool unless the user says otherwise.
func mountOptions(kind filesystem.Kind, w wish) mount.Options {
	options := mount.Options(append([]string(nil), w.options...))
	if kind == filesystem.XFS && !options.Has("nouuid") {
		options = append(options, "nouuid")
	}
	if !options.Has("discard") && !options.Has("nodiscard") {
		options = append(options, "discard")
	}
	if w.readOnly {
		options = append(options, "ro")
	}
	return options
}

// content returns the file system in the volume. A volume that holds nothing but zeros is formatted; one that
// holds anything else that is no known file system is refused, never formatted.
func (d *Driver) content(ctx context.Context, u *usage, v pool.Volume, t target) (filesystem.Found, error) {
	file, err := os.Open(d.pool.VolumeData(v.ID))
	if err != nil {
		return filesystem.Found{}, err
	}
	defer func() { _ = file.Close() }()
	if device := u.device(false); device != nil && len(u.fileSystem()) == 0 {
		if err := device.Sync(); err != nil { // what raw writers left in the cache
			return filesystem.Found{}, err
		}
	}
	found, err := filesystem.Probe(file)
	if err != nil {
		return filesystem.Found{}, err
	}
	switch found.Kind {
	case filesystem.Ext4, filesystem.XFS:
		if t.wish.fsType != filesystem.None && t.wish.fsType != found.Kind {
			d.log.Info("the volume keeps the file system it holds", "volume", v.ID, "holds", found.Kind, "asked", t.wish.fsType)
		}
		return found, nil
	case filesystem.None:
	default:
		return filesystem.Found{}, refuse(codes.FailedPrecondition, "volume %s holds a %s file system; only ext4 and xfs can be mounted", v.ID, found.Kind)
	}
	blank, err := filesystem.Blank(file)
	if err != nil {
		return filesystem.Found{}, err
	}
	if !blank {
		return filesystem.Found{}, refuse(codes.FailedPrecondition,
			"volume %s holds data but no ext4 or xfs file system: it is not formatted over; use it with volumeMode Block, or delete it", v.ID)
	}
	return d.format(ctx, u, v, t)
}

// format puts a new file system in the place of an empty volume, whole or not at all.
func (d *Driver) format(ctx context.Context, u *usage, v pool.Volume, t target) (filesystem.Found, error) {
	kind := t.wish.fsType
	if kind == filesystem.None {
		kind = filesystem.Kind(v.FSType)
	}
	if kind == filesystem.None {
		kind = filesystem.Ext4
	}
	if t.wish.readOnly {
		return filesystem.Found{}, refuse(codes.FailedPrecondition, "volume %s is empty and wanted read-only: there is nothing to mount", v.ID)
	}
	if v.Size < filesystem.Minimum(kind) {
		return filesystem.Found{}, refuse(codes.FailedPrecondition, "volume %s has %d bytes; an %s file system needs at least %d", v.ID, v.Size, kind, filesystem.Minimum(kind))
	}
	if err := d.detachBeforeReplace(u, v.ID); err != nil {
		return filesystem.Found{}, err
	}
	err := d.pool.ReplaceData(v.ID, func(path string) error { return filesystem.Format(ctx, path, kind) })
	if err != nil {
		return filesystem.Found{}, err
	}
	d.log.Info("formatted an empty volume", "volume", v.ID, "fs", kind, "bytes", v.Size)
	return filesystem.Found{Kind: kind, Size: v.Size}, nil
}

// detachBeforeReplace makes sure that no device keeps the file that is about to be replaced: its users would
// write to a file that nobody reads any more.
func (d *Driver) detachBeforeReplace(u *usage, id string) error {
	if err := u.detach(); err != nil {
		return err
	}
	file, err := loop.Identify(d.pool.VolumeData(id))
	if err != nil {
		return err
	}
	left, err := loop.Find(file)
	if err != nil {
		return err
	}
	defer loop.CloseAll(left)
	if len(left) > 0 {
		return refuse(codes.FailedPrecondition, "volume %s: %s is still open as a block device; end the processes that use it", id, left[0].Path())
	}
	return nil
}

// leave forgets that the volume is staged at path and releases its devices if that was the last place.
func (d *Driver) leave(id, path string) error {
	_, err := d.pool.Volume(id)
	if errors.Is(err, pool.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	u, err := d.observe(id)
	if err != nil {
		return err
	}
	err = d.forget(u, id, path)
	u.close()
	if err != nil {
		return err
	}
	return d.release(id)
}
