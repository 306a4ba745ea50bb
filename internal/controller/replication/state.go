package replication

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

const (
	// stateTimeout is how long a mover may take to tell its state: it is on this cluster's network.
	stateTimeout = 2 * time.Second
	maxState     = 1 << 20
)

// HTTPSMovers asks movers for their state as the manager of this cluster.
type HTTPSMovers struct {
	// Cluster is this cluster's name, Own the manager's certificate, CA this cluster's: movers run here.
	Cluster string
	Own     identity.Source
	CA      *identity.CA
	Now     func() time.Time
}

// State implements Movers. Each call proves both ends anew: addresses of pods are used again by other pods.
func (h *HTTPSMovers) State(ctx context.Context, replication types.NamespacedName, address string) (engine.State, error) {
	var state engine.State
	roots, err := identity.Roots(h.CA.CertPEM())
	if err != nil {
		return state, fmt.Errorf("ask mover of replication %s: %w", replication, err)
	}
	who := identity.ReplicationURI(h.Cluster, replication.Namespace, replication.Name)
	transport := &http.Transport{
		TLSClientConfig: identity.ClientConfig(h.Own, identity.ReceiverServerName(replication.Namespace, replication.Name),
			identity.Exactly(roots, who, x509.ExtKeyUsageServerAuth, h.Now)),
		DisableKeepAlives: true,
	}
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	url := "https://" + net.JoinHostPort(address, strconv.Itoa(statusPort)) + "/v1/state"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return state, fmt.Errorf("ask mover of replication %s: %w", replication, err)
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return state, fmt.Errorf("ask mover of replication %s: %w", replication, err)
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return state, fmt.Errorf("ask mover of replication %s at %s: %s", replication, address, answer.Status)
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxState)).Decode(&state); err != nil {
		return state, fmt.Errorf("read state of mover of replication %s: %w", replication, err)
	}
	return state, nil
}
