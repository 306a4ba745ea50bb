package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"lifeboat.dev/lifeboat/internal/link/identity"
)

// handshakes are TLS credentials that remember why the newest connection did not come about. gRPC reports a wrong certificate
// and a cut cable alike, as unavailable; an operator must not be told that a peer is away when it is the wrong one.
type handshakes struct {
	credentials.TransportCredentials
	last *atomic.Pointer[error]
}

func newHandshakes(config *tls.Config) handshakes {
	return handshakes{TransportCredentials: credentials.NewTLS(config), last: new(atomic.Pointer[error])}
}

// rejectedError: the other side ended the connection with a TLS alert, which it does when our certificate does not please it.
type rejectedError struct{ alert error }

func (e *rejectedError) Error() string { return fmt.Sprintf("TLS alert: %v", e.alert) }

// verdict is the trust failure of the newest attempt; nil if it failed for another reason or succeeded.
func (h handshakes) verdict() error {
	if err := h.last.Load(); err != nil {
		return *err
	}
	return nil
}

// note keeps err if it is about trust and forgets the former verdict otherwise.
func (h handshakes) note(err error) {
	// crypto/tls marks an alert from the other side by this operation of a net.OpError; the alert's own type is private.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		err = &rejectedError{alert: op.Err}
	} else if !identity.Refused(err) {
		h.last.Store(nil)
		return
	}
	h.last.Store(&err)
}

// dial opens the TCP connection below a handshake.
func (h handshakes) dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		h.note(err)
	}
	return conn, err
}

// ClientHandshake also waits for the server's first word. In TLS 1.3 the client's side of the handshake is over before the
// server has judged the client's certificate, and the server's no arrives as the first thing read; a client that writes
// meanwhile may find the connection closed and never read it. Our server speaks first, so waiting costs nothing.
func (h handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		h.note(err)
		return nil, nil, err
	}
	first, err := readFirst(ctx, conn)
	h.note(err)
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("wait for the server: %w", err)
	}
	return &begun{Conn: conn, first: first}, info, nil
}

// readFirst reads what the server says first; ctx bounds the wait.
func readFirst(ctx context.Context, conn net.Conn) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	buffer := make([]byte, 1024)
	n, err := conn.Read(buffer)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return buffer[:n], err
}

// Clone keeps the memory: gRPC clones credentials as it likes.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{TransportCredentials: h.TransportCredentials.Clone(), last: h.last}
}

// begun is a connection of which the first bytes have been read.
type begun struct {
	net.Conn
	first []byte // only the one reader of the connection touches it
}

func (c *begun) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}
