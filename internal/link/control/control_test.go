package control_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

// The story of every test here: east calls west.
const (
	east = "east"
	west = "west"
)

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func scheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// side is one cluster's identity.
type side struct {
	name string
	ca   *identity.CA
}

func newSide(t *testing.T, name string) side {
	t.Helper()
	return side{name: name, ca: must(identity.NewCA(name, time.Now()))(t)}
}

func (s side) source() identity.Source {
	return identity.NewRotating(s.ca, identity.ManagerURI(s.name), []string{identity.ManagerServerName}, time.Now)
}

func (s side) roots(t *testing.T) *x509.CertPool { return must(identity.Roots(s.ca.CertPEM()))(t) }

// pairFor is west's pair with a peer, and the Secret with the peer's CA.
func pairFor(peer side, namespaces ...string) []client.Object {
	return []client.Object{
		&v1alpha1.ClusterPair{
			ObjectMeta: metav1.ObjectMeta{Name: "to-" + peer.name},
			Spec: v1alpha1.ClusterPairSpec{PeerCluster: peer.name, GatewayAddress: "192.0.2.1:9002",
				TrustSecretName: trust.SecretName(peer.name), Namespaces: namespaces},
		},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: trust.SecretName(peer.name)},
			Data:       map[string][]byte{trust.KeyCA: peer.ca.CertPEM()},
		},
	}
}

type fixture struct {
	east, west side
	kube       client.Client // west's API server
	address    string
	client     *control.Client
	sink       *memorySink
}

type option func(*control.ServerOptions, *control.ClientOptions)

// start runs west's server on loopback with these objects in its cluster, and a client of east.
func start(t *testing.T, kube client.Client, e, w side, options ...option) *fixture {
	t.Helper()
	f := &fixture{east: e, west: w, kube: kube, sink: &memorySink{}}
	so := control.ServerOptions{Cluster: w.name, Version: "v0.1.0", Own: w.source(), Client: kube, Sink: f.sink, Now: time.Now, Log: testr.New(t)}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	f.address = listener.Addr().String()
	co := control.ClientOptions{Cluster: e.name, Version: "v0.1.0", Own: e.source(), PeerCluster: w.name, Address: f.address, Roots: w.roots(t), Now: time.Now}
	for _, o := range options {
		o(&so, &co)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.NewServer(so).Serve(ctx, listener) }()
	f.client = must(control.NewClient(co))(t)
	t.Cleanup(func() {
		_ = f.client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return f
}

func fakeCluster(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	return fake.NewClientBuilder().WithScheme(scheme(t)).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.DisasterRecoveryPlan{}, &v1alpha1.Replication{}, &v1alpha1.ClusterPair{}).Build()
}

func startFake(t *testing.T, namespaces []string, objects ...client.Object) *fixture {
	t.Helper()
	e, w := newSide(t, east), newSide(t, west)
	return start(t, fakeCluster(t, append(objects, pairFor(e, namespaces...)...)...), e, w)
}

func wantRefused(t *testing.T, err error, reason string, parts ...string) {
	t.Helper()
	if got := control.RefusedReason(err); got != reason {
		t.Fatalf("reason %q (%v), want %q", got, err, reason)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not mention %q", err, part)
		}
	}
}

func key(namespace, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name}
}

func TestHelloTellsWhoAnswers(t *testing.T) {
	f := startFake(t, nil)
	g := must(f.client.Hello(t.Context()))(t)
	if g.Cluster != west || g.Version != "v0.1.0" || g.Protocol != control.Protocol || time.Since(g.Clock).Abs() > time.Minute {
		t.Errorf("greeting %+v", g)
	}
}

func TestNoAnswerIsUnreachableAndNotRefused(t *testing.T) {
	e, w := newSide(t, east), newSide(t, west)
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	address := listener.Addr().String()
	_ = listener.Close()
	c := must(control.NewClient(control.ClientOptions{Cluster: east, Own: e.source(), PeerCluster: west, Address: address, Roots: w.roots(t), Now: time.Now}))(t)
	defer func() { _ = c.Close() }()
	if _, err := c.Hello(t.Context()); !control.IsUnreachable(err) {
		t.Fatalf("%v, want Unreachable", err)
	}
}

