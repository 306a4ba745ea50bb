package engine

import (
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// pipe is a connection with a goroutine for each direction, so that whoever runs the session never waits for the
// other side. Sending never blocks: how much may be queued is bounded by the protocol (window, lookahead).
type pipe struct {
	stream *transport.Stream
	// in delivers what arrives, in order; after the last message comes the error that ended it.
	in chan arrival

	mu      sync.Mutex
	queue   []outgoing
	counted traffic
	wake    chan struct{}

	quit    chan struct{} // closed: no one takes from in any more
	once    sync.Once
	readers sync.WaitGroup
	writers sync.WaitGroup
	broken  chan struct{} // closed when writing failed
	drained chan struct{} // closed when the writer has written all that was queued before finish
	finish  bool

	busy time.Duration // the writer has worked for so long; for what it calls only
}

type arrival struct {
	frame transport.Frame
	work  <-chan result // of a Data on a target: what became of its bytes
	err   error
}

// traffic is what left on a connection. What waited in the queue when it was cut never did.
type traffic struct {
	wire    int64 // bytes of frames
	payload int64 // of these, carried by Data
	data    int64 // the same bytes before compression
}

func (t *traffic) add(u traffic) {
	t.wire += u.wire
	t.payload += u.payload
	t.data += u.data
}

type outgoing struct {
	message wire.Message
	written func() // called once the message no longer needs its memory; may be nil
}

// newPipe takes over a stream. prepare, if any, starts work on a frame as soon as it is there.
func newPipe(stream *transport.Stream, depth int, prepare func(transport.Frame) <-chan result) *pipe {
	p := &pipe{
		stream: stream, in: make(chan arrival, depth), wake: make(chan struct{}, 1),
		quit: make(chan struct{}), broken: make(chan struct{}), drained: make(chan struct{}),
	}
	p.readers.Add(1)
	go p.receive(prepare)
	p.writers.Add(1)
	go p.write()
	return p
}

func (p *pipe) receive(prepare func(transport.Frame) <-chan result) {
	defer p.readers.Done()
	defer close(p.in)
	over := false
	for {
		f, err := p.stream.Receive()
		a := arrival{frame: f, err: err}
		if err == nil && prepare != nil && !over {
			a.work = prepare(f)
		}
		if over {
			f.Release()
		} else {
			select {
			case p.in <- a:
			case <-p.quit:
				a.release()
				over = true // read on until the peer closes, see Stream.EndWrite
			}
		}
		if err != nil {
			return
		}
	}
}

// release gives back what an arrival holds.
func (a *arrival) release() {
	if a.work != nil {
		r := <-a.work
		r.release()
	}
	a.frame.Release()
}

// send queues a message.
func (p *pipe) send(m wire.Message, written func()) {
	p.mu.Lock()
	p.queue = append(p.queue, outgoing{m, written})
	p.mu.Unlock()
	p.poke()
}

func (p *pipe) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) write() {
	defer p.writers.Done()
	defer close(p.drained)
	failed := false
	for {
		p.mu.Lock()
		queue := p.queue
		p.queue = nil
		finish := p.finish
		p.mu.Unlock()
		for _, o := range queue {
			if !failed && p.writeOne(o.message) != nil {
				failed = true
				close(p.broken)
			}
			if o.written != nil {
				o.written()
			}
		}
		if len(queue) > 0 {
			continue
		}
		began := time.Now()
		if !failed && p.stream.Flush() != nil {
			failed = true
			close(p.broken)
		}
		p.busy += time.Since(began)
		if finish {
			return
		}
		<-p.wake
	}
}

func (p *pipe) writeOne(m wire.Message) error {
	began := time.Now()
	n, err := p.stream.Send(m)
	p.busy += time.Since(began)
	if err != nil {
		return err
	}
	t := traffic{wire: int64(n)}
	if d, ok := m.(wire.Data); ok {
		t.payload, t.data = int64(len(d.Payload)), int64(d.Length)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counted.add(t)
	return nil
}

// traffic is what was sent so far.
func (p *pipe) traffic() traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counted
}

// leave ends the pipe. With patience, what is queued is sent and the peer given that long to read it and close;
// without, the connection ends at once. All goroutines have ended when it returns.
func (p *pipe) leave(patience time.Duration) {
	p.once.Do(func() { close(p.quit) })
	p.mu.Lock()
	p.finish = true
	p.mu.Unlock()
	p.poke()
	if patience > 0 {
		timer := time.AfterFunc(patience, func() { _ = p.stream.Close() })
		defer timer.Stop()
		<-p.drained
		p.stream.EndWrite()
	} else {
		_ = p.stream.Close()
	}
	// What nobody took holds memory and running work.
	for a := range p.in {
		a.release()
	}
	p.readers.Wait()
	_ = p.stream.Close()
	p.writers.Wait()
}
