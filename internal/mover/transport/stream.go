package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"

	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Lost reports that the connection is of no more use: it ended, fell silent, or carried bytes that are no frames. A
// later one may do better.
type Lost struct {
	During string
	Err    error
}

func (l *Lost) Error() string { return l.During + ": " + l.Err.Error() }

// Unwrap is what the connection said.
func (l *Lost) Unwrap() error { return l.Err }

// Stream carries messages over a connection. One goroutine may receive while another sends.
type Stream struct {
	conn    net.Conn
	version int // that both sides speak
	in      *bufio.Reader
	out     *bufio.Writer
	scratch []byte
	beneath *gathering // nil: there is none
}

// NewStream begins with the banners: it sends its own and reads the peer's. How long the peer may be silent is up to
// the connection, see Patient.
func NewStream(conn net.Conn, own wire.Banner) (*Stream, error) {
	s := &Stream{conn: conn, in: bufio.NewReaderSize(conn, 256<<10), out: bufio.NewWriterSize(conn, 64<<10), beneath: gatheringBeneath(conn)}
	if s.beneath != nil {
		s.beneath.gather()
	}
	// Both sides speak first, at once: sending must not wait for the other's line.
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, own.String()+"\n")
		sent <- errors.Join(err, s.push())
	}()
	peer, err := s.readBanner()
	if err != nil {
		return nil, err
	}
	if err := <-sent; err != nil {
		return nil, &Lost{During: "send banner", Err: err}
	}
	if s.version, err = wire.Agree(own, peer); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Stream) readBanner() (wire.Banner, error) {
	var line []byte
	for len(line) < wire.MaxBanner {
		b, err := s.in.ReadByte()
		if err != nil {
			return wire.Banner{}, &Lost{During: "read banner", Err: err}
		}
		if b == '\n' {
			banner, err := wire.ParseBanner(string(line))
			if err != nil {
				return wire.Banner{}, &Lost{During: "read banner", Err: err}
			}
			return banner, nil
		}
		line = append(line, b)
	}
	return wire.Banner{}, &Lost{During: "read banner", Err: fmt.Errorf("%w: the line is too long", wire.ErrCorrupt)}
}

// Version is the protocol both sides speak.
func (s *Stream) Version() int { return s.version }

// push sends what a connection beneath has gathered.
func (s *Stream) push() error {
	if s.beneath == nil {
		return nil
	}
	return s.beneath.Flush()
}

// Close ends the connection; both a Send and a Receive under way fail.
func (s *Stream) Close() error { return s.conn.Close() }

// EndWrite says that nothing more will be sent. Closing at once could make the kernel drop what was sent last while
// the peer's own bytes are still unread here: read on until the peer closes, then Close.
func (s *Stream) EndWrite() {
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	_ = s.push()
}

// Send writes a message; Flush sees it off. It returns how many bytes of the connection the message takes.
func (s *Stream) Send(m wire.Message) (int, error) {
	head, body := wire.EncodeBare(s.scratch[:0], m, s.version)
	s.scratch = head
	if _, err := s.out.Write(head); err != nil {
		return 0, &Lost{During: "send", Err: err}
	}
	if len(body) > 0 {
		if _, err := s.out.Write(body); err != nil {
			return 0, &Lost{During: "send", Err: err}
		}
	}
	return len(head) + len(body), nil
}

// Flush sends what is buffered.
func (s *Stream) Flush() error {
	if err := errors.Join(s.out.Flush(), s.push()); err != nil {
		return &Lost{During: "send", Err: err}
	}
	return nil
}

// Frame is a received message and the memory its payload lies in. Release gives the memory back; what the message
// carries uncopied must not be used after it.
type Frame struct {
	Message wire.Message
	Wire    int  // bytes it took on the connection
	Bare    bool // of a Data: nothing but its digests tells whether its bytes are right
	memory  []byte
	from    *volume.Pool
}

// Release is safe to call twice.
func (f *Frame) Release() {
	if f.from != nil {
		f.from.Put(f.memory)
		f.from = nil
	}
}

// Payloads lie in memory that is used again: a session of many small records would otherwise make garbage of all it
// receives.
var (
	smallPayloads = volume.NewPool(72<<10+volume.Align, 64)
	largePayloads = volume.NewPool(wire.MaxPayload+volume.Align, 32)
)

// pooledFrom is from what size on a payload lies in such memory.
const pooledFrom = 2 << 10

// Rest gives back memory that only a busy process needs.
func Rest() {
	smallPayloads.Empty()
	largePayloads.Empty()
}

func payloadPool(length int) *volume.Pool {
	if length+volume.Align <= smallPayloads.Size() {
		return smallPayloads
	}
	return largePayloads
}

// Receive reads the next message. What a Data carries begins at volume.Align, so that it can go to a disk as it is.
func (s *Stream) Receive() (Frame, error) {
	f, err := s.receive()
	if err != nil {
		f.Release()
		return Frame{}, &Lost{During: "receive", Err: err}
	}
	return f, nil
}

func (s *Stream) receive() (Frame, error) {
	var head [wire.HeaderSize]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return Frame{}, err
	}
	h, err := wire.ParseHeader(head[:])
	if err != nil {
		return Frame{}, err
	}
	f := Frame{Wire: wire.HeaderSize + h.Length, Bare: h.Bare}
	var payload []byte
	if h.Length < pooledFrom {
		payload = make([]byte, h.Length)
	} else {
		front, err := s.in.Peek(wire.DataFront)
		if err != nil {
			return f, err
		}
		f.from = payloadPool(h.Length)
		f.memory = f.from.Get()
		skip := 0
		if h.Type == wire.TypeData {
			skip = (volume.Align - wire.CarriedAt(front)%volume.Align) % volume.Align
		}
		payload = f.memory[skip : skip+h.Length]
	}
	if err := s.fill(payload); err != nil {
		return f, err
	}
	f.Message, err = wire.Parse(h, payload)
	return f, err
}

// fill reads p whole: first what is buffered, the rest from the connection, without a copy on the way.
func (s *Stream) fill(p []byte) error {
	n := min(len(p), s.in.Buffered())
	if _, err := io.ReadFull(s.in, p[:n]); err != nil || n == len(p) {
		return err
	}
	if _, err := io.ReadFull(s.conn, p[n:]); err != nil {
		if n > 0 && errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}
