package link_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/endpoint/endpointtest"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
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

// wire is a listener whose connections can be made to swallow everything, as a cut cable does.
type wire struct {
	net.Listener
	mu   sync.Mutex
	cond *sync.Cond
	cut  bool
}

type wireConn struct {
	net.Conn
	wire *wire
}

func newWire(l net.Listener) *wire {
	w := &wire{Listener: l}
	w.cond = sync.NewCond(&w.mu)
	return w
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	w.cond.Broadcast()
}

func (w *wire) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wireConn{c, w}, nil
}

// Read keeps what arrives to itself while the wire is cut.
func (c *wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	for c.wire.cut && err == nil {
		c.wire.cond.Wait()
	}
	return n, err
}

type west struct {
	ca      *identity.CA
	address string
	wire    *wire
}

// startWest runs the control service of cluster west, which trusts east.
func startWest(t *testing.T, east *identity.CA) west {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	kube := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "east"}, Spec: v1alpha1.ClusterPairSpec{PeerCluster: "east", TrustSecretName: "t"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "t"}, Data: map[string][]byte{trust.KeyCA: east.CertPEM()}},
	).Build()
	ca := must(identity.NewCA("west", time.Now()))(t)
	listener := newWire(must(endpointtest.Listen())(t))
	server := control.NewServer(control.ServerOptions{Cluster: "west", Version: "v0.1.0", Client: kube, Now: time.Now, Log: testr.New(t),
		Own: identity.NewRotating(ca, identity.ManagerURI("west"), nil, time.Now)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		listener.set(false)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return west{ca: ca, address: listener.Addr().String(), wire: listener}
}

func (w west) endpoint() link.Endpoint {
	return link.Endpoint{PeerCluster: "west", Address: w.address, CAPEM: string(w.ca.CertPEM())}
}

// startPeers runs east's links with a beat that the test gives.
func startPeers(t *testing.T, east *identity.CA) (*link.Peers, chan time.Time) {
	t.Helper()
	ticks := make(chan time.Time)
	peers := link.NewPeers(link.PeersOptions{Cluster: "east", Version: "v0.1.0", Now: time.Now, Log: testr.New(t),
		Own:   identity.NewRotating(east, identity.ManagerURI("east"), nil, time.Now),
		Ticks: func() (<-chan time.Time, func()) { return ticks, func() {} }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- peers.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return peers, ticks
}

func waitChange(t *testing.T, peers *link.Peers, pair string) {
	t.Helper()
	select {
	case e := <-peers.Changes():
		if e.Object.GetName() != pair {
			t.Fatalf("change of %s, want %s", e.Object.GetName(), pair)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("no change: %+v", peers.State(pair))
	}
}

func TestALinkIsConnectedLostAndConnectedAgain(t *testing.T) {
	t.Parallel()
	east := must(identity.NewCA("east", time.Now()))(t)
	w := startWest(t, east)
	peers, ticks := startPeers(t, east)
	if s := peers.State("to-west"); s.Link != v1alpha1.LinkUnknown {
		t.Errorf("before the pair is known: %+v", s)
	}
	if err := peers.Set("to-west", w.endpoint(), 1); err != nil {
		t.Fatal(err)
	}
	waitChange(t, peers, "to-west")
	s := peers.State("west") // by the peer's name
	if s.Link != v1alpha1.LinkConnected || s.Version != "v0.1.0" || s.Protocol != control.Protocol || s.RoundTrip <= 0 || s.LastHeartbeat.IsZero() {
		t.Fatalf("%+v", s)
	}
	w.wire.set(true)
	ticks <- time.Now() // missed: tolerated
	ticks <- time.Now() // missed: lost; sent once the first has timed out
	waitChange(t, peers, "to-west")
	if lost := peers.State("to-west"); lost.Link != v1alpha1.LinkLost || lost.Missed != 2 || !lost.LastHeartbeat.Equal(s.LastHeartbeat) {
		t.Fatalf("%+v", lost)
	}
	w.wire.set(false)
	for peers.State("to-west").Link == v1alpha1.LinkLost {
		select {
		case ticks <- time.Now():
		case <-peers.Changes():
		}
	}
	if s := peers.State("to-west"); s.Link != v1alpha1.LinkConnected || s.Missed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestAWrongCAIsRefusedUntilItIsReplaced(t *testing.T) {
	t.Parallel()
	east := must(identity.NewCA("east", time.Now()))(t)
	w := startWest(t, east)
	peers, _ := startPeers(t, east)
	wrong := w.endpoint()
	wrong.CAPEM = string(must(identity.NewCA("west", time.Now()))(t).CertPEM())
	if err := peers.Set("to-west", wrong, 5); err != nil {
		t.Fatal(err)
	}
	waitChange(t, peers, "to-west")
	if s := peers.State("to-west"); s.Link != v1alpha1.LinkRefused || s.Reason != control.ReasonTrust || !strings.Contains(s.Message, "--replace-trust") {
		t.Fatalf("%+v", s)
	}
	if err := peers.Set("to-west", w.endpoint(), 5); err != nil {
		t.Fatal(err)
	}
	waitChange(t, peers, "to-west")
	if s := peers.State("to-west"); s.Link != v1alpha1.LinkConnected {
		t.Errorf("%+v", s)
	}
}

func TestSetTwiceKeepsTheConnection(t *testing.T) {
	t.Parallel()
	east := must(identity.NewCA("east", time.Now()))(t)
	w := startWest(t, east)
	peers, _ := startPeers(t, east)
	clients := map[control.Peer]bool{}
	for range 3 {
		if err := peers.Set("to-west", w.endpoint(), 5); err != nil {
			t.Fatal(err)
		}
		clients[must(peers.Client("to-west"))(t)] = true
	}
	if len(clients) != 1 {
		t.Errorf("%d clients were made for one endpoint", len(clients))
	}
}

func TestClientTellsWhyThereIsNone(t *testing.T) {
	t.Parallel()
	east := must(identity.NewCA("east", time.Now()))(t)
	peers, _ := startPeers(t, east)
	var none *link.NotPairedError
	if _, err := peers.Client("west"); !errors.As(err, &none) || none.Reason != "" {
		t.Errorf("%v", err)
	}
	peers.SetBroken("to-west", "west", control.ReasonTrust, "the Secret is gone")
	if _, err := peers.Client("west"); !errors.As(err, &none) || none.Reason != "the Secret is gone" {
		t.Errorf("%v", err)
	}
	if s := peers.State("to-west"); s.Link != v1alpha1.LinkRefused {
		t.Errorf("%+v", s)
	}
	peers.Remove("to-west")
	if s := peers.State("to-west"); s.Link != v1alpha1.LinkUnknown {
		t.Errorf("%+v", s)
	}
}

func TestNudgesNeverBlock(t *testing.T) {
	n := link.NewNudges("Replication")
	for range 1000 {
		n.Nudge("Replication", types.NamespacedName{Namespace: "shop", Name: "db"})
		n.Nudge("Pod", types.NamespacedName{Namespace: "shop", Name: "db"})
	}
	if e := <-n.Channel("Replication"); e.Object.GetNamespace() != "shop" || e.Object.GetName() != "db" {
		t.Errorf("%v", e.Object)
	}
}
