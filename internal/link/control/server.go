package control

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

const (
	// connectionAge is how long a connection lives before its client is asked to come again, with a fresh certificate.
	connectionAge = time.Hour
	// stopTimeout is how long calls that run may take to end when the server stops.
	stopTimeout = 10 * time.Second
	// trustTimeout bounds the reads of pair and Secret during a handshake.
	trustTimeout = 5 * time.Second
	// trustAge is how long a caller that was found trustworthy is taken for it without looking again. It is also how
	// late a changed pair or CA counts; a refusal is never remembered.
	trustAge = 2 * time.Second
	// quietTime is how long the same refusal is not logged again: a stranger may knock as often as it likes.
	quietTime = time.Minute
)

// ServerOptions say what the server acts on and as whom.
type ServerOptions struct {
	// Cluster and Version are this side.
	Cluster, Version string
	// Own is this side's manager certificate.
	Own identity.Source
	// Client acts on this cluster's API server.
	Client client.Client
	// Live reads from the API server; Client when nil.
	Live client.Reader
	// Trust reads pairs and their Secrets; Client when nil.
	Trust client.Reader
	// Sink keeps application snapshots; pushes are refused when nil.
	Sink SnapshotSink
	// Nudge is told of objects to look at now. It must not block. May be nil.
	Nudge func(kind string, key types.NamespacedName)
	// Application looks for the instances of a plan's application here. May be nil: then nobody knows.
	Application func(ctx context.Context, plan *v1alpha1.DisasterRecoveryPlan) (ApplicationState, error)
	// Address to listen on, as ":9443"; only used by Start.
	Address string
	// Now is the clock that certificates are judged by.
	Now func() time.Time
	Log logr.Logger
}

// Server answers peers. Every call is admitted in one place (see admit) before any of the methods sees it.
type Server struct {
	linkpb.UnimplementedLinkServer
	ServerOptions
	trust trust.Reader

	mu sync.Mutex
	// trusted are the callers that were found trustworthy a moment ago, by the digest of their certificate.
	trusted map[[sha256.Size]byte]trustedCaller
	// logged tells when a refusal was last logged, by its text.
	logged map[string]time.Time
}

type trustedCaller struct {
	pair  *v1alpha1.ClusterPair
	until time.Time
}

// NewServer makes the server; Start or Serve runs it.
func NewServer(o ServerOptions) *Server {
	reader := o.Trust
	if reader == nil {
		reader = o.Client
	}
	return &Server{ServerOptions: o, trust: trust.Reader{Reader: reader},
		trusted: map[[sha256.Size]byte]trustedCaller{}, logged: map[string]time.Time{}}
}

// NeedLeaderElection is false: a manager that does not lead still answers from the API server.
func (s *Server) NeedLeaderElection() bool { return false }

// Start listens on Address and serves until ctx is done.
func (s *Server) Start(ctx context.Context) error {
	listener, err := net.Listen("tcp", s.Address)
	if err != nil {
		return fmt.Errorf("listen for peers: %w", err)
	}
	return s.Serve(ctx, listener)
}

// Serve serves until ctx is done; then calls that run may end, for a while. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(identity.ServerConfig(s.Own, s.verify))),
		grpc.ChainUnaryInterceptor(s.admitUnary),
		grpc.ChainStreamInterceptor(s.admitStream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(128),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: pushTimeout,
			Time: 10 * time.Second, Timeout: 5 * time.Second,
		}),
	)
	linkpb.RegisterLinkServer(server, s)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		timer := time.AfterFunc(stopTimeout, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	}()
	err := server.Serve(listener)
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve peers: %w", err)
}

// verify judges a client's certificate during the handshake: it must be the manager of a cluster that a ClusterPair names,
// signed by the CA of that very pair.
func (s *Server) verify(chain []*x509.Certificate) error {
	ctx, cancel := context.WithTimeout(context.Background(), trustTimeout)
	defer cancel()
	_, err := s.identify(ctx, chain)
	if err != nil && s.shallLog(err.Error()) {
		// The other side sees only an alert; the operator here sees why.
		s.Log.Info("connection refused", "reason", err.Error())
	}
	return err
}

