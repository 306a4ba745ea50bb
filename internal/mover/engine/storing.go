package engine

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Memory for unpacked records, small and large.
var (
	smallRecords = volume.NewPool(digest.BlockSize, 64)
	largeRecords = volume.NewPool(wire.MaxRecord, 32)
)

func recordPool(length int) *volume.Pool {
	if length <= digest.BlockSize {
		return smallRecords
	}
	return largeRecords
}

// rest gives back memory that only a session needs.
func rest() {
	smallRecords.Empty()
	largeRecords.Empty()
	transport.Rest()
}

// item is a record to be kept and the memory it lies in.
type item struct {
	record wire.Message
	after  wire.Position
	frame  transport.Frame
	work   result
}

func (i *item) release() {
	i.work.release()
	i.frame.Release()
}

// unsynced reports that making something durable failed: what is on the disk is unknown from then on.
type unsynced struct{ err error }

func (u *unsynced) Error() string { return "make durable: " + u.err.Error() }
func (u *unsynced) Unwrap() error { return u.err }

// SpoolFull reports that a delta does not fit into the spool.
type SpoolFull struct {
	Spool string
	Limit int64 // bytes; 0: the disk is full
	Err   error // what the disk said; nil for a limit
}

func (f *SpoolFull) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("spool %s is full: %v; give it more space, or a delta that is smaller by running sessions more often", f.Spool, f.Err)
	}
	return fmt.Sprintf("spool %s is limited to %d bytes and the delta needs more: raise the limit, or make deltas smaller by running sessions more often", f.Spool, f.Limit)
}

// Unwrap is what the disk said.
func (f *SpoolFull) Unwrap() error { return f.Err }

// keeper stores records in order and makes them durable in batches: while one batch is synced, the next one gathers.
// Order is an argument for a direct delta: first the bytes go to the replica, then the replica is synced, and only
// then does the log say so. A log that could run ahead of the replica would let a resumed session skip bytes that a
// crash took. The bytes of different records never overlap, so they are written side by side.
type keeper struct {
	target *Target
	direct bool
	in     chan item
	// wake says that durable has news.
	wake chan struct{}
	done chan struct{}

	mu       sync.Mutex
	position wire.Position
	err      error

	// Of the goroutine alone.
	batch  *batch        // gathers
	synced chan struct{} // closed when the batch before is durable, or failed; nil: none is on its way
	rush   bool          // somebody waits for everything stored so far
	slots  chan struct{} // writes to replicas under way
}

// batch is what becomes durable together.
type batch struct {
	after   wire.Position
	bytes   int64 // a record without bytes counts as one
	since   time.Time
	pending []wire.Message // direct: records whose bytes are written, or being written
	dirty   map[int]bool   // direct: volumes written
	writes  sync.WaitGroup
}

const (
	// syncEvery is how much is written before it is made durable, in bytes of volumes. A sync costs the same for
	// little as for much; it is well below session.Window, so that the source never waits for one.
	syncEvery = 64 << 20
	// spoolEvery is the same for a spool: its end is what the source waits for, so little is left to do then.
	spoolEvery = 16 << 20
	// syncDelay is how long something written may stay undurable when little comes.
	syncDelay = 250 * time.Millisecond
	// writesAtOnce is how many writes to a replica are under way: a disk reaches its rate from a few on.
	writesAtOnce = 8
	// appliesAtOnce is the same for a delta from the spool, whose records may be small.
	appliesAtOnce = 24
)

func newKeeper(t *Target, direct bool) *keeper {
	k := &keeper{
		target: t, direct: direct, in: make(chan item, 8),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		batch: &batch{dirty: map[int]bool{}}, slots: make(chan struct{}, writesAtOnce),
	}
	go k.run()
	return k
}

// store hands a record over, with its memory.
func (k *keeper) store(i item) { k.in <- i }

// hurry makes everything stored so far durable without delay: the source waits for it.
func (k *keeper) hurry() { k.in <- item{} }

// durable is how far everything is durable, or why it cannot become so.
func (k *keeper) durable() (wire.Position, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.position, k.err
}

// end makes what was stored durable and stops. It returns what went wrong, if anything.
func (k *keeper) end() error {
	close(k.in)
	<-k.done
	_, err := k.durable()
	return err
}

func (k *keeper) run() {
	defer close(k.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if k.due() {
			k.flush()
		}
		timer.Reset(k.wait())
		select {
		case i, ok := <-k.in:
			switch {
			case !ok:
				k.finish()
				return
			case i.record == nil:
				k.rush = true
			default:
				k.take(&i)
			}
		case <-k.synced:
			k.synced = nil
		case <-timer.C:
		}
	}
}

// due reports that the batch is to be synced now.
func (k *keeper) due() bool {
	b := k.batch
	return b.bytes > 0 && k.synced == nil &&
		(k.rush || b.bytes >= k.every() || time.Since(b.since) >= syncDelay)
}

func (k *keeper) every() int64 {
	if k.direct {
		return k.target.parts.SyncEvery
	}
	return min(k.target.parts.SyncEvery, spoolEvery)
}

// wait is how long nothing is due even if nothing comes.
func (k *keeper) wait() time.Duration {
	if k.batch.bytes == 0 || k.synced != nil {
		return time.Hour
	}
	return syncDelay - time.Since(k.batch.since)
}

