// Package applicationsnapshot makes ApplicationSnapshots so: a new one is captured on this cluster, kept, and sent to
// the peers of its plan; one that came from a peer is only shown.
//
// It never decides when to capture or what to delete (plans do), and never restores. Read Reconcile, then decide in
// observe.go.
package applicationsnapshot

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/store"
)

// Pusher sends a snapshot to a peer, whole or not at all. The blobs are all that the peer may lack; if it lacks more,
// the push fails.
type Pusher interface {
	PushApplicationSnapshot(ctx context.Context, peer string, snapshot *v1alpha1.ApplicationSnapshot, blobs []store.Blob) error
}

// Reconciler captures and sends ApplicationSnapshots.
type Reconciler struct {
	Client client.Client
	// Reader asks the API server itself: a cached object may show a status from before the capture.
	Reader   client.Reader
	Capturer *appmeta.Capturer
	Library  *appmeta.Library
	Pusher   Pusher
	// Cluster is the name of this cluster.
	Cluster string
	// Locate tells people where a manifest is kept, by its name in the store.
	Locate func(manifest string) string
	Now    func() time.Time
}

const (
	// workers bounds how many snapshots are captured or sent at once.
	workers = 4
	// sweepEvery bounds how long what nobody uses stays, should a deletion have gone unnoticed.
	sweepEvery = time.Hour
)

// +kubebuilder:rbac:groups=lifeboat.dev,resources=applicationsnapshots,verbs=get;list;watch;create;update;patch;delete
// +kubebuilder:rbac:groups=lifeboat.dev,resources=applicationsnapshots/status,verbs=get;update;patch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=disasterrecoveryplans;pvcgroups;replications,verbs=get;list;watch
// Capture and restore carry every kind an application may use, also ones this program does not know:
// +kubebuilder:rbac:groups=*,resources=*,verbs=get;list;create;patch
// Restored Roles and RoleBindings may grant more than this program holds:
// +kubebuilder:rbac:groups=rbac.authorization.k8s.io,resources=roles;clusterroles,verbs=escalate;bind
// The library's Secrets:
// +kubebuilder:rbac:groups="",namespace=lifeboat-system,resources=secrets,verbs=get;list;create;update;delete

// Reconcile brings one ApplicationSnapshot on.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.observe(ctx, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, err
	}
	if seen.snapshot == nil {
		return ctrl.Result{}, r.sweep(ctx)
	}
	before := seen.snapshot.DeepCopy()
	again, actErr := r.act(ctx, seen, decide(seen))
	if err := condition.Save(ctx, r.Client, before, seen.snapshot); err != nil && !apierrors.IsNotFound(err) {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: again}, actErr
}

// SetupWithManager adds the controller and the hourly sweep to the manager. A plan's edit wakes its snapshots: its
// peers may be others now.
func (r *Reconciler) SetupWithManager(m manager.Manager) error {
	if err := m.Add(manager.RunnableFunc(r.sweepForever)); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).
		Named("applicationsnapshot").
		For(&v1alpha1.ApplicationSnapshot{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.DisasterRecoveryPlan{}, r.plansSnapshots(), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

func (r *Reconciler) plansSnapshots() handler.EventHandler {
	return handler.Funcs{UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
		var all v1alpha1.ApplicationSnapshotList
		if err := r.Client.List(ctx, &all, client.InNamespace(e.ObjectNew.GetNamespace())); err != nil {
			return
		}
		for _, s := range all.Items {
			if s.Spec.PlanName == e.ObjectNew.GetName() {
				q.Add(ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: s.Name}})
			}
		}
	}}
}
