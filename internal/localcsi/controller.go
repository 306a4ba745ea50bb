package localcsi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

const (
	// defaultSize is the size in bytes of a volume for which none was asked.
	defaultSize = 1 << 30
	// granule is what sizes are rounded up to: the block size of file systems and of the pool.
	granule = 4096
)

// ControllerGetCapabilities lists what the controller service can do.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		rpc := &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{Type: rpc})
	}
	return resp, nil
}

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: d.nodeID}}
}

// reaches tells whether this node is among those the request allows.
func (d *Driver) reaches(r *csi.TopologyRequirement) bool {
	wanted := append(append([]*csi.Topology(nil), r.GetRequisite()...), r.GetPreferred()...)
	if len(wanted) == 0 {
		return true
	}
	return slices.ContainsFunc(wanted, d.here)
}

func (d *Driver) here(t *csi.Topology) bool {
	node, ok := t.GetSegments()[TopologyKey]
	return !ok || node == d.nodeID
}

// CreateVolume makes a volume: empty, from a snapshot, or from another volume. Asked again for the same name it
// returns the same volume.
func (d *Driver) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, refuse(codes.InvalidArgument, "name is empty")
	}
	w, err := wishesOf(req.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if err := knownParameters("StorageClass", req.GetParameters()); err != nil {
		return nil, err
	}
	if !d.reaches(req.GetAccessibilityRequirements()) {
		return nil, refuse(codes.ResourceExhausted, "volume %s is wanted on other nodes; this driver has node %s only", req.GetName(), d.nodeID)
	}
	source, err := sourceOf(req.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	v := pool.Volume{ID: pool.ID(req.GetName()), Name: req.GetName(), Block: w.block, FSType: string(w.fsType), Source: source, Created: d.now().UTC()}

	release, err := d.locks.take(ctx, locksOf(v)...)
	if err != nil {
		return nil, err
	}
	defer release()
	have, err := d.pool.Volume(v.ID)
	if err == nil {
		return d.existing(have, v, req.GetCapacityRange())
	}
	if !errors.Is(err, pool.ErrNotFound) {
		return nil, err
	}
	if err := d.makeVolume(&v, req.GetCapacityRange()); err != nil {
		return nil, err
	}
	d.log.Info("volume made", "volume", v.ID, "bytes", v.Size, "block", v.Block, "snapshot", source.Snapshot, "clonedFrom", source.Volume)
	return &csi.CreateVolumeResponse{Volume: d.describe(v)}, nil
}

// existing answers a repeated request, and refuses one that asks for something else by the same name.
func (d *Driver) existing(have, want pool.Volume, r *csi.CapacityRange) (*csi.CreateVolumeResponse, error) {
	if have.Name != want.Name || have.Source != want.Source {
		return nil, refuse(codes.AlreadyExists, "volume %s exists and was made from %s; now %s is asked", have.Name, describeSource(have.Source), describeSource(want.Source))
	}
	if have.Size < r.GetRequiredBytes() || r.GetLimitBytes() > 0 && have.Size > r.GetLimitBytes() {
		return nil, refuse(codes.AlreadyExists, "volume %s exists with %d bytes; now %d to %d are asked", have.Name, have.Size, r.GetRequiredBytes(), r.GetLimitBytes())
	}
	return &csi.CreateVolumeResponse{Volume: d.describe(have)}, nil
}

func (d *Driver) makeVolume(v *pool.Volume, r *csi.CapacityRange) error {
	from, smallest, err := d.origin(v.Source)
	if err != nil {
		return err
	}
	fallback := max(smallest, defaultSize)
	if from != "" {
		fallback = smallest
	}
	if v.Size, err = size(r, fallback); err != nil {
		return err
	}
	if v.Size < smallest {
		return refuse(codes.OutOfRange, "volume %s: %d bytes are asked, but %s has %d", v.Name, v.Size, describeSource(v.Source), smallest)
	}
	if err := d.fits(*v); err != nil {
		return err
	}
	if from == "" {
		return d.pool.CreateVolume(*v)
	}
	cut := pool.AtOnce
	if v.Source.Volume != "" {
		cut = d.cut(v.Source.Volume)
	}
	return d.pool.CloneVolume(*v, from, cut)
}

// origin returns the file a volume begins with and its size; no file for an empty volume.
func (d *Driver) origin(s pool.Source) (string, int64, error) {
	if s.Snapshot != "" {
		snapshot, err := d.pool.Snapshot(s.Snapshot)
		return d.pool.SnapshotData(s.Snapshot), snapshot.Size, err
	}
	if s.Volume != "" {
		volume, err := d.pool.Volume(s.Volume)
		return d.pool.VolumeData(s.Volume), volume.Size, err
	}
	return "", 0, nil
}

// fits refuses volumes that could never be used: larger than the pool, or too small for their file system.
// Volumes are sparse, so together they may promise more than the pool has.
func (d *Driver) fits(v pool.Volume) error {
	space, err := d.pool.Space()
	if err != nil {
		return err
	}
	if v.Size > space.Total {
		return refuse(codes.ResourceExhausted, "volume %s: %d bytes are asked, the whole pool has %d; enlarge it with --pool-size", v.Name, v.Size, space.Total)
	}
	kind := filesystem.Kind(v.FSType)
	if kind == filesystem.None {
		kind = filesystem.Ext4
	}
	if !v.Block && v.Source == (pool.Source{}) && v.Size < filesystem.Minimum(kind) {
		return refuse(codes.OutOfRange, "volume %s: %d bytes are asked; an %s file system needs at least %d", v.Name, v.Size, kind, filesystem.Minimum(kind))
	}
	return nil
}

func (d *Driver) describe(v pool.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.Size, AccessibleTopology: []*csi.Topology{d.topology()}}
	switch {
	case v.Source.Snapshot != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.Source.Snapshot}}}
	case v.Source.Volume != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.Source.Volume}}}
	}
	return out
}

