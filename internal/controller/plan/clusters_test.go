package plan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
)

// Two real API servers are the two clusters. Around them everything a plan calls is in memory and has knobs: the link, the
// workloads, the restorer, the replication of one number from one cluster to the other.

var (
	servers [2]client.WithWatch
	configs [2]*rest.Config
)

// What cmd plugs in fits.
var (
	_ Peers    = (*link.Peers)(nil)
	_ Hook     = (*hook.Hook)(nil)
	_ Restorer = (*appmeta.Restorer)(nil)
)

func TestMain(m *testing.M) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		fmt.Println("SKIPPED in plain sight: set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver to test plans on two API servers")
		os.Exit(m.Run())
	}
	ctrl.SetLogger(logr.Discard())
	scheme := runtime.NewScheme()
	must(clientgoscheme.AddToScheme(scheme))
	must(v1alpha1.AddToScheme(scheme))
	var starting sync.WaitGroup
	var environments [2]*envtest.Environment
	for i := range servers {
		environments[i] = &envtest.Environment{Scheme: scheme, CRDDirectoryPaths: []string{filepath.Join("..", "..", "..", "deploy", "crds")}, ErrorIfCRDPathMissing: true}
		starting.Go(func() {
			config, err := environments[i].Start()
			must(err)
			config.QPS, config.Burst = 1000, 1000
			configs[i] = config
			servers[i], err = client.NewWithWatch(config, client.Options{Scheme: scheme})
			must(err)
		})
	}
	starting.Wait()
	code := m.Run()
	for _, e := range environments {
		must(e.Stop())
	}
	os.Exit(code)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// side is one cluster: its API server and what surrounds it.
type side struct {
	name string
	// api is the test's own access; the reconciler's goes through faults.
	api    client.WithWatch
	faults *faults
	nudges *link.Nudges
	hook   *workloads
	// restores fails the next restores.
	restoreErr error
	restores   int
	// content is how many writes the volumes hold.
	content int
}

// workloads is the application on one side, in memory. Stopping it takes a look more, as pods do.
type workloads struct {
	mu      sync.Mutex
	exists  bool
	wanted  int
	kept    int // the count while offline
	offline bool
	pods    int
	// stuck pods do not stop; failNext is the error of the next call.
	stuck    bool
	failNext error
}

// run makes the application as it was captured: two pods wanted, and both ready.
func (w *workloads) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exists, w.wanted, w.pods, w.offline = true, 2, 2, false
}

func (w *workloads) FailNext(err error) { w.mu.Lock(); w.failNext = err; w.mu.Unlock() }

func (w *workloads) failed() error {
	err := w.failNext
	w.failNext = nil
	return err
}

func (w *workloads) Offline(_ context.Context, _ string, _ *metav1.LabelSelector, _ string) (hook.Progress, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failed(); err != nil {
		return hook.Progress{}, err
	}
	if !w.offline && w.exists {
		w.offline, w.kept, w.wanted = true, w.wanted, 0
		return hook.Progress{Changed: 1, Waiting: w.left()}, nil
	}
	if w.wanted > 0 { // started again by somebody
		w.kept, w.wanted = w.wanted, 0
	}
	if !w.stuck {
		w.pods = 0
	}
	return hook.Progress{Done: w.pods == 0, Waiting: w.left()}, nil
}

func (w *workloads) left() []string {
	if w.pods == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d pods of Deployment db are ending", w.pods)}
}

func (w *workloads) Online(context.Context, string, *metav1.LabelSelector) (hook.Progress, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failed(); err != nil {
		return hook.Progress{}, err
	}
	if w.offline {
		w.offline, w.wanted = false, w.kept
	}
	w.pods = w.wanted
	return hook.Progress{Done: true}, nil
}

func (w *workloads) Observe(context.Context, string, *metav1.LabelSelector) (hook.State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.exists {
		return hook.State{Phase: hook.NoWorkloads}, nil
	}
	s := hook.State{Phase: hook.Partly, Workloads: []hook.Workload{{Kind: "Deployment", Name: "db", Wanted: int32(w.wanted), Ready: int32(min(w.pods, w.wanted)), Offline: w.offline}}}
	for i := range w.pods {
		s.Pods = append(s.Pods, fmt.Sprintf("db-%d", i))
	}
	switch {
	case w.wanted == 0 && w.pods == 0:
		s.Phase = hook.Stopped
	case w.wanted > 0 && w.pods == w.wanted && !w.offline:
		s.Phase = hook.Running
	}
	return s, nil
}

func (w *workloads) running() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.pods > 0 }

