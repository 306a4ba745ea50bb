package control

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// Deadlines of calls whose context has none, or a later one.
const (
	callTimeout    = 10 * time.Second
	prepareTimeout = 30 * time.Second
	pushTimeout    = 5 * time.Minute
)

// protocolKey carries the caller's protocol in every call's metadata.
const protocolKey = "lifeboat-protocol"

// ClientOptions say whom to talk to and as whom.
type ClientOptions struct {
	// Cluster and Version are this side.
	Cluster, Version string
	// Own is this side's manager certificate.
	Own identity.Source
	// PeerCluster, Address and Roots are the other side: name, host:port of its gateway, its CA.
	PeerCluster, Address string
	Roots                *x509.CertPool
	// Now is the clock that certificates are judged by.
	Now func() time.Time
}

// Client is the one long-lived connection to a peer. It connects when first used, by itself again after a failure, and
// anew at least every hour, when the server retires the connection so that fresh certificates are shown.
type Client struct {
	cluster, version, peer, address string
	handshakes                      handshakes
	conn                            *grpc.ClientConn
	rpc                             linkpb.LinkClient
}

var _ Peer = (*Client)(nil)

// NewClient prepares the connection; it does not wait for it. Close it when done.
func NewClient(o ClientOptions) (*Client, error) {
	hs := newHandshakes(identity.ClientConfig(o.Own, identity.ManagerServerName,
		identity.Exactly(o.Roots, identity.ManagerURI(o.PeerCluster), x509.ExtKeyUsageServerAuth, o.Now)))
	conn, err := grpc.NewClient("passthrough:///"+o.Address,
		grpc.WithTransportCredentials(hs),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return hs.dial(ctx, address) }),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		// A link that was cut in silence is noticed within 15 s also while a call waits.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to cluster %s at %s: %w", o.PeerCluster, o.Address, err)
	}
	return &Client{cluster: o.Cluster, version: o.Version, peer: o.PeerCluster, address: o.Address,
		handshakes: hs, conn: conn, rpc: linkpb.NewLinkClient(conn)}, nil
}

// Close ends the connection; calls that run fail as Unreachable.
func (c *Client) Close() error { return c.conn.Close() }

// Greeting is a peer's answer to Hello.
type Greeting struct {
	Cluster, Version string
	Protocol         int32
	// Clock is the peer's time when it answered.
	Clock time.Time
}

// Hello asks who answers, and refuses a peer of another name or with a protocol this side does not understand any more.
func (c *Client) Hello(ctx context.Context) (Greeting, error) {
	ctx, cancel := outgoing(ctx, callTimeout)
	defer cancel()
	r, err := c.rpc.Hello(ctx, &linkpb.HelloRequest{Cluster: c.cluster, Version: c.version, Protocol: Protocol})
	if err != nil {
		return Greeting{}, c.fromStatus(ctx, err)
	}
	g := Greeting{Cluster: r.GetCluster(), Version: r.GetVersion(), Protocol: r.GetProtocol(), Clock: time.Unix(0, r.GetUnixNanos())}
	switch {
	case g.Cluster != c.peer:
		return g, &Refused{Peer: c.peer, Reason: ReasonWrongCluster,
			Message: fmt.Sprintf("the cluster at %s calls itself %q: correct spec.peerCluster or spec.gatewayAddress of the ClusterPair", c.address, g.Cluster)}
	case g.Protocol < MinProtocol:
		return g, &Refused{Peer: c.peer, Reason: ReasonProtocol, Message: tooOld("it", g.Version, g.Protocol)}
	}
	return g, nil
}

func tooOld(who, version string, protocol int32) string {
	return fmt.Sprintf("%s speaks protocol %d (Lifeboat %s), at least %d is needed: upgrade Lifeboat there", who, protocol, version, MinProtocol)
}

// ObservePlan implements Peer.
func (c *Client) ObservePlan(ctx context.Context, key types.NamespacedName) (PlanView, error) {
	ctx, cancel := outgoing(ctx, callTimeout)
	defer cancel()
	r, err := c.rpc.ObservePlan(ctx, &linkpb.ObservePlanRequest{Key: toKey(key)})
	if err != nil {
		return PlanView{}, c.fromStatus(ctx, err)
	}
	view := PlanView{Application: ApplicationState{Known: r.GetApplication().GetKnown(), Pods: r.GetApplication().GetPods()}}
	if !r.GetFound() {
		return view, nil
	}
	view.Plan = &v1alpha1.DisasterRecoveryPlan{}
	if err := json.Unmarshal(r.GetPlan(), view.Plan); err != nil {
		return PlanView{}, fmt.Errorf("cluster %s: read plan %s: %w", c.peer, key, err)
	}
	return view, nil
}

// PutPlan implements Peer.
func (c *Client) PutPlan(ctx context.Context, key types.NamespacedName, spec v1alpha1.DisasterRecoveryPlanSpec, epoch int64, primary string) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("write plan %s: %w", key, err)
	}
	ctx, cancel := outgoing(ctx, callTimeout)
	defer cancel()
	_, err = c.rpc.PutPlan(ctx, &linkpb.PutPlanRequest{Key: toKey(key), Spec: data, Epoch: epoch, Primary: primary})
	return c.fromStatus(ctx, err)
}

