package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// groupKind is the CustomResourceDefinition that tells whether a cluster knows group snapshots at all. It is asked before the kind itself:
// a client that asks for a kind nobody serves looks through the whole API each time.
const groupKind = "volumegroupsnapshots.groupsnapshot.storage.k8s.io"

// GroupsServed reports whether the cluster serves VolumeGroupSnapshots in the version used here.
func GroupsServed(ctx context.Context, reader client.Reader) (bool, error) {
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	err := reader.Get(ctx, client.ObjectKey{Name: groupKind}, crd)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read CustomResourceDefinition %s: %w", groupKind, err)
	}
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions") // the API server has checked its type
	for _, v := range versions {
		version, _ := v.(map[string]any)
		if version["name"] == groupsnapshotv1.SchemeGroupVersion.Version && version["served"] == true {
			return true, nil
		}
	}
	return false, nil
}

// Way is how the members of a group are cut, and why so.
type Way struct {
	Cut v1alpha1.CutAtomicity
	// GroupClass is the VolumeGroupSnapshotClass that cuts them; empty when each is cut by itself.
	GroupClass string
	// Reason is one CamelCase word, one of the Cut constants; Message a sentence.
	Reason, Message string
}

// Reasons of a Way.
const (
	CutOneMember     = "OneMember"
	CutGroupSnapshot = "GroupSnapshot"
	CutAsAsked       = "CutSeparately"
	CutNotBound      = "MembersNotBound"
	CutDriversDiffer = "DriversDiffer"
	CutKindUnknown   = "GroupSnapshotsUnknown"
	CutNoClass       = "NoGroupSnapshotClass"
	// CutUnderRule is for members that are cut one by one while a Rule has the application stand still.
	CutUnderRule = "CutUnderRule"
	// CutRefused is for a group whose storage has a class and refuses all the same.
	CutRefused = "GroupSnapshotRefused"
)

// GroupClasses are a cluster's VolumeGroupSnapshotClasses.
type GroupClasses struct {
	// Served is false when the cluster does not know group snapshots.
	Served  bool
	Classes []groupsnapshotv1.VolumeGroupSnapshotClass
}

// ReadGroupClasses reads them.
func ReadGroupClasses(ctx context.Context, reader client.Reader) (GroupClasses, error) {
	served, err := GroupsServed(ctx, reader)
	if err != nil || !served {
		return GroupClasses{}, err
	}
	var list groupsnapshotv1.VolumeGroupSnapshotClassList
	if err := reader.List(ctx, &list); err != nil {
		return GroupClasses{}, fmt.Errorf("list group snapshot classes: %w", err)
	}
	return GroupClasses{Served: true, Classes: list.Items}, nil
}

// WayOf reads the classes, where there is a choice, and chooses.
func WayOf(ctx context.Context, reader client.Reader, policy v1alpha1.CutPolicy, members []Member) (Way, error) {
	if len(members) < 2 || policy == v1alpha1.CutSeparate {
		return ChooseWay(policy, members, GroupClasses{}), nil
	}
	classes, err := ReadGroupClasses(ctx, reader)
	if err != nil {
		return Way{}, err
	}
	return ChooseWay(policy, members, classes), nil
}

// ChooseWay says how members are cut: at one instant when there is but one, or when one driver serves all and has a class.
func ChooseWay(policy v1alpha1.CutPolicy, members []Member, classes GroupClasses) Way {
	separate := func(reason, why string) Way {
		return Way{Cut: v1alpha1.CutNotAtomic, Reason: reason,
			Message: fmt.Sprintf("%d members are snapshotted together, but not at one instant: %s", len(members), why)}
	}
	if len(members) < 2 {
		return Way{Cut: v1alpha1.CutSingle, Reason: CutOneMember, Message: "the one member is cut by itself"}
	}
	if policy == v1alpha1.CutSeparate {
		return separate(CutAsAsked, "spec.cutPolicy is Separate")
	}
	first := members[0]
	for _, m := range members {
		switch {
		case m.Driver() == "":
			return separate(CutNotBound, fmt.Sprintf("claim %s has no CSI volume yet", m.Name))
		case m.Driver() != first.Driver():
			return separate(CutDriversDiffer, fmt.Sprintf("claim %s is of driver %s, claim %s of driver %s", first.Name, first.Driver(), m.Name, m.Driver()))
		}
	}
	if !classes.Served {
		return separate(CutKindUnknown, "this cluster does not serve VolumeGroupSnapshots (groupsnapshot.storage.k8s.io/v1)")
	}
	class := GroupClassFor(classes.Classes, first.Driver())
	if class == "" {
		return separate(CutNoClass, fmt.Sprintf("there is no VolumeGroupSnapshotClass for driver %s: create one if the driver cuts groups", first.Driver()))
	}
	return Way{Cut: v1alpha1.CutAtomic, GroupClass: class, Reason: CutGroupSnapshot,
		Message: fmt.Sprintf("%d members are cut at one instant by a VolumeGroupSnapshot of class %s", len(members), class)}
}

