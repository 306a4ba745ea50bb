package applicationsnapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/store"
	"lifeboat.dev/lifeboat/internal/store/mem"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// site is one cluster with its reconciler; the link to the other site is in the test's hands.
type site struct {
	*testing.T
	client.Client
	*Reconciler
	store *mem.Store
	sink  Sink
}

func open(t *testing.T, name string) *site {
	c := servers.Client(t, name)
	s := &site{T: t, Client: c, store: mem.New()}
	library := appmeta.NewLibrary(s.store)
	capturer, err := appmeta.NewCapturer(servers.Config(t, name))
	if err != nil {
		t.Fatal(err)
	}
	locate := func(manifest string) string { return "mem/" + manifest }
	s.sink = Sink{appmeta.NewInbox(c, c, library, name, locate)}
	s.Reconciler = &Reconciler{Client: c, Reader: c, Capturer: capturer, Library: library, Cluster: name, Locate: locate, Now: time.Now}
	return s
}

// wire carries snapshots to a peer's sink as the link does, in chunks.
type wire struct {
	to     *site
	fail   []error
	pushes int
	bytes  int
}

func (w *wire) PushApplicationSnapshot(ctx context.Context, peer string, snapshot *v1alpha1.ApplicationSnapshot, blobs []store.Blob) error {
	w.pushes++
	if peer != w.to.Cluster {
		return fmt.Errorf("no link to %s", peer)
	}
	if len(w.fail) > 0 {
		err := w.fail[0]
		w.fail = w.fail[1:]
		return err
	}
	for _, b := range blobs {
		w.bytes += len(b.Data)
	}
	return w.to.sink.Put(ctx, client.ObjectKeyFromObject(snapshot), snapshot.Spec, snapshot.Status, chunks(blobs))
}

func pair(t *testing.T, namespace string) (east, west *site, w *wire) {
	east, west = open(t, "east"), open(t, "west")
	w = &wire{to: west}
	east.Pusher = w
	west.Pusher = &wire{to: east}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "settings"}, Data: map[string]string{"colour": "blue"}},
		&v1alpha1.DisasterRecoveryPlan{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "plan"}, Spec: v1alpha1.DisasterRecoveryPlanSpec{
			PrimaryCluster: "east", PreferredClusterList: []string{"east", "west"}}},
	} {
		if err := east.Create(context.Background(), o); err != nil {
			t.Fatal(err)
		}
	}
	return east, west, w
}

func (s *site) snapshot(namespace, name string, spec v1alpha1.ApplicationSnapshotSpec) types.NamespacedName {
	s.Helper()
	o := &v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
	if err := s.Create(context.Background(), o); err != nil {
		s.Fatal(err)
	}
	return client.ObjectKeyFromObject(o)
}

func (s *site) step(key types.NamespacedName) (ctrl.Result, *v1alpha1.ApplicationSnapshot) {
	s.Helper()
	result, err := s.Reconcile(context.Background(), ctrl.Request{NamespacedName: key})
	if err != nil {
		s.Fatalf("reconcile %s on %s: %v", key, s.Cluster, err)
	}
	return result, s.look(key)
}

// settle reconciles until nothing is asked for.
func (s *site) settle(key types.NamespacedName) *v1alpha1.ApplicationSnapshot {
	s.Helper()
	for range 10 {
		if result, now := s.step(key); result.RequeueAfter == 0 {
			return now
		}
	}
	s.Fatalf("%s does not settle: %+v", key, s.look(key).Status)
	return nil
}

func (s *site) look(key types.NamespacedName) *v1alpha1.ApplicationSnapshot {
	s.Helper()
	found := &v1alpha1.ApplicationSnapshot{}
	if err := s.Client.Get(context.Background(), key, found); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil
		}
		s.Fatal(err)
	}
	return found
}

func (s *site) blobs(prefix string) int {
	s.Helper()
	all, err := s.store.List(context.Background(), prefix)
	if err != nil {
		s.Fatal(err)
	}
	return len(all)
}

var forPlan = v1alpha1.ApplicationSnapshotSpec{PlanName: "plan"}

