package tree

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// An index says what a replica holds: each entry as the source had it, and the digests of its blocks. It is one file,
// written once from front to end and never changed; all integers little endian:
//
//	+-----------------------------+---------+------+---------+------+-----+--------+---------+---------+
//	| magic, version; 4096 bytes  | digests | page | digests | page | ... | places | objects | trailer |
//	+-----------------------------+---------+------+---------+------+-----+--------+---------+---------+
//
// digests are 32 bytes each, those of the entries of the next page; zeros are left out of the file. A page is a frame
// of wire.TreePage. places are the offsets of all pages (u64 each). objects are sorted by inode number, for the entries
// that have more than one block or more than one link: inode u64, page u32, entry in the page u32. The trailer:
//
//	+---------+-----------+-------------+---------------+------------+-------------+-----------+
//	| magic   | pages u64 | objects u64 | entries (u64) | known u64  | places u64  | root (32) |
//	+---------+-----------+-------------+---------------+------------+-------------+-----------+
//
// root is the BLAKE3 of the digest of all pages' frames and the trailer before it; spool.MapRef has it too. A file is
// synced before the spool names it, so a half-written index is never believed; pages carry their own checksums, and a
// digest that went bad on disk makes blocks travel that need not.
const (
	indexMagic   = "LBtree01"
	indexHeader  = 4096
	indexTrailer = 8 + 5*8 + digest.Size
	// pageEntries and pageBytes bound a page, before packing.
	pageEntries = 1024
	pageBytes   = 256 << 10
	objectSize  = 16
)

type object struct {
	inode uint64
	page  uint32
	entry uint32
}

// tracked reports whether an entry's object can be found by its inode number.
func tracked(m *wire.TreeMeta) bool {
	return m.Inode != 0 && m.Kind != wire.TreeDirectory && (m.Links > 1 || m.Size > digest.BlockSize)
}

// indexWriter writes an index. It is not safe for concurrent use.
type indexWriter struct {
	file    spool.File
	name    string
	known   bool
	at      int64 // where buf begins in the file
	buf     []byte
	page    []byte
	packed  []byte
	before  string
	count   int
	places  []int64
	objects []object
	entries uint64
	pages   *blake3.Hasher
}

func newIndexWriter(sp *spool.Spool, known bool) (*indexWriter, error) {
	name, file, err := sp.CreateMapFile()
	if err != nil {
		return nil, err
	}
	w := &indexWriter{file: file, name: name, known: known, pages: blake3.New()}
	w.buf = append(w.buf, indexMagic...)
	w.buf = append(w.buf, make([]byte, indexHeader-len(indexMagic))...)
	return w, nil
}

func (w *indexWriter) offset() int64 { return w.at + int64(len(w.buf)) }

const indexBuffer = 1 << 20

