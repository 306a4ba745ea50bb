// Package crash is a machine for tests whose disk forgets: what was not synced when it crashes is lost, kept or torn,
// write by write, as chance has it. It has volumes and one folder of files, counts every operation that changes
// something, and crashes on command at any of them; it can also fail operations on command.
//
// It is pessimistic where file systems differ: a file's sync does not make its name durable, names become durable in
// order but only by SyncDir, and a torn write keeps any of its sectors. Begin with New, then Machine.CrashAfter and
// Machine.Restart.
package crash

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// ErrCrashed is what every operation returns once the machine has crashed.
var ErrCrashed = errors.New("the machine crashed")

const (
	pageSize   = 4096
	sectorSize = 512
)

// Machine is safe for concurrent use.
type Machine struct {
	mu      sync.Mutex
	rng     *rand.Rand
	ops     int
	crashAt int // 0: not at all
	crashed bool
	onCrash func()
	fail    func(op, name string) error

	volumes map[string]*content
	names   map[string]*content // the folder as programs see it
	durable map[string]*content // the folder as a crash leaves it
	changes []func(map[string]*content)
}

// New is a machine with empty disks. The seed decides what a crash takes.
func New(seed uint64) *Machine {
	return &Machine{
		rng:     rand.New(rand.NewPCG(seed, 7)),
		volumes: map[string]*content{}, names: map[string]*content{}, durable: map[string]*content{},
	}
}

// CrashAfter crashes the machine at the nth changing operation from now; onCrash, if any, is called then, once.
func (m *Machine) CrashAfter(n int, onCrash func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashAt, m.onCrash = m.ops+n, onCrash
}

// FailWith makes operations fail: it is asked before each with the operation (write, zero, sync, truncate, create,
// rename, remove, syncdir, read) and the name of the volume or file. nil ends it.
func (m *Machine) FailWith(fail func(op, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fail
}

// Ops is how many changing operations there were.
func (m *Machine) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Crashed reports whether the machine has crashed.
func (m *Machine) Crashed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.crashed
}

// Restart crashes the machine, if it has not, and returns it as it comes up again. What was opened before is dead.
func (m *Machine) Restart() *Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	next := New(m.rng.Uint64())
	mode := m.rng.IntN(4)
	for _, name := range sortedKeys(m.volumes) {
		next.volumes[name] = m.volumes[name].survivor(m.rng, mode)
	}
	// Names are journalled: a crash keeps the first few of the changes that were not synced.
	kept := m.rng.IntN(len(m.changes) + 1)
	for _, change := range m.changes[:kept] {
		change(m.durable)
	}
	seen := map[*content]*content{}
	for _, name := range sortedKeys(m.durable) {
		c := m.durable[name]
		if seen[c] == nil {
			seen[c] = c.survivor(m.rng, mode)
		}
		next.names[name] = seen[c]
		next.durable[name] = seen[c]
	}
	return next
}

// Clone is a copy of the machine as it runs now, with everything durable.
func (m *Machine) Clone(seed uint64) *Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := New(seed)
	for name, c := range m.volumes {
		next.volumes[name] = c.clone()
	}
	for name, c := range m.names {
		c = c.clone()
		next.names[name], next.durable[name] = c, c
	}
	return next
}

// WithFolderOf is a copy of the machine as it runs now, with the folder of another.
func (m *Machine) WithFolderOf(other *Machine) *Machine {
	next, from := m.Clone(0), other.Clone(0)
	next.names, next.durable = from.names, from.durable
	return next
}

func sortedKeys(m map[string]*content) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// change runs an operation that changes something. The one the crash hits still happens, without ever being synced.
func (m *Machine) change(op, name string, do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.crashed {
		return fmt.Errorf("%s %s: %w", op, name, ErrCrashed)
	}
	if m.fail != nil {
		if err := m.fail(op, name); err != nil {
			return fmt.Errorf("%s %s: %w", op, name, err)
		}
	}
	m.ops++
	if m.crashAt == 0 || m.ops < m.crashAt {
		return do()
	}
	m.crashed = true
	if op != "sync" && op != "syncdir" || m.rng.IntN(2) == 0 {
		_ = do()
	}
	if m.onCrash != nil {
		go m.onCrash()
	}
	return fmt.Errorf("%s %s: %w", op, name, ErrCrashed)
}

