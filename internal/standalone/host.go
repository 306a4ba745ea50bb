// Package standalone replicates between two hosts that have no Kubernetes: who a host is and whom it trusts (Host), what
// a source remembers between two runs (ledger, instant), one source with its targets (Sender), and a target that makes
// its files when the first source comes (Receiver). The sessions themselves are internal/mover/engine's.
//
// It knows folders, files and networks; it prints nothing and ends no process. Begin with Host, then Sender.Run and
// Receiver.Run.
package standalone

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/transport"
)

// Files of a host's folder, besides those that internal/link/identity names. peerDir has one certificate of a CA for
// each host that is trusted, under its name.
const (
	fileCAKey  = "ca.key"
	peerDir    = "peers"
	peerSuffix = ".crt"
	// caOf begins the subject of a host's CA; the host's name follows.
	caOf = "Lifeboat CA of "
)

// hostName is what a host may be called: it stands in an identity and in file names.
var hostName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?$`)

// URI is the identity of a host.
func URI(name string) string { return "lifeboat://" + name }

// Host is this host's own certificate authority and whom it trusts, in a folder that only its owner can read. The
// certificate it presents lives for a day and is issued anew whenever it is needed.
type Host struct {
	Dir  string
	Name string
	ca   *identity.CA
	now  func() time.Time

	mu   sync.Mutex
	leaf identity.Leaf
}

// Peer is a host that is trusted.
type Peer struct {
	Name        string
	Fingerprint string // SHA-256 of its CA's certificate, in hexadecimal
	NotAfter    time.Time
	pem         []byte
}

// CreateHost makes the identity of a host in a folder. Where it is there already, it is kept.
func CreateHost(dir, name string, now func() time.Time) (*Host, error) {
	if !hostName.MatchString(name) {
		return nil, &engine.ConfigError{Field: "name", Found: fmt.Sprintf("%q", name), Want: "give lower-case letters, digits, dots and dashes, such as east"}
	}
	if err := os.MkdirAll(filepath.Join(dir, peerDir), 0o700); err != nil {
		return nil, fmt.Errorf("make identity folder: %w", err)
	}
	// The key is written first and the certificate last: a folder with a certificate is whole.
	_, err := os.Stat(filepath.Join(dir, identity.FileCA))
	if errors.Is(err, os.ErrNotExist) {
		ca, err := identity.NewCA(name, now())
		if err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(dir, fileCAKey), ca.KeyPEM()); err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(dir, identity.FileCA), ca.CertPEM()); err != nil {
			return nil, err
		}
	}
	h, err := OpenHost(dir, now)
	if err != nil {
		return nil, err
	}
	if h.Name != name {
		return nil, &engine.ConfigError{Field: "--dir", Found: dir + ", the identity of " + h.Name, Want: "give each host a folder of its own"}
	}
	return h, nil
}

// OpenHost reads the identity of a host, and renews the certificate in its folder if that is due.
func OpenHost(dir string, now func() time.Time) (*Host, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, identity.FileCA))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &engine.ConfigError{Field: "identity", Found: dir + ", where there is none", Want: "make one with: lifeboat identity NAME --dir " + dir}
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, fileCAKey))
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	ca, err := identity.ParseCA(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read identity %s: %w", dir, err)
	}
	peer, err := parsePeer(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read identity %s: %w", dir, err)
	}
	h := &Host{Dir: dir, Name: peer.Name, ca: ca, now: now}
	if now().After(peer.NotAfter) {
		return nil, &engine.ConfigError{Field: "identity", Found: dir + ", whose CA expired on " + peer.NotAfter.Format(time.DateOnly),
			Want: "make a new identity in another folder and have the peers trust it"}
	}
	return h, h.refresh()
}

// refresh keeps the certificate in the folder fresh, for those who read it there.
func (h *Host) refresh() error {
	raw, err := os.ReadFile(filepath.Join(h.Dir, identity.FileCert))
	if err == nil {
		if cert := parseCert(raw); cert != nil && h.now().Before(identity.RenewAt(cert.NotAfter)) {
			return nil
		}
	}
	leaf, err := h.certificate()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(h.Dir, identity.FileKey), leaf.KeyPEM); err != nil {
		return err
	}
	return writeFile(filepath.Join(h.Dir, identity.FileCert), leaf.CertPEM)
}

// certificate is the one to present now.
func (h *Host) certificate() (identity.Leaf, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if h.leaf.CertPEM != nil && now.Before(identity.RenewAt(h.leaf.NotAfter)) {
		return h.leaf, nil
	}
	leaf, err := h.ca.Issue(URI(h.Name), nil, now)
	if err != nil {
		return identity.Leaf{}, err
	}
	h.leaf = leaf
	return leaf, nil
}

// Certificate is the certificate of the host's CA, PEM: what a peer needs to trust it. It is no secret.
func (h *Host) Certificate() []byte { return h.ca.CertPEM() }

// Self is this host as its peers see it.
func (h *Host) Self() Peer {
	p, _ := parsePeer(h.ca.CertPEM()) // OpenHost has read it
	return p
}

// Trust trusts the host whose CA's certificate this is. Another certificate for a name that is trusted already is
// refused, unless it is to replace that one.
func (h *Host) Trust(certPEM []byte, replace bool) (Peer, error) {
	p, err := parsePeer(certPEM)
	if err != nil {
		return Peer{}, &engine.ConfigError{Field: "certificate", Found: "not usable: " + err.Error(),
			Want: "give the output of `lifeboat identity show --certificate` of the other host"}
	}
	if p.Name == h.Name {
		return Peer{}, &engine.ConfigError{Field: "certificate", Found: "that of a host called " + p.Name + ", as this one is", Want: "give the certificate of the other host; two hosts need two names"}
	}
	known, err := h.Peers()
	if err != nil {
		return Peer{}, err
	}
	for _, k := range known {
		if k.Name == p.Name && k.Fingerprint != p.Fingerprint && !replace {
			return Peer{}, &engine.ConfigError{Field: "certificate", Found: "another one for " + p.Name + " than is trusted: " + p.Fingerprint + " instead of " + k.Fingerprint,
				Want: "compare it with `lifeboat identity show` on " + p.Name + "; if it is right, give --replace"}
		}
	}
	if err := writeFile(filepath.Join(h.Dir, peerDir, p.Name+peerSuffix), p.pem); err != nil {
		return Peer{}, err
	}
	return p, h.publishPeer()
}

// Distrust trusts a host no more. A process that runs goes on with what it began with.
func (h *Host) Distrust(name string) error {
	p, err := h.Peer(name)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(h.Dir, peerDir, p.Name+peerSuffix)); err != nil {
		return fmt.Errorf("distrust %s: %w", p.Name, err)
	}
	return h.publishPeer()
}

// publishPeer keeps the file that names the one peer, for those who read the folder as a mover does. With several
// peers there is none: whoever has one CA's trust must not speak for another.
func (h *Host) publishPeer() error {
	peers, err := h.Peers()
	if err != nil {
		return err
	}
	path := filepath.Join(h.Dir, identity.FilePeerCA)
	if len(peers) == 1 {
		return writeFile(path, peers[0].pem)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("several peers: %w", err)
	}
	return nil
}

// Peers are all that are trusted, by name.
func (h *Host) Peers() ([]Peer, error) {
	entries, err := os.ReadDir(filepath.Join(h.Dir, peerDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	var out []Peer
	for _, e := range entries {
		name, found := strings.CutSuffix(e.Name(), peerSuffix)
		if !found {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(h.Dir, peerDir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read peer %s: %w", name, err)
		}
		p, err := parsePeer(raw)
		if err != nil {
			return nil, fmt.Errorf("read peer %s: %w", name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// Peer finds a peer by name; an empty name is the only one there is.
func (h *Host) Peer(name string) (Peer, error) {
	peers, err := h.Peers()
	if err != nil {
		return Peer{}, err
	}
	names := make([]string, len(peers))
	for i, p := range peers {
		if p.Name == name || name == "" && len(peers) == 1 {
			return p, nil
		}
		names[i] = p.Name
	}
	known := "nobody is trusted yet"
	if len(names) > 0 {
		known = "trusted are " + strings.Join(names, ", ")
	}
	found := fmt.Sprintf("%q", name)
	if name == "" {
		found = "missing"
	}
	return Peer{}, &engine.ConfigError{Field: "peer", Found: found, Want: known + "; trust a host with: lifeboat identity trust CERTIFICATE"}
}

// material is what a connection to a peer proves itself with, fresh at each call.
func (h *Host) material(p Peer) func() (transport.Material, error) {
	return func() (transport.Material, error) {
		leaf, err := h.certificate()
		if err != nil {
			return transport.Material{}, err
		}
		return transport.Material{Cert: leaf.CertPEM, Key: leaf.KeyPEM, CA: h.ca.CertPEM(), PeerCA: p.pem}, nil
	}
}

// parsePeer reads the certificate of a host's CA. The host's name is in its subject.
func parsePeer(raw []byte) (Peer, error) {
	if _, err := identity.Roots(raw); err != nil {
		return Peer{}, err
	}
	block, _ := pem.Decode(raw)
	cert := parseCert(raw)
	name, found := strings.CutPrefix(cert.Subject.CommonName, caOf)
	if !found || !hostName.MatchString(name) {
		return Peer{}, fmt.Errorf("the certificate %q is not one of a host's CA", cert.Subject.CommonName)
	}
	// Only the first one is kept: a second one would be trusted unseen.
	return Peer{Name: name, Fingerprint: identity.Fingerprint(raw), NotAfter: cert.NotAfter, pem: pem.EncodeToMemory(block)}, nil
}

func parseCert(raw []byte) *x509.Certificate {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

// writeFile replaces a file that only its owner can read, whole or not at all.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
