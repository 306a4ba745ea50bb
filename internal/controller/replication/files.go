package replication

import (
	"encoding/json"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// A group of files differs from one of blocks in how movers reach its volumes, and in nothing else: the source mounts the clones of
// its snapshots instead of opening them as devices, and the receiver mounts the user's own claims, so that there is no replica
// pair. What guards a replica is the same: the receiver is gone before an application's pod may be there.

// annotationAccess tells how the replica that a spool belongs to is written; without it, as block devices.
const annotationAccess = "lifeboat.dev/volume-access"

// annotationVolumes has the storage's names of the volumes that the replica is on, by member: a claim that was made anew since is
// another volume.
const annotationVolumes = "lifeboat.dev/volumes"

// treePath is where a mover finds a member's files.
func treePath(index int) string { return "/var/lib/lifeboat/tree/" + strconv.Itoa(index) }

// sourceCapabilities let a mover read files of every owner. Its mounts are read-only. CAP_DAC_READ_SEARCH would be narrower, but
// the Pod Security level "baseline" refuses it.
var sourceCapabilities = []corev1.Capability{"DAC_OVERRIDE"}

// targetCapabilities let a mover make files as the source has them.
var targetCapabilities = []corev1.Capability{
	"CHOWN",        // files of every owner
	"DAC_OVERRIDE", // write in directories of others, and files that their owner may not write
	"FOWNER",       // modes, times, attributes and links of files of others
	"FSETID",       // keep set-user-id and set-group-id bits
	"MKNOD",        // device nodes
	"SETFCAP",      // capabilities of executable files
}

// clonesAreFiles tells how the running session reads its clones: as they were made, or as the group is to be read now.
func (v *view) clonesAreFiles() bool {
	if s := v.status.Session; s != nil && len(s.Claims) > 0 {
		if made := v.claim(snapshot.MemberName(v.rep.Name, s.Point, 0)); made != nil {
			return made.Spec.VolumeMode == nil || *made.Spec.VolumeMode == corev1.PersistentVolumeFilesystem
		}
	}
	return v.access == v1alpha1.AccessFiles
}

// replicaIsFiles tells how the replica is written: as its spool says, which knows what is in it.
func (v *view) replicaIsFiles() bool {
	if spool := v.claim(v.names.spool()); spool != nil {
		return spool.Annotations[annotationAccess] == string(v1alpha1.AccessFiles)
	}
	return v.access == v1alpha1.AccessFiles
}

// spoolPresence is Outdated for the spool of a replica that was written otherwise than the group is now.
func spoolPresence(v *view) cycle.Presence {
	spool := v.claim(v.names.spool())
	switch {
	case spool == nil:
		return cycle.Absent
	case !spool.DeletionTimestamp.IsZero():
		return cycle.Partial
	case v.replicaIsFiles() && v.volumesChanged(spool):
		return cycle.Outdated
	case v.access != "" && (v.access == v1alpha1.AccessFiles) != v.replicaIsFiles():
		return cycle.Outdated
	}
	// An unbound one may wait for its first pod, the receiver's: nothing waits for it.
	return cycle.Present
}

// handles are the members' volumes as the storage calls them, as JSON.
func (v *view) handles() string {
	all := map[string]string{}
	for _, m := range v.members {
		if m.Volume != nil && m.Volume.Spec.CSI != nil {
			all[m.Name] = m.Volume.Spec.CSI.VolumeHandle
		}
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return "" // strings always can be written
	}
	return string(raw)
}

// volumesChanged reports that a member is on another volume than when the spool was made. One that cannot be seen is no other.
func (v *view) volumesChanged(spool *corev1.PersistentVolumeClaim) bool {
	then := map[string]string{}
	if json.Unmarshal([]byte(spool.Annotations[annotationVolumes]), &then) != nil {
		return false
	}
	return slices.ContainsFunc(v.members, func(m snapshot.Member) bool {
		was, known := then[m.Name]
		return known && m.Volume != nil && m.Volume.Spec.CSI != nil && m.Volume.Spec.CSI.VolumeHandle != was
	})
}

// memberPath is where a mover finds a member.
func memberPath(index int, files bool) string {
	if files {
		return treePath(index)
	}
	return devicePath(index)
}

// mountTree gives a mover a member's files.
func mountTree(pod *corev1.PodSpec, index int, claim string, readOnly bool) {
	name := "volume-" + strconv.Itoa(index)
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	pod.Containers[0].VolumeMounts = append(pod.Containers[0].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: treePath(index), ReadOnly: readOnly})
}

// asFiles makes a block clone one that is mounted. It is asked for as the member was, which the driver is known to do, but
// read-only where that saves the driver a copy.
func asFiles(clone *corev1.PersistentVolumeClaim, m *snapshot.Member) {
	files := corev1.PersistentVolumeFilesystem
	clone.Spec.VolumeMode = &files
	clone.Spec.AccessModes = slices.Clone(m.Claim.Spec.AccessModes)
	if snapshot.SnapshotBacked(m.Driver()) {
		clone.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
	}
}

// receives reports that a pod is a receiver of the Replication: of files it mounts the claims as a user would. The API server lets
// nobody but Lifeboat set its labels.
func receives(pod *corev1.Pod, replication string) bool {
	return pod.Labels[v1alpha1.LabelReplication] == replication && pod.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentReceiver
}
