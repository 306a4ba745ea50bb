package filesystem

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func sparse(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFormatThenProbe(t *testing.T) {
	const size = 384 << 20
	for _, kind := range []Kind{Ext4, XFS, Btrfs} {
		t.Run(string(kind), func(t *testing.T) {
			f := sparse(t, size)
			if err := Format(t.Context(), f.Name(), kind); err != nil {
				var missing *MissingTool
				if errors.As(err, &missing) {
					t.Skip("SKIPPED: ", err)
				}
				t.Fatal(err)
			}
			found, err := Probe(f)
			if err != nil || found.Kind != kind || found.Size != size {
				t.Errorf("found %+v, %v", found, err)
			}
			if blank, err := Blank(f); err != nil || blank {
				t.Errorf("blank %t, %v", blank, err)
			}
		})
	}
}

// Inode tables that are written later, while the volume is in use, would show up as changes in every snapshot.
func TestExt4LeavesNothingToInitialiseLater(t *testing.T) {
	f := sparse(t, 256<<20)
	if err := Format(t.Context(), f.Name(), Ext4); err != nil {
		var missing *MissingTool
		if errors.As(err, &missing) {
			t.Skip("SKIPPED: ", err)
		}
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/sbin/dumpe2fs", f.Name()).Output()
	if err != nil {
		t.Skip("SKIPPED: dumpe2fs is missing: ", err)
	}
	groups := strings.Count(string(out), ": (Blocks ")
	if zeroed := strings.Count(string(out), "ITABLE_ZEROED"); groups == 0 || zeroed != groups {
		t.Errorf("%d of %d groups have zeroed inode tables", zeroed, groups)
	}
}

func TestNothingAndGarbageAreNoFileSystem(t *testing.T) {
	f := sparse(t, 1<<20)
	if found, err := Probe(f); err != nil || found.Kind != None {
		t.Errorf("empty: %+v, %v", found, err)
	}
	if _, err := f.WriteAt([]byte("XFS"), 0); err != nil {
		t.Fatal(err)
	}
	if found, err := Probe(f); err != nil || found.Kind != None {
		t.Errorf("garbage: %+v, %v", found, err)
	}
}

func TestBlank(t *testing.T) {
	f := sparse(t, 64<<20)
	want := func(blank bool) {
		t.Helper()
		if got, err := Blank(f); err != nil || got != blank {
			t.Errorf("blank %t, %v; want %t", got, err, blank)
		}
	}
	want(true)
	if _, err := f.WriteAt(make([]byte, 3<<20), 5<<20); err != nil { // written zeros are still nothing
		t.Fatal(err)
	}
	want(true)
	if _, err := f.WriteAt([]byte{1}, 64<<20-1); err != nil { // the very last byte
		t.Fatal(err)
	}
	want(false)
}

func TestAMissingToolIsNamedWithItsPackage(t *testing.T) {
	packages["no-such-tool"] = "some-package"
	defer delete(packages, "no-such-tool")
	err := run(t.Context(), "no-such-tool")
	var missing *MissingTool
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "apt-get install some-package") {
		t.Errorf("error: %v", err)
	}
}
