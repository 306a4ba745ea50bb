// Package plan carries out what package runbook decides for DisasterRecoveryPlans, and shows it.
//
// Each reconcile looks (observe.go), asks runbook.Next, does one thing (act.go), and writes the status once
// (status.go). It knows plans, the Replication and the ApplicationSnapshots they use, and their copies on the peers. It
// never moves a byte, stops a pod or applies an object itself: Replications, package hook and package appmeta do.
package plan

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
	"lifeboat.dev/lifeboat/internal/runbook"
)

// finalizer keeps a plan that is deleted during an operation until the operation has ended: without its plan
// the application would stay offline on both sides. It is there only as long.
const finalizer = "lifeboat.dev/operation"

// How soon a plan is looked at again. Between the application's end here and its start there nothing should wait
// for a timer, so an operation is looked at often.
const (
	whileMoving  = 300 * time.Millisecond
	whileWaiting = 2 * time.Second
	whileAtRest  = 15 * time.Second
	// afterSave is for decisions that only changed the status: the next one can be taken at once.
	afterSave = time.Millisecond
	// afterConflict is for saves that lost against an edit.
	afterConflict = 50 * time.Millisecond
)

// DefaultLimits are the limits of a Reconciler that has none. A pod may take its grace period to stop; an
// application that is not ready in two minutes is shown as such, but it has moved.
var DefaultLimits = runbook.Limits{
	Attempts:   3,
	Stop:       15 * time.Minute,
	Ready:      2 * time.Minute,
	OtherPeers: 10 * time.Second,
	Hold:       20 * time.Second,
}

// Peers are the links to the other clusters; link.Peers are.
type Peers interface {
	// Client returns the client for a cluster. An error means that the cluster is not paired, or the pair cannot be used.
	Client(cluster string) (control.Peer, error)
	// State is what the heartbeats say of a cluster.
	State(cluster string) heartbeat.State
}

// Hook stops and starts the application; hook.Hook does. Every call looks first and may be repeated.
type Hook interface {
	Offline(ctx context.Context, namespace string, selector *metav1.LabelSelector, operation string) (hook.Progress, error)
	Online(ctx context.Context, namespace string, selector *metav1.LabelSelector) (hook.Progress, error)
	Observe(ctx context.Context, namespace string, selector *metav1.LabelSelector) (hook.State, error)
}

// Restorer restores application snapshots; appmeta.Restorer does. A call may be repeated.
type Restorer interface {
	Restore(ctx context.Context, namespace, snapshot, operation string) (appmeta.RestoreResult, error)
}

// Reconciler keeps DisasterRecoveryPlans.
type Reconciler struct {
	client.Client
	// Reader asks the API server itself. A plan read from a cache could be older than what this manager saved last.
	Reader client.Reader
	// Cluster is this cluster's name.
	Cluster  string
	Peers    Peers
	Hook     Hook
	Restorer Restorer
	// Limits are DefaultLimits when zero.
	Limits runbook.Limits
	// Nudges are plans that a peer asks to be looked at now; may be nil.
	Nudges <-chan event.GenericEvent
	// Events may be nil.
	Events events.EventRecorder
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// NewID makes the id of an operation, as "20060102t150405-a1b2c3"; random when nil.
	NewID func(now time.Time) string
}

// +kubebuilder:rbac:groups=lifeboat.dev,resources=disasterrecoveryplans,verbs=get;list;watch;update;patch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=disasterrecoveryplans/status,verbs=get;update;patch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=replications,verbs=get;list;watch;update;patch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=applicationsnapshots,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=lifeboat.dev,resources=clusterpairs,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// SetupWithManager adds the controller to a manager.
func (r *Reconciler) SetupWithManager(m ctrl.Manager) error {
	if r.Events == nil {
		r.Events = m.GetEventRecorder("plan")
	}
	b := ctrl.NewControllerManagedBy(m).
		// Our own status must not wake us: what it leads to is asked for by RequeueAfter.
		For(&v1alpha1.DisasterRecoveryPlan{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Replication{}, handler.EnqueueRequestsFromMapFunc(r.plansOfReplication), builder.WithPredicates(predicate.Funcs{UpdateFunc: replicationChanged})).
		Watches(&v1alpha1.ApplicationSnapshot{}, handler.EnqueueRequestsFromMapFunc(plansOfSnapshot)).
		Watches(&v1alpha1.ClusterPair{}, handler.EnqueueRequestsFromMapFunc(r.allPlans), builder.WithPredicates(predicate.Funcs{UpdateFunc: linkChanged})).
		Named("plan").
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 4,
			// An operation that met an error is tried again within seconds, not within the queue's minutes.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, 5*time.Second),
		})
	if r.Nudges != nil {
		b = b.WatchesRawSource(source.Channel(r.Nudges, &handler.EnqueueRequestForObject{}))
	}
	return b.Complete(r)
}

