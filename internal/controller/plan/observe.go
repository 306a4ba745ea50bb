package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/runbook"
)

// askTimeout bounds one question to a peer, so that a silent one does not hold up what needs no peer.
const askTimeout = 3 * time.Second

// seen is one look: what the rules need, and the objects it came from.
type seen struct {
	now  time.Time
	view runbook.Seen
	// plans are the peers' copies as they were read, by cluster.
	plans map[string]*v1alpha1.DisasterRecoveryPlan
	// replication is the one the plan names; nil when there is none.
	replication *v1alpha1.Replication
	// snapshots are the plan's application snapshots on this cluster, newest first.
	snapshots []v1alpha1.ApplicationSnapshot
	// unreplicated are claims of a plan that names no Replication.
	unreplicated []string
}

// observe reads the local side first and the peers last, each peer by a call of its own: the order the rules ask for.
func (r *Reconciler) observe(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) (seen, error) {
	s := seen{now: r.now(), plans: map[string]*v1alpha1.DisasterRecoveryPlan{}}
	s.view = runbook.Seen{Self: r.Cluster, Own: copyOf(plan), Limits: r.limits()}
	if o := plan.Status.Operation; o != nil {
		s.view.InStep = s.now.Sub(stepBegan(o))
	}
	if err := r.observeData(ctx, plan, &s); err != nil {
		return seen{}, err
	}
	if err := r.observeSnapshots(ctx, plan, &s); err != nil {
		return seen{}, err
	}
	s.view.App = r.observeApp(ctx, plan)
	for _, cluster := range plan.Spec.PreferredClusterList {
		if cluster != r.Cluster {
			s.view.Peers = append(s.view.Peers, r.observePeer(ctx, plan, cluster, &s))
		}
	}
	return s, nil
}

func copyOf(plan *v1alpha1.DisasterRecoveryPlan) runbook.Copy {
	c := runbook.Copy{Found: true, Wanted: plan.Spec.PrimaryCluster, Primary: plan.Status.PrimaryCluster, Epoch: plan.Status.Epoch}
	if o := plan.Status.Operation; o != nil {
		c.Operation = &runbook.Operation{
			ID: o.ID, From: o.From, To: o.To, Step: o.Step, Undo: o.RollbackReason, FinalPoint: o.FinalPoint,
			PreSyncs: entered(o, v1alpha1.StepPreSync), Offlines: entered(o, v1alpha1.StepOffline), FinalSyncs: entered(o, v1alpha1.StepFinalSync),
		}
	}
	if g := plan.Status.Grant; g != nil {
		c.Grant = &runbook.Grant{Epoch: g.Epoch, To: g.To, Operation: g.Operation, Point: g.Point}
	}
	return c
}

func entered(o *v1alpha1.Operation, step v1alpha1.OperationStep) int {
	n := 0
	for _, s := range o.Steps {
		if s.Name == step {
			n++
		}
	}
	return n
}

// stepBegan is when the present step was entered last.
func stepBegan(o *v1alpha1.Operation) time.Time {
	for _, s := range slices.Backward(o.Steps) {
		if s.Name == o.Step {
			return s.StartedAt.Time
		}
	}
	return o.StartedAt.Time
}

func (r *Reconciler) observeData(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s *seen) error {
	name := plan.Spec.DataReplicationPointer
	if name == "" {
		return r.observeClaims(ctx, plan, s)
	}
	var replication v1alpha1.Replication
	err := r.Reader.Get(ctx, types.NamespacedName{Namespace: plan.Namespace, Name: name}, &replication)
	switch {
	case apierrors.IsNotFound(err):
		s.view.Data = runbook.Data{Named: true}
		return nil
	case err != nil:
		return fmt.Errorf("read Replication %s/%s: %w", plan.Namespace, name, err)
	}
	s.replication = &replication
	s.view.Data = dataOf(&replication)
	if o := plan.Status.Operation; o != nil {
		markEarly(&s.view.Data, &replication, stepBegan(o))
	}
	return nil
}