func TestWrongTrustIsRefused(t *testing.T) {
	e, w, stranger := newSide(t, east), newSide(t, west), newSide(t, west)
	strangerEast := newSide(t, east)
	north := newSide(t, "north")
	cases := []struct {
		name    string
		objects []client.Object
		option  option
		reason  string
		says    string
	}{
		{"west trusts another CA for east", pairFor(strangerEast), nil, control.ReasonTrust, "--replace-trust"},
		{"west has no pair for east", pairFor(north), nil, control.ReasonTrust, "it has no ClusterPair for cluster east"},
		{"west has two pairs for east", append(pairFor(e), &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "second"},
			Spec: v1alpha1.ClusterPairSpec{PeerCluster: east, TrustSecretName: trust.SecretName(east)}}), nil, control.ReasonTrust, "does not accept"},
		{"west's trust Secret is gone", pairFor(e)[:1], nil, control.ReasonTrust, "does not accept"},
		{"east trusts another CA for west", pairFor(e), func(_ *control.ServerOptions, c *control.ClientOptions) {
			c.Roots = stranger.roots(t)
		}, control.ReasonTrust, "lifeboat://west/manager"},
		{"another cluster answers", pairFor(e), func(s *control.ServerOptions, _ *control.ClientOptions) {
			s.Own = identity.NewRotating(w.ca, identity.ManagerURI("south"), nil, time.Now)
		}, control.ReasonWrongCluster, "lifeboat://south/manager"},
		{"a mover is no manager", pairFor(e), func(_ *control.ServerOptions, c *control.ClientOptions) {
			c.Own = identity.NewRotating(e.ca, identity.ReplicationURI(east, "shop", "db"), nil, time.Now)
		}, control.ReasonTrust, "does not accept"},
		{"the name of one cluster signed by another's CA", append(pairFor(e), pairFor(north)...), func(_ *control.ServerOptions, c *control.ClientOptions) {
			c.Own = identity.NewRotating(north.ca, identity.ManagerURI(east), nil, time.Now)
		}, control.ReasonTrust, "does not accept"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var options []option
			if c.option != nil {
				options = append(options, c.option)
			}
			f := start(t, fakeCluster(t, c.objects...), e, w, options...)
			_, err := f.client.Hello(t.Context())
			wantRefused(t, err, c.reason, c.says)
		})
	}
}

func TestTLS12IsRefused(t *testing.T) {
	f := startFake(t, nil)
	cert := must(f.east.source().Certificate())(t)
	_, err := tls.Dial("tcp", f.address, &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}})
	if err == nil {
		t.Fatal("a TLS 1.2 handshake succeeded")
	}
}

