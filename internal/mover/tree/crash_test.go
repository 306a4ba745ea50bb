package tree

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

var errStopped = errors.New("stopped here")

// counter stops the work on a replica at its nth change; 0 is never.
type counter struct {
	mu   sync.Mutex
	at   int
	ops  int
	last string
}

func (c *counter) step(op, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops++
	if c.at > 0 && c.ops >= c.at {
		c.last = op + " " + path
		return errStopped
	}
	return nil
}

// upheaval changes a furnished source in every way that makes order matter.
func upheaval(t *testing.T, w *world) {
	t.Helper()
	must(t, os.Rename(w.path("huge"), w.path("third")))
	must(t, os.Rename(w.path("large"), w.path("huge")))
	must(t, os.Rename(w.path("third"), w.path("large")))
	w.change("large", 1<<20, []byte("x"))
	must(t, os.Remove(w.path("two again")))
	must(t, os.Link(w.path("many/first"), w.path("two again")))
	must(t, os.Link(w.path("two"), w.path("a/third")))
	must(t, os.Link(w.path("fifo"), w.path("a/fifo")))
	w.change("many/first", 5, []byte("changed under three names"))
	must(t, os.RemoveAll(w.path("deep")))
	w.write("deep", noise(6, 100_000))
	must(t, os.Remove(w.path("outside")))
	w.write("outside/passwd", []byte("x"))
	w.change("block", 0, []byte("b"))
	must(t, os.Truncate(w.path("zeros"), 100))
	w.change("sparse", 40<<20, []byte("x"))
	must(t, os.Chmod(w.path("closed"), 0o700))
	must(t, os.Remove(w.path("null")))
	must(t, os.Mkdir(w.path("null"), 0o711))
	must(t, os.Chown(w.source, 5, 6))
}

// Wherever applying stops, doing it again gives the same tree; stopping again and again on the way, too.
func TestApplyingAgainAfterACrashAnywhere(t *testing.T) {
	asRoot(t)
	w := newWorld(t)
	furnish(t, w)
	w.replicate()
	pristine := filepath.Join(t.TempDir(), "pristine")
	copyTree(t, w.target, pristine)
	upheaval(t, w)
	_, _, sendErr, receiveErr := w.transfer()
	if sendErr != nil || receiveErr != nil {
		t.Fatal(sendErr, receiveErr)
	}
	must(t, w.sp.Commit())
	want := look1(t, w.source)
	at := 1
	for stopped := true; stopped; at++ {
		must(t, os.RemoveAll(w.target))
		copyTree(t, pristine, w.target)
		c := &counter{at: at}
		w.apply.Step = c.step
		_, err := Apply(w.sp, 0, w.target, w.apply)
		stopped = errors.Is(err, errStopped)
		if !stopped {
			must(t, err)
		}
		w.apply.Step = nil
		if _, err := Apply(w.sp, 0, w.target, w.apply); err != nil {
			t.Fatalf("again after a stop at change %d (%s): %v", at, c.last, err)
		}
		must(t, Clean(w.target))
		if diff := differences(want, look1(t, w.target)); diff != "" {
			t.Fatalf("again after a stop at change %d (%s):\n%s", at, c.last, diff)
		}
	}
	if at < 100 {
		t.Errorf("only %d changes: the test looks at too little", at)
	}
	must(t, os.RemoveAll(w.target))
	copyTree(t, pristine, w.target)
	for at := 1; ; at++ {
		c := &counter{at: at}
		w.apply.Step = c.step
		if _, err := Apply(w.sp, 0, w.target, w.apply); err == nil {
			break
		} else if !errors.Is(err, errStopped) {
			t.Fatalf("stopped again at change %d (%s): %v", at, c.last, err)
		}
	}
	w.apply.Step = nil
	must(t, w.redo())
	w.same()
	if got := w.replicate(); got.Changed != 0 {
		t.Errorf("after it nothing changed: %+v", got)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// A direct copy that stops at any change goes on with the next connection, or begins anew.
func TestADirectCopyAfterACrashAnywhere(t *testing.T) {
	asRoot(t)
	w := newWorld(t)
	furnish(t, w)
	c := &counter{}
	w.receive.Step = c.step
	for at := 1; ; at += 7 {
		c.at, c.ops = at, 0
		_, _, sendErr, receiveErr := w.transfer()
		if sendErr == nil && receiveErr == nil {
			if at < 50 {
				t.Errorf("only %d changes: the test looks at too little", at)
			}
			break
		}
		if !errors.Is(receiveErr, errStopped) {
			t.Fatalf("stopped at change %d (%s): source %v, target %v", at, c.last, sendErr, receiveErr)
		}
	}
	must(t, w.commit())
	w.same()
}

// durable is how many bytes of content the spool's log holds.
func (w *world) durable() int64 {
	w.t.Helper()
	var n int64
	must(w.t, w.sp.OpenLog(func(m wire.Message) error {
		switch m := m.(type) {
		case wire.TreePut:
			raw, err := unpack(m.Codec, m.Length, m.Payload, nil)
			if err != nil {
				return err
			}
			return wire.TreeItems(raw, m.Count, func(it *wire.TreeItem) error {
				if it.Content == wire.TreeContentInline || it.Content == wire.TreeContentApart {
					n += it.Meta.Size
				}
				return nil
			})
		case wire.TreeBlocks:
			n += int64(m.Length)
		}
		return nil
	}))
	return n
}

// Whatever frame a cut comes at, the next connection goes on behind what was acknowledged.
func TestACutAtEveryFrame(t *testing.T) {
	asRoot(t)
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprintf("direct %v", direct), func(t *testing.T) {
			w := newWorld(t)
			furnish(t, w)
			w.write("very large", noise(9, 9<<20))
			if !direct {
				w.replicate()
				upheaval(t, w)
				w.change("very large", 1<<20, noise(10, 5<<20))
			}
			w.t = t
			w.receive.SyncBytes = 1
			before := look1(t, w.target)
			whole := int64(-1)
			for cut := 1; ; cut++ {
				w.cut = cut
				if w.sp.State().Delta != nil {
					must(t, w.sp.Drop())
				}
				sent, _, sendErr, receiveErr := w.transfer()
				if sendErr == nil && receiveErr == nil {
					whole = sent.Data
					break
				}
				if !direct {
					if diff := differences(before, look1(t, w.target)); diff != "" {
						t.Fatalf("cut at frame %d: the replica changed:\n%s", cut, diff)
					}
				}
				had := w.durable()
				w.cut = -1
				again, received, sendErr, receiveErr := w.transfer()
				if sendErr != nil || receiveErr != nil {
					t.Fatalf("after a cut at frame %d: source %v, target %v", cut, sendErr, receiveErr)
				}
				if received.Data != again.Data && again.Records > 0 {
					t.Errorf("after a cut at frame %d: %d bytes sent, %d received", cut, again.Data, received.Data)
				}
				if all := w.durable(); had+again.Data != all {
					t.Errorf("after a cut at frame %d: %d bytes were durable, %d were sent, %d are", cut, had, again.Data, all)
				}
			}
			if whole < digest.BlockSize {
				t.Fatalf("%d bytes in all", whole)
			}
			must(t, w.commit())
			w.same()
		})
	}
}

