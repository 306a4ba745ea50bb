package engine_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// longEnv makes the tests of histories and faults run for a while instead of a moment. Its value is a duration, such as
// 10m: each history test runs that long, and fault and crash tests try every case instead of a choice of them:
//
//	LIFEBOAT_TEST_LONG=10m go test -timeout 60m ./internal/mover/engine
const longEnv = "LIFEBOAT_TEST_LONG"

// long is how long a history test shall run; 0: a moment.
func long() time.Duration {
	d, _ := time.ParseDuration(os.Getenv(longEnv))
	return d
}

// wireFault is a fault by name, and what it may cost.
type wireFault struct {
	name string
	do   fault
	// honest says that a transport alone can do this: then the session ends with its point by itself, and what was
	// acknowledged is not sent again. What only a peer gone wrong can do may end the session, never the truth.
	honest bool
}

func wireFaults(at int64) []wireFault {
	out := []wireFault{
		{"cut before", cutBefore, true}, {"cut within", cutWithin, true}, {"cut behind", cutAfter, true},
		{"stall", stall, true}, {"duplicate", duplicate, false}, {"reorder", swap, false},
	}
	classes := make([]string, 0, len(bitClasses))
	for name := range bitClasses {
		classes = append(classes, name)
	}
	slices.Sort(classes)
	for i, name := range classes {
		for bit := range 8 {
			// Without patience, each frame gets a third of the classes, with one bit each; the frames take turns.
			if long() == 0 && ((i+int(at))%3 != 0 || bit != (i+int(at))%8) {
				continue
			}
			out = append(out, wireFault{fmt.Sprintf("%s bit %d", name, bit), corrupt(bitClasses[name], bit), true})
		}
	}
	return out
}

// Whatever a wire does to any frame of a session, in either direction: the replica is always one of the two instants,
// the one the target claims; nobody is told of a commit that is none; and the session ends with its point, by itself
// where the wire alone is to blame, else with an error that has a kind, and then with the next attempt.
func TestAnyFaultOfTheWireAtAnyFrame(t *testing.T) {
	for _, s := range scenes() {
		for _, toTarget := range []bool{true, false} {
			base := s.set(t)
			t.Run(fmt.Sprintf("%s/to target %v", s.name, toTarget), func(t *testing.T) {
				t.Parallel()
				frames := int64(1)
				for at := int64(1); at <= frames; at++ {
					for _, f := range wireFaults(at) {
						passed := faultOnce(t, base, s, f, toTarget, at)
						if t.Failed() {
							t.Fatalf("%s at frame %d of %d", f.name, at, frames)
						}
						frames = max(frames, passed)
					}
				}
				if frames < 4 {
					t.Errorf("only %d frames: this tests nothing", frames)
				}
			})
		}
	}
}

// faultOnce runs the session of "new" with a fault on its first connection. It returns how many frames passed there.
func faultOnce(t *testing.T, base *world, s scene, f wireFault, toTarget bool, at int64) int64 {
	t.Helper()
	w := base.fork(t, uint64(at))
	w.boot()
	defer w.down()
	var first *lane
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		r, near, far := newRelay(client, server)
		if first == nil {
			first = &r.toSource
			if toTarget {
				first = &r.toTarget
			}
			first.at, first.fault = at, f.do
		}
		r.start()
		return near, far
	}
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	r := s.source(w).Run(ctx)
	waitFor(t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
	got := w.claim()
	switch {
	case r.Done && got != "new":
		t.Errorf("%s at frame %d: the source was told that its point is committed, the target claims %q", f.name, at, got)
	case f.honest && !r.Done:
		t.Errorf("%s at frame %d: %s (%s)", f.name, at, r.Error, r.Kind)
	case f.honest && r.BytesResent != 0:
		t.Errorf("%s at frame %d: %d acknowledged bytes were sent again", f.name, at, r.BytesResent)
	case !r.Done && (r.Kind == "" || r.Kind == engine.KindCancelled || strings.TrimSpace(r.Error) == ""):
		t.Errorf("%s at frame %d: it ended with %q (%s)", f.name, at, r.Error, r.Kind)
	case got != "new" && s.old == "p0":
		w.replicaIs(s.old)
	case got != "new" && got != s.old:
		t.Errorf("%s at frame %d: the target claims %q", f.name, at, got)
	}
	if !r.Done && !t.Failed() {
		w.sync("new")
	}
	return first.passed.Load()
}