// ObserveReplication implements Peer.
func (c *Client) ObserveReplication(ctx context.Context, key types.NamespacedName) (*v1alpha1.Replication, error) {
	ctx, cancel := outgoing(ctx, callTimeout)
	defer cancel()
	r, err := c.rpc.ObserveReplication(ctx, &linkpb.ObserveReplicationRequest{Key: toKey(key)})
	if err != nil || !r.GetFound() {
		return nil, c.fromStatus(ctx, err)
	}
	replication := &v1alpha1.Replication{}
	if err := json.Unmarshal(r.GetReplication(), replication); err != nil {
		return nil, fmt.Errorf("cluster %s: read replication %s: %w", c.peer, key, err)
	}
	return replication, nil
}

// PrepareReplication implements Peer.
func (c *Client) PrepareReplication(ctx context.Context, request PrepareRequest) (Prepared, error) {
	spec, err := json.Marshal(request.Spec)
	if err != nil {
		return Prepared{}, fmt.Errorf("write replication %s: %w", request.Key, err)
	}
	group, err := json.Marshal(request.Group)
	if err != nil {
		return Prepared{}, fmt.Errorf("write group of replication %s: %w", request.Key, err)
	}
	message := &linkpb.PrepareReplicationRequest{Key: toKey(request.Key), Spec: spec, Group: group}
	for _, claim := range request.Claims {
		message.Claims = append(message.Claims, &linkpb.Claim{
			Name: claim.Name, SizeBytes: claim.SizeBytes, VolumeMode: claim.VolumeMode, StorageClassName: claim.StorageClass,
			AccessModes: claim.AccessModes, Labels: claim.Labels, Annotations: claim.Annotations,
		})
	}
	ctx, cancel := outgoing(ctx, prepareTimeout)
	defer cancel()
	r, err := c.rpc.PrepareReplication(ctx, message)
	if err != nil {
		return Prepared{}, c.fromStatus(ctx, err)
	}
	return Prepared{Ready: r.GetReady(), Message: r.GetMessage()}, nil
}

// PushApplicationSnapshot implements Peer.
func (c *Client) PushApplicationSnapshot(ctx context.Context, snapshot *v1alpha1.ApplicationSnapshot, chunks iter.Seq2[Chunk, error]) error {
	header, err := json.Marshal(snapshot)
	if err != nil {
		return fmt.Errorf("write application snapshot %s: %w", snapshot.Name, err)
	}
	// Leaving this function before the end was sent cancels the stream, so the peer keeps nothing.
	ctx, cancel := outgoing(ctx, pushTimeout)
	defer cancel()
	stream, err := c.rpc.PushApplicationSnapshot(ctx)
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	// A Send that fails says only that the stream is over; the reason comes from CloseAndRecv.
	sent, sendErr := int64(0), stream.Send(&linkpb.SnapshotPart{Part: &linkpb.SnapshotPart_Header{Header: &linkpb.SnapshotHeader{Snapshot: header}}})
	if sendErr == nil {
		for chunk, err := range chunks {
			if err != nil {
				return fmt.Errorf("read application snapshot %s: %w", snapshot.Name, err)
			}
			if len(chunk.Data) > MaxChunk {
				return fmt.Errorf("application snapshot %s: a chunk has %d bytes, the limit is %d", snapshot.Name, len(chunk.Data), MaxChunk)
			}
			part := &linkpb.SnapshotPart_Chunk{Chunk: &linkpb.SnapshotChunk{Digest: chunk.Digest, Data: chunk.Data}}
			if sendErr = stream.Send(&linkpb.SnapshotPart{Part: part}); sendErr != nil {
				break
			}
			sent++
		}
	}
	if sendErr == nil {
		_ = stream.Send(&linkpb.SnapshotPart{Part: &linkpb.SnapshotPart_End{End: &linkpb.SnapshotEnd{Chunks: sent}}})
	}
	_, err = stream.CloseAndRecv()
	return c.fromStatus(ctx, err)
}

// Nudge implements Peer.
func (c *Client) Nudge(ctx context.Context, kind string, key types.NamespacedName) error {
	ctx, cancel := outgoing(ctx, callTimeout)
	defer cancel()
	_, err := c.rpc.Nudge(ctx, &linkpb.NudgeRequest{Kind: kind, Key: toKey(key)})
	return c.fromStatus(ctx, err)
}

// outgoing gives a call its deadline and says which protocol is spoken.
func outgoing(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx = metadata.AppendToOutgoingContext(ctx, protocolKey, strconv.Itoa(int(Protocol)))
	return context.WithTimeout(ctx, timeout)
}

func toKey(key types.NamespacedName) *linkpb.ObjectKey {
	return &linkpb.ObjectKey{Namespace: key.Namespace, Name: key.Name}
}