// A spool that lost its index between two sessions says so, and one that was cut short is never believed.
func TestADamagedIndexIsNotBelieved(t *testing.T) {
	w := newWorld(t)
	w.write("a", []byte("a"))
	w.write("b", noise(1, 1<<20))
	w.replicate()
	ref := w.sp.State().Maps["files"]
	f, err := w.sp.OpenMapFile(ref.File)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	raw := make([]byte, size)
	_, err = f.ReadAt(raw, 0)
	must(t, err)
	for name, spoil := range map[string]func() []byte{
		"cut short": func() []byte { return raw[:size-1] },
		"too long":  func() []byte { return append(append([]byte(nil), raw...), 0) },
		"another trailer": func() []byte {
			b := append([]byte(nil), raw...)
			b[size-1] ^= 1
			return b
		},
		"another magic": func() []byte {
			b := append([]byte(nil), raw...)
			b[size-indexTrailer] ^= 1
			return b
		},
	} {
		b := spoil()
		must(t, f.Truncate(0))
		_, err = f.WriteAt(b, 0)
		must(t, err)
		if _, err := openIndex(w.sp, ref); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A page that went bad is noticed when it is read.
	b := append([]byte(nil), raw...)
	x, err := readIndex(bytesFile(raw), ref)
	must(t, err)
	b[x.places[0]+wire.HeaderSize+20] ^= 1
	y, err := readIndex(bytesFile(b), ref)
	must(t, err)
	if _, err := y.listing(0); !errors.Is(err, ErrIndex) {
		t.Errorf("a spoiled page: %v", err)
	}
	must(t, f.Close())
}

// bytesFile is a file of the spool in memory, to be read.
type bytesFile []byte

func (b bytesFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, errors.New("beyond")
	}
	return copy(p, b[off:]), nil
}
func (b bytesFile) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (b bytesFile) Truncate(int64) error               { return errors.ErrUnsupported }
func (b bytesFile) Size() (int64, error)               { return int64(len(b)), nil }
func (b bytesFile) Sync() error                        { return nil }
func (b bytesFile) Close() error                       { return nil }

var _ spool.File = bytesFile(nil)