func (s *Server) identify(ctx context.Context, chain []*x509.Certificate) (*v1alpha1.ClusterPair, error) {
	cluster, err := identity.ManagerCluster(chain)
	if err != nil {
		return nil, err
	}
	// The digest stands for the leaf alone: the rest of the chain is the sender's help and not what is trusted.
	digest := sha256.Sum256(chain[0].Raw)
	if pair := s.recall(digest); pair != nil {
		return pair, nil
	}
	pair, roots, err := s.trust.RootsFor(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if err := identity.Verify(chain, roots, identity.ManagerURI(cluster), x509.ExtKeyUsageClientAuth, s.Now()); err != nil {
		return nil, err
	}
	s.remember(digest, pair)
	return pair, nil
}

func (s *Server) recall(digest [sha256.Size]byte) *v1alpha1.ClusterPair {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.trusted[digest]; ok && s.Now().Before(known.until) {
		return known.pair
	}
	return nil
}

func (s *Server) remember(digest [sha256.Size]byte, pair *v1alpha1.ClusterPair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	maps.DeleteFunc(s.trusted, func(_ [sha256.Size]byte, known trustedCaller) bool { return !now.Before(known.until) })
	s.trusted[digest] = trustedCaller{pair: pair, until: now.Add(trustAge)}
}

func (s *Server) shallLog(refusal string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	maps.DeleteFunc(s.logged, func(_ string, at time.Time) bool { return now.Sub(at) >= quietTime })
	// What a stranger's certificate claims is part of the text, so the table has an end.
	if _, known := s.logged[refusal]; known || len(s.logged) >= 100 {
		return false
	}
	s.logged[refusal] = now
	return true
}

// keyed is every request that names an object.
type keyed interface{ GetKey() *linkpb.ObjectKey }

// pairKey is where admission leaves the caller's pair for the methods.
type pairKey struct{}

func callersPair(ctx context.Context) *v1alpha1.ClusterPair {
	return ctx.Value(pairKey{}).(*v1alpha1.ClusterPair)
}

func (s *Server) admitUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	pair, err := s.admit(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	// What names an object is admitted by its namespace; what names none is admitted only if it is known to need none.
	switch r := request.(type) {
	case keyed:
		err = s.admitKey(pair, r.GetKey())
	case *linkpb.HelloRequest:
		err = s.admitHello(pair, r)
	default:
		err = fmt.Errorf("no rule admits %s", info.FullMethod)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	response, err := handle(context.WithValue(ctx, pairKey{}, pair), request)
	return response, toStatus(err)
}

func (s *Server) admitStream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	pair, err := s.admit(stream.Context())
	if err != nil {
		return toStatus(err)
	}
	ctx := context.WithValue(stream.Context(), pairKey{}, pair)
	return toStatus(handle(server, &admittedStream{ServerStream: stream, ctx: ctx}))
}

// admittedStream is a stream whose context carries the caller's pair.
type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *admittedStream) Context() context.Context { return s.ctx }

// admit finds out who calls and whether it is understood. The certificate is judged again with each call (see
// trustAge), so that a deleted pair or a replaced CA ends also what was connected before.
func (s *Server) admit(ctx context.Context) (*v1alpha1.ClusterPair, error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("the call has no peer")
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, errors.New("the call came without TLS")
	}
	pair, err := s.identify(ctx, info.State.PeerCertificates)
	if err != nil {
		return nil, s.refuseCaller(err)
	}
	return pair, s.admitProtocol(ctx, pair.Spec.PeerCluster)
}

func (s *Server) refuseCaller(err error) error {
	var noPair *trust.NoPairError
	var ambiguous *trust.AmbiguousError
	var secret *trust.SecretError
	switch {
	case errors.As(err, &noPair), errors.As(err, &ambiguous):
		return refuse(ReasonNoPair, "on cluster %s %v", s.Cluster, err)
	case errors.As(err, &secret), identity.Refused(err):
		return refuse(ReasonTrust, "on cluster %s: %v", s.Cluster, err)
	default:
		return fmt.Errorf("identify caller: %w", err)
	}
}

