package engine_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// world is a source with a history of instants, and a target on a machine that may crash. Connections are in memory.
type world struct {
	t       *testing.T
	members []member
	source  *crash.Machine            // as it is now
	instant map[string]*crash.Machine // as it was at each point
	epoch   uint64
	holds   engine.Content

	machine     *crash.Machine // the target's
	wrap        func(client, server net.Conn) (net.Conn, net.Conn)
	lossAllowed bool          // the target may report that a point is lost
	crashed     chan struct{} // a crash was ordered and has happened

	mu     sync.Mutex
	up     chan struct{} // closed while the target is up
	accept chan net.Conn
	gone   <-chan struct{} // closed when the target goes down
	target *engine.Target
	stop   func()
	wg     sync.WaitGroup
}

type member struct {
	name string
	size int64
}

// Three sizes that matter: more than a segment, less than a segment, an odd end.
var group = []member{{"data", 65<<20 + 8192}, {"log", 3<<20 + 777}}

// hung is how long anything may take before it counts as hung: machines differ, and the race detector makes all of it ten times slower.
const hung = 5 * time.Minute

const testEpoch = 3

func newWorld(t *testing.T, members []member) *world {
	w := &world{
		t: t, members: members, source: crash.New(1), instant: map[string]*crash.Machine{}, epoch: testEpoch,
		machine: crash.New(2), up: make(chan struct{}), crashed: make(chan struct{}, 1),
	}
	for _, m := range members {
		w.source.Volume(m.name, m.size)
		w.machine.Volume(m.name, m.size)
	}
	return w
}

// fork is another world with the same past.
func (w *world) fork(t *testing.T, seed uint64) *world {
	out := newWorld(t, w.members)
	out.source, out.machine = w.source.Clone(seed), w.machine.Clone(seed)
	out.epoch, out.holds = w.epoch, w.holds
	for p, m := range w.instant {
		out.instant[p] = m
	}
	return out
}

// write changes the source at a place.
func (w *world) write(name string, off int64, n int, seed uint64) {
	w.t.Helper()
	if _, err := w.volume(w.source, name).WriteAt(random(n, seed), off); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) zero(name string, off, n int64) {
	w.t.Helper()
	if err := w.volume(w.source, name).Zero(off, n); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) volume(m *crash.Machine, name string) volume.Volume {
	for _, x := range w.members {
		if x.name == name {
			return m.Volume(name, x.size)
		}
	}
	w.t.Fatalf("no volume %s", name)
	return nil
}

func random(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 3))
	p := make([]byte, 0, n+8)
	for len(p) < n {
		p = binary.LittleEndian.AppendUint64(p, rng.Uint64())
	}
	return p[:n]
}

// cut takes an instant of the source.
func (w *world) cut(point string) { w.instant[point] = w.source.Clone(9) }

func (w *world) targetConfig() engine.TargetConfig {
	cfg := engine.TargetConfig{Replication: "shop/pg", Epoch: w.epoch, ReplicaHolds: w.holds, Spool: "memory"}
	for _, m := range w.members {
		cfg.Volumes = append(cfg.Volumes, engine.TargetVolume{Name: m.name, Device: m.name, Size: m.size})
	}
	return cfg
}

// boot brings the target up, as often as it crashes on the way. Before it accepts a source, checkpoint looks at it.
func (w *world) boot(checkpoint ...func()) {
	w.t.Helper()
	for {
		err := w.tryBoot(checkpoint)
		if err == nil {
			return
		}
		if !w.machine.Crashed() {
			w.t.Fatalf("target does not start: %v", err)
		}
		w.drainCrash()
		w.machine = w.machine.Restart()
	}
}

func (w *world) drainCrash() {
	select {
	case <-w.crashed:
	default:
	}
}

func (w *world) tryBoot(checkpoint []func()) error {
	parts := engine.TargetParts{FS: w.machine.FS(), Software: "test", Log: w.alarm(), Now: time.Now, SyncEvery: 256 << 10}
	for _, m := range w.members {
		parts.Volumes = append(parts.Volumes, w.machine.Volume(m.name, m.size))
	}
	target, err := engine.NewTarget(w.targetConfig(), parts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := target.Recover(ctx); err != nil {
		cancel()
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
	for _, check := range checkpoint {
		check()
	}
	w.stop = func() { cancel(); w.wg.Wait() }
	w.serve(ctx, target)
	close(w.up)
	return nil
}

// serve accepts what dial sends.
func (w *world) serve(ctx context.Context, target *engine.Target) {
	accept := make(chan net.Conn)
	w.accept, w.gone = accept, ctx.Done()
	w.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case conn := <-accept:
				w.wg.Go(func() { _ = target.Handle(ctx, conn) })
			}
		}
	})
}

// down takes the target down, as SIGTERM would.
func (w *world) down() {
	w.mu.Lock()
	w.up = make(chan struct{})
	stop := w.stop
	w.mu.Unlock()
	stop()
}

