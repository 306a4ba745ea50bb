package localcsi

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
)

func writeDevice(t *testing.T, device, text string) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(text), 8192)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func wantDevice(t *testing.T, device, want string) {
	t.Helper()
	f, err := os.Open(device)
	must(t, err)
	defer func() { _ = f.Close() }()
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 8192)
	must(t, err)
	if string(got) != want {
		t.Errorf("%s holds %q, want %q", device, got, want)
	}
}

func TestFileSystemSnapshotIsReadAsABlockDeviceAndBack(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t)
			source := n.create("source", 320*mib, fsCapability(kind), nil)
			mounted := n.use(source, "source", "app", fsCapability(kind))
			writeFile(t, filepath.Join(mounted, "file"), "from the source")
			snapshot := n.snapshot("snapshot", source)
			writeFile(t, filepath.Join(mounted, "file"), "written later")

			point := n.create("point", 320*mib, blockCapability(), fromSnapshot(snapshot))
			from := n.use(point, "point", "mover", blockCapability())
			replica := n.create("replica", 320*mib, fsCapability(kind), nil)
			to := n.use(replica, "replica-block", "receiver", blockCapability())
			copyDevice(t, from, to)
			n.unpublish(replica, "receiver")

			back := n.snapshot("back", replica)
			restored := n.create("restored", 640*mib, fsCapability("ext4"), fromSnapshot(back))
			wantFile(t, filepath.Join(n.use(restored, "restored", "app", fsCapability("ext4")), "file"), "from the source")
			wantSize(t, n.target(restored, "app"), 500*mib) // a larger volume: the file system grew with it

			// The replica itself becomes the application's volume, though its block staging is still there.
			wantFile(t, filepath.Join(n.use(replica, "replica", "app", fsCapability("")), "file"), "from the source")
		})
	}
}

func copyDevice(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	must(t, err)
	defer func() { _ = out.Close() }()
	size, err := out.ReadFrom(in)
	must(t, err)
	if size < 64*mib {
		t.Fatalf("only %d bytes copied", size)
	}
	must(t, out.Sync())
}

// wantSize fails when the file system at path is smaller than want bytes.
func wantSize(t *testing.T, path string, want int64) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	if got := int64(st.Blocks) * st.Bsize; got < want {
		t.Errorf("the file system at %s has %d bytes, want at least %d", path, got, want)
	}
}

func TestSnapshotOfAMountedFileSystemIsClean(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, fsCapability("ext4"), nil)
	mounted := n.use(v, "v", "pod", fsCapability("ext4"))
	must(t, os.WriteFile(filepath.Join(mounted, "unsynced"), bytes.Repeat([]byte("x"), 1<<20), 0o600))
	snapshot := n.snapshot("s", v)
	// s_state at 1024+0x3A: 1 is clean; s_feature_incompat at 1024+0x60: 4 is "journal needs recovery".
	sb := make([]byte, 1024)
	f, err := os.Open(n.driver.pool.SnapshotData(snapshot))
	must(t, err)
	defer func() { _ = f.Close() }()
	_, err = f.ReadAt(sb, 1024)
	must(t, err)
	if sb[0x60]&4 != 0 {
		t.Error("the journal of the snapshot needs recovery: it was not frozen")
	}
	if exists(n.path("pool", "mnt", "volumes", v, "frozen")) {
		t.Error("the note of the freeze remains")
	}
	writeFile(t, filepath.Join(mounted, "after"), "writers continue")
	wantFile(t, filepath.Join(mounted, "after"), "writers continue")
}

func TestCloneIsIndependent(t *testing.T) {
	n := newNode(t)
	first := n.create("first", 64*mib, fsCapability(""), nil)
	a := n.use(first, "first", "pod", fsCapability(""))
	writeFile(t, filepath.Join(a, "file"), "shared")
	second := n.create("second", 64*mib, fsCapability(""), fromVolume(first))
	b := n.use(second, "second", "pod", fsCapability(""))
	wantFile(t, filepath.Join(b, "file"), "shared")
	writeFile(t, filepath.Join(a, "file"), "changed in the first")
	wantFile(t, filepath.Join(b, "file"), "shared")
	writeFile(t, filepath.Join(b, "file"), "changed in the second")
	wantFile(t, filepath.Join(a, "file"), "changed in the first")

	n.unpublish(first, "pod")
	n.unstage(first, "first")
	must(t, n.tryDelete(first))
	wantFile(t, filepath.Join(b, "file"), "changed in the second")
	writeFile(t, filepath.Join(b, "more"), "still writable")
}