// dataOf reads a Replication, here or a peer's.
func dataOf(r *v1alpha1.Replication) runbook.Data {
	d := runbook.Data{
		Named: true, Found: true,
		Role: r.Spec.Role, Epoch: max(1, r.Spec.Epoch),
		RoleInForce: r.Status.Role, EpochInForce: r.Status.Epoch,
		Promoted: condition.True(r.Status.Conditions, v1alpha1.ConditionPromoted),
		Trigger:  r.Spec.TriggerNow,
	}
	for _, l := range r.Spec.Rlinks {
		d.Suspended = d.Suspended || l.SuspendReplication
	}
	for _, l := range r.Status.Rlinks {
		d.Waiting = l.WaitingFor
		if l.RecoveryPoint != nil {
			d.Points = append(d.Points, runbook.Point{ID: l.RecoveryPoint.Point, Epoch: l.RecoveryPoint.Epoch})
		}
		for _, p := range l.RecoveryPoints {
			d.Points = append(d.Points, runbook.Point{ID: p.Point, Epoch: p.Epoch})
		}
		for _, session := range sessionsOf(l) {
			d.Sessions = append(d.Sessions, session.Session)
		}
		// One that was triggered is not tried again by itself, and the next operation tries its own.
		if last := l.LastSession; last != nil && last.Result == "Failed" && last.Trigger != "Trigger" {
			d.Trouble = last.Message
		}
	}
	return d
}

type session struct {
	runbook.Session
	began time.Time
}

// sessionsOf are the sessions of a link, newest first.
func sessionsOf(l v1alpha1.RlinkStatus) []session {
	var found []session
	if s := l.Session; s != nil {
		message := s.Message
		if s.Percent > 0 {
			message = strings.TrimSpace(fmt.Sprintf("%d %% %s", s.Percent, message))
		}
		found = append(found, session{runbook.Session{Trigger: s.TriggerNow, State: runbook.SessionRunning, Point: s.Point, Message: message}, s.StartedAt.Time})
	}
	ended := l.History
	if l.LastSession != nil {
		ended = append([]v1alpha1.SessionReport{*l.LastSession}, ended...)
	}
	for _, e := range ended {
		state := runbook.SessionFailed
		if e.Result == "Committed" {
			state = runbook.SessionCommitted
		}
		found = append(found, session{runbook.Session{Trigger: e.TriggerNow, State: state, Point: e.Point, Message: e.Message}, e.StartedAt.Time})
	}
	return found
}

// markEarly marks the sessions that began before the operation's step did.
func markEarly(d *runbook.Data, r *v1alpha1.Replication, since time.Time) {
	i := 0
	for _, l := range r.Status.Rlinks {
		for _, session := range sessionsOf(l) {
			d.Sessions[i].Early = session.began.Before(since)
			i++
		}
	}
}

// observeClaims finds claims that nobody replicates.
func (r *Reconciler) observeClaims(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s *seen) error {
	opts := []client.ListOption{client.InNamespace(plan.Namespace)}
	if plan.Spec.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(plan.Spec.Selector)
		if err != nil {
			return fmt.Errorf("plan %s/%s: spec.selector: %w", plan.Namespace, plan.Name, err)
		}
		opts = append(opts, client.MatchingLabelsSelector{Selector: selector})
	}
	var claims corev1.PersistentVolumeClaimList
	if err := r.Reader.List(ctx, &claims, opts...); err != nil {
		return fmt.Errorf("list claims of namespace %s: %w", plan.Namespace, err)
	}
	for _, c := range claims.Items {
		if c.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat {
			s.unreplicated = append(s.unreplicated, c.Name)
		}
	}
	return nil
}

func (r *Reconciler) observeSnapshots(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, s *seen) error {
	var list v1alpha1.ApplicationSnapshotList
	if err := r.Reader.List(ctx, &list, client.InNamespace(plan.Namespace)); err != nil {
		return fmt.Errorf("list application snapshots of namespace %s: %w", plan.Namespace, err)
	}
	for _, snapshot := range list.Items {
		if snapshot.Spec.PlanName == plan.Name {
			s.snapshots = append(s.snapshots, snapshot)
		}
	}
	slices.SortFunc(s.snapshots, func(a, b v1alpha1.ApplicationSnapshot) int {
		if order := captured(&b).Compare(captured(&a)); order != 0 {
			return order
		}
		return strings.Compare(b.Name, a.Name)
	})
	o := plan.Status.Operation
	if o == nil {
		return nil
	}
	for i := range s.snapshots {
		if s.snapshots[i].Name == o.ApplicationSnapshot {
			s.view.Snapshot = snapshotOf(&s.snapshots[i])
		}
	}
	return nil
}

