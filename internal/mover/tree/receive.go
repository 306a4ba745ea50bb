package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// ReceiveOptions is what a Receiver works with; the zero value is the usual.
type ReceiveOptions struct {
	Log *slog.Logger
	// Progress is told how many bytes of content are durable; may be nil.
	Progress func(done int64)
	// SyncBytes is how much is stored before it is made durable and acknowledged, in bytes; 0 for the usual.
	SyncBytes int64
	// Step is asked before every change of the replica, see ApplyOptions.
	Step func(op, path string) error
}

const (
	// syncSpooled and syncDirect are how much is stored before it is made durable. Making a file system with thousands
	// of new files durable costs more than making one log durable.
	syncSpooled = 64 << 20
	syncDirect  = 256 << 20
	// syncDelay is how long something stored may stay undurable when little comes.
	syncDelay = time.Second
	// entryCost is what an entry counts for beside its content.
	entryCost = 1 << 10
	// maxAsked bounds how many questions of a source wait for their answer.
	maxAsked = 4096
	farewell = 2 * time.Second
)

// Receiver runs the target's half of one tree's session: it stores what the source sends in the spool's log, or, when
// the delta is direct, in the replica and then, without content, in the log.
type Receiver struct {
	volume  int
	sp      *spool.Spool
	direct  bool
	old     *index
	ledger  *ledger
	build   *builder // direct only
	options ReceiveOptions
	log     *slog.Logger

	restored bool
	totals   Totals
	pending  []wire.Message // direct: records whose content is written and not durable
	unsynced int64
	stored   uint64 // records of this connection
}

// NewReceiver prepares to receive the tree of volume v, of the delta that is arriving in the spool.
func NewReceiver(sp *spool.Spool, v int, root string, o ReceiveOptions) (*Receiver, error) {
	d := sp.State().Delta
	if d == nil || sp.Pending() {
		return nil, errors.New("receive tree: no delta is arriving")
	}
	r := &Receiver{volume: v, sp: sp, direct: d.Direct, options: o, log: logger(o.Log)}
	if r.options.SyncBytes == 0 {
		r.options.SyncBytes = syncSpooled
		if r.direct {
			r.options.SyncBytes = syncDirect
		}
	}
	var err error
	if r.old, err = memberIndex(sp, d, v); err != nil {
		return nil, err
	}
	if r.direct {
		if r.build, err = newBuilder(root, d.Serial, o.Step); err != nil {
			return nil, err
		}
	}
	r.ledger = newLedger(v, r.old, nil, nil)
	r.ledger.direct = r.direct
	return r, nil
}

// Restore takes a record of this tree that an earlier connection stored, in order.
func (r *Receiver) Restore(m wire.Message) error {
	if v, ok := volumeOf(m); !ok || v != r.volume {
		return nil
	}
	r.restored = true
	if put, ok := m.(wire.TreePut); ok {
		memory := newBuffer()
		defer memory.release()
		raw, err := unpack(put.Codec, put.Length, put.Payload, memory.b)
		if err != nil {
			return err
		}
		return wire.TreeItems(raw, put.Count, r.ledger.item)
	}
	return r.enter(m)
}

// enter takes a record that is no TreePut into the ledger.
func (r *Receiver) enter(m wire.Message) error {
	switch m := m.(type) {
	case wire.TreeBlocks:
		return r.ledger.blocks(&m)
	case wire.TreeHole:
		return r.ledger.hole(&m)
	case wire.TreeFileEnd:
		return r.ledger.fileEnd(&m)
	case wire.TreeEnd:
		return r.ledger.end(&m)
	}
	return nil
}

// Ended reports that the tree's end is in the log.
func (r *Receiver) Ended() bool { return r.ledger.ended }

// Close lets go of the index and the replica.
func (r *Receiver) Close() {
	if r.build != nil {
		r.build.close()
		r.build = nil
	}
	r.old.close()
	r.old = nil
}

// arrival is a record on its way into the log: unpacked and proven by one of several goroutines.
type arrival struct {
	message wire.Message
	frame   transport.Frame
	memory  *buffer
	raw     []byte
	items   []wire.TreeItem
	err     error
	ready   chan struct{}
}

func (a *arrival) release() {
	a.memory.release()
	a.memory = nil
	a.frame.Release()
}

// link is one connection's goroutines.
type link struct {
	r      *Receiver
	stream *transport.Stream
	asked  chan wire.Message
	in     chan *arrival

	mu      sync.Mutex
	cause   error
	stopped chan struct{} // closed with the first error
	acked   atomic.Uint64
	wake    chan struct{}
	done    chan struct{} // closed when everything is durable
}

