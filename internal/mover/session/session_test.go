package session_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

func chance(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 11)) }

// past is a target with a committed point, and a source that has moved on.
func past(rng *rand.Rand) (*store, instant) {
	s := newStore(members)
	now := newInstant(members)
	now.scribble(rng, 20)
	if err := newDuel(session.NewSource(hello("p0", 1)), hello("p0", 1), now, s).play(rng); err != nil {
		panic(err)
	}
	now = now.clone()
	now.scribble(rng, 20)
	return s, now
}

func (s *store) fork() *store {
	out := *s
	out.replica, out.base = s.replica.clone(), s.base.clone()
	out.log = slices.Clone(s.log)
	if s.half != nil {
		half := *s.half
		out.half = &half
	}
	return &out
}

func TestADeltaCarriesOnlyWhatDiffers(t *testing.T) {
	rng := chance(1)
	s, now := past(rng)
	differ := int64(0)
	for v := range now {
		for i := range now[v] {
			if now[v][i] != s.replica[v][i] {
				differ += min(digest.BlockSize, members[v].Size-int64(i)*digest.BlockSize)
			}
		}
	}
	source := session.NewSource(hello("p1", 1))
	mustPlay(t, newDuel(source, hello("p1", 1), now, s), rng)
	if got := source.Totals(); got.Changed != differ || got.Sent+got.Zero != differ || got.Acked != got.Sent {
		t.Errorf("%+v, %d bytes differ", got, differ)
	}
	if w := source.Welcome(); w.Tier != wire.TierDigest || w.Direct {
		t.Errorf("welcomed with %+v", w)
	}
}

// The link is cut at every message, in both kinds of session; the next connection goes on.
func TestACutAtEveryMessageIsGoneOnFrom(t *testing.T) {
	for _, first := range []bool{true, false} {
		base, now := past(chance(2))
		if first {
			base = newStore(members)
		}
		total := 0
		var whole session.Totals
		for cut := 0; cut == 0 || cut < total; cut++ {
			rng := chance(3)
			s := base.fork()
			source := session.NewSource(hello("p1", 1))
			d := newDuel(source, hello("p1", 1), now, s)
			for cut > 0 && d.sends < cut && !source.Done() {
				if err := d.step(rng); err != nil {
					t.Fatalf("cut %d: %v", cut, err)
				}
			}
			if cut == 0 {
				mustPlay(t, d, rng)
				total, whole = d.sends, source.Totals()
				continue
			}
			if cut%2 == 0 {
				s.crash(rng)
			}
			again := newDuel(source, hello("p1", 1), now, s)
			mustPlay(t, again, rng)
			if got := source.Totals(); got.Changed != whole.Changed || got.Zero != whole.Zero {
				t.Fatalf("cut %d: found %d and %d, without a cut %d and %d", cut, got.Changed, got.Zero, whole.Changed, whole.Zero)
			}
			if w := source.Welcome(); w.Start != (wire.Position{}) && !w.Resumed && !w.Committed {
				t.Fatalf("cut %d: %+v", cut, w)
			}
		}
		if total < 20 {
			t.Fatalf("only %d messages: this tests nothing", total)
		}
	}
}

// Each message is spoiled in each way a wire can spoil it: the session ends with an error or with the right replica,
// and never commits anything else.
func TestASpoiledWireNeverSpoilsTheReplica(t *testing.T) {
	base, now := past(chance(4))
	old := base.replica.clone()
	total := 0
	probe := newDuel(session.NewSource(hello("p1", 1)), hello("p1", 1), now, base.fork())
	mustPlay(t, probe, chance(5))
	total = probe.sends
	for way, spoil := range map[string]func(q *[][]byte, rng *rand.Rand){
		"corrupt":   func(q *[][]byte, rng *rand.Rand) { (*q)[0][rng.IntN(len((*q)[0]))] ^= 1 << rng.IntN(8) },
		"duplicate": func(q *[][]byte, _ *rand.Rand) { *q = append([][]byte{(*q)[0]}, *q...) },
		"lose":      func(q *[][]byte, _ *rand.Rand) { *q = (*q)[1:] },
		"reorder": func(q *[][]byte, _ *rand.Rand) {
			if len(*q) > 1 {
				(*q)[0], (*q)[1] = (*q)[1], (*q)[0]
			}
		},
	} {
		t.Run(way, func(t *testing.T) {
			noticed := 0
			for at := 1; at < total; at++ {
				for _, toTarget := range []bool{true, false} {
					rng := chance(uint64(at))
					s := base.fork()
					source := session.NewSource(hello("p1", 1))
					d := newDuel(source, hello("p1", 1), now, s)
					var err error
					for err == nil && d.sends < at && !source.Done() {
						err = d.step(rng)
					}
					q := &d.toSource
					if toTarget {
						q = &d.toTarget
					}
					if len(*q) > 0 {
						spoil(q, rng)
					}
					for err == nil && !source.Done() {
						err = d.step(rng)
					}
					if err != nil {
						noticed++
					}
					if s.committed.ID == "p0" && !s.replica.equal(old) || s.committed.ID == "p1" && !s.replica.equal(now) {
						t.Fatalf("message %d: the replica is no instant", at)
					}
					if err == nil && s.committed.ID != "p1" {
						t.Fatalf("message %d: the source believes that its point is committed", at)
					}
				}
			}
			if noticed == 0 {
				t.Error("nothing was ever noticed: this tests nothing")
			}
		})
	}
}

