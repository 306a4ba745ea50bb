package change

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/localcsitest"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

const mib = int64(1) << 20

// sharing are the file systems whose files share blocks.
var sharing = []filesystem.Kind{filesystem.XFS, filesystem.Btrfs}

// mounted returns a folder on a new file system of the kind.
func mounted(t *testing.T, kind filesystem.Kind) string {
	t.Helper()
	localcsitest.NeedRoot(t)
	image, point := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 512*mib))
	must(t, filesystem.Format(t.Context(), image, kind))
	device, err := loop.Attach(image, image, false)
	must(t, err)
	must(t, mount.Mount(device.Path(), point, string(kind), nil))
	must(t, device.SetAutoClear(true))
	must(t, device.Close())
	t.Cleanup(func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) })
	return point
}

func clone(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	must(t, err)
	defer func() { _ = out.Close() }()
	must(t, unix.IoctlFileClone(int(out.Fd()), int(in.Fd())))
}

// disorder changes a file in ways that volumes are changed in.
type disorder struct {
	t    *testing.T
	rand *rand.Rand
	file *os.File
	size int64
}

// somewhere is a run in the file, at block boundaries or not.
func (d *disorder) somewhere() (offset, length int64) {
	length = 1 + d.rand.Int64N(200<<10)
	offset = d.rand.Int64N(d.size - length)
	if d.rand.IntN(2) == 0 {
		return offset &^ 4095, max(length&^4095, 4096)
	}
	return offset, length
}

func (d *disorder) write() {
	offset, length := d.somewhere()
	p := make([]byte, length)
	for i := range p {
		p[i] = byte(d.rand.Uint32())
	}
	_, err := d.file.WriteAt(p, offset)
	must(d.t, err)
}

func (d *disorder) fallocate(mode uint32) {
	offset, length := d.somewhere()
	must(d.t, unix.Fallocate(int(d.file.Fd()), mode, offset, length))
}

// step does one thing.
func (d *disorder) step() {
	switch d.rand.IntN(12) {
	case 0:
		d.fallocate(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	case 1:
		d.fallocate(unix.FALLOC_FL_KEEP_SIZE)
	case 2: // end in the middle of a block and come back: what lies behind the end reads as zeros then
		must(d.t, d.file.Truncate(d.size-d.rand.Int64N(mib)))
		must(d.t, d.file.Truncate(d.size))
	default:
		d.write()
	}
}

// compared is what comparing two files byte by byte says of a list.
type compared struct{ missed, listed, differing int64 }

// compare reads both files whole, block by block.
func compare(t *testing.T, base, volume string, l List) compared {
	t.Helper()
	one, err := os.ReadFile(base)
	must(t, err)
	other, err := os.ReadFile(volume)
	must(t, err)
	if int64(len(other)) != l.Size {
		t.Fatalf("the list is of %d bytes, the volume has %d", l.Size, len(other))
	}
	c := compared{listed: l.Bytes()}
	for at := int64(0); at < l.Size; at += Grain {
		end := min(at+Grain, l.Size)
		was := make([]byte, end-at)
		if at < int64(len(one)) {
			copy(was, one[at:])
		}
		if bytes.Equal(was, other[at:end]) {
			continue
		}
		c.differing += end - at
		if !covered(l.Extents, at, end-at) {
			c.missed += end - at
		}
	}
	return c
}

func TestBlockMapsTellEveryChange(t *testing.T) {
	for _, kind := range sharing {
		for _, synced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, synced %t", kind, synced), func(t *testing.T) {
				dir := mounted(t, kind)
				volume := filepath.Join(dir, "volume")
				f, err := os.Create(volume)
				must(t, err)
				defer func() { _ = f.Close() }()
				must(t, f.Truncate(32*mib))
				d := &disorder{t: t, rand: rand.New(rand.NewPCG(1, uint64(len(kind)))), file: f, size: 32 * mib}
				for range 100 {
					d.step()
				}
				for round := range 12 {
					base, target := filepath.Join(dir, fmt.Sprint("base-", round)), filepath.Join(dir, fmt.Sprint("target-", round))
					clone(t, volume, base)
					for range d.rand.IntN(60) {
						d.step()
					}
					var grown int64
					if round%3 == 2 { // odd sizes now and then
						grown = 1 + d.rand.Int64N(2*mib)
						d.size += grown
						must(t, f.Truncate(d.size))
						d.write()
					}
					if synced {
						must(t, f.Sync())
					}
					// The volume itself, whose last writes may still be in memory, and a copy of it as drivers make it.
					clone(t, volume, target)
					for _, path := range []string{volume, target} {
						l, err := Delta(t.Context(), path, d.size, Origin{BaseFile: base})
						must(t, err)
						wellFormed(t, d.size, Grain, l.Extents)
						c := compare(t, base, path, l)
						if c.missed > 0 {
							t.Fatalf("round %d: %d bytes changed and are not listed", round, c.missed)
						}
						// A hole punched where zeros were is listed too, and what was added whole.
						if c.listed > c.differing+grown+16*Grain {
							t.Errorf("round %d: %d bytes are listed, %d changed and %d are new", round, c.listed, c.differing, grown)
						}
					}
				}
			})
		}
	}
}