func TestANewSnapshotIsCapturedAndSentToEveryPeerOfThePlan(t *testing.T) {
	east, west, _ := pair(t, "story")
	key := east.snapshot("story", "one", forPlan)
	_, now := east.step(key)
	if now.Status.Phase != v1alpha1.SnapshotCompleted || now.Status.SourceCluster != "east" || now.Status.Objects != 2 || now.Status.SizeBytes == 0 ||
		now.Status.Location != "mem/manifests/story/one" || now.Status.CapturedAt == nil || !strings.HasPrefix(now.Status.Digest, "blake3:") {
		t.Fatalf("after the capture: %+v", now.Status)
	}
	now = east.settle(key)
	if len(now.Status.Peers) != 1 || now.Status.Peers[0] != (v1alpha1.PeerSync{Cluster: "west", Synced: true}) {
		t.Errorf("peers: %+v", now.Status.Peers)
	}
	there := west.look(key)
	if there == nil || there.Status.Phase != v1alpha1.SnapshotCompleted || there.Status.Digest != now.Status.Digest || there.Labels[v1alpha1.LabelPlan] != "plan" {
		t.Fatalf("in the west: %+v", there)
	}
	t.Run("the west never captures what it received", func(t *testing.T) {
		puts := west.store.Puts()
		west.settle(key)
		half := &v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "story", Name: "half", Annotations: map[string]string{appmeta.AnnotationReceivedFrom: "east"}}}
		if err := west.Create(context.Background(), half); err != nil {
			t.Fatal(err)
		}
		if now := west.settle(client.ObjectKeyFromObject(half)); now.Status.Phase != "" || west.store.Puts() != puts {
			t.Errorf("captured: %+v", now.Status)
		}
	})
}

func TestAPeerThatDoesNotAnswerIsWaitedFor(t *testing.T) {
	east, _, w := pair(t, "waits")
	w.fail = []error{&control.Unreachable{Peer: "west", Address: "203.0.113.7:9002", Err: errors.New("cut")}, &control.Unreachable{Peer: "west", Address: "203.0.113.7:9002", Err: errors.New("cut")}}
	key := east.snapshot("waits", "one", forPlan)
	east.step(key)
	for range 2 {
		result, now := east.step(key)
		if result.RequeueAfter < time.Second || now.Status.Phase != v1alpha1.SnapshotCompleted || len(now.Status.Peers) != 1 ||
			now.Status.Peers[0].Synced || !strings.Contains(now.Status.Peers[0].Message, "does not answer") {
			t.Fatalf("again in %v: %+v", result.RequeueAfter, now.Status)
		}
	}
	if now := east.settle(key); !now.Status.Peers[0].Synced || now.Status.Peers[0].Message != "" {
		t.Errorf("once it answers: %+v", now.Status.Peers)
	}
}

func TestWhatAPeerHasIsNotSentAgainAndWhatItLostIs(t *testing.T) {
	east, west, w := pair(t, "lean")
	large := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "lean", Name: "large"}, Data: map[string]string{}}
	for i := range 4000 {
		large.Data[fmt.Sprint(i)] = fmt.Sprint(i * i * 7919)
	}
	if err := east.Create(context.Background(), large); err != nil {
		t.Fatal(err)
	}
	east.settle(east.snapshot("lean", "one", forPlan))
	whole := w.bytes
	w.bytes, w.pushes = 0, 0
	east.settle(east.snapshot("lean", "two", forPlan))
	if w.pushes != 1 || w.bytes > whole/10 {
		t.Errorf("nothing changed, and %d pushes sent %d bytes; the first sent %d", w.pushes, w.bytes, whole)
	}

	packs, err := west.store.List(context.Background(), "packs/")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packs {
		if err := west.store.Delete(context.Background(), p.Name); err != nil {
			t.Fatal(err)
		}
	}
	w.bytes, w.pushes = 0, 0
	if now := east.settle(east.snapshot("lean", "three", forPlan)); !now.Status.Peers[0].Synced || w.pushes != 2 || w.bytes < whole/2 {
		t.Errorf("the peer lost its packs: %d pushes sent %d bytes; %+v", w.pushes, w.bytes, now.Status.Peers)
	}
}

func TestADeletedSnapshotFreesItsContent(t *testing.T) {
	east, west, _ := pair(t, "frees")
	key := east.snapshot("frees", "one", forPlan)
	now := east.settle(key)
	if len(now.Finalizers) != 0 {
		t.Errorf("finalizers %v: without Lifeboat the namespace could not be deleted", now.Finalizers)
	}
	for _, s := range []*site{east, west} {
		if err := s.Delete(context.Background(), s.look(key)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Reconcile(context.Background(), ctrl.Request{NamespacedName: key}); err != nil {
			t.Fatal(err)
		}
		if left := s.blobs(""); left != 0 {
			t.Errorf("%d blobs are left in the %s", left, s.Cluster)
		}
	}
}

func TestACaptureThatCannotSucceedFailsAndOneThatMayIsTriedAgain(t *testing.T) {
	east, _, _ := pair(t, "fails")
	key := east.snapshot("fails", "typo", v1alpha1.ApplicationSnapshotSpec{IncludeResources: []string{"deployments"}})
	if now := east.settle(key); now.Status.Phase != v1alpha1.SnapshotFailed || !strings.Contains(now.Status.Message, "did you mean deployments.apps?") {
		t.Errorf("%+v", now.Status)
	}
	key = east.snapshot("fails", "full", v1alpha1.ApplicationSnapshotSpec{})
	east.store.FailNext(errors.New("disk full"))
	result, now := east.step(key)
	if now.Status.Phase != v1alpha1.SnapshotCapturing || !strings.Contains(now.Status.Message, "disk full") || result.RequeueAfter == 0 {
		t.Errorf("again in %v: %+v", result.RequeueAfter, now.Status)
	}
	if now := east.settle(key); now.Status.Phase != v1alpha1.SnapshotCompleted || now.Status.Message != "" {
		t.Errorf("%+v", now.Status)
	}
	key = east.snapshot("fails", "ever", v1alpha1.ApplicationSnapshotSpec{})
	east.Now = func() time.Time { return time.Now().Add(captureTries + time.Minute) }
	east.store.FailNext(errors.New("disk full"))
	if now := east.settle(key); now.Status.Phase != v1alpha1.SnapshotFailed {
		t.Errorf("after %s: %+v", captureTries, now.Status)
	}
}

func TestVolumesOfReplicatedClaimsAreNotCarried(t *testing.T) {
	east, _, _ := pair(t, "claims")
	ctx := context.Background()
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "claims", Name: "group"}, Spec: v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}}
	named := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "claims", Name: "named"}, Spec: v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: "listed"}}}}
	lonely := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "claims", Name: "lonely"}, Spec: v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: "grouped-only"}}}}
	for _, o := range []client.Object{group, named, lonely, claim("a", "db"), claim("b", "web"), replication("r1", "group"), replication("r2", "named"), replication("r3", "nowhere")} {
		if err := east.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	got, err := east.replicatedClaims(ctx, "claims")
	if err != nil || strings.Join(got, " ") != "a listed" {
		t.Errorf("replicated: %v, %v; want a and listed", got, err)
	}
}

