// Package schedulepolicy shows what a SchedulePolicy says, and whether it can be used.
//
// It only looks and writes status, for printers and for whoever wrote the policy. Nobody waits for it: those who use a policy read
// and check it themselves. Begin reading at Reconcile.
package schedulepolicy

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
)

// +kubebuilder:rbac:groups=lifeboat.dev,resources=schedulepolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=schedulepolicies/status,verbs=get;patch

// Reconciler keeps the status of SchedulePolicies.
type Reconciler struct {
	Client client.Client
	// Live reads from the API server.
	Live client.Reader
}

// SetupWithManager registers the controller.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("schedulepolicy").
		For(&v1alpha1.SchedulePolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(r)
}

// Reconcile writes what the policy says into its status.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var policy v1alpha1.SchedulePolicy
	if err := r.Live.Get(ctx, request.NamespacedName, &policy); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	before := policy.DeepCopy()
	tell(&policy)
	if err := condition.Save(ctx, r.Client, before, &policy); err != nil && !apierrors.IsConflict(err) {
		return ctrl.Result{}, err
	}
	// A conflict is somebody's edit, which brings the policy here again.
	return ctrl.Result{}, nil
}