func TestNothingChangedIsAnEmptyList(t *testing.T) {
	for _, kind := range sharing {
		t.Run(string(kind), func(t *testing.T) {
			dir := mounted(t, kind)
			volume, base := filepath.Join(dir, "volume"), filepath.Join(dir, "base")
			must(t, os.WriteFile(volume, bytes.Repeat([]byte("data"), 1<<20), 0o600))
			clone(t, volume, base)
			l, err := Delta(t.Context(), volume, 4*mib, Origin{BaseFile: base})
			must(t, err)
			if len(l.Extents) > 0 {
				t.Errorf("%v is listed", l.Extents)
			}
		})
	}
}

// Many extents take several calls to the kernel.
func TestFragmentedFilesAreReadToTheirEnd(t *testing.T) {
	dir := mounted(t, filesystem.XFS)
	volume, base := filepath.Join(dir, "volume"), filepath.Join(dir, "base")
	f, err := os.Create(volume)
	must(t, err)
	defer func() { _ = f.Close() }()
	const blocks = 6 * fiemapBatch
	must(t, f.Truncate(blocks*Grain))
	block := bytes.Repeat([]byte{1}, Grain)
	for i := int64(0); i < blocks; i += 2 {
		_, err := f.WriteAt(block, i*Grain)
		must(t, err)
	}
	clone(t, volume, base)
	for i := int64(0); i < blocks; i += 6 {
		_, err := f.WriteAt(block[:1], i*Grain)
		must(t, err)
	}
	l, err := Delta(t.Context(), volume, blocks*Grain, Origin{BaseFile: base})
	must(t, err)
	if len(l.Extents) != blocks/6 {
		t.Fatalf("%d extents, want %d", len(l.Extents), blocks/6)
	}
	for i, e := range l.Extents {
		if e != (digest.Extent{Offset: int64(i) * 6 * Grain, Length: Grain}) {
			t.Fatalf("extent %d is %v", i, e)
		}
	}
}

// The tail that the base did not have is listed whole, also where it is a hole.
func TestGrownTailIsListed(t *testing.T) {
	for _, kind := range sharing {
		t.Run(string(kind), func(t *testing.T) {
			dir := mounted(t, kind)
			volume, base := filepath.Join(dir, "volume"), filepath.Join(dir, "base")
			must(t, os.WriteFile(volume, bytes.Repeat([]byte("x"), 100_000), 0o600))
			clone(t, volume, base)
			must(t, os.Truncate(volume, mib))
			l, err := Delta(t.Context(), volume, mib, Origin{BaseFile: base})
			must(t, err)
			const tail = 100_000 / Grain * Grain
			if want := (digest.Extent{Offset: tail, Length: mib - tail}); len(l.Extents) != 1 || l.Extents[0] != want {
				t.Errorf("listed %v, want %v", l.Extents, want)
			}
			// The other way round: the volume was cut.
			l, err = Delta(t.Context(), base, 100_000, Origin{BaseFile: volume})
			must(t, err)
			if c := compare(t, volume, base, l); c.missed > 0 {
				t.Errorf("%d bytes are missed", c.missed)
			}
		})
	}
}

