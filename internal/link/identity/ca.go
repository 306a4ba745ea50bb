package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// Lifetimes. A CA outlives the software that made it; replacing one is pairing again. A leaf is short so that a
// stolen one is soon worth nothing.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	LeafLifetime = 24 * time.Hour
	// skew is how far the clocks of two clusters may differ before a fresh certificate is refused.
	skew = 10 * time.Minute
)

// CA is the certificate authority of one cluster, with its key.
type CA struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
	keyPEM  []byte
}

// Leaf is an issued certificate with its key, as PEM.
type Leaf struct {
	CertPEM  []byte
	KeyPEM   []byte
	NotAfter time.Time
}

// NewCA makes the CA of a cluster.
func NewCA(cluster string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key of cluster %s: %w", cluster, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("make CA of cluster %s: %w", cluster, err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Lifeboat CA of " + cluster},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA of cluster %s: %w", cluster, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return ParseCA(encodeCert(der), keyPEM)
}

// ParseCA reads a CA from the PEM of its certificate and its key.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := parseCACert(certPEM)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("the CA's key is not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the CA's key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the CA's key is a %T, not an ECDSA key", parsed)
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the CA's key does not belong to the CA's certificate")
	}
	return &CA{cert: cert, key: key, certPEM: bytes.Clone(certPEM), keyPEM: bytes.Clone(keyPEM)}, nil
}

// CertPEM is the public certificate, which a peer needs to trust this cluster.
func (ca *CA) CertPEM() []byte { return bytes.Clone(ca.certPEM) }

// KeyPEM is the private key. It never leaves the cluster's own Secret.
func (ca *CA) KeyPEM() []byte { return bytes.Clone(ca.keyPEM) }

// Issue makes a leaf that carries the URI and the server names, good for LeafLifetime from now as client and server.
func (ca *CA) Issue(uri string, serverNames []string, now time.Time) (Leaf, error) {
	if now.After(ca.cert.NotAfter) {
		return Leaf{}, fmt.Errorf("the CA %q expired on %s: delete its Secret, restart the manager and pair again",
			ca.cert.Subject.CommonName, ca.cert.NotAfter.Format(time.DateOnly))
	}
	parsed, err := url.Parse(uri)
	if err != nil {
		return Leaf{}, fmt.Errorf("issue for %q: %w", uri, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Leaf{}, fmt.Errorf("make key for %s: %w", uri, err)
	}
	serial, err := newSerial()
	if err != nil {
		return Leaf{}, fmt.Errorf("issue for %s: %w", uri, err)
	}
	notAfter := now.Add(LeafLifetime)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-skew),
		NotAfter:              notAfter,
		URIs:                  []*url.URL{parsed},
		DNSNames:              serverNames,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Leaf{}, fmt.Errorf("sign certificate for %s: %w", uri, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Leaf{}, err
	}
	return Leaf{CertPEM: encodeCert(der), KeyPEM: keyPEM, NotAfter: notAfter}, nil
}

// Roots reads a peer's CA certificate, as pairing exchanged it. Several certificates may stand in one file while a
// CA is being replaced.
func Roots(caPEM []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	found := 0
	for rest := caPEM; ; found++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		cert, err := parseCACert(pem.EncodeToMemory(block))
		if err != nil {
			return nil, err
		}
		pool.AddCert(cert)
	}
	if found == 0 {
		return nil, errors.New("no certificate in PEM found")
	}
	return pool, nil
}

// Fingerprint is the SHA-256 of the first certificate, in hex, for people to compare; empty if there is none.
func Fingerprint(caPEM []byte) string {
	block, _ := pem.Decode(caPEM)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

func parseCACert(certPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("the CA's certificate is not a PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the CA's certificate: %w", err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("the certificate %q is not one of a CA", cert.Subject.CommonName)
	}
	return cert, nil
}

func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 120)
	serial, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
