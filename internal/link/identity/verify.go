package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// UntrustedError: the certificate does not chain to the expected CA.
type UntrustedError struct {
	// Want is the identity that was expected.
	Want string
	Err  error
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("the certificate presented for %s is not signed by the CA trusted for it: %v", e.Want, e.Err)
}

func (e *UntrustedError) Unwrap() error { return e.Err }

// WrongIdentityError: the certificate belongs to somebody else.
type WrongIdentityError struct{ Want, Got string }

func (e *WrongIdentityError) Error() string {
	return fmt.Sprintf("the certificate belongs to %s, expected %s", e.Got, e.Want)
}

// ExpiredError: the certificate is not valid at this time; one of the clocks may be wrong.
type ExpiredError struct {
	Want                     string
	NotBefore, NotAfter, Now time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the certificate of %s is valid from %s to %s, and it is %s here: compare the clocks of both clusters",
		e.Want, e.NotBefore.Format(time.RFC3339), e.NotAfter.Format(time.RFC3339), e.Now.Format(time.RFC3339))
}

// Refused reports whether err, from Verify or a handshake, says that an identity did not fit. A connection that
// was cut is not a refusal.
func Refused(err error) bool {
	var untrusted *UntrustedError
	var wrong *WrongIdentityError
	var expired *ExpiredError
	return errors.As(err, &untrusted) || errors.As(err, &wrong) || errors.As(err, &expired)
}

// Verify accepts a chain, leaf first, only if it ends in roots and the leaf's one URI is want. Usage is what the
// other end is in this connection: a client or a server.
func Verify(chain []*x509.Certificate, roots *x509.CertPool, want string, usage x509.ExtKeyUsage, now time.Time) error {
	if len(chain) == 0 {
		return &UntrustedError{Want: want, Err: errors.New("no certificate was presented")}
	}
	leaf := chain[0]
	uri, err := leafURI(leaf)
	if err != nil {
		return &UntrustedError{Want: want, Err: err}
	}
	// The chain is judged before the name: what a stranger's certificate claims is not worth reporting.
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &ExpiredError{Want: want, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Now: now}
	case err != nil:
		return &UntrustedError{Want: want, Err: err}
	case uri.String() != want:
		return &WrongIdentityError{Want: want, Got: uri.String()}
	}
	return nil
}

// ManagerCluster returns the cluster that a certificate claims to be the manager of. The claim is worth nothing
// until Verify has accepted the chain against the CA of that very cluster.
func ManagerCluster(chain []*x509.Certificate) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("no certificate was presented")
	}
	uri, err := leafURI(chain[0])
	if err != nil {
		return "", err
	}
	return managerCluster(uri)
}

func leafURI(leaf *x509.Certificate) (*url.URL, error) {
	if len(leaf.URIs) != 1 {
		return nil, fmt.Errorf("the certificate carries %d identities, expected one", len(leaf.URIs))
	}
	return leaf.URIs[0], nil
}

// Source gives the certificate to present now.
type Source interface {
	Certificate() (*tls.Certificate, error)
}

// ServerConfig is for a server whose clients are judged by verify, which sees the chain, leaf first.
func ServerConfig(own Source, verify func(chain []*x509.Certificate) error) *tls.Config {
	c := base(verify)
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own.Certificate() }
	return c
}

// ClientConfig is for a client that asks for serverName and judges the server by verify, which sees the chain, leaf first.
func ClientConfig(own Source, serverName string, verify func(chain []*x509.Certificate) error) *tls.Config {
	c := base(verify)
	c.ServerName = serverName
	// Server names only route, so the built-in check of the name against public CAs is replaced, not dropped:
	// VerifyConnection runs on every connection and judges chain and URI.
	c.InsecureSkipVerify = true
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own.Certificate() }
	return c
}

// Exactly returns the verify function for one expected identity.
func Exactly(roots *x509.CertPool, want string, usage x509.ExtKeyUsage, now func() time.Time) func([]*x509.Certificate) error {
	return func(chain []*x509.Certificate) error { return Verify(chain, roots, want, usage, now()) }
}

// base has no session tickets: a resumed session would skip nothing of VerifyConnection, but it would present the
// chain of the first connection, and a change of trust must count from the next connection on.
func base(verify func(chain []*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		VerifyConnection:       func(s tls.ConnectionState) error { return verify(s.PeerCertificates) },
	}
}
