// Package trust knows where a cluster keeps what it trusts: its own CA, the CAs of its peers, and the ClusterPair
// that says what each peer may do. It turns those objects into the values of package identity.
//
// It judges no certificate and speaks to no peer. Begin with EnsureCA and Reader.
package trust

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// Names of the objects, all in lifeboat-system.
const (
	// CAName names the Secret with the cluster's CA (tls.crt, tls.key) and the ConfigMap with its certificate alone (ca.crt).
	CAName = "lifeboat-ca"
	// KeyCA is the key of a CA certificate in a trust Secret and in the ConfigMap.
	KeyCA = "ca.crt"
)

// SecretName is the trust Secret that pairing makes for a peer.
func SecretName(peer string) string { return "lifeboat-trust-" + peer }

// EnsureCA returns the cluster's CA, made on first use, and keeps its certificate where pairing can read it without
// seeing the key. Two managers that start at once agree on the one that was written first.
func EnsureCA(ctx context.Context, c client.Client, cluster string, now time.Time) (*identity.CA, error) {
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: CAName}
	var secret corev1.Secret
	err := c.Get(ctx, key, &secret)
	if apierrors.IsNotFound(err) {
		if err := createCA(ctx, c, cluster, now); err != nil {
			return nil, err
		}
		err = c.Get(ctx, key, &secret)
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", key, err)
	}
	ca, err := identity.ParseCA(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("Secret %s: %w", key, err)
	}
	return ca, publish(ctx, c, ca)
}

// createCA writes a new CA unless somebody else was first, which is not an error.
func createCA(ctx context.Context, c client.Client, cluster string, now time.Time) error {
	ca, err := identity.NewCA(cluster, now)
	if err != nil {
		return err
	}
	err = c.Create(ctx, &corev1.Secret{
		ObjectMeta: systemMeta(CAName),
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: ca.CertPEM(), corev1.TLSPrivateKeyKey: ca.KeyPEM()},
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create Secret %s/%s: %w", v1alpha1.SystemNamespace, CAName, err)
	}
	return nil
}

func publish(ctx context.Context, c client.Client, ca *identity.CA) error {
	want := &corev1.ConfigMap{ObjectMeta: systemMeta(CAName), Data: map[string]string{KeyCA: string(ca.CertPEM())}}
	var have corev1.ConfigMap
	err := c.Get(ctx, client.ObjectKeyFromObject(want), &have)
	switch {
	case apierrors.IsNotFound(err):
		err = client.IgnoreAlreadyExists(c.Create(ctx, want))
	case err == nil && have.Data[KeyCA] != want.Data[KeyCA]:
		have.Data = want.Data
		err = c.Update(ctx, &have)
	}
	if err != nil {
		return fmt.Errorf("publish CA certificate in ConfigMap %s/%s: %w", v1alpha1.SystemNamespace, CAName, err)
	}
	return nil
}

func systemMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: v1alpha1.SystemNamespace,
		Name:      name,
		Labels:    map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat},
	}
}

// NoPairError: no ClusterPair names this peer.
type NoPairError struct{ Peer string }

func (e *NoPairError) Error() string {
	return fmt.Sprintf("no ClusterPair has spec.peerCluster %q: pair the clusters with lifeboat pair", e.Peer)
}

// AmbiguousError: several ClusterPairs name the same peer, so what it may do is not known.
type AmbiguousError struct {
	Peer  string
	Pairs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("the ClusterPairs %s all have spec.peerCluster %q: delete all but one", strings.Join(e.Pairs, ", "), e.Peer)
}

// SecretError: the trust Secret of a pair gives no CA.
type SecretError struct {
	Pair, Secret string
	Err          error
}

func (e *SecretError) Error() string {
	return fmt.Sprintf("ClusterPair %s: spec.trustSecretName: Secret %s/%s gives no CA certificate (%v): run lifeboat pair again",
		e.Pair, v1alpha1.SystemNamespace, e.Secret, e.Err)
}

func (e *SecretError) Unwrap() error { return e.Err }

// Reader reads pairs and their trust. Both are read anew each time, so that a changed pair or Secret counts at once.
type Reader struct {
	client.Reader
}

// PairFor returns the one ClusterPair whose peer is the named cluster.
func (r Reader) PairFor(ctx context.Context, peer string) (*v1alpha1.ClusterPair, error) {
	var pairs v1alpha1.ClusterPairList
	if err := r.List(ctx, &pairs); err != nil {
		return nil, fmt.Errorf("list ClusterPairs: %w", err)
	}
	var found *v1alpha1.ClusterPair
	var names []string
	for i := range pairs.Items {
		if pairs.Items[i].Spec.PeerCluster == peer && pairs.Items[i].DeletionTimestamp.IsZero() {
			found = &pairs.Items[i]
			names = append(names, found.Name)
		}
	}
	switch len(names) {
	case 0:
		return nil, &NoPairError{Peer: peer}
	case 1:
		return found, nil
	default:
		return nil, &AmbiguousError{Peer: peer, Pairs: names}
	}
}

// CAPEM returns the peer's CA certificate as the pair's trust Secret holds it.
func (r Reader) CAPEM(ctx context.Context, pair *v1alpha1.ClusterPair) ([]byte, error) {
	var secret corev1.Secret
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: pair.Spec.TrustSecretName}
	err := r.Get(ctx, key, &secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, &SecretError{Pair: pair.Name, Secret: key.Name, Err: err}
	case err != nil:
		return nil, fmt.Errorf("read Secret %s of ClusterPair %s: %w", key, pair.Name, err)
	}
	pem := secret.Data[KeyCA]
	if _, err := identity.Roots(pem); err != nil {
		return nil, &SecretError{Pair: pair.Name, Secret: key.Name, Err: fmt.Errorf("key %s: %w", KeyCA, err)}
	}
	return pem, nil
}

// RootsFor returns the pair of a peer and the CA it is trusted by.
func (r Reader) RootsFor(ctx context.Context, peer string) (*v1alpha1.ClusterPair, *x509.CertPool, error) {
	pair, err := r.PairFor(ctx, peer)
	if err != nil {
		return nil, nil, err
	}
	pem, err := r.CAPEM(ctx, pair)
	if err != nil {
		return nil, nil, err
	}
	roots, err := identity.Roots(pem)
	if err != nil {
		return nil, nil, err
	}
	return pair, roots, nil
}

// MayAct reports whether a pair lets its peer act in a namespace. The system's own namespaces are never the peer's,
// even when they are listed.
func MayAct(pair *v1alpha1.ClusterPair, namespace string) bool {
	if namespace == "" || namespace == v1alpha1.SystemNamespace || strings.HasPrefix(namespace, "kube-") {
		return false
	}
	for _, allowed := range pair.Spec.Namespaces {
		if allowed == "*" || allowed == namespace {
			return true
		}
	}
	return false
}
