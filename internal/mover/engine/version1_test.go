package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// Version 1 of the protocol, as the software of that time spoke it. testdata/v1 holds whole conversations, every byte
// from the banner on: NAME.source is what the source sent on a connection, NAME.target what the target answered. They
// were recorded once and are never written anew. The peer in this file knows version 1 from its own reading of the
// bytes; it uses nothing of package wire, which moves on.

// The messages of version 1 that the peer handles itself.
const (
	v1Hello          = 1
	v1Welcome        = 4
	v1SegmentDigests = 5
	v1Want           = 6
	v1BlockDigests   = 7
	v1Data           = 8
	v1Hole           = 9
	v1SegmentEnd     = 10
	v1Ack            = 11
	v1Close          = 12
	v1Committed      = 13
)

const (
	v1Block   = 64 << 10
	v1Segment = 64 << 20
)

// v1Frame is one frame, header and payload.
type v1Frame struct {
	kind byte
	raw  []byte
}

func (f v1Frame) payload() []byte { return f.raw[16:] }

func (f v1Frame) u16(at int) int   { return int(binary.LittleEndian.Uint16(f.payload()[at:])) }
func (f v1Frame) u32(at int) int   { return int(binary.LittleEndian.Uint32(f.payload()[at:])) }
func (f v1Frame) u64(at int) int64 { return int64(binary.LittleEndian.Uint64(f.payload()[at:])) }

// segment is the volume and segment a Want, BlockDigests or SegmentEnd is about.
func (f v1Frame) segment() [2]int { return [2]int{f.u16(0), f.u32(2)} }

// place is the volume and segment a Data or Hole lies in.
func (f v1Frame) place() [2]int {
	at := f.u64(2)
	if f.kind == v1Data {
		at = f.u64(8)
	}
	return [2]int{f.u16(0), int(at / v1Segment)}
}

// readV1 reads one frame and insists that it is one of version 1.
func readV1(r io.Reader) (v1Frame, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return v1Frame{}, err
	}
	if string(head[:4]) != "LBmv" || head[4] != 1 || head[6] != 0 || head[7] != 0 {
		return v1Frame{}, fmt.Errorf("the header % x is not of version 1", head)
	}
	raw := append(head, make([]byte, binary.LittleEndian.Uint32(head[8:]))...)
	if _, err := io.ReadFull(r, raw[16:]); err != nil {
		return v1Frame{}, err
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(raw[:12], table), table, raw[16:])
	if sum != binary.LittleEndian.Uint32(raw[12:]) {
		return v1Frame{}, fmt.Errorf("the checksum of a frame of type %d differs", raw[5])
	}
	return v1Frame{kind: raw[5], raw: raw}, nil
}

func makeV1(kind byte, payload []byte) []byte {
	raw := append([]byte("LBmv"), 1, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(raw[8:], uint32(len(payload)))
	raw = append(raw, payload...)
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(raw[:12], table), table, raw[16:])
	binary.LittleEndian.PutUint32(raw[12:], sum)
	return raw
}

// readBanner reads the line byte by byte: what follows belongs to frames.
func readBanner(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 256 {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("the banner has no end")
}

// recorded is one side of a recorded connection.
func recorded(t *testing.T, name string) (banner string, frames []v1Frame) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "v1", name))
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(raw)
	if banner, err = readBanner(r); err != nil {
		t.Fatal(err)
	}
	for r.Len() > 0 {
		f, err := readV1(r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		frames = append(frames, f)
	}
	return banner, frames
}

func only(frames []v1Frame, kinds ...byte) []v1Frame {
	return slices.DeleteFunc(slices.Clone(frames), func(f v1Frame) bool { return !slices.Contains(kinds, f.kind) })
}

// The group and its instants, as they were when the conversations were recorded.
var v1Group = []member{{"data", 64<<20 + 5*64<<10 + 777}, {"log", 200<<10 + 1}}

var v1Time = time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)

// v1Random and v1Text are bytes that never change: one kind does not compress, the other does.
func v1Random(n int, seed byte) []byte {
	var out []byte
	for i := 0; len(out) < n; i++ {
		sum := blake3.Sum256(fmt.Appendf(nil, "%d %d", seed, i))
		out = append(out, sum[:]...)
	}
	return out[:n]
}

