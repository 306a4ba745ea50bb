package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// summary is the digest over a tree's entries that both sides come to, each in its own way.
type summary struct {
	h       *blake3.Hasher
	buf     []byte
	entries uint64
	bytes   int64
}

func newSummary() *summary { return &summary{h: blake3.New()} }

func (s *summary) add(path string, m *wire.TreeMeta) {
	s.entries++
	s.bytes += m.Size
	s.buf = wire.AppendTreeMeta(s.buf, m)
	s.buf = binary.LittleEndian.AppendUint32(s.buf, uint32(len(path)))
	s.buf = append(s.buf, path...)
	if len(s.buf) >= 64<<10 {
		s.drain()
	}
}

func (s *summary) drain() {
	_, _ = s.h.Write(s.buf)
	s.buf = s.buf[:0]
}

func (s *summary) digest() digest.Digest {
	s.drain()
	return digest.Digest(s.h.Sum(nil))
}

// fileDigest is the digest over a file's block digests, taken as they come.
type fileDigest struct{ h *blake3.Hasher }

func newFileDigest() fileDigest {
	h := blake3.New()
	_, _ = h.Write([]byte{'T'})
	return fileDigest{h}
}

func (f fileDigest) add(ds []digest.Digest) {
	for i := range ds {
		_, _ = f.h.Write(ds[i][:])
	}
}

var zeroDigests [1024]digest.Digest

func (f fileDigest) zeros(n int64) {
	for ; n > 0; n -= int64(len(zeroDigests)) {
		f.add(zeroDigests[:min(n, int64(len(zeroDigests)))])
	}
}

func (f fileDigest) sum() digest.Digest { return digest.Digest(f.h.Sum(nil)) }

func violation(format string, args ...any) error {
	return &session.Violation{What: fmt.Sprintf(format, args...)}
}

// dirHook is told of directories as the merge leaves them, after everything in them.
type dirHook func(d *openDir) error

// openDir is a directory the merge is in.
type openDir struct {
	path    string
	meta    wire.TreeMeta
	item    *wire.TreeItem // when it was sent itself; without content
	touched bool           // something directly in it was sent
}

// ledger merges the entries of the old index with a delta's records into the entries of the new tree. It checks that
// the records come in order, make sense and lead to the tree the source says it has. With a writer it also writes the
// new index. It touches no replica.
type ledger struct {
	volume int
	old    *index
	cur    *cursor
	w      *indexWriter // may be nil
	left   dirHook      // may be nil
	direct bool         // the log has no content

	sum     *summary
	stack   []*openDir
	gone    string // everything below it is gone
	hasGone bool
	last    string // path of the last item
	any     bool
	ended   bool
	kept    map[uint64]bool  // objects of TreeKeep
	brought map[uint64]int64 // objects of several links that this delta brought, with their place in the new index
	shared  map[uint64]int64 // objects of several links that stay as they are, the same
	file    *openFile
	changed int64
	deleted int64

	window   []byte // some of the old index
	windowAt int64
}

// openFile is the file whose blocks are arriving.
type openFile struct {
	item  wire.TreeItem
	base  int64 // where the digests of the object's old content are
	had   int64 // how many; blocks beyond are zero
	at    int64 // the next block
	begin int64 // where its digests begin in the new index
	sum   fileDigest
}

func newLedger(volume int, old *index, w *indexWriter, left dirHook) *ledger {
	return &ledger{
		volume: volume, old: old, cur: old.cursor(), w: w, left: left, sum: newSummary(),
		kept: map[uint64]bool{}, brought: map[uint64]int64{}, shared: map[uint64]int64{},
	}
}

// upTo takes the old entries before path as they are, and takes the old entry of path itself out.
func (l *ledger) upTo(path string, all bool) (*wire.TreeListed, error) {
	for {
		e, err := l.cur.peek()
		if err != nil || e == nil {
			return nil, err
		}
		order := -1
		if !all {
			order = wire.CompareTreePaths(e.Path, path)
		}
		if order > 0 {
			return nil, nil
		}
		covered := l.hasGone && below(l.gone, e.Path)
		if order == 0 {
			old := *e
			l.cur.advance()
			if covered {
				return nil, nil
			}
			return &old, nil
		}
		if !covered {
			if err := l.stays(e); err != nil {
				return nil, err
			}
		}
		l.cur.advance()
	}
}

