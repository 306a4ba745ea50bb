package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/spool"
)

// acl is a POSIX access control list as the kernel keeps it: owner, a user, group, mask, others.
func acl(user uint32, permissions uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, permissions, user}, {4, 4, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("owners and device nodes need root")
	}
}

// furnish gives a source one of everything.
func furnish(t *testing.T, w *world) {
	t.Helper()
	w.write("empty", nil)
	w.write("small", []byte("small"))
	w.write("block", noise(1, digest.BlockSize))
	w.write("large", noise(2, 5*digest.BlockSize+123))
	w.write("huge", noise(3, 3<<20+7))
	w.write("deep/er/and/deeper/file", noise(4, 1000))
	w.write("zeros", make([]byte, 3*digest.BlockSize))
	w.write("odd \xff\xfe\n\"name", []byte("names are bytes"))
	w.write("a.b/x", []byte("sorts before a/x by bytes, behind it in a walk"))
	w.write("a/x", []byte("x"))
	w.write("many/first", noise(5, 100_000))
	must(t, os.Link(w.path("many/first"), w.path("a/second")))
	must(t, os.Link(w.path("many/first"), w.path("zz third")))
	w.write("two", []byte("two names"))
	must(t, os.Link(w.path("two"), w.path("two again")))
	must(t, os.Symlink("nowhere/\xfe", w.path("dangling")))
	must(t, os.Symlink("/etc", w.path("outside")))
	must(t, unix.Lchown(w.path("dangling"), 7, 8))
	must(t, unix.Mkfifo(w.path("fifo"), 0o640))
	must(t, unix.Mknod(w.path("socket"), unix.S_IFSOCK|0o600, 0))
	must(t, unix.Mknod(w.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(w.path("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 200))))
	must(t, os.Chown(w.path("small"), 1234, 5678))
	must(t, unix.Chmod(w.path("small"), 0o6751))
	must(t, os.Mkdir(w.path("sticky"), 0o700))
	must(t, unix.Chmod(w.path("sticky"), 0o3777))
	must(t, os.Mkdir(w.path("closed"), 0o700))
	w.write("closed/in", []byte("in"))
	must(t, os.Chmod(w.path("closed"), 0o500))
	must(t, unix.Setxattr(w.path("large"), "user.colour", []byte("green"), 0))
	must(t, unix.Setxattr(w.path("a"), "user.empty", nil, 0))
	must(t, unix.Setxattr(w.path("block"), "system.posix_acl_access", acl(1000, 7), 0))
	must(t, unix.Setxattr(w.path("a.b"), "system.posix_acl_default", acl(1001, 5), 0))
	w.write("a.b/inherits", []byte("a list of its own"))
	f, err := os.Create(w.path("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("island"), 20<<20+5000)
	must(t, err)
	must(t, f.Truncate(64<<20+17))
	must(t, f.Close())
	old := time.Date(1962, 3, 4, 5, 6, 7, 891234567, time.UTC)
	must(t, os.Chtimes(w.path("empty"), old, old))
	must(t, os.Chtimes(w.path("deep"), old, old))
	ts := []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: 7, Nsec: 8}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, w.path("dangling"), ts, unix.AT_SYMLINK_NOFOLLOW))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, w.path("fifo"), ts, 0))
}

func TestAFirstCopyHasEverything(t *testing.T) {
	asRoot(t)
	w := newWorld(t)
	furnish(t, w)
	// A first copy replaces what is there.
	must(t, os.MkdirAll(w.target+"/left/over", 0o755))
	must(t, os.WriteFile(w.target+"/small", []byte("something else"), 0o600))
	must(t, os.Symlink("/", w.target+"/a"))
	w.replicate()
	if got := blocksOnDisk(t, w.target+"/sparse"); got > 128<<10 {
		t.Errorf("the sparse file takes %d bytes", got)
	}
	if got := w.replicate(); got.Changed != 0 || got.Deleted != 0 || got.Data != 0 {
		t.Errorf("nothing changed: %+v", got)
	}
}

// Every kind of change arrives, and no more content travels than it must.
func TestEveryKindOfChange(t *testing.T) {
	asRoot(t)
	cases := []struct {
		name   string
		change func(t *testing.T, w *world)
		data   int64 // content that may travel
	}{
		{"nothing", func(*testing.T, *world) {}, 0},
		{"a new file", func(_ *testing.T, w *world) { w.write("new", []byte("new")) }, 3},
		{"a new tree", func(_ *testing.T, w *world) { w.write("n/e/w", []byte("new")) }, 3},
		{"a block of a large file", func(_ *testing.T, w *world) { w.change("large", 2*digest.BlockSize+5, []byte("x")) }, digest.BlockSize},
		{"zeros in a large file", func(_ *testing.T, w *world) { w.change("huge", 1<<20, make([]byte, 1<<20)) }, 0},
		{"a hole in a large file", func(t *testing.T, w *world) {
			f, err := os.OpenFile(w.path("huge"), os.O_WRONLY, 0)
			must(t, err)
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 512<<10))
			must(t, f.Close())
		}, 0},
		{"a large file grows", func(t *testing.T, w *world) { w.change("large", 5*digest.BlockSize+123, noise(9, digest.BlockSize)) }, 2 * digest.BlockSize},
		{"a large file shrinks", func(t *testing.T, w *world) { must(t, os.Truncate(w.path("large"), 2*digest.BlockSize+1)) }, 1},
		{"a large file becomes small", func(t *testing.T, w *world) { must(t, os.Truncate(w.path("large"), 10)) }, 10},
		{"a large file becomes empty", func(t *testing.T, w *world) { must(t, os.Truncate(w.path("large"), 0)) }, 0},
		{"a small file becomes large", func(t *testing.T, w *world) { must(t, os.Truncate(w.path("small"), 10<<20)) }, digest.BlockSize},
		{"a sparse file gets an island", func(_ *testing.T, w *world) { w.change("sparse", 40<<20, []byte("x")) }, digest.BlockSize},
		{"an island sinks", func(_ *testing.T, w *world) { w.change("sparse", 20<<20+5000, make([]byte, 6)) }, 0},
		{"touched", func(t *testing.T, w *world) {
			now := time.Now()
			must(t, os.Chtimes(w.path("huge"), now, now))
			must(t, os.Chtimes(w.path("small"), now, now))
			must(t, os.Chtimes(w.path("a"), now, now))
		}, 0},
		{"mode and owner", func(t *testing.T, w *world) {
			must(t, os.Chown(w.path("huge"), 3, 4))
			must(t, unix.Chmod(w.path("huge"), 0o4711))
			must(t, os.Chown(w.path("deep"), 3, 4))
			must(t, os.Chmod(w.path("fifo"), 0o600))
			must(t, unix.Lchown(w.path("dangling"), 1, 2))
		}, 0},
		{"attributes", func(t *testing.T, w *world) {
			must(t, unix.Removexattr(w.path("large"), "user.colour"))
			must(t, unix.Setxattr(w.path("large"), "user.shape", noise(8, 2000), 0))
			must(t, unix.Removexattr(w.path("a.b"), "system.posix_acl_default"))
			must(t, unix.Setxattr(w.path("small"), "system.posix_acl_access", acl(5, 4), 0))
			must(t, unix.Setxattr(w.path("deep"), "system.posix_acl_default", acl(5, 4), 0))
		}, 0},
		{"files in a directory with a default list", func(_ *testing.T, w *world) {
			must(t, unix.Setxattr(w.path("deep"), "system.posix_acl_default", acl(5, 4), 0))
			w.write("deep/inherits", []byte("x"))
			must(t, os.WriteFile(w.path("a/plain"), []byte("y"), 0o600))
			must(t, os.Rename(w.path("a/plain"), w.path("deep/plain")))
			must(t, os.MkdirAll(w.path("deep/inherits too/and too"), 0o750))
		}, 2},
		{"deletions", func(t *testing.T, w *world) {
			must(t, os.RemoveAll(w.path("deep")))
			must(t, os.Remove(w.path("small")))
			must(t, os.Remove(w.path("fifo")))
			must(t, os.Remove(w.path("dangling")))
		}, 0},
		{"a rename", func(t *testing.T, w *world) { must(t, os.Rename(w.path("huge"), w.path("a/huge"))) }, 0},
		{"a rename and a change", func(t *testing.T, w *world) {
			must(t, os.Rename(w.path("huge"), w.path("a/huge")))
			w.change("a/huge", 100, []byte("x"))
		}, digest.BlockSize},
		{"a rename into a new file's place", func(t *testing.T, w *world) {
			must(t, os.Rename(w.path("huge"), w.path("a/huge")))
			w.write("huge", []byte("another"))
		}, 7},
		{"two change places", func(t *testing.T, w *world) {
			must(t, os.Rename(w.path("huge"), w.path("third")))
			must(t, os.Rename(w.path("large"), w.path("huge")))
			must(t, os.Rename(w.path("third"), w.path("large")))
		}, 0},
		{"a directory is renamed", func(t *testing.T, w *world) {
			w.write("deep/huge", noise(3, 3<<20+7))
			w.replicate()
			must(t, os.Rename(w.path("deep"), w.path("abyss")))
		}, 1000},
		{"a renamed file's old directory goes", func(t *testing.T, w *world) {
			w.write("deep/huge", noise(3, 3<<20+7))
			w.replicate()
			must(t, os.Rename(w.path("deep/huge"), w.path("zzz")))
			must(t, os.RemoveAll(w.path("deep")))
		}, 0},
		{"another link", func(t *testing.T, w *world) {
			must(t, os.Link(w.path("huge"), w.path("a/link")))
			must(t, os.Link(w.path("huge"), w.path("zz/../zzlink")))
			must(t, os.Link(w.path("small"), w.path("a/little")))
		}, 5},
		{"a link goes", func(t *testing.T, w *world) { must(t, os.Remove(w.path("many/first"))) }, 0},
		{"the links of one go", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("many/first")))
			must(t, os.Remove(w.path("zz third")))
			must(t, os.Remove(w.path("two")))
		}, 9},
		{"a link is broken", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("a/second")))
			w.write("a/second", noise(77, 100_000))
		}, 100_000},
		{"a linked file changes", func(t *testing.T, w *world) {
			w.change("many/first", 70_000, []byte("x"))
			w.change("two", 0, []byte("T"))
		}, digest.BlockSize + 9},
		{"links change places", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("two again")))
			must(t, os.Link(w.path("many/first"), w.path("two again")))
			must(t, os.Remove(w.path("a/second")))
			must(t, os.Link(w.path("two"), w.path("a/second")))
		}, 9},
		{"linked special files", func(t *testing.T, w *world) {
			must(t, os.Link(w.path("fifo"), w.path("a/fifo")))
			must(t, os.Link(w.path("dangling"), w.path("a/dangling")))
		}, 0},
		{"a file becomes a directory", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("large")))
			w.write("large/x", []byte("x"))
		}, 1},
		{"a directory becomes a file", func(t *testing.T, w *world) {
			must(t, os.RemoveAll(w.path("deep")))
			w.write("deep", noise(6, 100_000))
		}, 100_000},
		{"a directory becomes a link to itself", func(t *testing.T, w *world) {
			must(t, os.RemoveAll(w.path("deep")))
			must(t, os.Symlink("deep", w.path("deep")))
		}, 0},
		{"a link becomes a directory", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("outside")))
			w.write("outside/passwd", []byte("x"))
		}, 1},
		{"a link points elsewhere", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("outside")))
			must(t, os.Symlink("/tmp", w.path("outside")))
		}, 0},
		{"a device becomes a file", func(t *testing.T, w *world) {
			must(t, os.Remove(w.path("null")))
			w.write("null", []byte("x"))
		}, 1},
		{"everything goes", func(t *testing.T, w *world) {
			names, err := os.ReadDir(w.source)
			must(t, err)
			for _, n := range names {
				must(t, os.RemoveAll(w.path(n.Name())))
			}
		}, 0},
		{"the root changes", func(t *testing.T, w *world) {
			must(t, os.Chmod(w.source, 0o711))
			must(t, os.Chown(w.source, 12, 13))
			must(t, unix.Setxattr(w.source, "user.root", []byte("yes"), 0))
		}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			furnish(t, w)
			w.replicate()
			c.change(t, w)
			w.t = t
			before := look1(t, w.target)
			sent, _, sendErr, receiveErr := w.transfer()
			if sendErr != nil || receiveErr != nil {
				t.Fatalf("source %v, target %v", sendErr, receiveErr)
			}
			if diff := differences(before, look1(t, w.target)); diff != "" {
				t.Fatalf("the replica changed before the commit:\n%s", diff)
			}
			must(t, w.commit())
			w.same()
			if sent.Data > c.data {
				t.Errorf("%d bytes of content travelled, %d would do", sent.Data, c.data)
			}
			if got := blocksOnDisk2(t, w.target+"/sparse"); got > 384<<10 {
				t.Errorf("the sparse file takes %d bytes", got)
			}
			if got := w.replicate(); got.Changed != 0 || got.Deleted != 0 {
				t.Errorf("after it nothing changed: %+v", got)
			}
		})
	}
}

