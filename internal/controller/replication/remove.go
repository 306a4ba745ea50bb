package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// remove takes everything away that was made for a Replication, then lets it go. The user's claims stay, without a trace of it, and so do
// recovery points when they shall. The peer is not asked, so it also ends when the peer is gone.
//
// Nothing is waited for without an end. What was asked to be removed and still hangs on somebody else's finalizer after
// deletionPatience goes by itself later. What cannot even be asked for after refusalPatience is left, and an event says what it
// is: all of it carries an owner reference, so the cluster's garbage collector tries as well.
func (r *Reconciler) remove(ctx context.Context, rep *v1alpha1.Replication) (time.Duration, error) {
	if !controllerutil.ContainsFinalizer(rep, finalizer) {
		return 0, nil
	}
	before := rep.DeepCopy()
	waits, err := r.clear(ctx, rep)
	switch waited := r.Now().Sub(rep.DeletionTimestamp.Time); {
	case err != nil && waited < refusalPatience:
		return 0, errors.Join(err, r.tellRemoval(ctx, before, rep, removal{reasonActFailed, err.Error()}))
	case err == nil && waits != nil && waited < deletionPatience:
		return cycle.Quick, r.tellRemoval(ctx, before, rep, *waits)
	case err != nil && r.Events != nil:
		r.Events.Eventf(rep, nil, corev1.EventTypeWarning, reasonLeftBehind, "Remove", "after %s something that was made for it is still there: %v", refusalPatience, err)
	}
	s := r.views(rep)
	for _, link := range append(s.links, s.gone...) {
		r.forgetRules(link)
		r.forget(link.linkKey())
	}
	r.letGo(client.ObjectKeyFromObject(rep))
	controllerutil.RemoveFinalizer(rep, finalizer)
	if err := r.Client.Update(ctx, rep); client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("let replication %s/%s go: %w", rep.Namespace, rep.Name, err)
	}
	return time.Hour, nil
}

// removal is why a deletion is not through yet: a reason in one word, and what it waits for.
type removal struct{ reason, message string }

// tellRemoval says in the status what a deletion waits for.
func (r *Reconciler) tellRemoval(ctx context.Context, before, rep *v1alpha1.Replication, waits removal) error {
	message := "being deleted: " + waits.message
	rep.Status.Phase = cycle.Waiting
	for i := range rep.Status.Rlinks {
		link := &rep.Status.Rlinks[i]
		link.Phase, link.WaitingFor = cycle.Waiting, message
	}
	condition.Set(&rep.Status.Conditions, rep.Generation, v1alpha1.ConditionReady, metav1.ConditionFalse, waits.reason, message)
	return client.IgnoreNotFound(condition.Save(ctx, r.Client, before, rep))
}

