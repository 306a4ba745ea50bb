package localcsi

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

func (d *Driver) publishFileSystem(ctx context.Context, v pool.Volume, t target, staging string) error {
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
		return u.mustBe(there, t)
	}
	if err := u.refuseFileSystem(t); err != nil {
		return err
	}
	if err := u.refuseSecond(t); err != nil {
		return err
	}
	if err := d.stageOnDemand(ctx, u, v, t, staging); err != nil {
		return err
	}
	if err := os.MkdirAll(t.path, 0o750); err != nil {
		return err
	}
	return mount.Bind(staging, t.path, t.wish.readOnly)
}

// stageOnDemand mounts the file system at the staging path if it is not there. A caller that stages first, as
// the specification wants, finds it there, with two exceptions: the mount gave way to a writer of the raw device
// that has ended since; or the kubelet left the staging out, which it does when two PersistentVolumes name one
// volume and a pod of the second starts before it has unstaged the first. In that case it does not unstage
// either, so what is staged here goes with the last publication.
func (d *Driver) stageOnDemand(ctx context.Context, u *usage, v pool.Volume, t target, staging string) error {
	for _, e := range u.staged {
		if e.Point == resolve(staging) {
			return nil
		}
	}
	u.close()
	again := target{t.id, staging, t.wish}
	again.wish.readOnly = false
	return d.stageFileSystem(ctx, v, again, pool.Staging{Path: staging, OnDemand: true})
}

func (d *Driver) publishBlock(ctx context.Context, t target) error {
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
		return u.mustBe(there, t)
	}
	if err := u.refuseSecond(t); err != nil {
		return err
	}
	device, err := d.blockDevice(ctx, u, t)
	if err != nil {
		return err
	}
	// While pods hold the node of the device, its number must not go to another file.
	if err := device.SetAutoClear(false); err != nil {
		return err
	}
	if err := makeFile(t.path); err != nil {
		return err
	}
	return mount.Bind(device.Path(), t.path, false)
}

// blockDevice returns the device to give to a pod. A pod that may write gets it only when no file system is
// mounted from it; a mount that is only staged gives way.
func (d *Driver) blockDevice(ctx context.Context, u *usage, t target) (*loop.Device, error) {
	if len(u.mounted) > 0 && !t.wish.readOnly {
		return nil, refuse(codes.FailedPrecondition,
			"volume %s is mounted as a file system at %s: a second writer on the raw device would destroy it; end the pods that use it first", t.id, points(u.mounted))
	}
	if err := u.yield(); err != nil {
		return nil, err
	}
	if t.wish.readOnly {
		return d.attach(u, t.id, true)
	}
	device, err := d.attach(u, t.id, false)
	if err != nil {
		return nil, err
	}
	free, err := unclaimed(ctx, device)
	if err != nil {
		return nil, err
	}
	if !free {
		return nil, refuse(codes.FailedPrecondition, "volume %s: a container that is ending still has the file system of %s mounted", t.id, device.Path())
	}
	return device, nil
}

// refuseFileSystem refuses to mount the file system while pods may write to the raw device.
func (u *usage) refuseFileSystem(t target) error {
	if len(u.written) == 0 {
		return nil
	}
	return refuse(codes.FailedPrecondition,
		"volume %s is in use as a block device at %s: mounting its file system beside that would destroy it; end the pods that use it first", t.id, points(u.written))
}

// refuseSecond refuses a second publication of a volume that only one pod may have.
func (u *usage) refuseSecond(t target) error {
	if others := u.publications(); t.wish.single && len(others) > 0 {
		return refuse(codes.FailedPrecondition, "volume %s may be used in one place only and is published at %s", t.id, points(others))
	}
	return nil
}

// mustBe accepts what is already mounted at t.path if it is what t asks for.
func (u *usage) mustBe(there mount.Entry, t target) error {
	ours := u.fileSystem()
	if t.wish.block {
		ours = append(append([]mount.Entry(nil), u.written...), u.readNodes...)
	}
	for _, e := range ours {
		if e.Point != there.Point {
			continue
		}
		if readOnly := t.wish.block && u.reads(e) || !t.wish.block && e.ReadOnly(); readOnly != t.wish.readOnly && !mount.Options(t.wish.options).Has("ro") {
			return refuse(codes.AlreadyExists, "volume %s is at %s already, but read-only is %t there and %t is asked", t.id, t.path, readOnly, t.wish.readOnly)
		}
		return nil
	}
	return refuse(codes.AlreadyExists, "volume %s: something else is mounted at %s (%s from %s)", t.id, t.path, there.Type, there.Source)
}

func (u *usage) reads(e mount.Entry) bool {
	for _, r := range u.readNodes {
		if r.Point == e.Point {
			return true
		}
	}
	return false
}

func points(entries []mount.Entry) string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Point)
	}
	return strings.Join(list, ", ")
}

// makeFile makes an empty file for a device node to be bound to.
func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