// Addresses mean something only while the base exists. This keeps the base's map, removes the base and writes to the
// volume: nobody shares its blocks any more, so they are overwritten where they are and the old map says that nothing
// changed. With the base there the same write is seen.
func TestMapOfARemovedBaseMissesChanges(t *testing.T) {
	for _, keep := range []bool{true, false} {
		dir := mounted(t, filesystem.XFS)
		volume, base := filepath.Join(dir, "volume"), filepath.Join(dir, "base")
		must(t, os.WriteFile(volume, bytes.Repeat([]byte("before"), 1<<18), 0o600))
		size := int64(6 << 18)
		clone(t, volume, base)
		f, err := os.Open(base)
		must(t, err)
		old := mapOf(t, f, size)
		must(t, f.Close())
		if !keep {
			must(t, os.Remove(base))
			removedForGood(t, dir)
		}
		out, err := os.OpenFile(volume, os.O_WRONLY, 0)
		must(t, err)
		_, err = out.WriteAt(bytes.Repeat([]byte("after!"), 10_000), 600_000)
		must(t, errors.Join(err, out.Sync(), out.Close()))
		f, err = os.Open(volume)
		must(t, err)
		missed := same(old, mapOf(t, f, size))
		must(t, f.Close())
		if missed == keep {
			t.Errorf("base kept %t: the maps are equal %t", keep, missed)
		}
	}
	dir := mounted(t, filesystem.XFS)
	volume := filepath.Join(dir, "volume")
	must(t, os.WriteFile(volume, []byte("x"), 0o600))
	if _, err := Delta(t.Context(), volume, 1, Origin{BaseFile: filepath.Join(dir, "removed")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a base that was removed: %v", err)
	}
}

// removedForGood waits until the file system has given the blocks of removed files back, which XFS does behind the
// scenes: freezing waits for it.
func removedForGood(t *testing.T, dir string) {
	t.Helper()
	frozen, err := filesystem.Freeze(dir)
	must(t, err)
	if !frozen {
		t.Fatal("not frozen")
	}
	must(t, filesystem.Thaw(dir))
}

func mapOf(t *testing.T, f *os.File, size int64) []run {
	t.Helper()
	var runs []run
	for m := newMapReader(f, size); m.at < size; {
		r, err := m.next(t.Context())
		must(t, err)
		runs = append(runs, r)
	}
	return runs
}

func same(one, other []run) bool {
	for i := range min(len(one), len(other)) {
		if one[i] != other[i] {
			return false
		}
	}
	return len(one) == len(other)
}

func TestUnrelatedFilesDifferWhollyWhereEitherHasData(t *testing.T) {
	for _, kind := range sharing {
		t.Run(string(kind), func(t *testing.T) {
			dir := mounted(t, kind)
			volume, other := filepath.Join(dir, "volume"), filepath.Join(dir, "other")
			content := bytes.Repeat([]byte("same"), 1<<20)
			for _, path := range []string{volume, other} {
				must(t, os.WriteFile(path, content, 0o600))
			}
			l, err := Delta(t.Context(), volume, 4*mib, Origin{BaseFile: other})
			must(t, err)
			if l.Bytes() != 4*mib {
				t.Errorf("%v is listed: equal content at other addresses cannot be known to be equal", l.Extents)
			}
		})
	}
}

func TestBtrfsFilesInTwoSubvolumesShareBlocks(t *testing.T) {
	dir := mounted(t, filesystem.Btrfs)
	sub, cut := filepath.Join(dir, "sub"), filepath.Join(dir, "cut")
	btrfs(t, "subvolume", "create", sub)
	volume := filepath.Join(sub, "volume")
	must(t, os.WriteFile(volume, bytes.Repeat([]byte("data"), 1<<20), 0o600))
	btrfs(t, "subvolume", "snapshot", "-r", sub, cut)
	f, err := os.OpenFile(volume, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("x"), mib)
	must(t, errors.Join(err, f.Close()))
	l, err := Delta(t.Context(), volume, 4*mib, Origin{BaseFile: filepath.Join(cut, "volume")})
	must(t, err)
	if len(l.Extents) != 1 || l.Extents[0] != (digest.Extent{Offset: mib, Length: Grain}) {
		t.Errorf("listed %v", l.Extents)
	}
}

func btrfs(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("btrfs %v: %v\n%s", args, err, out)
	}
}

