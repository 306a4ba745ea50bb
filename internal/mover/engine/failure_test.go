package engine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// protected is a world with a committed point and a source that has moved on, its target up.
func protected(t *testing.T) *world {
	w := newWorld(t, group)
	stories[1].past(w)
	w.cut("new")
	w.boot()
	return w
}

// failing makes the nth operation of a kind on a name fail, and all after it, until healed.
func failing(w *world, err error, op, prefix string, n int32) (heal func()) {
	var seen atomic.Int32
	w.machine.FailWith(func(o, name string) error {
		if o == op && strings.HasPrefix(name, prefix) && seen.Add(1) >= n {
			return err
		}
		return nil
	})
	return func() { w.machine.FailWith(nil) }
}

// Whatever fails at the target, the source learns what it was, the old point stands, and once it is repaired the next
// session succeeds without a restart.
func TestAFailureAtTheTargetIsToldAndSurvived(t *testing.T) {
	for name, c := range map[string]struct {
		err        error
		op, prefix string
		n          int32
		kind       engine.Kind
	}{
		"spool full":                    {syscall.ENOSPC, "write", "delta-", 4, engine.KindSpace},
		"spool full at once":            {syscall.ENOSPC, "create", "delta-", 1, engine.KindSpace},
		"spool's state cannot be saved": {syscall.ENOSPC, "write", "state", 1, engine.KindSpace},
		"spool cannot be written":       {syscall.EIO, "write", "delta-", 3, engine.KindVolume},
		"spool turned read-only":        {syscall.EROFS, "create", "", 1, engine.KindVolume},
		"spool cannot be synced":        {syscall.EIO, "sync", "delta-", 2, engine.KindVolume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := protected(t)
			heal := failing(w, c.err, c.op, c.prefix, c.n)
			r := w.newSource("new").Run(context.Background())
			if r.Done || r.Kind != c.kind || r.ExitCode() != engine.ExitFailed || !strings.Contains(r.Error, c.err.Error()) {
				t.Errorf("the source got %+v", r)
			}
			waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
			if got := w.claim(); got != "p1" {
				t.Errorf("the target claims %q", got)
			}
			if st := w.target.State(); !strings.Contains(st.Message, c.err.Error()) {
				t.Errorf("its state says %q", st.Message)
			}
			heal()
			w.sync("new")
			w.down()
		})
	}
}

// From the commit on the new point is the one that will be: a replica that cannot be written delays it, and the target
// says that it is not applied.
func TestAReplicaThatFailsAfterTheCommitIsAppliedLater(t *testing.T) {
	for _, op := range []string{"write", "zero", "sync"} {
		t.Run(op, func(t *testing.T) {
			w := protected(t)
			heal := failing(w, syscall.EIO, op, "data", 1)
			r := w.newSource("new").Run(context.Background())
			if r.Done || r.Kind != engine.KindVolume {
				t.Errorf("the source got %+v", r)
			}
			st := w.target.State()
			if st.Committed.ID != "new" || st.Applied {
				t.Errorf("the target holds %+v, applied %v", st.Committed, st.Applied)
			}
			heal()
			w.sync("new")
			w.down()
		})
	}
}

// A direct copy whose replica fails has no point to protect; it goes on when the replica is well.
func TestAFirstCopyWhoseReplicaFailsGoesOn(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t, group)
			stories[0].past(w)
			w.cut("p1")
			w.boot()
			heal := failing(w, syscall.EIO, op, "data", 1)
			if r := w.newSource("p1").Run(context.Background()); r.Done || r.Kind != engine.KindVolume {
				t.Errorf("the source got %+v", r)
			}
			heal()
			w.sync("p1")
			w.down()
		})
	}
}

func TestASourceThatCannotReadEndsAndTheTargetIsTold(t *testing.T) {
	w := protected(t)
	w.instant["new"].FailWith(func(op, name string) error {
		if op == "read" {
			return syscall.EIO
		}
		return nil
	})
	r := w.newSource("new").Run(context.Background())
	if r.Done || r.Kind != engine.KindVolume || r.Attempts != 1 || !strings.Contains(r.Error, "volume ") {
		t.Errorf("got %+v", r)
	}
	waitFor(t, func() bool {
		return strings.Contains(w.target.State().Message, syscall.EIO.Error()) && w.target.State().Phase == engine.PhaseIdle
	})
	if got := w.claim(); got != "p1" {
		t.Errorf("the target claims %q", got)
	}
	w.instant["new"].FailWith(nil)
	w.sync("new")
	w.down()
}

