package control

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
)

const annotationDefaultClass = "storageclass.kubernetes.io/is-default-class"

// DifferError: an object here cannot serve the source as it is. It names both sides.
type DifferError struct {
	// Object as "claim shop/data".
	Object string
	// Field that differs, as users know it.
	Field string
	// Here and There are the values on the target and on the source.
	HereCluster, Here, ThereCluster, There string
	// Do tells what to do.
	Do string
}

func (e *DifferError) Error() string {
	return fmt.Sprintf("%s: %s is %s on cluster %s and %s on cluster %s: %s",
		e.Object, e.Field, e.Here, e.HereCluster, e.There, e.ThereCluster, e.Do)
}

// wanted is a PrepareRequest as this cluster understands it.
type wanted struct {
	PrepareRequest
	here, caller string
	// selector is the group's; nil when its members are named.
	selector labels.Selector
}

// found is what this cluster has of it; nil what it lacks.
type found struct {
	replication *v1alpha1.Replication
	group       *v1alpha1.PVCGroup
	claims      map[string]*corev1.PersistentVolumeClaim
	// others are claims that the group's selector matches here and that are not wanted.
	others  []corev1.PersistentVolumeClaim
	classes []storagev1.StorageClass
}

// work is what is left to do, in this order: claims and group before the Replication that needs them.
type work struct {
	create []client.Object
	update []client.Object
	// relabel are claims whose labels follow the source's: those by which a group chooses its members.
	relabel []relabelling
	// grow are claims that a replica was on, and the bytes they shall have now; their Replication's controller sees to it.
	grow map[string]int64
	// waiting tells what is not ready though nothing is left to do about it.
	waiting []string
}

type relabelling struct{ from, to *corev1.PersistentVolumeClaim }

// PrepareReplication implements the service.
func (s *Server) PrepareReplication(ctx context.Context, r *linkpb.PrepareReplicationRequest) (*linkpb.PrepareReplicationResponse, error) {
	pair := callersPair(ctx)
	want, err := s.want(r, pair)
	if err != nil {
		return nil, err
	}
	have, err := s.look(ctx, want)
	if err != nil {
		return nil, err
	}
	todo, err := decide(want, have)
	if err != nil {
		return nil, err
	}
	if err := s.do(ctx, want, todo); err != nil {
		return nil, asRefusal(err)
	}
	message := strings.Join(todo.waiting, "; ")
	return &linkpb.PrepareReplicationResponse{Ready: message == "", Message: message}, nil
}

func (s *Server) want(r *linkpb.PrepareReplicationRequest, pair *v1alpha1.ClusterPair) (wanted, error) {
	w := wanted{here: s.Cluster, caller: pair.Spec.PeerCluster}
	w.Key = fromKey(r.GetKey())
	if err := json.Unmarshal(r.GetSpec(), &w.Spec); err != nil {
		return w, refuse(ReasonInvalid, "replication %s: the spec is not readable: %v", w.Key, err)
	}
	if err := json.Unmarshal(r.GetGroup(), &w.Group); err != nil {
		return w, refuse(ReasonInvalid, "replication %s: the group is not readable: %v", w.Key, err)
	}
	if w.Group.Selector != nil {
		var err error
		if w.selector, err = metav1.LabelSelectorAsSelector(w.Group.Selector); err != nil {
			return w, refuse(ReasonInvalid, "PVCGroup %s/%s: spec.selector: %v", w.Key.Namespace, w.Spec.PVCGroupName, err)
		}
	}
	w.Spec.Role = v1alpha1.RoleTarget
	w.Spec.TriggerNow = ""
	for i := range w.Spec.Rlinks {
		w.Spec.Rlinks[i].ClusterPair = pair.Name
	}
	for _, c := range r.GetClaims() {
		claim := Claim{Name: c.GetName(), SizeBytes: c.GetSizeBytes(), VolumeMode: c.GetVolumeMode(), StorageClass: c.GetStorageClassName(),
			AccessModes: c.GetAccessModes(), Labels: c.GetLabels(), Annotations: c.GetAnnotations()}
		if claim.VolumeMode == "" {
			claim.VolumeMode = string(corev1.PersistentVolumeFilesystem)
		}
		if claim.Name == "" || claim.SizeBytes <= 0 {
			return w, refuse(ReasonInvalid, "replication %s: claim %q has size %d: a name and a size are needed", w.Key, claim.Name, claim.SizeBytes)
		}
		w.Claims = append(w.Claims, claim)
	}
	if len(w.Claims) == 0 {
		return w, refuse(ReasonInvalid, "replication %s: the request has no claims", w.Key)
	}
	return w, nil
}

