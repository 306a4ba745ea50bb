package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// rollbackLeft names what there is of a rollback, as "kind name".
func rollbackLeft(v *view) []string {
	var out []string
	for _, job := range v.jobs {
		if job.Labels[v1alpha1.LabelComponent] == componentRollback {
			out = append(out, "Job "+job.Name)
		}
	}
	for _, pod := range v.pods {
		if pod.Labels[v1alpha1.LabelComponent] == componentRollback {
			out = append(out, "Pod "+pod.Name)
		}
	}
	for _, claim := range v.claims {
		if claim.Labels[v1alpha1.LabelComponent] == componentRollback {
			out = append(out, "PersistentVolumeClaim "+claim.Name)
		}
	}
	return out
}

// observeRollback tells whether the promotion goes back to an older point, and how far that is.
func (r *Reconciler) observeRollback(ctx context.Context, v *view) (cycle.Rollback, error) {
	status := &v.rep.Status
	point := v.rep.Spec.PromoteTo
	begun := status.RollingBackTo != "" && status.RollingBackTo == point
	switch {
	case status.RollingBackTo != "" && point == "":
		return cycle.Rollback{Point: status.RollingBackTo, Problem: fmt.Sprintf(
			"the replica was being rolled back to point %s and is no instant of anything now: set spec.promoteTo to it again or to another point that is kept, or spec.role back to target", status.RollingBackTo)}, nil
	case status.RollingBackTo != "":
		// A replica that is half rolled back must be taken to an end, whatever was answered before.
	case point == "", point == status.PromotedTo, v.holds(point):
		return cycle.Rollback{}, nil
	}
	b := cycle.Rollback{Point: point, Begun: begun, Problem: rollbackProblem(v, point), Clones: cycle.Present}
	for i := range v.members {
		claim := v.claim(v.names.rollbackClaim(point, i))
		switch {
		case claim == nil:
			b.Clones = cycle.Absent
			continue
		case !claim.DeletionTimestamp.IsZero():
			b.Clones, b.Trouble = cycle.Partial, "the former claim "+claim.Name+" is being deleted"
		case claim.Status.Phase != corev1.ClaimBound:
			late, err := snapshot.BindsLate(ctx, r.Live, claim)
			if err != nil {
				return b, err
			}
			if !late && b.Clones == cycle.Present {
				b.Clones, b.Trouble = cycle.Partial, r.claimTrouble(ctx, claim, "claim "+claim.Name+" is not bound yet")
			}
		}
	}
	var job *batchv1.Job
	for i := range v.jobs {
		if v.jobs[i].Name == v.names.rollback(point) {
			job = &v.jobs[i]
		}
	}
	var pods []*corev1.Pod
	for i := range v.pods {
		switch pod := &v.pods[i]; {
		case pod.Labels[v1alpha1.LabelComponent] != componentRollback:
		case pod.Labels[v1alpha1.LabelPoint] == point:
			pods = append(pods, pod)
		default:
			b.Others = append(b.Others, "Pod "+pod.Name)
		}
	}
	for i := range v.jobs {
		if o := &v.jobs[i]; o.Labels[v1alpha1.LabelComponent] == componentRollback && o.Name != v.names.rollback(point) {
			b.Others = append(b.Others, "Job "+o.Name)
		}
	}
	b.Mover, _ = judge(job, pods)
	return b, nil
}

// holds reports whether the replica holds a point as far as is known: what the receiver says is newer than what was saved.
func (v *view) holds(point string) bool {
	if v.state != nil && v.state.Committed != nil {
		return v.state.Committed.ID == point
	}
	return v.status.RecoveryPoint != nil && v.status.RecoveryPoint.Point == point
}

// rollbackProblem tells what a point lacks; empty when all members can be rolled back to it.
func rollbackProblem(v *view, point string) string {
	if v.replicaIsFiles() {
		return fmt.Sprintf("spec.promoteTo %s: a replica that is kept by files cannot be rolled back in place; clear promoteTo to promote the newest point, and make claims from this one with lifeboat restore", point)
	}
	for _, m := range v.members {
		s := find(v, point, snapshot.ForRecovery, m.Name)
		if s != nil && s.Ready && !s.Deleting && s.Name != "" {
			continue
		}
		var ids []string
		for _, p := range kept(v.snapshots) {
			ids = append(ids, p.ID)
		}
		slices.Reverse(ids)
		return fmt.Sprintf("spec.promoteTo %s: no snapshot of claim %s can be used that keeps this point; the points kept are: %s; name one of them, or clear promoteTo to promote the newest", point, m.Name, strings.Join(ids, ", "))
	}
	return ""
}