func TestReplicaPairOneHandleTwoModes(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, fsCapability(""), nil)

	// The receiver writes an empty volume that was made for a file system: it is not formatted.
	device := n.use(v, "pair", "receiver", blockCapability())
	wantBlank(t, n.driver.pool.VolumeData(v))
	wantCode(t, n.tryStage(v, "claim", fsCapability("")), codes.FailedPrecondition)

	// Pod gone, other mode at once, while the pair is still staged.
	n.unpublish(v, "receiver")
	mounted := n.use(v, "claim", "app", fsCapability(""))
	writeFile(t, filepath.Join(mounted, "file"), "by the application")
	err := n.tryPublish(v, "pair", "receiver", blockCapability(), false)
	wantCode(t, err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "is mounted as a file system at "+n.target(v, "app")) {
		t.Errorf("the message does not say who is in the way: %v", err)
	}
	must(t, n.tryPublish(v, "pair", "reader", blockCapability(), true)) // reading beside a mount is no second writer
	n.unpublish(v, "reader")

	// Application gone, not yet unstaged: the receiver gets the device, the idle mount gives way.
	n.unpublish(v, "app")
	must(t, n.tryPublish(v, "pair", "receiver", blockCapability(), false))
	notMounted(t, n.staging("claim"))
	wantCode(t, n.tryPublish(v, "claim", "app", fsCapability(""), false), codes.FailedPrecondition)
	n.unpublish(v, "receiver")

	// And back: the kubelet thinks the claim is still staged, so publishing mounts it again.
	must(t, n.tryPublish(v, "claim", "app", fsCapability(""), false))
	wantFile(t, filepath.Join(mounted, "file"), "by the application")
	n.unstage(v, "pair")
	wantFile(t, filepath.Join(mounted, "file"), "by the application")
	wantCode(t, n.tryDelete(v), codes.FailedPrecondition)
	n.unpublish(v, "app")
	n.unstage(v, "claim")
	n.nothingAttached()
	must(t, n.tryDelete(v))
	_ = device
}

func wantBlank(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	blank, err := filesystem.Blank(f)
	must(t, err)
	if !blank {
		t.Errorf("%s was written to", path)
	}
}

func notMounted(t *testing.T, path string) {
	t.Helper()
	table, err := mount.Read()
	must(t, err)
	if e, mounted, err := table.At(path); err != nil || mounted {
		t.Errorf("%s is mounted: %v %v", path, e, err)
	}
}

func TestDataWithoutAFileSystemIsNeverFormatted(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	writeDevice(t, n.use(v, "raw", "pod", blockCapability()), "half a replica")
	n.unpublish(v, "pod")
	n.unstage(v, "raw")
	wantCode(t, n.tryStage(v, "files", fsCapability("ext4")), codes.FailedPrecondition)
	wantDevice(t, n.use(v, "raw", "pod", blockCapability()), "half a replica")
}

func TestExpansionWhileInUse(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t)
			v := n.create("v", 320*mib, fsCapability(kind), nil)
			mounted := n.use(v, "v", "pod", fsCapability(kind))
			writeFile(t, filepath.Join(mounted, "file"), "kept")
			resp, err := n.controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: v, CapacityRange: &csi.CapacityRange{RequiredBytes: gib}, VolumeCapability: fsCapability(kind)})
			must(t, err)
			if resp.GetCapacityBytes() != gib || !resp.GetNodeExpansionRequired() {
				t.Errorf("expanded to %d, node expansion %t", resp.GetCapacityBytes(), resp.GetNodeExpansionRequired())
			}
			_, err = n.service.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: v, VolumePath: mounted})
			if able, _ := filesystem.GrowsMounted(filesystem.Kind(kind)); !able {
				t.Log("this process lacks CAP_SYS_RESOURCE: ext4 grows at the next staging")
				wantCode(t, err, codes.FailedPrecondition)
				n.unpublish(v, "pod")
				n.unstage(v, "v")
				n.use(v, "v", "pod", fsCapability(kind))
				_, err = n.service.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: v, VolumePath: mounted})
			}
			must(t, err)
			wantSize(t, mounted, 900*mib)
			wantFile(t, filepath.Join(mounted, "file"), "kept")
		})
	}
}

