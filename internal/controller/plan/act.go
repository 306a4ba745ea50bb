package plan

import (
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/runbook"
)

// keptOfOperations is how many snapshots of ended operations stay, for those who want to know what was restored.
const keptOfOperations = 2

// outcome is what became of an action.
type outcome struct {
	// done is true when an action that takes a while has ended.
	done bool
	// message tells what it did or waits for; empty when the decision's message says it all.
	message string
	// peers tells what is wrong with the copy on a peer, by cluster.
	peers map[string]string
}

// act does what was decided, and what a primary does besides. Everything here may be done again at any time.
func (r *Reconciler) act(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s seen, next runbook.Decision) (outcome, error) {
	o, err := r.do(ctx, plan, s, next)
	if err != nil {
		return outcome{}, err
	}
	if next.Standing == runbook.Primary && plan.DeletionTimestamp.IsZero() {
		o.peers = r.keepCopies(ctx, plan, s)
	}
	if plan.Status.Operation != nil || next.Standing == runbook.HandedOver || saves(next.Action) {
		return o, nil
	}
	if next.Standing == runbook.Primary {
		if err := r.captureByTheClock(ctx, plan, s); err != nil {
			return outcome{}, err
		}
	}
	return o, r.prune(ctx, plan, s)
}

// guard puts the finalizer on before an operation begins here and takes it off after its end.
func (r *Reconciler) guard(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, next runbook.Decision) (changed bool, err error) {
	before := plan.DeepCopy()
	switch needed := plan.Status.Operation != nil || next.Standing == runbook.HandedOver || next.Action == runbook.Begin || next.Action == runbook.Accept; {
	case needed && plan.DeletionTimestamp.IsZero():
		changed = controllerutil.AddFinalizer(plan, finalizer)
	case !needed:
		changed = controllerutil.RemoveFinalizer(plan, finalizer)
	}
	if !changed {
		return false, nil
	}
	if err := r.Patch(ctx, plan, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return false, fmt.Errorf("change the finalizers of plan %s/%s: %w", plan.Namespace, plan.Name, err)
	}
	return true, nil
}

func (r *Reconciler) do(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s seen, next runbook.Decision) (outcome, error) {
	switch next.Action {
	case runbook.Capture:
		return outcome{}, r.capture(ctx, plan, plan.Status.Operation.ApplicationSnapshot, plan.Status.Operation.ID)
	case runbook.Sync:
		return outcome{}, r.patchReplication(ctx, s, func(spec *v1alpha1.ReplicationSpec) { spec.TriggerNow = next.Token })
	case runbook.Demote:
		return outcome{}, r.patchReplication(ctx, s, func(spec *v1alpha1.ReplicationSpec) {
			spec.Role, spec.Epoch, spec.TriggerNow = v1alpha1.RoleTarget, next.Epoch, ""
		})
	case runbook.Promote:
		return outcome{}, r.patchReplication(ctx, s, func(spec *v1alpha1.ReplicationSpec) {
			spec.Role, spec.Epoch, spec.TriggerNow = v1alpha1.RoleSource, next.Epoch, ""
		})
	case runbook.Stop:
		return r.stop(ctx, plan)
	case runbook.Start:
		return r.start(ctx, plan)
	case runbook.Restore:
		return r.restore(ctx, plan)
	case runbook.Align:
		return outcome{}, r.align(ctx, plan, next.Peer)
	}
	return outcome{}, nil
}

func (r *Reconciler) capture(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, name, operation string) error {
	snapshot := &v1alpha1.ApplicationSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: plan.Namespace, Name: name, Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat,
			v1alpha1.LabelPlan:      labelValue(plan.Name),
		}},
		Spec: v1alpha1.ApplicationSnapshotSpec{Selector: plan.Spec.Selector, PlanName: plan.Name, Operation: operation},
	}
	if err := r.Create(ctx, snapshot); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make ApplicationSnapshot %s/%s: %w", plan.Namespace, name, err)
	}
	return nil
}

// labelValue is a name as a label may hold it; spec.planName has it whole.
func labelValue(name string) string { return strings.TrimRight(name[:min(len(name), 63)], "-.") }

// patchReplication changes the Replication as it was seen: a change in between is a conflict and is looked at first.
func (r *Reconciler) patchReplication(ctx context.Context, s seen, change func(*v1alpha1.ReplicationSpec)) error {
	before := s.replication
	after := before.DeepCopy()
	change(&after.Spec)
	if err := r.Patch(ctx, after, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("change Replication %s: %w", client.ObjectKeyFromObject(before), err)
	}
	return nil
}

func (r *Reconciler) stop(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) (outcome, error) {
	p, err := r.Hook.Offline(ctx, plan.Namespace, plan.Spec.Selector, operationID(plan))
	if err != nil {
		return outcome{}, fmt.Errorf("take the application of plan %s/%s offline: %w", plan.Namespace, plan.Name, err)
	}
	return outcome{done: p.Done, message: waitingFor(p.Waiting)}, nil
}

func operationID(plan *v1alpha1.DisasterRecoveryPlan) string {
	if o := plan.Status.Operation; o != nil {
		return o.ID
	}
	return plan.Status.Grant.Operation
}