// Under is the way as a source goes it that quiesces the application by a Rule first; empty for none. Members that are cut one by one are
// still not cut at one instant: that they fit together is the Rule's doing.
func (w Way) Under(rule string) Way {
	if rule == "" || w.Cut != v1alpha1.CutNotAtomic {
		return w
	}
	w.Reason, w.Message = CutUnderRule, fmt.Sprintf("%s; they are cut one by one while Rule %s has the application stand still", w.Message, rule)
	return w
}

// annotationDefaultGroupClass marks the class that is used where none is named.
const annotationDefaultGroupClass = "groupsnapshot.storage.kubernetes.io/is-default-class"

// GroupClassFor picks the class for a driver by the rules of ClassFor.
func GroupClassFor(classes []groupsnapshotv1.VolumeGroupSnapshotClass, driver string) string {
	var alike []snapshotv1.VolumeSnapshotClass
	for _, c := range classes {
		one := snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: c.Name}, Driver: c.Driver, DeletionPolicy: c.DeletionPolicy}
		if c.Annotations[annotationDefaultGroupClass] == "true" {
			one.Annotations = map[string]string{annotationDefaultClass: "true"}
		}
		alike = append(alike, one)
	}
	return ClassFor(alike, driver)
}

// source is a member as a group snapshot remembers it: which claim, and what its driver calls the volume. Where two
// PersistentVolumes lead to one volume, as beside a replica, the member's snapshot does not name its claim.
type source struct {
	Claim  string `json:"claim"`
	Volume string `json:"volume"`
}

// cutLabel is the label that the members of a point bear while they are cut. It is the point's own, so that any number of
// groups of a namespace are cut at a time.
func (p Point) cutLabel() string { return v1alpha1.LabelCutPrefix + Name(p.Replication, p.ID) }

// GroupName is the VolumeGroupSnapshot of a point.
func (p Point) GroupName() string { return Name("lb", p.Replication, p.ID) }

// TakeTogether asks for one snapshot of all members at one instant. It labels the claims first, since group snapshots choose
// them by label; Release takes the labels off again. A group snapshot that is there already is left alone.
func (p Point) TakeTogether(ctx context.Context, c client.Client, members []Member, class string) error {
	sources := make([]source, len(members))
	for i, m := range members {
		if m.Volume == nil || m.Volume.Spec.CSI == nil {
			return fmt.Errorf("take group snapshot %s/%s: claim %s has no CSI volume", p.Namespace, p.GroupName(), m.Name)
		}
		sources[i] = source{m.Name, m.Volume.Spec.CSI.VolumeHandle}
	}
	raw, err := json.Marshal(sources)
	if err != nil {
		return fmt.Errorf("take group snapshot %s/%s: %w", p.Namespace, p.GroupName(), err)
	}
	if err := p.label(ctx, c, members); err != nil {
		return err
	}
	object := &groupsnapshotv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.GroupName(), Labels: p.labels(), Annotations: p.annotations()},
		Spec: groupsnapshotv1.VolumeGroupSnapshotSpec{
			Source:                       groupsnapshotv1.VolumeGroupSnapshotSource{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{p.cutLabel(): p.Rlink}}},
			VolumeGroupSnapshotClassName: &class,
		},
	}
	object.Annotations[annotationSources] = string(raw)
	if p.Owner != nil {
		object.OwnerReferences = []metav1.OwnerReference{*p.Owner}
	}
	if err := c.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("take group snapshot %s/%s: %w", p.Namespace, object.Name, err)
	}
	return nil
}

func (p Point) label(ctx context.Context, c client.Client, members []Member) error {
	return eachClaim(members, func(m Member) error {
		if m.Claim == nil || m.Claim.Labels[p.cutLabel()] == p.Rlink && p.Rlink != "" {
			return nil
		}
		return setLabel(ctx, c, m.Claim, p.cutLabel(), strconv.Quote(p.Rlink))
	})
}