func TestAChangeOfTrustEndsWhatWasConnectedBefore(t *testing.T) {
	var ahead atomic.Int64
	e, w := newSide(t, east), newSide(t, west)
	f := start(t, fakeCluster(t, pairFor(e, "*")...), e, w, func(s *control.ServerOptions, _ *control.ClientOptions) {
		s.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	must(f.client.Hello(t.Context()))(t)
	var secret corev1.Secret
	if err := f.kube.Get(t.Context(), key(v1alpha1.SystemNamespace, trust.SecretName(east)), &secret); err != nil {
		t.Fatal(err)
	}
	secret.Data[trust.KeyCA] = newSide(t, east).ca.CertPEM()
	if err := f.kube.Update(t.Context(), &secret); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(3 * time.Second)) // longer than a trusted caller is remembered
	_, err := f.client.Hello(t.Context())
	wantRefused(t, err, control.ReasonTrust)
}

func TestADeletedPairEndsWhatWasConnectedBefore(t *testing.T) {
	var ahead atomic.Int64
	e, w := newSide(t, east), newSide(t, west)
	objects := pairFor(e, "*")
	f := start(t, fakeCluster(t, objects...), e, w, func(s *control.ServerOptions, _ *control.ClientOptions) {
		s.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	must(f.client.Hello(t.Context()))(t)
	if err := f.kube.Delete(t.Context(), objects[0]); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(3 * time.Second))
	_, err := f.client.Hello(t.Context())
	wantRefused(t, err, control.ReasonNoPair, "lifeboat pair")
}

func TestAnExpiredCertificateEndsWhatWasConnectedBefore(t *testing.T) {
	var ahead atomic.Int64
	e, w := newSide(t, east), newSide(t, west)
	f := start(t, fakeCluster(t, pairFor(e, "*")...), e, w, func(s *control.ServerOptions, _ *control.ClientOptions) {
		s.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	must(f.client.Hello(t.Context()))(t)
	ahead.Store(int64(identity.LeafLifetime + time.Hour))
	_, err := f.client.Hello(t.Context())
	wantRefused(t, err, control.ReasonTrust, "compare the clocks")
}

func TestEveryCallStaysWithinThePairsNamespaces(t *testing.T) {
	f := startFake(t, []string{"shop", "kube-system", v1alpha1.SystemNamespace})
	calls := map[string]func(k types.NamespacedName) error{
		"ObservePlan": func(k types.NamespacedName) error { _, err := f.client.ObservePlan(t.Context(), k); return err },
		"PutPlan": func(k types.NamespacedName) error {
			return f.client.PutPlan(t.Context(), k, v1alpha1.DisasterRecoveryPlanSpec{}, 1, east)
		},
		"ObserveReplication": func(k types.NamespacedName) error {
			_, err := f.client.ObserveReplication(t.Context(), k)
			return err
		},
		"PrepareReplication": func(k types.NamespacedName) error {
			_, err := f.client.PrepareReplication(t.Context(), control.PrepareRequest{Key: k})
			return err
		},
		"PushApplicationSnapshot": func(k types.NamespacedName) error {
			snapshot := &v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
			return f.client.PushApplicationSnapshot(t.Context(), snapshot, chunksOf())
		},
		"Nudge": func(k types.NamespacedName) error { return f.client.Nudge(t.Context(), "Replication", k) },
	}
	for name, call := range calls {
		for _, namespace := range []string{"bank", "kube-system", v1alpha1.SystemNamespace} {
			t.Run(name+" in "+namespace, func(t *testing.T) {
				wantRefused(t, call(key(namespace, "x")), control.ReasonNamespace, "ClusterPair to-east", "spec.namespaces", namespace)
			})
		}
		t.Run(name+" in shop", func(t *testing.T) {
			if err := call(key("shop", "x")); control.RefusedReason(err) == control.ReasonNamespace {
				t.Error(err)
			}
		})
	}
}

func TestAStarAllowsAllButTheSystems(t *testing.T) {
	pair := &v1alpha1.ClusterPair{Spec: v1alpha1.ClusterPairSpec{Namespaces: []string{"*"}}}
	for namespace, want := range map[string]bool{"shop": true, "kubernetes": true, "kube-public": false, v1alpha1.SystemNamespace: false, "": false} {
		if got := trust.MayAct(pair, namespace); got != want {
			t.Errorf("%q: %t, want %t", namespace, got, want)
		}
	}
}

func TestObserveReturnsSpecAndStatusOrNothing(t *testing.T) {
	replication := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleTarget, Epoch: 3}, Status: v1alpha1.ReplicationStatus{Phase: "Idle"}}
	f := startFake(t, []string{"shop"}, replication)
	got := must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t)
	if got == nil || got.Spec.Epoch != 3 || got.Status.Phase != "Idle" {
		t.Errorf("got %+v", got)
	}
	if got := must(f.client.ObserveReplication(t.Context(), key("shop", "other")))(t); got != nil {
		t.Errorf("got %+v, want nothing", got)
	}
	if view := must(f.client.ObservePlan(t.Context(), key("shop", "db")))(t); view.Plan != nil || view.Application.Known {
		t.Errorf("got %+v, want nothing", view)
	}
}

func TestNudgeReachesWhoIsAsked(t *testing.T) {
	nudged := make(chan string, 1)
	e, w := newSide(t, east), newSide(t, west)
	f := start(t, fakeCluster(t, pairFor(e, "shop")...), e, w, func(s *control.ServerOptions, _ *control.ClientOptions) {
		s.Nudge = func(kind string, k types.NamespacedName) { nudged <- kind + " " + k.String() }
	})
	if err := f.client.Nudge(t.Context(), "Replication", key("shop", "db")); err != nil {
		t.Fatal(err)
	}
	if got := <-nudged; got != "Replication shop/db" {
		t.Errorf("nudged %q", got)
	}
}

// memorySink keeps what arrived whole.
type memorySink struct {
	mu   sync.Mutex
	kept map[types.NamespacedName][]control.Chunk
	fail error
	seen error
}

func (m *memorySink) Put(_ context.Context, k types.NamespacedName, _ v1alpha1.ApplicationSnapshotSpec, _ v1alpha1.ApplicationSnapshotStatus, chunks iter.Seq2[control.Chunk, error]) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	var all []control.Chunk
	for c, err := range chunks {
		if err != nil {
			m.seen = err
			return err
		}
		all = append(all, c)
	}
	if m.kept == nil {
		m.kept = map[types.NamespacedName][]control.Chunk{}
	}
	m.kept[k] = all
	return nil
}

