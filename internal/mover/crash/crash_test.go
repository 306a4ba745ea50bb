package crash_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/volume/volumetest"
)

func TestVolume(t *testing.T) {
	m := crash.New(1)
	volumetest.Run(t, func(*testing.T) volume.Volume { return m.Volume("v", 3<<20+777) })
}

func read(t *testing.T, v volume.Volume) []byte {
	t.Helper()
	p := make([]byte, v.Size())
	if n, err := v.ReadAt(p, 0); n != len(p) {
		t.Fatal(err)
	}
	return p
}

// Synced is kept; unsynced is lost, kept or torn, and over many crashes all three are seen.
func TestACrashKeepsWhatWasSyncedAndAnythingElseMaybe(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(60) {
		m := crash.New(seed)
		v := m.Volume("v", 8192)
		_, _ = v.WriteAt(bytes.Repeat([]byte{1}, 4096), 0)
		_ = v.Sync()
		_, _ = v.WriteAt(bytes.Repeat([]byte{2}, 4096), 4096)
		got := read(t, m.Restart().Volume("v", 0))
		if !bytes.Equal(got[:4096], bytes.Repeat([]byte{1}, 4096)) {
			t.Fatal("what was synced is lost")
		}
		switch bytes.Count(got[4096:], []byte{2}) {
		case 0:
			seen["lost"] = true
		case 4096:
			seen["kept"] = true
		default:
			seen["torn"] = true
		}
	}
	if len(seen) != 3 {
		t.Errorf("only %v were seen", seen)
	}
}

func TestANameIsDurableOnlyWithItsFolder(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(60) {
		m := crash.New(seed)
		fs := m.FS()
		f, _ := fs.Open("old", true)
		_, _ = f.WriteAt([]byte("x"), 0)
		_ = f.Sync()
		_ = fs.SyncDir()
		_ = fs.Rename("old", "new")
		names, _ := m.Restart().FS().Names()
		seen[fmt.Sprint(names)] = true
	}
	if len(seen) != 2 || !seen["[old]"] || !seen["[new]"] {
		t.Errorf("seen %v", seen)
	}
}

func TestACrashedMachineIsDead(t *testing.T) {
	m := crash.New(1)
	v, fs := m.Volume("v", 8192), m.FS()
	happened := make(chan struct{})
	m.CrashAfter(2, func() { close(happened) })
	if _, err := v.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt([]byte("x"), 0); !errors.Is(err, crash.ErrCrashed) || !m.Crashed() {
		t.Fatalf("got %v", err)
	}
	<-happened
	if _, err := v.ReadAt(make([]byte, 1), 0); !errors.Is(err, crash.ErrCrashed) {
		t.Error("it can still be read")
	}
	if _, err := fs.Open("x", true); !errors.Is(err, crash.ErrCrashed) {
		t.Error("its folder still works")
	}
}

func TestAFailureOnCommand(t *testing.T) {
	m := crash.New(1)
	v := m.Volume("v", 8192)
	m.FailWith(func(op, name string) error {
		if op == "write" && name == "v" {
			return os.ErrPermission
		}
		return nil
	})
	if _, err := v.WriteAt([]byte("x"), 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v", err)
	}
	m.FailWith(nil)
	if _, err := v.WriteAt([]byte("x"), 0); err != nil {
		t.Errorf("got %v", err)
	}
}
