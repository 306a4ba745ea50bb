package standalone

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// clock is wound by hand.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newClock() *clock { return &clock{time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)} }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t *testing.T, name string, c *clock) *Host {
	t.Helper()
	h, err := CreateHost(filepath.Join(t.TempDir(), name), name, c.now)
	must(t, err)
	return h
}

// goodFor says until when a certificate is good, in hours from now.
func goodFor(t *testing.T, certPEM []byte, now time.Time) time.Duration {
	t.Helper()
	cert := parseCert(certPEM)
	if cert == nil {
		t.Fatalf("no certificate: %q", certPEM)
	}
	return cert.NotAfter.Sub(now)
}

// A process that runs for weeks presents a certificate that is good, without writing any file; who comes later finds a
// good one in the folder.
func TestCertificatesAreRenewedWhereTheyAreUsed(t *testing.T) {
	c := newClock()
	east, west := newHost(t, "east", c), newHost(t, "west", c)
	peer, err := east.Trust(west.Certificate(), false)
	must(t, err)
	load := east.material(peer)
	first, err := load()
	must(t, err)
	c.at = c.at.Add(10 * time.Hour)
	if again, err := load(); err != nil || !bytes.Equal(again.Cert, first.Cert) {
		t.Errorf("after 10 hours the certificate is another one, %v", err)
	}
	c.at = c.at.Add(30 * 24 * time.Hour)
	later, err := load()
	must(t, err)
	if left := goodFor(t, later.Cert, c.at); left < 20*time.Hour {
		t.Errorf("after a month the certificate is good for %s", left)
	}
	onDisk := func() []byte {
		raw, err := os.ReadFile(filepath.Join(east.Dir, "tls.crt"))
		must(t, err)
		return raw
	}
	if left := goodFor(t, onDisk(), c.at); left > 0 {
		t.Errorf("the file was renewed by a process that only uses it: good for %s", left)
	}
	_, err = OpenHost(east.Dir, c.now)
	must(t, err)
	if left := goodFor(t, onDisk(), c.at); left < 20*time.Hour {
		t.Errorf("the next process finds a certificate that is good for %s", left)
	}
}

// The CA lives for ten years; what comes then is said before anything is tried.
func TestACAThatExpiredIsSaid(t *testing.T) {
	c := newClock()
	east := newHost(t, "east", c)
	if life := east.Self().NotAfter.Sub(c.at); life < 3649*24*time.Hour {
		t.Errorf("the CA is good for %s", life)
	}
	c.at = c.at.Add(3651 * 24 * time.Hour)
	var wrong *engine.ConfigError
	if _, err := OpenHost(east.Dir, c.now); !errors.As(err, &wrong) {
		t.Errorf("opened with %v", err)
	}
}

// What a peer sends is trusted for its own name, and nothing that follows it in the same file is.
func TestOnlyOneCertificateIsTaken(t *testing.T) {
	c := newClock()
	east, west, north := newHost(t, "east", c), newHost(t, "west", c), newHost(t, "north", c)
	peer, err := east.Trust(append(west.Certificate(), north.Certificate()...), false)
	must(t, err)
	m, err := east.material(peer)()
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(m.PeerCA)
	only := x509.NewCertPool()
	only.AppendCertsFromPEM(west.Certificate())
	if !pool.Equal(only) {
		t.Error("a certificate that came along is trusted too")
	}
	leaf, err := west.certificate()
	must(t, err)
	for name, raw := range map[string][]byte{"a leaf": leaf.CertPEM, "itself": east.Certificate(), "nonsense": []byte("x")} {
		var wrong *engine.ConfigError
		if _, err := east.Trust(raw, false); !errors.As(err, &wrong) {
			t.Errorf("trusting %s ended with %v", name, err)
		}
	}
}

// Making an identity again changes nothing, and a folder is one host's.
func TestAnIdentityStays(t *testing.T) {
	c := newClock()
	east := newHost(t, "east", c)
	again, err := CreateHost(east.Dir, "east", c.now)
	must(t, err)
	if !bytes.Equal(again.Certificate(), east.Certificate()) {
		t.Error("the CA was replaced")
	}
	var wrong *engine.ConfigError
	if _, err := CreateHost(east.Dir, "west", c.now); !errors.As(err, &wrong) {
		t.Errorf("another host in the same folder: %v", err)
	}
}