// knownParameters refuses parameters nobody reads: most often they are a misspelling.
func knownParameters(kind string, parameters map[string]string) error {
	for key := range parameters {
		if !strings.HasPrefix(key, "csi.storage.k8s.io/") {
			return refuse(codes.InvalidArgument, "%s parameter %q is not known; this driver takes csi.storage.k8s.io/fstype only", kind, key)
		}
	}
	return nil
}

func sourceOf(s *csi.VolumeContentSource) (pool.Source, error) {
	if s == nil {
		return pool.Source{}, nil
	}
	source := pool.Source{Snapshot: s.GetSnapshot().GetSnapshotId(), Volume: s.GetVolume().GetVolumeId()}
	if source == (pool.Source{}) {
		return source, refuse(codes.InvalidArgument, "volume_content_source names neither a snapshot nor a volume")
	}
	return source, nil
}

func describeSource(s pool.Source) string {
	switch {
	case s.Snapshot != "":
		return "snapshot " + s.Snapshot
	case s.Volume != "":
		return "volume " + s.Volume
	}
	return "nothing"
}

func locksOf(v pool.Volume) []string {
	names := []string{volumeLock(v.ID)}
	if s := v.Source.Volume; s != "" && s != v.ID {
		names = append(names, volumeLock(s))
	}
	if s := v.Source.Snapshot; s != "" {
		names = append(names, snapshotLock(s))
	}
	return names
}

// size chooses the size in bytes: what is required, rounded up, within the limit.
func size(r *csi.CapacityRange, fallback int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 || limit > 0 && required > limit {
		return 0, refuse(codes.InvalidArgument, "capacity_range from %d to %d bytes makes no sense", required, limit)
	}
	if required == 0 {
		required = fallback
		if limit > 0 {
			required = min(required, limit/granule*granule)
		}
	}
	rounded := (required + granule - 1) / granule * granule
	if rounded == 0 || limit > 0 && rounded > limit {
		return 0, refuse(codes.OutOfRange, "no multiple of %d bytes lies between %d and %d", granule, required, limit)
	}
	return rounded, nil
}

