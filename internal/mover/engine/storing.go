package engine

import (
	"fmt"
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// rawBuffers holds memory for unpacked records.
var rawBuffers = sync.Pool{New: func() any { b := volume.Buffer(wire.MaxRecord); return &b }}

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

// keeper stores records in order and makes them durable in batches: while one batch is synced, the next one gathers.
// Order is an argument for a direct delta: first the bytes go to the replica, then the replica is synced, and only
// then does the log say so. A log that could run ahead of the replica would let a resumed session skip bytes that a
// crash took.
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
	pending  []wire.Message // direct: records whose bytes are written and not synced
	dirty    map[int]bool   // direct: volumes written and not synced
	after    wire.Position
	unsynced int64
	since    time.Time // when the first of it came
}

const (
	// syncEvery is how much is written before it is made durable, in bytes of volumes. A sync costs the same for
	// little as for much; it is well below session.Window, so that the source never waits for one.
	syncEvery = 64 << 20
	// syncDelay is how long something written may stay undurable when little comes.
	syncDelay = 250 * time.Millisecond
)

func newKeeper(t *Target, direct bool) *keeper {
	k := &keeper{
		target: t, direct: direct, in: make(chan item, 8),
		wake: make(chan struct{}, 1), done: make(chan struct{}), dirty: map[int]bool{},
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
	for {
		i, ok := k.next()
		if i.record == nil {
			if k.unsynced > 0 {
				k.publish(k.flush())
			}
			if !ok {
				return
			}
			continue
		}
		if _, err := k.durable(); err != nil {
			i.release()
			continue
		}
		err := k.keep(&i)
		i.release()
		if err != nil {
			k.publish(err)
		}
	}
}

// next is the next item; one without a record says that it is time to sync; false is the end.
func (k *keeper) next() (item, bool) {
	switch {
	case k.unsynced == 0:
		i, ok := <-k.in
		k.since = time.Now()
		return i, ok
	case k.unsynced >= k.target.parts.SyncEvery:
		return item{}, true
	}
	timer := time.NewTimer(syncDelay - time.Since(k.since))
	defer timer.Stop()
	select {
	case i, ok := <-k.in:
		return i, ok
	case <-timer.C:
		return item{}, true
	}
}

func (k *keeper) publish(err error) {
	k.unsynced = 0
	k.mu.Lock()
	switch {
	case k.err != nil:
	case err != nil:
		k.err = err
	default:
		k.position = k.after
	}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *keeper) keep(i *item) error {
	k.after = i.after
	k.unsynced++ // even a record without bytes has to become durable
	if d, ok := i.record.(wire.Data); ok {
		k.unsynced += int64(d.Length)
	}
	if !k.direct {
		return k.logged(k.target.spool.Append(i.record))
	}
	switch m := i.record.(type) {
	case wire.Data:
		if _, err := k.target.parts.Volumes[m.Volume].WriteAt(i.work.raw, m.Offset); err != nil {
			return k.target.volumeError(m.Volume, err)
		}
		k.dirty[m.Volume] = true
		m.Codec, m.Payload = wire.CodecApart, nil
		k.pending = append(k.pending, m)
	case wire.Hole:
		if err := k.target.parts.Volumes[m.Volume].Zero(m.Offset, m.Length); err != nil {
			return k.target.volumeError(m.Volume, err)
		}
		k.dirty[m.Volume] = true
		k.pending = append(k.pending, m)
	default:
		k.pending = append(k.pending, m)
	}
	return nil
}

// flush makes everything kept durable.
func (k *keeper) flush() error {
	if _, err := k.durable(); err != nil {
		return err
	}
	for v := range k.dirty {
		if err := k.target.parts.Volumes[v].Sync(); err != nil {
			return &unsynced{k.target.volumeError(v, err)}
		}
	}
	clear(k.dirty)
	for _, m := range k.pending {
		if err := k.logged(k.target.spool.Append(m)); err != nil {
			return err
		}
	}
	k.pending = k.pending[:0]
	if err := k.logged(k.target.spool.Sync()); err != nil {
		return &unsynced{err}
	}
	size := k.target.spool.Size()
	k.target.meter.set(func(s *State) { s.SpoolBytes = size })
	return nil
}

func (k *keeper) logged(err error) error {
	if err == nil {
		return nil
	}
	return classify("spool "+k.target.cfg.Spool, err)
}

func (t *Target) volumeError(v int, err error) error {
	return &VolumeError{Object: fmt.Sprintf("replica %s (%s)", t.cfg.Volumes[v].Name, t.cfg.Volumes[v].Device), Err: err}
}
