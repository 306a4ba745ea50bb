package engine_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// frames counts the frames that leave on a connection, after the banner line, and spoils one of them.
type frames struct {
	net.Conn
	mu     sync.Mutex
	banner bool
	head   []byte // of the frame that is being written
	left   int    // bytes of it to come
	count  int
	at     int // the frame to spoil
	spoil  func(c *frames, p []byte, i int) (n int, err error)
}

func (c *frames) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, b := range p {
		switch {
		case !c.banner:
			c.banner = b == '\n'
			continue
		case c.left > 0:
			c.left--
		default:
			c.head = append(c.head, b)
			if len(c.head) == wire.HeaderSize {
				h, err := wire.ParseHeader(c.head)
				if err != nil {
					return 0, err
				}
				c.left, c.head = h.Length, c.head[:0]
				c.count++
			}
		}
		if c.spoil != nil && c.count == c.at && c.left == 0 && len(c.head) == 0 {
			spoil := c.spoil
			c.spoil = nil
			return spoil(c, p, i)
		}
	}
	return c.Conn.Write(p)
}

// cutBehind sends the frame and ends the connection.
func cutBehind(c *frames, p []byte, i int) (int, error) {
	_, _ = c.Conn.Write(p[:i+1])
	_ = c.Conn.Close()
	return 0, io.ErrClosedPipe
}

// cutInside sends the frame but for its last byte and ends the connection.
func cutInside(c *frames, p []byte, i int) (int, error) {
	_, _ = c.Conn.Write(p[:i])
	_ = c.Conn.Close()
	return 0, io.ErrClosedPipe
}

// flip changes the frame's last byte.
func flip(c *frames, p []byte, i int) (int, error) {
	q := append([]byte(nil), p...)
	q[i] ^= 0x40
	return c.Conn.Write(q)
}

// The link is cut behind and inside every frame, and a bit flipped in every frame, in both directions; the session
// ends with the new point each time, and nothing that was acknowledged is sent again.
func TestASpoiledFrameIsGoneOnFrom(t *testing.T) {
	for _, s := range stories[:2] {
		base := newWorld(t, group)
		s.past(base)
		base.cut("new")
		for _, fromSource := range []bool{true, false} {
			for name, spoil := range map[string]func(*frames, []byte, int) (int, error){"cut behind": cutBehind, "cut inside": cutInside, "flip": flip} {
				t.Run(fmt.Sprintf("%s/%s/source %v", s.name, name, fromSource), func(t *testing.T) {
					t.Parallel()
					for at, total := 1, 1; at <= total; at++ {
						w := base.fork(t, uint64(at))
						w.boot()
						var all []*frames
						w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
							f := &frames{at: at}
							if len(all) == 0 {
								f.spoil = spoil
							}
							all = append(all, f)
							if fromSource {
								f.Conn = client
								return f, server
							}
							f.Conn = server
							return client, f
						}
						r := w.sync("new")
						if all[0].spoil == nil && all[0].count >= at && r.Attempts < 2 && !r.Done {
							t.Errorf("frame %d was spoiled and nobody noticed", at)
						}
						total = max(total, all[0].count)
						w.down()
						if t.Failed() {
							t.Fatalf("frame %d of %d", at, total)
						}
					}
				})
			}
		}
	}
}

// What was sent before a cut and stored is not sent again: the whole transfer, over both connections, carries each
// byte once, but for what was on its way.
func TestResumeSendsNothingTwice(t *testing.T) {
	w := newWorld(t, []member{{"data", 96 << 20}})
	w.write("data", 0, 40<<20, 1)
	w.cut("p1")
	w.boot()
	first := true
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		if !first {
			return client, server
		}
		first = false
		return &cutting{Conn: client, left: 20 << 20}, server
	}
	r := w.sync("p1")
	if r.Resumed != 1 || r.Attempts != 2 {
		t.Errorf("attempts %d, resumed %d", r.Attempts, r.Resumed)
	}
	if twice := r.BytesData - 40<<20; twice < 0 || twice > 2<<20 {
		t.Errorf("%d bytes were sent twice", twice)
	}
	w.down()
}

