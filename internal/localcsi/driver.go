// Package localcsi is a CSI driver for one node: volumes are sparse files behind loop devices, snapshots and
// clones share their blocks.
//
// It knows CSI, the pool (package pool) and the kernel's state: loop devices and the mount table. What is
// attached, mounted and published is asked of the kernel at every call and never remembered, so the driver may
// be restarted at any moment. It talks to no API server; Kubernetes' own sidecars do that.
//
// One rule keeps data safe: a volume has one writer, a mounted file system or users of the raw device, never
// both. Begin reading at usage.go, then stage.go and publish.go.
package localcsi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// Name is the driver's name in StorageClasses and PersistentVolumes.
const Name = "local.csi.lifeboat.dev"

// TopologyKey is the label that ties volumes to the node whose disk they are on.
const TopologyKey = "topology.local.csi.lifeboat.dev/node"

// Config is what a driver needs to know.
type Config struct {
	NodeID  string
	Version string // of the product, shown to the cluster
	Pool    pool.Config
	Now     func() time.Time
	Log     *slog.Logger
}

// Driver implements the CSI services.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedGroupControllerServer
	csi.UnimplementedSnapshotMetadataServer

	nodeID  string
	version string
	pool    *pool.Pool
	locks   locks
	now     func() time.Time
	log     *slog.Logger

	freezeLimit time.Duration // how long writers are held at most

	unregistered atomic.Bool // the kubelet has not taken the driver yet
}

// Open opens the pool and repairs what an interrupted driver left: half-made volumes, frozen file systems,
// devices without users.
func Open(ctx context.Context, cfg Config) (*Driver, error) {
	if cfg.NodeID == "" {
		return nil, errors.New("the node's name is empty: set --node (in a pod: from spec.nodeName)")
	}
	cfg.Pool.Log = cfg.Log
	p, err := pool.Open(ctx, cfg.Pool)
	if err != nil {
		return nil, err
	}
	d := &Driver{nodeID: cfg.NodeID, version: cfg.Version, pool: p, now: cfg.Now, log: cfg.Log, freezeLimit: freezeLimit}
	if err := d.repair(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return d, nil
}

// Close gives the pool up. Volumes in use stay in use.
func (d *Driver) Close() error { return d.pool.Close() }

// Serve answers CSI calls on l until ctx ends.
func (d *Driver) Serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(grpc.UnaryInterceptor(d.answer), grpc.StreamInterceptor(d.answerStream))
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	csi.RegisterNodeServer(server, d)
	csi.RegisterGroupControllerServer(server, d)
	csi.RegisterSnapshotMetadataServer(server, d)
	return serveUntil(ctx, server, l)
}

func serveUntil(ctx context.Context, server *grpc.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, server.GracefulStop)
	defer stop()
	return server.Serve(l)
}

// Listen opens the Unix socket at path, in the place of one that an earlier process left.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return net.Listen("unix", path)
}

// answer runs one call, gives its error the code that the CSI specification wants, and logs it. Requests are
// not logged: they may hold secrets.
func (d *Driver) answer(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := d.now()
	resp, err := handle(ctx, req)
	log := d.log
	if v, ok := req.(interface{ GetVolumeId() string }); ok {
		log = log.With("volume", v.GetVolumeId())
	}
	if err := d.ended(log, info.FullMethod, began, err); err != nil {
		return nil, err
	}
	return resp, nil
}

// answerStream is answer for calls that answer with a stream.
func (d *Driver) answerStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	began := d.now()
	return d.ended(d.log, info.FullMethod, began, handle(server, stream))
}

func (d *Driver) ended(log *slog.Logger, method string, began time.Time, err error) error {
	log = log.With("call", method[strings.LastIndex(method, "/")+1:], "took", d.now().Sub(began).Round(time.Millisecond))
	if err == nil {
		log.Debug("done")
		return nil
	}
	err = status.Error(codeOf(err), message(err))
	log.Warn("refused or failed", "code", status.Code(err), "error", message(err))
	return err
}

func codeOf(err error) codes.Code {
	var full *pool.Full
	var missing *filesystem.MissingTool
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	switch {
	case errors.Is(err, pool.ErrNotFound):
		return codes.NotFound
	case errors.As(err, &full):
		return codes.ResourceExhausted
	case errors.As(err, &missing):
		return codes.FailedPrecondition
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return codes.Aborted
	}
	return codes.Internal
}

func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

func refuse(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, format, args...)
}