func blocksOnDisk2(t *testing.T, path string) int64 {
	if _, err := os.Lstat(path); err != nil {
		return 0
	}
	return blocksOnDisk(t, path)
}

// A replica whose index is lost is compared from the bytes up.
func TestWithoutAnIndexOnlyDifferencesTravel(t *testing.T) {
	asRoot(t)
	w := newWorld(t)
	furnish(t, w)
	w.replicate()
	must(t, w.sp.Raise(9))
	w.begin()
	if _, err := NewReceiver(w.sp, 0, w.target, w.receive); !isNoIndex(err) {
		t.Fatalf("without an index: %v", err)
	}
	ref, err := BuildIndex(t.Context(), w.sp, w.target, nil)
	must(t, err)
	must(t, w.sp.SetMaps(mapsOf(ref)))
	w.change("huge", 1<<20, []byte("x"))
	w.write("small", []byte("SMALL"))
	w.write("new", []byte("new"))
	must(t, os.Remove(w.path("block")))
	// Somebody wrote the replica in the dark.
	must(t, os.WriteFile(w.target+"/a/x", []byte("!"), 0o644))
	ref, err = BuildIndex(t.Context(), w.sp, w.target, nil)
	must(t, err)
	must(t, w.sp.SetMaps(mapsOf(ref)))
	got := w.replicate()
	// Objects of several links are sent anew.
	if want := int64(digest.BlockSize + 5 + 3 + 1 + 100_000 + 9); got.Data != want {
		t.Errorf("%d bytes travelled instead of %d", got.Data, want)
	}
	if got := w.replicate(); got.Changed != 0 {
		t.Errorf("nothing changed: %+v", got)
	}
}