// finish makes everything durable and waits for it.
func (k *keeper) finish() {
	if k.synced != nil {
		<-k.synced
	}
	k.batch.writes.Wait()
	if k.batch.bytes > 0 {
		k.flush()
		<-k.synced
	}
}

// take keeps one record. After an error nothing is kept any more.
func (k *keeper) take(i *item) {
	if _, err := k.durable(); err != nil {
		i.release()
		return
	}
	b := k.batch
	if b.bytes == 0 {
		b.since = time.Now()
	}
	b.after = i.after
	b.bytes++
	if d, ok := i.record.(wire.Data); ok {
		b.bytes += int64(d.Length)
	}
	if k.direct {
		k.write(i)
		return
	}
	if err := k.log(i.record); err != nil {
		k.fail(err)
	}
	i.release()
}

// log appends a record to the spool, within its limit.
func (k *keeper) log(record wire.Message) error {
	t := k.target
	if d, ok := record.(wire.Data); ok && t.cfg.SpoolLimit > 0 && t.spool.Size()+int64(len(d.Payload)) > t.cfg.SpoolLimit {
		return &SpoolFull{Spool: t.cfg.Spool, Limit: t.cfg.SpoolLimit}
	}
	return k.logged(t.spool.Append(record))
}

// write brings a record onto its replica, beside other records.
func (k *keeper) write(i *item) {
	b, v := k.batch, -1
	switch m := i.record.(type) {
	case wire.Data:
		v = m.Volume
		m.Codec, m.Payload = wire.CodecApart, nil
		b.pending = append(b.pending, m)
	case wire.Hole:
		v = m.Volume
		b.pending = append(b.pending, m)
	default:
		b.pending = append(b.pending, m)
	}
	if v < 0 {
		i.release()
		return
	}
	b.dirty[v] = true
	k.reserve(v, i.record)
	k.slots <- struct{}{}
	one := *i
	b.writes.Go(func() {
		defer func() { <-k.slots }()
		defer one.release()
		if err := k.target.put(v, one.record, one.work.raw); err != nil {
			k.fail(err)
		}
	})
}

// reserve allocates the rest of a segment when its first record is as long as records are: then the segment is likely
// to be written whole. What turns out to be a hole is freed again.
func (k *keeper) reserve(v int, record wire.Message) {
	d, ok := record.(wire.Data)
	if !ok || d.Length < wire.MaxRecord || d.Offset%digest.SegmentSize != 0 {
		return
	}
	if r, ok := k.target.parts.Volumes[v].(volume.Reserver); ok {
		r.Reserve(d.Offset, digest.SegmentSize)
	}
}

// put writes a record's bytes to volume v.
func (t *Target) put(v int, record wire.Message, raw []byte) error {
	to := t.parts.Volumes[v]
	switch m := record.(type) {
	case wire.Data:
		if _, err := to.WriteAt(raw, m.Offset); err != nil {
			return t.volumeError(v, err)
		}
	case wire.Hole:
		if err := to.Zero(m.Offset, m.Length); err != nil {
			return t.volumeError(v, err)
		}
	}
	return nil
}

func (k *keeper) fail(err error) {
	k.mu.Lock()
	if k.err == nil {
		k.err = err
	}
	k.mu.Unlock()
	k.tell()
}

func (k *keeper) tell() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// flush begins to make the batch durable.
func (k *keeper) flush() {
	b, done := k.batch, make(chan struct{})
	k.batch, k.synced, k.rush = &batch{dirty: map[int]bool{}}, done, false
	synced := func() error { return nil }
	if !k.direct {
		size := k.target.spool.Size()
		k.target.meter.set(func(s *State) { s.SpoolBytes = size })
		synced = k.target.spool.BeginSync()
	}
	go func() {
		defer close(done)
		if err := k.makeDurable(b, synced); err != nil {
			k.fail(err)
			return
		}
		k.mu.Lock()
		if k.err == nil {
			k.position = b.after
		}
		k.mu.Unlock()
		k.tell()
	}()
}

// makeDurable syncs a batch. Of a direct delta, only this touches the spool; else only keeper.run does, and synced waits
// for what it began.
func (k *keeper) makeDurable(b *batch, synced func() error) error {
	b.writes.Wait()
	if _, err := k.durable(); err != nil {
		return err
	}
	if !k.direct {
		if err := k.logged(synced()); err != nil {
			return &unsynced{err}
		}
		return nil
	}
	for v := range b.dirty {
		if err := k.target.parts.Volumes[v].Sync(); err != nil {
			return &unsynced{k.target.volumeError(v, err)}
		}
	}
	for _, m := range b.pending {
		if err := k.logged(k.target.spool.Append(m)); err != nil {
			return err
		}
	}
	if err := k.logged(k.target.spool.Sync()); err != nil {
		return &unsynced{err}
	}
	return nil
}

func (k *keeper) logged(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &SpoolFull{Spool: k.target.cfg.Spool, Err: err}
	}
	return classify("spool "+k.target.cfg.Spool, err)
}

func (t *Target) volumeError(v int, err error) error {
	return &VolumeError{Object: fmt.Sprintf("replica %s (%s)", t.cfg.Volumes[v].Name, t.cfg.Volumes[v].Device), Err: err}
}
