package identity

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"
)

// Rotating is a Source that issues itself a new certificate when two thirds of the present one's life are over.
// Nothing runs in the background: the certificate is renewed by the first handshake that needs it.
type Rotating struct {
	issue func(now time.Time) (Leaf, error)
	now   func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
	renewAt time.Time
	expires time.Time
}

// NewRotating makes a Source for one identity issued by ca.
func NewRotating(ca *CA, uri string, serverNames []string, now func() time.Time) *Rotating {
	return &Rotating{
		now:   now,
		issue: func(at time.Time) (Leaf, error) { return ca.Issue(uri, serverNames, at) },
	}
}

// Certificate returns the present certificate, renewed if it is due. A renewal that fails is an error only once
// the present certificate has expired.
func (r *Rotating) Certificate() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if r.current != nil && now.Before(r.renewAt) {
		return r.current, nil
	}
	err := r.renew(now)
	if err != nil && (r.current == nil || now.After(r.expires)) {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return r.current, nil
}

func (r *Rotating) renew(now time.Time) error {
	leaf, err := r.issue(now)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(leaf.CertPEM, leaf.KeyPEM)
	if err != nil {
		return err
	}
	r.current = &pair
	r.expires = leaf.NotAfter
	r.renewAt = now.Add(leaf.NotAfter.Sub(now) * 2 / 3)
	return nil
}
