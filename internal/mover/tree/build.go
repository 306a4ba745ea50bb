package tree

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// builder carries out items and blocks on a replica. Everything it does may be done again from the beginning, after it
// stopped anywhere, and gives the same. Its methods are called by one goroutine; files are made by several.
//
// Order is an argument: a directory is made before anything in it; an object is set aside (keep) before any name is
// touched; a directory gets its mode and times when nothing more is to be done in it.
type builder struct {
	root   int
	serial uint64
	// step is asked before every change of the replica; tests stop there.
	step func(op, path string) error

	stage   *folder // where objects are set aside; nil until it is needed
	in      *folder // the directory of the last item
	run     []wire.TreeItem
	runIn   *folder
	runFrom *buffer
	file    *writing
	leaving []*openDir

	jobs    chan job
	pending sync.WaitGroup
	running sync.WaitGroup
	broken  atomic.Pointer[error]
	writes  chan struct{} // bounds how many blocks are written at a time
}

type job struct {
	items []wire.TreeItem
	in    *folder
	from  *buffer
}

// writing is a file whose blocks are arriving.
type writing struct {
	item    wire.TreeItem
	fd      int
	in      *folder
	name    string
	staged  bool
	fresh   bool
	pending sync.WaitGroup
}

const (
	// runItems bounds how many files of one directory one goroutine makes at a time.
	runItems = 16
	// leavingMax bounds how many directories wait for the files in them.
	leavingMax = 512
	zeroPage   = 4096
)

func newBuilder(root string, serial uint64, step func(op, path string) error) (*builder, error) {
	fd, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	b := &builder{root: fd, serial: serial, step: step, jobs: make(chan job, 64), writes: make(chan struct{}, workers())}
	for range workers() {
		b.running.Go(b.work)
	}
	return b, nil
}

// close ends the goroutines and lets go of everything. What was begun is finished.
func (b *builder) close() {
	b.fail(b.endRun())
	close(b.jobs)
	b.running.Wait()
	if f := b.file; f != nil {
		f.pending.Wait()
		_ = unix.Close(f.fd)
		f.in.release()
	}
	b.in.release()
	b.stage.release()
	_ = unix.Close(b.root)
}

func (b *builder) fail(err error) {
	if err != nil {
		b.broken.CompareAndSwap(nil, &err)
	}
}

func (b *builder) err() error {
	if p := b.broken.Load(); p != nil {
		return *p
	}
	return nil
}

// do makes one change of the replica.
func (b *builder) do(op, path string, call func() error) error {
	if b.step != nil {
		if err := b.step(op, path); err != nil {
			return failed(op, path, err)
		}
	}
	return failed(op, path, again(call))
}

// wait waits for all files under way.
func (b *builder) wait() error {
	err := b.endRun()
	b.pending.Wait()
	return errors.Join(err, b.err())
}

// folder opens the directory of an item.
func (b *builder) folder(dir string) (*folder, error) {
	if b.in != nil && b.in.path == dir {
		return b.in, nil
	}
	fd, err := openDirBelow(b.root, dir)
	if err != nil {
		return nil, b.diverged(dir, "a directory", err)
	}
	b.in.release()
	b.in = newFolder(fd, dir)
	return b.in, nil
}

// diverged makes an error about something that is not there as it should be.
func (b *builder) diverged(path, want string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &Diverged{Path: path, Want: want, Found: "missing"}
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO):
		return &Diverged{Path: path, Want: want, Found: "something else"}
	}
	return failed("open", path, err)
}