func v1Text(n int, seed byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = 'a' + byte(i/37+i/4096)*seed%17
	}
	return out
}

func (w *world) put(name string, off int64, p []byte) {
	w.t.Helper()
	if _, err := w.volume(w.source, name).WriteAt(p, off); err != nil {
		w.t.Fatal(err)
	}
}

// v1World has the three instants cut.
func v1World(t *testing.T) *world {
	w := newWorld(t, v1Group)
	w.put("data", 0, v1Text(150<<10, 1))
	w.put("data", 64<<20-32<<10, v1Random(70<<10, 2))
	w.put("log", 100, v1Random(100, 3))
	w.cut("p1")
	w.put("data", 65536, v1Text(100<<10, 5))
	w.zero("data", 0, 65536)
	w.put("data", 64<<20+5*64<<10, v1Random(777, 6))
	w.put("log", 200<<10, []byte{7})
	w.cut("p2")
	w.put("data", 1<<20, v1Text(2<<20, 8))
	w.put("data", 20<<20, v1Random(64<<10, 9))
	w.put("data", 64<<20+100, v1Text(100, 10))
	w.put("log", 0, v1Text(100<<10, 11))
	w.cut("p3")
	return w
}

// A conversation brings point to a target that holds before, over one connection or several.
var v1Conversations = []struct {
	name          string
	before, point string
	connections   []string
}{
	{"full", "", "p1", []string{"full"}},
	{"digest", "p1", "p2", []string{"digest"}},
	{"resume", "p2", "p3", []string{"resume-1", "resume-2"}},
	{"first copy resumed", "", "p3", []string{"first-1", "first-2"}},
	{"already there", "p1", "p1", []string{"already"}},
}

// v1Session is the session that was recorded.
func v1Session(w *world, point string) engine.SourceConfig {
	cfg := engine.SourceConfig{Replication: "shop/pg", Epoch: testEpoch, Point: point, PointTime: v1Time}
	for _, m := range w.members {
		cfg.Volumes = append(cfg.Volumes, engine.SourceVolume{Name: m.name, Device: m.name})
	}
	return cfg
}

func (w *world) v1Source(point string, dial func(context.Context) (net.Conn, error)) *engine.Source {
	w.t.Helper()
	parts := engine.SourceParts{
		Dial: dial, Software: "test", Log: quiet(), Now: time.Now,
		Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}
	for _, m := range w.members {
		parts.Volumes = append(parts.Volumes, w.instant[point].Volume(m.name, m.size))
	}
	s, err := engine.NewSource(v1Session(w, point), parts)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// What a version 1 source sent, byte for byte, brings its point to a target of today, which answers what a version 1
// target did but for words meant for people.
func TestATargetServesAVersion1Source(t *testing.T) {
	for _, c := range v1Conversations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := v1World(t)
			w.boot()
			if c.before != "" {
				w.sync(c.before)
			}
			for i, name := range c.connections {
				_, want := recorded(t, name+".target")
				last := byte(v1Committed)
				switch {
				case i < len(c.connections)-1:
					last = 0
				case len(only(want, v1Committed)) == 0:
					last = v1Welcome
				}
				answers := w.playV1Source(name, last)
				if last == 0 {
					// What came before the cut is kept, if nobody takes the session over meanwhile.
					waitFor(t, func() bool {
						st := w.target.State()
						return st.Phase == engine.PhaseIdle && st.Message != ""
					})
				}
				compareAnswers(t, name, answers, want)
			}
			waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
			if got := w.claim(); got != c.point {
				t.Errorf("the target claims %q", got)
			}
			w.down()
		})
	}
}