func TestATargetThatRestartsGoesOnFromItsSpool(t *testing.T) {
	base := newWorld(t, []member{{"data", 96 << 20}})
	base.write("data", 0, 65536, 1)
	base.cut("p1")
	base.boot()
	base.sync("p1")
	base.down()
	base.write("data", 1<<20, 30<<20, 2)
	base.cut("p2")
	base.boot()
	base.interrupt("p2", 16<<20)
	base.down()
	base.boot()
	base.replicaIs("p1")
	r := base.sync("p2")
	if r.Resumed != 1 || r.BytesData > 18<<20 {
		t.Errorf("resumed %d, sent %d bytes of 30 MiB again", r.Resumed, r.BytesData)
	}
	base.down()
}

func TestAHalfDeltaOfAnotherInstantIsDropped(t *testing.T) {
	w := newWorld(t, group)
	w.cut("p1")
	w.boot()
	w.sync("p1")
	w.write("log", 0, 2<<20, 1)
	w.cut("p2")
	w.interrupt("p2", 1<<20)
	w.write("log", 65536, 10, 2)
	w.cut("p3")
	r := w.sync("p3")
	if r.Resumed != 0 || r.BytesChanged != 2<<20 {
		t.Errorf("%+v", r)
	}
	w.down()
}

func TestAHigherEpochFencesTheOlderOneOff(t *testing.T) {
	w := newWorld(t, group)
	w.write("log", 0, 100, 1)
	w.cut("p1")
	w.cut("late")
	w.boot()
	w.sync("p1")
	w.epoch = testEpoch + 1
	w.write("log", 0, 100, 2)
	w.cut("p2")
	w.sync("p2")
	w.epoch = testEpoch
	r := w.newSource("late").Run(context.Background())
	if r.Kind != engine.KindStaleEpoch || r.ExitCode() != engine.ExitRefused {
		t.Fatalf("a stale source got %+v", r)
	}
	w.down()
	w.boot() // with the older epoch in its configuration
	if got := w.target.State().Epoch; got != testEpoch+1 {
		t.Errorf("after a restart the target has epoch %d", got)
	}
	if r := w.newSource("late").Run(context.Background()); r.Kind != engine.KindStaleEpoch {
		t.Fatalf("after a restart a stale source got %+v", r)
	}
	w.replicaIs("p2")
	w.down()
}

// A source that lost its right in the middle of a session is refused when it comes again, and what it had brought is
// dropped.
func TestASourceThatBecomesStaleMidwayIsRefused(t *testing.T) {
	w := newWorld(t, group)
	w.cut("p1")
	w.boot()
	w.sync("p1")
	w.write("log", 0, 2<<20, 1)
	w.cut("old")
	w.cut("new")
	// The old source is held up behind its first records until the new one has been served.
	held, goOn := make(chan struct{}), make(chan struct{})
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		w.wrap = nil
		return &frames{Conn: client, at: 4, spoil: func(c *frames, p []byte, i int) (int, error) {
			close(held)
			<-goOn
			return c.Conn.Write(p)
		}}, server
	}
	old := make(chan engine.Report, 1)
	stale := w.newSource("old")
	go func() { old <- stale.Run(context.Background()) }()
	<-held
	w.epoch = testEpoch + 1
	w.sync("new")
	close(goOn)
	if r := <-old; r.Done || r.Kind != engine.KindStaleEpoch {
		t.Errorf("the old source got %+v", r)
	}
	if got := w.claim(); got != "new" {
		t.Errorf("the target claims %q", got)
	}
	w.down()
}

// A source whose connection died without a word comes again over a new one, which takes the session over.
func TestANewerConnectionTakesOver(t *testing.T) {
	w := newWorld(t, group)
	w.write("data", 0, 8<<20, 1)
	w.cut("p1")
	w.boot()
	held, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		w.wrap = nil
		return &frames{Conn: client, at: 6, spoil: func(*frames, []byte, int) (int, error) {
			close(held)
			<-over
			return 0, io.ErrClosedPipe
		}}, server
	}
	dead, cancel := context.WithCancel(context.Background())
	defer cancel()
	mute := w.newSource("p1")
	go mute.Run(dead)
	<-held
	r := w.sync("p1")
	if r.Resumed != 1 {
		t.Errorf("the newer connection did not go on where the older was: %+v", r)
	}
	cancel()
	w.down()
}

