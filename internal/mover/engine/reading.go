package engine

import (
	"cmp"
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

const (
	// readSize is how much is read at a time: direct I/O reaches the disk's rate from 1 MiB on.
	readSize = wire.MaxRecord
	// buffers is how many reads of a source may be between the disk and the wire. It bounds memory: two times
	// readSize each, for the bytes and their packed form.
	buffers = 20
)

// workers is how many goroutines read and digest: some wait for the disk while others compute.
func workers() int { return max(4, min(8, 4*runtime.GOMAXPROCS(0))) }

// readFull reads p whole.
func readFull(v volume.Reader, name string, p []byte, off int64) error {
	n, err := v.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &VolumeError{Object: "volume " + name, Err: err}
}

// reading is how volumes are read.
type reading struct {
	volumes []volume.Reader
	names   []string
	written [][]digest.Extent // per volume, what was ever written; nil: not known
	limit   *pace.Limiter     // nil: none
	read    *atomic.Int64     // bytes so far
}

// bytes reads p whole, from off.
func (r reading) bytes(ctx context.Context, v int, p []byte, off int64) error {
	if err := r.limit.Wait(ctx, len(p)); err != nil {
		return err
	}
	if err := readFull(r.volumes[v], r.names[v], p, off); err != nil {
		return err
	}
	r.read.Add(int64(len(p)))
	return nil
}

// empty reports that nothing between from and to was ever written.
func (r reading) empty(v int, from, to int64) bool {
	if r.written == nil {
		return false
	}
	list := r.written[v]
	i, _ := slices.BinarySearchFunc(list, from, func(e digest.Extent, at int64) int {
		return cmp.Compare(e.Offset+e.Length, at+1)
	})
	return i == len(list) || list[i].Offset >= to
}

// segment reads a segment, as far as it was ever written, and digests its blocks. buf holds readSize bytes.
func (r reading) segment(ctx context.Context, v, s int, buf []byte) ([]digest.Digest, error) {
	geo := digest.Geometry{Size: r.volumes[v].Size()}
	at, end := geo.SegmentStart(s), geo.SegmentStart(s)+geo.SegmentLen(s)
	out := make([]digest.Digest, 0, geo.SegmentBlocks(s))
	for at < end {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := buf[:min(readSize, end-at)]
		if r.empty(v, at, at+int64(len(p))) {
			out = append(out, make([]digest.Digest, (len(p)+digest.BlockSize-1)/digest.BlockSize)...)
			at += int64(len(p))
			continue
		}
		if err := r.bytes(ctx, v, p, at); err != nil {
			return nil, err
		}
		out = digest.AppendBlocks(out, p)
		at += int64(len(p))
	}
	return out, nil
}

// buffer is the memory of one read on its way to the wire.
type buffer struct {
	raw, packed []byte
	bytes       int64  // that records carry, before compression
	epoch       uint64 // of the way they were packed
}

// extractor reads a source's volumes for a session. Scans run side by side; reads too, but their results come in the
// order they were asked for.
type extractor struct {
	reading
	pack *packer

	scans   chan session.Scan
	reads   chan session.Read
	order   chan chan readResult
	free    chan *buffer
	results chan eventOrError

	mu   sync.Mutex
	held map[uint64]*buffer // by the read that filled it, until its last record is written
	wg   sync.WaitGroup
}

type eventOrError struct {
	event session.Event
	err   error
}

type readResult struct {
	done session.ReadDone
	err  error
}

// newExtractor starts the goroutines; they end when ctx does, see wait. The channels hold as much as a session may ask
// for before it takes a result, so asking never blocks.
func newExtractor(ctx context.Context, from reading, pack *packer) *extractor {
	x := &extractor{
		reading: from, pack: pack,
		scans: make(chan session.Scan, session.Lookahead), reads: make(chan session.Read, maxReads),
		order: make(chan chan readResult, buffers), free: make(chan *buffer, buffers),
		results: make(chan eventOrError), held: map[uint64]*buffer{},
	}
	for range buffers {
		x.free <- &buffer{}
	}
	for range workers() {
		x.wg.Go(func() { x.scan(ctx) })
	}
	x.wg.Go(func() { x.dispatch(ctx) })
	x.wg.Go(func() { x.collect(ctx) })
	return x
}

// maxReads is how many reads a window allows: each is at least a block, but for the last of a volume.
const maxReads = 2*session.Window/digest.BlockSize + wire.MaxVolumes

func (x *extractor) wait() { x.wg.Wait() }

func (x *extractor) scan(ctx context.Context) {
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-x.scans:
			if buf == nil {
				buf = volume.Buffer(readSize)
			}
			digests, err := x.segment(ctx, s.Volume, s.Segment, buf)
			x.deliver(ctx, session.Scanned{Volume: s.Volume, Segment: s.Segment, Digests: digests}, err)
		}
	}
}

func (x *extractor) deliver(ctx context.Context, e session.Event, err error) {
	select {
	case x.results <- eventOrError{e, err}:
	case <-ctx.Done():
	}
}

// dispatch gives each read its buffer in the order they were asked for: the one that is waited for always has one.
func (x *extractor) dispatch(ctx context.Context) {
	slots := make(chan struct{}, workers())
	for {
		var r session.Read
		var b *buffer
		select {
		case r = <-x.reads:
		case <-ctx.Done():
			return
		}
		select {
		case b = <-x.free:
		case <-ctx.Done():
			return
		}
		done := make(chan readResult, 1)
		select {
		case x.order <- done:
		case <-ctx.Done():
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		x.wg.Go(func() {
			done <- x.readOne(ctx, r, b)
			<-slots
		})
	}
}

func (x *extractor) readOne(ctx context.Context, r session.Read, b *buffer) readResult {
	if b.raw == nil {
		b.raw, b.packed = volume.Buffer(readSize), make([]byte, 0, readSize)
	}
	p := b.raw[:r.Length]
	if err := x.bytes(ctx, r.Volume, p, r.Offset); err != nil {
		return readResult{err: err}
	}
	done := session.ReadDone{Seq: r.Seq, Digests: digest.Blocks(p)}
	done.Records = session.Records(r.Volume, r.Offset, p, done.Digests, r.Pieces)
	packed, holds := b.packed[:0], false
	compress, epoch := x.pack.pilot.way()
	b.bytes, b.epoch = 0, epoch
	for i, m := range done.Records {
		if d, ok := m.(wire.Data); ok {
			b.bytes += int64(d.Length)
			if compress {
				d, packed = x.pack.pack(d, packed)
			}
			done.Records[i], holds = d, true
		}
	}
	if !holds {
		x.free <- b // never blocks: there is room for all
		return readResult{done: done}
	}
	x.mu.Lock()
	x.held[r.Seq] = b
	x.mu.Unlock()
	return readResult{done: done}
}

func (x *extractor) collect(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case done := <-x.order:
			select {
			case r := <-done:
				x.deliver(ctx, r.done, r.err)
			case <-ctx.Done():
				return
			}
		}
	}
}

// release gives a read's buffer back: its last record is on the connection, whose writer has worked for busy.
func (x *extractor) release(seq uint64, now time.Time, busy time.Duration) {
	x.mu.Lock()
	b := x.held[seq]
	delete(x.held, seq)
	x.mu.Unlock()
	if b != nil {
		x.pack.pilot.sent(b.epoch, b.bytes, now, busy)
		x.free <- b
	}
}
