package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// finalizerInGroup keeps a member's snapshot as long as its group snapshot is there. The snapshot controller takes it off
	// once the group is gone, but only from a member whose status already names the group.
	finalizerInGroup = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"
	// annotationBeingDeleted tells the driver's snapshotter that a content's snapshot goes with it.
	annotationBeingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	// groupPrefix begins the name of each of Lifeboat's group snapshots.
	groupPrefix = "lb-"
)

// FreeStranded removes members of Lifeboat's group snapshots that outlived their group: one that is deleted while its members
// are being made leaves them behind, with a finalizer that nobody takes off any more and without Lifeboat's labels. It reports
// whether some are still there. The reader asks the API server itself.
func FreeStranded(ctx context.Context, reader client.Reader, c client.Client, namespace string) (left bool, err error) {
	var all snapshotv1.VolumeSnapshotList
	if err := reader.List(ctx, &all, client.InNamespace(namespace)); err != nil {
		return false, fmt.Errorf("list snapshots of namespace %s: %w", namespace, err)
	}
	gone := map[types.UID]bool{}
	var errs []error
	for i := range all.Items {
		member := &all.Items[i]
		group := groupOf(member)
		if group == nil || !strings.HasPrefix(group.Name, groupPrefix) {
			continue
		}
		known, asked := gone[group.UID]
		if !asked {
			if known, err = groupGone(ctx, reader, namespace, group); err != nil {
				return false, err
			}
			gone[group.UID] = known
		}
		if known {
			left = true
			errs = append(errs, free(ctx, c, member))
		}
	}
	return left, errors.Join(errs...)
}

func groupOf(member *snapshotv1.VolumeSnapshot) *metav1.OwnerReference {
	i := slices.IndexFunc(member.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "VolumeGroupSnapshot" })
	if i < 0 {
		return nil
	}
	return &member.OwnerReferences[i]
}

func groupGone(ctx context.Context, reader client.Reader, namespace string, group *metav1.OwnerReference) (bool, error) {
	found := &groupsnapshotv1.VolumeGroupSnapshot{}
	err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: group.Name}, found)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read group snapshot %s/%s: %w", namespace, group.Name, err)
	}
	return apierrors.IsNotFound(err) || found.UID != group.UID, nil
}

// free removes a stranded member and the content that was made for it. The storage's own snapshot goes with the group's content.
func free(ctx context.Context, c client.Client, member *snapshotv1.VolumeSnapshot) error {
	name := client.ObjectKeyFromObject(member)
	if err := freeContent(ctx, c, member); err != nil {
		return fmt.Errorf("remove the content of stranded snapshot %s: %w", name, err)
	}
	if err := client.IgnoreNotFound(c.Delete(ctx, member.DeepCopy())); err != nil {
		return fmt.Errorf("delete stranded snapshot %s: %w", name, err)
	}
	if !slices.Contains(member.Finalizers, finalizerInGroup) {
		return nil
	}
	// A list of finalizers that has changed meanwhile is not overwritten.
	before := member.DeepCopy()
	member.Finalizers = slices.DeleteFunc(member.Finalizers, func(f string) bool { return f == finalizerInGroup })
	err := c.Patch(ctx, member, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsConflict(err) {
		return nil // looked at again soon: it is still there
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("take finalizer %s off snapshot %s: %w", finalizerInGroup, name, err)
	}
	return nil
}

// freeContent removes a member's content: the one it is bound to, or the one that was made beside it and not bound yet. The
// snapshot controller gives both one name but for the kind's prefix.
func freeContent(ctx context.Context, c client.Client, member *snapshotv1.VolumeSnapshot) error {
	name := "snapcontent-" + strings.TrimPrefix(member.Name, "snapshot-")
	if member.Status != nil && member.Status.BoundVolumeSnapshotContentName != nil {
		name = *member.Status.BoundVolumeSnapshotContentName
	}
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := c.Get(ctx, client.ObjectKey{Name: name}, content); err != nil {
		return client.IgnoreNotFound(err)
	}
	ref := content.Spec.VolumeSnapshotRef
	if ref.Namespace != member.Namespace || ref.Name != member.Name || ref.UID != "" && ref.UID != member.UID {
		return nil
	}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"yes"}}}`, annotationBeingDeleted))
	if err := c.Patch(ctx, content, patch); err != nil {
		return client.IgnoreNotFound(err)
	}
	return client.IgnoreNotFound(c.Delete(ctx, content))
}
