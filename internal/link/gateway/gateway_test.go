package gateway_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/endpoint/endpointtest"
	"lifeboat.dev/lifeboat/internal/link/gateway"
	"lifeboat.dev/lifeboat/internal/link/identity"
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

// routes is a Router of known names.
type routes map[string]string

func (r routes) Route(name string) (string, error) {
	if address, ok := r[name]; ok {
		return address, nil
	}
	return "", fmt.Errorf("no backend for %q", name)
}

type running struct {
	address  string
	registry *prometheus.Registry
	stop     context.CancelFunc
	done     chan error
}

func start(t *testing.T, g *gateway.Gateway) *running {
	t.Helper()
	return serve(t, g, must(endpointtest.Listen())(t))
}

func serve(t *testing.T, g *gateway.Gateway, listener net.Listener) *running {
	t.Helper()
	r := &running{registry: prometheus.NewRegistry(), done: make(chan error, 1)}
	g.Log, g.Metrics = testr.New(t), gateway.NewMetrics(r.registry)
	r.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r.done <- g.Serve(ctx, listener)
	}()
	t.Cleanup(func() {
		cancel()
		<-finished
	})
	return r
}

// count reads one metric by its name and label value ("" for none).
func (r *running) count(t *testing.T, name, label string) float64 {
	t.Helper()
	for _, family := range must(r.registry.Gather())(t) {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

type ends struct{ client, server *tls.Config }

// identities are the two ends of a connection from east to west.
func identities(t *testing.T, serverName string) ends {
	t.Helper()
	east, west := must(identity.NewCA("east", time.Now()))(t), must(identity.NewCA("west", time.Now()))(t)
	own := func(ca *identity.CA, cluster string) identity.Source {
		return identity.NewRotating(ca, identity.ManagerURI(cluster), nil, time.Now)
	}
	exactly := func(ca *identity.CA, cluster string, usage x509.ExtKeyUsage) func([]*x509.Certificate) error {
		return identity.Exactly(must(identity.Roots(ca.CertPEM()))(t), identity.ManagerURI(cluster), usage, time.Now)
	}
	return ends{
		client: identity.ClientConfig(own(east, "east"), serverName, exactly(west, "west", x509.ExtKeyUsageServerAuth)),
		server: identity.ServerConfig(own(west, "west"), exactly(east, "east", x509.ExtKeyUsageClientAuth)),
	}
}

// backend accepts TLS connections and hands each to serve.
func backend(t *testing.T, config *tls.Config, serve func(*tls.Conn)) string {
	t.Helper()
	listener := must(endpointtest.Listen())(t)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				serve(tls.Server(conn, config))
			}()
		}
	}()
	return listener.Addr().String()
}

func TestBytesPassUnopenedAndEachDirectionEndsByItself(t *testing.T) {
	e := identities(t, identity.ManagerServerName)
	// The backend answers only after the client's direction has ended, as a receiver does with its last word.
	address := backend(t, e.server, func(c *tls.Conn) {
		all, err := io.ReadAll(c)
		if err == nil {
			_, err = c.Write(all)
		}
		if err != nil {
			t.Error(err)
		}
		_ = c.CloseWrite()
	})
	r := start(t, &gateway.Gateway{Router: routes{identity.ManagerServerName: address}})
	conn := must(tls.Dial("tcp", r.address, e.client))(t)
	defer func() { _ = conn.Close() }()
	sent := make([]byte, 5<<20)
	_, _ = rand.Read(sent)
	must(conn.Write(sent))(t)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// The TLS layer's end travels as bytes; the TCP half-close below it must travel too.
	if err := conn.NetConn().(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := must(io.ReadAll(conn))(t); !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d", len(got), len(sent))
	}
	eventually(t, "the connection is counted as ended", func() bool {
		return r.count(t, "lifeboat_gateway_connections_total", "") == 1 && r.count(t, "lifeboat_gateway_connections_open", "") == 0
	})
	if in := r.count(t, "lifeboat_gateway_bytes_total", "in"); in < float64(len(sent)) {
		t.Errorf("%v bytes counted in", in)
	}
}

func TestTheGatewayDoesNotWeakenTrust(t *testing.T) {
	e, other := identities(t, identity.ManagerServerName), identities(t, identity.ManagerServerName)
	address := backend(t, e.server, func(c *tls.Conn) { _ = c.Handshake() })
	r := start(t, &gateway.Gateway{Router: routes{identity.ManagerServerName: address}})
	_, err := tls.Dial("tcp", r.address, other.client)
	var untrusted *identity.UntrustedError
	if !errors.As(err, &untrusted) {
		t.Errorf("%v, want UntrustedError", err)
	}
}