func (s *Server) look(ctx context.Context, want wanted) (found, error) {
	have := found{claims: map[string]*corev1.PersistentVolumeClaim{}}
	replication, err := lookFor(ctx, s.Client, want.Key, &v1alpha1.Replication{})
	if err != nil {
		return have, err
	}
	have.replication = replication
	groupKey := client.ObjectKey{Namespace: want.Key.Namespace, Name: want.Spec.PVCGroupName}
	if have.group, err = lookFor(ctx, s.Client, groupKey, &v1alpha1.PVCGroup{}); err != nil {
		return have, err
	}
	for _, c := range want.Claims {
		key := client.ObjectKey{Namespace: want.Key.Namespace, Name: c.Name}
		claim, err := lookFor(ctx, s.Client, key, &corev1.PersistentVolumeClaim{})
		if err != nil {
			return have, err
		}
		if claim != nil {
			have.claims[c.Name] = claim
		}
	}
	if have.others, err = s.others(ctx, want); err != nil {
		return have, err
	}
	var classes storagev1.StorageClassList
	if err := s.Client.List(ctx, &classes); err != nil {
		return have, fmt.Errorf("list storage classes: %w", err)
	}
	have.classes = classes.Items
	return have, nil
}

// others lists the claims that the group's selector would take in although the source has them no more.
func (s *Server) others(ctx context.Context, want wanted) ([]corev1.PersistentVolumeClaim, error) {
	if want.selector == nil {
		return nil, nil
	}
	var list corev1.PersistentVolumeClaimList
	if err := s.Client.List(ctx, &list, client.InNamespace(want.Key.Namespace), client.MatchingLabelsSelector{Selector: want.selector}); err != nil {
		return nil, fmt.Errorf("list claims of namespace %s: %w", want.Key.Namespace, err)
	}
	return slices.DeleteFunc(list.Items, func(o corev1.PersistentVolumeClaim) bool {
		return slices.ContainsFunc(want.Claims, func(c Claim) bool { return c.Name == o.Name })
	}), nil
}

// lookFor returns nil when there is no such object.
func lookFor[T client.Object](ctx context.Context, c client.Client, key client.ObjectKey, into T) (T, error) {
	var none T
	err := c.Get(ctx, key, into)
	switch {
	case apierrors.IsNotFound(err):
		return none, nil
	case err != nil:
		return none, fmt.Errorf("read %T %s: %w", into, key, err)
	}
	return into, nil
}

// decide compares and says what to do. Every refusal comes before the first write: the Replication's first, since a
// side that is source, or knows a later epoch, must not even be prepared.
func decide(want wanted, have found) (work, error) {
	var todo work
	if err := fence(want, have.replication); err != nil {
		return todo, err
	}
	var conflicts []string
	for _, claim := range want.Claims {
		existing := have.claims[claim.Name]
		if existing == nil && want.manual() {
			conflicts = append(conflicts, fmt.Sprintf("claim %s/%s does not exist on cluster %s: make it with %s, or set peerObjects to Create",
				want.Key.Namespace, claim.Name, want.here, bytesText(claim.SizeBytes)))
			continue
		}
		if existing == nil {
			made, late, err := newClaim(want, claim, have.classes)
			if err != nil {
				return todo, err
			}
			todo.create = append(todo.create, made)
			todo.waiting = append(todo.waiting, fmt.Sprintf("claim %s was just created%s", claim.Name, late))
			continue
		}
		if here, field := claimSize(existing, have.replication); grows(want, claim, existing, have.replication) {
			if todo.grow == nil {
				todo.grow = map[string]int64{}
			}
			todo.grow[claim.Name] = claim.SizeBytes
			todo.waiting = append(todo.waiting, fmt.Sprintf("claim %s: %s grows from %s to %s", claim.Name, field, bytesText(here), bytesText(claim.SizeBytes)))
		}
		conflicts = append(conflicts, compareClaim(want, claim, existing, have.replication)...)
		if wait := waitFor(existing, have.classes); wait != "" {
			todo.waiting = append(todo.waiting, wait)
		}
	}
	conflicts = append(conflicts, decideLabels(want, have, &todo)...)
	if d := decideGroup(want, have, &todo); d != "" {
		conflicts = append(conflicts, d)
	}
	if d := decideReplication(want, have.replication, &todo); d != "" {
		conflicts = append(conflicts, d)
	}
	if len(conflicts) > 0 {
		return work{}, refuse(ReasonConflict, "%s", strings.Join(conflicts, "; "))
	}
	return todo, nil
}