func (r *Reconciler) start(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) (outcome, error) {
	p, err := r.Hook.Online(ctx, plan.Namespace, plan.Spec.Selector)
	if err != nil {
		return outcome{}, fmt.Errorf("put the application of plan %s/%s back online: %w", plan.Namespace, plan.Name, err)
	}
	return outcome{done: p.Done, message: waitingFor(p.Waiting)}, nil
}

func waitingFor(what []string) string {
	if len(what) == 0 {
		return ""
	}
	return "waiting: " + strings.Join(what, "; ")
}

func (r *Reconciler) restore(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) (outcome, error) {
	o := plan.Status.Operation
	result, err := r.Restorer.Restore(ctx, plan.Namespace, o.ApplicationSnapshot, o.ID)
	if err != nil {
		return outcome{}, fmt.Errorf("restore the application of plan %s/%s: %w", plan.Namespace, plan.Name, err)
	}
	message := fmt.Sprintf("%d of %d objects restored", result.Applied+result.Unchanged, result.Total)
	if result.Message != "" {
		message += ": " + result.Message
	}
	for i, f := range result.Failed {
		if i == 3 {
			message += fmt.Sprintf("; and %d more", len(result.Failed)-i)
			break
		}
		message += fmt.Sprintf("; %s: %s", f.Object, f.Reason)
	}
	return outcome{done: result.Done, message: message}, nil
}

func (r *Reconciler) align(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, to string) error {
	before := plan.DeepCopy()
	plan.Spec.PrimaryCluster = to
	if err := r.Patch(ctx, plan, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("set spec.primaryCluster of plan %s/%s to %s: %w", plan.Namespace, plan.Name, to, err)
	}
	return nil
}

// keepCopies sends the spec to the peers that do not have it. What does not succeed is told, and tried at the next look.
func (r *Reconciler) keepCopies(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s seen) map[string]string {
	trouble := map[string]string{}
	for _, p := range s.view.Peers {
		if p.Copy == nil || p.Copy.Found && !p.Behind {
			continue
		}
		if err := r.putPlan(ctx, plan, p.Name); err != nil {
			trouble[p.Name] = err.Error()
		}
	}
	return trouble
}

func (r *Reconciler) putPlan(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, cluster string) error {
	peer, err := r.Peers.Client(cluster)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// A wish of this copy is no wish of the others: they learn of a new primary when it is one.
	spec := *plan.Spec.DeepCopy()
	spec.PrimaryCluster = r.Cluster
	return peer.PutPlan(ctx, client.ObjectKeyFromObject(plan), spec, plan.Status.Epoch, r.Cluster)
}

// captureByTheClock takes the periodic application snapshots, start to start, the first as soon as this cluster is primary.
func (r *Reconciler) captureByTheClock(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s seen) error {
	interval := 15 * time.Minute
	if plan.Spec.MetadataBackupInterval != nil {
		interval = plan.Spec.MetadataBackupInterval.Duration
	}
	for i := range s.snapshots {
		// One of an operation is as good as a periodic one. The source is empty until its capture begins.
		from := s.snapshots[i].Status.SourceCluster
		if (from == r.Cluster || from == "") && s.now.Sub(captured(&s.snapshots[i])) < interval {
			return nil
		}
	}
	return r.capture(ctx, plan, plan.Name+"-"+stamp(s.now), "")
}

// prune deletes the snapshots beyond maximumMetadataCopies on this cluster; each cluster keeps its own. Those
// that operations restored from are counted apart, so that a move does not push out the periodic ones.
func (r *Reconciler) prune(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s seen) error {
	type sort struct{ ofOperation, failed bool }
	count := map[sort]int{}
	for i := range s.snapshots {
		snapshot := &s.snapshots[i]
		ended := snapshot.Status.Phase == v1alpha1.SnapshotCompleted || snapshot.Status.Phase == v1alpha1.SnapshotFailed
		if !ended || !snapshot.DeletionTimestamp.IsZero() {
			continue
		}
		keep := int(max(1, plan.Spec.MaximumMetadataCopies))
		is := sort{ofOperation: snapshot.Spec.Operation != "", failed: snapshot.Status.Phase == v1alpha1.SnapshotFailed}
		if is.ofOperation {
			keep = keptOfOperations
		}
		count[is]++
		if count[is] <= keep {
			continue
		}
		if err := r.Delete(ctx, snapshot); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete ApplicationSnapshot %s: %w", client.ObjectKeyFromObject(snapshot), err)
		}
	}
	return nil
}

// nudge tells peers that there is something to see. A lost nudge only costs time.
func (r *Reconciler) nudge(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, next runbook.Decision) {
	var clusters []string
	switch next.Action {
	case runbook.GrantEpoch, runbook.Accept:
		clusters = []string{next.Peer}
	case runbook.Finish, runbook.Claim:
		clusters = plan.Spec.PreferredClusterList
	}
	for _, c := range clusters {
		if c == r.Cluster {
			continue
		}
		if peer, err := r.Peers.Client(c); err == nil {
			go nudgeOne(context.WithoutCancel(ctx), peer, client.ObjectKeyFromObject(plan))
		}
	}
}

// nudgeOne runs beside the reconcile: what comes next here does not wait for it.
func nudgeOne(ctx context.Context, peer control.Peer, key client.ObjectKey) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_ = peer.Nudge(ctx, "DisasterRecoveryPlan", key)
}