// Release takes the labels off claims that this link's cuts have put on them, but those of the point named except.
func Release(ctx context.Context, c client.Client, replication types.NamespacedName, rlink, except string, members []Member) error {
	keep := Point{Replication: replication.Name, ID: except}.cutLabel()
	return eachClaim(members, func(m Member) error {
		for _, key := range Bears(m, rlink) {
			if except != "" && key == keep {
				continue
			}
			if err := setLabel(ctx, c, m.Claim, key, "null"); err != nil {
				return err
			}
		}
		return nil
	})
}

// Bears lists the labels of this link's cuts that a claim bears.
func Bears(m Member, rlink string) []string {
	var keys []string
	if m.Claim == nil {
		return nil
	}
	for key, value := range m.Claim.Labels {
		if strings.HasPrefix(key, v1alpha1.LabelCutPrefix) && value == rlink {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// eachClaim does the same to all claims at the same time.
func eachClaim(members []Member, do func(Member) error) error {
	errs := make([]error, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() { errs[i] = do(m) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func setLabel(ctx context.Context, c client.Client, claim client.Object, key, value string) error {
	name := client.ObjectKeyFromObject(claim)
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, key, value))
	if err := c.Patch(ctx, claim.DeepCopyObject().(client.Object), patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("label claim %s: %w", name, err)
	}
	return nil
}

// listGroups reads the members of the group snapshots that match, as far as they are.
func listGroups(ctx context.Context, reader client.Reader, namespace string, labels client.MatchingLabels) ([]Seen, error) {
	served, err := GroupsServed(ctx, reader)
	if err != nil || !served {
		return nil, err
	}
	var groups groupsnapshotv1.VolumeGroupSnapshotList
	err = reader.List(ctx, &groups, client.InNamespace(namespace), labels)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil, nil // the kind has just gone
	}
	if err != nil {
		return nil, fmt.Errorf("list group snapshots of namespace %s: %w", namespace, err)
	}
	if len(groups.Items) == 0 {
		return nil, nil
	}
	var all snapshotv1.VolumeSnapshotList
	if err := reader.List(ctx, &all, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list snapshots of namespace %s: %w", namespace, err)
	}
	var out []Seen
	for i := range groups.Items {
		members, err := seeGroup(ctx, reader, &groups.Items[i], all.Items)
		if err != nil {
			return nil, err
		}
		out = append(out, members...)
	}
	return out, nil
}

// seeGroup reads one group snapshot as snapshots of its members. A member whose own snapshot is not there yet is seen as one
// that is not cut: asked for it was.
func seeGroup(ctx context.Context, reader client.Reader, group *groupsnapshotv1.VolumeGroupSnapshot, all []snapshotv1.VolumeSnapshot) ([]Seen, error) {
	var sources []source
	if err := json.Unmarshal([]byte(group.Annotations[annotationSources]), &sources); err != nil {
		// Somebody destroyed it: what the snapshots say themselves is all there is.
		sources = nil
	}
	found := map[string]*snapshotv1.VolumeSnapshot{}
	for i := range all {
		s := &all[i]
		if !inGroup(s, group) {
			continue
		}
		claim, err := claimOf(ctx, reader, s, sources)
		if err != nil {
			return nil, err
		}
		if claim != "" {
			found[claim] = s
		}
		if !slices.ContainsFunc(sources, func(o source) bool { return o.Claim == claim }) && claim != "" {
			sources = append(sources, source{Claim: claim})
		}
	}
	trouble, ready := groupStatus(group)
	out := make([]Seen, len(sources))
	for i, of := range sources {
		seen := Seen{}
		if s := found[of.Claim]; s != nil {
			seen = see(s)
		} else if ready {
			trouble = "it was made without claim " + of.Claim
		}
		whole := see(&snapshotv1.VolumeSnapshot{ObjectMeta: group.ObjectMeta})
		seen.Point, seen.Purpose, seen.Instant, seen.Epoch, seen.Cut = whole.Point, whole.Purpose, whole.Instant, whole.Epoch, whole.Cut
		seen.CreatedAt, seen.Rlink, seen.Claim, seen.Index, seen.Group = whole.CreatedAt, whole.Rlink, of.Claim, i, group.Name
		seen.Deleting = seen.Deleting || whole.Deleting
		seen.Ready = seen.Ready && ready
		if group.Status != nil && group.Status.CreationTime != nil {
			seen.CutAt = group.Status.CreationTime.Time
		}
		if !seen.Ready && trouble != "" {
			seen.Error = trouble
		}
		out[i] = seen
	}
	return out, nil
}

func groupStatus(group *groupsnapshotv1.VolumeGroupSnapshot) (trouble string, ready bool) {
	if group.Status == nil {
		return "", false
	}
	if group.Status.Error != nil && group.Status.Error.Message != nil {
		trouble = *group.Status.Error.Message
	}
	return trouble, group.Status.ReadyToUse != nil && *group.Status.ReadyToUse
}

func inGroup(s *snapshotv1.VolumeSnapshot, group *groupsnapshotv1.VolumeGroupSnapshot) bool {
	if s.Status != nil && s.Status.VolumeGroupSnapshotName != nil && *s.Status.VolumeGroupSnapshotName == group.Name {
		return true
	}
	return slices.ContainsFunc(s.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.Kind == "VolumeGroupSnapshot" && o.Name == group.Name && o.UID == group.UID
	})
}

// claimOf is the claim that a group's member is of: by its own word, or by what its storage was made from.
func claimOf(ctx context.Context, reader client.Reader, s *snapshotv1.VolumeSnapshot, sources []source) (string, error) {
	if claim := s.Annotations[v1alpha1.AnnotationVolume]; claim != "" {
		return claim, nil
	}
	if claim := s.Spec.Source.PersistentVolumeClaimName; claim != nil && *claim != "" {
		return *claim, nil
	}
	if s.Status == nil || s.Status.BoundVolumeSnapshotContentName == nil {
		return "", nil
	}
	stored, err := StoredAs(ctx, reader, *s.Status.BoundVolumeSnapshotContentName)
	if err != nil || stored == nil {
		return "", err
	}
	i := slices.IndexFunc(sources, func(o source) bool { return o.Volume == stored.Volume })
	if i < 0 {
		return "", nil
	}
	return sources[i].Claim, nil
}

// Adopt labels the members of a group snapshot like snapshots that were taken one by one, so that people find them and none
// has to be looked up again.
func Adopt(ctx context.Context, c client.Client, replication types.NamespacedName, rlink string, seen []Seen) error {
	var errs []error
	for _, s := range seen {
		if s.Group == "" || s.Name == "" || s.Adopted {
			continue
		}
		p := Point{Replication: replication.Name, Rlink: rlink, ID: s.Point, Purpose: s.Purpose, Instant: s.Instant, Epoch: s.Epoch, Cut: s.Cut}
		about := map[string]any{"labels": p.labels(), "annotations": p.annotations()}
		about["annotations"].(map[string]string)[v1alpha1.AnnotationVolume] = s.Claim
		about["annotations"].(map[string]string)[annotationIndex] = strconv.Itoa(s.Index)
		raw, err := json.Marshal(map[string]any{"metadata": about})
		if err != nil {
			return fmt.Errorf("label snapshot %s/%s: %w", replication.Namespace, s.Name, err)
		}
		object := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: replication.Namespace, Name: s.Name}}
		if err := c.Patch(ctx, object, client.RawPatch(types.MergePatchType, raw)); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("label snapshot %s/%s: %w", replication.Namespace, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// makingFor is how long a group snapshot may be in the making before it counts as one that never will be.
const makingFor = 30 * time.Second

// BeingMade tells whether a member belongs to a group snapshot that its storage is still making. One that is deleted meanwhile
// leaves members behind (see FreeStranded).
func (s Seen) BeingMade(now time.Time) bool {
	return s.Group != "" && !s.Deleting && !s.Ready && s.Error == "" && now.Sub(s.CreatedAt) < makingFor
}

// Remove deletes snapshots, and whole groups where they belong to one: their members go together. What is gone is no error.
func Remove(ctx context.Context, c client.Client, namespace string, seen ...Seen) error {
	var errs []error
	gone := map[string]bool{}
	for _, s := range seen {
		if s.Group == "" {
			errs = append(errs, Delete(ctx, c, namespace, s.Name))
			continue
		}
		if gone[s.Group] {
			continue
		}
		gone[s.Group] = true
		object := &groupsnapshotv1.VolumeGroupSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: s.Group}}
		if err := client.IgnoreNotFound(c.Delete(ctx, object)); err != nil {
			errs = append(errs, fmt.Errorf("delete group snapshot %s/%s: %w", namespace, s.Group, err))
		}
	}
	return errors.Join(errs...)
}
