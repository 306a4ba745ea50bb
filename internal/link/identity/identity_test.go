package identity_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/link/identity"
)

var noon = time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newCA(t *testing.T, cluster string) *identity.CA {
	t.Helper()
	return must(identity.NewCA(cluster, noon))(t)
}

func chainOf(t *testing.T, leaf identity.Leaf) []*x509.Certificate {
	t.Helper()
	pair := must(tls.X509KeyPair(leaf.CertPEM, leaf.KeyPEM))(t)
	return []*x509.Certificate{pair.Leaf}
}

func TestVerifyWantsTheRightCAAndTheRightName(t *testing.T) {
	east, west := newCA(t, "east"), newCA(t, "west")
	uri := identity.ManagerURI("east")
	leaf := must(east.Issue(uri, nil, noon))(t)
	roots := must(identity.Roots(east.CertPEM()))(t)
	client := x509.ExtKeyUsageClientAuth

	var untrusted *identity.UntrustedError
	var wrong *identity.WrongIdentityError
	var expired *identity.ExpiredError
	cases := []struct {
		name  string
		chain []*x509.Certificate
		roots *x509.CertPool
		want  string
		at    time.Time
		as    any
	}{
		{"all right", chainOf(t, leaf), roots, uri, noon, nil},
		{"all right with a clock ten minutes behind", chainOf(t, leaf), roots, uri, noon.Add(-9 * time.Minute), nil},
		{"all right in the last minute", chainOf(t, leaf), roots, uri, noon.Add(identity.LeafLifetime - time.Minute), nil},
		{"another CA", chainOf(t, leaf), must(identity.Roots(west.CertPEM()))(t), uri, noon, &untrusted},
		{"another name by the right CA", chainOf(t, must(east.Issue(identity.ReplicationURI("east", "shop", "db"), nil, noon))(t)), roots, uri, noon, &wrong},
		{"the right name by another CA", chainOf(t, must(west.Issue(uri, nil, noon))(t)), roots, uri, noon, &untrusted},
		{"expired", chainOf(t, leaf), roots, uri, noon.Add(identity.LeafLifetime + time.Minute), &expired},
		{"not yet valid", chainOf(t, leaf), roots, uri, noon.Add(-time.Hour), &expired},
		{"nothing", nil, roots, uri, noon, &untrusted},
		{"the CA itself", []*x509.Certificate{parseCert(t, east.CertPEM())}, roots, uri, noon, &untrusted},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := identity.Verify(c.chain, c.roots, c.want, client, c.at)
			switch {
			case c.as == nil && err != nil:
				t.Fatal(err)
			case c.as != nil && !errors.As(err, c.as):
				t.Fatalf("%T %v, want %T", err, err, c.as)
			case identity.Refused(err) != (c.as != nil):
				t.Errorf("Refused(%v) is wrong", err)
			}
		})
	}
}

func parseCert(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	return must(x509.ParseCertificate(block.Bytes))(t)
}

func TestManagerClusterTakesManagersOnly(t *testing.T) {
	ca := newCA(t, "east")
	for uri, want := range map[string]string{
		identity.ManagerURI("east"):                   "east",
		identity.ReplicationURI("east", "shop", "db"): "",
		"lifeboat://east/manager/":                    "",
		"lifeboat://east/manager?x=1":                 "",
		"lifeboat://user@east/manager":                "",
		"spiffe://east/manager":                       "",
		"lifeboat:///manager":                         "",
	} {
		got, err := identity.ManagerCluster(chainOf(t, must(ca.Issue(uri, nil, noon))(t)))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", uri, got, err)
		}
	}
}

// handshake connects a client and a server over loopback and returns what each end said.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer func() { _ = listener.Close() }()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = conn.Close() }()
		s := tls.Server(conn, server)
		if err := s.Handshake(); err != nil {
			done <- err
			return
		}
		_, err = s.Write([]byte("welcome"))
		done <- err
	}()
	conn := must(net.Dial("tcp", listener.Addr().String()))(t)
	defer func() { _ = conn.Close() }()
	c := tls.Client(conn, client)
	_, clientErr = c.Read(make([]byte, 7))
	return <-done, clientErr
}