func TestFilesThatCannotBeComparedAreRefused(t *testing.T) {
	one, two := mounted(t, filesystem.XFS), mounted(t, filesystem.XFS)
	plain := mounted(t, filesystem.Ext4)
	for _, dir := range []string{one, two, plain} {
		must(t, os.WriteFile(filepath.Join(dir, "volume"), []byte("x"), 0o600))
	}
	for name, c := range map[string]struct{ volume, base string }{
		"two file systems":         {filepath.Join(one, "volume"), filepath.Join(two, "volume")},
		"no sharing file system":   {filepath.Join(plain, "volume"), filepath.Join(plain, "volume")},
		"the volume is a device":   {"/dev/null", filepath.Join(one, "volume")},
		"the base is a folder":     {filepath.Join(one, "volume"), one},
		"an overlay hides devices": {overlay(t, one), overlay(t, one)},
	} {
		_, err := Delta(t.Context(), c.volume, 1, Origin{BaseFile: c.base})
		var no *NotComparable
		if !errors.As(err, &no) {
			t.Errorf("%s: %v", name, err)
		}
	}
	volume := filepath.Join(one, "volume")
	_, err := Delta(t.Context(), volume, 2, Origin{BaseFile: volume})
	var differs *SizeDiffers
	if !errors.As(err, &differs) || differs.Listed != 1 || differs.Size != 2 {
		t.Errorf("the wrong size: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Delta(ended, volume, 1, Origin{BaseFile: volume}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// overlay returns a file of an overlay whose lower part is dir/volume.
func overlay(t *testing.T, lower string) string {
	t.Helper()
	dir := mounted(t, filesystem.XFS)
	upper, work, point := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), t.TempDir()
	must(t, errors.Join(os.Mkdir(upper, 0o700), os.Mkdir(work, 0o700)))
	must(t, unix.Mount("overlay", point, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work))
	t.Cleanup(func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) })
	return filepath.Join(point, "volume")
}

// What is allocated is what was written: every byte that is not zero, and not what was only reserved.
func TestAllocatedIsWhatWasWritten(t *testing.T) {
	const size = 64*mib + 1000
	for _, kind := range []filesystem.Kind{filesystem.XFS, filesystem.Btrfs, filesystem.Ext4, "tmpfs"} {
		t.Run(string(kind), func(t *testing.T) {
			path := filepath.Join(folderOn(t, kind), "volume")
			f, err := os.Create(path)
			must(t, err)
			defer func() { _ = f.Close() }()
			must(t, f.Truncate(size))
			for _, at := range []int64{0, 5 * mib, 20*mib + 17, size - 10} {
				_, err := f.WriteAt([]byte("0123456789"), at)
				must(t, err)
			}
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 30*mib, 8*mib))
			_, err = f.WriteAt([]byte("in what was reserved"), 34*mib)
			must(t, err)
			l, err := Allocated(t.Context(), path, size, Origin{})
			must(t, err)
			wellFormed(t, size, Grain, l.Extents)
			empty := filepath.Join(t.TempDir(), "empty")
			must(t, os.WriteFile(empty, nil, 0o600))
			if c := compare(t, empty, path, l); c.missed > 0 || c.listed > 5*digest.BlockSize {
				t.Errorf("%d bytes that are not zero are missed; %d are listed", c.missed, c.listed)
			}
		})
	}
}

func folderOn(t *testing.T, kind filesystem.Kind) string {
	t.Helper()
	if kind != "tmpfs" {
		return mounted(t, kind)
	}
	localcsitest.NeedRoot(t)
	point := t.TempDir()
	must(t, unix.Mount("tmpfs", point, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) })
	return point
}

func TestAllocatedOfWhatCannotTell(t *testing.T) {
	localcsitest.NeedRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, mib))
	device, err := loop.Attach(image, image, false)
	must(t, err)
	defer func() { must(t, device.Detach()) }()
	var no *NotAFile
	if _, err := Allocated(t.Context(), device.Path(), mib, Origin{}); !errors.As(err, &no) {
		t.Errorf("a block device: %v", err)
	}
	var differs *SizeDiffers
	if _, err := Allocated(t.Context(), image, 2*mib, Origin{}); !errors.As(err, &differs) {
		t.Errorf("the wrong size: %v", err)
	}
	if l, err := Allocated(t.Context(), image, mib, Origin{}); err != nil || len(l.Extents) > 0 {
		t.Errorf("an empty file: %v, %v", l, err)
	}
}
