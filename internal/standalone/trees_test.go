package standalone_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// A folder is replicated as a tree; the target makes its own.
func TestAFolderIsATree(t *testing.T) {
	east, west := newHosts(t)
	source, replica := filepath.Join(east.disk, "www"), filepath.Join(west.disk, "www")
	file := filepath.Join(source, "static", "big.bin")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, random(mib), 0o640),
		os.WriteFile(filepath.Join(source, "index.html"), []byte("one"), 0o644), os.Symlink("index.html", filepath.Join(source, "home"))); err != nil {
		t.Fatal(err)
	}
	_, address := west.receive(replica)
	east.replicate(0, source, address)
	same(t, file, filepath.Join(replica, "static", "big.bin"))
	if to, err := os.Readlink(filepath.Join(replica, "home")); to != "index.html" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if err := errors.Join(os.Remove(filepath.Join(source, "home")), os.WriteFile(filepath.Join(source, "index.html"), []byte("two!"), 0o644)); err != nil {
		t.Fatal(err)
	}
	r := east.replicate(0, source, address)
	same(t, filepath.Join(source, "index.html"), filepath.Join(replica, "index.html"))
	if _, err := os.Lstat(filepath.Join(replica, "home")); err == nil || r.BytesData > 64<<10 {
		t.Errorf("the link is still there, or too much was sent: %+v", r)
	}
	// A file is no tree.
	r = east.replicate(engine.ExitRefused, file, address)
	if r.Kind != engine.KindConflict {
		t.Errorf("a file for a folder ends with %+v", r)
	}
}
