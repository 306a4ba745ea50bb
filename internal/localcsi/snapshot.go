package localcsi

import (
	"context"
	"errors"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// CreateSnapshot keeps the volume as it is now. Asked again for the same name it returns the same snapshot.
func (d *Driver) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, refuse(codes.InvalidArgument, "name is empty")
	}
	if req.GetSourceVolumeId() == "" {
		return nil, refuse(codes.InvalidArgument, "snapshot %s: source_volume_id is empty", req.GetName())
	}
	if err := knownParameters("VolumeSnapshotClass", req.GetParameters()); err != nil {
		return nil, err
	}
	id := pool.ID(req.GetName())
	release, err := d.locks.take(ctx, snapshotLock(id), volumeLock(req.GetSourceVolumeId()))
	if err != nil {
		return nil, err
	}
	defer release()
	have, err := d.pool.Snapshot(id)
	if err == nil {
		if have.Name != req.GetName() || have.Group != "" || have.Volume != req.GetSourceVolumeId() {
			return nil, refuse(codes.AlreadyExists, "snapshot %s exists and is of volume %s; now volume %s is asked", have.Name, have.Volume, req.GetSourceVolumeId())
		}
		return &csi.CreateSnapshotResponse{Snapshot: describeSnapshot(have)}, nil
	}
	if !errors.Is(err, pool.ErrNotFound) {
		return nil, err
	}
	v, err := d.pool.Volume(req.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	s := pool.Snapshot{ID: id, Name: req.GetName(), Volume: v.ID, Block: v.Block, FSType: v.FSType, Created: d.now().UTC(), Size: v.Size}
	if err := d.pool.CreateSnapshot(s, d.cut(v.ID)); err != nil {
		return nil, err
	}
	d.log.Info("snapshot made", "snapshot", s.ID, "volume", v.ID, "took", d.now().UTC().Sub(s.Created))
	return &csi.CreateSnapshotResponse{Snapshot: describeSnapshot(s)}, nil
}

func describeSnapshot(s pool.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: s.ID, SourceVolumeId: s.Volume, GroupSnapshotId: s.Group, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Created), ReadyToUse: true}
}

// DeleteSnapshot removes a snapshot. Volumes made from it keep their data. One of a group goes with its group only.
func (d *Driver) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id := req.GetSnapshotId()
	if id == "" {
		return nil, refuse(codes.InvalidArgument, "snapshot_id is empty")
	}
	release, err := d.locks.take(ctx, snapshotLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	have, err := d.pool.Snapshot(id)
	var lost *pool.Lost
	if errors.Is(err, pool.ErrNotFound) {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if err != nil && !errors.As(err, &lost) {
		return nil, err
	}
	if have.Group != "" {
		return nil, refuse(codes.InvalidArgument, "snapshot %s belongs to group snapshot %s: delete that", id, have.Group)
	}
	if err := d.pool.DeleteSnapshot(id); err != nil {
		return nil, err
	}
	d.log.Info("snapshot deleted", "snapshot", id)
	return &csi.DeleteSnapshotResponse{}, nil
}

// GetSnapshot returns one snapshot.
func (d *Driver) GetSnapshot(_ context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, refuse(codes.InvalidArgument, "snapshot_id is empty")
	}
	s, err := d.pool.Snapshot(req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: describeSnapshot(s)}, nil
}

// ListSnapshots returns snapshots by ID: all, one, or those of a volume.
func (d *Driver) ListSnapshots(_ context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	snapshots, err := d.pool.Snapshots()
	if err != nil {
		return nil, err
	}
	snapshots = slices.DeleteFunc(snapshots, func(s pool.Snapshot) bool {
		return req.GetSnapshotId() != "" && s.ID != req.GetSnapshotId() || req.GetSourceVolumeId() != "" && s.Volume != req.GetSourceVolumeId()
	})
	snapshots, next, err := page(snapshots, func(s pool.Snapshot) string { return s.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range snapshots {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: describeSnapshot(s)})
	}
	return resp, nil
}