// stop ends the connection's work with an error; the first one counts.
func (l *link) stop(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		l.cause = err
		close(l.stopped)
	}
}

func (l *link) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

// Run runs the session over a connection until the tree's end is proven and durable. After an error the stream has
// been closed, the source has been told if it could be, and the Receiver is only good for Close: what is durable is in
// the spool's log.
func (r *Receiver) Run(ctx context.Context, s *transport.Stream) (Totals, error) {
	if r.ledger.ended {
		// An earlier connection brought everything; the source only has to know.
		_, err := s.Send(r.start())
		return r.totals, errors.Join(err, s.Flush())
	}
	if err := r.prepareReplica(); err != nil {
		return r.totals, err
	}
	l := &link{
		r: r, stream: s, asked: make(chan wire.Message, maxAsked), in: make(chan *arrival, 2*workers()),
		stopped: make(chan struct{}), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	unhook := context.AfterFunc(ctx, func() {
		l.stop(context.Cause(ctx))
		_ = s.Close()
	})
	defer unhook()
	var wg sync.WaitGroup
	wg.Go(l.send)
	wg.Go(l.keep)
	l.receive()
	close(l.in)
	wg.Wait()
	if err := l.err(); err != nil {
		_ = s.Close()
		return r.totals, err
	}
	return r.totals, nil
}

// prepareReplica makes a direct copy's replica ready: empty for a new one, the open file opened for one that goes on.
func (r *Receiver) prepareReplica() error {
	if !r.direct {
		return nil
	}
	if !r.restored {
		return r.build.clear()
	}
	if r.ledger.file == nil {
		return nil
	}
	return r.build.rejoin(&r.ledger.file.item)
}

func (r *Receiver) start() wire.TreeStart {
	m := wire.TreeStart{
		Volume: r.volume, Pages: r.old.pages(), Known: r.old != nil && r.old.known,
		Direct: r.direct, Resumed: r.restored, Ended: r.ledger.ended,
	}
	if r.restored {
		m.Path, m.Inside, m.Offset = r.ledger.position()
	}
	return m
}

// receive reads messages until everything is durable or an error. After an error of this side it reads on, so that the
// source can be told, until the connection ends.
func (l *link) receive() {
	for {
		f, err := l.stream.Receive()
		if err != nil {
			l.stop(err)
			return
		}
		over, err := l.take(f)
		if err != nil {
			l.stop(err)
		}
		if !over {
			continue
		}
		select {
		case <-l.done:
			return
		case <-l.stopped:
		}
	}
}

// take takes a message over, with its memory.
func (l *link) take(f transport.Frame) (over bool, err error) {
	if v, ok := volumeOf(f.Message); ok && l.err() == nil {
		if v != l.r.volume {
			f.Release()
			return false, violation("a record of volume %d in the session of tree %d", v, l.r.volume)
		}
		_, over = f.Message.(wire.TreeEnd)
		a := &arrival{message: f.Message, frame: f, ready: make(chan struct{})}
		go a.prepare()
		select {
		case l.in <- a:
		case <-l.stopped:
			<-a.ready
			a.release()
		}
		return over, nil
	}
	defer f.Release()
	if l.err() != nil {
		return false, nil
	}
	switch m := f.Message.(type) {
	case wire.Pulse:
		return false, nil
	case wire.Failed:
		return false, &session.Remote{Kind: m.Kind, Text: m.Text}
	case wire.TreeWantPages, wire.TreeWantDigests, wire.TreeFind:
		select {
		case l.asked <- m:
			return false, nil
		default:
			return false, violation("it asks more than %d questions at a time", maxAsked)
		}
	}
	return false, violation("a tree's target does not expect a %s", f.Message.Type())
}

// prepare unpacks a record and proves its content.
func (a *arrival) prepare() {
	defer close(a.ready)
	switch m := a.message.(type) {
	case wire.TreePut:
		a.memory = newBuffer()
		if a.raw, a.err = unpack(m.Codec, m.Length, m.Payload, a.memory.b); a.err != nil {
			return
		}
		a.items = make([]wire.TreeItem, 0, m.Count)
		a.err = wire.TreeItems(a.raw, m.Count, func(it *wire.TreeItem) error {
			if it.Content == wire.TreeContentInline && len(it.Bytes) > 0 {
				if got := digest.Block(it.Bytes); got != it.Digest {
					return &session.Integrity{What: fmt.Sprintf("file %q as received", it.Path), Want: it.Digest, Got: got}
				}
			}
			a.items = append(a.items, *it)
			return nil
		})
	case wire.TreeBlocks:
		if m.Codec == wire.CodecApart {
			a.err = violation("a record without its bytes")
			return
		}
		a.memory = newBuffer()
		if a.raw, a.err = unpack(m.Codec, m.Length, m.Payload, a.memory.b); a.err != nil {
			return
		}
		for i, got := range digest.Blocks(a.raw) {
			if got != m.Digests[i] {
				at := m.Offset + int64(i)*digest.BlockSize
				a.err = &session.Integrity{What: fmt.Sprintf("block of a file at %d", at), Want: m.Digests[i], Got: got}
				return
			}
		}
	}
}

// send sends answers, acknowledgements and pulses.
func (l *link) send() {
	err := l.sending()
	if err == nil {
		return
	}
	l.stop(err)
	cause := l.err()
	var lost *transport.Lost
	var remote *session.Remote
	if errors.As(cause, &lost) || errors.As(cause, &remote) {
		_ = l.stream.Close()
		return
	}
	// The source is told and given some time to leave.
	time.AfterFunc(farewell, func() { _ = l.stream.Close() })
	if _, err := l.stream.Send(failure(cause)); err == nil {
		_ = l.stream.Flush()
	}
	l.stream.EndWrite()
}

// failure is an error as the other side is told of it.
func failure(err error) wire.Failed {
	var broke *session.Violation
	var integrity *session.Integrity
	var changed *SourceChanged
	var path *PathError
	var errno syscall.Errno
	kind := wire.FailedInternal
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = wire.FailedSpace
	case errors.As(err, &broke):
		kind = wire.FailedProtocol
	case errors.As(err, &integrity), errors.As(err, &changed), errors.Is(err, ErrIndex):
		kind = wire.FailedIntegrity
	case errors.As(err, &path), errors.As(err, &errno):
		kind = wire.FailedIO
	case errors.Is(err, context.Canceled):
		kind = wire.FailedStopping
	}
	return wire.Failed{Kind: kind, Text: err.Error()}
}

