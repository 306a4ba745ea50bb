package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// gardener changes a source at random, by what it finds there.
type gardener struct {
	t    *rapid.T
	w    *world
	seed uint64
}

// pick is one of the source's entries, the root for an empty tree.
func (g *gardener) pick(dirs bool) string {
	var names []string
	_ = filepath.WalkDir(g.w.source, func(path string, d os.DirEntry, _ error) error {
		name, _ := filepath.Rel(g.w.source, path)
		if d.IsDir() == dirs && (name != "." || dirs) {
			names = append(names, name)
		}
		return nil
	})
	if len(names) == 0 {
		return ""
	}
	sort.Strings(names)
	return names[rapid.IntRange(0, len(names)-1).Draw(g.t, "which")]
}

// place is a path that may be there or not.
func (g *gardener) place() string {
	name := rapid.SampledFrom([]string{"a", "b", "a.b", "a-", "c", "\xff", " "}).Draw(g.t, "name")
	return filepath.Join(g.pick(true), name)
}

func (g *gardener) content() []byte {
	g.seed++
	n := rapid.SampledFrom([]int{0, 1, 4096, digest.BlockSize, digest.BlockSize + 1, 3*digest.BlockSize + 5, 1<<20 + 3}).Draw(g.t, "size")
	if rapid.Bool().Draw(g.t, "zeros") {
		return make([]byte, n)
	}
	return noise(g.seed, n)
}

// open opens a file to write: no link is followed, no fifo waited for.
func (g *gardener) open(name string, flags int) (*os.File, error) {
	return os.OpenFile(g.w.path(name), os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|flags, 0o640)
}

// act makes one change. What the file system refuses did not happen.
func (g *gardener) act() {
	p := g.w.path
	switch rapid.SampledFrom([]string{
		"write", "write", "edit", "edit", "truncate", "remove", "rename", "rename", "link", "symlink", "mkdir", "fifo", "mode", "owner", "xattr", "touch", "hole",
	}).Draw(g.t, "act") {
	case "write":
		if f, err := g.open(g.place(), os.O_CREATE|os.O_TRUNC); err == nil {
			_, _ = f.Write(g.content())
			_ = f.Close()
		}
	case "edit":
		if f, err := g.open(g.pick(false), 0); err == nil {
			_, _ = f.WriteAt(g.content(), int64(rapid.IntRange(0, 4*digest.BlockSize).Draw(g.t, "at")))
			_ = f.Close()
		}
	case "truncate":
		if f, err := g.open(g.pick(false), 0); err == nil {
			_ = f.Truncate(int64(rapid.IntRange(0, 5*digest.BlockSize).Draw(g.t, "to")))
			_ = f.Close()
		}
	case "remove":
		if name := g.place(); name != "." {
			_ = os.RemoveAll(p(name))
		}
	case "rename":
		if from := g.pick(rapid.Bool().Draw(g.t, "directory")); from != "" && from != "." {
			_ = os.Rename(p(from), p(g.place()))
		}
	case "link":
		if from := g.pick(false); from != "" {
			_ = os.Link(p(from), p(g.place()))
		}
	case "symlink":
		_ = os.Symlink(rapid.SampledFrom([]string{"a", "../..", "/etc", "b/c"}).Draw(g.t, "to"), p(g.place()))
	case "mkdir":
		_ = os.Mkdir(p(g.place()), 0o755)
	case "fifo":
		_ = unix.Mkfifo(p(g.place()), 0o600)
	case "mode":
		name, mode := g.place(), uint32(rapid.IntRange(0, 0o7777).Draw(g.t, "mode"))
		if info, err := os.Lstat(p(name)); err == nil && info.Mode()&os.ModeSymlink == 0 {
			_ = unix.Chmod(p(name), mode)
		}
	case "owner":
		_ = os.Lchown(p(g.place()), rapid.IntRange(0, 3).Draw(g.t, "uid"), 5)
	case "xattr":
		_ = unix.Lsetxattr(p(g.place()), "user.x", g.content()[:0], 0)
	case "touch":
		ts := []unix.Timespec{{Sec: 1}, {Sec: rapid.Int64Range(-1e9, 4e9).Draw(g.t, "seconds"), Nsec: rapid.Int64Range(0, 999_999_999).Draw(g.t, "ns")}}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, p(g.place()), ts, unix.AT_SYMLINK_NOFOLLOW)
	case "hole":
		if f, err := g.open(g.pick(false), 0); err == nil {
			at := int64(rapid.IntRange(0, 8).Draw(g.t, "page")) * 16384
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, 65536)
			_ = f.Close()
		}
	}
}

// Whatever happens to a source between sessions, cut or not, crashed or not: the replica is the old tree until the
// commit and the new one after it.
func TestRandomHistories(t *testing.T) {
	asRoot(t)
	rapid.Check(t, func(rt *rapid.T) {
		base, err := os.MkdirTemp("", "history")
		must(t, err)
		defer func() { _ = os.RemoveAll(base) }()
		w := &world{t: t, source: filepath.Join(base, "source"), target: filepath.Join(base, "target"), cut: -1}
		must(t, os.Mkdir(w.source, 0o755))
		must(t, os.Mkdir(w.target, 0o755))
		w.openSpool(filepath.Join(base, "spool"))
		defer func() {
			_ = w.sp.Close()
			_ = w.dir.Close()
		}()
		g := &gardener{t: rt, w: w}
		for round := range rapid.IntRange(1, 5).Draw(rt, "sessions") {
			for range rapid.IntRange(0, 25).Draw(rt, "acts") {
				g.act()
			}
			g.session(round)
		}
	})
}

func (g *gardener) session(round int) {
	w, t := g.w, g.t
	before := look1(w.t, w.target)
	w.send.Compression = rapid.Bool().Draw(t, "compression")
	w.receive.SyncBytes = int64(rapid.SampledFrom([]int{1, 100_000, 0}).Draw(t, "sync"))
	if w.sp.State().Committed != nil && rapid.IntRange(0, 9).Draw(t, "forget") == 0 {
		ref, err := BuildIndex(w.t.Context(), w.sp, w.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		must(w.t, w.sp.SetMaps(mapsOf(ref)))
	}
	cuts := rapid.IntRange(0, 2).Draw(t, "cuts")
	for {
		w.cut = -1
		if cuts > 0 {
			w.cut = rapid.IntRange(0, 12).Draw(t, "cut")
			cuts--
		}
		_, _, sendErr, receiveErr := w.transfer()
		if sendErr == nil && receiveErr == nil {
			break
		}
		if w.cut < 0 {
			t.Fatalf("session %d: source %v, target %v", round, sendErr, receiveErr)
		}
	}
	if w.sp.State().Committed != nil {
		if diff := differences(before, look1(w.t, w.target)); diff != "" {
			t.Fatalf("session %d: the replica changed before the commit:\n%s", round, diff)
		}
	}
	must(w.t, w.sp.Commit())
	for range rapid.IntRange(0, 3).Draw(t, "crashes") {
		c := &counter{at: rapid.IntRange(1, 60).Draw(t, "crash")}
		_, _ = Apply(w.sp, 0, w.target, ApplyOptions{Step: c.step})
	}
	w.apply = ApplyOptions{}
	if err := w.redo(); err != nil {
		t.Fatalf("session %d: apply: %v", round, err)
	}
	want, got := look1(w.t, w.source), look1(w.t, w.target)
	if diff := differences(want, got); diff != "" {
		t.Fatal(fmt.Sprintf("session %d: the replica differs:\n%s", round, diff))
	}
}
