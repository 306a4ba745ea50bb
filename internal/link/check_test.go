package link_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/endpoint/endpointtest"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/gateway"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

type routes map[string]string

func (r routes) Route(name string) (string, error) {
	if address, ok := r[name]; ok {
		return address, nil
	}
	return "", fmt.Errorf("no backend for %q", name)
}

// receiver accepts the movers of one replication from east; it counts those that came to the end of the handshake.
func receiver(t *testing.T, west, east *identity.CA, name string) (address string, greeted func() int) {
	t.Helper()
	config := identity.ServerConfig(identity.NewRotating(west, identity.ReplicationURI("west", "shop", name), nil, time.Now),
		identity.Exactly(must(identity.Roots(east.CertPEM()))(t), identity.ReplicationURI("east", "shop", name), x509.ExtKeyUsageClientAuth, time.Now))
	listener := must(endpointtest.Listen())(t)
	t.Cleanup(func() { _ = listener.Close() })
	sessions := make(chan struct{}, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				c := tls.Server(conn, config)
				if c.Handshake() == nil {
					sessions <- struct{}{}
					_, _ = io.Copy(io.Discard, c)
				}
			}()
		}
	}()
	return listener.Addr().String(), func() int { return len(sessions) }
}

func serveGateway(t *testing.T, router gateway.Router) string {
	t.Helper()
	listener := must(endpointtest.Listen())(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	g := &gateway.Gateway{Router: router, Log: testr.New(t), Metrics: gateway.NewMetrics(prometheus.NewRegistry()), StopTimeout: time.Millisecond}
	go func() { done <- g.Serve(ctx, listener) }()
	t.Cleanup(func() { cancel(); <-done })
	return listener.Addr().String()
}

func closedPort(t *testing.T) string {
	t.Helper()
	l := must(endpointtest.Listen())(t)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func replicationTo(name string, role v1alpha1.Role, remote string) client.Object {
	r := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	r.Spec.Rlinks = []v1alpha1.Rlink{{RlinkName: "dr", ClusterPair: "to-west", RemoteAddress: remote}}
	r.Status.Role = role
	return r
}

// find is the result of a check.
func find(t *testing.T, results []v1alpha1.CheckResult, name, about string) v1alpha1.CheckResult {
	t.Helper()
	for _, r := range results {
		if r.Name == name && strings.HasPrefix(r.About, about) {
			return r
		}
	}
	t.Fatalf("no result of %s %s in %+v", name, about, results)
	return v1alpha1.CheckResult{}
}

// M-178, M-164: from inside a cluster every way to the peer is tried: its gateway, who answers, its manager, its versions, its clock, and
// each receiver, through the gateway or at an address of its own. No session is disturbed.
func TestEveryWayToAPeerIsTried(t *testing.T) {
	east := must(identity.NewCA("east", time.Now()))(t)
	w := startWest(t, east)
	db, dbGreeted := receiver(t, w.ca, east, "db")
	files, _ := receiver(t, w.ca, east, "files")
	wrong, _ := receiver(t, w.ca, east, "db")
	gatewayAddress := serveGateway(t, routes{identity.ManagerServerName: w.address, identity.ReceiverServerName("shop", "db"): db})
	peers, _ := startPeers(t, east)
	set := func(address string) {
		e := w.endpoint()
		e.Address = address
		if err := peers.Set("to-west", e, 5); err != nil {
			t.Fatal(err)
		}
	}
	set(gatewayAddress)
	closed := closedPort(t)
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	kube := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		replicationTo("db", v1alpha1.RoleSource, ""), replicationTo("files", v1alpha1.RoleSource, files), replicationTo("closed", v1alpha1.RoleSource, closed),
		replicationTo("mixed-up", v1alpha1.RoleSource, wrong), replicationTo("away", v1alpha1.RoleSource, ""), replicationTo("back", v1alpha1.RoleTarget, files),
	).Build()
	skew := time.Duration(0)
	checker := &link.Checker{Cluster: "east", Own: identity.NewRotating(east, identity.ManagerURI("east"), nil, time.Now), Reader: kube,
		Client: peers.Client, Now: func() time.Time { return time.Now().Add(skew) }}
	pair := &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "to-west"}, Spec: v1alpha1.ClusterPairSpec{PeerCluster: "west", GatewayAddress: gatewayAddress}}
	results := checker.Check(t.Context(), pair, w.ca.CertPEM())
	for _, c := range []struct {
		name, about string
		outcome     v1alpha1.CheckOutcome
		says        string
	}{
		{link.CheckGateway, gatewayAddress, v1alpha1.CheckPassed, "accepts connections"},
		{link.CheckIdentity, "lifeboat://west/manager", v1alpha1.CheckPassed, "both ways"},
		{link.CheckControl, "", v1alpha1.CheckPassed, "answers"},
		{link.CheckVersion, "v0.1.0", v1alpha1.CheckPassed, fmt.Sprintf("protocol %d", control.Protocol)},
		{link.CheckClock, "", v1alpha1.CheckPassed, "apart"},
		{link.CheckReceiver, "shop/db dr", v1alpha1.CheckPassed, "the gateway"},
		{link.CheckReceiver, "shop/files dr", v1alpha1.CheckPassed, files + " (its remoteAddress)"},
		{link.CheckReceiver, "shop/closed dr", v1alpha1.CheckFailed, "refused"},
		{link.CheckReceiver, "shop/mixed-up dr", v1alpha1.CheckFailed, "lifeboat://west/replication/shop/db"},
		{link.CheckReceiver, "shop/away dr", v1alpha1.CheckFailed, "does not answer at " + gatewayAddress},
		{link.CheckReceiver, "shop/back dr", v1alpha1.CheckSkipped, "this side is the target"},
	} {
		if got := find(t, results, c.name, c.about); got.Outcome != c.outcome || !strings.Contains(got.Message, c.says) {
			t.Errorf("%s %s: %+v, want %s and %q", c.name, c.about, got, c.outcome, c.says)
		}
	}
	if n := dbGreeted(); n != 0 {
		t.Errorf("the check became %d sessions", n)
	}

	// Clocks that are an hour apart, both ways.
	for _, skew = range []time.Duration{-30 * time.Minute, 30 * time.Minute} {
		if got := find(t, checker.Check(t.Context(), pair, w.ca.CertPEM()), link.CheckClock, ""); got.Outcome != v1alpha1.CheckFailed || !strings.Contains(got.Message, "the clock of cluster west is") {
			t.Errorf("%+v", got)
		}
	}
	skew = 0

	// M-164, M-015: a closed port of the gateway is named, with what to do.
	pair.Spec.GatewayAddress = closed
	set(closed)
	results = checker.Check(t.Context(), pair, w.ca.CertPEM())
	if got := find(t, results, link.CheckGateway, closed); got.Outcome != v1alpha1.CheckFailed || !strings.Contains(got.Message, "open TCP port of "+closed) {
		t.Errorf("%+v", got)
	}
	if got := find(t, results, link.CheckControl, ""); got.Outcome != v1alpha1.CheckFailed {
		t.Errorf("%+v", got)
	}
}

// The same without IPv4: addresses such as [::1]:9002 in pair, gateway, control service and receivers.
func TestTheLinkNeedsNoIPv4(t *testing.T) {
	endpointtest.OnlyIPv6(t, "^(TestEveryWayToAPeerIsTried|TestALinkIsConnectedLostAndConnectedAgain|TestAWrongCAIsRefusedUntilItIsReplaced)$")
}
