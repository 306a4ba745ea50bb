package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
)

// empty is a session that finds nothing to do: what one costs before its first byte.
func (b *bench) empty() stage {
	const size = 64 << 20
	return stage{needs: 2 * size, scenes: []scene{{
		name: "empty-session", about: "a session of " + binary(size) + " with an empty list of changes, between two processes that run already", pairs: 4 * b.pairs,
		rows: []row{{name: "empty-session/goal", ours: ours, goal: 1, figure: &figure{
			unit: "ms in the engine", goal: 50, of: func(u usage) float64 { return u.engine.Seconds() * 1000 },
		}}},
		cast: func(context.Context) ([]*contender, error) {
			source, list := b.path("source.img"), b.path("changes")
			if err := errors.Join(writeFile(source, size, random(1)), change.WriteFile(list, change.List{Size: size})); err != nil {
				return nil, err
			}
			m := b.newMovers(ours, source, b.path("replica.img"))
			return []*contender{{
				name: ours,
				base: func(ctx context.Context) error {
					if err := m.forget(ctx); err != nil {
						return err
					}
					_, _, err := m.session(ctx, ask{})
					return err
				},
				work: func(ctx context.Context, _ int) (usage, error) {
					u, _, err := m.session(ctx, ask{changes: list, tier: "cbt"})
					return u, err
				},
				check: func(context.Context) error { return sameFile(source, m.target) },
			}}, nil
		},
	}}}
}

// memory is how much either side holds for a volume far larger than memory, of which 1 % was ever written.
func (b *bench) memory() stage {
	source := ""
	st := stage{
		needs: 2 * b.memoryWritten,
		setUp: func(context.Context) error {
			source = b.path("source.img")
			return writeSparse(source, b.memorySize, scattered(b.memorySize, float64(b.memoryWritten)/float64(b.memorySize), 64<<10, 1<<20, 1), 1)
		},
	}
	st.scenes = []scene{{
		name: "memory", about: fmt.Sprintf("first copy of a sparse volume of %s with %s written", binary(b.memorySize), binary(b.memoryWritten)), pairs: 1,
		rows: []row{{name: "memory-" + binary(b.memorySize) + "/goal", ours: ours, goal: 1, figure: &figure{
			unit: "MiB in the larger side", goal: 256, of: func(u usage) float64 { return float64(u.side) / (1 << 20) },
		}}},
		cast: func(context.Context) ([]*contender, error) {
			m := b.newMovers(ours, source, b.path("replica.img"))
			return []*contender{m.fresh(ours, ask{allocated: true}, func(context.Context) error { return nil })}, nil
		},
	}}
	return st
}

// resume is a session whose link is cut half way: what was acknowledged is not sent again.
func (b *bench) resume() stage {
	size := min(b.size, 1<<30)
	return stage{needs: 3 * size, scenes: []scene{{
		name: "resume", about: "first copy of " + binary(size) + ", the link cut once after half of it", pairs: 1,
		rows: []row{{name: "resume-50pct/goal", ours: ours, goal: 1, figure: &figure{
			unit: "MiB sent twice", goal: batch >> 20, of: func(u usage) float64 { return float64(u.again) / (1 << 20) },
		}}},
		cast: func(ctx context.Context) ([]*contender, error) {
			source := b.path("source.img")
			if err := writeFile(source, size, random(1)); err != nil {
				return nil, err
			}
			m := b.newMovers(ours, source, b.path("replica.img"))
			c := m.fresh(ours, ask{}, func(context.Context) error { return sameFile(source, m.target) })
			c.work = func(ctx context.Context, _ int) (usage, error) { return m.cut(ctx, size/2) }
			return []*contender{c}, nil
		},
	}}}
}

// batch is what a target makes durable at a time (engine's syncEvery), and so what a cut may cost at most.
const batch = 64 << 20

// cut runs a session through a proxy that breaks the connection once, after so many bytes.
func (m *movers) cut(ctx context.Context, after int64) (usage, error) {
	p, err := newScissors(m.address, after)
	if err != nil {
		return usage{}, err
	}
	defer p.close()
	u, report, err := m.session(ctx, ask{through: p.address()})
	if err != nil {
		return usage{}, err
	}
	if report.Attempts < 2 || !p.cut.Load() {
		return usage{}, fmt.Errorf("the link was not cut: %d attempts", report.Attempts)
	}
	u.wire = noWire // it passed loopback twice
	u.again = report.BytesData - (report.BytesChanged - report.ZeroBytes)
	u.note += fmt.Sprintf(", %d attempts, the time holds the wait before the second", report.Attempts)
	return u, nil
}

// scissors pass connections on and break the first one once it has carried so many bytes towards the target.
type scissors struct {
	listener net.Listener
	target   string
	left     atomic.Int64
	cut      atomic.Bool
	running  sync.WaitGroup
}

func newScissors(target string, after int64) (*scissors, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("stand between the two sides: %w", err)
	}
	s := &scissors{listener: l, target: target}
	s.left.Store(after)
	s.running.Go(s.serve)
	return s, nil
}

func (s *scissors) address() string { return s.listener.Addr().String() }

func (s *scissors) close() {
	_ = s.listener.Close()
	s.running.Wait()
}

func (s *scissors) serve() {
	for {
		near, err := s.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.DialTimeout("tcp", s.target, time.Second)
		if err != nil {
			_ = near.Close()
			continue
		}
		s.running.Go(func() { s.pass(near, far) })
	}
}

func (s *scissors) pass(near, far net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(near, far)
		_ = near.Close()
	})
	_, _ = io.Copy(far, counted{near, s})
	_ = far.Close()
	both.Wait()
}

// counted reads until the scissors cut.
type counted struct {
	net.Conn
	scissors *scissors
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.scissors.left.Add(-int64(n)) < 0 && !c.scissors.cut.Swap(true) {
		return 0, net.ErrClosed
	}
	return n, err
}
