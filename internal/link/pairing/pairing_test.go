package pairing_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/controller/clusterpair"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/gateway"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/pairing"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

var servers apiserver.Servers

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	os.Exit(servers.Main(m))
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// known is a cluster of the fake kind that says who it is but runs nothing.
func known(t *testing.T, name, gatewayAddress string, objects ...client.Object) (client.Client, *identity.CA) {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithStatusSubresource(&v1alpha1.ClusterPair{}).Build()
	if name == "" {
		return c, nil
	}
	describe(t, c, name, gatewayAddress)
	return c, must(trust.EnsureCA(t.Context(), c, name, time.Now()))(t)
}

// describe writes what the installer writes.
func describe(t *testing.T, c client.Client, name, gatewayAddress string) {
	t.Helper()
	err := c.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "lifeboat-cluster"},
		Data: map[string]string{"name": name, "gatewayAddress": gatewayAddress}})
	if err != nil {
		t.Fatal(err)
	}
}

func side(context string, c client.Client) pairing.Side {
	return pairing.Side{Context: context, Client: c}
}

func TestNothingIsWrittenUnlessBothSidesFit(t *testing.T) {
	strangerPEM := func() []byte { return must(identity.NewCA("west", time.Now()))(t).CertPEM() }
	otherTrust := []client.Object{
		&v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "west"}, Spec: v1alpha1.ClusterPairSpec{PeerCluster: "west", TrustSecretName: "mine"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "mine"}, Data: map[string][]byte{trust.KeyCA: strangerPEM()}},
	}
	pairNamed := func(name, peer string) client.Object {
		return &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ClusterPairSpec{PeerCluster: peer, TrustSecretName: "x"}}
	}
	var notInstalled *pairing.NotInstalledError
	var sameName *pairing.SameNameError
	var otherCA *pairing.OtherCAError
	cases := []struct {
		name     string
		east     []client.Object
		westName string
		address  string
		options  pairing.Options
		as       any
		says     []string
	}{
		{"Lifeboat is missing on one side", nil, "", "", pairing.Options{}, &notInstalled, []string{"context B", "lifeboat install"}},
		{"one name on both sides", nil, "east", "192.0.2.2:9002", pairing.Options{}, &sameName, []string{"context", "A", "B", "east"}},
		{"no gateway address", nil, "west", "", pairing.Options{}, nil, []string{"context B", "--gateway-address B=host:port"}},
		{"paired under another CA", otherTrust, "west", "192.0.2.2:9002", pairing.Options{}, &otherCA, []string{"context A", "ClusterPair west", "--replace-trust", "Secret lifeboat-system/mine"}},
		{"a pair of that name for somebody else", []client.Object{pairNamed("west", "north")}, "west", "192.0.2.2:9002", pairing.Options{}, nil, []string{"ClusterPair west", "north"}},
		{"two pairs for the peer", []client.Object{pairNamed("a", "west"), pairNamed("b", "west")}, "west", "192.0.2.2:9002", pairing.Options{}, nil, []string{"a, b", "delete all but one"}},
		{"a namespace of the system", nil, "west", "192.0.2.2:9002", pairing.Options{Namespaces: []string{"kube-system"}}, nil, []string{"kube-system"}},
		{"a namespace that cannot be", nil, "west", "192.0.2.2:9002", pairing.Options{Namespaces: []string{"Shop"}}, nil, []string{"Shop"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			east, _ := known(t, "east", "192.0.2.1:9002", c.east...)
			west, _ := known(t, c.westName, c.address)
			_, err := pairing.Pair(t.Context(), side("A", east), side("B", west), c.options)
			if err == nil || c.as != nil && !errors.As(err, c.as) {
				t.Fatalf("%T %v", err, err)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not mention %q", err, part)
				}
			}
			for i, cluster := range []client.Client{east, west} {
				var pairs v1alpha1.ClusterPairList
				if err := cluster.List(t.Context(), &pairs); err != nil {
					t.Fatal(err)
				}
				for _, p := range pairs.Items {
					if p.Spec.GatewayAddress != "" {
						t.Errorf("side %d: ClusterPair %s was written", i, p.Name)
					}
				}
			}
		})
	}
}

func TestPeersThatNeverMeetAreReportedWithBothSides(t *testing.T) {
	east, _ := known(t, "east", "192.0.2.1:9002")
	west, westCA := known(t, "west", "192.0.2.2:9002")
	b := side("B", west)
	b.GatewayAddress = "203.0.113.9:443"
	_, err := pairing.Pair(t.Context(), side("A", east), b, pairing.Options{Namespaces: []string{"shop"}, Timeout: time.Second})
	var notConnected *pairing.NotConnectedError
	if !errors.As(err, &notConnected) || len(notConnected.Problems) != 2 || !strings.Contains(err.Error(), "lifeboat-manager running?") {
		t.Fatalf("%v", err)
	}
	// What was written is right all the same, and the peer's address is the one that was given.
	pair, caPEM := pairAndTrust(t, east, "west")
	if pair.Spec.GatewayAddress != "203.0.113.9:443" || pair.Spec.Namespaces[0] != "shop" || pair.Spec.Mode != v1alpha1.PairModeDisasterRecovery ||
		identity.Fingerprint(caPEM) != identity.Fingerprint(westCA.CertPEM()) {
		t.Errorf("pair %+v", pair.Spec)
	}
	if pair, _ := pairAndTrust(t, west, "east"); pair.Spec.GatewayAddress != "192.0.2.1:9002" {
		t.Errorf("pair %+v", pair.Spec)
	}
}

