package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Member is one claim of a group with what belongs to it.
type Member struct {
	Name string
	// Claim is nil when it does not exist, Volume while it is not bound.
	Claim  *corev1.PersistentVolumeClaim
	Volume *corev1.PersistentVolume
	// Class is the VolumeSnapshotClass for the volume's driver; empty when there is none.
	Class string
	// Late is true when the claim's storage class binds only once a pod mounts it.
	Late bool
}

// Bound reports whether the claim has its volume.
func (m Member) Bound() bool {
	return m.Claim != nil && m.Claim.Status.Phase == corev1.ClaimBound && m.Volume != nil
}

// Size is the bound volume's capacity in bytes, 0 before it is bound. A volume that has grown is larger than its claim says until
// a pod has mounted it.
func (m Member) Size() int64 {
	if !m.Bound() {
		return 0
	}
	claim, volume := m.Claim.Status.Capacity[corev1.ResourceStorage], m.Volume.Spec.Capacity[corev1.ResourceStorage]
	return max(claim.Value(), volume.Value())
}

// Requested is what the claim asks for in bytes.
func (m Member) Requested() int64 {
	if m.Claim == nil {
		return 0
	}
	request := m.Claim.Spec.Resources.Requests[corev1.ResourceStorage]
	return request.Value()
}

// Driver is the CSI driver of the volume; empty when it is not bound or no CSI volume.
func (m Member) Driver() string {
	if m.Volume == nil || m.Volume.Spec.CSI == nil {
		return ""
	}
	return m.Volume.Spec.CSI.Driver
}