// stays takes an entry of the old index into the new one.
func (l *ledger) stays(e *wire.TreeListed) error {
	if err := l.enter(e.Path, &e.Meta, nil); err != nil {
		return err
	}
	if l.w == nil {
		return nil
	}
	out := *e
	several := e.Meta.Links > 1 && e.Meta.Kind == wire.TreeFile
	if ref, ok := l.shared[e.Meta.Inode]; ok && several && e.Meta.Inode != 0 {
		out.Ref = ref
		return l.w.entry(&out)
	}
	out.Ref = l.w.offset()
	if err := l.copyDigests(e.Ref, e.Meta.Blocks()); err != nil {
		return err
	}
	if several {
		l.shared[e.Meta.Inode] = out.Ref
	}
	return l.w.entry(&out)
}

// copyDigests brings digests of the old index into the new one.
func (l *ledger) copyDigests(ref, n int64) error {
	for n > 0 {
		if at := ref - l.windowAt; at < 0 || at >= int64(len(l.window)) {
			if err := l.look(ref); err != nil {
				return err
			}
		}
		part := l.window[ref-l.windowAt:]
		part = part[:min(n*digest.Size, int64(len(part)))]
		if err := l.w.raw(part); err != nil {
			return err
		}
		ref += int64(len(part))
		n -= int64(len(part)) / digest.Size
	}
	return nil
}

// look moves the window over the old index's digests. Entries that stay have theirs one behind the other, between pages:
// reading each alone would be a system call per file.
func (l *ledger) look(ref int64) error {
	n := int64(0)
	if l.old != nil {
		n = min(windowSize, l.old.end-ref) / digest.Size * digest.Size
	}
	if ref < indexHeader || n <= 0 {
		return fmt.Errorf("%w: digests at %d", ErrIndex, ref)
	}
	if cap(l.window) < windowSize {
		l.window = make([]byte, windowSize)
	}
	l.window, l.windowAt = l.window[:n], ref
	return readFull(l.old.file, l.window, ref)
}

const windowSize = 64 << 10

// enter goes on to an entry of the new tree: it leaves directories behind and checks that the entry's own is there.
func (l *ledger) enter(path string, m *wire.TreeMeta, it *wire.TreeItem) error {
	if err := l.leave(path); err != nil {
		return err
	}
	if path != "" {
		dir, name := splitPath(path)
		n := len(l.stack)
		if n == 0 || l.stack[n-1].path != dir {
			return violation("%q comes without the directory it is in", path)
		}
		if dir == "" && Reserved(name) {
			return violation("%q is reserved", path)
		}
		if it != nil {
			l.stack[n-1].touched = true
		}
	}
	l.sum.add(path, m)
	if m.Kind == wire.TreeDirectory {
		l.stack = append(l.stack, &openDir{path: path, meta: *m, item: keepItem(it)})
	}
	return nil
}

// keepItem is a copy of an item that outlives the record it came in.
func keepItem(it *wire.TreeItem) *wire.TreeItem {
	if it == nil {
		return nil
	}
	kept := *it
	kept.Xattrs = nil
	for _, x := range it.Xattrs {
		kept.Xattrs = append(kept.Xattrs, wire.TreeXattr{Name: x.Name, Value: bytes.Clone(x.Value)})
	}
	return &kept
}

// leave leaves the directories that path is not below of.
func (l *ledger) leave(path string) error {
	for n := len(l.stack); n > 0 && !below(l.stack[n-1].path, path); n = len(l.stack) {
		if err := l.leaveLast(); err != nil {
			return err
		}
	}
	return nil
}

func (l *ledger) leaveLast() error {
	n := len(l.stack)
	d := l.stack[n-1]
	l.stack = l.stack[:n-1]
	// The root's times change with what is set aside in it, whether anything else does or not.
	if l.left == nil || d.item == nil && !d.touched && d.path != "" {
		return nil
	}
	return l.left(d)
}

