// Package snapshot makes points in time of claims through the Kubernetes snapshot API, and says which claims a group
// has.
//
// It knows claims, VolumeSnapshots and their classes. It decides neither when to cut nor what to keep, and it touches only
// snapshots that carry the labels of the Replication they serve. Begin reading at Members, Point and Seen.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const (
	// LabelPurpose tells what a snapshot of Lifeboat's is kept for.
	LabelPurpose = "lifeboat.dev/purpose"
	// annotationIndex is the member's place in its group.
	annotationIndex = "lifeboat.dev/index"
	// annotationInstant, annotationEpoch and annotationCut tell of the point that a snapshot keeps, when nothing else is left of it.
	annotationInstant = "lifeboat.dev/instant"
	annotationEpoch   = "lifeboat.dev/epoch"
	annotationCut     = "lifeboat.dev/cut"
	// annotationSources names the claims that a group snapshot is of.
	annotationSources = "lifeboat.dev/sources"
	// annotationModeChange lets a block claim be made from the snapshot of a file system claim.
	annotationModeChange = "snapshot.storage.kubernetes.io/allow-volume-mode-change"
)

// Purpose of a snapshot.
type Purpose string

const (
	// ForSession: a session reads it now, or the next one needs it as base.
	ForSession Purpose = "session"
	// ForRecovery: it keeps a recovery point on a target.
	ForRecovery Purpose = "recovery-point"
)

// maxName is the longest name that may also be a label's value.
const maxName = 63

// Name joins parts with dashes. A name that would be longer than 63 characters is cut and ends with a hash of all of it, so that no two
// share what is left. Where several parts may hold dashes themselves, "a" "b-c" and "a-b" "c" are one name: callers tell such apart.
func Name(parts ...string) string {
	name := strings.Join(parts, "-")
	if len(name) <= maxName {
		return name
	}
	tail := Digest([]byte(name))
	return strings.TrimRight(name[:maxName-1-len(tail)], "-.") + "-" + tail
}

// Digest is ten hex digits that tell what is too long for a name, or would look like another's, apart.
func Digest(of []byte) string {
	sum := sha256.Sum256(of)
	return hex.EncodeToString(sum[:5])
}

// MemberName is the name of what is made for one member at one point: its snapshot, and the claim made from that.
func MemberName(replication, point string, index int) string {
	return Name("lb", replication, point, strconv.Itoa(index))
}

// Point is one instant of a group.
type Point struct {
	Namespace, Replication, Rlink string
	// ID names the instant.
	ID      string
	Purpose Purpose
	// Instant, Epoch and Cut tell of a recovery point: when and how it was cut on the source, and in which epoch; zero when not known.
	Instant time.Time
	Epoch   int64
	Cut     v1alpha1.CutAtomicity
	// Owner takes the snapshots with it when it is deleted; nil lets them stay.
	Owner *metav1.OwnerReference
}