func (s *Server) admitProtocol(ctx context.Context, caller string) error {
	values := metadata.ValueFromIncomingContext(ctx, protocolKey)
	spoken := 0
	if len(values) == 1 {
		spoken, _ = strconv.Atoi(values[0])
	}
	if spoken < int(MinProtocol) {
		return refuse(ReasonProtocol, "cluster %s speaks protocol %d, cluster %s (Lifeboat %s) needs at least %d: upgrade Lifeboat on %s",
			caller, spoken, s.Cluster, s.Version, MinProtocol, caller)
	}
	return nil
}

func (s *Server) admitHello(pair *v1alpha1.ClusterPair, r *linkpb.HelloRequest) error {
	if r.GetCluster() != pair.Spec.PeerCluster {
		return refuse(ReasonWrongCluster, "the caller calls itself %q but its certificate belongs to cluster %s", r.GetCluster(), pair.Spec.PeerCluster)
	}
	return nil
}

func (s *Server) admitKey(pair *v1alpha1.ClusterPair, key *linkpb.ObjectKey) error {
	namespace := key.GetNamespace()
	if namespace == "" || key.GetName() == "" {
		return refuse(ReasonInvalid, "the request names the object %q in namespace %q: both are needed", key.GetName(), namespace)
	}
	if !trust.MayAct(pair, namespace) {
		return refuse(ReasonNamespace, "ClusterPair %s on cluster %s does not allow cluster %s to act in namespace %s: add it to spec.namespaces there "+
			"(kube-* and %s cannot be allowed)", pair.Name, s.Cluster, pair.Spec.PeerCluster, namespace, v1alpha1.SystemNamespace)
	}
	return nil
}

// Hello implements the service.
func (s *Server) Hello(context.Context, *linkpb.HelloRequest) (*linkpb.HelloResponse, error) {
	return &linkpb.HelloResponse{Cluster: s.Cluster, Version: s.Version, Protocol: Protocol, UnixNanos: s.Now().UnixNano()}, nil
}

// ObservePlan implements the service.
func (s *Server) ObservePlan(ctx context.Context, r *linkpb.ObservePlanRequest) (*linkpb.ObservePlanResponse, error) {
	var plan v1alpha1.DisasterRecoveryPlan
	data, err := observe(ctx, s.Client, r.GetKey(), &plan)
	if err != nil || data == nil {
		return &linkpb.ObservePlanResponse{}, err
	}
	response := &linkpb.ObservePlanResponse{Found: true, Plan: data, Application: &linkpb.ApplicationState{}}
	if s.Application == nil {
		return response, nil
	}
	state, err := s.Application(ctx, &plan)
	if err != nil {
		return nil, fmt.Errorf("look for the application of plan %s/%s: %w", plan.Namespace, plan.Name, err)
	}
	response.Application = &linkpb.ApplicationState{Known: state.Known, Pods: state.Pods}
	return response, nil
}

// ObserveReplication implements the service.
func (s *Server) ObserveReplication(ctx context.Context, r *linkpb.ObserveReplicationRequest) (*linkpb.ObserveReplicationResponse, error) {
	// Peers decide by this answer who may write: it never comes from a cache.
	data, err := observe(ctx, s.live(), r.GetKey(), &v1alpha1.Replication{})
	if err != nil || data == nil {
		return &linkpb.ObserveReplicationResponse{}, err
	}
	return &linkpb.ObserveReplicationResponse{Found: true, Replication: data}, nil
}

func (s *Server) live() client.Reader {
	if s.Live != nil {
		return s.Live
	}
	return s.Client
}

// observe returns the object as JSON; nil when there is none.
func observe(ctx context.Context, reader client.Reader, key *linkpb.ObjectKey, object client.Object) ([]byte, error) {
	err := reader.Get(ctx, fromKey(key), object)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %T %s: %w", object, fromKey(key), err)
	}
	object.SetManagedFields(nil)
	return json.Marshal(object)
}