func (w *indexWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if _, err := w.file.WriteAt(w.buf, w.at); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	w.at += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

func (w *indexWriter) digests(ds []digest.Digest) error {
	for i := range ds {
		w.buf = append(w.buf, ds[i][:]...)
	}
	if len(w.buf) >= indexBuffer {
		return w.flush()
	}
	return nil
}

// raw writes digests as they stand in another index.
func (w *indexWriter) raw(b []byte) error {
	w.buf = append(w.buf, b...)
	if len(w.buf) >= indexBuffer {
		return w.flush()
	}
	return nil
}

// zeros writes n digests of zero content.
func (w *indexWriter) zeros(n int64) error {
	if n*digest.Size < indexBuffer {
		w.buf = append(w.buf, make([]byte, n*digest.Size)...)
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.at += n * digest.Size
	return nil
}

// entry adds an entry whose digests are written.
func (w *indexWriter) entry(e *wire.TreeListed) error {
	if tracked(&e.Meta) {
		w.objects = append(w.objects, object{e.Meta.Inode, uint32(len(w.places)), uint32(w.count)})
	}
	w.page = wire.AppendTreeListed(w.page, w.before, e)
	w.before = e.Path
	w.count++
	w.entries++
	if w.count < pageEntries && len(w.page) < pageBytes {
		return nil
	}
	return w.endPage()
}

func (w *indexWriter) endPage() error {
	if w.count == 0 {
		return nil
	}
	codec, payload, err := compress(w.page, w.packed)
	if err != nil {
		return err
	}
	if codec == wire.CodecZstd {
		w.packed = payload
	}
	at := w.offset()
	start := len(w.buf)
	w.buf = wire.Append(w.buf, wire.TreePage{Number: len(w.places), Codec: codec, Count: w.count, Length: len(w.page), Payload: payload})
	_, _ = w.pages.Write(w.buf[start:])
	w.places = append(w.places, at)
	w.page, w.before, w.count = w.page[:0], "", 0
	if len(w.buf) >= indexBuffer {
		return w.flush()
	}
	return nil
}

// finish writes the rest, makes the file durable and closes it.
func (w *indexWriter) finish() (spool.MapRef, error) {
	if err := w.endPage(); err != nil {
		return spool.MapRef{}, err
	}
	places := w.offset()
	for _, p := range w.places {
		w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(p))
	}
	slices.SortFunc(w.objects, func(a, b object) int {
		switch {
		case a.inode != b.inode && a.inode < b.inode, a.inode == b.inode && (a.page < b.page || a.page == b.page && a.entry < b.entry):
			return -1
		}
		return 1
	})
	for _, o := range w.objects {
		w.buf = binary.LittleEndian.AppendUint64(w.buf, o.inode)
		w.buf = binary.LittleEndian.AppendUint32(w.buf, o.page)
		w.buf = binary.LittleEndian.AppendUint32(w.buf, o.entry)
	}
	start := len(w.buf)
	w.buf = append(w.buf, indexMagic...)
	known := uint64(0)
	if w.known {
		known = 1
	}
	for _, v := range []uint64{uint64(len(w.places)), uint64(len(w.objects)), w.entries, known, uint64(places)} {
		w.buf = binary.LittleEndian.AppendUint64(w.buf, v)
	}
	h := blake3.New()
	_, _ = h.Write(w.pages.Sum(nil))
	_, _ = h.Write(w.buf[start:])
	root := h.Sum(nil)
	w.buf = append(w.buf, root...)
	size := w.offset()
	err := w.flush()
	if err == nil {
		err = w.file.Sync()
	}
	if err := errors.Join(err, w.file.Close()); err != nil {
		return spool.MapRef{}, fmt.Errorf("write index: %w", err)
	}
	return spool.MapRef{File: w.name, Size: size, Root: hex.EncodeToString(root)}, nil
}

// abandon closes the file, which the spool sweeps away.
func (w *indexWriter) abandon() {
	if w != nil {
		_ = w.file.Close()
	}
}

// index is an index that is read. It is safe for concurrent use. A nil index is one without entries.
type index struct {
	file    spool.File
	places  []int64
	objects int64 // how many
	at      int64 // where they begin
	end     int64 // of the digests and pages
	entries uint64
	known   bool
}

// openIndex opens what a spool says describes a replica.
func openIndex(sp *spool.Spool, ref spool.MapRef) (*index, error) {
	f, err := sp.OpenMapFile(ref.File)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIndex, err)
	}
	x, err := readIndex(f, ref)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return x, nil
}

func readIndex(f spool.File, ref spool.MapRef) (*index, error) {
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	if size != ref.Size || size < indexHeader+indexTrailer {
		return nil, fmt.Errorf("%w: it has %d bytes instead of %d", ErrIndex, size, ref.Size)
	}
	var t [indexTrailer]byte
	if err := readFull(f, t[:], size-indexTrailer); err != nil {
		return nil, err
	}
	if string(t[:8]) != indexMagic || hex.EncodeToString(t[indexTrailer-digest.Size:]) != ref.Root {
		return nil, fmt.Errorf("%w: its trailer is another one's", ErrIndex)
	}
	field := func(i int) int64 { return int64(binary.LittleEndian.Uint64(t[8+8*i:])) }
	x := &index{file: f, objects: field(1), entries: uint64(field(2)), known: field(3) == 1, end: field(4)}
	pages := field(0)
	x.at = x.end + 8*pages
	if pages < 0 || x.objects < 0 || x.end < indexHeader || x.at < x.end || x.at+objectSize*x.objects+indexTrailer != size {
		return nil, fmt.Errorf("%w: its parts do not add up", ErrIndex)
	}
	raw := make([]byte, 8*pages)
	if err := readFull(f, raw, x.end); err != nil {
		return nil, err
	}
	x.places = make([]int64, pages)
	for i := range x.places {
		x.places[i] = int64(binary.LittleEndian.Uint64(raw[8*i:]))
		if x.places[i] < indexHeader || x.places[i] >= x.end {
			return nil, fmt.Errorf("%w: page %d at %d", ErrIndex, i, x.places[i])
		}
	}
	return x, nil
}

func readFull(f io.ReaderAt, b []byte, at int64) error {
	n, err := f.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends early", ErrIndex)
	}
	return fmt.Errorf("read index: %w", err)
}

func (x *index) close() {
	if x != nil {
		_ = x.file.Close()
	}
}

func (x *index) pages() int {
	if x == nil {
		return 0
	}
	return len(x.places)
}

