package cli

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// deltaShell runs `lifeboat delta` in a folder of its own.
type deltaShell struct {
	t      *testing.T
	dir    string
	stderr bytes.Buffer
}

func newDeltaShell(t *testing.T) *deltaShell {
	s := &deltaShell{t: t, dir: t.TempDir()}
	t.Setenv("XDG_STATE_HOME", s.path("state"))
	t.Chdir(s.dir)
	return s
}

func (s *deltaShell) path(name string) string { return filepath.Join(s.dir, name) }

// run returns the exit code and what was printed.
func (s *deltaShell) run(stdin []byte, args ...string) (code int, stdout []byte) {
	s.t.Helper()
	var out bytes.Buffer
	s.stderr.Reset()
	root := NewRootCommand()
	root.SetArgs(append([]string{"delta"}, args...))
	root.SetIn(bytes.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&s.stderr)
	return Report(&s.stderr, root.ExecuteContext(s.t.Context())), out.Bytes()
}

// ok runs what must succeed.
func (s *deltaShell) ok(args ...string) []byte {
	s.t.Helper()
	code, out := s.run(nil, args...)
	if code != 0 {
		s.t.Fatalf("delta %v ends with %d: %s", args, code, s.stderr.String())
	}
	return out
}

func (s *deltaShell) write(name string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *deltaShell) holds(name string, want []byte) {
	s.t.Helper()
	got, err := os.ReadFile(s.path(name))
	if err != nil || !bytes.Equal(got, want) {
		s.t.Fatalf("%s does not hold what it should (%v)", name, err)
	}
}

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(rng.Uint32())
	}
	return out
}