// clear asks for all to be removed, and tells what is waited for; nil when nothing is.
func (r *Reconciler) clear(ctx context.Context, rep *v1alpha1.Replication) (*removal, error) {
	c := &common{}
	if err := r.observeMade(ctx, r.Live, rep, c); err != nil {
		return nil, err
	}
	v := r.views(rep).lead()
	v.claims = c.claims
	// Members are read for the names of their replica volumes alone; a group that is gone leaves those of the claims.
	if group, err := group(ctx, r.Live, rep); err == nil && group != nil {
		if v.members, err = snapshot.Members(ctx, r.Live, group); err != nil {
			v.members = nil
		}
	}
	for _, name := range rep.Status.Claims {
		if v.member(name) == nil {
			v.members = append(v.members, snapshot.Member{Name: name})
		}
	}
	// First, and while its snapshots are there: an application that stands still is let go.
	all := r.views(rep)
	quiesced, resumed := r.resumeLeft(ctx, append(slices.Clone(all.links), all.gone...)...)
	errs := []error{resumed, r.removeAll(ctx, v, c), r.leaveClaims(ctx, v), r.leaveGroup(ctx, v)}
	stranded, err := snapshot.FreeStranded(ctx, r.Live, r.Client, rep.Namespace)
	errs = append(errs, err)
	// The storage chooses the members of a group snapshot by labels: they stay until it has.
	making := beingMade(c.snapshots, r.Now())
	for _, link := range append(all.links, all.gone...) {
		link.members = v.members
		if len(making) == 0 {
			errs = append(errs, r.release(ctx, link))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	left, err := r.left(ctx, v)
	if err != nil {
		return nil, err
	}
	if stranded {
		left = append(left, "members of a group snapshot that is gone")
	}
	switch {
	case quiesced:
		return &removal{cycle.ReasonResuming, "the application that a session has quiesced is let go first"}, nil
	case len(making) > 0:
		return &removal{cycle.ReasonSnapshotsPending, "its storage is making group snapshot " + strings.Join(making, ", ") + ", which would leave members behind if it were removed now"}, nil
	case len(left) > 0:
		return &removal{reasonBeingDeleted, "waiting for " + some(left) + " to go"}, nil
	}
	return nil, nil
}

// beingMade names the group snapshots that their storage is still making.
func beingMade(snapshots []snapshot.Seen, now time.Time) []string {
	var out []string
	for _, s := range snapshots {
		if s.BeingMade(now) {
			out = add(out, s.Group)
		}
	}
	return out
}

// some names a few of many.
func some(names []string) string {
	const few = 3
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// retained tells whether the recovery points stay. They are the replica's, whichever link brought them: one link that says so is enough.
func retained(rep *v1alpha1.Replication) bool {
	return slices.ContainsFunc(rep.Spec.Rlinks, func(link v1alpha1.Rlink) bool { return link.RetainSnapshotsOnDeletion })
}

// removeAll asks for everything to be removed, whichever link made it. Order: what writes first, then what it writes through, then
// what it kept.
func (r *Reconciler) removeAll(ctx context.Context, v *view, c *common) error {
	errs := []error{r.removeLabelled(ctx, v, &appsv1.DeploymentList{})}
	for _, job := range c.jobs {
		errs = append(errs, r.delete(ctx, &batchv1.Job{}, v.rep.Namespace, job.Name))
	}
	for _, pod := range c.pods {
		if pod.DeletionTimestamp.IsZero() {
			errs = append(errs, r.delete(ctx, &corev1.Pod{}, v.rep.Namespace, pod.Name))
		}
	}
	errs = append(errs, r.removePair(ctx, v))
	volumes, err := r.replicaVolumes(ctx, v)
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		errs = append(errs, r.keepStorage(ctx, v, volume.Name), r.removeVolume(ctx, v, volume.Name))
	}
	for _, claim := range c.claims {
		errs = append(errs, r.delete(ctx, &corev1.PersistentVolumeClaim{}, v.rep.Namespace, claim.Name))
	}
	for _, s := range c.snapshots {
		if s.BeingMade(r.Now()) {
			continue // its turn comes when it is made: deleted now, it would leave members behind
		}
		if s.Purpose == snapshot.ForSession || !retained(v.rep) {
			errs = append(errs, snapshot.Remove(ctx, r.Client, v.rep.Namespace, s))
		}
	}
	for _, list := range []client.ObjectList{&corev1.ServiceList{}, &corev1.ConfigMapList{}, &corev1.SecretList{}, &rbacv1.RoleBindingList{}, &corev1.ServiceAccountList{}} {
		errs = append(errs, r.removeLabelled(ctx, v, list))
	}
	return errors.Join(errs...)
}

// removeLabelled removes all of one kind that was made for the Replication, also what an interrupted step made and nothing names.
func (r *Reconciler) removeLabelled(ctx context.Context, v *view, list client.ObjectList) error {
	mine := client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, v1alpha1.LabelReplication: v.rep.Name}
	if err := r.Live.List(ctx, list, client.InNamespace(v.rep.Namespace), mine); err != nil {
		return fmt.Errorf("list what serves replication %s: %w", v.key(), err)
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return fmt.Errorf("list what serves replication %s: %w", v.key(), err)
	}
	var errs []error
	for _, item := range items {
		object := item.(client.Object)
		errs = append(errs, r.delete(ctx, object, object.GetNamespace(), object.GetName()))
	}
	return errors.Join(errs...)
}

// leaveClaims takes Lifeboat's notes off the claims that were made for this Replication: from now on they are the user's alone.
// A later Replication takes them for volumes that may hold anything.
func (r *Reconciler) leaveClaims(ctx context.Context, v *view) error {
	var claims corev1.PersistentVolumeClaimList
	if err := r.Live.List(ctx, &claims, client.InNamespace(v.rep.Namespace)); err != nil {
		return fmt.Errorf("list claims of namespace %s: %w", v.rep.Namespace, err)
	}
	var errs []error
	for i := range claims.Items {
		claim := &claims.Items[i]
		if claim.Annotations[v1alpha1.AnnotationCreatedFor] != v.rep.Name || !claim.DeletionTimestamp.IsZero() {
			continue
		}
		before := claim.DeepCopy()
		delete(claim.Annotations, v1alpha1.AnnotationCreatedFor)
		delete(claim.Annotations, annotationUsed)
		if claim.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat {
			delete(claim.Labels, v1alpha1.LabelManagedBy)
		}
		if err := r.Client.Patch(ctx, claim, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("leave claim %s/%s to its user: %w", claim.Namespace, claim.Name, err))
		}
	}
	return errors.Join(errs...)
}