// world is the two sides, the link between them, and the writes that were acknowledged.
type world struct {
	t          *testing.T
	namespace  string
	sides      [2]*side
	written    int
	clock      clock
	link       v1alpha1.LinkState
	silent     bool // calls get no answer
	sessions   int
	failing    int // sessions that fail before one succeeds again
	captures   int
	badCapture bool   // the next capture fails
	trail      []step // steps and reasons that east and west went through
}

type step struct{ side, step, reason string }

var worlds int

// protect makes a plan that east runs and west protects, and lets it settle.
func protect(t *testing.T, data bool) *world {
	w := empty(t)
	for i, s := range w.sides {
		if !data {
			break
		}
		role := v1alpha1.RoleSource
		if i == 1 {
			role = v1alpha1.RoleTarget
		}
		w.create(s, &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "db"}, Spec: v1alpha1.ReplicationSpec{
			Role: role, PVCGroupName: "db", Rlinks: []v1alpha1.Rlink{{RlinkName: "r1", ClusterPair: "pair"}},
		}})
	}
	w.create(w.east(), newPlan(w.namespace, data))
	w.until("the plan is protected", func() bool {
		return w.plan(w.east()).Status.Phase == phaseProtected && w.plan(w.west()).Status.Phase == phaseStandby
	})
	w.trail = nil
	return w
}

func newPlan(namespace string, data bool) *v1alpha1.DisasterRecoveryPlan {
	p := &v1alpha1.DisasterRecoveryPlan{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shop"}, Spec: v1alpha1.DisasterRecoveryPlanSpec{
		PrimaryCluster: "east", PreferredClusterList: []string{"east", "west"},
	}}
	if data {
		p.Spec.DataReplicationPointer = "db"
	}
	return p
}

// empty is two clusters with an application on east.
func empty(t *testing.T) *world {
	t.Helper()
	if servers[0] == nil {
		t.Skip("needs two API servers: set KUBEBUILDER_ASSETS")
	}
	worlds++
	w := &world{t: t, namespace: fmt.Sprintf("shop-%d", worlds), link: v1alpha1.LinkConnected, clock: newClock()}
	for i, name := range []string{"east", "west"} {
		w.sides[i] = &side{name: name, api: servers[i], faults: &faults{}, nudges: link.NewNudges("DisasterRecoveryPlan"), hook: &workloads{}}
		w.create(w.sides[i], &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}})
	}
	w.east().hook.run()
	return w
}

func (w *world) east() *side { return w.sides[0] }
func (w *world) west() *side { return w.sides[1] }

func (w *world) other(s *side) *side {
	if s == w.sides[0] {
		return w.sides[1]
	}
	return w.sides[0]
}

func (w *world) create(s *side, o client.Object) {
	w.t.Helper()
	if err := s.api.Create(w.t.Context(), o); err != nil {
		w.t.Fatalf("create on %s: %v", s.name, err)
	}
}

func (w *world) plan(s *side) *v1alpha1.DisasterRecoveryPlan {
	var p v1alpha1.DisasterRecoveryPlan
	if err := s.api.Get(w.t.Context(), types.NamespacedName{Namespace: w.namespace, Name: "shop"}, &p); err != nil {
		return &v1alpha1.DisasterRecoveryPlan{}
	}
	return &p
}

func (w *world) replication(s *side) *v1alpha1.Replication {
	var r v1alpha1.Replication
	if err := s.api.Get(w.t.Context(), types.NamespacedName{Namespace: w.namespace, Name: "db"}, &r); err != nil {
		return nil
	}
	return &r
}

func (w *world) snapshots(s *side) []v1alpha1.ApplicationSnapshot {
	var list v1alpha1.ApplicationSnapshotList
	must(s.api.List(w.t.Context(), &list, client.InNamespace(w.namespace)))
	return list.Items
}

// want edits spec.primaryCluster as a person does.
func (w *world) want(s *side, cluster string) error {
	p := w.plan(s)
	before := p.DeepCopy()
	p.Spec.PrimaryCluster = cluster
	return s.api.Patch(w.t.Context(), p, client.MergeFrom(before))
}

func (w *world) mustWant(s *side, cluster string) {
	w.t.Helper()
	if err := w.want(s, cluster); err != nil {
		w.t.Fatalf("set primaryCluster to %s on %s: %v", cluster, s.name, err)
	}
}

// faults make the reconciler's writes fail.
type faults struct {
	mu sync.Mutex
	// every is lost writes: 2 loses every second one. applied ones reach the server, and only the answer is lost.
	every, count int
	applied      bool
}

var errLost = errors.New("the connection to the API server was lost")

func (f *faults) write(do func() error) error {
	f.mu.Lock()
	f.count++
	lose := f.every > 0 && f.count%f.every == 1
	applied := f.applied
	f.mu.Unlock()
	if lose && !applied {
		return errLost
	}
	err := do()
	if lose && err == nil {
		return errLost
	}
	return err
}

