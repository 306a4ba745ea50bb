package tree

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// entry is one entry of a walk. in is the directory it is in, held once for it; the root's entry is in itself.
type entry struct {
	path   string
	meta   wire.TreeMeta
	sparse bool
	in     *folder
}

// name is what the entry is called in its directory; the root is "." in itself.
func (e *entry) name() string {
	if e.path == "" {
		return "."
	}
	_, name := splitPath(e.path)
	return name
}

const (
	walkBatch = 256 // entries handed on at a time
	statEach  = 64  // names one goroutine looks at
)

// walker goes through a tree in the order of wire.CompareTreePaths. It looks at entries of one directory with several
// goroutines, for the sake of disks that are asked for the first time.
type walker struct {
	ctx    context.Context
	device uint64
	out    chan<- []entry
	batch  []entry
}

// walk sends the entries of the tree at root, batch by batch. Each entry's folder must be released.
func walk(ctx context.Context, root string, out chan<- []entry) error {
	fd, err := openRoot(root)
	if err != nil {
		return err
	}
	top := newFolder(fd, "")
	defer top.release()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("look at", "", err)
	}
	meta, err := metaOf(&st)
	if err != nil {
		return failed("look at", "", err)
	}
	w := &walker{ctx: ctx, device: uint64(st.Dev), out: out}
	if err := w.emit(entry{path: "", meta: meta, in: top.hold()}); err != nil {
		return err
	}
	if err := w.directory(top, &meta); err != nil {
		return err
	}
	return w.flush()
}

func (w *walker) emit(e entry) error {
	w.batch = append(w.batch, e)
	if len(w.batch) < walkBatch {
		return nil
	}
	return w.flush()
}

func (w *walker) flush() error {
	if len(w.batch) == 0 {
		return nil
	}
	batch := w.batch
	w.batch = nil
	select {
	case w.out <- batch:
		return nil
	case <-w.ctx.Done():
		releaseAll(batch)
		return context.Cause(w.ctx)
	}
}

func releaseAll(batch []entry) {
	for i := range batch {
		batch[i].in.release()
	}
}

type looked struct {
	st  unix.Stat_t
	err error
}

// directory emits what is in f, which stays the caller's.
func (w *walker) directory(f *folder, meta *wire.TreeMeta) error {
	names, err := namesIn(f.fd)
	if err != nil {
		return vanished(f.path, "list", err)
	}
	seen := make([]looked, min(len(names), 4*statEach))
	for len(names) > 0 {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		part := names[:min(len(names), len(seen))]
		names = names[len(part):]
		look(f.fd, part, seen)
		for i, name := range part {
			if f.path == "" && Reserved(name) {
				continue
			}
			if err := w.entry(f, name, &seen[i]); err != nil {
				return err
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return failed("look at", f.path, err)
	}
	if now, err := metaOf(&st); err != nil || now != *meta {
		return &SourceChanged{Path: f.path, What: "changed"}
	}
	return nil
}

// look fills into with what the file system says about names.
func look(dir int, names []string, into []looked) {
	one := func(from, to int) {
		for i := from; i < to; i++ {
			into[i].st, into[i].err = statAt(dir, names[i])
		}
	}
	if len(names) <= statEach {
		one(0, len(names))
		return
	}
	var wg sync.WaitGroup
	for from := 0; from < len(names); from += statEach {
		wg.Go(func() { one(from, min(from+statEach, len(names))) })
	}
	wg.Wait()
}

func (w *walker) entry(f *folder, name string, l *looked) error {
	path := name
	if f.path != "" {
		path = f.path + "/" + name
	}
	if l.err != nil {
		return vanished(path, "look at", l.err)
	}
	if err := wire.CheckTreePath(path); err != nil {
		return failed("carry", path, err)
	}
	meta, err := metaOf(&l.st)
	if err != nil {
		return failed("carry", path, err)
	}
	if err := w.emit(entry{path: path, meta: meta, sparse: sparse(&l.st), in: f.hold()}); err != nil {
		return err
	}
	if meta.Kind != wire.TreeDirectory || uint64(l.st.Dev) != w.device {
		return nil
	}
	fd, err := openAt(f.fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return vanished(path, "open", err)
	}
	sub := newFolder(fd, path)
	defer sub.release()
	return w.directory(sub, &meta)
}

// vanished tells what the walk has seen and is no more from other errors.
func vanished(path, op string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE) {
		return &SourceChanged{Path: path, What: "vanished or became something else"}
	}
	return failed(op, path, err)
}
