package localcsi

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/localcsitest"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveVariable); dir != "" {
		os.Exit(serveHere(dir))
	}
	os.Exit(localcsitest.Main(m))
}

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// node is a driver and the folders a kubelet would give it.
type node struct {
	t    *testing.T
	dir  string
	kind filesystem.Kind
	size int64

	driver *Driver
	stop   func() // ends the driver, not its mounts
	device uint64 // of the file system that the volumes' files are on
	conn   *grpc.ClientConn

	controller csi.ControllerClient
	service    csi.NodeClient
}

// newNode starts a driver on a new pool.
func newNode(t *testing.T) *node { return newNodeOn(t, filesystem.XFS, 2*gib) }

func newNodeOn(t *testing.T, kind filesystem.Kind, size int64) *node {
	t.Helper()
	localcsitest.NeedRoot(t)
	n := &node{t: t, dir: t.TempDir(), kind: kind, size: size}
	t.Cleanup(n.shutDown)
	n.start()
	return n
}

func (n *node) poolDir() string              { return filepath.Join(n.dir, "pool") }
func (n *node) path(elem ...string) string   { return filepath.Join(append([]string{n.dir}, elem...)...) }
func (n *node) staging(volume string) string { return n.path("staging", volume) }

func (n *node) start() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	driver, err := Open(ctx, testConfig(n.poolDir(), n.kind, n.size))
	must(n.t, err)
	n.driver = driver
	n.device, err = driver.pool.Device()
	must(n.t, err)
	socket := n.path("csi.sock")
	l, err := Listen(socket)
	must(n.t, err)
	serving, end := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- driver.Serve(serving, l) }()
	n.conn = dial(n.t, socket)
	n.controller, n.service = csi.NewControllerClient(n.conn), csi.NewNodeClient(n.conn)
	n.stop = func() {
		end()
		<-done
		_ = n.conn.Close()
		must(n.t, driver.Close())
		n.stop = nil
	}
}

func testConfig(dir string, kind filesystem.Kind, size int64) Config {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("LIFEBOAT_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return Config{
		NodeID: "node-1", Version: "test", Now: time.Now, Log: log,
		Pool: pool.Config{Dir: dir, ImageSize: size, ImageType: kind},
	}
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	return conn
}

// shutDown ends the driver and everything it left mounted and attached below the node's folder.
func (n *node) shutDown() {
	if n.stop != nil {
		n.stop()
	}
	if err := unmountAll(n.dir); err != nil {
		n.t.Error(err)
	}
	if n.device != 0 {
		if err := localcsitest.SweepFileSystem(n.device); err != nil {
			n.t.Error(err)
		}
	}
	if err := localcsitest.Sweep(n.dir); err != nil {
		n.t.Error(err)
	}
}

// powerOff takes away what a reboot takes away: mounts and loop devices.
func powerOff(dir string) error {
	if err := unmountAll(dir); err != nil {
		return err
	}
	return localcsitest.Sweep(dir)
}

// unmountAll takes away what the end of a mount namespace takes away.
func unmountAll(dir string) error {
	table, err := mount.Read()
	if err != nil {
		return err
	}
	for i := len(table) - 1; i >= 0; i-- {
		if !within(dir, table[i].Point) {
			continue
		}
		if err := unmountLazily(table[i].Point); err != nil {
			return err
		}
	}
	return nil
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func fsCapability(fsType string, options ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: options}},
	}
}

func blockCapability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

// create makes a volume and returns its ID.
func (n *node) create(name string, size int64, c *csi.VolumeCapability, source *csi.VolumeContentSource) string {
	n.t.Helper()
	resp, err := n.controller.CreateVolume(n.t.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{c}, VolumeContentSource: source,
	})
	must(n.t, err)
	return resp.GetVolume().GetVolumeId()
}

func (n *node) snapshot(name, volume string) string {
	n.t.Helper()
	resp, err := n.controller.CreateSnapshot(n.t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	must(n.t, err)
	return resp.GetSnapshot().GetSnapshotId()
}

// tryStage stages the volume at the staging path called at.
func (n *node) tryStage(volume, at string, c *csi.VolumeCapability) error {
	n.t.Helper()
	must(n.t, os.MkdirAll(n.staging(at), 0o750))
	_, err := n.service.NodeStageVolume(n.t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.staging(at), VolumeCapability: c})
	return err
}

func (n *node) tryPublish(volume, at, pod string, c *csi.VolumeCapability, readOnly bool) error {
	n.t.Helper()
	must(n.t, os.MkdirAll(n.path("pods", pod), 0o750))
	_, err := n.service.NodePublishVolume(n.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.staging(at), TargetPath: n.target(volume, pod), VolumeCapability: c, Readonly: readOnly})
	return err
}

func (n *node) target(volume, pod string) string { return n.path("pods", pod, volume) }

// use stages and publishes the volume and returns where the pod has it.
func (n *node) use(volume, at, pod string, c *csi.VolumeCapability) string {
	n.t.Helper()
	must(n.t, n.tryStage(volume, at, c))
	must(n.t, n.tryPublish(volume, at, pod, c, false))
	return n.target(volume, pod)
}

func (n *node) unpublish(volume, pod string) {
	n.t.Helper()
	_, err := n.service.NodeUnpublishVolume(n.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: n.target(volume, pod)})
	must(n.t, err)
}

func (n *node) unstage(volume, at string) {
	n.t.Helper()
	_, err := n.service.NodeUnstageVolume(n.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: n.staging(at)})
	must(n.t, err)
}

func (n *node) tryDelete(volume string) error {
	_, err := n.controller.DeleteVolume(n.t.Context(), &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

// nothingAttached fails when a volume of the pool still has a device.
func (n *node) nothingAttached() {
	n.t.Helper()
	attached, err := n.driver.attachedFiles()
	must(n.t, err)
	if len(attached) > 0 {
		n.t.Errorf("%d devices remain attached", len(attached))
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if string(got) != want {
		t.Errorf("%s holds %q, want %q", path, got, want)
	}
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Fatalf("code %s, want %s (%v)", got, want, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatal(fmt.Errorf("%s: %w", what, err))
		case <-ticker.C:
		}
	}
}