// DeleteVolume removes a volume nobody uses or has staged.
func (d *Driver) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, refuse(codes.InvalidArgument, "volume_id is empty")
	}
	release, err := d.locks.take(ctx, volumeLock(id))
	if err != nil {
		return nil, err
	}
	defer release()
	_, err = d.pool.Volume(id)
	var lost *pool.Lost
	if errors.Is(err, pool.ErrNotFound) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil && !errors.As(err, &lost) {
		return nil, err
	}
	if lost == nil {
		if err := d.refuseWhileUsed(id); err != nil {
			return nil, err
		}
	}
	if err := d.pool.DeleteVolume(id); err != nil {
		return nil, err
	}
	d.log.Info("volume deleted", "volume", id)
	return &csi.DeleteVolumeResponse{}, nil
}

// refuseWhileUsed refuses to delete a volume that is attached: somebody uses it or has it staged.
func (d *Driver) refuseWhileUsed(id string) error {
	u, err := d.observe(id)
	if err != nil {
		return err
	}
	defer u.close()
	if len(u.devices) == 0 {
		return nil
	}
	if used := append(u.publications(), u.staged...); len(used) > 0 {
		return refuse(codes.FailedPrecondition, "volume %s is in use at %s", id, points(used))
	}
	if !u.idle() {
		return refuse(codes.FailedPrecondition, "volume %s is staged as a block device at %s", id, u.notes[0].Path)
	}
	return d.detachBeforeReplace(u, id)
}

// ValidateVolumeCapabilities tells whether the volume can be used as described. How it was made does not matter.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, refuse(codes.InvalidArgument, "volume_id is empty")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, refuse(codes.InvalidArgument, "volume_capabilities is empty")
	}
	if _, err := d.pool.Volume(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if _, err := wishesOf(req.GetVolumeCapabilities()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: message(err)}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters(),
	}}, nil
}

// GetCapacity returns the pool's free bytes.
func (d *Driver) GetCapacity(_ context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if t := req.GetAccessibleTopology(); t != nil && !d.here(t) {
		return &csi.GetCapacityResponse{}, nil
	}
	space, err := d.pool.Space()
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{AvailableCapacity: space.Free}, nil
}

// ListVolumes returns volumes by ID.
func (d *Driver) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	volumes, err := d.pool.Volumes()
	if err != nil {
		return nil, err
	}
	volumes, next, err := page(volumes, func(v pool.Volume) string { return v.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range volumes {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{Volume: d.describe(v)})
	}
	return resp, nil
}

// ControllerExpandVolume makes the volume larger, in use or not. File systems grow when NodeExpandVolume is
// called or at the next staging.
func (d *Driver) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, refuse(codes.InvalidArgument, "volume_id is empty")
	}
	if req.GetCapacityRange() == nil {
		return nil, refuse(codes.InvalidArgument, "volume %s: capacity_range is missing", id)
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
	want, err := size(req.GetCapacityRange(), v.Size)
	if err != nil {
		return nil, err
	}
	if limit := req.GetCapacityRange().GetLimitBytes(); limit > 0 && v.Size > limit {
		return nil, refuse(codes.OutOfRange, "volume %s has %d bytes and cannot shrink to %d", id, v.Size, limit)
	}
	v.Size = max(v.Size, want)
	if err := d.fits(v); err != nil {
		return nil, err
	}
	if err := d.grow(v); err != nil {
		return nil, err
	}
	mounts := !v.Block
	if c := req.GetVolumeCapability(); c != nil {
		mounts = c.GetBlock() == nil
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Size, NodeExpansionRequired: mounts}, nil
}

func (d *Driver) grow(v pool.Volume) error {
	if err := d.pool.GrowVolume(v.ID, v.Size); err != nil {
		return err
	}
	u, err := d.observe(v.ID)
	if err != nil {
		return err
	}
	defer u.close()
	for _, device := range u.devices {
		if err := device.Refresh(); err != nil {
			return err
		}
	}
	return nil
}
