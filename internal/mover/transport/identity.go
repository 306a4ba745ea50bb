// Package transport carries messages between two movers that trust each other: identities and mutual TLS 1.3, the
// banner, frames over a connection, a bandwidth limit. It knows connections. It never looks into what a message says
// and keeps nothing on disk.
//
// Begin with Material and ClientConfig or ServerConfig, then Stream.
package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
)

// Material is what a side proves itself with and whom it trusts, all PEM. Certificates carry one URI SAN, such as
// lifeboat://east/replication/shop/pg.
type Material struct {
	Cert   []byte // this side's leaf, and intermediates if any
	Key    []byte
	CA     []byte // this cluster's CA: whom to trust inside the cluster
	PeerCA []byte // the peer's CA: whom to trust across the link; empty where only the cluster's own is needed
}

// LoadMaterial reads tls.crt, tls.key, ca.crt and, if there, peer-ca.crt from a folder. Certificates rotate, so it is
// read again for each connection.
func LoadMaterial(dir string) (Material, error) {
	var m Material
	for _, part := range []struct {
		name     string
		to       *[]byte
		optional bool
	}{{"tls.crt", &m.Cert, false}, {"tls.key", &m.Key, false}, {"ca.crt", &m.CA, false}, {"peer-ca.crt", &m.PeerCA, true}} {
		raw, err := os.ReadFile(filepath.Join(dir, part.name))
		if part.optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Material{}, fmt.Errorf("load identity: %w", err)
		}
		*part.to = raw
	}
	return m, nil
}

// FromDir loads from a folder each time it is called.
func FromDir(dir string) func() (Material, error) {
	return func() (Material, error) { return LoadMaterial(dir) }
}

// Untrusted reports that a side is not who it must be, or that the peer said so of this side.
type Untrusted struct {
	Want   string // the identity that was expected
	Found  string // what the certificate says; empty when it is the peer that refused
	Reason string
}

func (u *Untrusted) Error() string {
	if u.Found == "" {
		return fmt.Sprintf("the peer (expected: %s) does not trust this side: %s", u.Want, u.Reason)
	}
	return fmt.Sprintf("the peer is not trusted: expected %s, found %s: %s", u.Want, u.Found, u.Reason)
}

// Verify checks a presented chain: it leads to one of the roots now, and the leaf's only URI SAN is the expected
// identity. It returns *Untrusted.
func Verify(state tls.ConnectionState, rootsPEM []byte, identity string) error {
	if len(state.PeerCertificates) == 0 {
		return &Untrusted{Want: identity, Found: "no certificate", Reason: "a certificate is required"}
	}
	leaf := state.PeerCertificates[0]
	found := identityOf(leaf)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return fmt.Errorf("verify peer %s: the trusted CA holds no certificate", identity)
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return &Untrusted{Want: identity, Found: found, Reason: err.Error()}
	}
	if identity == "" || found != identity {
		return &Untrusted{Want: identity, Found: found, Reason: "its identity is another"}
	}
	return nil
}

func identityOf(leaf *x509.Certificate) string {
	names := make([]string, 0, 1)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		return "a certificate without identity"
	}
	return strings.Join(names, " and ")
}

// Trust says which CA a peer's certificate must lead to.
type Trust int

// The two CAs a mover knows.
const (
	OwnCluster Trust = iota
	PeerCluster
)

func (m Material) roots(t Trust) []byte {
	if t == PeerCluster {
		return m.PeerCA
	}
	return m.CA
}

// ClientConfig is for connecting to a peer of this identity. serverName only routes (SNI): it is never verified,
// because a certificate says who somebody is, not where.
func ClientConfig(m Material, trust Trust, serverName, identity string) (*tls.Config, error) {
	cert, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	roots := m.roots(trust)
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{cert},
		ServerName:         serverName,
		InsecureSkipVerify: true, // the default check is of names; VerifyConnection does chain and identity
		VerifyConnection:   func(s tls.ConnectionState) error { return Verify(s, roots, identity) },
	}, nil
}

// ServerConfig is for accepting a peer of this identity. Material is loaded for each connection.
func ServerConfig(load func() (Material, error), trust Trust, identity string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m, err := load()
			if err != nil {
				return nil, err
			}
			cert, err := tls.X509KeyPair(m.Cert, m.Key)
			if err != nil {
				return nil, fmt.Errorf("load identity: %w", err)
			}
			roots := m.roots(trust)
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{cert},
				ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection does the rest
				VerifyConnection:       func(s tls.ConnectionState) error { return Verify(s, roots, identity) },
				SessionTicketsDisabled: true, // each connection proves itself anew
			}, nil
		},
	}
}

// Alerts by which a TLS peer says that it does not trust this side's certificate (RFC 8446, section 6).
var trustAlerts = []uint64{
	42,  // bad_certificate
	43,  // unsupported_certificate
	44,  // certificate_revoked
	45,  // certificate_expired
	46,  // certificate_unknown
	48,  // unknown_ca
	49,  // access_denied
	116, // certificate_required
}

// Distrusted turns an error of a TLS connection into *Untrusted when it says that the peer refused this side's
// certificate, else it returns err as it is. In TLS 1.3 a client learns this with its first read, after the handshake.
func Distrusted(err error, identity string) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return err
	}
	// crypto/tls keeps its alert type to itself; its number is all there is to branch on.
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return err
	}
	for _, a := range trustAlerts {
		if v.Uint() == a {
			return &Untrusted{Want: identity, Reason: op.Err.Error()}
		}
	}
	return err
}