// fence refuses what would turn a primary, or a side that knows better, into a target.
func fence(want wanted, existing *v1alpha1.Replication) error {
	if existing == nil {
		return nil
	}
	here := max(existing.Spec.Epoch, existing.Status.Epoch, 1)
	switch epoch := max(want.Spec.Epoch, 1); {
	case existing.Spec.Role == v1alpha1.RoleSource:
		return refuse(ReasonIsSource, "replication %s is a source on cluster %s as well (epoch %d here, %d on cluster %s): set spec.role to target on the side that shall receive",
			want.Key, want.here, here, epoch, want.caller)
	case here > epoch:
		return refuse(ReasonStaleEpoch, "replication %s: cluster %s is at epoch %d, cluster %s comes with epoch %d: it is no source any more",
			want.Key, want.here, here, want.caller, epoch)
	case !existing.DeletionTimestamp.IsZero():
		return refuse(ReasonConflict, "replication %s is being deleted on cluster %s", want.Key, want.here)
	}
	return nil
}

// link is the caller's link to this side.
func (w wanted) link() v1alpha1.Rlink {
	if len(w.Spec.Rlinks) == 0 {
		return v1alpha1.Rlink{}
	}
	return w.Spec.Rlinks[0]
}

// manual reports that the objects are made by hand: they are compared, and only the epoch follows.
func (w wanted) manual() bool { return w.link().PeerObjects == v1alpha1.PeerObjectsManual }

// decideLabels lets claims join and leave a group by label as they did on the source. Only claims that were made for this replica are
// touched, and only the labels that the selector asks for: a person's own claim is named instead.
func decideLabels(want wanted, have found, todo *work) []string {
	persons := have.group != nil && have.group.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat
	if want.selector == nil || want.manual() || persons {
		return nil // members are by name, or a person's matter
	}
	keys := slices.Collect(maps.Keys(want.Group.Selector.MatchLabels))
	for _, e := range want.Group.Selector.MatchExpressions {
		keys = append(keys, e.Key)
	}
	var conflicts []string
	follow := func(claim *corev1.PersistentVolumeClaim, source map[string]string, matches bool, do string) {
		changed := claim.DeepCopy()
		if changed.Labels == nil {
			changed.Labels = map[string]string{}
		}
		for _, key := range keys {
			delete(changed.Labels, key)
			if value, ok := source[key]; ok {
				changed.Labels[key] = value
			}
		}
		if claim.Annotations[v1alpha1.AnnotationCreatedFor] == want.Key.Name && want.selector.Matches(labels.Set(changed.Labels)) == matches {
			todo.relabel = append(todo.relabel, relabelling{claim, changed})
			return
		}
		conflicts = append(conflicts, fmt.Sprintf("claim %s/%s on cluster %s: selector %s of PVCGroup %s %s", claim.Namespace, claim.Name, want.here,
			metav1.FormatLabelSelector(want.Group.Selector), want.Spec.PVCGroupName, do))
	}
	for i := range have.others {
		follow(&have.others[i], nil, false, fmt.Sprintf("matches it, and it is no member on cluster %s: change its labels", want.caller))
	}
	for _, c := range want.Claims {
		if claim := have.claims[c.Name]; claim != nil && !want.selector.Matches(labels.Set(claim.Labels)) && want.selector.Matches(labels.Set(c.Labels)) {
			follow(claim, c.Labels, true, fmt.Sprintf("does not match it, and it is a member on cluster %s: label it as there", want.caller))
		}
	}
	return conflicts
}