// A committed delta that rots in the spool before it is applied cannot be applied whole. Then nothing is claimed any
// more, and the next session makes the replica whole by comparing bytes.
func TestADeltaThatRotsIsNotClaimed(t *testing.T) {
	w := protected(t)
	w.commitAndCrash("new")
	names, err := w.machine.FS().Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "delta-") {
			f, err := w.machine.FS().Open(name, false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("rot"), 100<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.lossAllowed = true
	w.boot()
	if got := w.claim(); got != "" {
		t.Fatalf("the target claims %q", got)
	}
	if r := w.sync("new"); r.Tier != "digest" || !r.Direct {
		t.Errorf("repaired by %s (%s), direct %v", r.Tier, r.TierReason, r.Direct)
	}
	w.down()
}

// Random histories with everything real but disks and sockets: writes, instants, sessions, cuts, crashes, restarts,
// epochs. The replica is always an instant the source had, the one it claims, for the whole group.
func TestHistories(t *testing.T) {
	checks := 0
	rapid.Check(t, func(rt *rapid.T) {
		// Each is a whole story: the default number of them would take too long.
		if checks++; checks > 40 || testing.Short() && checks > 4 {
			return
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 5))
		w := newWorld(t, []member{{"data", 64<<20 + 200<<10}, {"log", 1<<20 + 5}})
		w.machine = w.machine.Clone(rng.Uint64())
		w.boot()
		claimed := ""
		for i := range rapid.IntRange(1, 5).Draw(rt, "instants") {
			for range rng.IntN(6) {
				m := w.members[rng.IntN(2)]
				n := min(m.size, 1+rng.Int64N(400<<10))
				at := rng.Int64N(m.size - n + 1)
				if rng.IntN(4) == 0 {
					w.zero(m.name, at, n)
					continue
				}
				w.write(m.name, at, int(n), rng.Uint64())
			}
			point := fmt.Sprintf("p%d", i)
			w.cut(point)
			if rng.IntN(5) == 0 {
				w.epoch++
			}
			switch rng.IntN(4) {
			case 0: // the source goes away in the middle, for good
				w.interruptMaybe(point, rng.Int64N(1<<20))
			case 1: // the target crashes in the middle
				w.crashAfter(1 + rng.IntN(60))
				r := w.run(point, func() { w.oneOf(claimed, point) })
				w.machine.CrashAfter(1<<40, nil)
				w.drainCrash()
				w.settled(point, r)
			case 2: // the link is cut again and again
				left := 3
				w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
					if left--; left < 0 {
						return client, server
					}
					return &cutting{Conn: client, left: rng.Int64N(1 << 20)}, server
				}
				r := w.run(point)
				w.wrap = nil
				w.settled(point, r)
			default:
				w.sync(point)
			}
			waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
			w.oneOf(claimed, point)
			claimed = w.claim()
			if rng.IntN(3) == 0 {
				w.down()
				if rng.IntN(2) == 0 {
					w.machine = w.machine.Restart()
				}
				w.boot(func() { w.oneOf(claimed) })
			}
		}
		w.down()
		if t.Failed() {
			rt.FailNow()
		}
	})
}

// oneOf checks that the target claims one of the points, rightly.
func (w *world) oneOf(points ...string) {
	w.t.Helper()
	got := w.claim()
	for _, p := range points {
		if got == p {
			return
		}
	}
	w.t.Fatalf("the target claims %q, not one of %q", got, points)
}

// A spool that is full of a half delta makes room for the next instant's by dropping it, although nothing can be
// written before.
func TestAFullSpoolMakesRoomForAnotherInstant(t *testing.T) {
	w := protected(t)
	w.interrupt("new", 200<<10)
	waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
	var freed atomic.Bool
	w.machine.FailWith(func(op, name string) error {
		switch {
		case op == "remove" && strings.HasPrefix(name, "delta-"):
			freed.Store(true)
		case op == "write" && !freed.Load():
			return syscall.ENOSPC
		}
		return nil
	})
	w.write("log", 0, 10, 77)
	w.cut("next")
	w.sync("next")
	w.down()
}

// A volume that holds something nobody knows of, as storage that does not zero does, is made equal all the same.
func TestAFirstCopyOntoGarbage(t *testing.T) {
	w := newWorld(t, group)
	for _, m := range w.members {
		if _, err := w.machine.Volume(m.name, m.size).WriteAt(random(3<<20, 9), 0); err != nil {
			t.Fatal(err)
		}
	}
	w.write("data", 1<<20, 100, 1)
	w.cut("p1")
	w.boot()
	w.sync("p1")
	w.down()
}

// Both sides have grown: the next session brings the new part, and still only what differs.
func TestVolumesThatGrow(t *testing.T) {
	w := protected(t)
	w.interrupt("new", 200<<10) // a half delta of the old size is in the spool
	w.down()
	grown := newWorld(t, []member{{"data", 130 << 20}, {"log", 4 << 20}})
	for _, m := range w.members {
		for _, x := range []struct{ from, to *crash.Machine }{{w.source, grown.source}, {w.machine, grown.machine}} {
			p := make([]byte, m.size)
			if _, err := x.from.Volume(m.name, m.size).ReadAt(p, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := grown.volume(x.to, m.name).WriteAt(p, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The spool stays as it is; only the volumes are new.
	grown.machine = grown.machine.WithFolderOf(w.machine)
	grown.write("data", 129<<20, 100, 5)
	grown.cut("grown")
	grown.boot()
	r := grown.sync("grown")
	if r.Tier != "digest" || r.Direct || r.BytesChanged > 1<<20 {
		t.Errorf("%+v", r)
	}
	grown.down()
}

// A link that flaps while the target reads its replica does not make it begin anew.
func TestAMapIsBuiltOnceHoweverOftenTheLinkFlaps(t *testing.T) {
	w := newWorld(t, group)
	stories[2].past(w)
	w.cut("new")
	w.boot()
	var maps atomic.Int32
	building, goOn := make(chan struct{}), make(chan struct{})
	w.machine.FailWith(func(op, name string) error {
		if op == "create" && strings.HasPrefix(name, "map-") && maps.Add(1) == 1 {
			close(building)
			<-goOn
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan engine.Report, 1)
	source := w.newSource("new")
	go func() { gone <- source.Run(ctx) }()
	<-building
	cancel()
	<-gone
	close(goOn)
	w.sync("new")
	if got := maps.Load(); got != 2 {
		t.Errorf("%d maps were made for two volumes", got)
	}
	w.down()
}
