package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// world is a source tree, a replica and the replica's spool, on this machine's file system.
type world struct {
	t      testing.TB
	source string
	target string
	dir    *spool.Dir
	sp     *spool.Spool
	points int

	send    SendOptions
	receive ReceiveOptions
	apply   ApplyOptions
	// cut, if any, is how many frames of the source arrive before the connection is cut.
	cut int
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	base := t.TempDir()
	w := &world{t: t, source: filepath.Join(base, "source"), target: filepath.Join(base, "target"), cut: -1}
	must(t, os.Mkdir(w.source, 0o755))
	must(t, os.Mkdir(w.target, 0o755))
	w.openSpool(filepath.Join(base, "spool"))
	t.Cleanup(func() {
		if w.sp != nil {
			_ = w.sp.Close()
		}
		_ = w.dir.Close()
	})
	return w
}

func (w *world) openSpool(path string) {
	w.t.Helper()
	var err error
	w.dir, err = spool.OpenDir(path)
	must(w.t, err)
	w.sp, err = spool.Open(w.dir, "shop/files")
	must(w.t, err)
}

// begin begins a new delta, unless one is arriving.
func (w *world) begin() {
	w.t.Helper()
	st := w.sp.State()
	if st.Delta != nil {
		return
	}
	w.points++
	must(w.t, w.sp.Begin(delta(fmt.Sprintf("p%d", w.points), st.Committed == nil)))
}

func delta(point string, direct bool) spool.Delta {
	return spool.Delta{
		Point: session.Point{ID: point}, Tier: wire.TierDigest, Direct: direct, Members: []wire.Member{{Name: "files"}},
	}
}

// transfer runs one connection of the session.
func (w *world) transfer() (sent, received Totals, sendErr, receiveErr error) {
	w.t.Helper()
	w.begin()
	sent, received, sendErr, receiveErr, err := w.connect()
	must(w.t, err)
	return sent, received, sendErr, receiveErr
}

// connect runs one connection for the delta that is arriving; err says why there was none.
func (w *world) connect() (sent, received Totals, sendErr, receiveErr, err error) {
	r, err := NewReceiver(w.sp, 0, w.target, w.receive)
	if err != nil {
		return sent, received, nil, nil, err
	}
	defer r.Close()
	if err := w.sp.OpenLog(r.Restore); err != nil {
		return sent, received, nil, nil, err
	}
	a, b := pair(w.t)
	from := &cutter{Conn: a, frames: w.cut}
	var wg sync.WaitGroup
	wg.Go(func() {
		s, err := transport.NewStream(from, wire.OwnBanner("test", "source"))
		if err != nil {
			sendErr = err
			_ = a.Close()
			return
		}
		sent, sendErr = Send(context.Background(), s, 0, w.source, w.send)
		_ = s.Close()
	})
	wg.Go(func() {
		s, err := transport.NewStream(b, wire.OwnBanner("test", "target"))
		if err != nil {
			receiveErr = err
			_ = b.Close()
			return
		}
		received, receiveErr = r.Run(context.Background(), s)
		if receiveErr == nil {
			// The source closes when it has heard everything.
			for {
				if _, err := s.Receive(); err != nil {
					break
				}
			}
		}
		_ = s.Close()
	})
	wg.Wait()
	return sent, received, sendErr, receiveErr, nil
}

// commit commits and applies what arrived.
func (w *world) commit() error {
	w.t.Helper()
	must(w.t, w.sp.Commit())
	return w.redo()
}

// redo applies the committed delta.
func (w *world) redo() error {
	ref, err := Apply(w.sp, 0, w.target, w.apply)
	if err != nil {
		return err
	}
	must(w.t, w.sp.Finish(map[string]spool.MapRef{"files": ref}))
	return Clean(w.target)
}

// replicate runs a whole session and checks that the replica equals the source.
func (w *world) replicate() Totals {
	w.t.Helper()
	sent, _, sendErr, receiveErr := w.transfer()
	if sendErr != nil || receiveErr != nil {
		w.t.Fatalf("session: source %v, target %v", sendErr, receiveErr)
	}
	must(w.t, w.commit())
	w.same()
	return sent
}

// same checks that the replica equals the source.
func (w *world) same() {
	w.t.Helper()
	if diff := differences(look1(w.t, w.source), look1(w.t, w.target)); diff != "" {
		w.t.Fatalf("the replica differs:\n%s", diff)
	}
}