func TestWhatIsNotPassedOnIsClosedAndCounted(t *testing.T) {
	nowhere := must(endpointtest.Listen())(t)
	_ = nowhere.Close()
	r := start(t, &gateway.Gateway{
		Router:       routes{"gone.shop.receiver.lifeboat": nowhere.Addr().String()},
		HelloTimeout: 300 * time.Millisecond,
	})
	hello := func(name string) []byte { return clientHello(t, name) }
	split := hello("unknown.lifeboat")
	oversized := append([]byte{0x16, 3, 1, 0x40, 0}, 1, 0, 0xff, 0xff) // a ClientHello of 64 KiB in records of 16 KiB
	oversized = append(oversized, make([]byte, 0x4000-4)...)
	cases := []struct {
		name   string
		send   [][]byte
		end    bool
		reason string
	}{
		{"garbage", [][]byte{[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")}, false, "bad-client"},
		{"random bytes", [][]byte{randomBytes(4096)}, false, "bad-client"},
		{"silence", nil, false, "bad-client"},
		{"half a hello, then silence", [][]byte{split[:40]}, false, "bad-client"},
		{"half a hello, then the end", [][]byte{split[:40]}, true, "bad-client"},
		{"too large a hello", [][]byte{oversized, oversized}, false, "bad-client"},
		{"no server name", [][]byte{hello("")}, false, "bad-client"},
		{"an unknown name", [][]byte{hello("unknown.lifeboat")}, false, "unknown-name"},
		{"an unknown name, byte by byte", bytes.SplitAfter(split, nil), false, "unknown-name"},
		{"a backend that is gone", [][]byte{hello("gone.shop.receiver.lifeboat")}, false, "backend-unreachable"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := r.count(t, "lifeboat_gateway_refused_total", c.reason)
			conn := must(net.Dial("tcp", r.address))(t)
			defer func() { _ = conn.Close() }()
			for _, part := range c.send {
				// The gateway may have closed already: that is what the read below looks at.
				_, _ = conn.Write(part)
			}
			if c.end {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("read %d bytes, %v: the gateway answered or kept the connection", n, err)
			} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Error("the gateway kept the connection")
			}
			eventually(t, "counted as "+c.reason, func() bool {
				return r.count(t, "lifeboat_gateway_refused_total", c.reason) == before+1
			})
		})
	}
}

func TestAProbeOfThePortIsNoRefusal(t *testing.T) {
	r := start(t, &gateway.Gateway{Router: routes{}})
	conn := must(net.Dial("tcp", r.address))(t)
	_ = conn.Close()
	// A second connection that is refused shows that the first has been looked at: they are counted in no other way.
	bad := must(net.Dial("tcp", r.address))(t)
	defer func() { _ = bad.Close() }()
	_, _ = bad.Write([]byte("x\r\n\r\n........."))
	eventually(t, "the bad client is counted", func() bool { return r.count(t, "lifeboat_gateway_refused_total", "bad-client") >= 1 })
	if n := r.count(t, "lifeboat_gateway_refused_total", "bad-client"); n != 1 {
		t.Errorf("%v refusals", n)
	}
}

// raw passes plain TCP after a ClientHello, which is all the gateway looks at.
func rawBackend(t *testing.T) (address string, accepted chan *net.TCPConn) {
	t.Helper()
	listener := must(endpointtest.Listen())(t)
	t.Cleanup(func() { _ = listener.Close() })
	accepted = make(chan *net.TCPConn, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			accepted <- conn.(*net.TCPConn)
		}
	}()
	return listener.Addr().String(), accepted
}

func connect(t *testing.T, g *gateway.Gateway) (r *running, client, server *net.TCPConn) {
	t.Helper()
	address, accepted := rawBackend(t)
	g.Router = routes{"x.lifeboat": address}
	r = start(t, g)
	client = must(net.Dial("tcp", r.address))(t).(*net.TCPConn)
	hello := clientHello(t, "x.lifeboat")
	must(client.Write(hello))(t)
	server = <-accepted
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	got := make([]byte, len(hello))
	must(io.ReadFull(server, got))(t)
	if !bytes.Equal(got, hello) {
		t.Fatal("the backend was not given the ClientHello as it was sent")
	}
	return r, client, server
}

func TestASilentHalfClosedConnectionEnds(t *testing.T) {
	_, client, server := connect(t, &gateway.Gateway{HalfClosedTimeout: 200 * time.Millisecond})
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// The backend sees the end, says something, and then neither goes on nor closes.
	if n, err := server.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d, %v", n, err)
	}
	must(server.Write([]byte("almost")))(t)
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 6)
	must(io.ReadFull(client, got))(t)
	if n, err := client.Read(got); n != 0 || err == nil {
		t.Errorf("read %d, %v: the connection goes on", n, err)
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Error("the connection was not closed")
	}
}

func TestAHalfClosedConnectionThatStillTalksGoesOn(t *testing.T) {
	_, client, server := connect(t, &gateway.Gateway{HalfClosedTimeout: 400 * time.Millisecond})
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for range 10 { // two and a half times as long as it may be silent
		<-ticker.C
		must(server.Write([]byte("x")))(t)
	}
	_ = server.Close()
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got := must(io.ReadAll(client))(t); len(got) != 10 {
		t.Errorf("%d bytes of 10", len(got))
	}
}

func TestABackendThatBreaksIsSeenByTheClient(t *testing.T) {
	_, client, server := connect(t, &gateway.Gateway{})
	_ = server.SetLinger(0) // closing resets
	_ = server.Close()
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset: what broke must not look ended", err)
	}
}

