package engine

import (
	"cmp"
	"context"
	"errors"
	"io"
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
	// smallRead is up to what length a read counts as small: a list of changes makes many of them, and a disk needs
	// many at once to be quick. smallBuffers is how many of them may be on their way.
	smallRead    = 128 << 10
	smallBuffers = 48
)

// workers is how many goroutines read and digest: some wait for the disk while others compute.
func workers() int { return max(4, min(8, 4*cores)) }

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

// chunk is a part of a segment that is read and digested at once.
type chunk struct {
	of       *scanned
	at       int64
	length   int
	firstOut int // index of its first block in the segment
}

// scanned is a segment whose chunks are being digested.
type scanned struct {
	volume, segment int
	digests         []digest.Digest
	left            atomic.Int32 // chunks
}

// scan digests segments as they come, as far as they were ever written, until there are no more or ctx ends. Several
// goroutines take chunk after chunk in the order of the volume: a disk reads one stream faster than several. done is
// called for each segment, from any of them.
func (r reading) scan(ctx context.Context, segments <-chan session.Scan, done func(session.Scanned, error)) {
	chunks := make(chan chunk)
	var wg sync.WaitGroup
	for range workers() {
		wg.Go(func() {
			var buf []byte
			for c := range chunks {
				if buf == nil {
					buf = volume.Buffer(readSize)
				}
				if err := r.digest(ctx, c, buf); err != nil {
					done(session.Scanned{}, err)
					continue
				}
				if c.of.left.Add(-1) == 0 {
					done(session.Scanned{Volume: c.of.volume, Segment: c.of.segment, Digests: c.of.digests}, nil)
				}
			}
		})
	}
	defer wg.Wait()
	defer close(chunks)
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-segments:
			if !ok || !r.hand(ctx, s, chunks) {
				return
			}
		}
	}
}

