package engine_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// relay stands between a source and a target and passes frames on, whole and one at a time, but for those it was told
// to do something to.
type relay struct {
	toTarget, toSource lane
}

// lane is one direction of a relay.
type lane struct {
	from, to net.Conn
	in       *bufio.Reader
	other    *lane
	passed   atomic.Int64 // frames
	// at is the frame that meets the fault, counted from 1; 0: none.
	at    int64
	fault fault
}

// fault does to a frame what a wire may do. It returns false when the connection is over.
type fault func(l *lane, frame []byte) bool

// newRelay takes the two ends of a pipe and returns the ends for source and target.
func newRelay(client, server net.Conn) (*relay, net.Conn, net.Conn) {
	near, far := net.Pipe()
	r := &relay{}
	r.toTarget.from, r.toTarget.to, r.toTarget.other = far, client, &r.toSource
	r.toSource.from, r.toSource.to, r.toSource.other = client, far, &r.toTarget
	return r, near, server
}

func (r *relay) start() {
	go r.toTarget.run()
	go r.toSource.run()
}

func (l *lane) run() {
	defer l.to.Close()
	defer l.from.Close()
	l.in = bufio.NewReaderSize(l.from, 64<<10)
	banner, err := l.in.ReadString('\n')
	if err != nil || !l.send([]byte(banner)) {
		return
	}
	for {
		frame, err := l.next()
		if err != nil {
			return
		}
		more := false
		if n := l.passed.Add(1); n == l.at {
			more = l.fault(l, frame)
		} else {
			more = l.send(frame)
		}
		if !more {
			return
		}
	}
}

func (l *lane) next() ([]byte, error) {
	head := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(l.in, head); err != nil {
		return nil, err
	}
	frame := append(head, make([]byte, binary.LittleEndian.Uint32(head[8:]))...)
	_, err := io.ReadFull(l.in, frame[wire.HeaderSize:])
	return frame, err
}

func (l *lane) send(p []byte) bool {
	_, err := l.to.Write(p)
	return err == nil
}

// The faults. Those of a link that a transport may show, and those that only a peer gone wrong can cause.

func cutBefore(*lane, []byte) bool { return false }

func cutWithin(l *lane, frame []byte) bool {
	l.send(frame[:len(frame)/2])
	return false
}

func cutAfter(l *lane, frame []byte) bool {
	l.send(frame)
	return false
}

// stall holds the frame, and so all behind it, until nothing moves the other way any more.
func stall(l *lane, frame []byte) bool {
	quiet, last := 0, l.other.passed.Load()
	for deadline := time.Now().Add(time.Second); quiet < 3 && time.Now().Before(deadline); quiet++ {
		time.Sleep(time.Millisecond)
		if n := l.other.passed.Load(); n != last {
			quiet, last = 0, n
		}
	}
	return l.send(frame)
}

func duplicate(l *lane, frame []byte) bool {
	if !l.send(frame) {
		return false
	}
	return l.send(frame)
}

// swap sends the next frame first, if one comes.
func swap(l *lane, frame []byte) bool {
	_ = l.from.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	next, err := l.next()
	_ = l.from.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return l.send(frame)
	case err != nil:
		return false
	}
	l.passed.Add(1)
	return l.send(next) && l.send(frame)
}

// corrupt flips a bit at a place of the frame. A receiver that now waits for more than will ever come is hung up on,
// as it would be by its own patience.
func corrupt(place func(frame []byte) int, bit int) fault {
	return func(l *lane, frame []byte) bool {
		frame[place(frame)] ^= 1 << bit
		for l.send(frame) {
			_ = l.from.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			var err error
			if frame, err = l.next(); err != nil {
				break
			}
		}
		return false
	}
}

// bitClasses are the places of a frame a flipped bit may have a meaning of its own.
var bitClasses = map[string]func([]byte) int{
	"magic":          func([]byte) int { return 0 },
	"version":        func([]byte) int { return 4 },
	"type":           func([]byte) int { return 5 },
	"reserved":       func([]byte) int { return 6 },
	"length":         func([]byte) int { return 8 },
	"length's top":   func([]byte) int { return 11 },
	"checksum":       func([]byte) int { return 12 },
	"first field":    func(f []byte) int { return min(wire.HeaderSize, len(f)-1) },
	"fields":         func(f []byte) int { return min(wire.HeaderSize+9, len(f)-1) },
	"digests":        func(f []byte) int { return min(wire.HeaderSize+30, len(f)-1) },
	"payload":        func(f []byte) int { return wire.HeaderSize + (len(f)-wire.HeaderSize)/2 - 1 },
	"payload's last": func(f []byte) int { return len(f) - 1 },
}