func (m *memorySink) get(k types.NamespacedName) ([]control.Chunk, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.kept[k]
	return c, ok
}

func chunksOf(data ...string) iter.Seq2[control.Chunk, error] {
	return func(yield func(control.Chunk, error) bool) {
		for _, d := range data {
			if !yield(control.Chunk{Digest: "d-" + d[:1], Data: []byte(d)}, nil) {
				return
			}
		}
	}
}

func TestASnapshotArrivesWholeOrNotAtAll(t *testing.T) {
	snapshot := &v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s1"}}
	k := key("shop", "s1")
	t.Run("whole", func(t *testing.T) {
		f := startFake(t, []string{"shop"})
		big := strings.Repeat("b", control.MaxChunk)
		if err := f.client.PushApplicationSnapshot(t.Context(), snapshot, chunksOf("a", big, big, "c")); err != nil {
			t.Fatal(err)
		}
		if got, _ := f.sink.get(k); len(got) != 4 || string(got[1].Data) != big || got[3].Digest != "d-c" {
			t.Errorf("%d chunks arrived", len(got))
		}
	})
	t.Run("the reader fails", func(t *testing.T) {
		f := startFake(t, []string{"shop"})
		broken := errors.New("disk broke")
		err := f.client.PushApplicationSnapshot(t.Context(), snapshot, func(yield func(control.Chunk, error) bool) {
			_ = yield(control.Chunk{Digest: "a", Data: []byte("a")}, nil) && yield(control.Chunk{}, broken)
		})
		if !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
		if _, ok := f.sink.get(k); ok {
			t.Error("half a snapshot was kept")
		}
	})
	t.Run("the sink fails", func(t *testing.T) {
		f := startFake(t, []string{"shop"})
		f.sink.fail = errors.New("no space")
		err := f.client.PushApplicationSnapshot(t.Context(), snapshot, chunksOf("a", "b"))
		if err == nil || control.IsUnreachable(err) || !strings.Contains(err.Error(), "no space") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a chunk is too large", func(t *testing.T) {
		f := startFake(t, []string{"shop"})
		if err := f.client.PushApplicationSnapshot(t.Context(), snapshot, chunksOf(strings.Repeat("x", control.MaxChunk+1))); err == nil {
			t.Error("no error")
		}
	})
}

func planSpec(primary string) v1alpha1.DisasterRecoveryPlanSpec {
	return v1alpha1.DisasterRecoveryPlanSpec{PrimaryCluster: primary, PreferredClusterList: []string{east, west}}
}