func TestExpansionOfARawDevice(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	device := n.use(v, "v", "pod", blockCapability())
	_, err := n.controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: v, CapacityRange: &csi.CapacityRange{RequiredBytes: 128 * mib}})
	must(t, err)
	f, err := os.Open(device)
	must(t, err)
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, 2)
	must(t, err)
	if size != 128*mib {
		t.Errorf("the device has %d bytes", size)
	}
	_, err = n.controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: v, CapacityRange: &csi.CapacityRange{RequiredBytes: mib, LimitBytes: 64 * mib}})
	wantCode(t, err, codes.OutOfRange)
}

func TestSizesAreExact(t *testing.T) {
	n := newNode(t)
	for name, sizes := range map[string][2]int64{"even": {64 * mib, 64 * mib}, "odd": {64*mib + 1, 64*mib + 4096}, "decimal": {100_000_000, 100_003_840}} {
		v, err := n.driver.pool.Volume(n.create(name, sizes[0], blockCapability(), nil))
		must(t, err)
		if v.Size != sizes[1] {
			t.Errorf("%s: %d bytes asked, %d made, want %d", name, sizes[0], v.Size, sizes[1])
		}
	}
}

func TestFullPoolSaysSo(t *testing.T) {
	n := newNodeOn(t, filesystem.XFS, 320*mib)
	v := n.create("v", 64*mib, blockCapability(), nil)
	fill(t, n.path("pool", "mnt"))
	_, err := n.controller.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: v})
	for i := 0; err == nil && i < 10000; i++ {
		_, err = n.controller.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)), SourceVolumeId: v})
	}
	wantCode(t, err, codes.ResourceExhausted)
	if !bytes.Contains([]byte(err.Error()), []byte("is full")) || !bytes.Contains([]byte(err.Error()), []byte("--pool-size")) {
		t.Errorf("the message does not say what to do: %v", err)
	}
	_, err = n.controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "large", CapacityRange: &csi.CapacityRange{RequiredBytes: gib},
		VolumeCapabilities: []*csi.VolumeCapability{blockCapability()}})
	wantCode(t, err, codes.ResourceExhausted)
	_, err = n.tryGroup("group", v)
	wantCode(t, err, codes.ResourceExhausted)
	must(t, os.Remove(n.path("pool", "mnt", "filler")))
	n.snapshot("space-again", v)
	_, err = n.tryGroup("group", v)
	must(t, err)
}

// fill takes all free blocks of the file system.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	defer func() { _ = f.Close() }()
	at := int64(0)
	for step := 64 * mib; step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, at, step); err != nil {
			step /= 2
			continue
		}
		at += step
	}
}

func TestPoolGrows(t *testing.T) {
	n := newNodeOn(t, filesystem.XFS, 320*mib)
	v := n.create("v", 64*mib, fsCapability(""), nil)
	writeFile(t, filepath.Join(n.use(v, "v", "pod", fsCapability("")), "file"), "kept")
	n.stop()
	n.size = gib
	n.start()
	space, err := n.driver.pool.Space()
	must(t, err)
	if space.Total < 900*mib {
		t.Errorf("the pool has %d bytes", space.Total)
	}
	wantFile(t, filepath.Join(n.target(v, "pod"), "file"), "kept")
}

func TestBtrfsPool(t *testing.T) {
	n := newNodeOn(t, filesystem.Btrfs, gib)
	v := n.create("v", 64*mib, fsCapability(""), nil)
	writeFile(t, filepath.Join(n.use(v, "v", "pod", fsCapability("")), "file"), "on btrfs")
	n.stop()
	n.start()
	onlyOnePoolDevice(t, n.poolDir())
	restored := n.create("restored", 64*mib, fsCapability(""), fromSnapshot(n.snapshot("s", v)))
	wantFile(t, filepath.Join(n.use(restored, "restored", "pod", fsCapability("")), "file"), "on btrfs")
}