func TestHandshakeIsMutualAndTLS13(t *testing.T) {
	east, west := newCA(t, "east"), newCA(t, "west")
	clock := func() time.Time { return noon }
	source := func(ca *identity.CA, uri string) identity.Source { return identity.NewRotating(ca, uri, nil, clock) }
	serverConfig := func() *tls.Config {
		return identity.ServerConfig(source(west, identity.ManagerURI("west")),
			identity.Exactly(must(identity.Roots(east.CertPEM()))(t), identity.ManagerURI("east"), x509.ExtKeyUsageClientAuth, clock))
	}
	clientConfig := func() *tls.Config {
		return identity.ClientConfig(source(east, identity.ManagerURI("east")), identity.ManagerServerName,
			identity.Exactly(must(identity.Roots(west.CertPEM()))(t), identity.ManagerURI("west"), x509.ExtKeyUsageServerAuth, clock))
	}
	t.Run("both fit", func(t *testing.T) {
		if s, c := handshake(t, serverConfig(), clientConfig()); s != nil || c != nil {
			t.Errorf("server %v, client %v", s, c)
		}
	})
	t.Run("TLS 1.2 is refused by the server", func(t *testing.T) {
		old := clientConfig()
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if s, c := handshake(t, serverConfig(), old); s == nil || c == nil {
			t.Errorf("server %v, client %v", s, c)
		}
	})
	t.Run("TLS 1.2 is refused by the client", func(t *testing.T) {
		old := serverConfig()
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if s, c := handshake(t, old, clientConfig()); s == nil || c == nil {
			t.Errorf("server %v, client %v", s, c)
		}
	})
	t.Run("a client without a certificate is refused", func(t *testing.T) {
		bare := clientConfig()
		bare.GetClientCertificate = nil
		if s, c := handshake(t, serverConfig(), bare); s == nil || c == nil {
			t.Errorf("server %v, client %v", s, c)
		}
	})
	t.Run("a server of another name is refused", func(t *testing.T) {
		other := serverConfig()
		other.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return source(west, identity.ManagerURI("south")).Certificate()
		}
		_, c := handshake(t, other, clientConfig())
		var wrong *identity.WrongIdentityError
		if !errors.As(c, &wrong) {
			t.Errorf("client %v", c)
		}
	})
}

func TestACertificateIsRenewedAtTwoThirdsOfItsLife(t *testing.T) {
	now := noon
	r := identity.NewRotating(newCA(t, "east"), identity.ManagerURI("east"), nil, func() time.Time { return now })
	first := must(r.Certificate())(t)
	now = noon.Add(15*time.Hour + 59*time.Minute)
	if again := must(r.Certificate())(t); again != first {
		t.Error("renewed too early")
	}
	now = noon.Add(16*time.Hour + time.Minute)
	second := must(r.Certificate())(t)
	if second == first || !second.Leaf.NotAfter.Equal(now.Add(identity.LeafLifetime)) {
		t.Errorf("not renewed: good until %s", second.Leaf.NotAfter)
	}
}

