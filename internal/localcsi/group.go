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

// GroupControllerGetCapabilities lists what the group controller service can do.
func (d *Driver) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	rpc := &csi.GroupControllerServiceCapability_RPC{Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT}
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{
		{Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: rpc}}}}, nil
}

// CreateVolumeGroupSnapshot keeps the volumes as they are at one instant, or fails; see cutTogether. Asked again for
// the same name it returns the same snapshots.
func (d *Driver) CreateVolumeGroupSnapshot(ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if req.GetName() == "" {
		return nil, refuse(codes.InvalidArgument, "name is empty")
	}
	volumes := slices.Clone(req.GetSourceVolumeIds())
	slices.Sort(volumes)
	if len(volumes) == 0 || volumes[0] == "" || len(slices.Compact(slices.Clone(volumes))) != len(volumes) {
		return nil, refuse(codes.InvalidArgument, "group snapshot %s: source_volume_ids %q must name one volume or more, each once", req.GetName(), volumes)
	}
	if err := knownParameters("VolumeGroupSnapshotClass", req.GetParameters()); err != nil {
		return nil, err
	}
	g := pool.Group{ID: pool.ID(req.GetName()), Name: req.GetName(), Created: d.now().UTC()}
	names := []string{groupLock(g.ID)}
	for _, v := range volumes {
		names = append(names, volumeLock(v), snapshotLock(memberID(g, v)))
	}
	release, err := d.locks.take(ctx, names...)
	if err != nil {
		return nil, err
	}
	defer release()
	have, err := d.pool.Group(g.ID)
	if err == nil {
		return d.existingGroup(have, g.Name, volumes)
	}
	if !errors.Is(err, pool.ErrNotFound) {
		return nil, err
	}
	members, err := d.members(g, volumes)
	if err != nil {
		return nil, err
	}
	if err := d.pool.CreateGroup(ctx, g, members, d.cutTogether(volumes)); err != nil {
		return nil, err
	}
	d.log.Info("group snapshot made", "group", g.ID, "volumes", len(volumes), "took", d.now().UTC().Sub(g.Created))
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: describeGroup(g, members)}, nil
}

// memberID is the ID of the snapshot of a volume in a group. No plain name has a slash, so it is nobody else's.
func memberID(g pool.Group, volume string) string { return pool.ID(g.ID + "/" + volume) }

// members describes the snapshots to be made.
func (d *Driver) members(g pool.Group, volumes []string) ([]pool.Snapshot, error) {
	var members []pool.Snapshot
	for _, id := range volumes {
		v, err := d.pool.Volume(id)
		if err != nil {
			return nil, err
		}
		members = append(members, pool.Snapshot{ID: memberID(g, id), Name: g.Name + "/" + id, Volume: id, Group: g.ID,
			Block: v.Block, FSType: v.FSType, Created: g.Created, Size: v.Size})
	}
	return members, nil
}

// existingGroup answers a repeated request, and refuses one that asks for something else by the same name.
func (d *Driver) existingGroup(have pool.Group, name string, volumes []string) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	members, err := d.snapshotsOf(have)
	if err != nil {
		return nil, err
	}
	var of []string
	for _, m := range members {
		of = append(of, m.Volume)
	}
	slices.Sort(of)
	if have.Name != name || !slices.Equal(of, volumes) {
		return nil, refuse(codes.AlreadyExists, "group snapshot %s exists and is of volumes %q; now %q are asked", have.Name, of, volumes)
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: describeGroup(have, members)}, nil
}

func (d *Driver) snapshotsOf(g pool.Group) ([]pool.Snapshot, error) {
	var members []pool.Snapshot
	for _, id := range g.Snapshots {
		s, err := d.pool.Snapshot(id)
		if err != nil {
			return nil, refuse(codes.Internal, "group snapshot %s has lost a member: %v", g.ID, err)
		}
		members = append(members, s)
	}
	return members, nil
}

func describeGroup(g pool.Group, members []pool.Snapshot) *csi.VolumeGroupSnapshot {
	out := &csi.VolumeGroupSnapshot{GroupSnapshotId: g.ID, CreationTime: timestamppb.New(g.Created), ReadyToUse: true}
	for _, m := range members {
		out.Snapshots = append(out.Snapshots, describeSnapshot(m))
	}
	return out
}

// checkMembers refuses a request that names other snapshots than the group has. Naming none is fine.
func checkMembers(g pool.Group, asked []string) error {
	have := slices.Sorted(slices.Values(g.Snapshots))
	if len(asked) == 0 || slices.Equal(have, slices.Sorted(slices.Values(asked))) {
		return nil
	}
	return refuse(codes.InvalidArgument, "group snapshot %s has the snapshots %q; snapshot_ids names %q", g.ID, have, asked)
}

// DeleteVolumeGroupSnapshot removes the group and its snapshots. Volumes made from them keep their data.
func (d *Driver) DeleteVolumeGroupSnapshot(ctx context.Context, req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	id := req.GetGroupSnapshotId()
	if id == "" {
		return nil, refuse(codes.InvalidArgument, "group_snapshot_id is empty")
	}
	release, err := d.locks.take(ctx, groupLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	g, err := d.pool.Group(id)
	if errors.Is(err, pool.ErrNotFound) {
		return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := checkMembers(g, req.GetSnapshotIds()); err != nil {
		return nil, err
	}
	var names []string
	for _, s := range g.Snapshots {
		names = append(names, snapshotLock(s))
	}
	// Whoever holds one of these and a group's lock took the group's first, by its name and here.
	releaseMembers, err := d.locks.take(ctx, names...)
	if err != nil {
		return nil, err
	}
	defer releaseMembers()
	if err := d.pool.DeleteGroup(g); err != nil {
		return nil, err
	}
	d.log.Info("group snapshot deleted", "group", id)
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// GetVolumeGroupSnapshot returns one group and its snapshots.
func (d *Driver) GetVolumeGroupSnapshot(_ context.Context, req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	if req.GetGroupSnapshotId() == "" {
		return nil, refuse(codes.InvalidArgument, "group_snapshot_id is empty")
	}
	g, err := d.pool.Group(req.GetGroupSnapshotId())
	if err != nil {
		return nil, err
	}
	if err := checkMembers(g, req.GetSnapshotIds()); err != nil {
		return nil, err
	}
	members, err := d.snapshotsOf(g)
	if err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: describeGroup(g, members)}, nil
}