func (m *Machine) look(name string, do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.crashed {
		return fmt.Errorf("read %s: %w", name, ErrCrashed)
	}
	if m.fail != nil {
		if err := m.fail("read", name); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return do()
}

// content is the bytes of a volume or file: what programs see, what is durable, and the changes in between.
type content struct {
	now, disk pages
	pending   []patch
}

type pages struct {
	size int64
	page map[int64][]byte
}

// patch is one change. data nil and cut false: zeros of length n; cut: the size becomes off.
type patch struct {
	off  int64
	n    int64
	data []byte
	cut  bool
}

func newContent(size int64) *content {
	return &content{now: pages{size, map[int64][]byte{}}, disk: pages{size, map[int64][]byte{}}}
}

func (p pages) clone() pages {
	out := pages{p.size, make(map[int64][]byte, len(p.page))}
	for i, b := range p.page {
		out.page[i] = slices.Clone(b)
	}
	return out
}

func (c *content) clone() *content {
	return &content{now: c.now.clone(), disk: c.now.clone()}
}

// survivor is the content after a crash. mode 0 loses everything unsynced, mode 1 keeps it all, else each change is
// lost, kept or torn.
func (c *content) survivor(rng *rand.Rand, mode int) *content {
	for _, p := range c.pending {
		fate := rng.IntN(3)
		switch {
		case mode == 0:
		case mode == 1 || fate == 0 || p.cut && fate == 1:
			c.disk.apply(p)
		case fate == 1:
			c.disk.tear(p, rng)
		}
	}
	return &content{now: c.disk.clone(), disk: c.disk}
}

func (p *pages) apply(x patch) {
	if x.cut {
		p.truncate(x.off)
		return
	}
	for done := int64(0); done < x.n; {
		at := x.off + done
		i, in := at/pageSize, at%pageSize
		n := min(pageSize-in, x.n-done)
		if x.data == nil && n == pageSize {
			delete(p.page, i)
		} else {
			b := p.page[i]
			if b == nil {
				b = make([]byte, pageSize)
				p.page[i] = b
			}
			if x.data == nil {
				clear(b[in : in+n])
			} else {
				copy(b[in:in+n], x.data[done:])
			}
		}
		done += n
	}
	p.size = max(p.size, x.off+x.n)
}

func (p *pages) truncate(size int64) {
	for i, b := range p.page {
		switch {
		case i*pageSize >= size:
			delete(p.page, i)
		case (i+1)*pageSize > size:
			clear(b[size-i*pageSize:])
		}
	}
	p.size = size
}

// tear keeps any of a write's sectors.
func (p *pages) tear(x patch, rng *rand.Rand) {
	for done := int64(0); done < x.n; {
		n := min(sectorSize-(x.off+done)%sectorSize, x.n-done)
		if rng.IntN(2) == 0 {
			part := patch{off: x.off + done, n: n}
			if x.data != nil {
				part.data = x.data[done : done+n]
			}
			p.apply(part)
		}
		done += n
	}
}

func (p *pages) readAt(b []byte, off int64) (int, error) {
	if off >= p.size {
		return 0, io.EOF
	}
	want := len(b)
	b = b[:min(int64(want), p.size-off)]
	for done := 0; done < len(b); {
		at := off + int64(done)
		i, in := at/pageSize, int(at%pageSize)
		n := min(pageSize-in, len(b)-done)
		if page := p.page[i]; page != nil {
			copy(b[done:done+n], page[in:])
		} else {
			clear(b[done : done+n])
		}
		done += n
	}
	if len(b) < want {
		return len(b), io.EOF
	}
	return len(b), nil
}

func (c *content) patch(x patch) {
	c.now.apply(x)
	c.pending = append(c.pending, x)
}

func (c *content) sync() {
	for _, x := range c.pending {
		c.disk.apply(x)
	}
	c.pending = nil
}

// Volume is a volume of this machine; it is made, all zeros, when there is none of the name.
func (m *Machine) Volume(name string, size int64) volume.Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.volumes[name]
	if c == nil {
		c = newContent(size)
		m.volumes[name] = c
	}
	return &disk{m: m, c: c, name: name}
}

type disk struct {
	m    *Machine
	c    *content
	name string
}

func (d *disk) Size() int64 {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return d.c.now.size
}

