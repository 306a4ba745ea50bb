package cli

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func TestACertificateServesItsHostsAndIsMadeAnewInTime(t *testing.T) {
	now := time.Now()
	data, err := selfSigned([]string{"lists", "lists.system"}, net.ParseIP("10.3.0.9"), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		hosts []string
		at    time.Time
		want  bool
	}{
		{"all its hosts", []string{"lists", "lists.system", "10.3.0.9"}, now, true},
		{"the Service has another address", []string{"lists", "10.3.0.10"}, now, false},
		{"a year later", []string{"lists"}, now.Add(365 * 24 * time.Hour), true},
		{"less than a third is left", []string{"lists"}, now.Add(metadataCertificateFor * 7 / 10), false},
		{"the clock was far ahead when it was made", []string{"lists"}, now.Add(-2 * time.Hour), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := serves(data, c.hosts, c.at); got != c.want {
				t.Errorf("serves %v, want %v", got, c.want)
			}
		})
	}
	if serves(map[string][]byte{corev1.TLSCertKey: data[corev1.TLSCertKey]}, nil, now) {
		t.Error("a certificate without its key serves")
	}
	for _, host := range []string{"lists.system", "10.3.0.9"} {
		if err := shake(t, data, host); err != nil {
			t.Errorf("a client that trusts the certificate refuses host %s: %v", host, err)
		}
	}
	if err := shake(t, data, "10.3.0.10"); err == nil {
		t.Error("a client takes the certificate for another host")
	}
}

// shake makes a TLS connection to a server with the certificate, whose client trusts nothing else.
func shake(t *testing.T, data map[string][]byte, host string) error {
	t.Helper()
	pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data[corev1.TLSCertKey]) {
		t.Fatal("no certificate")
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, conn) // the first read shakes hands
			_ = conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestTheDriversListsAreMadeKnown(t *testing.T) {
	config := servers.Config(t, "install")
	c, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: metadataService},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 6443}}}}
	for _, o := range []client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}, service} {
		if err := c.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := serveMetadata(ctx, c, time.Now(), &out); err != nil || !strings.Contains(out.String(), "does not know the kind SnapshotMetadataService") {
		t.Fatalf("without the kind: %v, says %q", err, out.String())
	}
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{"../snapshot/testdata/snapshotmetadataservices.yaml"}}); err != nil {
		t.Fatal(err)
	}
	made := func(at time.Time) string {
		t.Helper()
		if err := serveMetadata(ctx, c, at, io.Discard); err != nil {
			t.Fatal(err)
		}
		known, err := snapshot.MetadataServiceOf(ctx, c, localDriver)
		if err != nil || known == nil {
			t.Fatalf("the driver's lists: %v %v", known, err)
		}
		if known.Address != service.Spec.ClusterIP+":6443" || known.Audience != localDriver {
			t.Errorf("made known as %+v", known)
		}
		var secret corev1.Secret
		if err := c.Get(ctx, client.ObjectKeyFromObject(service), &secret); err != nil {
			t.Fatal(err)
		}
		if string(secret.Data[corev1.TLSCertKey]) != string(known.CA) {
			t.Error("what clients trust is not what is served")
		}
		if err := shake(t, secret.Data, service.Spec.ClusterIP); err != nil {
			t.Errorf("the address is not served: %v", err)
		}
		return string(known.CA)
	}
	now := time.Now()
	then := now.Add(-metadataCertificateFor * 3 / 4)
	first := made(then)
	if made(then.Add(time.Hour)) != first {
		t.Error("a second install made another certificate")
	}
	if made(now) == first {
		t.Error("a certificate near its end was kept")
	}
}