func (r *Reconciler) makeRollback(ctx context.Context, v *view) error {
	point := v.rep.Spec.PromoteTo
	for i, m := range v.members {
		from := find(v, point, snapshot.ForRecovery, m.Name)
		if from == nil || m.Claim == nil {
			return fmt.Errorf("make a block claim of claim %s/%s at point %s: claim or snapshot are gone", v.rep.Namespace, m.Name, point)
		}
		if !m.Block() {
			if err := snapshot.AllowBlock(ctx, r.Client, from.Content); err != nil {
				return err
			}
		}
		if err := r.create(ctx, blockClaim(v, v.names.rollbackClaim(point, i), componentRollback, from, from.RestoreSize, m.Claim.Spec.StorageClassName)); err != nil {
			return err
		}
	}
	return nil
}

// startRollback starts the Job that makes the replicas what the snapshots hold. It talks to nobody, so it has no identity.
func (r *Reconciler) startRollback(ctx context.Context, v *view) error {
	point := v.rep.Spec.PromoteTo
	name, labels := v.names.rollback(point), with(v.names.labels(componentRollback), v1alpha1.LabelPoint, point)
	config := engine.RollbackConfig{Replication: v.key().String(), Point: point, TerminationLog: terminationFile}
	pod := r.podSpec("rollback", name, "")
	pod.Volumes = slices.DeleteFunc(pod.Volumes, func(volume corev1.Volume) bool { return volume.Name == "identity" })
	main := &pod.Containers[0]
	main.VolumeMounts = slices.DeleteFunc(main.VolumeMounts, func(mount corev1.VolumeMount) bool { return mount.Name == "identity" })
	main.Ports = nil
	for i, m := range v.members {
		config.Volumes = append(config.Volumes, engine.RollbackVolume{Name: m.Name, From: devicePath(2 * i), Device: devicePath(2*i + 1)})
		mountDevice(&pod, 2*i, v.names.rollbackClaim(point, i))
		mountDevice(&pod, 2*i+1, v.names.replicaClaim(m.Name))
	}
	pod.RestartPolicy = corev1.RestartPolicyNever
	if err := r.makeConfig(ctx, v, name, labels, config, nil); err != nil {
		return err
	}
	retries := int32(moverRetries)
	return r.create(ctx, &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: name, Labels: labels, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec:       batchv1.JobSpec{BackoffLimit: &retries, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod}},
	})
}

func (r *Reconciler) removeRollback(ctx context.Context, v *view) error {
	var errs []error
	for _, entry := range rollbackLeft(v) {
		kind, name, _ := strings.Cut(entry, " ")
		switch kind {
		case "Job":
			errs = append(errs, r.delete(ctx, &batchv1.Job{}, v.rep.Namespace, name), r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, name))
		case "Pod":
			errs = append(errs, r.delete(ctx, &corev1.Pod{}, v.rep.Namespace, name))
		case "PersistentVolumeClaim":
			errs = append(errs, r.delete(ctx, &corev1.PersistentVolumeClaim{}, v.rep.Namespace, name))
		}
	}
	return errors.Join(errs...)
}

// rolledBack is the point that the replica holds after its rollback, as its snapshots tell of it.
func rolledBack(v *view) *v1alpha1.RecoveryPoint {
	point := v.rep.Spec.PromoteTo
	for _, known := range v.status.RecoveryPoints {
		if known.Point == point {
			return &known
		}
	}
	out := &v1alpha1.RecoveryPoint{Point: point, Epoch: v.rep.Status.Epoch}
	for _, s := range v.snapshots {
		if s.Point == point && s.Purpose == snapshot.ForRecovery {
			out.Epoch, out.Cut, out.Time = s.Epoch, s.Cut, metav1.NewTime(s.Instant)
			if s.Instant.IsZero() {
				out.Time = metav1.NewTime(s.CreatedAt)
			}
		}
	}
	return out
}