func TestAMoversSecretIsIssuedAnewWhenItMust(t *testing.T) {
	east, west := newCA(t, "east"), newCA(t, "west")
	data, renewAt, err := identity.IssueMoverSecretData(east, "east", "shop", "db", west.CertPEM(), noon)
	if err != nil {
		t.Fatal(err)
	}
	if !renewAt.Equal(noon.Add(16 * time.Hour)) {
		t.Errorf("renew at %s", renewAt)
	}
	pair := must(tls.X509KeyPair(data[identity.FileCert], data[identity.FileKey]))(t)
	err = identity.Verify([]*x509.Certificate{pair.Leaf}, must(identity.Roots(data[identity.FileCA]))(t), "lifeboat://east/replication/shop/db", x509.ExtKeyUsageServerAuth, noon)
	if err != nil || pair.Leaf.DNSNames[0] != "db.shop.receiver.lifeboat" {
		t.Errorf("%v %v", err, pair.Leaf.DNSNames)
	}
	without := func(file string) map[string][]byte {
		changed := map[string][]byte{}
		for k, v := range data {
			if k != file {
				changed[k] = v
			}
		}
		return changed
	}
	for name, c := range map[string]struct {
		data   map[string][]byte
		ca     *identity.CA
		peerCA []byte
		now    time.Time
		want   bool
	}{
		"fresh":               {data, east, west.CertPEM(), noon.Add(15 * time.Hour), false},
		"due":                 {data, east, west.CertPEM(), noon.Add(17 * time.Hour), true},
		"another peer CA":     {data, east, newCA(t, "west").CertPEM(), noon, true},
		"another own CA":      {data, newCA(t, "east"), west.CertPEM(), noon, true},
		"without a key":       {without(identity.FileKey), east, west.CertPEM(), noon, true},
		"without certificate": {without(identity.FileCert), east, west.CertPEM(), noon, true},
		"empty":               {nil, east, west.CertPEM(), noon, true},
	} {
		if got := identity.MoverSecretDue(c.data, c.ca, c.peerCA, c.now); got != c.want {
			t.Errorf("%s: due %t, want %t", name, got, c.want)
		}
	}
}

func TestParseCARefusesWhatIsNoCA(t *testing.T) {
	east, west := newCA(t, "east"), newCA(t, "west")
	leaf := must(east.Issue(identity.ManagerURI("east"), nil, noon))(t)
	for name, c := range map[string]struct{ cert, key []byte }{
		"empty":           {nil, nil},
		"garbage":         {[]byte("x"), []byte("y")},
		"another's key":   {east.CertPEM(), west.KeyPEM()},
		"a leaf":          {leaf.CertPEM, leaf.KeyPEM},
		"key is no PEM":   {east.CertPEM(), []byte("y")},
		"cert and no key": {east.CertPEM(), nil},
	} {
		if _, err := identity.ParseCA(c.cert, c.key); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if again := must(identity.ParseCA(east.CertPEM(), east.KeyPEM()))(t); !bytes.Equal(again.CertPEM(), east.CertPEM()) {
		t.Error("a CA does not survive being written and read")
	}
	if _, err := identity.Roots(leaf.CertPEM); err == nil {
		t.Error("a leaf was taken as a root")
	}
	if _, err := identity.Roots([]byte("no PEM")); err == nil {
		t.Error("no certificate at all was taken as a root")
	}
	both := must(identity.Roots(append(east.CertPEM(), west.CertPEM()...)))(t)
	if err := identity.Verify(chainOf(t, leaf), both, identity.ManagerURI("east"), x509.ExtKeyUsageClientAuth, noon); err != nil {
		t.Errorf("two CAs in one file: %v", err)
	}
}

func TestReceiverServerNamesComeBack(t *testing.T) {
	for _, c := range [][2]string{{"shop", "db"}, {"shop", "db.v2"}, {"a", "b"}} {
		namespace, name, ok := identity.ParseReceiverServerName(identity.ReceiverServerName(c[0], c[1]))
		if !ok || namespace != c[0] || name != c[1] {
			t.Errorf("%v became %s/%s %t", c, namespace, name, ok)
		}
	}
	for _, bad := range []string{"", "manager.lifeboat", "receiver.lifeboat", "shop.receiver.lifeboat", ".shop.receiver.lifeboat", "db..receiver.lifeboat", "db.shop.receiver.lifeboat.evil"} {
		if namespace, name, ok := identity.ParseReceiverServerName(bad); ok {
			t.Errorf("%q was read as %s/%s", bad, namespace, name)
		}
	}
}