func (d *disk) Close() error { return nil }

func (d *disk) ReadAt(p []byte, off int64) (n int, err error) {
	err = d.m.look(d.name, func() error {
		n, err = d.c.now.readAt(p, off)
		return err
	})
	return n, err
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.Size() {
		return 0, fmt.Errorf("write %s: %d bytes at %d are beyond its end", d.name, len(p), off)
	}
	data := slices.Clone(p)
	err := d.m.change("write", d.name, func() error {
		d.c.patch(patch{off: off, n: int64(len(data)), data: data})
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *disk) Zero(off, length int64) error {
	if off < 0 || off+length > d.Size() {
		return fmt.Errorf("zero %s: %d bytes at %d are beyond its end", d.name, length, off)
	}
	return d.m.change("zero", d.name, func() error {
		d.c.patch(patch{off: off, n: length})
		return nil
	})
}

func (d *disk) Sync() error {
	return d.m.change("sync", d.name, func() error { d.c.sync(); return nil })
}

// FS is the machine's folder.
func (m *Machine) FS() spool.FS { return folder{m} }

type folder struct{ m *Machine }

func (f folder) Open(name string, create bool) (spool.File, error) {
	var c *content
	find := func() error {
		c = f.m.names[name]
		if c == nil && !create {
			return fmt.Errorf("open %s: %w", name, os.ErrNotExist)
		}
		return nil
	}
	if err := f.m.look(name, find); err != nil {
		return nil, err
	}
	if c != nil {
		return &file{disk{f.m, c, name}}, nil
	}
	err := f.m.change("create", name, func() error {
		c = newContent(0)
		f.m.rename(func(names map[string]*content) { names[name] = c })
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &file{disk{f.m, c, name}}, nil
}

// rename changes the folder now, and on disk with the next SyncDir.
func (m *Machine) rename(change func(map[string]*content)) {
	change(m.names)
	m.changes = append(m.changes, change)
}

func (f folder) Names() (names []string, err error) {
	err = f.m.look(".", func() error {
		names = sortedKeys(f.m.names)
		return nil
	})
	return names, err
}

func (f folder) Rename(from, to string) error {
	return f.m.change("rename", from, func() error {
		c := f.m.names[from]
		if c == nil {
			return fmt.Errorf("rename %s: %w", from, os.ErrNotExist)
		}
		f.m.rename(func(names map[string]*content) {
			delete(names, from)
			names[to] = c
		})
		return nil
	})
}

func (f folder) Remove(name string) error {
	return f.m.change("remove", name, func() error {
		f.m.rename(func(names map[string]*content) { delete(names, name) })
		return nil
	})
}

func (f folder) SyncDir() error {
	return f.m.change("syncdir", ".", func() error {
		for _, change := range f.m.changes {
			change(f.m.durable)
		}
		f.m.changes = nil
		return nil
	})
}

type file struct{ disk }

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	data := slices.Clone(p)
	err := f.m.change("write", f.name, func() error {
		f.c.patch(patch{off: off, n: int64(len(data)), data: data})
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *file) Truncate(size int64) error {
	return f.m.change("truncate", f.name, func() error {
		x := patch{off: size, cut: true}
		f.c.now.truncate(size)
		f.c.pending = append(f.c.pending, x)
		return nil
	})
}

func (f *file) Size() (size int64, err error) {
	err = f.m.look(f.name, func() error {
		size = f.c.now.size
		return nil
	})
	return size, err
}

// Same reports whether a volume has the same bytes on both machines, and if not, where the first difference is.
func Same(a, b *Machine, name string) (at int64, same bool) {
	x, y := a.copyOf(name), b.copyOf(name)
	if x == nil || y == nil || x.now.size != y.now.size {
		return 0, false
	}
	at, same = -1, true
	zero := make([]byte, pageSize)
	check := func(p, q map[int64][]byte) {
		for i, page := range p {
			other := q[i]
			if other == nil {
				other = zero
			}
			if string(page) != string(other) && (at < 0 || i*pageSize < at) {
				at, same = i*pageSize, false
			}
		}
	}
	check(x.now.page, y.now.page)
	check(y.now.page, x.now.page)
	return at, same
}

func (m *Machine) copyOf(name string) *content {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.volumes[name]; c != nil {
		return c.clone()
	}
	return nil
}