func TestStoppingLetsConnectionsEndThenCutsThem(t *testing.T) {
	t.Run("one that ends in time", func(t *testing.T) {
		r, client, server := connect(t, &gateway.Gateway{StopTimeout: time.Minute})
		r.stop()
		eventually(t, "no new connection is accepted", func() bool {
			c, err := net.Dial("tcp", r.address)
			if err == nil {
				_ = c.Close()
			}
			return err != nil
		})
		must(client.Write([]byte("still here")))(t)
		got := make([]byte, 10)
		must(io.ReadFull(server, got))(t)
		_ = client.Close()
		_ = server.Close()
		if err := <-r.done; err != nil || string(got) != "still here" {
			t.Errorf("%q %v", got, err)
		}
	})
	t.Run("one that does not", func(t *testing.T) {
		r, client, _ := connect(t, &gateway.Gateway{StopTimeout: 100 * time.Millisecond})
		r.stop()
		if err := <-r.done; err != nil {
			t.Error(err)
		}
		_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := client.Read(make([]byte, 1))
		if ne, ok := errors.AsType[net.Error](err); err == nil || ok && ne.Timeout() {
			t.Errorf("read: %v", err)
		}
	})
}

// clientHello is what a TLS 1.3 client sends first.
func clientHello(t *testing.T, serverName string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	defer func() { _ = far.Close() }()
	go func() {
		_ = tls.Client(near, &tls.Config{MinVersion: tls.VersionTLS13, ServerName: serverName, InsecureSkipVerify: true}).Handshake()
	}()
	head := make([]byte, 5)
	must(io.ReadFull(far, head))(t)
	body := make([]byte, int(head[3])<<8|int(head[4]))
	must(io.ReadFull(far, body))(t)
	return append(head, body...)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	b[0] = 0x16 // looks like TLS at first
	return b
}

func service(namespace, name, clusterIP, port string, labels map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.ServiceSpec{ClusterIP: clusterIP, Ports: []corev1.ServicePort{{Name: "other", Port: 1}, {Name: port, Port: 9444}}}}
}

func TestServicesRouteByServerName(t *testing.T) {
	receiver := func(name string) map[string]string {
		return map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentReceiver, v1alpha1.LabelReplication: name}
	}
	objects := []client.Object{
		service(v1alpha1.SystemNamespace, "lifeboat-manager", "10.0.0.1", "control", nil),
		service("shop", "a", "10.0.0.2", "data", receiver("db")),
		service("shop", "b", "fd00::2", "data", receiver("v6")),
		service("shop", "c", "None", "data", receiver("headless")),
		service("shop", "d", "10.0.0.3", "http", receiver("no-port")),
		service("shop", "e", "10.0.0.4", "data", receiver("twice")),
		service("shop", "f", "10.0.0.5", "data", receiver("twice")),
		service("shop", "g", "", "data", receiver("external")),
		service("shop", "h", "10.0.0.6", "data", map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentManager, v1alpha1.LabelReplication: "no-receiver"}),
	}
	s := gateway.Services{Reader: fake.NewClientBuilder().WithObjects(objects...).Build()}
	for name, want := range map[string]string{
		"manager.lifeboat":                                   "10.0.0.1:9444",
		"db.shop.receiver.lifeboat":                          "10.0.0.2:9444",
		"v6.shop.receiver.lifeboat":                          "[fd00::2]:9444",
		"headless.shop.receiver.lifeboat":                    "",
		"no-port.shop.receiver.lifeboat":                     "",
		"twice.shop.receiver.lifeboat":                       "",
		"external.shop.receiver.lifeboat":                    "",
		"no-receiver.shop.receiver.lifeboat":                 "",
		"db.bank.receiver.lifeboat":                          "",
		"db.shop.receiver.lifeboat.example.com":              "",
		"example.com":                                        "",
		"-bad-.shop.receiver.lifeboat":                       "",
		strings.Repeat("x", 100) + ".shop.receiver.lifeboat": "",
	} {
		got, err := s.Route(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q %v, want %q", name, got, err, want)
		}
	}
}

// The gateway passes connections on where there is no IPv4, and finds backends by IPv6 ClusterIPs.
func TestTheGatewayNeedsNoIPv4(t *testing.T) {
	endpointtest.OnlyIPv6(t, "^(TestBytesPassUnopenedAndEachDirectionEndsByItself|TestTheGatewayDoesNotWeakenTrust|TestServicesRouteByServerName)$")
}

func TestABackendMayHaveAnIPv6Address(t *testing.T) {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "lifeboat-manager"},
		Spec:       corev1.ServiceSpec{ClusterIP: "fd00:10::7", Ports: []corev1.ServicePort{{Name: "control", Port: 9443}}},
	}
	services := gateway.Services{Reader: fake.NewClientBuilder().WithObjects(service).Build()}
	if got, err := services.Route(identity.ManagerServerName); err != nil || got != "[fd00:10::7]:9443" {
		t.Errorf("%s, %v", got, err)
	}
}
