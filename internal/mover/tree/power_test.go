package tree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/spool"
)

// disk is a journalled file system in an image, with a replica and its spool. Losing power is a copy of the image as it is
// while the file system is mounted and at work: what was never written back is not in it.
type disk struct {
	t     *testing.T
	dir   string
	image string
	at    string
	up    bool
}

const diskSize = 192 << 20

// newDisk makes one, empty and mounted.
func newDisk(t *testing.T) *disk {
	t.Helper()
	asRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("there is no mkfs.ext4")
	}
	d := &disk{t: t, dir: t.TempDir()}
	// In memory: the image is synced at every sync of the file system in it.
	if dir, err := os.MkdirTemp("/dev/shm", "disk"); err == nil {
		d.dir = dir
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	d.image, d.at = filepath.Join(d.dir, "image"), filepath.Join(d.dir, "at")
	must(t, os.Mkdir(d.at, 0o755))
	must(t, os.WriteFile(d.image, nil, 0o600))
	must(t, os.Truncate(d.image, diskSize))
	d.run("mkfs.ext4", "-q", "-m", "0", "-J", "size=8", d.image)
	t.Cleanup(d.unmount)
	d.mount()
	return d
}

func (d *disk) run(argv ...string) {
	d.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v: %s", argv, err, out)
	}
}

// mount brings the disk up. Nothing is written back but by who asks for it.
func (d *disk) mount() {
	d.t.Helper()
	d.run("mount", "-o", "loop,commit=300", d.image, d.at)
	d.up = true
}

func (d *disk) unmount() {
	if d.up {
		d.up = false
		if err := unix.Unmount(d.at, 0); err != nil {
			d.t.Errorf("unmount: %v", err)
		}
	}
}

// copy copies the disk as it would be found now.
func (d *disk) copy(to string) error {
	from, err := os.Open(d.image)
	if err != nil {
		return err
	}
	defer from.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(diskSize); err != nil {
		return err
	}
	for at := int64(0); ; {
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(from, data, hole-data)); err != nil {
			return err
		}
		at = hole
	}
}

// become makes the disk what a copy says, and mounts it as after a crash.
func (d *disk) become(image string) {
	d.t.Helper()
	d.unmount()
	must(d.t, os.Rename(image, d.image))
	d.mount()
}

// power counts the operations of a target on its disk, replica and spool together, and cuts the power at one of them.
type power struct {
	d    *disk
	mu   sync.Mutex
	at   int // 0: never
	ops  int
	last string
	// journal writes the journal back before every so many operations, without the content of files: then names and
	// sizes survive whose bytes do not. 0: never.
	journal int
	off     bool
}

var errNoPower = errors.New("there is no power")

func (p *power) image() string { return p.d.image + ".crashed" }

func (p *power) step(op, path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return errNoPower
	}
	p.ops++
	if p.journal > 0 && p.ops%p.journal == 0 {
		if err := p.writeJournal(); err != nil {
			return err
		}
	}
	if p.ops != p.at {
		return nil
	}
	p.off, p.last = true, op+" "+path
	return errors.Join(errNoPower, p.d.copy(p.image()))
}

// writeJournal commits the journal: an fsync of any other file does.
func (p *power) writeJournal() error {
	f, err := os.OpenFile(filepath.Join(p.d.at, "other"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Sync(), f.Close())
}

// powered is a spool's folder on the disk, whose operations count.
type powered struct {
	*spool.Dir
	p *power
}

func (f powered) Open(name string, create bool) (spool.File, error) {
	if create {
		if err := f.p.step("spool create", name); err != nil {
			return nil, err
		}
	}
	x, err := f.Dir.Open(name, create)
	if err != nil {
		return nil, err
	}
	return poweredFile{x, f.p, name}, nil
}

func (f powered) Rename(from, to string) error {
	if err := f.p.step("spool rename", from); err != nil {
		return err
	}
	return f.Dir.Rename(from, to)
}

func (f powered) Remove(name string) error {
	if err := f.p.step("spool remove", name); err != nil {
		return err
	}
	return f.Dir.Remove(name)
}

func (f powered) SyncDir() error {
	if err := f.p.step("spool syncdir", "."); err != nil {
		return err
	}
	return f.Dir.SyncDir()
}

type poweredFile struct {
	spool.File
	p    *power
	name string
}

func (f poweredFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.p.step("spool write", f.name); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, at)
}

