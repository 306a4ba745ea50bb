package localcsi

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// NodeGetCapabilities lists what the node service can do.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	} {
		rpc := &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{Type: rpc})
	}
	return resp, nil
}

// NodeGetInfo names the node and its place.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.nodeID, AccessibleTopology: d.topology()}, nil
}

// target is the common part of stage and publish: what, where, how.
type target struct {
	id   string
	path string
	wish wish
}

func targetOf(id, field, path string, c *csi.VolumeCapability) (target, error) {
	if err := named(id, field, path); err != nil {
		return target{}, err
	}
	w, err := wishOf(c)
	if err != nil {
		return target{}, err
	}
	return target{id, filepath.Clean(path), w}, nil
}

// named refuses calls that lack the volume's ID or the path.
func named(id, field, path string) error {
	if id == "" {
		return refuse(codes.InvalidArgument, "volume_id is empty")
	}
	if path == "" {
		return refuse(codes.InvalidArgument, "volume %s: %s is empty", id, field)
	}
	return nil
}

// NodeStageVolume attaches the volume, and mounts its file system at the staging path unless it is wanted as a
// block device. The way it was made does not matter: a volume with a file system can be staged as a block
// device, and a block device that holds a file system can be mounted.
func (d *Driver) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	t, err := targetOf(req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	release, err := d.locks.take(ctx, volumeLock(t.id))
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := d.pool.Volume(t.id)
	if err != nil {
		return nil, err
	}
	if t.wish.block {
		return &csi.NodeStageVolumeResponse{}, d.stageBlock(t)
	}
	return &csi.NodeStageVolumeResponse{}, d.stageFileSystem(ctx, v, t, pool.Staging{Path: t.path})
}

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
	defer f.Close()
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
	defer file.Close()
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