func TestASourceThatChangesIsNoInstant(t *testing.T) {
	rng := chance(6)
	s, now := past(rng)
	source := session.NewSource(hello("p1", 1))
	d := newDuel(source, hello("p1", 1), now, s)
	var err error
	for err == nil && !source.Done() {
		for v := range d.now {
			for i := range d.now[v] {
				d.now[v][i]++
			}
		}
		err = d.step(rng)
	}
	var changed *session.SourceChanged
	var integrity *session.Integrity
	if !errors.As(err, &changed) && !errors.As(err, &integrity) {
		t.Errorf("got %v", err)
	}
	if s.committed.ID != "p0" {
		t.Error("it was committed")
	}
}

func TestRefusals(t *testing.T) {
	other := slices.Clone(members)
	other[1].Name = "logs"
	bigger := slices.Clone(members)
	bigger[1].Size++
	for name, c := range map[string]struct {
		hello wire.Hello
		kind  wire.RefusalKind
		says  []string
	}{
		"another replication": {wire.Hello{Replication: "x", Epoch: 5, Members: members}, wire.RefusedReplication, []string{"x", "r"}},
		"a stale epoch":       {wire.Hello{Replication: "r", Epoch: 4, Members: bigger}, wire.RefusedEpoch, []string{"source has 4", "target has 5"}},
		"a member less":       {wire.Hello{Replication: "r", Epoch: 5, Members: members[:2]}, wire.RefusedMembers, []string{"[data log]", "[data log one]"}},
		"another member":      {wire.Hello{Replication: "r", Epoch: 5, Members: other}, wire.RefusedMembers, []string{"logs"}},
		"another size":        {wire.Hello{Replication: "r", Epoch: 5, Members: bigger}, wire.RefusedSizes, []string{"volume log", "327681", "327680"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(members)
			s.epoch = 5
			d := newDuel(session.NewSource(c.hello), c.hello, nil, s)
			err := d.play(chance(1))
			var r *session.Refusal
			if !errors.As(err, &r) || r.Kind != c.kind {
				t.Fatalf("got %v", err)
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
			if s.epoch != 5 || s.half != nil {
				t.Error("a refused source changed something")
			}
		})
	}
}

// The decision table: what a target holds -> how it is brought up to date. The last column is why that is safe.
func TestDecisions(t *testing.T) {
	p0 := &session.Point{ID: "p0", Epoch: 1}
	half := func(point string, epoch uint64, direct bool) *session.Half {
		return &session.Half{Point: point, Epoch: epoch, Direct: direct, Tier: wire.TierFull}
	}
	for name, c := range map[string]struct {
		h    session.Holding
		want string // tier, direct, flags
	}{
		"nothing at all: nothing to protect":                    {session.Holding{}, "full direct"},
		"a committed point is protected":                        {session.Holding{Committed: p0}, "digest"},
		"the point itself":                                      {session.Holding{Committed: &session.Point{ID: "p1", Epoch: 1}}, "digest committed"},
		"the point's name in another epoch is another point":    {session.Holding{Committed: &session.Point{ID: "p1"}}, "digest"},
		"data from before is protected":                         {session.Holding{Written: true}, "digest"},
		"the same half delta goes on":                           {session.Holding{Half: half("p1", 1, true)}, "full direct resumed"},
		"another instant's half direct copy: compare":           {session.Holding{Half: half("p0", 1, true)}, "digest direct drop"},
		"another instant's half delta: dropped, point kept":     {session.Holding{Half: half("p2", 1, false), Committed: p0}, "digest drop"},
		"an older epoch's half delta of the same name: dropped": {session.Holding{Half: half("p1", 0, false), Committed: p0}, "digest drop"},
		"a mixture is nothing to protect":                       {session.Holding{Mixed: true}, "digest direct"},
		"our own mixture, whatever was there before":            {session.Holding{Mixed: true, Written: true, Epoch: 1}, "digest direct"},
		"a later primary's data over an older mixture":          {session.Holding{Mixed: true, Written: true}, "digest"},
	} {
		t.Run(name, func(t *testing.T) {
			c.h.Replication, c.h.Members = "r", members
			d, refusal := session.Decide(c.h, hello("p1", 1))
			if refusal != nil {
				t.Fatal(refusal)
			}
			got := d.Welcome.Tier.String()
			for _, flag := range []struct {
				set  bool
				name string
			}{{d.Welcome.Direct, " direct"}, {d.Welcome.Committed, " committed"}, {d.Welcome.Resumed, " resumed"}, {d.DropHalf, " drop"}} {
				if flag.set {
					got += flag.name
				}
			}
			if got != c.want || d.Welcome.Reason == "" && !d.Welcome.Resumed {
				t.Errorf("decided %q (%s), expected %q", got, d.Welcome.Reason, c.want)
			}
			if d.Welcome.Direct && (c.h.Committed != nil || c.h.Written && !c.h.Mixed) {
				t.Error("it would write over what must be protected")
			}
			if d.Raise != (c.h.Epoch < 1) {
				t.Errorf("raise is %v", d.Raise)
			}
		})
	}
}

// Random histories: the source writes and cuts instants, sessions run with everything delayed as chance has it, links
// are cut, targets crash, epochs rise. After every event the target's replica is the instant it claims, and every
// session that ends tells the truth.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := chance(rapid.Uint64().Draw(rt, "seed"))
		s := newStore(members)
		s.written = rapid.Bool().Draw(rt, "written")
		now := newInstant(members)
		if s.written {
			s.replica.scribble(rng, 5)
		}
		claimed := s.replica.clone()
		epoch := uint64(1)
		for i := range rapid.IntRange(1, 6).Draw(rt, "sessions") {
			now = now.clone()
			now.scribble(rng, rng.IntN(10))
			if rng.IntN(4) == 0 {
				epoch++
			}
			h := hello(fmt.Sprintf("p%d", i), epoch)
			source := session.NewSource(h)
			for attempts := rng.IntN(4); ; attempts-- {
				d := newDuel(source, h, now, s)
				steps := 1 << 30
				if attempts > 0 {
					steps = rng.IntN(200)
				}
				for ; steps > 0 && !source.Done(); steps-- {
					if err := d.step(rng); err != nil {
						rt.Fatalf("session %s: %v", h.Point, err)
					}
				}
				if source.Done() || attempts == -1 {
					break
				}
				if rng.IntN(2) == 0 {
					s.crash(rng)
				}
				if (s.committed != nil || s.written && !s.mixed) && !s.replica.equal(claimed) && (s.committed == nil || s.committed.ID != h.Point) {
					rt.Fatalf("a session that was cut changed what is protected")
				}
				if rng.IntN(5) == 0 {
					break // this instant is never brought
				}
			}
			if source.Totals().Resent != 0 {
				rt.Fatalf("%d acknowledged bytes were sent again", source.Totals().Resent)
			}
			if source.Done() || s.committed != nil && s.committed.ID == h.Point {
				if !s.replica.equal(now) {
					rt.Fatalf("%s is claimed, and the replica is something else", h.Point)
				}
				claimed = now.clone()
				if _, refusal := session.Decide(s.holding(), hello("late", epoch-1)); refusal == nil || refusal.Kind != wire.RefusedEpoch {
					rt.Fatalf("a stale source is served")
				}
			}
		}
	})
}