func (f poweredFile) Truncate(size int64) error {
	if err := f.p.step("spool truncate", f.name); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f poweredFile) Sync() error {
	if err := f.p.step("spool sync", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

// boot opens the spool that is on the disk; everything from here on counts.
func (w *world) boot(p *power) error {
	var err error
	if w.dir, err = spool.OpenDir(filepath.Join(p.d.at, "spool")); err != nil {
		return err
	}
	w.target = filepath.Join(p.d.at, "replica")
	w.receive.Step, w.apply.Step = p.step, p.step
	if w.sp, err = spool.Open(powered{w.dir, p}, "shop/files"); err != nil {
		return errors.Join(err, w.dir.Close())
	}
	return nil
}

func (w *world) halt() {
	if w.sp != nil {
		_ = w.sp.Close()
	}
	_ = w.dir.Close()
	w.sp = nil
}

// session is what the target does from its start on: it finishes what was committed, and takes one session.
func (w *world) session(point string) error {
	if w.sp.Pending() {
		if err := w.finish(); err != nil {
			return err
		}
	}
	if st := w.sp.State(); st.Committed != nil && st.Committed.ID == point {
		return nil
	}
	st := w.sp.State()
	if st.Delta != nil && st.Delta.Point.ID != point {
		return fmt.Errorf("a delta of %s arrives", st.Delta.Point.ID)
	}
	if st.Delta == nil {
		if err := w.sp.Begin(delta(point, st.Committed == nil)); err != nil {
			return err
		}
	}
	_, _, sendErr, receiveErr, err := w.connect()
	if err := errors.Join(err, receiveErr, sendErr); err != nil {
		return err
	}
	if err := w.sp.Commit(); err != nil {
		return err
	}
	return w.finish()
}

func (w *world) finish() error {
	ref, err := Apply(w.sp, 0, w.target, w.apply)
	if err != nil {
		return err
	}
	if err := w.sp.Finish(mapsOf(ref)); err != nil {
		return err
	}
	return Clean(w.target)
}

// Wherever a target loses power, and with it what was not synced, it has the old tree or the new one when it comes up and
// did again what was committed, and ends with the new one: names, bytes, modes, owners, times, attributes and links.
func TestLosingPowerAnywhereLeavesTheOldTreeOrTheNew(t *testing.T) {
	for _, story := range []struct {
		name    string
		first   bool
		journal int
	}{
		{"a first copy, nothing written back", true, 0},
		{"a first copy, names before bytes", true, 3},
		{"a delta, nothing written back", false, 0},
		{"a delta, names before bytes", false, 3},
	} {
		t.Run(story.name, func(t *testing.T) {
			d := newDisk(t)
			w := newWorld(t)
			w.halt()
			w.t = t
			furnish(t, w)
			w.receive.SyncBytes = 200 << 10 // several syncs on the way
			must(t, os.MkdirAll(filepath.Join(d.at, "replica"), 0o755))
			old := look1(t, filepath.Join(d.at, "replica"))
			p := &power{d: d}
			if !story.first {
				must(t, w.boot(p))
				must(t, w.session("old"))
				old = look1(t, w.source)
				w.halt()
				upheaval(t, w)
			}
			d.run("sync", "-f", d.at)
			pristine := filepath.Join(d.dir, "pristine")
			must(t, d.copy(pristine))
			want := look1(t, w.source)
			step := 5
			switch {
			case os.Getenv("LIFEBOAT_TEST_LONG") != "":
				step = 1 // every operation; takes minutes
			case testing.Short():
				step = 41
			}
			crashes := 0
			for at := 1; ; at += step {
				begin := filepath.Join(d.dir, "begin")
				d.run("cp", "--sparse=always", pristine, begin)
				d.become(begin)
				p := &power{d: d, at: at, journal: story.journal}
				err := w.boot(p)
				if err == nil {
					err = w.session("new")
					w.halt()
				}
				if !p.off {
					must(t, err)
					break
				}
				crashes++
				d.become(p.image())
				w.survives(p, story.first, old, want)
			}
			t.Logf("%d crashes", crashes)
			if crashes < 100/step {
				t.Errorf("only %d crashes: the test looks at too little", crashes)
			}
		})
	}
}

// survives looks at a target that lost power, and lets it go on.
func (w *world) survives(lost *power, first bool, old, want map[string]string) {
	t := w.t
	t.Helper()
	where := fmt.Sprintf("power lost at operation %d (%s)", lost.at, lost.last)
	p := &power{d: lost.d}
	if err := w.boot(p); err != nil {
		t.Fatalf("%s: the spool does not open: %v", where, err)
	}
	defer w.halt()
	st := w.sp.State()
	committed := st.Committed != nil && st.Committed.ID == "new"
	if committed && w.sp.Pending() {
		if err := w.finish(); err != nil {
			t.Fatalf("%s: done again: %v", where, err)
		}
	}
	// A target also removes what was set aside when it comes up, unless a first copy goes on.
	if st.Delta == nil || !st.Delta.Direct && !w.sp.Pending() {
		must(t, Clean(w.target))
	}
	switch found := look1(t, w.target); {
	case committed:
		if diff := differences(want, found); diff != "" {
			t.Fatalf("%s: the new tree was committed and is not there:\n%s", where, diff)
		}
	case !first:
		if diff := differences(old, found); diff != "" {
			t.Fatalf("%s: nothing was committed and the old tree is not there:\n%s", where, diff)
		}
	}
	if err := w.session("new"); err != nil {
		t.Fatalf("%s: the next session: %v", where, err)
	}
	if diff := differences(want, look1(t, w.target)); diff != "" {
		t.Fatalf("%s: after the next session:\n%s", where, diff)
	}
}