// playV1Source sends a recorded source's bytes over a connection, waiting where a source must: for the Welcome, and
// for the block digests it asked for. It ends the connection once it has an answer of the last type, if any, and
// returns what the target answered.
func (w *world) playV1Source(name string, last byte) []v1Frame {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	conn, err := w.dial(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	banner, frames := recorded(w.t, name+".source")
	in := make(chan v1Frame, 1024)
	var failed error
	go func() {
		defer close(in)
		line, err := readBanner(conn)
		if err == nil && line[:len("lifeboat-mover protocol=")] != "lifeboat-mover protocol=" {
			err = fmt.Errorf("banner %q", line)
		}
		for err == nil {
			var f v1Frame
			if f, err = readV1(conn); err == nil {
				in <- f
			}
		}
		failed = err
	}()
	var answers []v1Frame
	await := func(what string, ok func(v1Frame) bool) {
		w.t.Helper()
		for !slices.ContainsFunc(answers, ok) {
			f, more := <-in
			if !more {
				w.t.Fatalf("%s: the target ended without %s: %v; it said\n%s", name, what, failed, dumpV1(answers))
			}
			answers = append(answers, f)
		}
	}
	send := func(p []byte) {
		w.t.Helper()
		if _, err := conn.Write(p); err != nil {
			w.t.Fatalf("%s: %v", name, err)
		}
	}
	send([]byte(banner + "\n"))
	wanted := map[[2]int]bool{}
	for i, f := range frames {
		if i == 1 {
			await("a Welcome", func(f v1Frame) bool { return f.kind == v1Welcome })
		}
		switch f.kind {
		case v1Want:
			wanted[f.segment()] = true
		case v1Data, v1Hole:
			if wanted[f.place()] {
				await("block digests", func(a v1Frame) bool { return a.kind == v1BlockDigests && a.segment() == f.place() })
			}
		}
		send(f.raw)
	}
	if last != 0 {
		await("its last answer", func(f v1Frame) bool { return f.kind == last })
	}
	_ = conn.Close()
	for f := range in {
		answers = append(answers, f)
	}
	return answers
}

// compareAnswers compares what does not depend on time: not Acks and Pulses, and not the reason in a Welcome.
func compareAnswers(t *testing.T, name string, got, want []v1Frame) {
	t.Helper()
	first := func(f v1Frame) []byte {
		if f.kind != v1Welcome {
			return f.raw[4:]
		}
		return f.raw[16 : 16+4+14+8] // tier, flags, start and window; then the reason
	}
	for _, kind := range []byte{v1Welcome, v1SegmentDigests, v1BlockDigests, v1Committed} {
		g, x := only(got, kind), only(want, kind)
		if !slices.EqualFunc(g, x, func(a, b v1Frame) bool { return bytes.Equal(first(a), first(b)) }) {
			t.Errorf("%s: of type %d the target sent\n%sinstead of\n%s", name, kind, dumpV1(g), dumpV1(x))
		}
	}
}

func dumpV1(frames []v1Frame) string {
	var out string
	for _, f := range frames {
		out += hex.Dump(f.raw[:min(len(f.raw), 200)]) + "\n"
	}
	return out
}

// A source of today brings its point to a target that answers what a version 1 target answered, and sends nothing but
// version 1, to the byte.
func TestASourceIsServedByAVersion1Target(t *testing.T) {
	for _, c := range v1Conversations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := v1World(t)
			peer := &v1Target{t: t, members: v1Group}
			for _, m := range v1Group {
				image := make([]byte, m.size)
				if c.before != "" {
					if _, err := w.instant[c.before].Volume(m.name, m.size).ReadAt(image, 0); err != nil {
						t.Fatal(err)
					}
				}
				peer.images = append(peer.images, image)
			}
			attempt := 0
			dial := func(context.Context) (net.Conn, error) {
				if attempt == len(c.connections) {
					return nil, errors.New("no more connections were recorded")
				}
				client, server := net.Pipe()
				name, resume := c.connections[attempt], ""
				if attempt+1 < len(c.connections) {
					resume = c.connections[attempt+1]
				}
				attempt++
				peer.wg.Go(func() { peer.serve(server, name, resume) })
				return client, nil
			}
			ctx, cancel := context.WithTimeout(context.Background(), hung)
			defer cancel()
			r := w.v1Source(c.point, dial).Run(ctx)
			peer.wg.Wait()
			if !r.Done || r.BytesResent != 0 || r.Attempts != len(c.connections) || r.Resumed != len(c.connections)-1 {
				t.Errorf("%+v", r)
			}
			for v, m := range v1Group {
				want := make([]byte, m.size)
				if _, err := w.instant[c.point].Volume(m.name, m.size).ReadAt(want, 0); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(peer.images[v], want) {
					t.Errorf("volume %s is not what was sent", m.name)
				}
			}
		})
	}
}
