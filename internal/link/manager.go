package link

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

// Options say who this cluster is and what its control service works with.
type Options struct {
	// Cluster is --cluster-name, Version the software's.
	Cluster, Version string
	// Address the control service listens on, as ":9443".
	Address string
	// Sink, Nudge and Application are for the control service; see control.ServerOptions.
	Sink        control.SnapshotSink
	Nudge       func(kind string, key types.NamespacedName)
	Application func(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) (control.ApplicationState, error)
	// Now is time.Now.
	Now func() time.Time
}

// Link is what AddToManager made.
type Link struct {
	// Peers are the connections; give it to controllers.
	Peers *Peers
	// CA is this cluster's, for the identities of movers.
	CA *identity.CA
	// Trust reads pairs and the CAs of peers.
	Trust trust.Reader
	// Checker tries the ways to peers when somebody asks.
	Checker *Checker
}

// AddToManager makes the cluster's CA if it has none, and adds control service and heartbeats to a manager that has not
// been started yet.
func AddToManager(ctx context.Context, m manager.Manager, o Options) (*Link, error) {
	log := m.GetLogger().WithName("link")
	// The manager's own client reads from caches that do not run before the manager does.
	direct, err := client.New(m.GetConfig(), client.Options{Scheme: m.GetScheme(), Mapper: m.GetRESTMapper()})
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	ca, err := trust.EnsureCA(ctx, direct, o.Cluster, o.Now())
	if err != nil {
		return nil, err
	}
	own := identity.NewRotating(ca, identity.ManagerURI(o.Cluster), []string{identity.ManagerServerName}, o.Now)
	// Pairs and trust Secrets are read from the API server: few reads, no cache of every Secret, and a change counts at once.
	reader := m.GetAPIReader()
	peers := NewPeers(PeersOptions{Cluster: o.Cluster, Version: o.Version, Own: own, Now: o.Now, Log: log})
	server := control.NewServer(control.ServerOptions{
		Cluster: o.Cluster, Version: o.Version, Own: own, Address: o.Address, Now: o.Now, Log: log,
		Client: m.GetClient(), Live: reader, Trust: reader,
		Sink: o.Sink, Nudge: o.Nudge, Application: o.Application,
	})
	for _, runnable := range []manager.Runnable{server, peers} {
		if err := m.Add(runnable); err != nil {
			return nil, fmt.Errorf("add link to manager: %w", err)
		}
	}
	checker := &Checker{Cluster: o.Cluster, Own: own, Reader: reader, Client: peers.Client, Now: o.Now}
	return &Link{Peers: peers, CA: ca, Trust: trust.Reader{Reader: reader}, Checker: checker}, nil
}
