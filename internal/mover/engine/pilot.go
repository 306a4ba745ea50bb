package engine

import (
	"sync"
	"time"
)

// pilot decides whether records are compressed, by what it sees: compression serves a link that is slower than the
// codec, and slows a faster one down. It compares what really leaves per second in both ways, seldom and briefly, and
// not at all where one look at the writer tells: a writer that is always busy while records are compressed has a link
// to wait for, one that is idle while they are not would not be helped by fewer bytes. Nor would one that sends more
// than the codec could pack with all processors.
type pilot struct {
	mu       sync.Mutex
	compress bool
	epoch    uint64 // grows with each change; what was packed before it says nothing of the present way
	window   window
	trying   bool    // the present way is a trial; the other one brought usual
	usual    float64 // bytes per second
	codec    float64 // the fastest it was seen on one processor, in bytes per second; 0: not seen yet
	procs    int     // processors it may use
	hold     int     // windows before the next trial
	back     int     // windows to hold after the next trial that fails
}

// window is what left since a moment.
type window struct {
	began time.Time
	busy  time.Duration // of the writer, when it began
	bytes int64
}

const (
	// A window is over when it has seen this much in this long, or after windowLong whatever it has seen.
	windowBytes = 8 << 20
	windowShort = 40 * time.Millisecond
	windowLong  = 500 * time.Millisecond

	firstHold = 8
	maxHold   = 512
	// better is by how much a way must win to be taken.
	better = 1.05
	// A writer that works for this share of the time has nothing to spare, or waits for others.
	busyShare, idleShare = 0.9, 0.6
)

// newPilot begins compressed: on a slow link the first megabytes matter, on a fast one they are soon gone.
func newPilot() *pilot {
	return &pilot{compress: true, back: firstHold, procs: cores}
}

// packed tells how long the codec took for a record. The fastest counts: the others had to share a processor.
func (p *pilot) packed(bytes int, took time.Duration) {
	if took <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.codec = max(p.codec, float64(bytes)/took.Seconds())
}

// way is whether to compress what is packed now, and the epoch to say with it when it was sent.
func (p *pilot) way() (compress bool, epoch uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.compress, p.epoch
}

// sent tells that bytes, before compression, packed in an epoch, have been handed to the connection by now. busy is
// how long the writer has worked in all.
func (p *pilot) sent(epoch uint64, bytes int64, now time.Time, busy time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if epoch != p.epoch {
		return
	}
	w := &p.window
	if w.began.IsZero() {
		// What was in the queue before the first of this way is on the connection now.
		*w = window{began: now, busy: busy}
		return
	}
	w.bytes += bytes
	span := now.Sub(w.began)
	if span < windowLong && (w.bytes < windowBytes || span < windowShort) {
		return
	}
	rate := float64(w.bytes) / span.Seconds()
	share := float64(busy-w.busy) / float64(span)
	*w = window{began: now, busy: busy}
	p.decide(rate, share)
}

func (p *pilot) decide(rate, share float64) {
	if p.trying {
		p.trying = false
		if rate > better*p.usual {
			p.hold, p.back = firstHold, firstHold
			return
		}
		p.hold = p.back
		p.back = min(4*p.back, maxHold)
		p.turn()
		return
	}
	p.usual = rate
	switch {
	case p.compress && share > busyShare, !p.compress && share < idleShare:
	case !p.compress && p.codec > 0 && rate > p.codec*float64(p.procs):
	case p.hold > 0:
		p.hold--
	default:
		p.trying = true
		p.turn()
	}
}

func (p *pilot) turn() {
	p.compress = !p.compress
	p.epoch++
	p.window = window{}
}
