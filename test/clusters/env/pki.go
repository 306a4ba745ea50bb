package env

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one purpose in one cluster.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// writeKeys makes a cluster's keys and certificates once; they are kept as long as its data. The mark is written last:
// without it, what a killed call left is made anew.
func writeKeys(c Cluster, host net.IP) error {
	dir := c.path("pki")
	mark := filepath.Join(dir, "complete")
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(dir, "ca", c.Name+"-ca")
	if err != nil {
		return err
	}
	front, err := newAuthority(dir, "front-proxy-ca", c.Name+"-front-proxy-ca")
	if err != nil {
		return err
	}
	node, service := net.IP(c.Node.AsSlice()), net.IP(c.APIService().AsSlice())
	issue := []struct {
		by   *authority
		file string
		want x509.Certificate
	}{
		{ca, "apiserver", x509.Certificate{
			Subject:     pkix.Name{CommonName: "kube-apiserver"},
			DNSNames:    []string{"localhost", c.Name, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
			IPAddresses: []net.IP{node, service, net.IPv4(127, 0, 0, 1), host},
		}},
		{ca, "kubelet", x509.Certificate{
			Subject:  pkix.Name{CommonName: "system:node:" + c.Name, Organization: []string{"system:nodes"}},
			DNSNames: []string{c.Name}, IPAddresses: []net.IP{node},
		}},
		{ca, "apiserver-kubelet-client", client("kube-apiserver-kubelet-client", "system:masters")},
		{ca, "controller-manager", client("system:kube-controller-manager", "")},
		{ca, "scheduler", client("system:kube-scheduler", "")},
		{ca, "proxy", client("system:kube-proxy", "")},
		{ca, "admin", client("admin", "system:masters")},
		{front, "front-proxy-client", client("front-proxy-client", "")},
	}
	for _, i := range issue {
		if err := i.by.issue(dir, i.file, i.want); err != nil {
			return fmt.Errorf("certificate %s: %w", i.file, err)
		}
	}
	if _, err := newKey(dir, "service-account"); err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o600)
}

func client(user, group string) x509.Certificate {
	name := pkix.Name{CommonName: user}
	if group != "" {
		name.Organization = []string{group}
	}
	return x509.Certificate{Subject: name}
}

// Nobody renews them, so they outlive any test.
const validity = 10 * 365 * 24 * time.Hour

func newAuthority(dir, file, name string) (*authority, error) {
	key, err := newKey(dir, file)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key}, writePEM(filepath.Join(dir, file+".crt"), "CERTIFICATE", der)
}

func (a *authority) issue(dir, file string, want x509.Certificate) error {
	key, err := newKey(dir, file)
	if err != nil {
		return err
	}
	want.KeyUsage = x509.KeyUsageDigitalSignature
	want.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(want.DNSNames) > 0 {
		want.ExtKeyUsage = append(want.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := sign(&want, a.cert, key, a.key)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, file+".crt"), "CERTIFICATE", der)
}

func sign(want, parent *x509.Certificate, key, by *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	want.SerialNumber = serial
	want.NotBefore = time.Now().Add(-time.Hour)
	want.NotAfter = want.NotBefore.Add(validity)
	return x509.CreateCertificate(rand.Reader, want, parent, key.Public(), by)
}

func newKey(dir, file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(filepath.Join(dir, file+".key"), "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	mode := os.FileMode(0o644)
	if kind != "CERTIFICATE" {
		mode = 0o600
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