func planOf(primary string, epoch int64) *v1alpha1.DisasterRecoveryPlan {
	return &v1alpha1.DisasterRecoveryPlan{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop"}, Spec: planSpec(primary),
		Status: v1alpha1.DisasterRecoveryPlanStatus{LocalCluster: west, PrimaryCluster: primary, Epoch: epoch}}
}

func TestPutPlanMakesACopyThatKnowsItIsOne(t *testing.T) {
	f := startFake(t, []string{"shop"})
	spec := planSpec(west) // a move is already asked for on the primary
	if err := f.client.PutPlan(t.Context(), key("shop", "shop"), spec, 4, east); err != nil {
		t.Fatal(err)
	}
	var plan v1alpha1.DisasterRecoveryPlan
	if err := f.kube.Get(t.Context(), key("shop", "shop"), &plan); err != nil {
		t.Fatal(err)
	}
	if s := plan.Status; plan.Spec.PrimaryCluster != east || s.LocalCluster != west || s.PrimaryCluster != east || s.Epoch != 4 {
		t.Errorf("copy %+v %+v", plan.Spec, s)
	}
	spec.DataReplicationPointer = "db"
	if err := f.client.PutPlan(t.Context(), key("shop", "shop"), spec, 4, east); err != nil {
		t.Fatal(err)
	}
	view := must(f.client.ObservePlan(t.Context(), key("shop", "shop")))(t)
	if view.Plan == nil || view.Plan.Spec.DataReplicationPointer != "db" || view.Plan.Spec.PrimaryCluster != east || view.Plan.Status.Epoch != 4 {
		t.Errorf("copy %+v", view.Plan)
	}
}

func TestPutPlanIsThePrimarysAlone(t *testing.T) {
	cases := []struct {
		name    string
		here    *v1alpha1.DisasterRecoveryPlan
		epoch   int64
		primary string
		reason  string
	}{
		{"the caller says itself that another is primary", nil, 1, west, control.ReasonNotPrimary},
		{"this cluster is the primary", planOf(west, 2), 2, east, control.ReasonNotPrimary},
		{"the caller's epoch is older", planOf(east, 3), 2, east, control.ReasonStaleEpoch},
		{"the caller's epoch is older and it was primary", planOf(west, 3), 2, east, control.ReasonStaleEpoch},
		{"no epoch", nil, 0, east, control.ReasonInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var objects []client.Object
			if c.here != nil {
				objects = append(objects, c.here)
			}
			f := startFake(t, []string{"shop"}, objects...)
			wantRefused(t, f.client.PutPlan(t.Context(), key("shop", "shop"), planSpec(east), c.epoch, c.primary), c.reason, "shop/shop")
		})
	}
	t.Run("a cluster that is not on the list", func(t *testing.T) {
		f := startFake(t, []string{"shop"})
		spec := planSpec(east)
		spec.PreferredClusterList = []string{east, "north"}
		wantRefused(t, f.client.PutPlan(t.Context(), key("shop", "shop"), spec, 1, east), control.ReasonInvalid, "preferredClusterList", west)
	})
}

func TestPutPlanFinishesACopyThatWasCutInHalf(t *testing.T) {
	half := planOf(east, 0)
	half.Status = v1alpha1.DisasterRecoveryPlanStatus{}
	f := startFake(t, []string{"shop"}, half)
	if err := f.client.PutPlan(t.Context(), key("shop", "shop"), planSpec(east), 2, east); err != nil {
		t.Fatal(err)
	}
	if view := must(f.client.ObservePlan(t.Context(), key("shop", "shop")))(t); view.Plan.Status.PrimaryCluster != east || view.Plan.Status.Epoch != 2 {
		t.Errorf("status %+v", view.Plan.Status)
	}
}

const gib = int64(1) << 30

func request(claims ...control.Claim) control.PrepareRequest {
	r := control.PrepareRequest{
		Key: key("shop", "db"),
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleTarget, PVCGroupName: "db", Epoch: 2, TriggerNow: "now",
			Rlinks: []v1alpha1.Rlink{{RlinkName: "r", ClusterPair: "east-calls-it-so", Schedule: "*/5 * * * *"}}},
		Claims: claims,
	}
	for _, c := range claims {
		r.Group.PVCList = append(r.Group.PVCList, v1alpha1.PVCRef{PVCName: c.Name})
	}
	return r
}