func decideGroup(want wanted, have found, todo *work) string {
	existing := have.group
	if existing == nil && want.manual() {
		return fmt.Sprintf("PVCGroup %s/%s does not exist on cluster %s: make it, or set peerObjects to Create", want.Key.Namespace, want.Spec.PVCGroupName, want.here)
	}
	if existing != nil && existing.Spec.Selector == nil && want.Group.Selector == nil && len(existing.Spec.PVCList) != len(want.Group.PVCList) {
		if existing.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat {
			return (&DifferError{Object: fmt.Sprintf("PVCGroup %s/%s", existing.Namespace, existing.Name), Field: "the number of members",
				HereCluster: want.here, Here: fmt.Sprintf("%d, %s,", len(existing.Spec.PVCList), describe(existing.Spec)),
				ThereCluster: want.caller, There: fmt.Sprintf("%d, %s,", len(want.Group.PVCList), describe(want.Group)), Do: "make them equal"}).Error()
		}
	}
	if existing == nil {
		group := &v1alpha1.PVCGroup{Spec: want.Group}
		group.Namespace, group.Name, group.Labels = want.Key.Namespace, want.Spec.PVCGroupName, managedLabels()
		todo.create = append(todo.create, group)
		return ""
	}
	here, there := describe(existing.Spec), describe(want.Group)
	managed := existing.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat
	same, err := sameJSON(existing.Spec, want.Group)
	switch {
	case err == nil && same, !managed && here == there && sameAccess(existing.Spec.VolumeAccess, want.Group.VolumeAccess):
		return ""
	case !managed && !sameAccess(existing.Spec.VolumeAccess, want.Group.VolumeAccess):
		return (&DifferError{Object: fmt.Sprintf("PVCGroup %s/%s", existing.Namespace, existing.Name), Field: "spec.volumeAccess",
			HereCluster: want.here, Here: string(existing.Spec.VolumeAccess), ThereCluster: want.caller, There: string(want.Group.VolumeAccess), Do: "make them equal"}).Error()
	case !managed && sameClaims(want, have.replication):
		return "" // a person may say the same in other words, as by a selector
	case !managed:
		return (&DifferError{Object: fmt.Sprintf("PVCGroup %s/%s", existing.Namespace, existing.Name), Field: "spec",
			HereCluster: want.here, Here: here, ThereCluster: want.caller, There: there, Do: "make them equal, or delete the one that is wrong"}).Error()
	}
	group := existing.DeepCopy()
	group.Spec = want.Group
	todo.update = append(todo.update, group)
	return ""
}

// sameClaims reports that the claims this side replicates are those wanted.
func sameClaims(want wanted, replication *v1alpha1.Replication) bool {
	if replication == nil {
		return false
	}
	var names []string
	for _, c := range want.Claims {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return slices.Equal(names, slices.Sorted(slices.Values(replication.Status.Claims)))
}

// sameAccess reports whether two groups can be replicated in one way. A side that leaves it open is found out by what its
// claims are.
func sameAccess(a, b v1alpha1.VolumeAccess) bool {
	open := func(x v1alpha1.VolumeAccess) bool { return x == "" || x == v1alpha1.AccessAuto }
	return a == b || open(a) || open(b)
}

// describe shows a group's members to a person and compares them.
func describe(spec v1alpha1.PVCGroupSpec) string {
	if spec.Selector != nil {
		return "selector " + metav1.FormatLabelSelector(spec.Selector)
	}
	var names []string
	for _, ref := range spec.PVCList {
		names = append(names, ref.PVCName)
	}
	slices.Sort(names)
	return "pvcList [" + strings.Join(names, " ") + "]"
}

// decideReplication creates the target, or lets it follow the source. What a person made keeps its rlinks: only the epoch
// follows there. A Replication made by Lifeboat follows in everything but its role.
func decideReplication(want wanted, existing *v1alpha1.Replication, todo *work) string {
	epoch := strconv.FormatInt(max(want.Spec.Epoch, 1), 10)
	if existing == nil && want.manual() {
		return fmt.Sprintf("Replication %s does not exist on cluster %s: make it with role target, or set peerObjects to Create", want.Key, want.here)
	}
	if existing == nil {
		replication := &v1alpha1.Replication{Spec: want.Spec}
		replication.Namespace, replication.Name, replication.Labels = want.Key.Namespace, want.Key.Name, managedLabels()
		replication.Annotations = map[string]string{v1alpha1.AnnotationSourceEpoch: epoch}
		todo.create = append(todo.create, replication)
		return ""
	}
	if existing.Spec.PVCGroupName != want.Spec.PVCGroupName {
		return (&DifferError{Object: fmt.Sprintf("Replication %s", want.Key), Field: "spec.pvcGroupName",
			HereCluster: want.here, Here: existing.Spec.PVCGroupName, ThereCluster: want.caller, There: want.Spec.PVCGroupName,
			Do: "delete the one that is wrong"}).Error()
	}
	if existing.Status.Role == v1alpha1.RoleSource {
		todo.waiting = append(todo.waiting, fmt.Sprintf("replication %s is still becoming a target", want.Key.Name))
	}
	changed := existing.DeepCopy()
	changed.Spec.Epoch = max(want.Spec.Epoch, existing.Spec.Epoch)
	// Brought in the same write: an epoch that a source brings is not one to become the source in.
	if changed.Spec.Epoch == max(want.Spec.Epoch, 1) {
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, v1alpha1.AnnotationSourceEpoch, epoch)
	}
	sizes := sourceSizes(existing, todo.grow)
	if sizes != existing.Annotations[v1alpha1.AnnotationSourceSizes] {
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, v1alpha1.AnnotationSourceSizes, sizes)
	}
	if d := decideLink(want, changed); d != "" {
		return d
	}
	same, err := sameJSON(changed.Spec, existing.Spec)
	if err != nil || !same || !maps.Equal(changed.Annotations, existing.Annotations) {
		todo.update = append(todo.update, changed)
	}
	return ""
}