// captured is when a snapshot was captured; on a peer that is earlier than when its object was made.
func captured(s *v1alpha1.ApplicationSnapshot) time.Time {
	if s.Status.CapturedAt != nil {
		return s.Status.CapturedAt.Time
	}
	return s.CreationTimestamp.Time
}

func snapshotOf(s *v1alpha1.ApplicationSnapshot) runbook.Snapshot {
	out := runbook.Snapshot{State: runbook.SnapshotCapturing, Message: s.Status.Message}
	switch s.Status.Phase {
	case v1alpha1.SnapshotCompleted:
		out.State = runbook.SnapshotCompleted
	case v1alpha1.SnapshotFailed:
		out.State = runbook.SnapshotFailed
	}
	for _, p := range s.Status.Peers {
		if p.Synced {
			out.On = append(out.On, p.Cluster)
		}
	}
	return out
}

// observeApp looks at the workloads. Not being able to is a way of not knowing, not an error: what needs no knowledge of them goes on.
func (r *Reconciler) observeApp(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) runbook.App {
	state, err := r.Hook.Observe(ctx, plan.Namespace, plan.Spec.Selector)
	if err != nil {
		return runbook.App{Waiting: err.Error()}
	}
	app := runbook.App{
		Known:   true,
		Stopped: state.Phase == hook.Stopped || state.Phase == hook.NoWorkloads,
		Ready:   state.Online(),
	}
	switch {
	case !app.Ready:
		app.Waiting = strings.Join(state.Lacking(), "; ")
	case !app.Stopped:
		app.Waiting = running(state)
	}
	return app
}

func running(state hook.State) string {
	var what []string
	for _, w := range state.Workloads {
		what = append(what, w.String())
	}
	if len(what) == 0 {
		what = state.Pods
	}
	return strings.Join(what, "; ")
}

// observePeer asks one peer. A peer that the heartbeats call lost is not asked: the question would only take its time.
func (r *Reconciler) observePeer(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan, cluster string, s *seen) runbook.Peer {
	p := runbook.Peer{Name: cluster}
	peer, err := r.Peers.Client(cluster)
	var notPaired *link.NotPairedError
	switch {
	case errors.As(err, &notPaired) && notPaired.Reason == "":
		p.Reach, p.Trouble = runbook.Unpaired, err.Error()
		return p
	case err != nil:
		p.Reach, p.Trouble = runbook.Refused, err.Error()
		return p
	}
	state := r.Peers.State(cluster)
	switch state.Link {
	case v1alpha1.LinkLost:
		p.Reach, p.Trouble = runbook.Lost, state.Message
		return p
	case v1alpha1.LinkRefused:
		p.Reach, p.Trouble = runbook.Refused, state.Message
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	key := client.ObjectKeyFromObject(plan)
	view, err := peer.ObservePlan(ctx, key)
	if err != nil {
		p.Trouble = err.Error()
		if control.RefusedReason(err) != "" {
			p.Reach = runbook.Refused
		}
		return p
	}
	// An answer is a better proof than a heartbeat.
	p.Reach = runbook.Connected
	p.Copy = &runbook.Copy{}
	if view.Plan != nil {
		c := copyOf(view.Plan)
		p.Copy, p.Behind = &c, !sameWish(plan.Spec, view.Plan.Spec)
		s.plans[cluster] = view.Plan
	}
	switch {
	case view.Application.Known && view.Application.Pods > 0:
		p.AppRuns = runbook.Yes
	case view.Application.Known:
		p.AppRuns = runbook.No
	}
	if plan.Spec.DataReplicationPointer == "" {
		return p
	}
	replication, err := peer.ObserveReplication(ctx, types.NamespacedName{Namespace: plan.Namespace, Name: plan.Spec.DataReplicationPointer})
	switch {
	case err != nil:
		p.Trouble = err.Error()
	case replication == nil:
		p.Trouble = "it has no Replication " + plan.Spec.DataReplicationPointer
	default:
		d := dataOf(replication)
		p.Data = &d
	}
	return p
}

// sameWish compares all of two specs but the primary, which each copy follows by itself.
func sameWish(a, b v1alpha1.DisasterRecoveryPlanSpec) bool {
	a.PrimaryCluster = b.PrimaryCluster
	return equality.Semantic.DeepEqual(a, b)
}
