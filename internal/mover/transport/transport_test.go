package transport_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// streams is a pair of streams over a pipe.
func streams(t *testing.T) (a, b *transport.Stream) {
	t.Helper()
	x, y := net.Pipe()
	ready := make(chan error, 1)
	go func() {
		var err error
		b, err = transport.NewStream(y, wire.OwnBanner("v1", "target"))
		ready <- err
	}()
	a, err := transport.NewStream(x, wire.OwnBanner("v1", "source"))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func TestMessagesArriveInOrder(t *testing.T) {
	a, b := streams(t)
	sent := []wire.Message{wire.Pulse{Text: "one"}, wire.Committed{Point: "two"}}
	go func() {
		for _, m := range sent {
			_, _ = a.Send(m)
		}
		_ = a.Flush()
	}()
	for _, want := range sent {
		f, err := b.Receive()
		if err != nil || f.Message != want || f.Wire < wire.HeaderSize {
			t.Fatalf("got %+v, %v", f.Message, err)
		}
	}
}

func TestWhatIsNoFrameEndsTheConnection(t *testing.T) {
	x, y := net.Pipe()
	go func() {
		_, _ = io.WriteString(x, wire.OwnBanner("v1", "source").String()+"\n"+"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_, _ = io.Copy(io.Discard, x)
	}()
	s, err := transport.NewStream(y, wire.OwnBanner("v1", "target"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Receive()
	var lost *transport.Lost
	if !errors.As(err, &lost) || !errors.Is(err, wire.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestWhatHasNoBannerIsNoPeer(t *testing.T) {
	for _, says := range []string{"SSH-2.0-OpenSSH_9\n", string(bytes.Repeat([]byte("x"), 1000))} {
		x, y := net.Pipe()
		go func() {
			_, _ = io.WriteString(x, says)
			_, _ = io.Copy(io.Discard, x)
		}()
		_, err := transport.NewStream(y, wire.OwnBanner("v1", "target"))
		var lost *transport.Lost
		if !errors.As(err, &lost) || !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%.10q: %v", says, err)
		}
		_, _ = x.Close(), y.Close()
	}
}

func TestASilentPeerIsGivenUp(t *testing.T) {
	x, y := net.Pipe()
	defer x.Close()
	conn := transport.Patient(y, 20*time.Millisecond)
	if _, err := conn.Read(make([]byte, 1)); !timeout(err) {
		t.Errorf("read: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !timeout(err) {
		t.Errorf("write: %v", err)
	}
}

func timeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
