// Package clusterpair makes the link to a peer follow its ClusterPair, and shows in the ClusterPair how the link is.
//
// It knows pairs and their trust Secrets. It sends no heartbeat and judges no certificate: package link does.
package clusterpair

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

// refreshInterval is how often a status without news is written, and how soon a changed trust Secret is noticed.
const refreshInterval = 30 * time.Second

// Links are the connections this controller keeps; link.Peers are.
type Links interface {
	// Set makes or keeps the link of a pair.
	Set(pair string, endpoint link.Endpoint, tolerance int32) error
	// SetBroken ends the link of a pair that cannot be used.
	SetBroken(pair, peerCluster, reason, message string)
	// Remove ends the link of a pair that is gone.
	Remove(pair string)
	// State is what the heartbeats say.
	State(pair string) heartbeat.State
	// Changes tells of pairs whose state changed.
	Changes() <-chan event.GenericEvent
}

// Checker tries every way to the peer of a pair, from this cluster's pods.
type Checker interface {
	Check(ctx context.Context, pair *v1alpha1.ClusterPair, caPEM []byte) []v1alpha1.CheckResult
}

// Reconciler keeps links and the status of ClusterPairs.
type Reconciler struct {
	client.Client
	// Cluster is this cluster's name.
	Cluster string
	// Trust reads pairs and Secrets from the API server itself, not from a cache.
	Trust trust.Reader
	Links Links
	// Checker tries the ways to peers; nil: nobody does.
	Checker Checker
	// Now is time.Now when nil.
	Now func() time.Time
	// Events may be nil.
	Events events.EventRecorder
}

// +kubebuilder:rbac:groups=lifeboat.dev,resources=clusterpairs,verbs=get;list;watch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=clusterpairs/status,verbs=get;update;patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups="",namespace=lifeboat-system,resources=secrets,verbs=get;create;update
// +kubebuilder:rbac:groups="",namespace=lifeboat-system,resources=configmaps,verbs=get;create;update
//
// What the control service does for peers:
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch;create
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch;create
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=get;list;watch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=pvcgroups;replications,verbs=get;list;watch;create;update
// +kubebuilder:rbac:groups=lifeboat.dev,resources=disasterrecoveryplans,verbs=get;list;watch;create;patch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=disasterrecoveryplans/status,verbs=patch

// SetupWithManager adds the controller to a manager.
func (r *Reconciler) SetupWithManager(m ctrl.Manager) error {
	if r.Events == nil {
		r.Events = m.GetEventRecorder("clusterpair")
	}
	return ctrl.NewControllerManagedBy(m).
		// Pairing marks a replaced trust Secret by an annotation; our own status must not wake us.
		For(&v1alpha1.ClusterPair{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		WatchesRawSource(source.Channel(r.Links.Changes(), &handler.EnqueueRequestForObject{})).
		Named("clusterpair").
		Complete(r)
}

// Reconcile looks at one pair, makes its link fit, and writes down how the link is.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var pair v1alpha1.ClusterPair
	err := r.Get(ctx, request.NamespacedName, &pair)
	if apierrors.IsNotFound(err) || err == nil && !pair.DeletionTimestamp.IsZero() {
		r.Links.Remove(request.Name)
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("read ClusterPair %s: %w", request.Name, err)
	}
	seen, err := r.observe(ctx, &pair)
	if err != nil {
		return ctrl.Result{}, err
	}
	if err := r.act(&pair, seen); err != nil {
		return ctrl.Result{}, err
	}
	if err := r.adoptTrust(ctx, &pair); err != nil && !apierrors.IsConflict(err) {
		return ctrl.Result{}, err
	}
	before := pair.DeepCopy()
	report(&pair, r.Links.State(pair.Name))
	r.check(ctx, &pair, seen)
	err = condition.Save(ctx, r.Client, before, &pair)
	switch {
	case apierrors.IsConflict(err):
		// The pair was read from a cache that is behind; it catches up in a moment.
		return ctrl.Result{RequeueAfter: time.Second}, nil
	case err != nil:
		return ctrl.Result{}, err
	}
	r.tell(before, &pair)
	return ctrl.Result{RequeueAfter: refreshInterval}, nil
}
