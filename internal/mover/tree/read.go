package tree

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// task is one item on its way: what is decided of it, before it is read.
type task struct {
	entry    entry // without one for a path that is gone
	item     wire.TreeItem
	old      *wire.TreeListed // what the object had
	keep     string           // where the target has the object, which is to be kept
	linked   bool             // the object was dealt with under another name
	compared int              // 1 + the place of its block's digest in the unit's answer; 0: not asked
}

// unit is what one goroutine reads at a time and the emitter sends in order: several items, or a chunk of a file.
type unit struct {
	tasks []*task
	known *answer // digests of what the target has

	file   *sourceFile // of a chunk
	at     int64       // of the chunk; -1 ends the file
	length int64
	resume int64 // blocks before are durable

	ready   chan struct{}
	err     error
	out     []wire.Message
	digests []digest.Digest // of a chunk
	memory  []*buffer
	bytes   int64 // of files that are dealt with once it is durable
}

func newUnit() *unit { return &unit{ready: make(chan struct{})} }

func (u *unit) isReady() bool {
	select {
	case <-u.ready:
		return true
	default:
		return false
	}
}

// release gives back what the unit holds, after it was sent.
func (u *unit) release() {
	for _, m := range u.memory {
		m.release()
	}
	u.memory, u.out = nil, nil
	u.file.release()
	u.file = nil
}

// drop gives back what a unit holds that nobody read.
func (u *unit) drop() {
	if u == nil {
		return
	}
	for _, t := range u.tasks {
		t.entry.in.release()
	}
	u.tasks = nil
	u.release()
}

// sourceFile is a large file that several goroutines read.
type sourceFile struct {
	fd    int
	path  string
	meta  wire.TreeMeta
	fresh bool // the target has nothing of it: blocks that are not sent are zero
	holes bool
	err   error // it could not be opened
	refs  atomic.Int32
	sum   fileDigest // of the emitter alone
}

