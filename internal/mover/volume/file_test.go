package volume_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/volume/volumetest"
)

func image(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func opener(path string) func(*testing.T) volume.Volume {
	return func(t *testing.T) volume.Volume {
		t.Helper()
		v, err := volume.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestImageFile(t *testing.T) {
	volumetest.Run(t, opener(image(t, t.TempDir(), 4<<20)))
}

func TestImageFileOfOddSize(t *testing.T) {
	volumetest.Run(t, opener(image(t, t.TempDir(), 3<<20+777)))
}

// A file system in memory has no direct I/O.
func TestImageFileWithoutDirectIO(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "lifeboat-volume-")
	if err != nil {
		t.Skipf("no file system in memory here: %v", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	volumetest.Run(t, opener(image(t, dir, 4<<20)))
}

// loop makes a block device of an image, or skips where that is not possible.
func loop(t *testing.T, size int64, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a loop device")
	}
	if _, err := exec.LookPath("losetup"); err != nil {
		t.Skip("needs losetup for a loop device")
	}
	path := image(t, t.TempDir(), size)
	out, err := exec.Command("losetup", append(args, "--find", "--show", path)...).CombinedOutput()
	if err != nil {
		t.Skipf("needs a loop device: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

func TestBlockDevice(t *testing.T) {
	volumetest.Run(t, opener(loop(t, 4<<20)))
}

func TestBlockDeviceWithDirectIO(t *testing.T) {
	volumetest.Run(t, opener(loop(t, 4<<20, "--direct-io=on")))
}

func TestADeviceInUseIsRefused(t *testing.T) {
	device := loop(t, 64<<20)
	first, err := volume.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	var busy *volume.Busy
	if _, err := volume.Open(device); !errors.As(err, &busy) {
		t.Errorf("a second writer got %v", err)
	}
	if r, err := volume.OpenReader(device); err != nil {
		t.Errorf("a reader got %v", err)
	} else {
		_ = r.Close()
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v: %s", err, out)
	}
	at := t.TempDir()
	if err := syscall.Mount(device, at, "ext4", 0, ""); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	defer func() { _ = syscall.Unmount(at, 0) }()
	if _, err := volume.Open(device); !errors.As(err, &busy) || !strings.Contains(err.Error(), device) {
		t.Errorf("a mounted device: %v", err)
	}
}

func TestZeroFreesSpace(t *testing.T) {
	path := image(t, t.TempDir(), 8<<20)
	v, err := volume.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	p := volume.Buffer(4 << 20)
	for i := range p {
		p[i] = 1
	}
	if _, err := v.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Zero(0, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes are still used", st.Blocks*512)
	}
}

func TestWhatIsNoVolumeIsRefused(t *testing.T) {
	for name, path := range map[string]string{"missing": filepath.Join(t.TempDir(), "none"), "a folder": t.TempDir(), "a character device": "/dev/null"} {
		if _, err := volume.Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestZeroFreesWhatWasReservedAndWhatWasWritten(t *testing.T) {
	const size = 8 << 20
	path := image(t, t.TempDir(), size)
	v, err := volume.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	v.Reserve(0, 4<<20)
	if blocks(t, path) == 0 {
		t.Skip("space cannot be reserved here")
	}
	full := volume.Buffer(1 << 20)
	for i := range full {
		full[i] = 7
	}
	for _, at := range []int64{1 << 20, 6 << 20} {
		if _, err := v.WriteAt(full, at); err != nil {
			t.Fatal(err)
		}
	}
	for at := int64(0); at < size; at += 2 << 20 {
		if err := v.Zero(at, 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	if left := blocks(t, path); left > 64<<10 {
		t.Errorf("%d bytes are still taken", left)
	}
	got := volume.Buffer(size)
	if _, err := v.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if b != 0 {
			t.Fatalf("byte %d is %d after it was zeroed", i, b)
		}
	}
}

func TestAReaderSeesWhatTheCacheHasAndWhatOnlyTheDiskHas(t *testing.T) {
	const size = 4 << 20
	path := image(t, t.TempDir(), size)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i >> 12)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	r, err := volume.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	got := volume.Buffer(size)
	look := func(when string) {
		t.Helper()
		clear(got)
		if n, err := r.ReadAt(got, 0); err != nil || n != size || !bytes.Equal(got, content) {
			t.Fatalf("%s: %d bytes, %v, the right ones: %t", when, n, err, bytes.Equal(got, content))
		}
	}
	look("not written back yet")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	// Half of it leaves the cache.
	if err := unix.Fadvise(int(f.Fd()), size/2, size/2, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	look("half in the cache")
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	look("on the disk only")
}
