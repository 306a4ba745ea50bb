package engine_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// The commit itself may fail to be recorded. Then it has not happened, the source is told, and once the disk is well
// the next session commits, with nothing restarted.
func TestACommitThatCannotBeRecordedIsMadeUpFor(t *testing.T) {
	for _, op := range []string{"create", "truncate", "write", "sync", "rename", "syncdir"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			w := protected(t)
			var arrived atomic.Bool
			w.machine.FailWith(func(o, name string) error {
				switch {
				case o == "sync" && strings.HasPrefix(name, "delta-"):
					arrived.Store(true)
				case arrived.Load() && o == op && (strings.HasPrefix(name, "state") || name == "."):
					return syscall.ENOSPC
				}
				return nil
			})
			r := w.newSource("new").Run(context.Background())
			if r.Done || r.Kind != engine.KindSpace {
				t.Errorf("the source got %+v", r)
			}
			waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
			if got := w.claim(); got != "p1" {
				t.Errorf("the target claims %q", got)
			}
			w.machine.FailWith(nil)
			w.sync("new")
			w.down()
		})
	}
}

// diskFault is an error of a disk at one of its operations, and for good until it is repaired.
type diskFault struct {
	name string
	err  error
}

var diskFaults = []diskFault{{"full", syscall.ENOSPC}, {"read-only", syscall.EROFS}, {"broken", syscall.EIO}}

// At each change a session makes, to the spool or to a replica, the disk turns full, read-only or broken, once or for
// good. The source is told or does not notice; the old point or the new one is claimed, and rightly, or it is said
// that it waits to be applied; and once the disk is well the next session ends with the new point, with nothing
// restarted or after a restart.
func TestADiskThatFailsAtAnyChange(t *testing.T) {
	for _, s := range scenes() {
		base := s.set(t)
		whole := base.fork(t, 1)
		whole.boot()
		before := whole.machine.Ops()
		if r := s.play(whole); !r.Done || r.Tier != s.tier {
			t.Fatalf("the session is %s (%s): %s", r.Tier, r.TierReason, r.Error)
		}
		changes := whole.machine.Ops() - before
		whole.down()
		for i, f := range diskFaults {
			for _, forGood := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/for good %v", s.name, f.name, forGood), func(t *testing.T) {
					t.Parallel()
					for n := 1; n <= changes; n++ {
						if long() == 0 && n%3 != i { // without patience, each fault meets a third of the changes
							continue
						}
						failOnce(t, base, s, f, n, forGood)
						if t.Failed() {
							t.Fatalf("at change %d of %d", n, changes)
						}
					}
				})
			}
		}
	}
}

func failOnce(t *testing.T, base *world, s scene, f diskFault, n int, forGood bool) {
	t.Helper()
	w := base.fork(t, uint64(n))
	w.boot()
	var seen atomic.Int32
	w.machine.FailWith(func(op, _ string) error {
		if op == "read" {
			return nil
		}
		if at := seen.Add(1); at == int32(n) || forGood && at > int32(n) {
			return f.err
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	r := s.source(w).Run(ctx)
	waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
	st := w.target.State()
	got := ""
	if st.Committed != nil {
		got = st.Committed.ID
	}
	switch {
	case r.Done && (got != "new" || !st.Applied):
		t.Errorf("the source was told of a commit, the target claims %q, applied %v", got, st.Applied)
	case !r.Done && r.Kind != engine.KindSpace && r.Kind != engine.KindVolume:
		t.Errorf("the session ended with %s (%s)", r.Error, r.Kind)
	case got != "new" && got != s.old && s.old != "p0":
		t.Errorf("the target claims %q", got)
	case got != "" && st.Applied:
		w.replicaIs(got)
	}
	w.machine.FailWith(nil)
	if n%2 == 0 {
		w.down()
		if n%4 == 0 {
			w.machine = w.machine.Restart()
		}
		w.boot()
		if now := w.claim(); got == "new" && now != "new" {
			t.Errorf("%s was claimed, after a restart it is %q", got, now)
		}
	}
	if r = s.play(w); !r.Done {
		t.Errorf("in the end: %s (%s)", r.Error, r.Kind)
	}
	if now := w.claim(); now != "new" {
		t.Errorf("in the end the target claims %q", now)
	}
	w.down()
}