// decideLink lets the caller's link follow where Lifeboat made the Replication, and compares it where a person did. Links to other clusters
// stay as they are.
func decideLink(want wanted, changed *v1alpha1.Replication) string {
	link := want.link()
	i := slices.IndexFunc(changed.Spec.Rlinks, func(l v1alpha1.Rlink) bool { return l.RlinkName == link.RlinkName })
	if changed.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat && !want.manual() {
		same := slices.IndexFunc(changed.Spec.Rlinks, func(l v1alpha1.Rlink) bool { return l.ClusterPair == link.ClusterPair })
		switch {
		case i >= 0 && changed.Spec.Rlinks[i].ClusterPair != link.ClusterPair && same != i:
			return fmt.Sprintf("Replication %s: rlink %s leads to another cluster than %s on cluster %s (ClusterPair %s): give the link the same name on both sides, and each its own",
				want.Key, link.RlinkName, want.caller, want.here, changed.Spec.Rlinks[i].ClusterPair)
		case same >= 0:
			// What a person told this side of the network stays: the source knows neither address.
			own := changed.Spec.Rlinks[same]
			link.LocalEndpoint, link.RemoteAddress = own.LocalEndpoint, own.RemoteAddress
			changed.Spec.Rlinks[same] = link
		default:
			changed.Spec.Rlinks = append(changed.Spec.Rlinks, link)
		}
		return ""
	}
	if i < 0 {
		return "" // made by hand with a name of its own: nothing is known of it
	}
	here := changed.Spec.Rlinks[i].PVCMap
	for _, claim := range want.Claims {
		mine, theirs := mapped(here, claim.Name), mapped(link.PVCMap, claim.Name)
		if mine != theirs {
			return (&DifferError{Object: fmt.Sprintf("Replication %s", want.Key), Field: fmt.Sprintf("the counterpart of claim %s, by spec.rlinks[%s].pvcMap,", claim.Name, link.RlinkName),
				HereCluster: want.here, Here: mine, ThereCluster: want.caller, There: theirs,
				Do: fmt.Sprintf("each map leads from the local claim to the other side's, so the two are each other's inverse: %s: %s on cluster %s, %s: %s on cluster %s",
					claim.Name, theirs, want.here, theirs, claim.Name, want.caller)}).Error()
		}
	}
	return ""
}

func mapped(m map[string]string, claim string) string {
	if there, ok := m[claim]; ok {
		return there
	}
	return claim
}

// sourceSizes is the annotation of that name with what shall grow now. Sizes only ever grow.
func sourceSizes(replication *v1alpha1.Replication, grow map[string]int64) string {
	former := replication.Annotations[v1alpha1.AnnotationSourceSizes]
	if len(grow) == 0 {
		return former
	}
	all := map[string]int64{}
	_ = json.Unmarshal([]byte(former), &all) // what somebody has broken is made anew
	for claim, size := range grow {
		all[claim] = max(all[claim], size)
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return former
	}
	return string(raw)
}