func newSourceFile(t *task) *sourceFile {
	f := &sourceFile{path: t.item.Path, meta: t.item.Meta, fresh: t.old == nil, holes: t.entry.sparse, sum: newFileDigest()}
	f.refs.Store(1)
	f.fd, f.err = openAt(t.entry.in.fd, t.entry.name(), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if f.err != nil {
		f.err = vanished(f.path, "open", f.err)
		return f
	}
	f.err = unchangedFile(f.fd, f.path, &f.meta)
	return f
}

func (f *sourceFile) hold() *sourceFile {
	f.refs.Add(1)
	return f
}

func (f *sourceFile) release() {
	if f != nil && f.refs.Add(-1) == 0 && f.fd >= 0 {
		_ = unix.Close(f.fd)
	}
}

// account takes a chunk's digests, in order, and ends the file behind the last.
func (f *sourceFile) account(u *unit) error {
	f.sum.add(u.digests)
	if u.at >= 0 {
		return nil
	}
	// Every chunk has been read by now.
	if err := unchangedFile(f.fd, f.path, &f.meta); err != nil {
		return err
	}
	for i, m := range u.out {
		if end, ok := m.(wire.TreeFileEnd); ok {
			end.Digest = f.sum.sum()
			u.out[i] = end
		}
	}
	return nil
}

// unchangedFile reports a file that is not what the walk saw.
func unchangedFile(fd int, path string, m *wire.TreeMeta) error {
	var st unix.Stat_t
	if err := again(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return failed("look at", path, err)
	}
	if now, err := metaOf(&st); err != nil || now != *m {
		return &SourceChanged{Path: path, What: "changed"}
	}
	return nil
}

// readUnits reads units until there are no more.
func (s *sender) readUnits() error {
	r := &reader{s: s, scratch: make([]byte, wire.TreeInline)}
	for u := range s.work {
		if err := s.ctx.Err(); err != nil {
			u.err = context.Cause(s.ctx)
		} else {
			u.err = r.read(u)
		}
		for _, t := range u.tasks {
			t.entry.in.release()
		}
		u.tasks = nil
		close(u.ready)
	}
	return nil
}

// reader is one of the goroutines that read files.
type reader struct {
	s       *sender
	scratch []byte
	raw     *buffer // the TreePut being filled
	length  int
	count   int
	before  string
}

func (r *reader) read(u *unit) error {
	if u.file == nil {
		return r.items(u)
	}
	if u.file.err != nil {
		return u.file.err
	}
	if u.at < 0 {
		u.out = append(u.out, wire.TreeFileEnd{Volume: r.s.volume})
		return nil
	}
	return r.chunk(u)
}

// items reads a unit's items and packs them.
func (r *reader) items(u *unit) error {
	known, err := r.known(u)
	if err != nil {
		return err
	}
	for _, t := range u.tasks {
		var theirs *digest.Digest
		if t.compared > 0 {
			if len(known) < t.compared {
				return violation("%d digests instead of %d", len(known), t.compared)
			}
			theirs = &known[t.compared-1]
		}
		if err := r.fill(t, theirs); err != nil {
			r.raw.release()
			r.raw = nil
			return err
		}
		if t.keep != "" {
			keep := wire.TreeItem{Op: wire.TreeKeep, Path: t.keep, Meta: wire.TreeMeta{Inode: t.item.Meta.Inode}}
			if err := r.append(u, &keep); err != nil {
				return err
			}
		}
		if err := r.append(u, &t.item); err != nil {
			return err
		}
		if t.item.Content != wire.TreeContentBlocks {
			u.bytes += t.item.Meta.Size
		}
	}
	return r.seal(u)
}

// known waits for the digests a unit is compared with.
func (r *reader) known(u *unit) ([]digest.Digest, error) {
	if u.known == nil {
		return nil, nil
	}
	m, err := r.s.await(u.known)
	if err != nil {
		return nil, err
	}
	d, ok := m.(wire.TreeDigests)
	if !ok {
		return nil, violation("a %s answers a TreeWantDigests", m.Type())
	}
	return d.Digests, nil
}

// itemRoom is what an item may take beside content and attributes.
const itemRoom = wire.MaxTreePath + wire.MaxTreeLink + 512

// append adds an item to the TreePut being filled, or begins another when it is full.
func (r *reader) append(u *unit, it *wire.TreeItem) error {
	size := itemRoom + len(it.Bytes)
	for _, x := range it.Xattrs {
		size += len(x.Name) + len(x.Value) + 8
	}
	if r.raw != nil && (r.length+size > wire.MaxRecord || r.count == wire.MaxTreeItems) {
		if err := r.seal(u); err != nil {
			return err
		}
	}
	if r.raw == nil {
		r.raw, r.length, r.count, r.before = newBuffer(), 0, 0, ""
	}
	r.length = len(wire.AppendTreeItem(r.raw.b[:r.length], r.before, it))
	r.count++
	r.before = it.Path
	return nil
}

// seal ends the TreePut being filled.
func (r *reader) seal(u *unit) error {
	if r.raw == nil {
		return nil
	}
	put := wire.TreePut{Volume: r.s.volume, Count: r.count, Length: r.length, Payload: r.raw.b[:r.length]}
	u.memory = append(u.memory, r.raw)
	r.raw = nil
	var err error
	put.Codec, put.Payload, err = r.pack(u, put.Payload)
	u.out = append(u.out, put)
	return err
}

// pack compresses when the link is slower than the disks.
func (r *reader) pack(u *unit, raw []byte) (wire.Codec, []byte, error) {
	if !r.s.options.Compression || !r.s.busy.Load() || len(raw) < 512 {
		return wire.CodecNone, raw, nil
	}
	m := newBuffer()
	u.memory = append(u.memory, m)
	return compress(raw, m.b)
}

// fill reads what a task's item lacks: attributes, a link's text, the content of a small file. theirs is the digest of
// what the target has.
func (r *reader) fill(t *task, theirs *digest.Digest) error {
	it := &t.item
	if it.Op == wire.TreeDelete {
		return nil
	}
	in, name := t.entry.in.fd, t.entry.name()
	var err error
	switch it.Meta.Kind {
	case wire.TreeFile:
		return r.file(t, theirs)
	case wire.TreeSymlink:
		b := make([]byte, wire.MaxTreeLink)
		n, err := unix.Readlinkat(in, name, b)
		if err != nil {
			return vanished(it.Path, "read", err)
		}
		it.Link = string(b[:n])
	}
	it.Xattrs, err = xattrs{fd: -1, path: procPath(in, name)}.all()
	if err != nil {
		return vanished(it.Path, "read attributes of", err)
	}
	return nil
}

func (r *reader) file(t *task, theirs *digest.Digest) error {
	it := &t.item
	fd, err := openAt(t.entry.in.fd, t.entry.name(), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return vanished(it.Path, "open", err)
	}
	defer unix.Close(fd)
	if it.Xattrs, err = (xattrs{fd: fd}).all(); err != nil {
		return failed("read attributes of", it.Path, err)
	}
	if it.Content != wire.TreeContentBlocks && !t.linked {
		if err := r.inline(t, fd, theirs); err != nil {
			return err
		}
	}
	return unchangedFile(fd, it.Path, &it.Meta)
}

func (r *reader) inline(t *task, fd int, theirs *digest.Digest) error {
	it := &t.item
	it.Content = wire.TreeContentInline
	b := r.scratch[:it.Meta.Size]
	if err := r.s.readAt(fd, it.Path, b, 0); err != nil {
		return err
	}
	if len(b) > 0 {
		it.Digest = digest.Block(b)
	}
	if theirs != nil && *theirs == it.Digest && t.old.Meta.Size == it.Meta.Size {
		it.Content = wire.TreeContentKept
		return nil
	}
	it.Bytes = b
	r.s.data.Add(int64(len(b)))
	return nil
}

// readAt fills b from a file that is at least that long.
func (s *sender) readAt(fd int, path string, b []byte, at int64) error {
	if s.options.Pace != nil {
		if err := s.options.Pace(s.ctx, len(b)); err != nil {
			return err
		}
	}
	s.read.Add(int64(len(b)))
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return failed("read", path, err)
		case n == 0:
			return &SourceChanged{Path: path, What: "became shorter"}
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// chunk reads a chunk of a large file and finds what of it the target does not have.
func (r *reader) chunk(u *unit) error {
	known, err := r.known(u)
	if err != nil {
		return err
	}
	// Digests are asked for in runs; this chunk's are some of them.
	first := (u.at / digest.BlockSize) % digestRun
	known = known[min(int64(len(known)), first):]
	p, err := r.load(u)
	if err != nil {
		return err
	}
	theirs := func(i int) digest.Digest {
		if i < len(known) {
			return known[i]
		}
		return digest.Zero
	}
	lacks := func(i int) bool {
		at := u.at + int64(i)*digest.BlockSize
		return at >= u.resume && u.digests[i] != theirs(i)
	}
	for i := 0; i < len(u.digests); {
		if !lacks(i) {
			i++
			continue
		}
		zero := u.digests[i] == digest.Zero
		j := i + 1
		for j < len(u.digests) && lacks(j) && (u.digests[j] == digest.Zero) == zero {
			j++
		}
		from, to := int64(i)*digest.BlockSize, min(int64(j)*digest.BlockSize, u.length)
		if zero {
			u.out = append(u.out, wire.TreeHole{Volume: r.s.volume, Offset: u.at + from, Length: to - from})
			i = j
			continue
		}
		m := wire.TreeBlocks{Volume: r.s.volume, Offset: u.at + from, Length: int(to - from), Digests: u.digests[i:j]}
		if m.Codec, m.Payload, err = r.pack(u, p[from:to]); err != nil {
			return err
		}
		u.out = append(u.out, m)
		r.s.data.Add(to - from)
		i = j
	}
	return nil
}

// load reads a chunk and digests it; what the file system knows to be a hole is not read.
func (r *reader) load(u *unit) ([]byte, error) {
	f := u.file
	if f.holes {
		data, err := unix.Seek(f.fd, u.at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= u.at+u.length {
			u.digests = zeroDigests[:blocksOf(u.length)]
			return nil, nil
		}
	}
	m := newBuffer()
	u.memory = append(u.memory, m)
	p := m.b[:u.length]
	if err := r.s.readAt(f.fd, f.path, p, u.at); err != nil {
		return nil, err
	}
	u.digests = digest.Blocks(p)
	return p, nil
}
