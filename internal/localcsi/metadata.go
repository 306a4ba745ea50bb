package localcsi

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/pool"
	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// perMessage is how many extents a message has when the caller leaves it open; about 90 KiB.
const perMessage = 4096

// GetMetadataAllocated lists what was ever written to a snapshot, by its file's holes. It makes no difference whether
// the volume was used as a block device or holds a file system.
func (d *Driver) GetMetadataAllocated(req *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if req.GetSnapshotId() == "" {
		return refuse(codes.InvalidArgument, "snapshot_id is empty")
	}
	l, err := d.extents(stream.Context(), req.GetSnapshotId(), "")
	if err != nil {
		return err
	}
	return send(l, req.GetStartingOffset(), req.GetMaxResults(), func(size int64, part []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: part})
	})
}

// GetMetadataDelta lists where two snapshots of a volume differ, by the addresses of their blocks. Nothing is read.
func (d *Driver) GetMetadataDelta(req *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if req.GetBaseSnapshotId() == "" || req.GetTargetSnapshotId() == "" {
		return refuse(codes.InvalidArgument, "base_snapshot_id %q and target_snapshot_id %q must both be given", req.GetBaseSnapshotId(), req.GetTargetSnapshotId())
	}
	l, err := d.extents(stream.Context(), req.GetTargetSnapshotId(), req.GetBaseSnapshotId())
	if err != nil {
		return err
	}
	return send(l, req.GetStartingOffset(), req.GetMaxResults(), func(size int64, part []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: part})
	})
}

// extents lists where the snapshot differs from base, or what it has when there is no base. Both are there until the
// list is made; then a slow reader holds nobody up.
func (d *Driver) extents(ctx context.Context, id, base string) (change.List, error) {
	names := []string{snapshotLock(id)}
	if base != "" && base != id {
		names = append(names, snapshotLock(base))
	}
	release, err := d.locks.take(ctx, names...)
	if err != nil {
		return change.List{}, err
	}
	defer release()
	s, err := d.pool.Snapshot(id)
	if err != nil {
		return change.List{}, err
	}
	if base == "" {
		return change.Allocated(ctx, d.pool.SnapshotData(id), s.Size, change.Origin{})
	}
	b, err := d.pool.Snapshot(base)
	if err != nil {
		return change.List{}, err
	}
	if err := sameVolume(b, s); err != nil {
		return change.List{}, err
	}
	return change.Delta(ctx, d.pool.SnapshotData(id), s.Size, change.Origin{BaseFile: d.pool.SnapshotData(base)})
}

func sameVolume(base, target pool.Snapshot) error {
	if base.Volume == target.Volume {
		return nil
	}
	return refuse(codes.InvalidArgument, "snapshot %s is of volume %s and snapshot %s of volume %s: only snapshots of one volume are compared",
		base.ID, base.Volume, target.ID, target.Volume)
}

// send gives out the part of the list behind offset, in messages of at most limit extents. There is always a message,
// so that the reader learns the volume's size.
func send(l change.List, offset int64, limit int32, message func(size int64, part []*csi.BlockMetadata) error) error {
	if limit < 0 {
		return refuse(codes.InvalidArgument, "max_results %d is negative", limit)
	}
	if offset < 0 || offset > l.Size {
		return refuse(codes.OutOfRange, "starting_offset %d is not in the volume of %d bytes", offset, l.Size)
	}
	step := perMessage
	if limit > 0 {
		step = min(step, int(limit))
	}
	rest := l.Extents
	if first := slices.IndexFunc(rest, func(e digest.Extent) bool { return e.Offset+e.Length > offset }); first >= 0 {
		rest = rest[first:]
	} else {
		rest = nil
	}
	for {
		n := min(step, len(rest))
		part := make([]*csi.BlockMetadata, n)
		for i, e := range rest[:n] {
			part[i] = &csi.BlockMetadata{ByteOffset: e.Offset, SizeBytes: e.Length}
		}
		if err := message(l.Size, part); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}