func isNoIndex(err error) bool {
	var none *NoIndex
	return errors.As(err, &none)
}

func TestASourceThatChangesIsNoInstant(t *testing.T) {
	w := newWorld(t)
	w.write("a", []byte("a"))
	w.write("big", noise(1, 5<<20))
	w.replicate()
	w.write("b", []byte("b"))
	w.write("big2", noise(2, 5<<20))
	for name, spoil := range map[string]func(){
		"vanishes": func() { must(t, os.Remove(w.path("b"))) },
		"grows":    func() { w.change("big2", 5<<20, []byte("more")) },
		"shrinks":  func() { must(t, os.Truncate(w.path("big2"), 100)) },
		"linked":   func() { _ = os.Remove(w.path("b")); must(t, os.Symlink("/etc/passwd", w.path("b"))) },
	} {
		t.Run(name, func(t *testing.T) {
			w.write("b", []byte("b"))
			w.write("big2", noise(2, 5<<20))
			before := look1(t, w.target)
			// Nothing is read before it has happened, by any reader.
			var once sync.Once
			w.send.Pace = func(context.Context, int) error {
				once.Do(spoil)
				return nil
			}
			_, _, sendErr, receiveErr := w.transfer()
			w.send.Pace = nil
			var changed *SourceChanged
			if !errors.As(sendErr, &changed) {
				t.Errorf("the source says %v", sendErr)
			}
			if receiveErr == nil || !strings.Contains(receiveErr.Error(), "snapshot") {
				t.Errorf("the target says %v", receiveErr)
			}
			must(t, w.sp.Drop())
			if diff := differences(before, look1(t, w.target)); diff != "" {
				t.Error(diff)
			}
			must(t, os.RemoveAll(w.path("b")))
		})
	}
}