func (l *link) sending() error {
	if _, err := l.stream.Send(l.r.start()); err != nil {
		return err
	}
	beat := time.NewTicker(transport.Beat)
	defer beat.Stop()
	sent := uint64(0)
	for {
		if len(l.asked) == 0 {
			if err := l.stream.Flush(); err != nil {
				return err
			}
		}
		var err error
		select {
		case <-l.stopped:
			return l.err()
		case m := <-l.asked:
			err = l.answer(m)
		case <-l.wake:
			sent, err = l.ack(sent)
		case <-l.done:
			if sent, err = l.ack(sent); err == nil {
				return l.stream.Flush()
			}
		case <-beat.C:
			_, err = l.stream.Send(wire.Pulse{Phase: wire.PhaseTransferring})
		}
		if err != nil {
			return err
		}
	}
}

func (l *link) ack(sent uint64) (uint64, error) {
	acked := l.acked.Load()
	if acked == sent {
		return sent, nil
	}
	_, err := l.stream.Send(wire.TreeAck{Volume: l.r.volume, Records: acked})
	return acked, err
}

// answer answers a question about the index.
func (l *link) answer(m wire.Message) error {
	x := l.r.old
	switch m := m.(type) {
	case wire.TreeWantPages:
		for n := m.First; n < m.First+m.Count; n++ {
			p, err := x.page(n)
			if err != nil {
				return err
			}
			p.Volume = l.r.volume
			if _, err := l.stream.Send(p); err != nil {
				return err
			}
		}
	case wire.TreeWantDigests:
		out := wire.TreeDigests{Volume: l.r.volume, ID: m.ID}
		for _, want := range m.Ranges {
			at := len(out.Digests)
			out.Digests = append(out.Digests, make([]digest.Digest, want.Count)...)
			if err := x.digests(want.Ref, out.Digests[at:]); err != nil {
				return err
			}
		}
		_, err := l.stream.Send(out)
		return err
	case wire.TreeFind:
		e, found, err := x.find(m.Inode)
		if err != nil {
			return err
		}
		_, err = l.stream.Send(wire.TreeFound{Volume: l.r.volume, ID: m.ID, Found: found, Entry: e})
		return err
	}
	return nil
}

// keep stores records in order and makes them durable in batches.
func (l *link) keep() {
	err := l.keeping()
	if err == nil && l.r.ledger.ended && l.r.unsynced == 0 {
		close(l.done)
		return
	}
	if err != nil {
		l.stop(err)
	}
	for a := range l.in {
		<-a.ready
		a.release()
	}
	if err != nil {
		return
	}
	// The connection failed: what was stored is worth keeping for the next one.
	if err := l.flush(); err != nil {
		l.r.log.Warn("what was received last is not kept", "error", err.Error())
	}
}

