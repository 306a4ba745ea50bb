package engine_test

import (
	"fmt"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// story is a past, and a session that is then crashed at every change it makes.
type story struct {
	name string
	past func(w *world) // leaves the target down
	tier string
	// direct says that there is no point to protect before the first commit.
	direct bool
	// old is what the replica must still be as long as nothing new is committed; empty: anything.
	old string
}

var stories = []story{
	{
		name: "a first copy goes straight to the replica", tier: "full", direct: true,
		past: func(w *world) {
			w.write("data", 0, 300<<10, 1)
			w.write("data", 64<<20-65536, 200<<10, 2)
			w.write("log", 3<<20, 777, 3)
		},
	},
	{
		name: "a delta goes through the spool", tier: "digest", old: "p1",
		past: func(w *world) {
			w.write("data", 0, 300<<10, 1)
			w.write("data", 64<<20-65536, 200<<10, 2)
			w.write("log", 100, 100, 3)
			w.cut("p1")
			w.boot()
			w.sync("p1")
			w.down()
			w.write("data", 65536, 150<<10, 4)
			w.zero("data", 0, 65536)
			w.write("data", 65<<20, 8192, 5)
			w.write("log", 3<<20, 777, 6)
		},
	},
	{
		name: "a former primary keeps its data until the delta is whole", tier: "digest", old: "p0",
		past: func(w *world) {
			w.write("data", 0, 300<<10, 1)
			w.write("log", 100, 100, 3)
			w.cut("p0")
			w.machine = w.source.Clone(5)
			w.holds = engine.HoldsData
			w.write("data", 65536, 70<<10, 4)
			w.write("log", 3<<20, 777, 6)
		},
	},
	{
		name: "a first copy that was left half-way is taken up by another instant", tier: "digest", direct: true,
		past: func(w *world) {
			w.write("data", 0, 2<<20, 1)
			w.write("data", 64<<20, 1<<20, 2)
			w.write("log", 0, 3<<20, 3)
			w.cut("p1")
			w.boot()
			w.interrupt("p1", 3<<20/2)
			w.down()
			w.write("data", 65536, 70<<10, 4)
			w.write("log", 3<<20, 777, 6)
		},
	},
}

// Wherever a target crashes, it holds the old point or the new one when it comes up, never a mixture; the source goes
// on where it was, sends nothing again that was acknowledged, and ends with the new point.
func TestACrashAtAnyWriteLeavesOldOrNew(t *testing.T) {
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			base := newWorld(t, group)
			s.past(base)
			base.cut("new")
			whole := base.fork(t, 1)
			whole.boot()
			before := whole.machine.Ops()
			if r := whole.sync("new"); r.Tier != s.tier || r.Direct != s.direct {
				t.Fatalf("the session is %s (%s), direct %v", r.Tier, r.TierReason, r.Direct)
			}
			ops := whole.machine.Ops() - before
			whole.down()
			if ops < 20 {
				t.Fatalf("only %d changes: this tests nothing", ops)
			}
			step := 1
			if testing.Short() {
				step = 9
			}
			for n := 1; n <= ops+3; n += step {
				crashOnce(t, base, s, n)
				if t.Failed() {
					t.Fatalf("crashed at change %d of %d", n, ops)
				}
			}
		})
	}
}

func crashOnce(t *testing.T, base *world, s story, n int) {
	w := base.fork(t, uint64(n))
	w.boot()
	w.crashAfter(n)
	crashes := 0
	r := w.run("new", func() {
		crashes++
		switch got := w.claim(); {
		case got == "new":
		case s.old == "p0" && got == "":
			w.replicaIs(s.old)
		case got != s.old && s.old != "p0":
			t.Fatalf("after the crash the target claims %q", got)
		}
		if crashes == 1 {
			w.crashAfter(n/2 + 1) // and once more while it recovers or goes on
		}
	})
	w.settled("new", r)
	w.down()
}

// The state after a crash is looked at by a target that is started, but a crash may also come while it recovers.
func TestACrashWhileRecoveringChangesNothing(t *testing.T) {
	base := newWorld(t, group)
	stories[1].past(base)
	base.cut("new")
	step := 1
	if testing.Short() {
		step = 9
	}
	for n := 1; n < 40; n += step {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := base.fork(t, uint64(100+n))
			w.boot()
			w.commitAndCrash("new")
			w.crashAfter(n)
			w.boot()
			if got := w.claim(); got != "new" {
				t.Fatalf("the target claims %q, %s was committed", got, "new")
			}
			w.machine.CrashAfter(1<<30, nil)
			w.drainCrash()
			w.write("log", 5, 5, 9)
			w.cut("next")
			w.sync("next")
			w.down()
		})
	}
}