// Reconcile looks at one plan, does the next thing, and writes down how it stands.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var plan v1alpha1.DisasterRecoveryPlan
	err := r.Reader.Get(ctx, request.NamespacedName, &plan)
	if apierrors.IsNotFound(err) {
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("read plan %s: %w", request.NamespacedName, err)
	}
	seen, err := r.observe(ctx, &plan)
	if err != nil {
		return ctrl.Result{}, err
	}
	next := runbook.Next(seen.view)
	if changed, err := r.guard(ctx, &plan, next); err != nil || changed {
		if err != nil {
			return retry(err)
		}
		return ctrl.Result{RequeueAfter: afterSave}, nil
	}
	done, err := r.act(ctx, &plan, seen, next)
	if err != nil {
		return retry(err)
	}
	if next.Action == runbook.Align {
		// The spec was saved, so the status that was read belongs to an older version.
		return ctrl.Result{RequeueAfter: afterSave}, nil
	}
	before := plan.DeepCopy()
	r.report(&plan, seen, next, done)
	err = condition.Save(ctx, r.Client, before, &plan)
	switch {
	case apierrors.IsNotFound(err):
		return ctrl.Result{}, nil // it was deleted meanwhile: there is nobody to tell
	case err != nil:
		return retry(err)
	}
	r.tell(before, &plan, next)
	r.nudge(ctx, &plan, next)
	return ctrl.Result{RequeueAfter: again(before, &plan, next, done)}, nil
}

// retry makes a lost save a reason to look again, not an error: somebody else wrote, and their write is looked at.
func retry(err error) (ctrl.Result, error) {
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: afterConflict}, nil
	}
	return ctrl.Result{}, err
}

// again is when to look again.
func again(before, now *v1alpha1.DisasterRecoveryPlan, next runbook.Decision, done outcome) time.Duration {
	b, n := before.Status, now.Status
	switch {
	case saves(next.Action) || done.done:
		return afterSave
	case next.Standing == runbook.HandedOver, n.Operation != nil, b.Operation != nil:
		return whileMoving
	case now.Spec.PrimaryCluster != n.PrimaryCluster, next.Action != runbook.Rest:
		return whileWaiting
	}
	return whileAtRest
}

// saves tells actions whose effect is the status alone.
func saves(a runbook.Action) bool {
	return slices.Contains([]runbook.Action{runbook.Claim, runbook.Follow, runbook.Begin, runbook.Enter, runbook.Undo,
		runbook.GrantEpoch, runbook.Accept, runbook.Finish, runbook.Close}, a)
}

func (r *Reconciler) now() time.Time {
	if r.Now == nil {
		return time.Now()
	}
	return r.Now()
}

func (r *Reconciler) newID(now time.Time) string {
	if r.NewID != nil {
		return r.NewID(now)
	}
	random := make([]byte, 3)
	_, _ = rand.Read(random) // never fails: the runtime ends the process instead
	return stamp(now) + "-" + hex.EncodeToString(random)
}

// stamp is an instant as it appears in names.
func stamp(t time.Time) string { return t.UTC().Format("20060102t150405") }

func (r *Reconciler) limits() runbook.Limits {
	if r.Limits == (runbook.Limits{}) {
		return DefaultLimits
	}
	return r.Limits
}

func (r *Reconciler) plansOfReplication(ctx context.Context, o client.Object) []reconcile.Request {
	return r.plans(ctx, func(p *v1alpha1.DisasterRecoveryPlan) bool {
		return p.Spec.DataReplicationPointer == o.GetName()
	}, client.InNamespace(o.GetNamespace()))
}

func (r *Reconciler) allPlans(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.plans(ctx, func(*v1alpha1.DisasterRecoveryPlan) bool { return true })
}

func (r *Reconciler) plans(ctx context.Context, wanted func(*v1alpha1.DisasterRecoveryPlan) bool, opts ...client.ListOption) []reconcile.Request {
	var list v1alpha1.DisasterRecoveryPlanList
	if err := r.List(ctx, &list, opts...); err != nil {
		return nil // they look by themselves a little later
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if p := &list.Items[i]; wanted(p) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(p)})
		}
	}
	return requests
}

func plansOfSnapshot(_ context.Context, o client.Object) []reconcile.Request {
	s, ok := o.(*v1alpha1.ApplicationSnapshot)
	if !ok || s.Spec.PlanName == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: s.Spec.PlanName}}}
}

// replicationChanged leaves out the progress of sessions: an operation looks by itself, and nothing else minds.
func replicationChanged(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*v1alpha1.Replication)
	if !ok {
		return false
	}
	now, ok := e.ObjectNew.(*v1alpha1.Replication)
	return ok && !equality.Semantic.DeepEqual(standsStill(before), standsStill(now))
}

func standsStill(r *v1alpha1.Replication) runbook.Data {
	d := dataOf(r)
	d.Waiting = ""
	for i := range d.Sessions {
		d.Sessions[i].Message = ""
	}
	return d
}

func linkChanged(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*v1alpha1.ClusterPair)
	if !ok {
		return false
	}
	now, ok := e.ObjectNew.(*v1alpha1.ClusterPair)
	return ok && before.Status.LinkState != now.Status.LinkState
}
