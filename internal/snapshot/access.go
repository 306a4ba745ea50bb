package snapshot

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// filesOnly are drivers whose volumes can never be block devices: network file systems.
var filesOnly = []string{
	"beegfs.csi.netapp.com", "cephfs.csi.ceph.com", "csi.juicefs.com", "efs.csi.aws.com", "file.csi.azure.com",
	"filestore.csi.storage.gke.io", "fsx.csi.aws.com", "nfs.csi.k8s.io", "smb.csi.k8s.io",
}

// filesOnlyDriver also knows the names operators give, such as rook-ceph.cephfs.csi.ceph.com.
func filesOnlyDriver(driver string) bool {
	return slices.ContainsFunc(filesOnly, func(known string) bool { return driver == known || strings.HasSuffix(driver, "."+known) })
}

// SnapshotBacked reports that a driver can show a snapshot as it is, read-only, without copying it into a volume first.
func SnapshotBacked(driver string) bool {
	const known = "cephfs.csi.ceph.com"
	return driver == known || strings.HasSuffix(driver, "."+known)
}

// shared reports that pods of several nodes may write a claim's files at the same time.
func (m Member) shared() bool {
	return m.Claim != nil && !m.Block() && slices.Contains(m.Claim.Spec.AccessModes, corev1.ReadWriteMany)
}

// Access says how a group's members are replicated, all of them alike: as block devices or as trees of files. A mixture
// is a fault, because one instant of both would come from two kinds of storage. Members that are not bound yet count by
// what their claims say.
func Access(group *v1alpha1.PVCGroup, members []Member) (v1alpha1.VolumeAccess, *Fault) {
	var blocks, files, devices, only []string
	for _, m := range members {
		switch {
		case filesOnlyDriver(m.Driver()):
			only = append(only, m.Name)
			files = append(files, m.Name)
		case m.shared():
			files = append(files, m.Name)
		default:
			blocks = append(blocks, m.Name)
		}
		if m.Block() {
			devices = append(devices, m.Name)
		}
	}
	fault := func(format string, args ...any) *Fault {
		return &Fault{FaultAccess, fmt.Sprintf("PVCGroup %s/%s: ", group.Namespace, group.Name) + fmt.Sprintf(format, args...)}
	}
	switch group.Spec.VolumeAccess {
	case v1alpha1.AccessFiles:
		if len(devices) > 0 {
			return "", fault("spec.volumeAccess is Files, and there are no files on claim %s, which has volumeMode Block: give it a group of its own", devices[0])
		}
		return v1alpha1.AccessFiles, nil
	case v1alpha1.AccessBlock:
		if len(only) > 0 {
			return "", fault("spec.volumeAccess is Block, and the driver of claim %s has no block devices: set it to Files, or take the claim out of the group", only[0])
		}
		return v1alpha1.AccessBlock, nil
	}
	switch {
	case len(files) == 0:
		return v1alpha1.AccessBlock, nil
	case len(blocks) == 0:
		return v1alpha1.AccessFiles, nil
	case len(devices) > 0:
		return "", fault("claim %s is replicated by its files and claim %s is a block device, and a group is one or the other: give each a group of its own", files[0], devices[0])
	}
	return "", fault("claim %s is replicated by its files and claim %s as a block device, and a group is one or the other: give each a group of its own, or set spec.volumeAccess to Files for all of them", files[0], blocks[0])
}
