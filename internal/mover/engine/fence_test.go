package engine_test

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// sourceOf is a source of a point in an epoch; wait is called when it waits to connect again.
func (w *world) sourceOf(epoch uint64, point string, offer engine.Offer, base string, wait func()) *engine.Source {
	w.t.Helper()
	cfg := engine.SourceConfig{Replication: "shop/pg", Epoch: epoch, Point: point, Base: base}
	parts := engine.SourceParts{
		Dial: w.dial, Software: "test", Log: quiet(), Now: time.Now, Offer: offer,
		Wait: func(ctx context.Context, _ time.Duration) error {
			if wait != nil {
				wait()
			}
			return ctx.Err()
		},
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

// Whatever a target holds, half a delta of any kind, a point, a point that waits to be applied, a mixture, data of its
// own, or nothing but the memory of a newer source, a source of an older epoch is refused, before and after a restart,
// and changes not a byte.
func TestAStaleSourceIsRefusedByEveryTarget(t *testing.T) {
	const newer = testEpoch + 1
	// left brings the target into a state; the world's epoch is what the target is configured with.
	for name, left := range map[string]func(w *world){
		"configured with a newer epoch": func(w *world) { w.epoch = newer; w.boot() },
		"a newer source said hello": func(w *world) {
			w.boot()
			w.epoch = newer
			w.interruptAt("new", 1)
		},
		"half a first copy of a newer source": func(w *world) {
			w.boot()
			w.epoch = newer
			w.interrupt("new", 1<<20)
		},
		"a point of a newer source": func(w *world) {
			w.boot()
			w.epoch = newer
			w.sync("new")
		},
		"half a delta of a newer source": func(w *world) {
			w.boot()
			w.sync("p1")
			w.epoch = newer
			w.interrupt("new", 1<<20)
		},
		"a point that waits to be applied": func(w *world) {
			w.boot()
			w.sync("p1")
			w.epoch = newer
			w.machine.FailWith(func(op, name string) error {
				if op == "write" && name == "data" {
					return syscall.EIO
				}
				return nil
			})
			if r := w.newSource("new").Run(context.Background()); r.Done {
				w.t.Fatal("it was applied")
			}
		},
		"a mixture of two first copies": func(w *world) {
			w.boot()
			w.interrupt("p1", 1<<20)
			w.epoch = newer
			w.interrupt("new", 1<<20)
		},
		"data of its own": func(w *world) {
			w.machine = w.instant["p1"].Clone(4)
			w.holds = engine.HoldsData
			w.epoch = newer
			w.boot()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, group)
			w.write("data", 0, 2<<20, 1)
			w.write("log", 0, 1<<20, 2)
			w.cut("p1")
			w.write("data", 1<<20, 2<<20, 3)
			w.cut("new")
			left(w)
			waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
			for _, restart := range []bool{false, true} {
				if restart {
					w.machine.FailWith(nil)
					w.down()
					w.machine = w.machine.Restart()
					w.epoch = testEpoch // the configuration does not know yet
					if name == "configured with a newer epoch" || name == "data of its own" {
						w.epoch = newer
					}
					w.boot()
				}
				before, state := w.machine.Ops(), w.target.State()
				if state.Epoch != newer {
					t.Errorf("the target has epoch %d", state.Epoch)
				}
				for _, point := range []string{"p1", "new"} {
					for _, listed := range []bool{false, true} {
						var offer engine.Offer
						base := ""
						if listed {
							base = "p1"
							for _, m := range w.members {
								offer.Changes = append(offer.Changes, change.List{Size: m.size})
							}
						}
						r := w.sourceOf(testEpoch, point, offer, base, nil).Run(context.Background())
						if r.Kind != engine.KindStaleEpoch || r.ExitCode() != engine.ExitRefused || r.Attempts != 1 {
							t.Errorf("a stale source of %s, listed %v, got %+v", point, listed, r)
						}
					}
				}
				if n := w.machine.Ops() - before; n != 0 {
					t.Errorf("stale sources caused %d changes", n)
				}
				if after := w.target.State(); after.Epoch != newer || fmt.Sprint(after.Committed) != fmt.Sprint(state.Committed) || after.Applied != state.Applied {
					t.Errorf("%+v became %+v", state, after)
				}
			}
			w.down()
		})
	}
}

// interruptAt takes the source away behind its nth frame.
func (w *world) interruptAt(point string, n int64) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		r, near, far := newRelay(client, server)
		r.toTarget.at, r.toTarget.fault = n, func(l *lane, frame []byte) bool {
			l.send(frame)
			// Wait for the answer: then the target has understood.
			for deadline := time.Now().Add(5 * time.Second); l.other.passed.Load() == 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			cancel()
			return false
		}
		r.start()
		return near, far
	}
	if r := w.newSource(point).Run(ctx); r.Done {
		w.t.Fatal("the session was not interrupted")
	}
	w.wrap = nil
}

// A source's link is cut at each of its frames. Before it connects again a newer source has been there: it said no
// more than hello, or brought a part, or committed. The older one is refused and what the newer one brought stays as
// it was: it goes on and ends with its point.
func TestASourceThatComesAgainStaleIsRefused(t *testing.T) {
	for _, listed := range []bool{false, true} {
		for meanwhile, until := range map[string]int64{"says hello": 1, "brings a part": 5, "commits": 0} {
			t.Run(fmt.Sprintf("the newer one %s/listed %v", meanwhile, listed), func(t *testing.T) {
				t.Parallel()
				base := scenesOfThree[0].set(t)
				base.cut("newer")
				offer, from := engine.Offer{}, ""
				if listed {
					offer, from = listOfThree(base), "p1"
				}
				for at := int64(1); at <= 12; at++ {
					w := base.fork(t, uint64(at))
					w.boot()
					cuts := 0
					wait := func() {
						cuts++
						w.wrap = nil
						w.epoch = testEpoch + 1
						if until > 0 {
							w.interruptAt("newer", until)
							return
						}
						w.sync("newer")
					}
					stale := w.sourceOf(testEpoch, "new", offer, from, wait)
					w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
						r, near, far := newRelay(client, server)
						r.toTarget.at, r.toTarget.fault = at, cutAfter
						r.start()
						return near, far
					}
					r := stale.Run(context.Background())
					w.wrap = nil
					if cuts > 0 && (r.Done || r.Kind != engine.KindStaleEpoch) {
						t.Errorf("cut at frame %d, the older source got %+v", at, r)
					}
					w.epoch = testEpoch + 1
					again := w.sync("newer")
					if until == 5 && cuts > 0 && again.Resumed != 1 {
						t.Errorf("cut at frame %d, the newer source lost what it had brought: %+v", at, again)
					}
					w.down()
					if t.Failed() || cuts == 0 {
						break
					}
				}
			})
		}
	}
}