// Block reports whether the claim is a raw block device.
func (m Member) Block() bool {
	return m.Claim != nil && m.Claim.Spec.VolumeMode != nil && *m.Claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

// StorageClass is the claim's class, empty when it has none.
func (m Member) StorageClass() string {
	if m.Claim == nil || m.Claim.Spec.StorageClassName == nil {
		return ""
	}
	return *m.Claim.Spec.StorageClassName
}

// Members reads the claims a group has now, ordered by name so that a member keeps its place however it is listed. A claim
// that is listed and does not exist comes without Claim. Claims that Lifeboat made for its own work are never members.
func Members(ctx context.Context, reader client.Reader, group *v1alpha1.PVCGroup) ([]Member, error) {
	claims, err := claimsOf(ctx, reader, group)
	if err != nil {
		return nil, err
	}
	classes, err := Classes(ctx, reader)
	if err != nil {
		return nil, err
	}
	for i := range claims {
		if err := complete(ctx, reader, &claims[i], classes); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(claims, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return claims, nil
}

func claimsOf(ctx context.Context, reader client.Reader, group *v1alpha1.PVCGroup) ([]Member, error) {
	var members []Member
	if group.Spec.Selector == nil {
		for _, ref := range group.Spec.PVCList {
			claim := &corev1.PersistentVolumeClaim{}
			err := reader.Get(ctx, client.ObjectKey{Namespace: group.Namespace, Name: ref.PVCName}, claim)
			switch {
			case apierrors.IsNotFound(err):
				members = append(members, Member{Name: ref.PVCName})
			case err != nil:
				return nil, fmt.Errorf("read claim %s/%s: %w", group.Namespace, ref.PVCName, err)
			default:
				members = append(members, Member{Name: ref.PVCName, Claim: claim})
			}
		}
		return members, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(group.Spec.Selector)
	if err != nil {
		return nil, &SelectorError{Group: group.Namespace + "/" + group.Name, Err: err}
	}
	var list corev1.PersistentVolumeClaimList
	if err := reader.List(ctx, &list, client.InNamespace(group.Namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, fmt.Errorf("list claims of PVCGroup %s/%s: %w", group.Namespace, group.Name, err)
	}
	for i := range list.Items {
		// Clones, spools and replica claims live beside the application's and carry this label; a wide selector matches them too.
		if _, ours := list.Items[i].Labels[v1alpha1.LabelReplication]; !ours {
			members = append(members, Member{Name: list.Items[i].Name, Claim: &list.Items[i]})
		}
	}
	return members, nil
}

// SelectorError says that a group's selector cannot be used.
type SelectorError struct {
	Group string
	Err   error
}

func (e *SelectorError) Error() string {
	return fmt.Sprintf("PVCGroup %s: spec.selector: %v", e.Group, e.Err)
}

func (e *SelectorError) Unwrap() error { return e.Err }

// complete reads what belongs to a member's claim.
func complete(ctx context.Context, reader client.Reader, m *Member, classes []snapshotv1.VolumeSnapshotClass) error {
	if m.Claim == nil {
		return nil
	}
	if m.Claim.Spec.VolumeName == "" {
		return late(ctx, reader, m)
	}
	volume := &corev1.PersistentVolume{}
	err := reader.Get(ctx, client.ObjectKey{Name: m.Claim.Spec.VolumeName}, volume)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read volume %s of claim %s/%s: %w", m.Claim.Spec.VolumeName, m.Claim.Namespace, m.Name, err)
	}
	m.Volume = volume
	m.Class = ClassFor(classes, m.Driver())
	return nil
}

func late(ctx context.Context, reader client.Reader, m *Member) (err error) {
	m.Late, err = BindsLate(ctx, reader, m.Claim)
	return err
}

// BindsLate reports whether a claim's storage class waits for the first pod that mounts the claim.
func BindsLate(ctx context.Context, reader client.Reader, claim *corev1.PersistentVolumeClaim) (bool, error) {
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
		return false, nil
	}
	var class storagev1.StorageClass
	err := reader.Get(ctx, client.ObjectKey{Name: *claim.Spec.StorageClassName}, &class)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read storage class %s of claim %s/%s: %w", *claim.Spec.StorageClassName, claim.Namespace, claim.Name, err)
	}
	return class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer, nil
}

// Fault is what keeps a group from being used, as a person must mend it.
type Fault struct {
	// Reason is one CamelCase word, one of the Fault constants.
	Reason  string
	Message string
}

// Reasons of a Fault.
const (
	FaultSelector    = "SelectorInvalid"
	FaultEmpty       = "NoMembers"
	FaultTooMany     = "TooManyMembers"
	FaultMissing     = "ClaimMissing"
	FaultUnbound     = "ClaimNotBound"
	FaultDeleting    = "ClaimDeleted"
	FaultNotCSI      = "NotCSI"
	FaultNoClass     = "NoSnapshotClass"
	FaultAccess      = "VolumeAccessConflict"
	FaultShared      = "ClaimInTwoGroups"
	defaultMaxMember = 16
)

// Check says what is wrong with a group whose members were read; nil when all of it can be used. Snapshots are wanted of a
// source, and of a target that keeps recovery points.
func Check(group *v1alpha1.PVCGroup, members []Member, snapshots bool) *Fault {
	where := fmt.Sprintf("PVCGroup %s/%s", group.Namespace, group.Name)
	limit := int(group.Spec.MaxMembers)
	if limit == 0 {
		limit = defaultMaxMember
	}
	switch {
	case len(members) == 0:
		return &Fault{FaultEmpty, fmt.Sprintf("%s: spec.selector %q matches no claim: label the claims, or change the selector", where, metav1.FormatLabelSelector(group.Spec.Selector))}
	case len(members) > limit:
		return &Fault{FaultTooMany, fmt.Sprintf("%s has %d members, claim %s is one more than spec.maxMembers %d: raise maxMembers or split the group", where, len(members), youngest(members).Name, limit)}
	}
	for _, m := range members {
		if fault := checkMember(group.Namespace+"/"+m.Name, m, snapshots); fault != nil {
			return fault
		}
	}
	_, fault := Access(group, members)
	return fault
}

// youngest is the member whose claim was made last: most likely the one that somebody has just added. Of equals it is the last one.
func youngest(members []Member) Member {
	made := func(m Member) time.Time {
		if m.Claim == nil {
			return time.Time{}
		}
		return m.Claim.CreationTimestamp.Time
	}
	found := members[0]
	for _, m := range members[1:] {
		if !made(m).Before(made(found)) {
			found = m
		}
	}
	return found
}

func checkMember(claim string, m Member, snapshots bool) *Fault {
	switch {
	case m.Claim == nil:
		return &Fault{FaultMissing, fmt.Sprintf("claim %s does not exist: create it, or take it out of the group; all members are in the group's namespace, a claim of that name in another one does not count", claim)}
	case !m.Claim.DeletionTimestamp.IsZero():
		return &Fault{FaultDeleting, fmt.Sprintf("claim %s is being deleted: take it out of the group, or create it again", claim)}
	case !m.Bound() && m.Late:
		return &Fault{FaultUnbound, fmt.Sprintf("claim %s is not bound: its storage class %s waits for the first pod that mounts it; start and stop one, or use a class with volumeBindingMode Immediate", claim, m.StorageClass())}
	case !m.Bound():
		return &Fault{FaultUnbound, fmt.Sprintf("claim %s is not bound (phase %s): see its events", claim, m.Claim.Status.Phase)}
	case m.Driver() == "":
		return &Fault{FaultNotCSI, fmt.Sprintf("claim %s: its volume %s is no CSI volume, and only CSI drivers take snapshots", claim, m.Volume.Name)}
	case snapshots && m.Class == "":
		return &Fault{FaultNoClass, fmt.Sprintf("claim %s: there is no VolumeSnapshotClass for its driver %s: create one, or move the claim to a driver with snapshots", claim, m.Driver())}
	}
	return nil
}

// Covers reports whether a claim is a member of a group, as the group's spec says.
func Covers(group *v1alpha1.PVCGroup, m Member) bool {
	if group.Spec.Selector == nil {
		return slices.ContainsFunc(group.Spec.PVCList, func(ref v1alpha1.PVCRef) bool { return ref.PVCName == m.Name })
	}
	selector, err := metav1.LabelSelectorAsSelector(group.Spec.Selector)
	return err == nil && m.Claim != nil && selector.Matches(labels.Set(m.Claim.Labels))
}