// A folder on a file system that shares blocks needs no image: here the folder is on another pool's.
func TestPoolOnAFileSystemThatSharesBlocks(t *testing.T) {
	outer := newNode(t)
	inner := &node{t: t, dir: outer.path("pool", "mnt"), kind: filesystem.XFS, size: gib}
	t.Cleanup(func() {
		if inner.stop != nil {
			inner.stop()
		}
	})
	inner.start()
	if exists(inner.path("pool", "pool.img")) {
		t.Error("an image was made though the file system shares blocks")
	}
	v := inner.create("v", 64*mib, blockCapability(), nil)
	inner.snapshot("s", v)
}

func TestDeviceUsesDirectIO(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	n.use(v, "v", "pod", blockCapability())
	id, err := loop.Identify(n.driver.pool.VolumeData(v))
	must(t, err)
	devices, err := loop.Find(id)
	must(t, err)
	defer loop.CloseAll(devices)
	if len(devices) != 1 || !devices[0].DirectIO {
		t.Errorf("devices: %+v", devices)
	}
}

// There is one node, so all pods that share a file system are on it.
func TestAFileSystemIsShared(t *testing.T) {
	n := newNode(t)
	shared := fsCapability("")
	shared.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	id := n.create("v", 64*mib, shared, nil)
	first := n.use(id, "v", "first", shared)
	must(t, n.tryPublish(id, "v", "second", shared, false))
	must(t, os.WriteFile(filepath.Join(first, "a"), []byte("shared"), 0o644))
	if got, err := os.ReadFile(filepath.Join(n.target(id, "second"), "a")); err != nil || string(got) != "shared" {
		t.Errorf("the second pod reads %q, %v", got, err)
	}
}

func TestReadOnlyPublications(t *testing.T) {
	n := newNode(t)
	files := n.create("files", 64*mib, fsCapability(""), nil)
	mounted := n.use(files, "files", "writer", fsCapability("", "noatime"))
	writeFile(t, filepath.Join(mounted, "file"), "text")
	must(t, n.tryPublish(files, "files", "reader", fsCapability(""), true))
	if err := os.WriteFile(filepath.Join(n.target(files, "reader"), "file"), nil, 0o600); err == nil {
		t.Error("a read-only publication was written to")
	}
	must(t, n.tryPublish(files, "files", "reader", fsCapability(""), true))
	wantCode(t, n.tryPublish(files, "files", "reader", fsCapability(""), false), codes.AlreadyExists)

	raw := n.create("raw", 64*mib, blockCapability(), nil)
	must(t, n.tryStage(raw, "raw", blockCapability()))
	must(t, n.tryPublish(raw, "raw", "reader", blockCapability(), true))
	if f, err := os.OpenFile(n.target(raw, "reader"), os.O_WRONLY, 0); err == nil {
		if _, err := f.Write([]byte("x")); err == nil && f.Sync() == nil {
			t.Error("a read-only device was written to")
		}
		_ = f.Close()
	}
}

