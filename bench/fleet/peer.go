package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// peer plays the other cluster: a target whose receivers are always ready and have recorded what was committed before they are asked.
type peer struct {
	linkpb.UnimplementedLinkServer
	ca      *identity.CA
	address string
	server  *grpc.Server
	calls   atomic.Int64 // all but heartbeats

	mu     sync.Mutex
	points map[types.NamespacedName]v1alpha1.RecoveryPoint
}

func startPeer(_ context.Context, o options) (*peer, error) {
	ca, err := identity.NewCA(there, time.Now())
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	own := identity.NewRotating(ca, identity.ManagerURI(there), []string{identity.ManagerServerName}, time.Now)
	// Whoever comes is the manager: nobody else knows the port.
	anybody := func([]*x509.Certificate) error { return nil }
	p := &peer{ca: ca, address: listener.Addr().String(), points: make(map[types.NamespacedName]v1alpha1.RecoveryPoint, o.replications),
		server: grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerConfig(own, anybody))))}
	linkpb.RegisterLinkServer(p.server, p)
	go func() { _ = p.server.Serve(listener) }() // it ends with stop
	return p, nil
}

func (p *peer) stop() { p.server.Stop() }

// commit notes what a mover has brought.
func (p *peer) commit(key types.NamespacedName, point string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.points[key] = v1alpha1.RecoveryPoint{Point: point, Time: metav1.Now(), Epoch: 1}
}

func (p *peer) Hello(context.Context, *linkpb.HelloRequest) (*linkpb.HelloResponse, error) {
	return &linkpb.HelloResponse{Cluster: there, Version: "fleet", Protocol: control.Protocol, UnixNanos: time.Now().UnixNano()}, nil
}

func (p *peer) ObserveReplication(_ context.Context, r *linkpb.ObserveReplicationRequest) (*linkpb.ObserveReplicationResponse, error) {
	p.calls.Add(1)
	key := types.NamespacedName{Namespace: r.GetKey().GetNamespace(), Name: r.GetKey().GetName()}
	p.mu.Lock()
	point, known := p.points[key]
	p.mu.Unlock()
	if !known {
		return &linkpb.ObserveReplicationResponse{}, nil
	}
	rep := v1alpha1.Replication{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Generation: 1},
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleTarget, PVCGroupName: key.Name, Epoch: 1,
			Rlinks: []v1alpha1.Rlink{{RlinkName: rlink, ClusterPair: here}}},
		Status: v1alpha1.ReplicationStatus{ObservedGeneration: 1, Role: v1alpha1.RoleTarget, Epoch: 1, Phase: "Idle", Claims: []string{key.Name},
			Rlinks: []v1alpha1.RlinkStatus{{RlinkName: rlink, ReceiverReady: true, RecoveryPoint: &point, RecoveryPoints: []v1alpha1.RecoveryPoint{point}}}},
	}
	meta.SetStatusCondition(&rep.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready"})
	raw, err := json.Marshal(&rep)
	if err != nil {
		return nil, fmt.Errorf("write replication %s: %w", key, err)
	}
	return &linkpb.ObserveReplicationResponse{Found: true, Replication: raw}, nil
}

func (p *peer) PrepareReplication(context.Context, *linkpb.PrepareReplicationRequest) (*linkpb.PrepareReplicationResponse, error) {
	p.calls.Add(1)
	return &linkpb.PrepareReplicationResponse{Ready: true}, nil
}

func (p *peer) Nudge(context.Context, *linkpb.NudgeRequest) (*linkpb.NudgeResponse, error) {
	p.calls.Add(1)
	return &linkpb.NudgeResponse{}, nil
}