// grows reports that a claim is to be grown: it is smaller than the source's, and it was made for this replica or the replica holds a
// point. One that a person made of another size is left to the person.
func grows(want wanted, claim Claim, existing *corev1.PersistentVolumeClaim, replication *v1alpha1.Replication) bool {
	here, _ := claimSize(existing, replication)
	if here >= claim.SizeBytes || replication == nil {
		return false
	}
	holds := slices.ContainsFunc(replication.Status.Rlinks, func(l v1alpha1.RlinkStatus) bool { return l.RecoveryPoint != nil || len(l.RecoveryPoints) > 0 })
	return holds || existing.Annotations[v1alpha1.AnnotationCreatedFor] == want.Key.Name
}

func compareClaim(want wanted, claim Claim, existing *corev1.PersistentVolumeClaim, replication *v1alpha1.Replication) []string {
	object := fmt.Sprintf("claim %s/%s", existing.Namespace, existing.Name)
	differ := func(field, here, there, do string) string {
		return (&DifferError{Object: object, Field: field, HereCluster: want.here, Here: here, ThereCluster: want.caller, There: there, Do: do}).Error()
	}
	var conflicts []string
	if !existing.DeletionTimestamp.IsZero() {
		conflicts = append(conflicts, fmt.Sprintf("%s is being deleted on cluster %s: wait until it is gone", object, want.here))
	}
	if existing.Status.Phase == corev1.ClaimLost {
		conflicts = append(conflicts, fmt.Sprintf("%s has lost its volume on cluster %s: delete it, and it is made anew", object, want.here))
	}
	if here, field := claimSize(existing, replication); here != claim.SizeBytes && !grows(want, claim, existing, replication) {
		conflicts = append(conflicts, differ(field, bytesText(here), bytesText(claim.SizeBytes),
			"a replica has exactly the source's size; delete the claim and it is made anew, or resize the smaller one"))
	}
	if here := modeOf(existing); here != claim.VolumeMode {
		conflicts = append(conflicts, differ("spec.volumeMode", here, claim.VolumeMode, "delete the claim and it is made anew"))
	}
	return conflicts
}

// claimSize is the size of the volume once there is one, which may be larger than what was asked for. A claim that no pod mounts shows
// its former capacity after its volume has grown; its Replication knows better.
func claimSize(claim *corev1.PersistentVolumeClaim, replication *v1alpha1.Replication) (size int64, field string) {
	if replication != nil {
		for _, known := range replication.Status.Sizes {
			if known.Claim == claim.Name && claim.Status.Phase == corev1.ClaimBound {
				return known.Bytes, "status.capacity.storage"
			}
		}
	}
	if claim.Status.Phase == corev1.ClaimBound {
		capacity := claim.Status.Capacity[corev1.ResourceStorage]
		return capacity.Value(), "status.capacity.storage"
	}
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	return request.Value(), "spec.resources.requests.storage"
}

func bytesText(n int64) string {
	return fmt.Sprintf("%s (%d bytes)", resource.NewQuantity(n, resource.BinarySI), n)
}

func modeOf(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.VolumeMode == nil {
		return string(corev1.PersistentVolumeFilesystem)
	}
	return string(*claim.Spec.VolumeMode)
}

func waitFor(claim *corev1.PersistentVolumeClaim, classes []storagev1.StorageClass) string {
	if claim.Status.Phase == corev1.ClaimBound {
		return ""
	}
	return fmt.Sprintf("claim %s is not bound yet%s", claim.Name, bindsLate(claim.Spec.StorageClassName, classes))
}

// bindsLate tells when a claim's class waits for a pod.
func bindsLate(class *string, classes []storagev1.StorageClass) string {
	for _, c := range classes {
		if class != nil && c.Name == *class && c.VolumeBindingMode != nil && *c.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer {
			return fmt.Sprintf(" (its class %s binds when a pod first mounts it)", c.Name)
		}
	}
	return ""
}