// hand gives out the chunks of a segment; false means that ctx has ended.
func (r reading) hand(ctx context.Context, s session.Scan, chunks chan<- chunk) bool {
	geo := digest.Geometry{Size: r.volumes[s.Volume].Size()}
	start, length := geo.SegmentStart(s.Segment), geo.SegmentLen(s.Segment)
	of := &scanned{volume: s.Volume, segment: s.Segment, digests: make([]digest.Digest, geo.SegmentBlocks(s.Segment))}
	of.left.Store(int32((length + readSize - 1) / readSize))
	for at := int64(0); at < length; at += readSize {
		c := chunk{of: of, at: start + at, length: int(min(readSize, length-at)), firstOut: int(at / digest.BlockSize)}
		select {
		case chunks <- c:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// digest reads a chunk, unless nothing of it was ever written, and digests its blocks.
func (r reading) digest(ctx context.Context, c chunk, buf []byte) error {
	v := c.of.volume
	if r.empty(v, c.at, c.at+int64(c.length)) {
		return ctx.Err() // zeros: digest.Zero is what is there already
	}
	p := buf[:c.length]
	if err := r.bytes(ctx, v, p, c.at); err != nil {
		return err
	}
	digest.AppendBlocks(c.of.digests[c.firstOut:c.firstOut], p)
	return nil
}

// buffer is the memory of one read on its way to the wire.
type buffer struct {
	raw, packed []byte
	small       bool
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
	free    [2]chan *buffer // large, small
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
		order:   make(chan chan readResult, buffers+smallBuffers),
		results: make(chan eventOrError), held: map[uint64]*buffer{},
	}
	for i, n := range []int{buffers, smallBuffers} {
		x.free[i] = make(chan *buffer, n)
		for range n {
			x.free[i] <- &buffer{small: i == 1}
		}
	}
	x.wg.Go(func() {
		x.scan(ctx, x.scans, func(s session.Scanned, err error) { x.deliver(ctx, s, err) })
	})
	x.wg.Go(func() { x.dispatch(ctx) })
	x.wg.Go(func() { x.collect(ctx) })
	return x
}

// maxReads is how many reads a window allows: each is at least a block, but for the last of a volume.
const maxReads = 2*session.Window/digest.BlockSize + wire.MaxVolumes

func (x *extractor) wait() { x.wg.Wait() }

func (x *extractor) deliver(ctx context.Context, e session.Event, err error) {
	select {
	case x.results <- eventOrError{e, err}:
	case <-ctx.Done():
	}
}

// dispatch gives each read its buffer in the order they were asked for: the one that is waited for always has one.
func (x *extractor) dispatch(ctx context.Context) {
	slots := [2]chan struct{}{make(chan struct{}, workers()), make(chan struct{}, 4*workers())}
	for {
		var r session.Read
		var b *buffer
		select {
		case r = <-x.reads:
		case <-ctx.Done():
			return
		}
		class := 0
		if r.Length <= smallRead {
			class = 1
		}
		select {
		case b = <-x.free[class]:
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
		case slots[class] <- struct{}{}:
		case <-ctx.Done():
			return
		}
		x.wg.Go(func() {
			done <- x.readOne(ctx, r, b)
			<-slots[class]
		})
	}
}

func (x *extractor) readOne(ctx context.Context, r session.Read, b *buffer) readResult {
	if b.raw == nil {
		size := readSize
		if b.small {
			size = smallRead
		}
		b.raw = volume.Buffer(size)
	}
	p := b.raw[:r.Length]
	digests, err := x.pieces(ctx, r, p)
	if err != nil {
		return readResult{err: err}
	}
	done := session.ReadDone{Seq: r.Seq, Digests: digests}
	done.Records = session.Records(r.Volume, r.Offset, p, done.Digests, r.Pieces)
	compress, epoch := x.pack.pilot.way()
	if compress && x.pack.zstd != nil && b.packed == nil {
		b.packed = make([]byte, 0, len(b.raw))
	}
	packed, holds := b.packed[:0], false
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
		x.give(b)
		return readResult{done: done}
	}
	x.mu.Lock()
	x.held[r.Seq] = b
	x.mu.Unlock()
	return readResult{done: done}
}

// smallGap is up to how many bytes between two pieces are read with them: that is cheaper than reading twice.
const smallGap = 16 << 10

// pieces reads what is asked for of a run of blocks into p, and digests the blocks that were read whole. The others stay
// Unknown: reading a block of 64 KiB for the digest of a change of 4 KiB would cost more than the change.
func (x *extractor) pieces(ctx context.Context, r session.Read, p []byte) ([]digest.Digest, error) {
	var runs []digest.Extent // relative to p
	for _, e := range r.Pieces {
		at := e.Offset - r.Offset
		if n := len(runs); n > 0 && at-(runs[n-1].Offset+runs[n-1].Length) <= smallGap {
			runs[n-1].Length = at + e.Length - runs[n-1].Offset
			continue
		}
		runs = append(runs, digest.Extent{Offset: at, Length: e.Length})
	}
	if runs == nil {
		runs = []digest.Extent{{Length: int64(len(p))}}
	}
	out := make([]digest.Digest, (len(p)+digest.BlockSize-1)/digest.BlockSize)
	for i := range out {
		out[i] = digest.Unknown
	}
	for _, run := range runs {
		end := run.Offset + run.Length
		if err := x.bytes(ctx, r.Volume, p[run.Offset:end], r.Offset+run.Offset); err != nil {
			return nil, err
		}
		first := (run.Offset + digest.BlockSize - 1) / digest.BlockSize
		for i := first; i < int64(len(out)); i++ {
			to := min((i+1)*digest.BlockSize, int64(len(p)))
			if to > end {
				break
			}
			out[i] = digest.Block(p[i*digest.BlockSize : to])
		}
	}
	return out, nil
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
		x.give(b)
	}
}

// give puts a buffer back. It never blocks: there is room for all.
func (x *extractor) give(b *buffer) {
	if b.small {
		x.free[1] <- b
		return
	}
	x.free[0] <- b
}