// look1 describes every entry of a tree: everything that is to be carried.
func look1(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	links := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if Reserved(name) {
			return filepath.SkipDir
		}
		out[name], err = describe(path, name, links)
		return err
	})
	must(t, err)
	return out
}

func describe(path, name string, links map[uint64]string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	m, err := metaOf(&st)
	if err != nil {
		return "", err
	}
	d := fmt.Sprintf("kind %d mode %o owner %d:%d size %d time %d.%09d device %d:%d",
		m.Kind, m.Mode, m.UID, m.GID, m.Size, m.Modified, m.ModifiedNs, m.DeviceMajor, m.DeviceMinor)
	if m.Kind != wire.TreeDirectory {
		d += fmt.Sprintf(" links %d", m.Links)
		if m.Links > 1 {
			if links[m.Inode] == "" {
				links[m.Inode] = name
			}
			d += " with " + links[m.Inode]
		}
	}
	attributes, err := xattrs{fd: -1, path: path}.all()
	if err != nil {
		return "", err
	}
	for _, x := range attributes {
		d += fmt.Sprintf(" %s=%x", x.Name, x.Value)
	}
	switch m.Kind {
	case wire.TreeSymlink:
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		d += " to " + to
	case wire.TreeFile:
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		sum := blake3.Sum256(content)
		d += " holds " + hex.EncodeToString(sum[:8])
	}
	return d, nil
}

func differences(want, got map[string]string) string {
	var b strings.Builder
	for _, name := range keys(want, got) {
		if want[name] != got[name] && b.Len() < 4000 {
			fmt.Fprintf(&b, "%q\n  source  %s\n  replica %s\n", name, want[name], got[name])
		}
	}
	return b.String()
}

func keys(maps ...map[string]string) []string {
	seen := map[string]bool{}
	for _, m := range maps {
		for k := range m {
			seen[k] = true
		}
	}
	var out []string
	for k := range seen {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// blocksOnDisk is how many bytes a file takes on disk.
func blocksOnDisk(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// pair is a connection over loopback.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		var err error
		b, err = l.Accept()
		done <- err
	}()
	a, err = net.Dial("tcp", l.Addr().String())
	must(t, err)
	must(t, <-done)
	return a, b
}

// cutter cuts a connection after so many frames were written; negative is never.
type cutter struct {
	net.Conn
	frames int
	left   int  // bytes of the frame at hand
	banner bool // passed
	head   []byte
	seen   int
}

var errCutHere = errors.New("cut")

func (c *cutter) Write(p []byte) (int, error) {
	if c.frames < 0 {
		return c.Conn.Write(p)
	}
	n := 0
	for n < len(p) {
		switch {
		case !c.banner:
			i := bytes.IndexByte(p[n:], '\n')
			if i < 0 {
				n = len(p)
				continue
			}
			n += i + 1
			c.banner = true
		case c.left > 0:
			k := min(c.left, len(p)-n)
			n += k
			c.left -= k
		case c.seen == c.frames && len(c.head) == 0:
			_, _ = c.Conn.Write(p[:n])
			if t, ok := c.Conn.(*net.TCPConn); ok {
				_ = t.CloseWrite()
			}
			time.AfterFunc(10*time.Millisecond, func() { _ = c.Conn.Close() })
			return n, errCutHere
		default:
			c.head = append(c.head, p[n])
			n++
			if len(c.head) == wire.HeaderSize {
				c.left = int(binary.LittleEndian.Uint32(c.head[8:]))
				c.head = c.head[:0]
				c.seen++
			}
		}
	}
	return c.Conn.Write(p)
}

// The things tests do to a source.

func (w *world) path(name string) string { return filepath.Join(w.source, name) }

func (w *world) write(name string, content []byte) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(w.path(name)), 0o755))
	must(w.t, os.WriteFile(w.path(name), content, 0o644))
}

func (w *world) change(name string, at int64, content []byte) {
	w.t.Helper()
	f, err := os.OpenFile(w.path(name), os.O_WRONLY, 0)
	must(w.t, err)
	_, err = f.WriteAt(content, at)
	must(w.t, err)
	must(w.t, f.Close())
}

// noise is n bytes that do not compress, different for every seed.
func noise(seed uint64, n int) []byte {
	h := blake3.New()
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, seed))
	out := make([]byte, n)
	_, _ = h.Digest().Read(out)
	return out
}