func (f *faults) client(inner client.WithWatch) client.Client {
	return interceptor.NewClient(inner, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return f.write(func() error { return c.Create(ctx, o, opts...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return f.write(func() error { return c.Delete(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return f.write(func() error { return c.Patch(ctx, o, p, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return f.write(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	})
}

// peers are the links of one side. A call reaches the other side's API server as the control service would.
type peers struct {
	w    *world
	from *side
}

func (p peers) Client(cluster string) (control.Peer, error) {
	if cluster == p.from.name || cluster != "east" && cluster != "west" {
		return nil, &link.NotPairedError{Name: cluster}
	}
	return peer{w: p.w, at: p.w.other(p.from), from: p.from}, nil
}

func (p peers) State(string) heartbeat.State {
	return heartbeat.State{Link: p.w.link, Message: "as the test says"}
}

type peer struct {
	control.Peer // what plans do not call
	w            *world
	at, from     *side
}

func (p peer) answers() error {
	if p.w.silent || p.w.link != v1alpha1.LinkConnected {
		return &control.Unreachable{Peer: p.at.name, Address: "192.0.2.1:9002", Err: context.DeadlineExceeded}
	}
	return nil
}

func (p peer) ObservePlan(ctx context.Context, key types.NamespacedName) (control.PlanView, error) {
	if err := p.answers(); err != nil {
		return control.PlanView{}, err
	}
	view := control.PlanView{Application: control.ApplicationState{Known: true}}
	if p.at.hook.running() {
		view.Application.Pods = 1
	}
	var plan v1alpha1.DisasterRecoveryPlan
	err := p.at.api.Get(ctx, key, &plan)
	if err == nil {
		view.Plan = &plan
	}
	return view, client.IgnoreNotFound(err)
}

func (p peer) ObserveReplication(ctx context.Context, key types.NamespacedName) (*v1alpha1.Replication, error) {
	if err := p.answers(); err != nil {
		return nil, err
	}
	var r v1alpha1.Replication
	if err := p.at.api.Get(ctx, key, &r); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return &r, nil
}

func (p peer) PutPlan(ctx context.Context, key types.NamespacedName, spec v1alpha1.DisasterRecoveryPlanSpec, epoch int64, primary string) error {
	if err := p.answers(); err != nil {
		return err
	}
	var plan v1alpha1.DisasterRecoveryPlan
	err := p.at.api.Get(ctx, key, &plan)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	if err != nil {
		return p.at.api.Create(ctx, &v1alpha1.DisasterRecoveryPlan{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Spec: spec})
	}
	if epoch < plan.Status.Epoch || plan.Status.PrimaryCluster != "" && plan.Status.PrimaryCluster != primary {
		return &control.Refused{Peer: p.at.name, Reason: control.ReasonNotPrimary, Message: "not the primary"}
	}
	spec.PrimaryCluster = plan.Spec.PrimaryCluster
	plan.Spec = spec
	return p.at.api.Update(ctx, &plan)
}

func (p peer) Nudge(_ context.Context, kind string, key types.NamespacedName) error {
	if err := p.answers(); err != nil {
		return err
	}
	p.at.nudges.Nudge(kind, key)
	return nil
}

// restorer starts the application on its side from a snapshot, and fails the test if that is not allowed now.
type restorer struct {
	w  *world
	at *side
}

func (r restorer) Restore(ctx context.Context, namespace, name, _ string) (appmeta.RestoreResult, error) {
	if err := r.at.restoreErr; err != nil {
		r.at.restoreErr = nil
		return appmeta.RestoreResult{}, err
	}
	var s v1alpha1.ApplicationSnapshot
	if err := r.at.api.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &s); err != nil {
		return appmeta.RestoreResult{}, err
	}
	if repl := r.w.replication(r.at); repl != nil && repl.Status.Role != v1alpha1.RoleSource {
		r.w.t.Errorf("restored on %s while its volumes are a %s", r.at.name, repl.Status.Role)
	}
	if r.at.restores++; r.at.restores%2 == 1 {
		return appmeta.RestoreResult{Total: 2, Applied: 1, Message: "waiting for claims"}, nil
	}
	r.at.hook.run()
	return appmeta.RestoreResult{Done: true, Total: 2, Unchanged: 2}, nil
}

// replicate is the replication controllers of both sides: one look at each.
func (w *world) replicate() {
	for _, s := range w.sides {
		r := w.replication(s)
		if r == nil {
			continue
		}
		before := r.DeepCopy()
		w.replicateOne(s, r)
		if equality.Semantic.DeepEqual(before.Status, r.Status) {
			continue
		}
		if err := s.api.Status().Patch(w.t.Context(), r, client.MergeFrom(before)); err != nil {
			w.t.Fatalf("status of the Replication on %s: %v", s.name, err)
		}
	}
}

func (w *world) replicateOne(s *side, r *v1alpha1.Replication) {
	st := &r.Status
	if len(st.Rlinks) == 0 {
		st.Rlinks = []v1alpha1.RlinkStatus{{RlinkName: "r1"}}
	}
	l := &st.Rlinks[0]
	if st.Role != r.Spec.Role || st.Epoch != max(1, r.Spec.Epoch) {
		if r.Spec.Role == v1alpha1.RoleTarget && s.hook.running() {
			l.WaitingFor = "pods to end"
			return
		}
		promoted := metav1.ConditionFalse
		if r.Spec.Role == v1alpha1.RoleSource {
			promoted = metav1.ConditionTrue
			l.RecoveryPoint = nil
		}
		st.Role, st.Epoch = r.Spec.Role, max(1, r.Spec.Epoch)
		l.Session = nil
		meta.SetStatusCondition(&st.Conditions, metav1.Condition{Type: v1alpha1.ConditionPromoted, Status: promoted, Reason: "Test"})
		return
	}
	if st.Role != v1alpha1.RoleSource {
		return
	}
	if l.Session != nil {
		w.endSession(s, l)
		return
	}
	answered := ""
	if l.LastSession != nil {
		answered = l.LastSession.TriggerNow
	}
	if l.RecoveryPoint == nil || r.Spec.TriggerNow != "" && r.Spec.TriggerNow != answered {
		w.sessions++
		trigger := "First"
		if r.Spec.TriggerNow != answered {
			trigger = "Trigger"
		}
		l.Session = &v1alpha1.SessionStatus{Point: fmt.Sprintf("20300501t12%04d-aaaaaa", w.sessions), Trigger: trigger, TriggerNow: r.Spec.TriggerNow,
			Epoch: st.Epoch, StartedAt: metav1.NewMicroTime(w.clock.tick()), BytesTotal: int64(s.content)}
	}
}

// endSession commits a session; the content it carries is what the volumes held when it began.
func (w *world) endSession(s *side, l *v1alpha1.RlinkStatus) {
	report := v1alpha1.SessionReport{Point: l.Session.Point, Result: "Committed", Trigger: l.Session.Trigger, TriggerNow: l.Session.TriggerNow,
		StartedAt: l.Session.StartedAt, FinishedAt: metav1.NewMicroTime(w.clock.tick())}
	peer := w.other(s)
	theirs := w.replication(peer)
	if theirs == nil || theirs.Status.Role != v1alpha1.RoleTarget || theirs.Status.Epoch != l.Session.Epoch || w.failing > 0 || w.silent || w.link != v1alpha1.LinkConnected {
		w.failing = max(0, w.failing-1)
		report.Result, report.Message = "Failed", "the target does not take it"
	} else {
		point := &v1alpha1.RecoveryPoint{Point: report.Point, Epoch: l.Session.Epoch, Time: metav1.NewTime(w.clock.now())}
		before := theirs.DeepCopy()
		peer.content = int(l.Session.BytesTotal)
		theirs.Status.Rlinks[0].RecoveryPoint = point
		must(peer.api.Status().Patch(w.t.Context(), theirs, client.MergeFrom(before)))
		l.RecoveryPoint = point
	}
	l.LastSession, l.Session = &report, nil
}

// capture is the controllers of application snapshots: one look at each.
func (w *world) capture() {
	for _, s := range w.sides {
		for _, snapshot := range w.snapshots(s) {
			before := snapshot.DeepCopy()
			st := &snapshot.Status
			switch {
			case st.Phase == "" && w.badCapture:
				w.badCapture, st.Phase, st.Message = false, v1alpha1.SnapshotFailed, "no rights to list secrets"
			case st.Phase == "":
				at := metav1.NewTime(w.clock.now())
				w.captures++
				st.Phase, st.SourceCluster, st.CapturedAt = v1alpha1.SnapshotCompleted, s.name, &at
			case st.Phase == v1alpha1.SnapshotCompleted && st.SourceCluster == s.name && len(st.Peers) == 0 && !w.silent && w.link == v1alpha1.LinkConnected:
				w.push(s, &snapshot)
				st.Peers = []v1alpha1.PeerSync{{Cluster: w.other(s).name, Synced: true}}
			default:
				continue
			}
			must(s.api.Status().Patch(w.t.Context(), &snapshot, client.MergeFrom(before)))
		}
	}
}

func (w *world) push(s *side, snapshot *v1alpha1.ApplicationSnapshot) {
	copied := &v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: snapshot.Namespace, Name: snapshot.Name}, Spec: snapshot.Spec}
	peer := w.other(s)
	w.create(peer, copied)
	copied.Status = *snapshot.Status.DeepCopy()
	must(peer.api.Status().Update(w.t.Context(), copied))
}