// Nudge implements the service.
func (s *Server) Nudge(_ context.Context, r *linkpb.NudgeRequest) (*linkpb.NudgeResponse, error) {
	if s.ServerOptions.Nudge != nil {
		s.ServerOptions.Nudge(r.GetKind(), fromKey(r.GetKey()))
	}
	return &linkpb.NudgeResponse{}, nil
}

// PushApplicationSnapshot implements the service.
func (s *Server) PushApplicationSnapshot(stream grpc.ClientStreamingServer[linkpb.SnapshotPart, linkpb.PushApplicationSnapshotResponse]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetHeader() == nil {
		return refuse(ReasonInvalid, "an application snapshot begins with its header")
	}
	var snapshot v1alpha1.ApplicationSnapshot
	if err := json.Unmarshal(first.GetHeader().GetSnapshot(), &snapshot); err != nil {
		return refuse(ReasonInvalid, "the header of the application snapshot is not readable: %v", err)
	}
	key := client.ObjectKeyFromObject(&snapshot)
	if err := s.admitKey(callersPair(ctx), &linkpb.ObjectKey{Namespace: key.Namespace, Name: key.Name}); err != nil {
		return err
	}
	if s.Sink == nil {
		return refuse(ReasonInvalid, "cluster %s keeps no application snapshots", s.Cluster)
	}
	if err := s.Sink.Put(ctx, key, snapshot.Spec, snapshot.Status, received(stream)); err != nil {
		return asRefusal(fmt.Errorf("keep application snapshot %s: %w", key, err))
	}
	return stream.SendAndClose(&linkpb.PushApplicationSnapshotResponse{})
}

// received yields the chunks of a stream. Only the end message ends it well; a stream that stops before is an error, so
// that a cut connection is never taken for the end of a snapshot.
func received(stream grpc.ClientStreamingServer[linkpb.SnapshotPart, linkpb.PushApplicationSnapshotResponse]) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		var chunks, size int64
		for {
			part, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				err = errors.New("the stream ended before the end of the snapshot")
			}
			if err != nil {
				yield(Chunk{}, err)
				return
			}
			if end := part.GetEnd(); end != nil {
				if end.GetChunks() != chunks {
					yield(Chunk{}, refuse(ReasonInvalid, "%d chunks were announced and %d came", end.GetChunks(), chunks))
				}
				return
			}
			chunk, err := checkChunk(part.GetChunk())
			chunks, size = chunks+1, size+int64(len(chunk.Data))
			if err == nil && size > MaxSnapshot {
				err = refuse(ReasonInvalid, "the application snapshot is larger than %d bytes", MaxSnapshot)
			}
			if !yield(chunk, err) || err != nil {
				return
			}
		}
	}
}

func checkChunk(c *linkpb.SnapshotChunk) (Chunk, error) {
	switch {
	case c == nil:
		return Chunk{}, refuse(ReasonInvalid, "a message of the snapshot is neither a chunk nor its end")
	case len(c.GetData()) > MaxChunk:
		return Chunk{}, refuse(ReasonInvalid, "a chunk has %d bytes, the limit is %d", len(c.GetData()), MaxChunk)
	case c.GetDigest() == "" || len(c.GetDigest()) > maxDigestLength:
		return Chunk{}, refuse(ReasonInvalid, "the digest of a chunk has %d characters, 1 to %d are expected", len(c.GetDigest()), maxDigestLength)
	}
	return Chunk{Digest: c.GetDigest(), Data: c.GetData()}, nil
}

// asRefusal makes a refusal of what the API server says will never work; everything else stays a failure worth repeating.
func asRefusal(err error) error {
	if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
		return refuse(ReasonInvalid, "%v", err)
	}
	return err
}

func fromKey(key *linkpb.ObjectKey) types.NamespacedName {
	return types.NamespacedName{Namespace: key.GetNamespace(), Name: key.GetName()}
}
