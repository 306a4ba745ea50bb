package volume

import "sync"

// Pool keeps buffers of one size to be used again, the last one given back first: its memory is warm, while memory that
// is new costs more to touch than to fill. Unlike sync.Pool it survives a garbage collection; Empty lets go of it.
type Pool struct {
	size, keep int

	mu   sync.Mutex
	free [][]byte
}

// NewPool makes a pool of buffers of size bytes, of which at most keep are kept while nobody uses them.
func NewPool(size, keep int) *Pool { return &Pool{size: size, keep: keep} }

// Size is the length of its buffers, in bytes.
func (p *Pool) Size() int { return p.size }

// Get returns a buffer as Buffer does, with whatever content.
func (p *Pool) Get() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return Buffer(p.size)
	}
	b := p.free[n-1]
	p.free[n-1] = nil
	p.free = p.free[:n-1]
	return b
}

// Put gives a buffer back; nobody may use it any more.
func (p *Pool) Put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < p.keep {
		p.free = append(p.free, b[:p.size])
	}
}

// Empty lets go of the buffers that nobody uses.
func (p *Pool) Empty() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = nil
}
