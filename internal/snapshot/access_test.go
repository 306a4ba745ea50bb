package snapshot

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// member is one with a driver, an access mode and a volume mode.
func member(name, driver string, access corev1.PersistentVolumeAccessMode, mode corev1.PersistentVolumeMode) Member {
	m := bound(name, driver, "c")
	m.Claim.Spec.AccessModes, m.Claim.Spec.VolumeMode = []corev1.PersistentVolumeAccessMode{access}, &mode
	return m
}

// Claims that cannot be block devices are replicated by their files. A group is all blocks or all files, and a mixture is refused by name.
func TestAGroupIsAllBlocksOrAllFiles(t *testing.T) {
	disk := member("disk", "disk", corev1.ReadWriteOnce, corev1.PersistentVolumeFilesystem)
	device := member("device", "disk", corev1.ReadWriteOnce, corev1.PersistentVolumeBlock)
	sharedDevice := member("shared-device", "disk", corev1.ReadWriteMany, corev1.PersistentVolumeBlock)
	shared := member("shared", "disk", corev1.ReadWriteMany, corev1.PersistentVolumeFilesystem)
	nfs := member("nfs", "nfs.csi.k8s.io", corev1.ReadWriteOnce, corev1.PersistentVolumeFilesystem)
	rook := member("rook", "rook-ceph.cephfs.csi.ceph.com", corev1.ReadWriteOnce, corev1.PersistentVolumeFilesystem)
	for _, c := range []struct {
		name    string
		wanted  v1alpha1.VolumeAccess
		members []Member
		want    v1alpha1.VolumeAccess
		says    string
	}{
		{"disks", "", []Member{disk, device}, v1alpha1.AccessBlock, ""},
		{"a shared file system", "", []Member{shared}, v1alpha1.AccessFiles, ""},
		{"a shared device", "", []Member{sharedDevice, disk}, v1alpha1.AccessBlock, ""},
		{"drivers without block devices", v1alpha1.AccessAuto, []Member{nfs, rook, shared}, v1alpha1.AccessFiles, ""},
		{"shared and not", "", []Member{disk, shared}, "", "claim shared is replicated by its files and claim disk as a block device"},
		{"shared and not: what to do", "", []Member{disk, shared}, "", "set spec.volumeAccess to Files"},
		{"files and a device", "", []Member{nfs, device}, "", "claim nfs is replicated by its files and claim device is a block device"},
		{"shared and not, as files", v1alpha1.AccessFiles, []Member{disk, shared, nfs}, v1alpha1.AccessFiles, ""},
		{"shared and not, as blocks", v1alpha1.AccessBlock, []Member{disk, shared}, v1alpha1.AccessBlock, ""},
		{"a device as files", v1alpha1.AccessFiles, []Member{disk, device}, "", "claim device, which has volumeMode Block"},
		{"NFS as blocks", v1alpha1.AccessBlock, []Member{disk, nfs}, "", "the driver of claim nfs has no block devices"},
	} {
		t.Run(c.name, func(t *testing.T) {
			group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app"}, Spec: v1alpha1.PVCGroupSpec{VolumeAccess: c.wanted}}
			got, fault := Access(group, c.members)
			if got != c.want || (fault != nil) != (c.says != "") {
				t.Fatalf("%q, %+v; want %q", got, fault, c.want)
			}
			if fault == nil {
				return
			}
			if fault.Reason != FaultAccess || !strings.Contains(fault.Message, c.says) || !strings.Contains(fault.Message, "PVCGroup shop/app") {
				t.Errorf("fault %+v, want one that says %q", fault, c.says)
			}
			if checked := Check(group, c.members, true); checked == nil || checked.Message != fault.Message {
				t.Errorf("Check says %+v", checked)
			}
		})
	}
}
