package tree

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// SendOptions is what Send works with; the zero value is the usual.
type SendOptions struct {
	Log *slog.Logger
	// Compression packs records when the link is what the session waits for.
	Compression bool
	// Progress is told how many bytes of files are dealt with and durable, of how many seen so far; may be nil.
	Progress func(done, total int64)
	// Pace is asked before n bytes are read from files; may be nil.
	Pace func(ctx context.Context, n int) error
}

const (
	pageCredit = 16  // pages of the index on their way
	changesMax = 512 // changes between finding and reading
	unitsMax   = 16  // units being read or waiting to be sent
	// unitItems and unitBytes bound what is read and sent together.
	unitItems = 512
	unitBytes = 768 << 10
	chunkSize = wire.MaxRecord // of large files
	// digestRun is how many digests of a large file are asked for at a time.
	digestRun = 1024
)

// change is an entry that is to be sent, or a path that is gone.
type change struct {
	entry   entry
	old     *wire.TreeListed // of the path; nil: there was none
	deleted string
	found   *answer // where the object was; nil: not asked
}

// answer is a question's answer, once ready is closed.
type answer struct {
	ready   chan struct{}
	message wire.Message
}

// sender is one Send.
type sender struct {
	ctx     context.Context // of the stages
	cancel  context.CancelCauseFunc
	volume  int
	stream  *transport.Stream
	options SendOptions
	start   wire.TreeStart

	pages   chan wire.TreePage
	ask     chan wire.Message
	mu      sync.Mutex
	waiting map[uint32]*answer
	lastID  uint32

	changes chan change
	units   chan *unit // in order, for the emitter
	work    chan *unit // the same, for the readers
	end     wire.TreeEnd

	acked   atomic.Uint64
	sent    atomic.Uint64 // records
	ended   atomic.Bool   // the last record is sent
	busy    atomic.Bool   // the link is what we wait for
	durable chan struct{}

	read, data, payload, wire atomic.Int64
	entries, bytes, total     atomic.Int64
	changed, deletions        atomic.Int64
	progress                  []milestone
	progressMu                sync.Mutex
}

// milestone says how many bytes of files are dealt with once so many records are durable.
type milestone struct {
	records uint64
	bytes   int64
}

// Send runs the source's half of one tree's session over a connection, after the Welcome and all members before v. It
// returns when everything is durable at the target. After an error the stream has been closed and the target told, if
// it could be.
func Send(ctx context.Context, stream *transport.Stream, v int, root string, o SendOptions) (Totals, error) {
	unhook := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer unhook()
	s := &sender{
		volume: v, stream: stream, options: o,
		pages: make(chan wire.TreePage, pageCredit), ask: make(chan wire.Message, maxAsked/4), waiting: map[uint32]*answer{},
		changes: make(chan change, changesMax), units: make(chan *unit, unitsMax), work: make(chan *unit, unitsMax),
		durable: make(chan struct{}),
	}
	if err := s.awaitStart(); err != nil {
		return Totals{}, errors.Join(err, stream.Close())
	}
	if s.start.Ended {
		return Totals{}, nil
	}
	err := s.run(ctx, root)
	return s.totals(), err
}

func (s *sender) totals() Totals {
	return Totals{
		Entries: s.entries.Load(), Changed: s.changed.Load(), Deleted: s.deletions.Load(), Bytes: s.total.Load(),
		Read: s.read.Load(), Data: s.data.Load(), Payload: s.payload.Load(), Wire: s.wire.Load(), Records: int64(s.sent.Load()),
	}
}

// tell tells the target why the session ends, unless it knows or cannot hear.
func (s *sender) tell(err error) {
	var lost *transport.Lost
	var remote *session.Remote
	if !errors.As(err, &lost) && !errors.As(err, &remote) {
		timer := time.AfterFunc(farewell, func() { _ = s.stream.Close() })
		defer timer.Stop()
		if _, err := s.stream.Send(failure(err)); err == nil {
			_ = s.stream.Flush()
		}
	}
	_ = s.stream.Close()
}

func (s *sender) awaitStart() error {
	for {
		f, err := s.stream.Receive()
		if err != nil {
			return err
		}
		defer f.Release()
		switch m := f.Message.(type) {
		case wire.Pulse:
		case wire.Failed:
			return &session.Remote{Kind: m.Kind, Text: m.Text}
		case wire.TreeStart:
			if m.Volume != s.volume {
				return violation("it begins tree %d in place of %d", m.Volume, s.volume)
			}
			s.start = m
			return nil
		default:
			return violation("a tree begins with a %s", m.Type())
		}
	}
}