func newClaim(want wanted, claim Claim, classes []storagev1.StorageClass) (made *corev1.PersistentVolumeClaim, late string, err error) {
	class, ok := chooseClass(claim.StorageClass, classes)
	if _, named := want.link().StorageClassMap[claim.StorageClass]; named && class != claim.StorageClass {
		return nil, "", refuse(ReasonNoStorageClass, "claim %s/%s: cluster %s has no storage class %q, which storageClassMap of cluster %s names: make it, or correct the map",
			want.Key.Namespace, claim.Name, want.here, claim.StorageClass, want.caller)
	}
	if !ok {
		return nil, "", refuse(ReasonNoStorageClass, "claim %s/%s: cluster %s has no storage class %q and no default class: make one of that name, "+
			"mark a class as default, or make the claim yourself", want.Key.Namespace, claim.Name, want.here, claim.StorageClass)
	}
	mode := corev1.PersistentVolumeMode(claim.VolumeMode)
	made = &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: want.Key.Namespace, Name: claim.Name,
			Labels: managedLabels(), Annotations: ownAnnotations(claim.Annotations),
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			VolumeMode:       &mode,
			AccessModes:      accessModes(claim.AccessModes),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: *resource.NewQuantity(claim.SizeBytes, resource.BinarySI),
			}},
		},
	}
	for k, v := range claim.Labels {
		// The application's own labels win, also over ours: its tools look for them.
		made.Labels[k] = v
	}
	return made, bindsLate(&class, classes), nil
}

// chooseClass takes the class of the same name, else the default one, the newest if there are several.
func chooseClass(name string, classes []storagev1.StorageClass) (string, bool) {
	var preferred *storagev1.StorageClass
	for i, c := range classes {
		if c.Name == name {
			return name, true
		}
		isDefault := c.Annotations[annotationDefaultClass] == "true"
		if isDefault && (preferred == nil || preferred.CreationTimestamp.Before(&c.CreationTimestamp)) {
			preferred = &classes[i]
		}
	}
	if preferred == nil {
		return "", false
	}
	return preferred.Name, true
}

func accessModes(modes []string) []corev1.PersistentVolumeAccessMode {
	if len(modes) == 0 {
		return []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	var out []corev1.PersistentVolumeAccessMode
	for _, m := range modes {
		out = append(out, corev1.PersistentVolumeAccessMode(m))
	}
	return out
}

// ownAnnotations drops what belongs to the source's cluster: how its claim was bound and provisioned.
func ownAnnotations(annotations map[string]string) map[string]string {
	own := map[string]string{}
	for k, v := range annotations {
		prefix, _, _ := strings.Cut(k, "/")
		switch prefix {
		case "pv.kubernetes.io", "volume.kubernetes.io", "volume.beta.kubernetes.io", "kubectl.kubernetes.io":
		default:
			own[k] = v
		}
	}
	return own
}

// do writes. Someone who was faster is not an error of theirs or ours: the next call looks again.
func (s *Server) do(ctx context.Context, want wanted, todo work) error {
	if len(todo.create) > 0 {
		if err := s.ensureNamespace(ctx, want.Key.Namespace); err != nil {
			return err
		}
	}
	for _, object := range todo.create {
		if err := s.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %T %s: %w", object, client.ObjectKeyFromObject(object), err)
		}
	}
	for _, r := range todo.relabel {
		if err := s.Client.Patch(ctx, r.to, client.MergeFromWithOptions(r.from, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("label claim %s: %w", client.ObjectKeyFromObject(r.to), err)
		}
	}
	for _, object := range todo.update {
		// An update carries the resource version that was judged; what changed since is a conflict.
		if err := s.Client.Update(ctx, object); err != nil {
			return fmt.Errorf("update %T %s: %w", object, client.ObjectKeyFromObject(object), err)
		}
	}
	return nil
}

// ensureNamespace makes the namespace if it is missing. The caller has been admitted to it.
func (s *Server) ensureNamespace(ctx context.Context, name string) error {
	var namespace corev1.Namespace
	err := s.Client.Get(ctx, client.ObjectKey{Name: name}, &namespace)
	switch {
	case apierrors.IsNotFound(err):
		namespace.Name, namespace.Labels = name, managedLabels()
		if err := s.Client.Create(ctx, &namespace); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("read namespace %s: %w", name, err)
	case !namespace.DeletionTimestamp.IsZero():
		return refuse(ReasonConflict, "namespace %s is being deleted on cluster %s: wait until it is gone", name, s.Cluster)
	}
	return nil
}
