package transport

import (
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Beat is how often each side says something, a Pulse if nothing else.
	Beat = 5 * time.Second
	// Silence is after how much silence the other side is taken for gone.
	Silence = 6 * Beat
)

// patient gives up on a peer that is silent for too long; a slow one may take its time.
type patient struct {
	net.Conn
	silence time.Duration
}

// Patient makes each single read and write on conn fail after silence; 0 is Silence. It belongs beneath TLS, where one
// write of the layers above becomes many small ones.
func Patient(conn net.Conn, silence time.Duration) net.Conn {
	if silence == 0 {
		silence = Silence
	}
	return &patient{Conn: conn, silence: silence}
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.SetReadDeadline(time.Now().Add(p.silence))
	return p.Conn.Read(b)
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(p.silence))
	return p.Conn.Write(b)
}

// CloseWrite passes through to connections that can.
func (p *patient) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// limited is a connection whose writes keep to a rate.
type limited struct {
	net.Conn
	bucket *rate.Limiter
	once   sync.Once
	closed chan struct{}
}

// limitStep is how much is written at a time, so that a slow limit gives a smooth flow.
const limitStep = 16 << 10

// Limit keeps writes on conn to bytesPerSecond; 0 or less is no limit. It belongs beneath TLS and above Patient.
// Closing the connection ends a wait.
func Limit(conn net.Conn, bytesPerSecond int64) net.Conn {
	if bytesPerSecond <= 0 {
		return conn
	}
	return &limited{
		Conn:   conn,
		bucket: rate.NewLimiter(rate.Limit(bytesPerSecond), limitStep),
		closed: make(chan struct{}),
	}
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Conn.Close()
}

// Write waits for its share before each step.
func (l *limited) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(limitStep, len(p)-done)
		if err := l.wait(n); err != nil {
			return done, err
		}
		wrote, err := l.Conn.Write(p[done : done+n])
		done += wrote
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (l *limited) wait(n int) error {
	delay := l.bucket.ReserveN(time.Now(), n).Delay()
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.closed:
		return net.ErrClosed
	}
}
