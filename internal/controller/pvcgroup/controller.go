// Package pvcgroup shows what the claims of a PVCGroup are: sizes, whether they are bound, whether they can be snapshotted,
// and whether they are cut at one instant.
//
// It only looks and writes status. Nothing waits for it: replications read the claims themselves. Begin reading at
// Reconcile.
package pvcgroup

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
)

// +kubebuilder:rbac:groups=lifeboat.dev,resources=pvcgroups,verbs=get;list;watch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=pvcgroups/status,verbs=get;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=get
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshotclasses,verbs=list
// +kubebuilder:rbac:groups=groupsnapshot.storage.k8s.io,resources=volumegroupsnapshotclasses,verbs=list
// +kubebuilder:rbac:groups=apiextensions.k8s.io,resources=customresourcedefinitions,resourceNames=volumegroupsnapshots.groupsnapshot.storage.k8s.io,verbs=get

// How soon to look again: claims are not watched, because their number is no concern of a group's.
const (
	whenReady = time.Minute
	otherwise = 2 * time.Second
)

// Reconciler keeps the status of PVCGroups.
type Reconciler struct {
	Client client.Client
	// Reader may answer what was true a moment ago: a status is all that comes of it, and one that was read too early is not saved.
	Reader client.Reader
}

// SetupWithManager registers the controller.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("pvcgroup").
		For(&v1alpha1.PVCGroup{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(r)
}

// Reconcile looks at the claims and writes what it saw.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var group v1alpha1.PVCGroup
	if err := r.Reader.Get(ctx, request.NamespacedName, &group); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !group.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	before := group.DeepCopy()
	seen, err := r.observe(ctx, &group)
	if err != nil {
		return ctrl.Result{}, err
	}
	tell(&group, seen)
	if err := condition.Save(ctx, r.Client, before, &group); err != nil {
		if apierrors.IsConflict(err) {
			return ctrl.Result{RequeueAfter: otherwise}, nil
		}
		return ctrl.Result{}, client.IgnoreNotFound(err) // of one that was deleted meanwhile
	}
	if seen.fault != nil {
		return ctrl.Result{RequeueAfter: otherwise}, nil
	}
	return ctrl.Result{RequeueAfter: whenReady}, nil
}
