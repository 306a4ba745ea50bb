package engine_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// A session is cut behind each of its frames, some of them in the middle of a block, and goes on with a source that
// knows more or less than the first: the list, a coarser list, or nothing. It ends with the point at the first attempt,
// and nobody breaks the protocol on the way.
func TestASessionGoesOnWithAnotherOffer(t *testing.T) {
	offers := map[string]func(w *world) *engine.Source{
		"the list": scenesOfThree[0].source,
		"a coarser list": func(w *world) *engine.Source {
			var o engine.Offer
			for _, m := range w.members {
				coarse, err := change.Normalize(m.size, threeChanged[m.name], 2*digest.BlockSize)
				if err != nil {
					t.Fatal(err)
				}
				o.Changes = append(o.Changes, change.List{Size: m.size, Extents: coarse})
			}
			return w.offering("p1", o)
		},
		"nothing": func(w *world) *engine.Source { return w.newSource("new") },
	}
	for first, begin := range offers {
		for second, goOn := range offers {
			t.Run(fmt.Sprintf("%s, then %s", first, second), func(t *testing.T) {
				t.Parallel()
				base := scenesOfThree[0].set(t)
				for at := int64(1); at <= 24; at++ {
					w := base.fork(t, uint64(at))
					w.boot()
					ctx, cancel := context.WithTimeout(context.Background(), hung)
					w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
						r, near, far := newRelay(client, server)
						r.toTarget.at, r.toTarget.fault = at, func(l *lane, frame []byte) bool {
							l.send(frame)
							cancel()
							return false
						}
						r.start()
						return near, far
					}
					done := begin(w).Run(ctx).Done
					cancel()
					w.wrap = nil
					waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
					r := goOn(w).Run(context.Background())
					if !r.Done || r.Attempts != 1 {
						t.Errorf("cut behind frame %d: %d attempts, tier %s (%s), error %q", at, r.Attempts, r.Tier, r.TierReason, r.Error)
					}
					if got := w.claim(); got != "new" {
						t.Errorf("cut behind frame %d: the target claims %q", at, got)
					}
					w.down()
					if done || t.Failed() {
						break
					}
				}
			})
		}
	}
}

// M-101: a session that is cut at six tenths of a first copy, or of a delta, leaves about four tenths to the one that goes on; what was
// written meanwhile goes with the next.
func TestASessionThatWasCutLeavesTheRest(t *testing.T) {
	const size = 40 << 20
	t.Run("first copy", func(t *testing.T) {
		w := newWorld(t, []member{{"data", size}})
		w.write("data", 0, size, 1)
		w.cut("new")
		w.boot()
		w.goesOnAtSixTenths("new", size)
		w.down()
	})
	t.Run("delta", func(t *testing.T) {
		w := newWorld(t, []member{{"data", 2 * size}})
		w.write("data", 0, 2*size, 1)
		w.cut("old")
		w.boot()
		w.sync("old")
		w.write("data", size/2, size, 2)
		w.cut("new")
		w.goesOnAtSixTenths("new", size)
		w.write("data", 3<<20, 1<<20, 3)
		w.cut("meanwhile")
		if r := w.sync("meanwhile"); r.BytesData != 1<<20 {
			t.Errorf("what was written meanwhile is 1 MiB, and %d bytes were sent", r.BytesData)
		}
		w.down()
	})
}

// goesOnAtSixTenths cuts a session that has so many bytes to send, and lets another go on.
func (w *world) goesOnAtSixTenths(point string, whole int64) {
	w.t.Helper()
	w.interrupt(point, whole*6/10)
	waitFor(w.t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
	r := w.sync(point)
	w.t.Logf("cut at %d of %d bytes, the session that went on sent %d", whole*6/10, whole, r.BytesData)
	// What was under way when the link was cut comes again: it had not been acknowledged.
	if rest := whole * 4 / 10; r.Resumed != 1 || r.BytesData < rest || r.BytesData > rest+whole/10 {
		w.t.Errorf("%d bytes were left to send, and %d were: %+v", rest, r.BytesData, r)
	}
}