func (w *world) dial(ctx context.Context) (net.Conn, error) {
	w.mu.Lock()
	up := w.up
	w.mu.Unlock()
	select {
	case <-up:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	accept, gone, wrap := w.accept, w.gone, w.wrap
	w.mu.Unlock()
	client, server := net.Pipe()
	server = mortal{server, w.machine}
	if wrap != nil {
		client, server = wrap(client, server)
	}
	select {
	case accept <- server:
		return client, nil
	case <-gone: // it went down meanwhile
		return nil, &transport.Lost{During: "connect", Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// claim checks what the target says it holds against what the source was at that instant. It returns the point.
func (w *world) claim() string {
	w.t.Helper()
	st := w.target.State()
	if st.Committed == nil {
		return ""
	}
	if !st.Applied {
		w.t.Fatalf("point %s is not applied although nothing runs", st.Committed.ID)
	}
	w.replicaIs(st.Committed.ID)
	return st.Committed.ID
}

// replicaIs checks all members of the group against one instant.
func (w *world) replicaIs(point string) {
	w.t.Helper()
	for _, m := range w.members {
		if at, same := crash.Same(w.machine, w.instant[point], m.name); !same {
			w.t.Fatalf("volume %s is not as it was at %s, from byte %d on", m.name, point, at)
		}
	}
}

func (w *world) newSource(point string) *engine.Source {
	w.t.Helper()
	cfg := engine.SourceConfig{Replication: "shop/pg", Epoch: w.epoch, Point: point}
	parts := engine.SourceParts{
		Dial: w.dial, Software: "test", Log: quiet(), Now: time.Now,
		Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}
	for _, m := range w.members {
		cfg.Volumes = append(cfg.Volumes, engine.SourceVolume{Name: m.name, Device: m.name})
		parts.Volumes = append(parts.Volumes, w.instant[point].Volume(m.name, m.size))
	}
	s, err := engine.NewSource(cfg, parts)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// run runs a session of an instant to its end; after each crash of the machine it checks what is left, and boots it.
func (w *world) run(point string, checkpoint ...func()) engine.Report {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	source := w.newSource(point)
	done := make(chan engine.Report, 1)
	go func() { done <- source.Run(ctx) }()
	for {
		select {
		case r := <-done:
			if !r.Done {
				w.t.Fatalf("session of %s failed: %s (%s)", point, r.Error, r.Kind)
			}
			return r
		case <-w.crashed:
			w.down()
			w.machine = w.machine.Restart()
			w.boot(checkpoint...)
		}
	}
}

// crashAfter orders a crash at the nth change of the target's disks from now.
func (w *world) crashAfter(n int) {
	w.machine.CrashAfter(n, func() { w.crashed <- struct{}{} })
}

// sync runs a session that is expected to be clean, and checks the result.
func (w *world) sync(point string) engine.Report {
	w.t.Helper()
	r := w.run(point)
	w.settled(point, r)
	return r
}

func (w *world) settled(point string, r engine.Report) {
	w.t.Helper()
	if got := w.claim(); got != point {
		w.t.Fatalf("the source was told that %s is committed, the target claims %q", point, got)
	}
	if r.BytesResent != 0 {
		w.t.Errorf("%d acknowledged bytes were sent again", r.BytesResent)
	}
	if r.BytesAcked > r.BytesData {
		w.t.Errorf("%d bytes acknowledged of %d sent", r.BytesAcked, r.BytesData)
	}
}

// interrupt begins a session and takes the source away for good once so many bytes are acknowledged.
func (w *world) interrupt(point string, acked int64) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		return &cutting{Conn: client, left: acked, cut: cancel}, server
	}
	if r := w.newSource(point).Run(ctx); r.Done {
		w.t.Fatal("the session was not interrupted")
	}
	w.wrap = nil
}

// interruptMaybe does the same with a session that may be done before.
func (w *world) interruptMaybe(point string, acked int64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		return &cutting{Conn: client, left: acked, cut: cancel}, server
	}
	w.newSource(point).Run(ctx)
	w.wrap = nil
}

// cutting is a connection that ends after so many bytes written.
type cutting struct {
	net.Conn
	left int64
	cut  func()
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		_ = c.Close()
		if c.cut != nil {
			c.cut()
		}
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// commitAndCrash crashes the machine right after a session's commit was recorded, before it is applied.
func (w *world) commitAndCrash(point string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	done := make(chan engine.Report, 1)
	source := w.newSource(point)
	// The first write to a replica comes after the commit.
	w.machine.FailWith(func(op, name string) error {
		for _, m := range w.members {
			if (op == "write" || op == "zero") && name == m.name {
				return crash.ErrCrashed
			}
		}
		return nil
	})
	go func() { done <- source.Run(ctx) }()
	for w.target.State().Committed == nil || w.target.State().Committed.ID != point {
		time.Sleep(time.Millisecond)
		if ctx.Err() != nil {
			w.t.Fatal("never committed")
		}
	}
	cancel()
	<-done
	w.down()
	w.machine = w.machine.Restart()
}

// mortal is a connection that says nothing more once its machine has crashed.
type mortal struct {
	net.Conn
	machine *crash.Machine
}

func (m mortal) Write(p []byte) (int, error) {
	if m.machine.Crashed() {
		_ = m.Close()
		return 0, net.ErrClosed
	}
	return m.Conn.Write(p)
}

// alarm is a log that fails the test when the target reports that something is lost.
func (w *world) alarm() *slog.Logger {
	if w.lossAllowed {
		return quiet()
	}
	return slog.New(alarm{slog.DiscardHandler, w.t})
}

type alarm struct {
	slog.Handler
	t *testing.T
}

func (a alarm) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

func (a alarm) Handle(_ context.Context, r slog.Record) error {
	var text strings.Builder
	text.WriteString(r.Message)
	r.Attrs(func(x slog.Attr) bool {
		text.WriteString(" " + x.String())
		return true
	})
	a.t.Error(text.String())
	return nil
}
