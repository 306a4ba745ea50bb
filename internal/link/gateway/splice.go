package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// userTimeout is how long sent bytes may stay unacknowledged before the connection is dead. With the keepalive below, a cut
	// link is seen within about 15 s whether or not bytes are under way.
	userTimeout = 15 * time.Second
	// stretch is how many bytes are copied between two looks at the other direction.
	stretch = 64 << 20
)

var keepalive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}

// tune makes the kernel notice a dead connection.
func tune(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("tune connection: it is a %T, not TCP", conn)
	}
	if err := tcp.SetKeepAliveConfig(keepalive); err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("tune connection: %w", err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("set user timeout: %w", err)
	}
	return nil
}

// splice passes bytes both ways until both directions have ended or one has failed, and closes both connections. Hello is what
// was read from the client already.
//
// A direction that ends is passed on as an end of that direction only: the other one goes on, for a receiver may
// still have its answer to send. Without an end a connection may be silent for ever; keepalive watches it.
func splice(client, backend net.Conn, hello []byte, halfClosed time.Duration) (in, out int64, err error) {
	defer func() { _ = client.Close() }()
	defer func() { _ = backend.Close() }()
	if _, err := backend.Write(hello); err != nil {
		return 0, 0, fmt.Errorf("send the ClientHello to the backend: %w", err)
	}
	in = int64(len(hello))
	var ended atomic.Bool
	there := make(chan error, 1)
	var sent int64
	go func() {
		var err error
		sent, err = pass(backend, client, &ended, halfClosed)
		there <- err
	}()
	out, back := pass(client, backend, &ended, halfClosed)
	forth := <-there
	return in + sent, out, errors.Join(back, forth)
}

// pass copies one direction until it ends, inside the kernel where the kernel can. If it fails it breaks both
// connections: the other direction has nobody to answer it any more.
func pass(to, from net.Conn, ended *atomic.Bool, halfClosed time.Duration) (total int64, err error) {
	defer func() {
		if err != nil {
			abort(to)
			abort(from)
			return
		}
		ended.Store(true)
		// The other direction may be waiting without a deadline: this wakes it, so that it sets one.
		_ = to.SetReadDeadline(time.Now())
		err = closeWrite(to)
	}()
	for woken := false; ; {
		n, err := io.CopyN(to, from, stretch)
		total += n
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if woken && n == 0 {
				return total, fmt.Errorf("silent for %s after the other direction had ended", halfClosed)
			}
			woken = true
		case err != nil:
			return total, err
		}
		if ended.Load() {
			if err := from.SetReadDeadline(time.Now().Add(halfClosed)); err != nil {
				return total, err
			}
		}
	}
}

// abort closes a connection so that its other end sees it broken and not ended: what failed on one side must not look
// whole on the other.
func abort(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

func closeWrite(conn net.Conn) error {
	err := conn.(*net.TCPConn).CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) || errors.Is(err, net.ErrClosed) {
		return nil // both directions were closed before
	}
	return err
}

// temporary tells whether accepting may work again later.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