func TestAPeerWithoutACommonProtocolIsRefused(t *testing.T) {
	w := newWorld(t, group)
	w.cut("p1")
	w.boot()
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		go func() {
			// A target of another time.
			_, _ = io.WriteString(server, "lifeboat-mover protocol=9 oldest=7 software=v7.0.0 role=target\n")
			_, _ = io.Copy(io.Discard, server)
		}()
		idle, other := net.Pipe()
		_ = other.Close()
		return client, idle
	}
	r := w.newSource("p1").Run(context.Background())
	if r.Kind != engine.KindVersion || r.ExitCode() != engine.ExitRefused {
		t.Errorf("got %+v", r)
	}
	w.down()
}

// What the digests of the two sides cannot agree on is compared from the bytes up, by itself.
func TestAMapThatLiesIsFoundOut(t *testing.T) {
	w := newWorld(t, group)
	w.write("log", 0, 1<<20, 1)
	w.cut("p1")
	w.boot()
	w.sync("p1")
	w.down()
	// The map's bytes rot: a block digest in it is not what it was.
	names, err := w.machine.FS().Names()
	if err != nil {
		t.Fatal(err)
	}
	rotten := 0
	for _, name := range names {
		if len(name) < 4 || name[:4] != "map-" {
			continue
		}
		f, err := w.machine.FS().Open(name, false)
		if err != nil {
			t.Fatal(err)
		}
		size, _ := f.Size()
		if _, err := f.WriteAt([]byte("rot"), size-48*32); err != nil {
			t.Fatal(err)
		}
		rotten++
	}
	if rotten == 0 {
		t.Fatal("no map found")
	}
	w.boot()
	w.write("log", 0, 100, 2)
	w.write("data", 0, 100, 2)
	w.cut("p2")
	w.sync("p2")
	w.down()
}

func TestTheStateTellsHowFar(t *testing.T) {
	w := newWorld(t, []member{{"data", 128 << 20}})
	w.write("data", 0, 32<<20, 1)
	w.cut("p1")
	w.boot()
	held, goOn := make(chan struct{}), make(chan struct{})
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		return &frames{Conn: client, at: 20, spoil: func(c *frames, p []byte, i int) (int, error) {
			close(held)
			<-goOn
			return c.Conn.Write(p)
		}}, server
	}
	source := w.newSource("p1")
	done := make(chan engine.Report, 1)
	go func() { done <- source.Run(context.Background()) }()
	<-held
	waitFor(t, func() bool { return w.target.State().BytesDone > 8<<20 })
	st := w.target.State()
	if st.Phase != engine.PhaseReceiving || st.Point != "p1" || st.BytesTotal != 128<<20 || st.Percent <= 0 || st.Percent >= 100 || st.Tier != "full" || !st.Direct {
		t.Errorf("target: %+v", st)
	}
	st = source.State()
	if st.Phase != engine.PhaseTransferring || st.Percent <= 0 || st.Percent >= 100 || st.Tier != "full" || st.TierReason == "" {
		t.Errorf("source: %+v", st)
	}
	close(goOn)
	if r := <-done; !r.Done {
		t.Fatalf("%+v", r)
	}
	if st = source.State(); st.Phase != engine.PhaseDone || st.Report == nil || st.Percent != 100 {
		t.Errorf("source at its end: %+v", st)
	}
	w.down()
}

func waitFor(t *testing.T, until func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hung); !until(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came")
		}
	}
}

// A stale source that knocks while another's session runs is turned away without disturbing it.
func TestAStaleSourceDisturbsNobody(t *testing.T) {
	w := newWorld(t, group)
	w.write("data", 0, 8<<20, 1)
	w.cut("new")
	w.cut("old")
	w.boot()
	held, goOn := make(chan struct{}), make(chan struct{})
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		w.wrap = nil
		return &frames{Conn: client, at: 4, spoil: func(c *frames, p []byte, i int) (int, error) {
			close(held)
			<-goOn
			return c.Conn.Write(p)
		}}, server
	}
	done := make(chan engine.Report, 1)
	source := w.newSource("new")
	go func() { done <- source.Run(context.Background()) }()
	<-held
	w.epoch = testEpoch - 1
	if r := w.newSource("old").Run(context.Background()); r.Kind != engine.KindStaleEpoch {
		t.Errorf("the stale source got %+v", r)
	}
	close(goOn)
	if r := <-done; !r.Done || r.Attempts != 1 {
		t.Errorf("the session was disturbed: %+v", r)
	}
	w.down()
}
