package engine_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// forest makes the site's source and replica directories instead of image files.
func forest(t *testing.T) *site {
	t.Helper()
	s := newSite(t, 1)
	for _, path := range []*string{&s.source, &s.replica} {
		*path = strings.TrimSuffix(*path, ".img")
		if err := os.Mkdir(*path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.target.Volumes = []engine.TargetVolume{{Name: "data", Device: s.replica}}
	return s
}

func (s *site) put(name string, n int, seed uint64) {
	s.t.Helper()
	path := filepath.Join(s.source, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, content(n, seed, true), 0o640); err != nil {
		s.t.Fatal(err)
	}
}

// sameTrees compares names, kinds, modes, owners, sizes, times and contents, by the system's own tools.
func (s *site) sameTrees() {
	s.t.Helper()
	list := func(root string) string {
		out, err := exec.Command("find", root, "-mindepth", "1", "-printf", `%P %y %m %U:%G %s %T@ %l %n\n`).CombinedOutput()
		if err != nil {
			s.t.Fatalf("%v: %s", err, out)
		}
		lines := strings.Split(string(out), "\n")
		// Directories' sizes are the file system's own business.
		for i, line := range lines {
			f := strings.Fields(line)
			if len(f) > 4 && f[1] == "d" {
				f[4] = "-"
				lines[i] = strings.Join(f, " ")
			}
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	if a, b := list(s.source), list(s.replica); a != b {
		s.t.Fatalf("the trees differ:\n%s\n---\n%s", a, b)
	}
	if out, err := exec.Command("diff", "-r", "--no-dereference", s.source, s.replica).CombinedOutput(); err != nil {
		s.t.Fatalf("the trees differ: %s", out)
	}
}

func TestATreeIsKeptInStep(t *testing.T) {
	s := forest(t)
	for i := range 300 {
		s.put(fmt.Sprintf("small/%d/%d", i%7, i), 100+i, uint64(i))
	}
	s.put("large", 5<<20, 1)
	if err := os.Symlink("large", filepath.Join(s.source, "link")); err != nil {
		t.Fatal(err)
	}
	s.start()
	first := s.mustRun(s.session("p1"))
	s.sameTrees()
	if !first.Direct || first.Entries < 300 {
		t.Errorf("first session: %+v", first)
	}

	s.put("small/3/new", 10, 9)
	if err := os.Rename(filepath.Join(s.source, "large"), filepath.Join(s.source, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.source, "small/5")); err != nil {
		t.Fatal(err)
	}
	second := s.mustRun(s.session("p2"))
	s.sameTrees()
	if second.Direct || second.BytesSent > 1<<20 || second.EntriesDeleted == 0 {
		t.Errorf("a rename sends no content: %+v", second)
	}
	if again := s.mustRun(s.session("p2")); !again.Already {
		t.Errorf("a point that is committed was brought again: %+v", again)
	}

	// The replica is written behind our back; verifying finds it.
	if err := os.WriteFile(filepath.Join(s.replica, "moved"), []byte("rot"), 0o640); err != nil {
		t.Fatal(err)
	}
	cfg := s.session("p2")
	cfg.Verify = true
	if r := s.mustRun(cfg); !r.Verified {
		t.Errorf("verifying: %+v", r)
	}
	s.sameTrees()

	// A target that starts again knows what it holds.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.start()
	if st := s.await(func(st engine.State) bool { return st.Ready }); st.Committed == nil || st.Committed.ID != "p2" || st.Verified == nil {
		t.Errorf("state after a restart: %+v", st)
	}
	stale := s.session("p0")
	stale.Epoch = 2
	if r := s.run(stale); r.Done || r.Kind != engine.KindStaleEpoch {
		t.Errorf("a stale source of a tree: %+v", r)
	}
}

func TestTreesAndBlocksAreNotMixed(t *testing.T) {
	s := forest(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := s.session("p1")
	cfg.Volumes = append(cfg.Volumes, engine.SourceVolume{Name: "more", Device: image})
	if r := engine.RunSource(context.Background(), cfg, "test", quiet()); r.Kind != engine.KindConfiguration || !strings.Contains(r.Error, "mixture") {
		t.Errorf("%+v", r)
	}
	// A target of blocks says what it expects.
	s.start()
	cfg = s.session("p1")
	cfg.Volumes[0].Device = image
	if r := s.run(cfg); r.Kind != engine.KindConflict || !strings.Contains(r.Error, "tree") {
		t.Errorf("%+v", r)
	}
}

// A receiver that starts again in the middle of a first copy goes on with it: what is set aside for names that are still to
// come stays.
func TestAFirstCopyOfLinksOutlivesItsReceiver(t *testing.T) {
	s := forest(t)
	s.put("a", 100_000, 1)
	s.put("m", 20<<20, 2)
	if err := os.Link(filepath.Join(s.source, "a"), filepath.Join(s.source, "z")); err != nil {
		t.Fatal(err)
	}
	s.start()
	cfg := s.session("p1")
	cfg.BandwidthLimit, cfg.Compression = 2<<20, engine.CompressionOff
	report := make(chan engine.Report, 1)
	go func() { report <- s.run(cfg) }()
	s.await(func(engine.State) bool {
		_, err := os.Stat(filepath.Join(s.replica, "m")) // what comes after a has begun
		return err == nil
	})
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.start()
	if r := <-report; !r.Done || r.Attempts < 2 || r.Tier != "full" {
		t.Errorf("%+v", r)
	}
	s.sameTrees()
}
