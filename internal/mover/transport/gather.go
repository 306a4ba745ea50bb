package transport

import (
	"bufio"
	"net"
	"sync"
)

// gatherSize is how many bytes go to or come from the kernel at a time: TLS makes records of 16 KiB, and a system call
// for each costs as much as encrypting it.
const gatherSize = 256 << 10

// gathering collects the small writes and reads of the layer above into large ones.
type gathering struct {
	net.Conn
	in *bufio.Reader

	mu  sync.Mutex
	out *bufio.Writer // nil: every write goes out at once
}

// Gather makes few large system calls of the many small ones of TLS, which belongs above it. Writes are gathered only
// once a Stream runs over the connection and sees them off; before, in a handshake, each one leaves at once.
func Gather(conn net.Conn) net.Conn {
	return &gathering{Conn: conn, in: bufio.NewReaderSize(conn, gatherSize)}
}

func (g *gathering) Read(p []byte) (int, error) { return g.in.Read(p) }

func (g *gathering) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.out == nil {
		return g.Conn.Write(p)
	}
	return g.out.Write(p)
}

// gather begins to collect writes. From here on whoever writes has to Flush.
func (g *gathering) gather() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.out == nil {
		g.out = bufio.NewWriterSize(g.Conn, gatherSize)
	}
}

// Flush sends what is gathered.
func (g *gathering) Flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.out == nil {
		return nil
	}
	return g.out.Flush()
}

// CloseWrite passes through to connections that can.
func (g *gathering) CloseWrite() error {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// gatheringBeneath finds the connection's Gather, through TLS.
func gatheringBeneath(conn net.Conn) *gathering {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	g, _ := conn.(*gathering)
	return g
}