func claim(name, app string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "claims", Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: *quantity("1Gi")}}}}
}

func replication(name, group string) *v1alpha1.Replication {
	return &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "claims", Name: name}, Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: group,
		Rlinks: []v1alpha1.Rlink{{RlinkName: "west", ClusterPair: "west"}}}}
}

func TestDecide(t *testing.T) {
	here := func(edit func(*v1alpha1.ApplicationSnapshot)) seen {
		s := &v1alpha1.ApplicationSnapshot{}
		edit(s)
		return seen{snapshot: s, cluster: "east", peers: []string{"west", "south"}}
	}
	done := func(peers ...v1alpha1.PeerSync) v1alpha1.ApplicationSnapshotStatus {
		return v1alpha1.ApplicationSnapshotStatus{Phase: v1alpha1.SnapshotCompleted, SourceCluster: "east", Peers: peers}
	}
	for _, c := range []struct {
		name string
		edit func(*v1alpha1.ApplicationSnapshot)
		want step
	}{
		{"new", func(*v1alpha1.ApplicationSnapshot) {}, capture},
		{"interrupted", func(s *v1alpha1.ApplicationSnapshot) { s.Status.Phase = v1alpha1.SnapshotCapturing }, capture},
		{"received, its status not written yet", func(s *v1alpha1.ApplicationSnapshot) {
			s.Annotations = map[string]string{appmeta.AnnotationReceivedFrom: "west"}
		}, nothing},
		{"captured elsewhere", func(s *v1alpha1.ApplicationSnapshot) { s.Status = done(); s.Status.SourceCluster = "west" }, nothing},
		{"failed", func(s *v1alpha1.ApplicationSnapshot) { s.Status.Phase = v1alpha1.SnapshotFailed }, nothing},
		{"on its way out", func(s *v1alpha1.ApplicationSnapshot) { s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }, nothing},
		{"sent to nobody", func(s *v1alpha1.ApplicationSnapshot) { s.Status = done() }, push},
		{"sent to one of two", func(s *v1alpha1.ApplicationSnapshot) {
			s.Status = done(v1alpha1.PeerSync{Cluster: "west", Synced: true}, v1alpha1.PeerSync{Cluster: "south"})
		}, push},
		{"sent to all", func(s *v1alpha1.ApplicationSnapshot) {
			s.Status = done(v1alpha1.PeerSync{Cluster: "west", Synced: true}, v1alpha1.PeerSync{Cluster: "south", Synced: true})
		}, nothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(here(c.edit)); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// The whole of it in a manager: nobody but the API server tells it what to do.
func TestInAManager(t *testing.T) {
	east, west, _ := pair(t, "managed")
	m, err := ctrl.NewManager(servers.Config(t, "east"), ctrl.Options{Scheme: scheme.Scheme, Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	east.Reconciler.Client, east.Reader = m.GetClient(), m.GetAPIReader()
	if err := east.SetupWithManager(m); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Start(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	key := east.snapshot("managed", "one", forPlan)
	eventually(t, "it is captured and sent", func() bool {
		now := east.look(key)
		return now.Status.Phase == v1alpha1.SnapshotCompleted && len(now.Status.Peers) == 1 && now.Status.Peers[0].Synced
	})
	if west.look(key) == nil {
		t.Error("it is not in the west")
	}
	if err := east.Client.Delete(context.Background(), east.look(key)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its content is freed", func() bool { return east.blobs("manifests/managed") == 0 })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}