func data(size int64) control.Claim {
	return control.Claim{Name: "data", SizeBytes: size, VolumeMode: "Filesystem", StorageClass: "fast",
		Labels: map[string]string{"app": "db"}, Annotations: map[string]string{"pv.kubernetes.io/bind-completed": "yes", "team": "shop"}}
}

func class(name string, isDefault bool) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "x"}
	if isDefault {
		c.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
	}
	return c
}

func bind(t *testing.T, kube client.Client, capacity string) {
	t.Helper()
	var claim corev1.PersistentVolumeClaim
	if err := kube.Get(t.Context(), key("shop", "data"), &claim); err != nil {
		t.Fatal(err)
	}
	claim.Status.Phase = corev1.ClaimBound
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(capacity)}
	if err := kube.Status().Update(t.Context(), &claim); err != nil {
		t.Fatal(err)
	}
}

func TestPrepareMakesWhatIsMissingAndWaitsForNothing(t *testing.T) {
	f := startFake(t, []string{"*"}, class("fast", false))
	got := must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t)
	if got.Ready || !strings.Contains(got.Message, "data") {
		t.Fatalf("%+v, want not ready yet", got)
	}
	var claim corev1.PersistentVolumeClaim
	if err := f.kube.Get(t.Context(), key("shop", "data"), &claim); err != nil {
		t.Fatal(err)
	}
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Value() != gib || *claim.Spec.StorageClassName != "fast" || claim.Labels["app"] != "db" || claim.Annotations["team"] != "shop" || len(claim.Annotations) != 1 {
		t.Errorf("claim %+v %v", claim.ObjectMeta, claim.Spec)
	}
	replication := must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t)
	if s := replication.Spec; s.Role != v1alpha1.RoleTarget || s.Epoch != 2 || s.Rlinks[0].ClusterPair != "to-east" || s.TriggerNow != "" {
		t.Errorf("replication %+v", s)
	}
	if got := must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t); got.Ready || !strings.Contains(got.Message, "not bound") {
		t.Fatalf("%+v, want not ready yet", got)
	}
	bind(t, f.kube, "1Gi")
	if got := must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t); !got.Ready || got.Message != "" {
		t.Errorf("%+v, want ready", got)
	}
	changed := request(data(gib))
	changed.Spec.Rlinks[0].Schedule, changed.Spec.Epoch = "@hourly", 3
	must(f.client.PrepareReplication(t.Context(), changed))(t)
	replication = must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t)
	if s := replication.Spec; s.Rlinks[0].Schedule != "@hourly" || s.Epoch != 3 {
		t.Errorf("replication %+v did not follow", s)
	}
}

func TestPrepareChoosesTheClass(t *testing.T) {
	t.Run("the default when there is none of that name", func(t *testing.T) {
		f := startFake(t, []string{"*"}, class("slow", false), class("standard", true))
		must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t)
		var claim corev1.PersistentVolumeClaim
		if err := f.kube.Get(t.Context(), key("shop", "data"), &claim); err != nil || *claim.Spec.StorageClassName != "standard" {
			t.Errorf("class %v (%v)", claim.Spec.StorageClassName, err)
		}
	})
	t.Run("nothing is made without either", func(t *testing.T) {
		f := startFake(t, []string{"*"}, class("slow", false))
		_, err := f.client.PrepareReplication(t.Context(), request(data(gib)))
		wantRefused(t, err, control.ReasonNoStorageClass, "shop/data", "fast", west)
		if got := must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t); got != nil {
			t.Error("a Replication was made")
		}
	})
}

func claimHere(size, capacity string, mode corev1.PersistentVolumeMode) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeMode: &mode,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}}}
	if capacity != "" {
		c.Status.Phase = corev1.ClaimBound
		c.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(capacity)}
	}
	return c
}