// item carries out an item; what it holds lies in from.
func (b *builder) item(it *wire.TreeItem, from *buffer) error {
	if err := b.err(); err != nil {
		return err
	}
	if it.Op == wire.TreeKeep {
		return nil
	}
	if it.Path == "" {
		return nil // the root gets its metadata when it is left
	}
	dir, name := splitPath(it.Path)
	in, err := b.folder(dir)
	if err != nil {
		// What is in a directory that is not there need not be deleted.
		var d *Diverged
		if it.Op == wire.TreeDelete && errors.As(err, &d) {
			return nil
		}
		return err
	}
	switch {
	case it.Op == wire.TreeDelete:
		return b.removeAll(in.fd, name, it.Path)
	case it.Meta.Kind == wire.TreeDirectory:
		return b.directory(it, in, name)
	case it.Op == wire.TreeLink:
		return b.link(it, in, name)
	case it.Content == wire.TreeContentBlocks:
		return b.begin(it, in, name)
	case it.Op == wire.TreeMoved, it.Op == wire.TreeNew && it.Meta.Links > 1:
		return b.staged(it, in, name)
	}
	return b.later(it, in, from)
}

// later leaves an item to one of the goroutines.
func (b *builder) later(it *wire.TreeItem, in *folder, from *buffer) error {
	if len(b.run) >= runItems || b.runIn != in || b.runFrom != from {
		if err := b.endRun(); err != nil {
			return err
		}
		b.runIn, b.runFrom = in.hold(), from
		from.hold()
	}
	b.run = append(b.run, *it)
	return nil
}

// endRun hands gathered items over.
func (b *builder) endRun() error {
	if len(b.run) == 0 {
		return b.err()
	}
	j := job{items: b.run, in: b.runIn, from: b.runFrom}
	b.run, b.runIn, b.runFrom = nil, nil, nil
	b.pending.Add(1)
	b.jobs <- j
	return b.err()
}

func (b *builder) work() {
	for j := range b.jobs {
		for i := range j.items {
			if b.err() != nil {
				break
			}
			it := &j.items[i]
			_, name := splitPath(it.Path)
			b.fail(b.make(it, j.in, name))
		}
		j.in.release()
		j.from.release()
		b.pending.Done()
	}
}

// make makes or changes anything but a directory, under a name.
func (b *builder) make(it *wire.TreeItem, in *folder, name string) error {
	if it.Meta.Kind != wire.TreeFile {
		if it.Op == wire.TreeNew {
			if err := b.special(it, in, name); err != nil {
				return err
			}
		}
		return b.specialMeta(it, in, name)
	}
	fd, fresh, err := b.open(it, in, name)
	if err != nil {
		return err
	}
	err = b.content(it, fd, fresh)
	if err == nil {
		err = b.meta(it, fd, in, fresh)
	}
	return errors.Join(err, failed("close", it.Path, unix.Close(fd)))
}

// open makes a file or opens the one that stays.
func (b *builder) open(it *wire.TreeItem, in *folder, name string) (fd int, fresh bool, err error) {
	if it.Op != wire.TreeNew {
		fd, err = b.reopen(it, in, name)
		return fd, false, err
	}
	create := func() error {
		in.making.Lock()
		defer in.making.Unlock()
		return b.do("create", it.Path, func() error {
			fd, err = unix.Openat(in.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(it.Meta.Mode&0o777|0o200))
			return err
		})
	}
	err = create()
	if errors.Is(err, unix.EEXIST) {
		if err := b.removeAll(in.fd, name, it.Path); err != nil {
			return -1, false, err
		}
		err = create()
	}
	return fd, true, err
}

