package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
)

// putPlan is a PutPlan request with what is needed to judge it.
type putPlan struct {
	key    types.NamespacedName
	spec   v1alpha1.DisasterRecoveryPlanSpec
	epoch  int64
	here   string
	caller string
}

// PutPlan implements the service. Only the primary of a plan writes its copies.
func (s *Server) PutPlan(ctx context.Context, r *linkpb.PutPlanRequest) (*linkpb.PutPlanResponse, error) {
	pair := callersPair(ctx)
	put := putPlan{key: fromKey(r.GetKey()), epoch: r.GetEpoch(), here: s.Cluster, caller: pair.Spec.PeerCluster}
	if err := json.Unmarshal(r.GetSpec(), &put.spec); err != nil {
		return nil, refuse(ReasonInvalid, "plan %s: the spec is not readable: %v", put.key, err)
	}
	if err := put.check(r.GetPrimary()); err != nil {
		return nil, err
	}
	var plan v1alpha1.DisasterRecoveryPlan
	err := s.Client.Get(ctx, put.key, &plan)
	switch {
	case apierrors.IsNotFound(err):
		err = s.createPlan(ctx, put)
	case err == nil:
		err = s.updatePlan(ctx, put, &plan)
	default:
		err = fmt.Errorf("read plan %s: %w", put.key, err)
	}
	return &linkpb.PutPlanResponse{}, asRefusal(err)
}

// check judges what can be known from the request alone.
func (p putPlan) check(primary string) error {
	switch {
	case primary != p.caller:
		return refuse(ReasonNotPrimary, "plan %s: cluster %s holds %s to be the primary; only the primary itself changes the copies of a plan", p.key, p.caller, primary)
	case p.epoch < 1:
		return refuse(ReasonInvalid, "plan %s: the epoch is %d, it is at least 1", p.key, p.epoch)
	case !slices.Contains(p.spec.PreferredClusterList, p.here):
		return refuse(ReasonInvalid, "plan %s: spec.preferredClusterList %v does not name cluster %s, so it gets no copy", p.key, p.spec.PreferredClusterList, p.here)
	case !slices.Contains(p.spec.PreferredClusterList, p.caller):
		return refuse(ReasonInvalid, "plan %s: spec.preferredClusterList %v does not name its primary %s", p.key, p.spec.PreferredClusterList, p.caller)
	}
	return nil
}

// against judges the request by what this cluster knows.
func (p putPlan) against(plan *v1alpha1.DisasterRecoveryPlan) error {
	primary := plan.Status.PrimaryCluster
	if primary == "" {
		// Made here by hand, or by a PutPlan that was cut between its two writes.
		primary = plan.Spec.PrimaryCluster
	}
	switch {
	case !plan.DeletionTimestamp.IsZero():
		return refuse(ReasonConflict, "plan %s is being deleted on cluster %s", p.key, p.here)
	case p.epoch < plan.Status.Epoch:
		return refuse(ReasonStaleEpoch, "plan %s: cluster %s is at epoch %d, cluster %s comes with epoch %d", p.key, p.here, plan.Status.Epoch, p.caller, p.epoch)
	case primary != p.caller:
		return refuse(ReasonNotPrimary, "plan %s: by what cluster %s knows, %s is the primary and not %s", p.key, p.here, primary, p.caller)
	}
	return nil
}

func (s *Server) createPlan(ctx context.Context, put putPlan) error {
	if err := s.ensureNamespace(ctx, put.key.Namespace); err != nil {
		return err
	}
	plan := &v1alpha1.DisasterRecoveryPlan{Spec: put.spec}
	plan.Namespace, plan.Name = put.key.Namespace, put.key.Name
	plan.Labels = managedLabels()
	// The primary's copy may already ask for a move; a copy never does.
	plan.Spec.PrimaryCluster = put.caller
	if err := s.Client.Create(ctx, plan); err != nil {
		return fmt.Errorf("create plan %s: %w", put.key, err)
	}
	return s.beginPlan(ctx, put, plan)
}

// beginPlan makes the copy know at once that it is a copy: the rules that guard edits look at its status.
func (s *Server) beginPlan(ctx context.Context, put putPlan, plan *v1alpha1.DisasterRecoveryPlan) error {
	before := plan.DeepCopy()
	plan.Status.LocalCluster = put.here
	plan.Status.PrimaryCluster = put.caller
	plan.Status.Epoch = put.epoch
	err := s.Client.Status().Patch(ctx, plan, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil {
		return fmt.Errorf("begin status of plan %s: %w", put.key, err)
	}
	return nil
}

func (s *Server) updatePlan(ctx context.Context, put putPlan, plan *v1alpha1.DisasterRecoveryPlan) error {
	if err := put.against(plan); err != nil {
		return err
	}
	if plan.Status.PrimaryCluster == "" {
		if err := s.beginPlan(ctx, put, plan); err != nil {
			return err
		}
	}
	spec := put.spec
	spec.PrimaryCluster = plan.Spec.PrimaryCluster
	same, err := sameJSON(spec, plan.Spec)
	if err != nil || same {
		return err
	}
	before := plan.DeepCopy()
	plan.Spec = spec
	if err := s.Client.Patch(ctx, plan, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("update plan %s: %w", put.key, err)
	}
	return nil
}

// sameJSON compares what the API server would store.
func sameJSON(a, b any) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	if err != nil {
		return false, err
	}
	return string(x) == string(y), nil
}

func managedLabels() map[string]string {
	return map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat}
}