// run runs the stages until everything is durable or one of them fails. Each hands on to the next through bounded
// channels: walk, join with the index, plan units, read, emit; one more receives.
func (s *sender) run(ctx context.Context, root string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.ctx, s.cancel = ctx, cancel
	var stages, receiver sync.WaitGroup
	stage := func(wg *sync.WaitGroup, work func() error) {
		wg.Go(func() {
			if err := work(); err != nil {
				cancel(err)
			}
		})
	}
	walked := make(chan []entry, 8)
	stage(&stages, func() error {
		// A walk that failed must not look like one that ended: first the error, then the end.
		defer close(walked)
		if err := walk(ctx, root, walked); err != nil {
			cancel(err)
		}
		return nil
	})
	stage(&stages, func() error { return s.join(walked) })
	stage(&stages, func() error { return s.plan() })
	for range workers() {
		stage(&stages, s.readUnits)
	}
	stage(&receiver, s.receive)
	stage(&stages, s.emit)
	stages.Wait()
	for u := range s.units {
		u.release()
	}
	if err := context.Cause(ctx); err != nil {
		s.tell(err) // which ends the connection, and with it the receiver
	}
	receiver.Wait()
	return context.Cause(ctx)
}

// receive takes the target's messages until everything is durable.
func (s *sender) receive() error {
	for {
		f, err := s.stream.Receive()
		if err != nil {
			return err
		}
		over, err := s.hear(f.Message)
		f.Release()
		if over || err != nil {
			return err
		}
	}
}

func (s *sender) hear(m wire.Message) (over bool, err error) {
	switch m := m.(type) {
	case wire.Pulse:
		return false, nil
	case wire.Failed:
		return false, &session.Remote{Kind: m.Kind, Text: m.Text}
	case wire.TreePage:
		// The frame's memory is used again; a page waits.
		m.Payload = append([]byte(nil), m.Payload...)
		select {
		case s.pages <- m:
			return false, nil
		default:
			return false, violation("a page that was not asked for")
		}
	case wire.TreeDigests:
		return false, s.answered(m.ID, m)
	case wire.TreeFound:
		return false, s.answered(m.ID, m)
	case wire.TreeAck:
		return s.ack(m)
	}
	return false, violation("a tree's source does not expect a %s", m.Type())
}

func (s *sender) ack(m wire.TreeAck) (over bool, err error) {
	ended, sent := s.ended.Load(), s.sent.Load()
	if m.Records > sent || m.Records < s.acked.Load() {
		return false, violation("it acknowledges %d of %d records", m.Records, sent)
	}
	s.acked.Store(m.Records)
	s.reach(m.Records)
	if !ended || m.Records < sent {
		return false, nil
	}
	close(s.durable)
	return true, nil
}

// reach tells whoever watches how far the target is.
func (s *sender) reach(records uint64) {
	s.progressMu.Lock()
	i := 0
	for i < len(s.progress) && s.progress[i].records <= records {
		i++
	}
	var done int64
	if i > 0 {
		done = s.progress[i-1].bytes
		s.progress = append(s.progress[:0], s.progress[i:]...)
	}
	s.progressMu.Unlock()
	if i > 0 && s.options.Progress != nil {
		s.options.Progress(done, max(done, s.total.Load()))
	}
}

func (s *sender) answered(id uint32, m wire.Message) error {
	s.mu.Lock()
	a := s.waiting[id]
	delete(s.waiting, id)
	s.mu.Unlock()
	if a == nil {
		return violation("an answer to no question")
	}
	a.message = m
	close(a.ready)
	return nil
}

// question asks the target; the message is made with the question's number.
func (s *sender) question(message func(id uint32) wire.Message) (*answer, error) {
	a := &answer{ready: make(chan struct{})}
	s.mu.Lock()
	s.lastID++
	id := s.lastID
	s.waiting[id] = a
	s.mu.Unlock()
	return a, s.request(message(id))
}

