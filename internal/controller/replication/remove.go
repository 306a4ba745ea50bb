package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// remove takes everything away that was made for a Replication, then lets it go. The user's claims stay, and so do recovery points
// when they shall. The peer is not asked, so it also ends when the peer is gone. What was asked to be removed and still hangs on
// somebody else's finalizer after deletionPatience goes by itself later: nothing is waited for without an end.
func (r *Reconciler) remove(ctx context.Context, rep *v1alpha1.Replication) (time.Duration, error) {
	if !controllerutil.ContainsFinalizer(rep, finalizer) {
		return 0, nil
	}
	c := &common{}
	if err := r.observeMade(ctx, rep, c); err != nil {
		return 0, err
	}
	// Members are read for the names of their replica volumes alone; a group that is gone leaves those of the claims.
	if group, err := r.group(ctx, rep); err == nil && group != nil {
		if c.members, err = snapshot.Members(ctx, r.Live, group); err != nil {
			c.members = nil
		}
	}
	s := r.views(rep)
	v := s.lead()
	v.lead = true
	all := append(slices.Clone(s.links), s.gone...)
	for _, link := range all {
		link.take(c)
	}
	for _, name := range rep.Status.Claims {
		if v.member(name) == nil {
			v.members = append(v.members, snapshot.Member{Name: name})
		}
	}
	for _, link := range all {
		if err := r.removeAll(ctx, link, retained(rep)); err != nil {
			return 0, err
		}
	}
	left, err := r.left(ctx, v, retained(rep))
	if err != nil {
		return 0, err
	}
	if left && v.now.Sub(rep.DeletionTimestamp.Time) < deletionPatience {
		return cycle.Quick, nil
	}
	for _, link := range all {
		r.forget(link.linkKey())
	}
	controllerutil.RemoveFinalizer(rep, finalizer)
	if err := r.Client.Update(ctx, rep); client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("let replication %s go: %w", v.key(), err)
	}
	return time.Hour, nil
}

// retained tells whether the recovery points stay. They are the replica's, whichever link brought them: one link that says so is enough.
func retained(rep *v1alpha1.Replication) bool {
	return slices.ContainsFunc(rep.Spec.Rlinks, func(link v1alpha1.Rlink) bool { return link.RetainSnapshotsOnDeletion })
}

// removeAll asks for everything of a link to be removed. Order: what writes first, then what it writes through, then what it kept.
func (r *Reconciler) removeAll(ctx context.Context, v *view, retained bool) error {
	var err error
	if v.replica.deployment, err = lookFor(ctx, r.Live, client.ObjectKey{Namespace: v.rep.Namespace, Name: v.names.receiver()}, &appsv1.Deployment{}); err != nil {
		return err
	}
	errs := []error{r.removeReceiver(ctx, v)}
	for _, job := range v.jobs {
		errs = append(errs, r.delete(ctx, &batchv1.Job{}, v.rep.Namespace, job.Name), r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, job.Name))
	}
	for _, pod := range v.pods {
		if pod.DeletionTimestamp.IsZero() {
			errs = append(errs, r.delete(ctx, &corev1.Pod{}, v.rep.Namespace, pod.Name))
		}
	}
	if v.lead {
		errs = append(errs, r.removePair(ctx, v))
	}
	for _, claim := range v.claims {
		errs = append(errs, r.delete(ctx, &corev1.PersistentVolumeClaim{}, v.rep.Namespace, claim.Name))
	}
	for _, s := range v.snapshots {
		if s.Purpose == snapshot.ForSession || !retained {
			errs = append(errs, snapshot.Remove(ctx, r.Client, v.rep.Namespace, s))
		}
	}
	errs = append(errs, r.release(ctx, v))
	for _, name := range []string{v.names.mover(), v.names.receiver()} {
		errs = append(errs, r.delete(ctx, &corev1.Secret{}, v.rep.Namespace, name))
	}
	errs = append(errs, r.removeAccount(ctx, v))
	return errors.Join(errs...)
}

// left reports whether anything that was to be removed is still there.
func (r *Reconciler) left(ctx context.Context, v *view, retained bool) (bool, error) {
	again := &common{}
	if err := r.observeMade(ctx, v.rep, again); err != nil {
		return false, err
	}
	for _, s := range again.snapshots {
		if s.Purpose == snapshot.ForSession || !retained {
			return true, nil
		}
	}
	if len(again.jobs)+len(again.pods)+len(again.claims) > 0 {
		return true, nil
	}
	for _, m := range v.members {
		volume, err := lookFor(ctx, r.Live, client.ObjectKey{Name: v.names.replicaVolume(m.Name)}, &corev1.PersistentVolume{})
		if err != nil || volume != nil {
			return volume != nil, err
		}
	}
	return false, nil
}
