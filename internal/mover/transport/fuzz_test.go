package transport_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// scripted is a connection whose peer says what it has to say and ends it.
type scripted struct{ in *bytes.Reader }

func (s scripted) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (s scripted) Close() error                     { return nil }
func (s scripted) LocalAddr() net.Addr              { return nil }
func (s scripted) RemoteAddr() net.Addr             { return nil }
func (s scripted) SetDeadline(time.Time) error      { return nil }
func (s scripted) SetReadDeadline(time.Time) error  { return nil }
func (s scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzStream lets a peer say anything from its first byte on: messages, then Lost, or no common protocol. What is
// given out stays as it was while it is held, whatever comes behind it.
func FuzzStream(f *testing.F) {
	// Conversations of version 1, as they were recorded.
	files, err := filepath.Glob(filepath.Join("..", "engine", "testdata", "v1", "*"))
	if err != nil || len(files) == 0 {
		f.Fatalf("nothing is on record, %v", err)
	}
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw[:min(len(raw), 40<<10)])
	}
	f.Add([]byte(wire.OwnBanner("v1", "source").String() + "\n"))
	f.Add(append([]byte(wire.OwnBanner("v1", "source").String()+"\n"), wire.Append(nil, wire.Data{
		Offset: 4096, Length: 4, More: true, Payload: []byte("abcd"),
	})...))
	f.Fuzz(func(t *testing.T, says []byte) {
		s, err := transport.NewStream(scripted{bytes.NewReader(says)}, wire.OwnBanner("test", "target"))
		var lost *transport.Lost
		var conflict *wire.VersionConflict
		if err != nil {
			if !errors.As(err, &lost) && !errors.As(err, &conflict) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if v := s.Version(); v < wire.Oldest || v > wire.Version {
			t.Fatalf("they speak version %d", v)
		}
		var held []transport.Frame
		var was [][]byte
		total := 0
		for {
			frame, err := s.Receive()
			if err != nil {
				if !errors.As(err, &lost) {
					t.Fatalf("an error of another kind: %v", err)
				}
				if !errors.Is(err, wire.ErrCorrupt) && !errors.Is(err, wire.ErrShort) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("lost by %v", err)
				}
				break
			}
			total += frame.Wire
			if d, ok := frame.Message.(wire.Data); ok {
				held, was = append(held, frame), append(was, bytes.Clone(d.Payload))
			}
		}
		if total > len(says) {
			t.Fatalf("%d bytes of frames in %d", total, len(says))
		}
		for i := range held {
			if !bytes.Equal(held[i].Message.(wire.Data).Payload, was[i]) {
				t.Fatalf("record %d changed while it was held", i)
			}
			held[i].Release()
			held[i].Release()
		}
	})
}
