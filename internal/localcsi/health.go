package localcsi

import (
	"context"
	"errors"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

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