func TestDeltasOnTheCommandLine(t *testing.T) {
	s := newDeltaShell(t)
	monday := noise(300_000)
	tuesday := bytes.Clone(monday)
	copy(tuesday[70_000:], "changed on tuesday")
	wednesday := bytes.Clone(tuesday)
	clear(wednesday[196608 : 196608+65536])
	s.write("vol", monday)
	s.write("replica", make([]byte, len(monday)))

	s.ok("export", "vol", "-o", "full.delta", "--write-map", "vol.map", "--point", "monday", "--replication", "shop/pg")
	s.write("vol", tuesday)
	s.ok("export", "vol", "-o", "tue.delta", "--base-map", "vol.map", "--write-map", "vol.map", "--after", "full.delta", "--point", "tuesday")
	s.write("vol", wednesday)
	s.ok("export", "vol", "-o", "wed.delta", "--base-map", "vol.map", "--after", "tue.delta", "--point", "wednesday")

	s.ok("apply", "full.delta", "replica")
	s.holds("replica", monday)
	s.ok("apply", "tue.delta", "replica", "--check", "full")
	s.holds("replica", tuesday)
	if code, _ := s.run(nil, "apply", "full.delta", "replica"); code != 0 {
		t.Fatal(s.stderr.String())
	}
	s.ok("fold", "tue.delta", "wed.delta", "-o", "both.delta")
	piped, err := os.ReadFile(s.path("both.delta"))
	if err != nil {
		t.Fatal(err)
	}
	if code, _ := s.run(piped, "apply", "-", "vol=replica"); code != 0 {
		t.Fatal(s.stderr.String())
	}
	s.holds("replica", wednesday)
	s.ok("apply", "both.delta", "replica")
	if !strings.Contains(s.stderr.String(), "already") {
		t.Errorf("the second time says %s", s.stderr.String())
	}

	var view deltaView
	if err := json.Unmarshal(s.ok("inspect", "--json", "both.delta"), &view); err != nil {
		t.Fatal(err)
	}
	if view.Replication != "shop/pg" || view.Base != "monday" || view.Point != "wednesday" || view.Full ||
		len(view.Volumes) != 1 || view.Volumes[0].Name != "vol" || view.Volumes[0].Extents != 2 || view.HoleBytes != 65536 || view.Bytes != int64(len(piped)) {
		t.Errorf("inspect says %+v", view)
	}
	if out := string(s.ok("inspect", "--extents", "both.delta")); !strings.Contains(out, "vol 196608 65536 hole\n") || !strings.Contains(out, "base         monday") {
		t.Errorf("inspect says\n%s", out)
	}
	if out := string(s.ok("verify", "both.delta")); !strings.HasPrefix(out, "whole: point wednesday") {
		t.Errorf("verify says %s", out)
	}
	if left, _ := filepath.Glob(s.path(".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(s.path("state/lifeboat/delta/*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// However a base is given, the delta leads to the same bytes; several volumes are one instant.
func TestDeltaBases(t *testing.T) {
	s := newDeltaShell(t)
	was, now := noise(200_000), noise(200_000)
	copy(now[100_000:], "changed")
	s.write("a.old", was)
	s.write("a", now)
	s.write("b.old", was[:5000])
	s.write("b", was[:5000])
	s.ok("export", "a.old", "-o", "base.delta", "--write-map", "a.map")
	var list bytes.Buffer
	if err := change.Write(&list, change.List{Size: int64(len(now)), Extents: []digest.Extent{{Offset: 98304, Length: 4096}}}); err != nil {
		t.Fatal(err)
	}
	s.write("a.changes", list.Bytes())
	for _, base := range [][]string{
		{"--base", "a.old"}, {"--base-map", "a.map"}, {"--base-file", "a.old"}, {"--base", "a.old", "--changes", "a.changes"},
		{"--base-map", "a.map", "--changes", "a.changes"}, {"--base", "a.old", "--changes", "a.changes", "--quick", "--compression", "off"},
	} {
		s.write("r", was)
		s.ok(append([]string{"export", "a", "-o", "d"}, base...)...)
		s.ok("apply", "d", "r")
		s.holds("r", now)
	}
	s.write("ra", was)
	s.write("rb", was[:5000])
	code, d := s.run(nil, "export", "x=a", "y=b", "--base", "x=a.old", "--base", "y=b.old")
	if code != 0 {
		t.Fatal(s.stderr.String())
	}
	if code, _ := s.run(d, "apply", "-", "y=rb", "x=ra"); code != 0 {
		t.Fatal(s.stderr.String())
	}
	s.holds("ra", now)
	s.holds("rb", was[:5000])
}

func TestDeltaExitCodes(t *testing.T) {
	s := newDeltaShell(t)
	s.write("old", noise(100_000))
	now := noise(100_000)
	now[5] ^= 1
	s.write("new", now)
	foreign := noise(100_000)
	foreign[7] ^= 1
	s.write("foreign", foreign)
	s.write("small", noise(99_999))
	s.ok("export", "new", "--base", "old", "-o", "d", "--base-point", "p1", "--point", "p2")
	whole, err := os.ReadFile(s.path("d"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("cut", whole[:len(whole)-1])
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "unknown flag", []string{"export", "--colour", "new"}},
		{2, "at least 1 arg", []string{"export"}},
		{2, "at least 2 arg", []string{"apply", "d"}},
		{2, "no such file", []string{"apply", "none", "old"}},
		{2, "no such file", []string{"export", "none"}},
		{2, "--changes needs", []string{"export", "new", "--changes", "x"}},
		{2, "give one", []string{"export", "new", "--base", "old", "--base-map", "x"}},
		{2, "not given", []string{"export", "new", "--base-point", "p1"}},
		{2, "the volume itself", []string{"export", "new", "--base", "./new"}},
		{2, "once for each volume", []string{"export", "new", "old", "--base", "x=old"}},
		{2, "1 of 2 volumes", []string{"export", "new", "old", "--base", "old=foreign"}},
		{2, "first line", []string{"export", "new", "--base", "old", "--changes", "d"}},
		{2, "digest map", []string{"export", "new", "--base-map", "d"}},
		{2, "zstd and off", []string{"export", "new", "--compression", "best"}},
		{2, "noon", []string{"export", "new", "--point-time", "noon"}},
		{2, "given are", []string{"apply", "d", "x=old"}},
		{2, "same volume", []string{"apply", "d", "x=old", "y=./old"}},
		{2, "touched and full", []string{"apply", "d", "old", "--check", "none"}},
		{3, "is not at the delta's base", []string{"apply", "d", "foreign"}},
		{3, "sizes must be equal", []string{"apply", "d", "small"}},
		{3, "sizes must be equal", []string{"export", "new", "--base", "small"}},
		{3, "damaged", []string{"apply", "cut", "old"}},
		{3, "damaged", []string{"verify", "cut"}},
		{3, "damaged", []string{"inspect", "cut"}},
		{3, "does not begin as a delta", []string{"verify", "old"}},
		{3, "cut", []string{"fold", "cut"}},
		{3, "does not lead", []string{"fold", "d", "d"}},
	} {
		code, _ := s.run(nil, append(c.args, "-o", "out")[:len(c.args)+outFlag(c.args[0])]...)
		if code != c.code || !strings.Contains(s.stderr.String(), c.says) {
			t.Errorf("%v ends with %d instead of %d: %s", c.args, code, c.code, s.stderr.String())
		}
	}
	if _, err := os.Stat(s.path("out")); err == nil {
		t.Error("a failed export left a file")
	}
	s.holds("foreign", foreign)
	s.holds("old", noise(100_000))
}

// outFlag is how many arguments name an output.
func outFlag(verb string) int {
	if verb == "export" || verb == "fold" {
		return 2
	}
	return 0
}
