package localcsi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
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

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
