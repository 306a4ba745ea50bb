// Package replication keeps one group of volumes in step with a peer: as source it cuts, clones and sends, as target it keeps
// a replica and receives.
//
// It knows Kubernetes objects: it observes what there is, asks package cycle for the next step, takes it, and writes the
// status once. It decides no order by itself and moves no data. Begin reading at Reconcile.
package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/objective"
)

// +kubebuilder:rbac:groups=lifeboat.dev,resources=replications,verbs=get;list;watch;patch;update
// +kubebuilder:rbac:groups=lifeboat.dev,resources=replications/status,verbs=get;patch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=replications/finalizers,verbs=update
// +kubebuilder:rbac:groups=lifeboat.dev,resources=schedulepolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=lifeboat.dev,resources=pvcgroups;clusterpairs;disasterrecoveryplans,verbs=get;list
// +kubebuilder:rbac:groups=lifeboat.dev,resources=pvcgroups,verbs=delete
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims,verbs=get;list;create;delete;patch
// +kubebuilder:rbac:groups="",resources=persistentvolumes,verbs=get;list;create;delete;patch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;create;patch;delete
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;create;patch;delete
// +kubebuilder:rbac:groups="",resources=configmaps,verbs=get;list;create;delete
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;create;update;delete
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;create;update;delete
// +kubebuilder:rbac:groups=batch,resources=jobs,verbs=get;list;create;delete
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=get
// +kubebuilder:rbac:groups=storage.k8s.io,resources=volumeattachments,verbs=list
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshots,verbs=get;list;create;delete;patch
// +kubebuilder:rbac:groups=groupsnapshot.storage.k8s.io,resources=volumegroupsnapshots,verbs=get;list;create;delete
// +kubebuilder:rbac:groups=groupsnapshot.storage.k8s.io,resources=volumegroupsnapshotclasses,verbs=list
// +kubebuilder:rbac:groups=apiextensions.k8s.io,resources=customresourcedefinitions,resourceNames=volumegroupsnapshots.groupsnapshot.storage.k8s.io,verbs=get
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshotcontents,verbs=get;patch;delete
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshotclasses,verbs=list
// +kubebuilder:rbac:groups=cbt.storage.k8s.io,resources=snapshotmetadataservices,verbs=get
// +kubebuilder:rbac:groups="",resources=serviceaccounts,verbs=list;create;delete
// +kubebuilder:rbac:groups=rbac.authorization.k8s.io,resources=rolebindings,verbs=list;create;delete
// +kubebuilder:rbac:groups=rbac.authorization.k8s.io,resources=clusterroles,resourceNames=lifeboat-mover,verbs=bind
// +kubebuilder:rbac:groups="",resources=events,verbs=list
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Peers are the links to other clusters, by the name of their ClusterPair.
type Peers interface {
	// Client returns whom to ask; the calls tell whether anybody answers.
	Client(pair string) (control.Peer, error)
	// State is what the heartbeats say.
	State(pair string) heartbeat.State
}

// Trust knows the CA certificates of peers.
type Trust interface {
	CAPEM(ctx context.Context, pair *v1alpha1.ClusterPair) ([]byte, error)
}

// Movers tell how far they are.
type Movers interface {
	// State asks the mover of a Replication at an address, as "10.0.0.7". No answer is an error and says nothing about the mover.
	State(ctx context.Context, replication types.NamespacedName, address string) (engine.State, error)
}

// Reconciler keeps Replications.
type Reconciler struct {
	Client client.Client
	// Live reads from the API server: what is about to be removed, written over or started is never judged by a cache.
	Live client.Reader
	// Watched reads what is watched: see look. Nil reads all from Live.
	Watched Watched
	// Cluster is this cluster's name.
	Cluster string
	// Image is what movers run: the manager's own.
	Image string
	// PriorityClass is the movers'; empty leaves it to the cluster.
	PriorityClass string
	Peers         Peers
	Trust         Trust
	CA            *identity.CA
	Movers        Movers
	// Rules runs the commands that quiesce applications and let them go.
	Rules *hook.Rules
	// Events may be nil.
	Events events.EventRecorder
	// Nudges names Replications that a peer asks to be looked at; may be nil.
	Nudges <-chan event.GenericEvent
	Now    func() time.Time
	// Random gives points their last characters.
	Random io.Reader
	// Workers is how many Replications are looked at together; 0 is 32. A look mostly waits for answers.
	Workers int
	// MaxSessions is how many sessions may run together, those left out that somebody asked for; 0 is any number.
	MaxSessions int
	// Metrics is where the figures of replications are registered; may be nil.
	Metrics prometheus.Registerer

	mu       sync.Mutex
	prepared map[linkKey]preparation
	silent   map[linkKey]time.Time
	sources  map[linkKey]asked
	trusted  map[string]trusted
	turns    turns
	figures  figures
}

