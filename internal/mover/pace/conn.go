package pace

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// paced is a connection whose writes keep to a limiter.
type paced struct {
	net.Conn
	limiter *Limiter
	open    context.Context // ends with net.ErrClosed when the connection is closed
	end     context.CancelCauseFunc
	// deadline of writes, in nanoseconds since 1970; 0 is none. It counts for writes that begin after it was set.
	deadline atomic.Int64
}

// Conn makes writes on conn keep to the limiter. Closing it ends a wait at once. It belongs beneath TLS, so that what
// counts is what the link carries, and above whatever gives up on a peer that does not read.
func (l *Limiter) Conn(conn net.Conn) net.Conn {
	if l == nil || l.calendar.Unlimited() {
		return conn
	}
	p := &paced{Conn: conn, limiter: l}
	p.open, p.end = context.WithCancelCause(context.Background())
	return p
}

func (p *paced) Close() error {
	p.end(net.ErrClosed)
	return p.Conn.Close()
}

// CloseWrite passes through to connections that can.
func (p *paced) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

func (p *paced) SetDeadline(t time.Time) error {
	p.keep(t)
	return p.Conn.SetDeadline(t)
}

func (p *paced) SetWriteDeadline(t time.Time) error {
	p.keep(t)
	return p.Conn.SetWriteDeadline(t)
}

func (p *paced) keep(t time.Time) {
	if t.IsZero() {
		p.deadline.Store(0)
		return
	}
	p.deadline.Store(t.UnixNano())
}

// Write writes each part as soon as it may go, so that a slow rate gives a smooth flow.
func (p *paced) Write(b []byte) (int, error) {
	ctx := p.open
	if at := p.deadline.Load(); at != 0 {
		limited, cancel := context.WithDeadline(ctx, time.Unix(0, at))
		defer cancel()
		ctx = limited
	}
	done := 0
	for done < len(b) {
		n, err := p.limiter.take(ctx, len(b)-done)
		if errors.Is(err, context.DeadlineExceeded) {
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return done, err
		}
		wrote, err := p.Conn.Write(b[done : done+n])
		done += wrote
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
