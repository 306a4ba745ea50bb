package localcsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/localcsitest"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
)

// serveVariable makes the test binary a driver on the pool in the folder it names.
const serveVariable = "LIFEBOAT_LOCALCSI_TEST_SERVE"

func serveHere(dir string) int {
	err := Run(context.Background(), testConfig(filepath.Join(dir, "pool"), filesystem.XFS, 2*gib), "unix://"+filepath.Join(dir, "csi.sock"), "")
	fmt.Fprintln(os.Stderr, "driver ended:", err)
	return 1
}

func unmountLazily(point string) error { return unix.Unmount(point, unix.MNT_DETACH) }

// container is a driver in a process with a mount namespace of its own, like a container's: what it mounts
// below shared folders is seen outside, its pool is not.
type container struct {
	*node
	process *exec.Cmd
}

func newContainer(t *testing.T) *container {
	t.Helper()
	localcsitest.NeedRoot(t)
	n := &node{t: t, dir: t.TempDir()}
	c := &container{node: n}
	t.Cleanup(n.shutDown)
	for _, shared := range []string{n.path("staging"), n.path("pods")} {
		must(t, os.MkdirAll(shared, 0o750))
		must(t, unix.Mount(shared, shared, "", unix.MS_BIND, ""))
		must(t, unix.Mount("", shared, "", unix.MS_SHARED, ""))
	}
	t.Cleanup(c.kill)
	c.run()
	return c
}

func (c *container) run() {
	c.t.Helper()
	socket := c.path("csi.sock")
	c.process = exec.Command("/proc/self/exe")
	c.process.Env = append(os.Environ(), serveVariable+"="+c.dir)
	c.process.Stdout, c.process.Stderr = os.Stdout, os.Stderr
	c.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	must(c.t, c.process.Start())
	eventually(c.t, "the driver serves", func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		return Ready(ctx, "unix://"+socket)
	})
	c.conn = dial(c.t, socket)
	c.controller, c.service = csi.NewControllerClient(c.conn), csi.NewNodeClient(c.conn)
}

// kill ends the driver as a machine's out-of-memory killer would.
func (c *container) kill() {
	if c.process == nil {
		return
	}
	_ = c.process.Process.Kill()
	_ = c.process.Wait()
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.process = nil
}

func TestKilledDriverComesBackToStagedVolumes(t *testing.T) {
	c := newContainer(t)
	files := c.create("files", 64*mib, fsCapability("ext4"), nil)
	raw := c.create("raw", 64*mib, blockCapability(), nil)
	mounted := c.use(files, "files", "pod", fsCapability("ext4"))
	device := c.use(raw, "raw", "pod", blockCapability())
	writeFile(t, filepath.Join(mounted, "before"), "written before")
	open, err := os.OpenFile(filepath.Join(mounted, "open"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	defer func() { _ = open.Close() }()

	for round := range 3 {
		c.kill()
		_, err = fmt.Fprintf(open, "round %d\n", round)
		must(t, err)
		must(t, open.Sync())
		writeDevice(t, device, fmt.Sprintf("raw %d", round))
		c.run()
		onlyOnePoolDevice(t, c.path("pool"))
		// Everything is where it was, and asking again changes nothing.
		c.use(files, "files", "pod", fsCapability("ext4"))
		c.use(raw, "raw", "pod", blockCapability())
		wantFile(t, filepath.Join(mounted, "before"), "written before")
		wantDevice(t, device, fmt.Sprintf("raw %d", round))
		c.snapshot(fmt.Sprintf("round-%d", round), files)
	}
	must(t, open.Close())
	for _, v := range []string{files, raw} {
		c.unpublish(v, "pod")
		c.unstage(v, v)
		must(t, c.tryDelete(v))
	}
	c.kill()
	poolIsSound(t, c.path("pool"))
}

// onlyOnePoolDevice fails when the pool's image has not exactly one loop device.
func onlyOnePoolDevice(t *testing.T, dir string) {
	t.Helper()
	id, err := loop.Identify(filepath.Join(dir, "pool.img"))
	must(t, err)
	devices, err := loop.Find(id)
	must(t, err)
	defer loop.CloseAll(devices)
	if len(devices) != 1 {
		t.Fatalf("the pool's image has %d loop devices", len(devices))
	}
}

// poolIsSound fails when the pool's device remains after its last user, or when its file system has errors.
func poolIsSound(t *testing.T, dir string) {
	t.Helper()
	image := filepath.Join(dir, "pool.img")
	id, err := loop.Identify(image)
	must(t, err)
	eventually(t, "the pool's device goes with its last user", func() error {
		devices, err := loop.Find(id)
		if err != nil {
			return err
		}
		defer loop.CloseAll(devices)
		if len(devices) > 0 {
			return fmt.Errorf("%s is still there", devices[0].Path())
		}
		return nil
	})
	out, err := exec.Command("xfs_repair", "-n", image).CombinedOutput()
	if err != nil {
		t.Errorf("the pool is damaged: %v\n%s", err, out)
	}
}

func TestNodeRebootsAndDataIsThere(t *testing.T) {
	n := newNode(t)
	files := n.create("files", 320*mib, fsCapability("xfs"), nil)
	raw := n.create("raw", 64*mib, blockCapability(), nil)
	mounted := n.use(files, "files", "pod", fsCapability("xfs"))
	device := n.use(raw, "raw", "pod", blockCapability())
	writeFile(t, filepath.Join(mounted, "file"), "kept")
	writeDevice(t, device, "kept too")
	n.stop()
	must(t, powerOff(n.dir))

	n.start()
	n.nothingAttached()
	must(t, os.Remove(device)) // the kubelet's folder keeps the empty file a device was bound to
	mounted = n.use(files, "files", "pod", fsCapability("xfs"))
	device = n.use(raw, "raw", "pod", blockCapability())
	wantFile(t, filepath.Join(mounted, "file"), "kept")
	wantDevice(t, device, "kept too")
}

func TestVolumeStagedBeforeARebootCanBeDeleted(t *testing.T) {
	n := newNode(t)
	raw := n.create("raw", 64*mib, blockCapability(), nil)
	must(t, n.tryStage(raw, "raw", blockCapability()))
	wantCode(t, n.tryDelete(raw), 9) // FailedPrecondition
	n.stop()
	must(t, powerOff(n.dir))
	n.start()
	must(t, n.tryDelete(raw))
}

func TestSecondProcessWaitsForThePool(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, testConfig(n.poolDir(), n.kind, n.size))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second process opened the pool: %v", err)
	}
}