func TestDeletedFilesGiveSpaceBack(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 128*mib, fsCapability("ext4"), nil)
	mounted := n.use(v, "v", "pod", fsCapability("ext4"))
	file := filepath.Join(mounted, "file")
	writeFile(t, file, string(bytes.Repeat([]byte("x"), 32<<20)))
	full := allocated(t, n.driver.pool.VolumeData(v))
	must(t, os.Remove(file))
	eventually(t, "deleting gives blocks back", func() error {
		must(t, filesystem.Sync(mounted))
		if now := allocated(t, n.driver.pool.VolumeData(v)); now > full-24*mib {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestPagesContinueThoughEntriesGo(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		n.create(name, mib, blockCapability(), nil)
	}
	first, err := n.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2})
	must(t, err)
	second, err := n.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: first.GetNextToken(), MaxEntries: 1})
	must(t, err)
	if got := second.GetEntries()[0].GetVolume().GetVolumeId(); got != "c" {
		t.Errorf("the second page begins with %s", got)
	}
	must(t, n.tryDelete("b")) // the last of the page
	n.create("a2", mib, blockCapability(), nil)
	rest, err := n.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: first.GetNextToken()})
	must(t, err)
	var got string
	for _, e := range append(first.GetEntries(), rest.GetEntries()...) {
		got += e.GetVolume().GetVolumeId() + " "
	}
	if got != "a b c d " {
		t.Errorf("pages gave %s", got)
	}
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	n := newNode(t)
	manyNodes := blockCapability()
	manyNodes.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	for name, c := range map[string]struct {
		request *csi.CreateVolumeRequest
		want    codes.Code
	}{
		"ReadWriteMany as a block": {&csi.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csi.VolumeCapability{manyNodes}}, codes.InvalidArgument},
		"unknown file system":      {&csi.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csi.VolumeCapability{fsCapability("zfs")}}, codes.InvalidArgument},
		"xfs on too few bytes":     {&csi.CreateVolumeRequest{Name: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: 64 * mib}, VolumeCapabilities: []*csi.VolumeCapability{fsCapability("xfs")}}, codes.OutOfRange},
		"misspelt parameter":       {&csi.CreateVolumeRequest{Name: "v", Parameters: map[string]string{"fstype": "xfs"}, VolumeCapabilities: []*csi.VolumeCapability{fsCapability("")}}, codes.InvalidArgument},
		"other node":               {&csi.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csi.VolumeCapability{fsCapability("")}, AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{TopologyKey: "node-2"}}}}}, codes.ResourceExhausted},
		"limit below requirement":  {&csi.CreateVolumeRequest{Name: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: gib, LimitBytes: mib}, VolumeCapabilities: []*csi.VolumeCapability{fsCapability("")}}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.controller.CreateVolume(t.Context(), c.request)
			wantCode(t, err, c.want)
		})
	}
	_, err := n.driver.pool.Volume("../volumes/v")
	wantCode(t, n.tryStage("../../x", "x", fsCapability("")), codes.NotFound)
	if err == nil {
		t.Error("a path served as an ID")
	}
}

func TestRestoreSmallerThanTheSnapshotIsRefused(t *testing.T) {
	n := newNode(t)
	s := n.snapshot("s", n.create("v", 64*mib, blockCapability(), nil))
	_, err := n.controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "small", CapacityRange: &csi.CapacityRange{RequiredBytes: 32 * mib},
		VolumeCapabilities: []*csi.VolumeCapability{blockCapability()}, VolumeContentSource: fromSnapshot(s)})
	wantCode(t, err, codes.OutOfRange)
}

// The kubelet takes two PersistentVolumes with one handle for one volume: when a pod of the second starts before
// it has unstaged the first, it stages nothing, and later unstages only the first.
func TestPublishingStagesWhatTheKubeletLeftOut(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, fsCapability(""), nil)
	n.use(v, "pair", "receiver", blockCapability())
	n.unpublish(v, "receiver")
	must(t, n.tryPublish(v, "claim", "app", fsCapability(""), false))
	writeFile(t, filepath.Join(n.target(v, "app"), "file"), "text")
	must(t, n.tryPublish(v, "claim", "second", fsCapability(""), false))
	n.unpublish(v, "app")
	wantFile(t, filepath.Join(n.target(v, "second"), "file"), "text")
	n.unpublish(v, "second")
	notMounted(t, n.staging("claim"))
	n.unstage(v, "pair")
	n.nothingAttached()

	// The other way round: the block device is published where only the file system was staged.
	n.unpublish(v, n.stageAndUse(v, "claim"))
	must(t, n.tryPublish(v, "pair", "receiver", blockCapability(), false))
	n.unpublish(v, "receiver")
	n.nothingAttached()
	must(t, n.tryDelete(v))
}

// stageAndUse stages and publishes the file system and returns the pod.
func (n *node) stageAndUse(volume, at string) string {
	n.t.Helper()
	n.use(volume, at, "app", fsCapability(""))
	return "app"
}

func TestAStagingPathThatIsGoneDoesNotKeepTheVolume(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	must(t, n.tryStage(v, "raw", blockCapability()))
	wantCode(t, n.tryDelete(v), codes.FailedPrecondition)
	must(t, os.Remove(n.staging("raw")))
	must(t, n.tryDelete(v))
}