func pairAndTrust(t *testing.T, c client.Client, peer string) (*v1alpha1.ClusterPair, []byte) {
	t.Helper()
	r := trust.Reader{Reader: c}
	pair := must(r.PairFor(t.Context(), peer))(t)
	return pair, must(r.CAPEM(t.Context(), pair))(t)
}

// toManager routes everything to the manager of its cluster: there is no Service network here.
type toManager struct{ address string }

func (r toManager) Route(serverName string) (string, error) {
	if serverName != identity.ManagerServerName {
		return "", fmt.Errorf("no backend for %q", serverName)
	}
	return r.address, nil
}

// cluster is a real API server with a gateway in front of it and, once started, a manager.
type cluster struct {
	name    string
	client  client.Client
	control string // address of the manager's control service
	gateway string
}

func newCluster(t *testing.T, name string) *cluster {
	t.Helper()
	c := &cluster{name: name, client: servers.Client(t, name), control: freeAddress(t)}
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}
	if err := c.client.Create(t.Context(), system); err != nil {
		t.Fatal(err)
	}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	c.gateway = listener.Addr().String()
	run(t, func(ctx context.Context) error {
		g := &gateway.Gateway{Router: toManager{c.control}, Log: testr.New(t), StopTimeout: time.Millisecond}
		return g.Serve(ctx, listener)
	})
	return c
}

// run runs until the test ends or the returned stop is called.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	once := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(once)
	return once
}

// start runs a manager with the link and the ClusterPair controller.
func (c *cluster) start(t *testing.T) (*link.Peers, func()) {
	t.Helper()
	skip := true // two managers of one name live in this process
	m := must(ctrl.NewManager(servers.Config(t, c.name), ctrl.Options{
		// A manager may still log of its end after Start has returned, when the test's own log is closed.
		Scheme: c.client.Scheme(), Logger: logr.Discard(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skip},
	}))(t)
	l := must(link.AddToManager(t.Context(), m, link.Options{Cluster: c.name, Version: "v0.1.0", Address: c.control, Now: time.Now}))(t)
	if err := (&clusterpair.Reconciler{Client: m.GetClient(), Cluster: c.name, Trust: l.Trust, Links: l.Peers}).SetupWithManager(m); err != nil {
		t.Fatal(err)
	}
	return l.Peers, run(t, m.Start)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestTwoClustersAreIntroduced(t *testing.T) {
	east, west := newCluster(t, "east"), newCluster(t, "west")
	pair := func(o pairing.Options) (pairing.Result, []string, error) {
		var told []string
		o.Progress = func(line string) { told = append(told, line) }
		if o.Timeout == 0 {
			o.Timeout = 40 * time.Second
		}
		r, err := pairing.Pair(t.Context(), side("ctx-east", east.client), side("ctx-west", west.client), o)
		return r, told, err
	}

	_, _, err := pair(pairing.Options{})
	var notInstalled *pairing.NotInstalledError
	if !errors.As(err, &notInstalled) {
		t.Fatalf("before anything is installed: %v", err)
	}
	describe(t, east.client, "east", east.gateway)
	describe(t, west.client, "west", west.gateway)
	if _, _, err := pair(pairing.Options{Timeout: time.Second}); err == nil || !strings.Contains(err.Error(), "has not made its CA") {
		t.Fatalf("before the managers run: %v", err)
	}

	eastPeers, _ := east.start(t)
	_, stopWest := west.start(t)
	result, _, err := pair(pairing.Options{Namespaces: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range result.Pairs {
		if p.Status.LinkState != v1alpha1.LinkConnected || p.Status.PeerVersion != "v0.1.0" || p.Status.LastHeartbeat == nil {
			t.Errorf("%s: %+v", result.Names[i], p.Status)
		}
	}

	// Through the gateway, both ways judged: what the pair allows is answered and what it does not is refused.
	peer := must(eastPeers.Client("west"))(t)
	if r, err := peer.ObserveReplication(t.Context(), key("shop", "db")); err != nil || r != nil {
		t.Errorf("%v %v", r, err)
	}
	if _, err := peer.ObserveReplication(t.Context(), key("bank", "db")); control.RefusedReason(err) != control.ReasonNamespace {
		t.Errorf("%v", err)
	}

	// Again: nothing is left to do, and the namespaces stay when none are given.
	before, _ := pairAndTrust(t, east.client, "west")
	if _, told, err := pair(pairing.Options{}); err != nil || !strings.Contains(strings.Join(told, "\n"), "is as it shall be") {
		t.Errorf("%v %v", told, err)
	}
	if after, _ := pairAndTrust(t, east.client, "west"); after.Generation != before.Generation || after.Spec.Namespaces[0] != "shop" {
		t.Errorf("the pair changed: %+v", after.Spec)
	}

	// West is installed anew, with another CA.
	stopWest()
	for _, o := range []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}} {
		o.SetNamespace(v1alpha1.SystemNamespace)
		o.SetName(trust.CAName)
		if err := west.client.Delete(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	west.start(t)
	var otherCA *pairing.OtherCAError
	if _, _, err := pair(pairing.Options{}); !errors.As(err, &otherCA) || otherCA.Context != "ctx-east" || otherCA.Peer != "west" {
		t.Fatalf("after west has another CA: %v", err)
	}
	if _, _, err := pair(pairing.Options{ReplaceTrust: true}); err != nil {
		t.Fatal(err)
	}
	if s := eastPeers.State("west"); s.Link != v1alpha1.LinkConnected {
		t.Errorf("%+v", s)
	}
}

func key(namespace, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name}
}