func (s *sender) request(m wire.Message) error {
	select {
	case s.ask <- m:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

func (s *sender) await(a *answer) (wire.Message, error) {
	select {
	case <-a.ready:
		return a.message, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

// indexCursor goes through the target's index, a few pages ahead.
func (s *sender) indexCursor() (*cursor, error) {
	asked, got := 0, 0
	more := func(n int) error {
		n = min(n, s.start.Pages-asked)
		if n <= 0 {
			return nil
		}
		first := asked
		asked += n
		return s.request(wire.TreeWantPages{Volume: s.volume, First: first, Count: n})
	}
	if err := more(pageCredit); err != nil {
		return nil, err
	}
	return &cursor{next: func() ([]wire.TreeListed, error) {
		if got == s.start.Pages {
			return nil, nil
		}
		select {
		case p := <-s.pages:
			if p.Number != got {
				return nil, violation("page %d in place of %d", p.Number, got)
			}
			got++
			list, err := listing(p)
			if err != nil {
				return nil, err
			}
			return list, more(1)
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}}, nil
}

// join finds what changed: it merges the walk with the target's index.
func (s *sender) join(walked <-chan []entry) (err error) {
	// Order is an argument: what comes after must not take a failure for the end.
	defer close(s.changes)
	defer func() {
		if err != nil {
			s.cancel(err)
		}
		// What is left holds open directories.
		for batch := range walked {
			releaseAll(batch)
		}
	}()
	old, err := s.indexCursor()
	if err != nil {
		return err
	}
	sum := newSummary()
	gone, hasGone := "", false
	next := func(path string, all bool) (*wire.TreeListed, error) {
		for {
			e, err := old.peek()
			if err != nil || e == nil {
				return nil, err
			}
			order := -1
			if !all {
				order = wire.CompareTreePaths(e.Path, path)
			}
			switch {
			case order > 0:
				return nil, nil
			case order == 0:
				kept := *e
				old.advance()
				return &kept, nil
			}
			if !hasGone || !below(gone, e.Path) {
				gone, hasGone = e.Path, true
				if err := s.changeTo(change{deleted: e.Path}); err != nil {
					return nil, err
				}
			}
			old.advance()
		}
	}
	for batch := range walked {
		for i := range batch {
			e := batch[i]
			sum.add(e.path, &e.meta)
			s.total.Add(e.meta.Size)
			was, err := next(e.path, false)
			if err == nil && was != nil && was.Meta.Kind == wire.TreeDirectory && e.meta.Kind != wire.TreeDirectory {
				gone, hasGone = e.path, true
			}
			if err == nil && was != nil && was.Meta == e.meta {
				e.in.release()
				s.bytes.Add(e.meta.Size)
				continue
			}
			if err == nil {
				err = s.found(e, was)
			}
			if err != nil {
				releaseAll(batch[i:])
				return err
			}
		}
	}
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if _, err := next("", true); err != nil {
		return err
	}
	s.entries.Store(int64(sum.entries))
	s.end = wire.TreeEnd{Volume: s.volume, Entries: sum.entries, Digest: sum.digest()}
	return nil
}

// found hands on an entry that is new or changed, and asks where its object was, if that may matter.
func (s *sender) found(e entry, was *wire.TreeListed) error {
	c := change{entry: e, old: was}
	if s.start.Known && tracked(&e.meta) && e.meta.Kind == wire.TreeFile && !sameObject(&e.meta, was) {
		var err error
		c.found, err = s.question(func(id uint32) wire.Message {
			return wire.TreeFind{Volume: s.volume, ID: id, Inode: e.meta.Inode}
		})
		if err != nil {
			return err
		}
	}
	return s.changeTo(c)
}

// sameObject reports whether a file can be changed where the target has it: it is the same object, with one name. Of a
// replica that was read the objects are not known, and one with one name is as good as the same.
func sameObject(m *wire.TreeMeta, was *wire.TreeListed) bool {
	if was == nil || was.Meta.Kind != wire.TreeFile || m.Kind != wire.TreeFile || m.Links > 1 {
		return false
	}
	return was.Meta.Inode == m.Inode || was.Meta.Inode == 0 && was.Meta.Links == 1
}

func (s *sender) changeTo(c change) error {
	select {
	case s.changes <- c:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// emit sends units in order and questions as they come. While it waits for a unit to be read the link has nothing to
// do; while it sends, the readers pile up: that is how it knows which of both is slower.
func (s *sender) emit() error {
	var at *unit
	defer func() {
		if at != nil {
			<-at.ready
			at.release()
		}
	}()
	beat := time.NewTicker(transport.Beat)
	defer beat.Stop()
	units := s.units
	var ready chan struct{}
	for {
		if at == nil && len(units) == 0 && len(s.ask) == 0 || at != nil && !at.isReady() && len(s.ask) == 0 {
			s.busy.Store(false)
			if err := s.stream.Flush(); err != nil {
				return err
			}
		}
		var next <-chan *unit
		if at == nil {
			next = units
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-s.durable:
			return nil
		case m := <-s.ask:
			if err := s.send(m); err != nil {
				return err
			}
		case u, open := <-next:
			if open {
				at, ready = u, u.ready
				continue
			}
			units = nil
			if err := s.sendEnd(); err != nil {
				return err
			}
		case <-ready:
			u := at
			at, ready = nil, nil
			if err := s.sendUnit(u); err != nil {
				return err
			}
			s.busy.Store(len(units) > unitsMax/2)
		case <-beat.C:
			if err := s.send(wire.Pulse{Phase: wire.PhaseTransferring}); err != nil {
				return err
			}
		}
	}
}

func (s *sender) send(m wire.Message) error {
	n, err := s.stream.Send(m)
	s.wire.Add(int64(n))
	return err
}

// sendEnd ends the tree. A plan that failed has ended the session by then.
func (s *sender) sendEnd() error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	s.sent.Add(1)
	s.ended.Store(true)
	return s.send(s.end)
}

func (s *sender) sendUnit(u *unit) error {
	defer u.release()
	if u.err != nil {
		return u.err
	}
	if u.file != nil {
		if err := u.file.account(u); err != nil {
			return err
		}
	}
	for _, m := range u.out {
		s.sent.Add(1)
		switch m := m.(type) {
		case wire.TreePut:
			s.payload.Add(int64(len(m.Payload)))
		case wire.TreeBlocks:
			s.payload.Add(int64(len(m.Payload)))
		}
		if err := s.send(m); err != nil {
			return err
		}
	}
	s.progressMu.Lock()
	s.progress = append(s.progress, milestone{records: s.sent.Load(), bytes: s.bytes.Add(u.bytes)})
	s.progressMu.Unlock()
	return nil
}

// plan groups changes into units: many small files together, large files in chunks.
func (s *sender) plan() (err error) {
	p := &planner{s: s, objects: map[uint64]bool{}}
	// Order is an argument, as in join.
	defer close(s.units)
	defer close(s.work)
	defer func() {
		if err != nil {
			s.cancel(err)
		}
		for c := range s.changes {
			c.entry.in.release()
		}
		p.unit.drop()
	}()
	for c := range s.changes {
		if err := p.change(c); err != nil {
			return err
		}
	}
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return p.flush()
}

// planner decides what is done with each change.
type planner struct {
	s    *sender
	unit *unit
	size int64
	// objects are those of several links that were dealt with: true when the target had it, so that names it had stay.
	objects map[uint64]bool
}

// done reports whether an earlier connection brought a path.
func (p *planner) done(path string) bool {
	st := &p.s.start
	if !st.Resumed {
		return false
	}
	order := wire.CompareTreePaths(path, st.Path)
	return order < 0 || order == 0 && !st.Inside
}

func (p *planner) change(c change) error {
	if c.deleted != "" {
		p.s.deletions.Add(1)
		if p.done(c.deleted) {
			return nil
		}
		return p.add(&task{item: wire.TreeItem{Op: wire.TreeDelete, Path: c.deleted}})
	}
	p.s.changed.Add(1)
	t, err := p.task(c)
	if err != nil {
		c.entry.in.release()
		return err
	}
	if p.done(c.entry.path) {
		c.entry.in.release()
		p.s.bytes.Add(c.entry.meta.Size)
		return nil
	}
	if t.item.Meta.Kind == wire.TreeFile && t.item.Op != wire.TreeLink && !t.linked && t.item.Meta.Size > wire.TreeInline {
		return p.large(t)
	}
	return p.add(t)
}

// task decides how the target comes to an entry.
func (p *planner) task(c change) (*task, error) {
	e := c.entry
	t := &task{entry: e, item: wire.TreeItem{Op: wire.TreeNew, Path: e.path, Meta: e.meta, Sparse: e.sparse}}
	switch {
	case e.meta.Kind == wire.TreeDirectory:
		if c.old != nil && c.old.Meta.Kind == wire.TreeDirectory || e.path == "" {
			t.item.Op = wire.TreeSame
		}
		return t, nil
	case sameObject(&e.meta, c.old):
		t.item.Op, t.old = wire.TreeSame, c.old
		return t, nil
	case e.meta.Links > 1:
		if there, seen := p.objects[e.meta.Inode]; seen {
			t.linked = true
			t.item.Op = wire.TreeLink
			if there && c.old != nil && c.old.Meta.Inode == e.meta.Inode && c.old.Meta.Kind == e.meta.Kind {
				t.item.Op = wire.TreeSame
			}
			return t, nil
		}
	}
	if c.found != nil {
		m, err := p.s.await(c.found)
		if err != nil {
			return nil, err
		}
		if f := m.(wire.TreeFound); f.Found && f.Entry.Meta.Kind == wire.TreeFile {
			t.item.Op, t.old, t.keep = wire.TreeMoved, &f.Entry, f.Entry.Path
		}
	}
	if e.meta.Links > 1 {
		p.objects[e.meta.Inode] = t.item.Op == wire.TreeMoved
	}
	return t, nil
}

// add adds a task to the unit at hand.
func (p *planner) add(t *task) error {
	if p.unit == nil {
		p.unit = newUnit()
	}
	p.unit.tasks = append(p.unit.tasks, t)
	p.size += t.item.Meta.Size + 256
	if len(p.unit.tasks) < unitItems && p.size < unitBytes {
		return nil
	}
	return p.flush()
}

// flush hands the unit at hand on, and asks for the digests its files are compared with.
func (p *planner) flush() error {
	u := p.unit
	p.unit, p.size = nil, 0
	if u == nil {
		return nil
	}
	var ranges []wire.TreeRange
	for _, t := range u.tasks {
		if t.old != nil && t.old.Meta.Size > 0 && t.item.Meta.Size > 0 && t.old.Meta.Size <= wire.TreeInline && !t.linked {
			t.compared = len(ranges) + 1
			ranges = append(ranges, wire.TreeRange{Ref: t.old.Ref, Count: 1})
		}
	}
	if len(ranges) > 0 {
		var err error
		u.known, err = p.s.question(func(id uint32) wire.Message {
			return wire.TreeWantDigests{Volume: p.s.volume, ID: id, Ranges: ranges}
		})
		if err != nil {
			u.drop()
			return err
		}
	}
	return p.hand(u)
}

func (p *planner) hand(u *unit) error {
	// First the order, then the work: a unit that is read has its place.
	select {
	case p.s.units <- u:
	case <-p.s.ctx.Done():
		u.drop()
		return context.Cause(p.s.ctx)
	}
	select {
	case p.s.work <- u:
		return nil
	case <-p.s.ctx.Done():
		// It has its place already, and no reader will come: who has got to it would wait for ever.
		u.drop()
		u.err = context.Cause(p.s.ctx)
		close(u.ready)
		return u.err
	}
}

// large plans a file in chunks. Its entry ends the unit at hand.
func (p *planner) large(t *task) error {
	t.item.Content = wire.TreeContentBlocks
	f := newSourceFile(t)
	defer f.release()
	inside := p.s.start.Resumed && p.s.start.Inside && p.s.start.Path == t.item.Path
	resume := int64(0)
	if inside {
		resume = p.s.start.Offset
		t.entry.in.release()
	} else if err := p.add(t); err != nil {
		return err
	}
	if err := p.flush(); err != nil {
		return err
	}
	for at, run := int64(0), (*answer)(nil); at < t.item.Meta.Size; at += chunkSize {
		u := newUnit()
		u.file, u.at, u.resume = f.hold(), at, resume
		u.length = min(chunkSize, t.item.Meta.Size-at)
		u.bytes = u.length
		if at%(digestRun*digest.BlockSize) == 0 {
			var err error
			if run, err = p.digestsOf(t.old, at/digest.BlockSize); err != nil {
				u.drop()
				return err
			}
		}
		u.known = run
		if err := p.hand(u); err != nil {
			return err
		}
	}
	u := newUnit()
	u.file, u.at = f.hold(), -1
	return p.hand(u)
}

// digestsOf asks for the digests of what a large file's object had, one run at a time; nil: it had nothing there.
func (p *planner) digestsOf(old *wire.TreeListed, first int64) (*answer, error) {
	if old == nil {
		return nil, nil
	}
	n := min(digestRun, old.Meta.Blocks()-first)
	if n <= 0 {
		return nil, nil
	}
	return p.s.question(func(id uint32) wire.Message {
		return wire.TreeWantDigests{Volume: p.s.volume, ID: id, Ranges: []wire.TreeRange{{Ref: old.Ref + first*digest.Size, Count: int(n)}}}
	})
}