// NodeUnstageVolume undoes NodeStageVolume, also for a volume that is gone.
func (d *Driver) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id, path := req.GetVolumeId(), req.GetStagingTargetPath()
	if err := named(id, "staging_target_path", path); err != nil {
		return nil, err
	}
	path = filepath.Clean(path)
	release, err := d.locks.take(ctx, volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	if err := mount.Unmount(path); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, d.leave(id, path)
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

// NodePublishVolume gives the volume to a pod.
func (d *Driver) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	t, err := targetOf(req.GetVolumeId(), "target_path", req.GetTargetPath(), req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if req.GetStagingTargetPath() == "" {
		return nil, refuse(codes.FailedPrecondition, "volume %s: staging_target_path is empty", t.id)
	}
	t.wish.readOnly = t.wish.readOnly || req.GetReadonly()
	release, err := d.locks.take(ctx, volumeLock(t.id))
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := d.pool.Volume(t.id)
	if err != nil {
		return nil, err
	}
	if t.wish.block {
		return &csi.NodePublishVolumeResponse{}, d.publishBlock(ctx, t)
	}
	return &csi.NodePublishVolumeResponse{}, d.publishFileSystem(ctx, v, t, filepath.Clean(req.GetStagingTargetPath()))
}

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

// NodeUnpublishVolume takes the volume from a pod, also when the volume is gone.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id, path := req.GetVolumeId(), req.GetTargetPath()
	if err := named(id, "target_path", path); err != nil {
		return nil, err
	}
	release, err := d.locks.take(ctx, volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	if err := mount.Unmount(path); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if _, err := d.pool.Volume(id); errors.Is(err, pool.ErrNotFound) {
		return &csi.NodeUnpublishVolumeResponse{}, nil
	}
	if err := d.endOnDemand(id); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, d.release(id)
}

// NodeExpandVolume makes the device, and the file system on it, as large as the volume has become.
func (d *Driver) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	id, path := req.GetVolumeId(), req.GetVolumePath()
	if err := named(id, "volume_path", path); err != nil {
		return nil, err
	}
	release, err := d.locks.take(ctx, volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := d.pool.Volume(id)
	if err != nil {
		return nil, err
	}
	if want := req.GetCapacityRange().GetRequiredBytes(); want > v.Size {
		return nil, refuse(codes.OutOfRange, "volume %s has %d bytes, %d are asked: the controller has to expand it first", id, v.Size, want)
	}
	u, err := d.observe(id)
	if err != nil {
		return nil, err
	}
	defer u.close()
	for _, device := range u.devices {
		if err := device.Refresh(); err != nil {
			return nil, err
		}
	}
	e, ok := u.find(path)
	if !ok {
		return nil, refuse(codes.NotFound, "volume %s is not at %s", id, path)
	}
	if !u.isNode(e) && !e.FileSystemReadOnly() {
		if err := growMounted(ctx, id, u.device(false).Path(), e.Point, filesystem.Kind(e.Type)); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.Size}, nil
}

// find returns the volume's mount or device node at path.
func (u *usage) find(path string) (mount.Entry, bool) {
	real := resolve(path)
	for _, e := range append(u.publications(), u.staged...) {
		if e.Point == real {
			return e, true
		}
	}
	return mount.Entry{}, false
}

func (u *usage) isNode(e mount.Entry) bool { return strings.HasSuffix(e.Type, "tmpfs") }

// NodeGetVolumeStats tells how full the volume is.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	id, path := req.GetVolumeId(), req.GetVolumePath()
	if err := named(id, "volume_path", path); err != nil {
		return nil, err
	}
	release, err := d.locks.take(ctx, volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := d.pool.Volume(id)
	if err != nil {
		return nil, err
	}
	u, err := d.observe(id)
	if err != nil {
		return nil, err
	}
	defer u.close()
	e, ok := u.find(path)
	if !ok {
		return nil, refuse(codes.NotFound, "volume %s is not at %s", id, path)
	}
	if u.isNode(e) {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: v.Size}}}, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(e.Point, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: e.Point, Err: err}
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(st.Blocks) * st.Bsize, Available: int64(st.Bavail) * st.Bsize, Used: int64(st.Blocks-st.Bfree) * st.Bsize},
		{Unit: csi.VolumeUsage_INODES, Total: int64(st.Files), Available: int64(st.Ffree), Used: int64(st.Files - st.Ffree)},
	}}, nil
}

// NodeGetVolumeHealth reports what is wrong with a volume; nothing when all is well.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, refuse(codes.InvalidArgument, "volume_id is empty")
	}
	release, err := d.locks.take(ctx, volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	health := &csi.VolumeHealth{VolumeId: id}
	report := func(kind csi.VolumeHealthErrorType, reason, text string) {
		health.HealthStatuses = append(health.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Status: kind, Reason: reason, Message: text})
	}
	_, err = d.pool.Volume(id)
	var lost *pool.Lost
	if errors.As(err, &lost) {
		report(csi.VolumeHealthErrorType_DATA_LOSS, "DataFileMissing", lost.Error())
		return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
	}
	if err != nil {
		return nil, err
	}
	space, err := d.pool.Space()
	if err != nil {
		return nil, err
	}
	if space.Free < space.Total/20 {
		report(csi.VolumeHealthErrorType_DEGRADED, "PoolAlmostFull", "less than 5 % of the pool is free: writes to volumes will soon fail")
	}
	u, err := d.observe(id)
	if err != nil {
		return nil, err
	}
	defer u.close()
	for _, e := range u.mounted {
		if e.FileSystemReadOnly() && !readOnlyMount(e) {
			report(csi.VolumeHealthErrorType_DEGRADED, "FileSystemReadOnly", "the kernel made the file system read-only after an error: see the kernel's log, end the pods and start them again")
			break
		}
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// readOnlyMount tells whether the mount itself, not only the file system, is read-only: then somebody wanted it.
func readOnlyMount(e mount.Entry) bool {
	for _, o := range e.Options {
		if o == "ro" {
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

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
