package localcsi

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
)

// accessModes are the modes a volume on one node can give, and what they mean here.
var accessModes = map[csi.VolumeCapability_AccessMode_Mode]struct{ readOnly, single, shared bool }{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        {},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: {single: true},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  {},
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   {readOnly: true},
	csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    {readOnly: true},
	// All pods that share it are on the one node there is.
	csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER: {shared: true},
}

// wish is how a volume is to be used.
type wish struct {
	block    bool
	fsType   filesystem.Kind // None when the caller leaves the choice
	options  []string
	readOnly bool
	single   bool // no second publication
}

// wishOf reads one capability, and refuses what this driver cannot give.
func wishOf(c *csi.VolumeCapability) (wish, error) {
	if c == nil {
		return wish{}, refuse(codes.InvalidArgument, "volume_capability is missing")
	}
	mode, ok := accessModes[c.GetAccessMode().GetMode()]
	if !ok {
		return wish{}, refuse(codes.InvalidArgument,
			"access mode %s: volumes of this driver live on one node; use ReadWriteOnce, ReadWriteOncePod, ReadOnlyMany, or ReadWriteMany for file systems", c.GetAccessMode().GetMode())
	}
	w := wish{readOnly: mode.readOnly, single: mode.single}
	if c.GetBlock() != nil && mode.shared {
		return wish{}, refuse(codes.InvalidArgument, "access mode %s of a block volume: only file systems are shared; use ReadWriteOnce, or volumeMode Filesystem", c.GetAccessMode().GetMode())
	}
	if c.GetBlock() != nil {
		w.block = true
		return w, nil
	}
	if c.GetMount() == nil {
		return wish{}, refuse(codes.InvalidArgument, "volume_capability says neither block nor mount")
	}
	w.fsType, w.options = filesystem.Kind(c.GetMount().GetFsType()), c.GetMount().GetMountFlags()
	if w.fsType != filesystem.None && !filesystem.Supported(w.fsType) {
		return wish{}, refuse(codes.InvalidArgument, "file system type %q: only ext4 and xfs are supported (csi.storage.k8s.io/fstype of the StorageClass)", w.fsType)
	}
	return w, nil
}

// wishesOf reads all capabilities of a volume to be made: it is a block volume when no capability mounts it.
func wishesOf(cs []*csi.VolumeCapability) (wish, error) {
	if len(cs) == 0 {
		return wish{}, refuse(codes.InvalidArgument, "volume_capabilities is empty")
	}
	all := wish{block: true}
	for _, c := range cs {
		w, err := wishOf(c)
		if err != nil {
			return wish{}, err
		}
		if w.block {
			continue
		}
		all.block, all.fsType = false, w.fsType
	}
	return all, nil
}