// Take asks for a snapshot of each claim, all at the same time, in the classes of the same index. Snapshots that are there
// already are left alone.
func (p Point) Take(ctx context.Context, c client.Client, claims, classes []string) error {
	errs := make([]error, len(claims))
	var all sync.WaitGroup
	for i := range claims {
		all.Go(func() {
			err := c.Create(ctx, p.object(i, claims[i], classes[i]))
			if err != nil && !apierrors.IsAlreadyExists(err) {
				errs[i] = fmt.Errorf("take snapshot of claim %s/%s: %w", p.Namespace, claims[i], err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (p Point) object(index int, claim, class string) *snapshotv1.VolumeSnapshot {
	object := &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   p.Namespace,
			Name:        MemberName(p.Replication, p.ID, index),
			Labels:      p.labels(),
			Annotations: p.annotations(),
		},
		Spec: snapshotv1.VolumeSnapshotSpec{
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim},
			VolumeSnapshotClassName: &class,
		},
	}
	object.Annotations[v1alpha1.AnnotationVolume], object.Annotations[annotationIndex] = claim, strconv.Itoa(index)
	if p.Owner != nil {
		object.OwnerReferences = []metav1.OwnerReference{*p.Owner}
	}
	return object
}

func (p Point) labels() map[string]string {
	return map[string]string{
		v1alpha1.LabelManagedBy:   v1alpha1.ManagedByLifeboat,
		v1alpha1.LabelReplication: p.Replication,
		v1alpha1.LabelRlink:       p.Rlink,
		v1alpha1.LabelPoint:       p.ID,
		LabelPurpose:              string(p.Purpose),
	}
}

func (p Point) annotations() map[string]string {
	out := map[string]string{}
	if !p.Instant.IsZero() {
		out[annotationInstant] = p.Instant.UTC().Format(time.RFC3339)
	}
	if p.Epoch != 0 {
		out[annotationEpoch] = strconv.FormatInt(p.Epoch, 10)
	}
	if p.Cut != "" {
		out[annotationCut] = string(p.Cut)
	}
	return out
}

// Seen is a snapshot as it was read.
type Seen struct {
	Name    string
	Rlink   string
	Point   string
	Purpose Purpose
	Claim   string
	Index   int
	// Group is the VolumeGroupSnapshot that it is a member of; empty when it was taken by itself. Name is empty while the
	// member's own snapshot is not there yet.
	Group string
	// Adopted is true once it bears the labels of its point.
	Adopted bool
	// Instant, Epoch and Cut are the recovery point's, as noted when it was taken; zero when nothing was.
	Instant time.Time
	Epoch   int64
	Cut     v1alpha1.CutAtomicity
	// CreatedAt is when the object was made, CutAt the instant the driver cut the volume at; zero before.
	CreatedAt, CutAt time.Time
	// Ready is true once volumes can be made from it.
	Ready bool
	// RestoreSize is the least size of such a volume in bytes; 0 when the driver does not say.
	RestoreSize int64
	// Content is the VolumeSnapshotContent; empty before it is bound.
	Content string
	// Error is what the driver said last.
	Error string
	// Deleting is true once somebody asked for it to be removed.
	Deleting bool
}

// List reads all snapshots that Lifeboat keeps for a Replication, by point and index.
func List(ctx context.Context, reader client.Reader, replication types.NamespacedName) ([]Seen, error) {
	var list snapshotv1.VolumeSnapshotList
	labels := client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, v1alpha1.LabelReplication: replication.Name}
	if err := reader.List(ctx, &list, client.InNamespace(replication.Namespace), labels); err != nil {
		return nil, fmt.Errorf("list snapshots of replication %s: %w", replication, err)
	}
	seen, err := listGroups(ctx, reader, replication.Namespace, labels)
	if err != nil {
		return nil, err
	}
	inGroups := map[string]bool{}
	for _, s := range seen {
		inGroups[s.Name] = true
	}
	for i := range list.Items {
		if !inGroups[list.Items[i].Name] {
			seen = append(seen, see(&list.Items[i]))
		}
	}
	slices.SortFunc(seen, func(a, b Seen) int {
		if order := strings.Compare(a.Point, b.Point); order != 0 {
			return order
		}
		return a.Index - b.Index
	})
	return seen, nil
}

func see(object *snapshotv1.VolumeSnapshot) Seen {
	s := Seen{
		Name: object.Name, Rlink: object.Labels[v1alpha1.LabelRlink], Point: object.Labels[v1alpha1.LabelPoint], Purpose: Purpose(object.Labels[LabelPurpose]),
		Claim: object.Annotations[v1alpha1.AnnotationVolume], CreatedAt: object.CreationTimestamp.Time,
		Deleting: !object.DeletionTimestamp.IsZero(), Cut: v1alpha1.CutAtomicity(object.Annotations[annotationCut]),
		Adopted: object.Labels[v1alpha1.LabelPoint] != "",
	}
	// What somebody destroyed reads as not known.
	s.Instant, _ = time.Parse(time.RFC3339, object.Annotations[annotationInstant])
	s.Epoch, _ = strconv.ParseInt(object.Annotations[annotationEpoch], 10, 64)
	// An index that somebody destroyed reads as 0: it only orders what is shown.
	s.Index, _ = strconv.Atoi(object.Annotations[annotationIndex])
	status := object.Status
	if status == nil {
		return s
	}
	s.Ready = status.ReadyToUse != nil && *status.ReadyToUse
	if status.CreationTime != nil {
		s.CutAt = status.CreationTime.Time
	}
	if status.RestoreSize != nil {
		s.RestoreSize = status.RestoreSize.Value()
	}
	if status.BoundVolumeSnapshotContentName != nil {
		s.Content = *status.BoundVolumeSnapshotContentName
	}
	if status.Error != nil && status.Error.Message != nil {
		s.Error = *status.Error.Message
	}
	return s
}

// AllowBlock lets block claims be made from a file system claim's snapshot. Only whoever may write
// VolumeSnapshotContents can say so, because a block device shows more than files do.
func AllowBlock(ctx context.Context, c client.Client, content string) error {
	object := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: content}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+annotationModeChange+`":"true"}}}`))
	if err := c.Patch(ctx, object, patch); err != nil {
		return fmt.Errorf("allow VolumeSnapshotContent %s to be read as a block device: %w", content, err)
	}
	return nil
}

// Delete removes snapshots by name, with what the storage keeps of them. One that is gone is no error.
func Delete(ctx context.Context, c client.Client, namespace string, names ...string) error {
	var errs []error
	for _, name := range names {
		object := &snapshotv1.VolumeSnapshot{}
		err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object)
		if err == nil {
			err = letGo(ctx, c, object)
		}
		if err == nil {
			err = c.Delete(ctx, object)
		}
		if client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("delete snapshot %s/%s: %w", namespace, name, err))
		}
	}
	return errors.Join(errs...)
}

// letGo makes sure that the storage's snapshot goes with the object. A class with deletionPolicy Retain would leave one for every
// session, which nobody knows any more.
func letGo(ctx context.Context, c client.Client, object *snapshotv1.VolumeSnapshot) error {
	if object.Status == nil || object.Status.BoundVolumeSnapshotContentName == nil {
		return nil
	}
	content := &snapshotv1.VolumeSnapshotContent{}
	if err := c.Get(ctx, client.ObjectKey{Name: *object.Status.BoundVolumeSnapshotContentName}, content); err != nil {
		return client.IgnoreNotFound(err)
	}
	mine := content.Spec.VolumeSnapshotRef.UID == object.UID
	if !mine || content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		return nil
	}
	return c.Patch(ctx, content, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"deletionPolicy":"Delete"}}`)))
}
