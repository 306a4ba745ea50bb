package clusterpair

import (
	"context"
	"errors"
	"fmt"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

// Reasons why a pair cannot be used; the condition Connected shows them.
const (
	// ReasonOwnName: the pair names this cluster itself.
	ReasonOwnName = "PeerIsThisCluster"
	// ReasonAmbiguous: several pairs name the same peer.
	ReasonAmbiguous = "SeveralClusterPairs"
	// ReasonNoTrust: the trust Secret gives no CA.
	ReasonNoTrust = "TrustSecretUnusable"
)

// seen is what a pair rests on.
type seen struct {
	// caPEM is the peer's CA; empty if the pair is broken.
	caPEM []byte
	// reason and message tell why a pair cannot be used; empty if it can.
	reason, message string
}

func (r *Reconciler) observe(ctx context.Context, pair *v1alpha1.ClusterPair) (seen, error) {
	if pair.Spec.PeerCluster == r.Cluster {
		return seen{reason: ReasonOwnName, message: fmt.Sprintf("spec.peerCluster is %s, which is this cluster itself: a pair names the other cluster", r.Cluster)}, nil
	}
	_, err := r.Trust.PairFor(ctx, pair.Spec.PeerCluster)
	var ambiguous *trust.AmbiguousError
	if errors.As(err, &ambiguous) {
		return seen{reason: ReasonAmbiguous, message: ambiguous.Error()}, nil
	}
	if err != nil {
		return seen{}, err
	}
	caPEM, err := r.Trust.CAPEM(ctx, pair)
	var unusable *trust.SecretError
	if errors.As(err, &unusable) {
		return seen{reason: ReasonNoTrust, message: unusable.Error()}, nil
	}
	return seen{caPEM: caPEM}, err
}