// A thousand directories of twenty files: pages, units and batches all have several.
func TestManySmallFiles(t *testing.T) {
	w := newWorld(t)
	for i := range 20_000 {
		name := fmt.Sprintf("%02d/%03d/%05d", i/2000, i/20, i)
		if i%20 == 0 {
			must(t, os.MkdirAll(w.path(fmt.Sprintf("%02d/%03d", i/2000, i/20)), 0o755))
		}
		must(t, os.WriteFile(w.path(name), noise(uint64(i), i%1500), 0o644))
	}
	if got := w.replicate(); got.Entries != 20_000+1000+10+1 {
		t.Errorf("%+v", got)
	}
	for i := 0; i < 20_000; i += 97 {
		name := fmt.Sprintf("%02d/%03d/%05d", i/2000, i/20, i)
		switch i % 3 {
		case 0:
			must(t, os.Remove(w.path(name)))
		case 1:
			must(t, os.WriteFile(w.path(name), noise(uint64(i)+1<<32, 900), 0o600))
		default:
			must(t, os.Rename(w.path(name), w.path(name+"x")))
		}
	}
	w.replicate()
	must(t, os.Rename(w.path("03"), w.path("moved")))
	w.replicate()
}

func mapsOf(ref spool.MapRef) map[string]spool.MapRef { return map[string]spool.MapRef{"files": ref} }
