package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// maxHello is how many bytes a client may send before its ClientHello is complete. TLS allows 64 KiB and more; what
// Lifeboat's own movers and managers send is under 2 KiB.
const maxHello = 16 << 10

// Errors of readHello, one per thing that can be wrong with a client.
var (
	errNothing  = errors.New("the client closed the connection without a word")
	errCut      = errors.New("the client closed the connection in the middle of its ClientHello")
	errTooLarge = fmt.Errorf("the ClientHello is larger than %d bytes", maxHello)
	errTooSlow  = errors.New("the ClientHello did not come in time")
	errNoName   = errors.New("the ClientHello asks for no server name")
	errNotTLS   = errors.New("the client does not speak TLS")
)

// readHello reads a ClientHello and returns the server name it asks for with every byte that was read, which the backend must
// be given first. It sends nothing.
//
// The parsing is crypto/tls's own: a server handshake that stops as soon as it knows what the client said.
func readHello(conn net.Conn, timeout time.Duration) (serverName string, read []byte, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return "", nil, err
	}
	in := &recorder{from: conn}
	stop := errors.New("the ClientHello is complete")
	handshakeErr := tls.Server(in, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			serverName = hello.ServerName
			return nil, stop
		},
	}).Handshake()
	switch {
	case errors.Is(handshakeErr, stop) && serverName == "":
		return "", nil, errNoName
	case errors.Is(handshakeErr, stop):
		return serverName, in.seen.Bytes(), conn.SetReadDeadline(time.Time{})
	case in.err == nil:
		return "", nil, fmt.Errorf("%w: %w", errNotTLS, handshakeErr)
	case errors.Is(in.err, os.ErrDeadlineExceeded):
		return "", nil, errTooSlow
	case errors.Is(in.err, io.EOF) && in.seen.Len() == 0:
		return "", nil, errNothing
	case errors.Is(in.err, io.EOF):
		return "", nil, errCut
	}
	return "", nil, in.err
}

// recorder is a net.Conn that remembers what is read from it, up to maxHello, and swallows what is written.
type recorder struct {
	net.Conn // never used: every method a handshake needs is below
	from     io.Reader
	seen     bytes.Buffer
	err      error
}

func (r *recorder) Read(p []byte) (int, error) {
	left := maxHello - r.seen.Len()
	if left == 0 {
		r.err = errTooLarge
		return 0, r.err
	}
	n, err := r.from.Read(p[:min(len(p), left)])
	r.seen.Write(p[:n])
	if err != nil {
		r.err = err
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error)      { return len(p), nil }
func (r *recorder) Close() error                     { return nil }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