// SetupWithManager registers the controller.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	workers := r.Workers
	if workers == 0 {
		workers = 32
	}
	r.turns.limit, r.turns.wakes = r.MaxSessions, make(chan event.GenericEvent, 1024)
	r.figures.now, r.figures.turns = r.Now, &r.turns
	if r.Metrics != nil {
		if err := r.Metrics.Register(&r.figures); err != nil {
			return fmt.Errorf("register the metrics of replications: %w", err)
		}
	}
	b := ctrl.NewControllerManagedBy(mgr).
		Named("replication").
		For(&v1alpha1.Replication{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.SchedulePolicy{}, handler.EnqueueRequestsFromMapFunc(r.usersOfPolicy), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(source.Channel(r.turns.wakes, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers})
	b = r.wakeOnNews(b)
	if r.Nudges != nil {
		b = b.WatchesRawSource(source.Channel(r.Nudges, &handler.EnqueueRequestForObject{}))
	}
	return b.Complete(r)
}

// Reconcile takes one step of each link of one Replication.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var rep v1alpha1.Replication
	if err := r.Live.Get(ctx, request.NamespacedName, &rep); err != nil {
		if apierrors.IsNotFound(err) {
			r.letGo(request.NamespacedName)
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !rep.DeletionTimestamp.IsZero() {
		return again(r.remove(ctx, &rep))
	}
	if controllerutil.AddFinalizer(&rep, finalizer) {
		if err := r.Client.Update(ctx, &rep); err != nil {
			return again(0, fmt.Errorf("add finalizer to replication %s: %w", request, err))
		}
	}
	before := rep.DeepCopy()
	seen, next, err := r.look(ctx, &rep)
	if err != nil {
		return again(0, err)
	}
	acted := r.actAll(ctx, seen, next)
	for _, v := range seen.links {
		r.keepEndpoint(ctx, v)
	}
	// What was seen and decided is saved also when acting failed; only an act that went through may change what is remembered.
	r.tell(seen, next, acted)
	if err := condition.Save(ctx, r.Client, before, &rep); err != nil {
		r.giveTurnsBack(seen)
		return again(0, err)
	}
	r.noteTurns(seen, next)
	r.announceStanding(before, seen)
	r.tellPeers(ctx, seen, next)
	for i, v := range seen.links {
		if acted[i] == nil {
			r.figures.note(v, next[i])
			r.announce(before, v, next[i])
			r.announceRules(before, v, next[i])
		}
	}
	result, err := again(soonest(ctx, seen, next, acted))
	result.Priority = ptr.To(urgency(seen, next))
	return result, err
}

// How urgent the next look is when there are more looks to make than workers. What news or people ask for is 0.
const (
	underWay = 10
	atRest   = -1
)

// urgency lets what is under way go before all that only waits: when thousands become due in one second, those that begin do not queue behind
// the others at each of their steps.
func urgency(s *sight, next []cycle.Decision) int {
	for i, d := range next {
		v := s.links[i]
		if v.status.Session != nil || v.inForce() != v.wanted() || d.Step != cycle.Wait && d.Step != cycle.Rest {
			return underWay
		}
	}
	return atRest
}

// soonest is when to look again. A link whose step failed is tried again with the others, whose pace is theirs; when all failed
// the pace is that of failures.
func soonest(ctx context.Context, s *sight, next []cycle.Decision, acted []error) (time.Duration, error) {
	in, failed := time.Duration(-1), 0
	for i, d := range next {
		poll := untilBreach(s.links[i], pace(s.links[i], d))
		if acted[i] != nil {
			failed++
			poll = cycle.Patient
		}
		if in < 0 || poll < in {
			in = poll
		}
	}
	switch {
	case failed == len(next):
		return 0, errors.Join(acted...)
	case failed > 0:
		log.FromContext(ctx).Error(errors.Join(acted...), "a step of a link failed; the others go on")
	}
	if len(s.gone) > 0 {
		in = min(in, cycle.Quick)
	}
	return in, nil
}

// pace is how soon to look again. Where news come there is no haste to look for them, and what was just made or removed is not
// looked for before its news can be here.
func pace(v *view, d cycle.Decision) time.Duration {
	switch d.Step {
	case cycle.TakeSnapshots, cycle.MakeClones, cycle.StartMover, cycle.Tidy:
		if v.watched {
			return max(d.Poll, cycle.Quick)
		}
	case cycle.Wait, cycle.FollowMover:
		if v.watched && d.Poll == cycle.Quick {
			return cycle.Steady
		}
	}
	return d.Poll
}

// tellPeers lets all peers look at once when this side has another role or epoch: at rest they ask seldom.
func (r *Reconciler) tellPeers(ctx context.Context, s *sight, next []cycle.Decision) {
	if next[0].Step != cycle.TakeRole && next[0].Step != cycle.TakeEpoch {
		return
	}
	for _, v := range s.links {
		if r.Peers.State(v.rlink.ClusterPair).Link == v1alpha1.LinkConnected {
			r.nudge(ctx, v)
		}
	}
}

// again turns a wait into a result. Someone else's write in between only means to look again.
func again(in time.Duration, err error) (ctrl.Result, error) {
	switch {
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: 20 * time.Millisecond}, nil
	case err != nil:
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: max(in, time.Millisecond)}, nil
}

// letGo forgets a Replication that is gone.
func (r *Reconciler) letGo(key types.NamespacedName) {
	r.turns.forget(r.Now().UTC(), func(name linkKey) bool { return name.replication == key })
	r.figures.forget(func(name linkKey) bool { return name.replication == key })
}

// announce tells of what operators want to find later. A session that ended like the one before it is no news.
func (r *Reconciler) announce(before *v1alpha1.Replication, v *view, d cycle.Decision) {
	if r.Events == nil {
		return
	}
	var former *v1alpha1.SessionReport
	if link := statusOf(before, v.rlink.RlinkName); link != nil {
		former = link.LastSession
	}
	tell := func(kind, message string) {
		r.Events.Eventf(v.rep, nil, kind, d.Reason, string(d.Step), "%s", message)
	}
	switch d.Step {
	case cycle.TakeRole:
		tell(corev1.EventTypeNormal, d.Message)
	case cycle.CommitSession:
		switch {
		case former == nil:
			tell(corev1.EventTypeNormal, "the first session has ended: "+d.Message)
		case former.Result == resultFailed:
			tell(corev1.EventTypeNormal, "sessions succeed again: "+d.Message)
		}
	case cycle.FailSession:
		if former == nil || former.Result == resultCommitted {
			tell(corev1.EventTypeWarning, d.Message)
		}
	case cycle.RecordPoint:
		if d.Reason == cycle.ReasonRecoveryPointNotKept {
			tell(corev1.EventTypeWarning, d.Message)
		}
	}
}

// announceStanding tells when a schedule cannot be used, and of a breach of the objective and its end.
func (r *Reconciler) announceStanding(before *v1alpha1.Replication, s *sight) {
	if r.Events == nil {
		return
	}
	told := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionScheduled)
	for _, v := range s.links {
		if problem := v.unscheduled; problem != nil && (told == nil || !strings.Contains(told.Message, problem.Message)) {
			r.Events.Eventf(v.rep, nil, corev1.EventTypeWarning, problem.Reason, "ReadSchedule", "%s", problem.Message)
		}
		was, is := breachedIn(statusOf(before, v.rlink.RlinkName)), breachedIn(v.status)
		switch {
		case is && !was:
			r.Events.Eventf(v.rep, nil, corev1.EventTypeWarning, reasonObjectiveBreached, "CompareObjective", "%s", v.status.Objective.Message)
		case was && !is && v.status.Objective != nil:
			r.Events.Eventf(v.rep, nil, corev1.EventTypeNormal, reasonObjectiveMet, "CompareObjective", "%s", v.status.Objective.Message)
		}
	}
}

func breachedIn(status *v1alpha1.RlinkStatus) bool {
	return status != nil && status.Objective != nil && status.Objective.State == string(objective.Breached)
}

// statusOf is a link's status as it is there; nil when it is not.
func statusOf(rep *v1alpha1.Replication, rlink string) *v1alpha1.RlinkStatus {
	for i := range rep.Status.Rlinks {
		if rep.Status.Rlinks[i].RlinkName == rlink {
			return &rep.Status.Rlinks[i]
		}
	}
	return nil
}