// leaveGroup removes a group that a source had made here, once no other Replication refers to it. A user's group stays.
func (r *Reconciler) leaveGroup(ctx context.Context, v *view) error {
	group, err := group(ctx, r.Live, v.rep)
	if err != nil || group == nil || group.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat {
		return err
	}
	var all v1alpha1.ReplicationList
	if err := r.Live.List(ctx, &all, client.InNamespace(v.rep.Namespace)); err != nil {
		return fmt.Errorf("list replications of namespace %s: %w", v.rep.Namespace, err)
	}
	for _, other := range all.Items {
		if other.Name != v.rep.Name && other.Spec.PVCGroupName == group.Name {
			return nil
		}
	}
	return r.delete(ctx, &v1alpha1.PVCGroup{}, group.Namespace, group.Name)
}

// replicaVolumes are the static volumes made for this Replication, by their claims' place and label: the names of its members may not be
// known any more.
func (r *Reconciler) replicaVolumes(ctx context.Context, v *view) ([]corev1.PersistentVolume, error) {
	var list corev1.PersistentVolumeList
	mine := client.MatchingLabels{v1alpha1.LabelComponent: componentReplica, v1alpha1.LabelReplication: v.rep.Name}
	if err := r.Live.List(ctx, &list, mine); err != nil {
		return nil, fmt.Errorf("list replica volumes of replication %s: %w", v.key(), err)
	}
	return slices.DeleteFunc(list.Items, func(o corev1.PersistentVolume) bool {
		return o.Spec.ClaimRef == nil || o.Spec.ClaimRef.Namespace != v.rep.Namespace
	}), nil
}

// left names what was to be removed and is still there, as "kind name".
func (r *Reconciler) left(ctx context.Context, v *view) ([]string, error) {
	again := &common{}
	if err := r.observeMade(ctx, r.Live, v.rep, again); err != nil {
		return nil, err
	}
	var out []string
	for _, s := range again.snapshots {
		if s.Purpose == snapshot.ForSession || !retained(v.rep) || s.BeingMade(r.Now()) {
			out = add(out, objectOf(s))
		}
	}
	for _, o := range again.jobs {
		out = append(out, "Job "+o.Name)
	}
	for _, o := range again.pods {
		out = append(out, "Pod "+o.Name)
	}
	for _, o := range again.claims {
		out = append(out, "PersistentVolumeClaim "+o.Name)
	}
	volumes, err := r.replicaVolumes(ctx, v)
	if err != nil {
		return nil, err
	}
	for _, o := range volumes {
		out = append(out, "PersistentVolume "+o.Name)
	}
	return out, nil
}
