package engine_test

import (
	"context"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// scene is a past, and the session of "new" that the tests of faults let loose upon it.
type scene struct {
	story
	members []member
	source  func(w *world) *engine.Source
}

// three is a group with more than a segment, less than a segment, and an odd end.
var three = []member{{"data", 65<<20 + 8192}, {"log", 3<<20 + 777}, {"wal", 200<<10 + 1}}

// Changes of a group of three that begin and end inside blocks, some of them twice in one block, one across segments,
// one that makes a block zero.
var threeChanged = map[string][]digest.Extent{
	"data": {{Offset: 4096, Length: 4096}, {Offset: 16384, Length: 8192}, {Offset: 3<<20 + 4096, Length: 65536}, {Offset: 64<<20 - 4096, Length: 8192}},
	"log":  {{Offset: 65536, Length: 65536}, {Offset: 3 << 20, Length: 777}},
	"wal":  {{Offset: 0, Length: 4096}, {Offset: 200 << 10, Length: 1}},
}

func pastOfThree(w *world) {
	w.write("data", 0, 300<<10, 1)
	w.write("data", 3<<20, 300<<10, 2)
	w.write("data", 64<<20-65536, 200<<10, 3)
	w.write("log", 0, 1<<20, 4)
	w.write("wal", 0, 100<<10, 5)
	w.cut("p1")
	w.boot()
	w.sync("p1")
	w.down()
	for i, name := range []string{"data", "log", "wal"} {
		for j, x := range threeChanged[name] {
			w.write(name, x.Offset, int(x.Length), uint64(10*i+j+20))
		}
	}
	w.zero("log", 65536, 65536)
}

// listOfThree is what a driver would say changed since p1.
func listOfThree(w *world) engine.Offer {
	var o engine.Offer
	for _, m := range w.members {
		o.Changes = append(o.Changes, change.List{Size: m.size, Extents: threeChanged[m.name]})
	}
	return o
}

// offering is a source of "new" that knows something of its volumes.
func (w *world) offering(base string, o engine.Offer) *engine.Source {
	w.t.Helper()
	cfg := engine.SourceConfig{Replication: "shop/pg", Epoch: w.epoch, Point: "new", Base: base}
	parts := engine.SourceParts{
		Dial: w.dial, Software: "test", Log: quiet(), Now: time.Now, Offer: o,
		Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}
	for _, m := range w.members {
		cfg.Volumes = append(cfg.Volumes, engine.SourceVolume{Name: m.name, Device: m.name})
		parts.Volumes = append(parts.Volumes, w.instant["new"].Volume(m.name, m.size))
	}
	s, err := engine.NewSource(cfg, parts)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// The scenes of a group of three: a delta from a list, and a first copy of what was ever written.
var scenesOfThree = []scene{
	{
		story:   story{name: "a listed delta of three", tier: "cbt", old: "p1", past: pastOfThree},
		members: three,
		source:  func(w *world) *engine.Source { return w.offering("p1", listOfThree(w)) },
	},
	{
		story: story{name: "a first copy of three, of what was written", tier: "allocated", direct: true, past: func(w *world) {
			w.write("data", 4096, 300<<10, 1)
			w.write("data", 64<<20-4096, 100<<10, 2)
			w.write("log", 3<<20, 777, 3)
			w.write("wal", 0, 5000, 4)
		}},
		members: three,
		source: func(w *world) *engine.Source {
			o := engine.Offer{}
			for _, m := range w.members {
				extents := map[string][]digest.Extent{
					"data": {{Offset: 4096, Length: 300 << 10}, {Offset: 64<<20 - 4096, Length: 102400}},
					"log":  {{Offset: 3 << 20, Length: 777}}, "wal": {{Length: 8192}},
				}[m.name]
				o.Allocated = append(o.Allocated, change.List{Size: m.size, Extents: extents})
			}
			return w.offering("", o)
		},
	},
}

// scenes are those of the stories whose source knows nothing, and those of the group of three. Without patience there
// is a choice of them.
func scenes() []scene {
	plain := stories
	if long() == 0 {
		plain = stories[:2]
	}
	var out []scene
	for _, s := range plain {
		out = append(out, scene{story: s, members: group, source: func(w *world) *engine.Source { return w.newSource("new") }})
	}
	return append(out, scenesOfThree...)
}

// set makes the scene's past.
func (s scene) set(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, s.members)
	s.past(w)
	w.cut("new")
	return w
}

// play runs the scene's session, booting the target after each crash.
func (s scene) play(w *world, checkpoint ...func()) engine.Report {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	source := s.source(w)
	done := make(chan engine.Report, 1)
	go func() { done <- source.Run(ctx) }()
	for {
		select {
		case r := <-done:
			return r
		case <-w.crashed:
			w.down()
			w.machine = w.machine.Restart()
			w.boot(checkpoint...)
		}
	}
}

// Wherever a target crashes in a delta that a list was made for, or in a first copy of what was ever written, all
// three volumes are at the old point or all at the new one when it comes up, to the byte, and again after a crash
// while it goes on; and the session ends with the new point.
func TestACrashAtAnyWriteLeavesAGroupOldOrNew(t *testing.T) {
	for _, s := range scenesOfThree {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			base := s.set(t)
			whole := base.fork(t, 1)
			whole.boot()
			before := whole.machine.Ops()
			if r := s.play(whole); !r.Done || r.Tier != s.tier || r.Direct != s.direct {
				t.Fatalf("the session is %s (%s), direct %v: %s", r.Tier, r.TierReason, r.Direct, r.Error)
			}
			changes := whole.machine.Ops() - before
			whole.down()
			if changes < 20 {
				t.Fatalf("only %d changes: this tests nothing", changes)
			}
			step := 1
			if testing.Short() {
				step = 9
			}
			seen := map[string]int{}
			for n := 1; n <= changes+3; n += step {
				w := base.fork(t, uint64(n))
				w.boot()
				w.crashAfter(n)
				crashes := 0
				r := s.play(w, func() {
					crashes++
					got := w.claim() // compares all members with it
					if got != "new" && got != s.old {
						t.Fatalf("after the crash the target claims %q", got)
					}
					seen[got]++
					if crashes == 1 {
						w.crashAfter(n/2 + 1)
					}
				})
				if !r.Done {
					t.Fatalf("the session failed: %s (%s)", r.Error, r.Kind)
				}
				w.settled("new", r)
				w.down()
				if t.Failed() {
					t.Fatalf("crashed at change %d of %d", n, changes)
				}
			}
			if seen["new"] == 0 || seen[s.old] == 0 {
				t.Errorf("after the crashes the target was at %v: this tests only one side", seen)
			}
		})
	}
}