func TestFrozenFileSystemIsThawedAtTheNextStart(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, fsCapability("ext4"), nil)
	mounted := n.use(v, "v", "pod", fsCapability("ext4"))
	n.freeze(v, mounted)
	n.stop()
	n.start()
	notFrozen(t, mounted)
	writeFile(t, filepath.Join(mounted, "file"), "writers continue")
}

// The kernel keeps a frozen file system, frozen, when its last mount goes; the next mount gets it back.
func TestFrozenFileSystemIsThawedWhenTheWholeNodeWasKilled(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, fsCapability("ext4"), nil)
	mounted := n.use(v, "v", "pod", fsCapability("ext4"))
	n.freeze(v, mounted)
	n.stop()
	must(t, unmountAll(n.dir))
	n.start()
	n.use(v, "v", "pod", fsCapability("ext4"))
	notFrozen(t, mounted)
	writeFile(t, filepath.Join(mounted, "file"), "writers continue")
}

// freeze does what a driver has done that is killed in the middle of a snapshot.
func (n *node) freeze(volume, mounted string) {
	n.t.Helper()
	must(n.t, n.driver.pool.MarkFrozen(volume))
	frozen, err := filesystem.Freeze(mounted)
	must(n.t, err)
	if !frozen {
		n.t.Fatal("not frozen")
	}
	n.t.Cleanup(func() { _ = filesystem.Thaw(mounted) })
}

// notFrozen ends the test when the file system is frozen: a write would hang.
func notFrozen(t *testing.T, mounted string) {
	t.Helper()
	frozenNow, err := filesystem.Freeze(mounted)
	must(t, err)
	must(t, filesystem.Thaw(mounted))
	if !frozenNow {
		t.Fatal("the file system was still frozen")
	}
}

func TestInterruptedOperationsLeaveNothing(t *testing.T) {
	n := newNode(t)
	kept := n.create("kept", 64*mib, blockCapability(), nil)
	snapshot := n.snapshot("snapshot", kept)
	volumes := n.path("pool", "mnt", "volumes")
	// What a process leaves that dies after making the data file, after the rename away, and while formatting.
	must(t, os.MkdirAll(filepath.Join(volumes, ".new-half"), 0o700))
	must(t, os.WriteFile(filepath.Join(volumes, ".new-half", "data"), make([]byte, 4096), 0o600))
	must(t, os.MkdirAll(filepath.Join(volumes, ".gone-old"), 0o700))
	must(t, os.WriteFile(filepath.Join(volumes, kept, "data.new"), []byte("half a file system"), 0o600))
	must(t, os.MkdirAll(n.path("pool", "mnt", "snapshots", ".new-cut"), 0o700))
	n.stop()
	n.start()
	for _, gone := range []string{
		filepath.Join(volumes, ".new-half"), filepath.Join(volumes, ".gone-old"),
		filepath.Join(volumes, kept, "data.new"), n.path("pool", "mnt", "snapshots", ".new-cut"),
	} {
		if exists(gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	list, err := n.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	must(t, err)
	if len(list.GetEntries()) != 1 || list.GetEntries()[0].GetVolume().GetVolumeId() != kept {
		t.Errorf("volumes: %v", list.GetEntries())
	}
	n.create("half", 64*mib, blockCapability(), fromSnapshot(snapshot))
}

// The kubelet keeps a device it gave to a pod open by a loop device of its own. When the whole node is killed,
// that one remains, though nobody will ever detach it.
func TestWhatAKilledKubeletLeftGoesWithTheVolume(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	n.use(v, "v", "pod", blockCapability())
	kubelets, err := loop.Attach(devicePath(t, n, v), "a kubelet's", false)
	must(t, err)
	must(t, kubelets.Close())
	n.unpublish(v, "pod")
	n.unstage(v, "v")
	n.nothingAttached()
	must(t, n.tryDelete(v))
}

// devicePath is the node of the volume's device in /dev.
func devicePath(t *testing.T, n *node, volume string) string {
	t.Helper()
	id, err := loop.Identify(n.driver.pool.VolumeData(volume))
	must(t, err)
	devices, err := loop.Find(id)
	must(t, err)
	defer loop.CloseAll(devices)
	return devices[0].Path()
}