// item takes an item of a TreePut.
func (l *ledger) item(it *wire.TreeItem) error {
	if l.ended || l.file != nil {
		return violation("%q before the end of the file at hand", it.Path)
	}
	if it.Op == wire.TreeKeep {
		if e, found, err := l.old.find(it.Meta.Inode); err != nil {
			return err
		} else if !found || e.Path != it.Path {
			return violation("object %d of %q is to be kept and is not there", it.Meta.Inode, it.Path)
		}
		l.kept[it.Meta.Inode] = true
		return nil
	}
	if l.any && wire.CompareTreePaths(l.last, it.Path) >= 0 {
		return violation("%q comes after %q", it.Path, l.last)
	}
	l.any, l.last = true, it.Path
	old, err := l.upTo(it.Path, false)
	if err != nil {
		return err
	}
	if it.Op == wire.TreeDelete {
		return l.delete(it, old)
	}
	if old != nil && old.Meta.Kind == wire.TreeDirectory && it.Meta.Kind != wire.TreeDirectory {
		l.gone, l.hasGone = it.Path, true
	}
	if err := l.enter(it.Path, &it.Meta, it); err != nil {
		return err
	}
	l.changed++
	return l.put(it, old)
}

func (l *ledger) delete(it *wire.TreeItem, old *wire.TreeListed) error {
	if err := l.leave(it.Path); err != nil {
		return err
	}
	dir, _ := splitPath(it.Path)
	if n := len(l.stack); old == nil || n == 0 || l.stack[n-1].path != dir {
		return violation("%q is to be deleted and is not there", it.Path)
	}
	l.stack[len(l.stack)-1].touched = true
	l.gone, l.hasGone = it.Path, true
	l.deleted++
	return nil
}

// put takes a new or changed entry: it finds the digests of what its object had, and writes those of what it has.
func (l *ledger) put(it *wire.TreeItem, old *wire.TreeListed) error {
	base, had, err := l.base(it, old)
	if err != nil {
		return err
	}
	if it.Content == wire.TreeContentBlocks {
		if it.Meta.Size <= digest.BlockSize && it.Op == wire.TreeNew {
			return violation("blocks for %q of %d bytes", it.Path, it.Meta.Size)
		}
		// Its attributes are needed when its record is gone: by a connection that goes on inside it.
		l.file = &openFile{item: *keepItem(it), base: base, had: min(had, it.Meta.Blocks()), sum: newFileDigest()}
		if l.w != nil {
			l.file.begin = l.w.offset()
		}
		return nil
	}
	several := it.Meta.Kind != wire.TreeDirectory && it.Meta.Links > 1
	if it.Content == wire.TreeContentApart && !l.direct {
		return violation("%q comes without its bytes", it.Path)
	}
	if ref, ok := l.brought[it.Meta.Inode]; ok && several && it.Content == wire.TreeContentKept && it.Op != wire.TreeMoved {
		return l.write(it, ref)
	}
	ref := int64(0)
	if l.w != nil {
		ref = l.w.offset()
	}
	switch it.Content {
	case wire.TreeContentKept:
		if it.Op == wire.TreeLink {
			return violation("%q is a link to object %d, which did not come", it.Path, it.Meta.Inode)
		}
		if had != it.Meta.Blocks() {
			return violation("%q of %d blocks keeps content of %d", it.Path, it.Meta.Blocks(), had)
		}
		if l.w != nil {
			if err := l.copyDigests(base, had); err != nil {
				return err
			}
		}
	default:
		if l.w != nil && it.Meta.Size > 0 {
			if err := l.w.digests([]digest.Digest{it.Digest}); err != nil {
				return err
			}
		}
	}
	if several {
		l.brought[it.Meta.Inode] = ref
	}
	return l.write(it, ref)
}

func (l *ledger) write(it *wire.TreeItem, ref int64) error {
	if l.w == nil {
		return nil
	}
	return l.w.entry(&wire.TreeListed{Path: it.Path, Meta: it.Meta, Ref: ref})
}