func replicationHere(role v1alpha1.Role, epoch int64, group string) *v1alpha1.Replication {
	return &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: v1alpha1.ReplicationSpec{Role: role, Epoch: epoch, PVCGroupName: group, Rlinks: []v1alpha1.Rlink{{RlinkName: "r", ClusterPair: "mine", Schedule: "@daily"}}}}
}

func TestPrepareRefusesWhatDoesNotFitAndNamesBothSides(t *testing.T) {
	fs, block := corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: "other"}}}}
	cases := []struct {
		name   string
		here   client.Object
		reason string
		says   []string
	}{
		{"a smaller claim", claimHere("512Mi", "", fs), control.ReasonConflict, []string{"shop/data", "512Mi", "1Gi", east, west}},
		{"a claim bound larger than asked for", claimHere("1Gi", "2Gi", fs), control.ReasonConflict, []string{"status.capacity.storage", "2Gi"}},
		{"another volume mode", claimHere("1Gi", "1Gi", block), control.ReasonConflict, []string{"volumeMode", "Block", "Filesystem"}},
		{"a source on both sides", replicationHere(v1alpha1.RoleSource, 1, "db"), control.ReasonIsSource, []string{"shop/db", "spec.role"}},
		{"a later epoch here", replicationHere(v1alpha1.RoleTarget, 3, "db"), control.ReasonStaleEpoch, []string{"epoch 3", "epoch 2"}},
		{"another group", replicationHere(v1alpha1.RoleTarget, 1, "else"), control.ReasonConflict, []string{"pvcGroupName", "else"}},
		{"another group's members", group, control.ReasonConflict, []string{"PVCGroup shop/db", "[other]", "[data]"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := startFake(t, []string{"*"}, class("fast", false), c.here)
			_, err := f.client.PrepareReplication(t.Context(), request(data(gib)))
			wantRefused(t, err, c.reason, c.says...)
			var claims corev1.PersistentVolumeClaimList
			if err := f.kube.List(t.Context(), &claims); err != nil || len(claims.Items) > 1 {
				t.Errorf("%d claims (%v)", len(claims.Items), err)
			}
		})
	}
}

// M-153: a claim that holds a replica is grown with its source; the Replication there remembers to which size, and sees to it.
func TestPrepareLetsAReplicaGrow(t *testing.T) {
	fs := corev1.PersistentVolumeFilesystem
	held := replicationHere(v1alpha1.RoleTarget, 1, "db")
	held.Status = v1alpha1.ReplicationStatus{Claims: []string{"data"}, Sizes: []v1alpha1.ClaimSize{{Claim: "data", Bytes: gib}},
		Rlinks: []v1alpha1.RlinkStatus{{RlinkName: "r", RecoveryPoint: &v1alpha1.RecoveryPoint{Point: "p1"}}}}
	// Said in other words than the source's group, but of the same claims.
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}}
	f := startFake(t, []string{"*"}, class("fast", false), claimHere("1Gi", "1Gi", fs), held, group)
	got := must(f.client.PrepareReplication(t.Context(), request(data(2*gib))))(t)
	if got.Ready || !strings.Contains(got.Message, "data") || !strings.Contains(got.Message, "from 1Gi") || !strings.Contains(got.Message, "to 2Gi") {
		t.Errorf("%+v", got)
	}
	sizes := func() string {
		return must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t).Annotations[v1alpha1.AnnotationSourceSizes]
	}
	if got := sizes(); got != `{"data":2147483648}` {
		t.Errorf("remembered %s", got)
	}
	// A source that was restored from an old snapshot of its objects does not take the wish back.
	must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t)
	if got := sizes(); got != `{"data":2147483648}` {
		t.Errorf("remembered %s after a smaller wish", got)
	}
	// The claim shows its former capacity until a pod mounts it; the Replication knows the volume.
	replication := must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t)
	replication.Status.Sizes[0].Bytes = 2 * gib
	if err := f.kube.Status().Update(t.Context(), replication); err != nil {
		t.Fatal(err)
	}
	if got := must(f.client.PrepareReplication(t.Context(), request(data(2*gib))))(t); !got.Ready {
		t.Errorf("%+v, want ready", got)
	}
	// M-152: what is larger here cannot shrink, and is reported with both sizes.
	_, err := f.client.PrepareReplication(t.Context(), request(data(gib)))
	wantRefused(t, err, control.ReasonConflict, "shop/data", "2Gi", "1Gi")
}