// A segment may be compared ahead of the one being sent, never sent ahead of it.
func TestMoreLookaheadThanGrantedIsAViolation(t *testing.T) {
	big := []wire.Member{{Name: "v", Size: 40 * digest.SegmentSize}}
	target := session.NewTarget(wire.Hello{Members: big}, wire.TierFull, nil)
	var err error
	for s := 0; s < 40 && err == nil; s++ {
		_, err = target.Step(wire.Want{Segment: s})
	}
	var broke *session.Violation
	if !errors.As(err, &broke) {
		t.Errorf("got %v", err)
	}
}

// FuzzTarget gives a target any messages: it never panics, never stores out of order and never commits what was not
// proven.
func FuzzTarget(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, script []byte) {
		small := []wire.Member{{Name: "a", Size: 3 * digest.BlockSize}, {Name: "b", Size: 10}}
		target := session.NewTarget(wire.Hello{Point: "p", Members: small}, wire.TierFull, nil)
		var last wire.Position
		for len(script) >= 4 {
			op, v, x, y := script[0], int(script[1]%3), int(script[2]%5), int(script[3]%4)
			script = script[4:]
			var e session.Event
			switch op % 6 {
			case 0:
				e = wire.Data{Volume: v, Offset: int64(x) * digest.BlockSize, Length: max(1, y*digest.BlockSize), Digests: make([]digest.Digest, max(1, y)), Codec: wire.CodecZstd}
			case 1:
				e = wire.Hole{Volume: v, Offset: int64(x) * digest.BlockSize, Length: int64(y+1) * 10}
			case 2:
				e = wire.SegmentEnd{Volume: v, Segment: x % 2}
			case 3:
				e = wire.Want{Volume: v, Segment: x % 2}
			case 4:
				e = wire.Close{Digest: session.Closing("p", small, [][]digest.Digest{{digest.Zero}, {digest.Zero}})}
			case 5:
				e = session.Durable{Position: target.Cursor()}
			}
			actions, err := target.Step(e)
			if err != nil {
				return
			}
			for _, a := range actions {
				switch a := a.(type) {
				case session.Store:
					if !last.Before(a.After) {
						t.Fatalf("stored %+v after %+v", a.After, last)
					}
					last = a.After
				case session.Commit:
					if last != (wire.Position{Volume: 2}) {
						t.Fatalf("committed at %+v", last)
					}
				}
			}
		}
	})
}