// base finds the digests of the content an item's object had before.
func (l *ledger) base(it *wire.TreeItem, old *wire.TreeListed) (ref, count int64, err error) {
	switch it.Op {
	case wire.TreeSame:
		if old == nil {
			// The root is always there; of a first copy nothing is known of it.
			if it.Path == "" {
				return 0, 0, nil
			}
			return 0, 0, violation("%q is to stay and is not there", it.Path)
		}
		if old.Meta.Kind != it.Meta.Kind {
			return 0, 0, violation("%q is to stay and is something else", it.Path)
		}
		return old.Ref, old.Meta.Blocks(), nil
	case wire.TreeMoved:
		if !l.kept[it.Meta.Inode] {
			return 0, 0, violation("%q moved and was not kept", it.Path)
		}
		e, found, err := l.old.find(it.Meta.Inode)
		if err != nil {
			return 0, 0, err
		}
		if !found || e.Meta.Kind != it.Meta.Kind {
			return 0, 0, violation("%q moved and is something else", it.Path)
		}
		return e.Ref, e.Meta.Blocks(), nil
	}
	return 0, 0, nil
}

// fill takes the blocks before block to as they were.
func (f *openFile) fill(l *ledger, to int64) error {
	var some [256]digest.Digest
	for f.at < min(to, f.had) {
		part := some[:min(min(to, f.had)-f.at, int64(len(some)))]
		if err := l.old.digests(f.base+f.at*digest.Size, part); err != nil {
			return err
		}
		if err := f.add(l, part); err != nil {
			return err
		}
	}
	if f.at >= to {
		return nil
	}
	return f.zeros(l, to-f.at)
}

func (f *openFile) zeros(l *ledger, n int64) error {
	f.sum.zeros(n)
	f.at += n
	if l.w == nil {
		return nil
	}
	return l.w.zeros(n)
}

func (f *openFile) add(l *ledger, ds []digest.Digest) error {
	f.sum.add(ds)
	f.at += int64(len(ds))
	if l.w == nil {
		return nil
	}
	return l.w.digests(ds)
}

// reach checks that a record of the file at hand comes in order, and takes the blocks before it as they were.
func (l *ledger) reach(offset, length int64) error {
	f := l.file
	switch {
	case f == nil:
		return violation("blocks of no file")
	case offset/digest.BlockSize < f.at:
		return violation("blocks of %q at %d come twice", f.item.Path, offset)
	case offset+length > f.item.Meta.Size || (offset+length)%digest.BlockSize != 0 && offset+length != f.item.Meta.Size:
		return violation("blocks of %q from %d to %d do not fit %d bytes", f.item.Path, offset, offset+length, f.item.Meta.Size)
	}
	return f.fill(l, offset/digest.BlockSize)
}

func (l *ledger) blocks(m *wire.TreeBlocks) error {
	if err := l.reach(m.Offset, int64(m.Length)); err != nil {
		return err
	}
	if (m.Codec == wire.CodecApart) != l.direct {
		return violation("blocks of %q without their bytes", l.file.item.Path)
	}
	return l.file.add(l, m.Digests)
}

func (l *ledger) hole(m *wire.TreeHole) error {
	if err := l.reach(m.Offset, m.Length); err != nil {
		return err
	}
	return l.file.zeros(l, blocksOf(m.Length))
}

func (l *ledger) fileEnd(m *wire.TreeFileEnd) error {
	f := l.file
	if f == nil {
		return violation("the end of no file")
	}
	if err := f.fill(l, f.item.Meta.Blocks()); err != nil {
		return err
	}
	if got := f.sum.sum(); got != m.Digest {
		return &session.Integrity{What: fmt.Sprintf("file %q as received", f.item.Path), Want: m.Digest, Got: got}
	}
	l.file = nil
	if f.item.Meta.Links > 1 {
		l.brought[f.item.Meta.Inode] = f.begin
	}
	return l.write(&f.item, f.begin)
}

func (l *ledger) end(m *wire.TreeEnd) error {
	if l.ended || l.file != nil {
		return violation("the end of the tree comes early")
	}
	if _, err := l.upTo("", true); err != nil {
		return err
	}
	for len(l.stack) > 0 {
		if err := l.leaveLast(); err != nil {
			return err
		}
	}
	l.ended = true
	if got := l.sum.digest(); got != m.Digest || l.sum.entries != m.Entries {
		return &session.Integrity{What: fmt.Sprintf("tree as received, of %d entries instead of %d,", l.sum.entries, m.Entries), Want: m.Digest, Got: got}
	}
	return nil
}

// position is how far the records taken so far lead, for a source that is to go on behind them.
func (l *ledger) position() (path string, inside bool, offset int64) {
	if l.file != nil {
		return l.file.item.Path, true, l.file.at * digest.BlockSize
	}
	return l.last, false, 0
}