// keeping ends when everything is durable, without an error when the connection has one.
func (l *link) keeping() error {
	r := l.r
	for !r.ledger.ended || r.unsynced > 0 {
		a, open := l.next()
		if !open || l.err() != nil {
			if a != nil {
				<-a.ready
				a.release()
			}
			return nil
		}
		var err error
		switch {
		case a != nil:
			<-a.ready
			if err = a.err; err == nil {
				err = r.store(a)
			}
			a.release()
		case r.unsynced > 0:
			err = l.flush()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// next is the next record; nil says that it is time to make things durable, or that there will be none.
func (l *link) next() (a *arrival, open bool) {
	r := l.r
	switch {
	case r.ledger.ended, r.unsynced >= r.options.SyncBytes:
		return nil, true
	case r.unsynced == 0:
		a, open = <-l.in
		return a, open
	}
	timer := time.NewTimer(syncDelay)
	defer timer.Stop()
	select {
	case a, open = <-l.in:
		return a, open
	case <-timer.C:
		return nil, true
	}
}

// store takes a record into the ledger and then into the log or the replica.
func (r *Receiver) store(a *arrival) error {
	r.stored++
	r.totals.Records++
	r.unsynced += entryCost
	put, isPut := a.message.(wire.TreePut)
	if isPut {
		r.unsynced += int64(put.Count) * entryCost
	}
	if isPut && r.direct {
		return r.storeItems(put, a)
	}
	if isPut {
		for i := range a.items {
			if err := r.item(&a.items[i]); err != nil {
				return err
			}
		}
		return r.sp.Append(put)
	}
	blocks, isBlocks := a.message.(wire.TreeBlocks)
	if isBlocks {
		r.unsynced += int64(blocks.Length)
		r.totals.Data += int64(blocks.Length)
		if r.direct {
			blocks.Codec, blocks.Payload = wire.CodecApart, nil
			a.message = blocks
		}
	}
	if err := r.enter(a.message); err != nil {
		return err
	}
	if !r.direct {
		return r.sp.Append(a.message)
	}
	r.pending = append(r.pending, a.message)
	switch m := a.message.(type) {
	case wire.TreeBlocks:
		return r.build.blocks(a.raw, m.Offset, a.memory)
	case wire.TreeHole:
		return r.build.hole(m.Offset, m.Length)
	case wire.TreeFileEnd:
		return r.build.fileEnd()
	}
	return nil
}

func (r *Receiver) item(it *wire.TreeItem) error {
	if it.Content == wire.TreeContentApart {
		return violation("%q comes without its bytes", it.Path)
	}
	r.unsynced += int64(len(it.Bytes))
	r.totals.Data += int64(len(it.Bytes))
	return r.ledger.item(it)
}

// storeItems carries items out on the replica and keeps them, without content, for the log.
func (r *Receiver) storeItems(put wire.TreePut, a *arrival) error {
	raw := make([]byte, 0, 160*len(a.items))
	before := ""
	for i := range a.items {
		it := &a.items[i]
		if err := r.item(it); err != nil {
			return err
		}
		if err := r.build.item(it, a.memory); err != nil {
			return err
		}
		bare := *it
		if bare.Content == wire.TreeContentInline && len(bare.Bytes) > 0 {
			bare.Content, bare.Bytes = wire.TreeContentApart, nil
		}
		raw = wire.AppendTreeItem(raw, before, &bare)
		before = it.Path
	}
	if err := r.build.endRun(); err != nil {
		return err
	}
	put.Codec, put.Length, put.Payload = wire.CodecNone, len(raw), raw
	r.pending = append(r.pending, put)
	return nil
}

// flush makes everything stored durable and says so. Order is an argument for a direct delta: the replica first, then
// the log: a log ahead of the replica would let the next connection skip what a crash took.
func (l *link) flush() error {
	r := l.r
	if r.direct {
		if err := r.build.sync(); err != nil {
			return err
		}
		for _, m := range r.pending {
			if err := r.sp.Append(m); err != nil {
				return err
			}
		}
		r.pending = r.pending[:0]
	}
	if err := r.sp.Sync(); err != nil {
		return err
	}
	r.unsynced = 0
	l.acked.Store(r.stored)
	if r.options.Progress != nil {
		r.options.Progress(r.totals.Data)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}