// reopen opens a file that is there, to be written when content is to come.
func (b *builder) reopen(it *wire.TreeItem, in *folder, name string) (int, error) {
	flags := unix.O_RDWR
	if it.Content == wire.TreeContentKept {
		flags = unix.O_RDONLY
	}
	fd, err := openAt(in.fd, name, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, b.diverged(it.Path, "a file", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return -1, &Diverged{Path: it.Path, Want: "a file", Found: "something else"}
	}
	return fd, nil
}

// content writes what an item brings inline.
func (b *builder) content(it *wire.TreeItem, fd int, fresh bool) error {
	if it.Content != wire.TreeContentInline {
		return nil
	}
	if !fresh || it.Sparse {
		if err := b.do("truncate", it.Path, func() error { return unix.Ftruncate(fd, it.Meta.Size) }); err != nil {
			return err
		}
	}
	return b.writeAt(it, fd, it.Bytes, 0, fresh)
}

// writeAt writes bytes of a file. Of a sparse file, pages that are zero become holes.
func (b *builder) writeAt(it *wire.TreeItem, fd int, p []byte, at int64, fresh bool) error {
	if !it.Sparse {
		return b.write(it.Path, fd, p, at)
	}
	for len(p) > 0 {
		n := min(zeroPage, len(p))
		zero := digest.IsZero(p[:n])
		for n < len(p) && digest.IsZero(p[n:min(n+zeroPage, len(p))]) == zero {
			n = min(n+zeroPage, len(p))
		}
		var err error
		switch {
		case !zero:
			err = b.write(it.Path, fd, p[:n], at)
		case !fresh:
			err = b.punch(it.Path, fd, at, int64(n))
		}
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

func (b *builder) write(path string, fd int, p []byte, at int64) error {
	for len(p) > 0 {
		n := 0
		err := b.do("write", path, func() (err error) {
			n, err = unix.Pwrite(fd, p, at)
			return err
		})
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// punch makes bytes of a file zero and frees their space, or writes zeros where the file system cannot.
func (b *builder) punch(path string, fd int, at, n int64) error {
	err := b.do("punch", path, func() error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
	})
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		if err := b.write(path, fd, part, at); err != nil {
			return err
		}
		at, n = at+int64(len(part)), n-int64(len(part))
	}
	return nil
}

// inherits reports whether files made in a directory get an access control list from it.
func (f *folder) inherits() bool {
	if v := f.acl.Load(); v != 0 {
		return v == 2
	}
	n, err := unix.Fgetxattr(f.fd, "system.posix_acl_default", nil)
	v := int32(1)
	if err == nil && n > 0 {
		v = 2
	}
	f.acl.Store(v)
	return v == 2
}

// meta gives a file its owner, attributes, mode and times: in this order, because changing the owner drops attributes
// and mode bits, an access control list changes the mode, and everything changes the times.
func (b *builder) meta(it *wire.TreeItem, fd int, in *folder, fresh bool) error {
	var st unix.Stat_t
	if err := again(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return failed("look at", it.Path, err)
	}
	set := false
	if st.Uid != it.Meta.UID || st.Gid != it.Meta.GID {
		set = true
		err := b.do("chown", it.Path, func() error { return unix.Fchown(fd, int(it.Meta.UID), int(it.Meta.GID)) })
		if err != nil {
			return err
		}
	}
	if !fresh || len(it.Xattrs) > 0 || in.inherits() {
		set = true
		err := b.do("set attributes", it.Path, func() error { return xattrs{fd: fd}.become(it.Xattrs) })
		if err != nil {
			return err
		}
	}
	if set || uint16(st.Mode&0o7777) != it.Meta.Mode {
		err := b.do("chmod", it.Path, func() error { return unix.Fchmod(fd, uint32(it.Meta.Mode)) })
		if err != nil {
			return err
		}
	}
	return b.do("set times", it.Path, func() error { return setTimes(fd, &it.Meta) })
}

// special makes what is neither file nor directory.
func (b *builder) special(it *wire.TreeItem, in *folder, name string) error {
	create := func() error {
		in.making.Lock()
		defer in.making.Unlock()
		return b.do("create", it.Path, func() error {
			mode := uint32(it.Meta.Mode & 0o777)
			switch it.Meta.Kind {
			case wire.TreeSymlink:
				return unix.Symlinkat(it.Link, in.fd, name)
			case wire.TreeFifo:
				return unix.Mknodat(in.fd, name, unix.S_IFIFO|mode, 0)
			case wire.TreeSocket:
				return unix.Mknodat(in.fd, name, unix.S_IFSOCK|mode, 0)
			case wire.TreeCharDevice:
				return unix.Mknodat(in.fd, name, unix.S_IFCHR|mode, int(unix.Mkdev(it.Meta.DeviceMajor, it.Meta.DeviceMinor)))
			}
			return unix.Mknodat(in.fd, name, unix.S_IFBLK|mode, int(unix.Mkdev(it.Meta.DeviceMajor, it.Meta.DeviceMinor)))
		})
	}
	err := create()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := b.removeAll(in.fd, name, it.Path); err != nil {
		return err
	}
	return create()
}

func (b *builder) specialMeta(it *wire.TreeItem, in *folder, name string) error {
	fd, err := openAt(in.fd, name, unix.O_PATH, 0)
	if err != nil {
		return b.diverged(it.Path, "a special file", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("look at", it.Path, err)
	}
	if m, err := metaOf(&st); err != nil || m.Kind != it.Meta.Kind {
		return &Diverged{Path: it.Path, Want: "a special file", Found: "something else"}
	}
	if st.Uid != it.Meta.UID || st.Gid != it.Meta.GID {
		err := b.do("chown", it.Path, func() error {
			return unix.Fchownat(fd, "", int(it.Meta.UID), int(it.Meta.GID), unix.AT_EMPTY_PATH)
		})
		if err != nil {
			return err
		}
	}
	if it.Op != wire.TreeNew || len(it.Xattrs) > 0 || in.inherits() {
		err := b.do("set attributes", it.Path, func() error {
			return xattrs{fd: -1, path: procPath(in.fd, name)}.become(it.Xattrs)
		})
		if err != nil {
			return err
		}
	}
	if it.Meta.Kind != wire.TreeSymlink {
		err := b.do("chmod", it.Path, func() error {
			return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(it.Meta.Mode))
		})
		if err != nil {
			return err
		}
	}
	return b.do("set times", it.Path, func() error {
		ts := timesOf(&it.Meta)
		return unix.UtimesNanoAt(in.fd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
	})
}

// directory makes a directory, open to this process alone until it is left.
func (b *builder) directory(it *wire.TreeItem, in *folder, name string) error {
	if it.Op == wire.TreeSame {
		return nil
	}
	for {
		err := b.do("mkdir", it.Path, func() error { return unix.Mkdirat(in.fd, name, 0o700) })
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		st, err := statAt(in.fd, name)
		if err != nil {
			return failed("look at", it.Path, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if err := b.removeAll(in.fd, name, it.Path); err != nil {
			return err
		}
	}
}

// left takes a directory that nothing more is to be done in. It gets its mode and times when its files are done.
func (b *builder) left(d *openDir) error {
	b.leaving = append(b.leaving, d)
	if len(b.leaving) < leavingMax {
		return nil
	}
	return b.endLeaving()
}

func (b *builder) endLeaving() error {
	if err := b.wait(); err != nil {
		return err
	}
	for _, d := range b.leaving {
		if err := b.leave(d); err != nil {
			return err
		}
	}
	b.leaving = b.leaving[:0]
	return nil
}

func (b *builder) leave(d *openDir) error {
	fd, err := openDirBelow(b.root, d.path)
	if err != nil {
		return b.diverged(d.path, "a directory", err)
	}
	f := newFolder(fd, d.path)
	defer f.release()
	if d.item != nil {
		return b.meta(d.item, fd, f, false)
	}
	// Its attributes are what they were.
	if err := b.do("chmod", d.path, func() error { return unix.Fchmod(fd, uint32(d.meta.Mode)) }); err != nil {
		return err
	}
	return b.do("set times", d.path, func() error { return setTimes(fd, &d.meta) })
}

// begin begins a file whose blocks follow.
func (b *builder) begin(it *wire.TreeItem, in *folder, name string) error {
	w := &writing{item: *it}
	w.item.Bytes = nil
	if it.Op == wire.TreeMoved || it.Meta.Links > 1 && it.Op == wire.TreeNew {
		stage, err := b.staging()
		if err != nil {
			return err
		}
		w.staged = true
		in, name = stage, objectName(it.Meta.Inode)
	}
	var err error
	if w.fd, w.fresh, err = b.open(it, in, name); err != nil {
		return err
	}
	w.in, w.name = in.hold(), name
	w.item.Xattrs = keepItem(it).Xattrs
	b.file = w
	return b.do("truncate", it.Path, func() error { return unix.Ftruncate(w.fd, it.Meta.Size) })
}

// rejoin opens the file whose blocks go on where an earlier connection was cut.
func (b *builder) rejoin(it *wire.TreeItem) error {
	c := *it
	c.Op = wire.TreeSame
	dir, name := splitPath(it.Path)
	in, err := b.folder(dir)
	if err != nil {
		return err
	}
	w := &writing{item: *it, fresh: true}
	if it.Meta.Links > 1 && it.Op == wire.TreeNew {
		if in, err = b.staging(); err != nil {
			return err
		}
		w.staged, name = true, objectName(it.Meta.Inode)
	}
	if w.fd, err = b.reopen(&c, in, name); err != nil {
		return err
	}
	w.in, w.name = in.hold(), name
	b.file = w
	return nil
}

// blocks writes blocks of the file at hand; raw lies in from.
func (b *builder) blocks(raw []byte, at int64, from *buffer) error {
	w := b.file
	from.hold()
	w.pending.Add(1)
	b.pending.Add(1)
	b.writes <- struct{}{}
	go func() {
		defer func() { <-b.writes }()
		defer b.pending.Done()
		defer w.pending.Done()
		defer from.release()
		b.fail(b.writeAt(&w.item, w.fd, raw, at, w.fresh))
	}()
	return b.err()
}

func (b *builder) hole(at, n int64) error {
	w := b.file
	if w.fresh {
		return nil
	}
	w.pending.Wait()
	return b.punch(w.item.Path, w.fd, at, n)
}

func (b *builder) fileEnd() error {
	w := b.file
	b.file = nil
	w.pending.Wait()
	err := b.err()
	if err == nil {
		err = b.meta(&w.item, w.fd, w.in, w.fresh)
	}
	err = errors.Join(err, failed("close", w.item.Path, unix.Close(w.fd)))
	w.in.release()
	if err != nil || !w.staged {
		return err
	}
	dir, name := splitPath(w.item.Path)
	in, err := b.folder(dir)
	if err != nil {
		return err
	}
	return b.link(&w.item, in, name)
}

// staged makes or changes an object where it is set aside, and then gives it its name.
func (b *builder) staged(it *wire.TreeItem, in *folder, name string) error {
	stage, err := b.staging()
	if err != nil {
		return err
	}
	if err := b.make(it, stage, objectName(it.Meta.Inode)); err != nil {
		return err
	}
	return b.link(it, in, name)
}

// link gives an object that was set aside a name.
func (b *builder) link(it *wire.TreeItem, in *folder, name string) error {
	stage, err := b.staging()
	if err != nil {
		return err
	}
	object := objectName(it.Meta.Inode)
	want, err := statAt(stage.fd, object)
	if err != nil {
		return b.diverged(it.Path, "an object that was set aside", err)
	}
	have, err := statAt(in.fd, name)
	switch {
	case err == nil && have.Ino == want.Ino && have.Dev == want.Dev:
		return nil
	case err == nil:
		if err := b.removeAll(in.fd, name, it.Path); err != nil {
			return err
		}
	case !errors.Is(err, unix.ENOENT):
		return failed("look at", it.Path, err)
	}
	return b.do("link", it.Path, func() error { return unix.Linkat(stage.fd, object, in.fd, name, 0) })
}

// removeAll removes a name and everything below it; there may be none.
func (b *builder) removeAll(dir int, name, path string) error {
	err := b.do("remove", path, func() error { return unix.Unlinkat(dir, name, 0) })
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, openErr := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if openErr != nil {
		return err
	}
	err = b.empty(fd, path, func(string) bool { return true })
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	err = b.do("remove", path, func() error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// empty removes what is in a directory and chosen.
func (b *builder) empty(dir int, path string, chosen func(name string) bool) error {
	names, err := namesIn(dir)
	if err != nil {
		return failed("list", path, err)
	}
	for _, name := range names {
		if !chosen(name) {
			continue
		}
		if err := b.removeAll(dir, name, path+"/"+name); err != nil {
			return err
		}
	}
	return nil
}

// clear removes everything from the replica.
func (b *builder) clear() error {
	if err := b.empty(b.root, "", func(name string) bool { return !Reserved(name) }); err != nil {
		return err
	}
	return b.removeAll(b.root, stageName, stageName)
}

func objectName(inode uint64) string { return fmt.Sprintf("o-%x", inode) }

const keptMark = "kept"

// staging opens the place where objects are set aside for this delta, and makes it when it is not there. What was set
// aside for other deltas goes.
func (b *builder) staging() (*folder, error) {
	if b.stage != nil {
		return b.stage, nil
	}
	own := strconv.FormatUint(b.serial, 10)
	top, err := b.makeDir(b.root, stageName)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	if err := b.empty(top, stageName, func(name string) bool { return name != own }); err != nil {
		return nil, err
	}
	fd, err := b.makeDir(top, own)
	if err != nil {
		return nil, err
	}
	b.stage = newFolder(fd, stageName+"/"+own)
	return b.stage, nil
}

// makeDir opens a directory of this package, after making it.
func (b *builder) makeDir(dir int, name string) (int, error) {
	for {
		fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.ENOENT) {
			if err := b.removeAll(dir, name, name); err != nil {
				return -1, err
			}
		}
		if err := b.do("mkdir", name, func() error { return unix.Mkdirat(dir, name, 0o700) }); err != nil {
			return -1, err
		}
	}
}

// keep sets the object of a path aside. Nothing of the tree has changed yet.
func (b *builder) keep(it *wire.TreeItem) error {
	dir, name := splitPath(it.Path)
	in, err := b.folder(dir)
	if err != nil {
		return err
	}
	stage, err := b.staging()
	if err != nil {
		return err
	}
	object := objectName(it.Meta.Inode)
	if err := b.removeAll(stage.fd, object, stage.path+"/"+object); err != nil {
		return err
	}
	err = b.do("keep", it.Path, func() error { return unix.Linkat(in.fd, name, stage.fd, object, 0) })
	if errors.Is(err, unix.ENOENT) {
		return &Diverged{Path: it.Path, Want: "there", Found: "missing"}
	}
	return err
}

// kept reports whether all objects were set aside before: then paths may have changed since, and they must not be
// set aside again.
func (b *builder) kept() (bool, error) {
	top, err := openAt(b.root, stageName, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(top)
	_, err = statAt(top, strconv.FormatUint(b.serial, 10)+"/"+keptMark)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, failed("look at", stageName, err)
}

// markKept records durably that all objects are set aside.
func (b *builder) markKept() error {
	if b.stage == nil {
		return nil
	}
	if err := b.do("sync", b.stage.path, func() error { return syncAll(b.root) }); err != nil {
		return err
	}
	err := b.do("mark", b.stage.path, func() error {
		fd, err := unix.Openat(b.stage.fd, keptMark, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		return err
	}
	return b.do("sync", b.stage.path, func() error { return syncAll(b.root) })
}

// sync makes everything done so far durable.
func (b *builder) sync() error {
	if err := b.wait(); err != nil {
		return err
	}
	return b.do("sync", "", func() error { return syncAll(b.root) })
}

// Clean removes what was set aside in a replica, after its delta is recorded as applied or dropped. It leaves the
// root's times as they are.
func Clean(root string) error {
	fd, err := openRoot(root)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("look at", "", err)
	}
	if _, err := statAt(fd, stageName); errors.Is(err, unix.ENOENT) {
		return nil
	}
	b := &builder{root: fd}
	if err := b.removeAll(fd, stageName, stageName); err != nil {
		return err
	}
	meta, err := metaOf(&st)
	if err != nil {
		return failed("look at", "", err)
	}
	return failed("set times", "", setTimes(fd, &meta))
}