// page reads page n.
func (x *index) page(n int) (wire.TreePage, error) {
	if n < 0 || n >= x.pages() {
		return wire.TreePage{}, fmt.Errorf("%w: page %d of %d", ErrIndex, n, x.pages())
	}
	var head [wire.HeaderSize]byte
	if err := readFull(x.file, head[:], x.places[n]); err != nil {
		return wire.TreePage{}, err
	}
	h, err := wire.ParseHeader(head[:])
	if err != nil {
		return wire.TreePage{}, fmt.Errorf("%w: page %d: %w", ErrIndex, n, err)
	}
	payload := make([]byte, h.Length)
	if err := readFull(x.file, payload, x.places[n]+wire.HeaderSize); err != nil {
		return wire.TreePage{}, err
	}
	m, err := wire.Parse(h, payload)
	if err != nil {
		return wire.TreePage{}, fmt.Errorf("%w: page %d: %w", ErrIndex, n, err)
	}
	p, ok := m.(wire.TreePage)
	if !ok || p.Number != n {
		return wire.TreePage{}, fmt.Errorf("%w: page %d is another", ErrIndex, n)
	}
	return p, nil
}

// listing unpacks a page.
func listing(p wire.TreePage) ([]wire.TreeListed, error) {
	memory := newBuffer()
	defer memory.release()
	raw, err := unpack(p.Codec, p.Length, p.Payload, memory.b)
	if err != nil {
		return nil, err
	}
	return wire.TreeListing(raw, p.Count)
}

func (x *index) listing(n int) ([]wire.TreeListed, error) {
	p, err := x.page(n)
	if err != nil {
		return nil, err
	}
	out, err := listing(p)
	if err != nil {
		return nil, fmt.Errorf("%w: page %d: %w", ErrIndex, n, err)
	}
	return out, nil
}

// digests reads count digests that begin at ref.
func (x *index) digests(ref int64, into []digest.Digest) error {
	n := int64(len(into)) * digest.Size
	if x == nil || ref < indexHeader || ref+n > x.end {
		return fmt.Errorf("%w: digests at %d", ErrIndex, ref)
	}
	raw := make([]byte, n)
	if err := readFull(x.file, raw, ref); err != nil {
		return err
	}
	for i := range into {
		copy(into[i][:], raw[i*digest.Size:])
	}
	return nil
}

// find looks an object up by the source's inode number.
func (x *index) find(inode uint64) (wire.TreeListed, bool, error) {
	if x == nil || !x.known {
		return wire.TreeListed{}, false, nil
	}
	lo, hi := int64(0), x.objects
	for lo < hi {
		mid := (lo + hi) / 2
		o, err := x.object(mid)
		if err != nil {
			return wire.TreeListed{}, false, err
		}
		if o.inode < inode {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == x.objects {
		return wire.TreeListed{}, false, nil
	}
	o, err := x.object(lo)
	if err != nil || o.inode != inode {
		return wire.TreeListed{}, false, err
	}
	list, err := x.listing(int(o.page))
	if err != nil {
		return wire.TreeListed{}, false, err
	}
	if int(o.entry) >= len(list) || list[o.entry].Meta.Inode != inode {
		return wire.TreeListed{}, false, fmt.Errorf("%w: object %d is not where it says", ErrIndex, inode)
	}
	return list[o.entry], true, nil
}

func (x *index) object(i int64) (object, error) {
	var b [objectSize]byte
	if err := readFull(x.file, b[:], x.at+i*objectSize); err != nil {
		return object{}, err
	}
	return object{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])}, nil
}

// cursor goes through an index's entries in order.
type cursor struct {
	next func() ([]wire.TreeListed, error) // the next page, nil at the end
	page []wire.TreeListed
	at   int
	last string
	any  bool
}

func (x *index) cursor() *cursor {
	n := 0
	return &cursor{next: func() ([]wire.TreeListed, error) {
		if n >= x.pages() {
			return nil, nil
		}
		n++
		return x.listing(n - 1)
	}}
}

// peek is the entry at hand, nil at the end. It is valid until the page after next is read.
func (c *cursor) peek() (*wire.TreeListed, error) {
	for c.at == len(c.page) {
		if c.next == nil {
			return nil, nil
		}
		page, err := c.next()
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			c.next, c.page, c.at = nil, nil, 0
			return nil, nil
		}
		if c.any && wire.CompareTreePaths(c.last, page[0].Path) >= 0 {
			return nil, fmt.Errorf("%w: %q comes after %q", ErrIndex, page[0].Path, c.last)
		}
		c.page, c.at, c.last, c.any = page, 0, page[len(page)-1].Path, true
	}
	return &c.page[c.at], nil
}

func (c *cursor) advance() { c.at++ }