func TestPrepareLeavesASmallerClaimToWhoMadeIt(t *testing.T) {
	empty := replicationHere(v1alpha1.RoleTarget, 1, "db")
	f := startFake(t, []string{"*"}, class("fast", false), claimHere("512Mi", "512Mi", corev1.PersistentVolumeFilesystem), empty)
	_, err := f.client.PrepareReplication(t.Context(), request(data(gib)))
	wantRefused(t, err, control.ReasonConflict, "shop/data", "512Mi", "1Gi")
	var claim corev1.PersistentVolumeClaim
	if err := f.kube.Get(t.Context(), key("shop", "data"), &claim); err != nil {
		t.Fatal(err)
	}
	claim.Annotations = map[string]string{v1alpha1.AnnotationCreatedFor: "db"}
	if err := f.kube.Update(t.Context(), &claim); err != nil {
		t.Fatal(err)
	}
	if got := must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t); got.Ready || !strings.Contains(got.Message, "grows") {
		t.Errorf("a claim that was made for the replica: %+v", got)
	}
}

// A group by label has the same members on both sides: a claim that was made for the replica joins and leaves by its labels as the
// source's does. One that a person made is named.
func TestPrepareLetsMembersJoinAndLeaveByLabel(t *testing.T) {
	f := startFake(t, []string{"*"}, class("fast", false))
	byLabel := func(names ...string) control.PrepareRequest {
		r := request()
		r.Group = v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}
		for _, name := range names {
			c := data(gib)
			c.Name, c.Labels = name, map[string]string{"app": "db", "disk": name}
			c.Annotations = map[string]string{v1alpha1.AnnotationCreatedFor: "db"}
			r.Claims = append(r.Claims, c)
		}
		return r
	}
	members := func() []string {
		var list corev1.PersistentVolumeClaimList
		if err := f.kube.List(t.Context(), &list, client.InNamespace("shop"), client.MatchingLabels{"app": "db"}); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, o := range list.Items {
			out = append(out, o.Name+" "+o.Labels["disk"])
		}
		return out
	}
	for _, names := range [][]string{{"a", "b"}, {"a"}, {"a", "b", "c"}} {
		must(f.client.PrepareReplication(t.Context(), byLabel(names...)))(t)
		var want []string
		for _, name := range names {
			want = append(want, name+" "+name)
		}
		if got := members(); !slices.Equal(got, want) {
			t.Errorf("the group's members here are %v, want %v", got, want)
		}
	}
	own := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "theirs", Labels: map[string]string{"app": "db"}}}
	if err := f.kube.Create(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	_, err := f.client.PrepareReplication(t.Context(), byLabel("a", "b", "c"))
	wantRefused(t, err, control.ReasonConflict, "claim shop/theirs", "app=db", "no member on cluster "+east)
	if got := members(); len(got) != 4 {
		t.Errorf("a person's claim was changed: %v", got)
	}
}

func TestPrepareLeavesAPersonsRlinksAlone(t *testing.T) {
	f := startFake(t, []string{"*"}, claimHere("1Gi", "1Gi", corev1.PersistentVolumeFilesystem), replicationHere(v1alpha1.RoleTarget, 1, "db"))
	if got := must(f.client.PrepareReplication(t.Context(), request(data(gib))))(t); !got.Ready {
		t.Errorf("%+v, want ready", got)
	}
	replication := must(f.client.ObserveReplication(t.Context(), key("shop", "db")))(t)
	if s := replication.Spec; s.Rlinks[0].Schedule != "@daily" || s.Epoch != 2 {
		t.Errorf("spec %+v", s)
	}
}
