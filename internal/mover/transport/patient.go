package transport

import (
	"net"
	"time"
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
