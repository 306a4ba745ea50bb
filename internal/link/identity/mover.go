package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"time"
)

// Keys of a mover's identity Secret, which are the file names under its mount.
const (
	FileCert   = "tls.crt"
	FileKey    = "tls.key"
	FileCA     = "ca.crt"
	FilePeerCA = "peer-ca.crt"
)

// IssueMoverSecretData returns what a mover of one Replication needs to prove itself and to judge the other side: its own
// certificate and key, its cluster's CA (who may read its state) and the peer's CA (who may send or receive). The
// certificate also answers to the receiver's server name. Renew it when RenewAt says so: a running mover keeps
// the connection it has, a new one needs a certificate that lives.
func IssueMoverSecretData(ca *CA, cluster, namespace, replication string, peerCAPEM []byte, now time.Time) (map[string][]byte, time.Time, error) {
	leaf, err := ca.Issue(ReplicationURI(cluster, namespace, replication),
		[]string{ReceiverServerName(namespace, replication)}, now)
	if err != nil {
		return nil, time.Time{}, err
	}
	if _, err := Roots(peerCAPEM); err != nil {
		return nil, time.Time{}, err
	}
	return map[string][]byte{
		FileCert:   leaf.CertPEM,
		FileKey:    leaf.KeyPEM,
		FileCA:     ca.CertPEM(),
		FilePeerCA: peerCAPEM,
	}, RenewAt(leaf.NotAfter), nil
}

// RenewAt is when a leaf that is good until notAfter shall be replaced: two thirds of its life are over then.
func RenewAt(notAfter time.Time) time.Time {
	return notAfter.Add(-LeafLifetime / 3)
}

// MoverSecretDue reports whether the data of a mover's identity Secret must be issued anew: it is incomplete, due
// for renewal, or one of the two CAs changed.
func MoverSecretDue(data map[string][]byte, ca *CA, peerCAPEM []byte, now time.Time) bool {
	if len(data[FileKey]) == 0 || !bytes.Equal(data[FileCA], ca.certPEM) || !bytes.Equal(data[FilePeerCA], peerCAPEM) {
		return true
	}
	block, _ := pem.Decode(data[FileCert])
	if block == nil {
		return true
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.CheckSignatureFrom(ca.cert) != nil {
		return true
	}
	return !now.Before(RenewAt(leaf.NotAfter))
}
