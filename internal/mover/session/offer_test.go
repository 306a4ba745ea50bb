package session_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// extents lists the blocks of a group for which is holds.
func extents(a instant, is func(v, block int) bool) [][]digest.Extent {
	out := make([][]digest.Extent, len(a))
	for v := range a {
		for i := range a[v] {
			if is(v, i) {
				at := int64(i) * digest.BlockSize
				out[v] = append(out[v], digest.Extent{Offset: at, Length: min(digest.BlockSize, members[v].Size-at)})
			}
		}
	}
	return out
}

// listed is a source with a complete list of what changed since before.
func listed(before, now instant) (*session.Source, wire.Hello) {
	h := hello("p1", 1)
	h.Base = "p0"
	s := session.NewSource(h)
	s.Offer(session.Offer{Changes: extents(now, func(v, i int) bool { return now[v][i] != before[v][i] })})
	return s, h
}

// knowing is a source that knows what was never written.
func knowing(now instant) (*session.Source, wire.Hello) {
	h := hello("p1", 1)
	h.Allocated = true
	s := session.NewSource(h)
	s.Offer(session.Offer{Allocated: extents(now, func(v, i int) bool { return now[v][i] != 0 })})
	return s, h
}

func TestWithAListOnlyWhatItNamesIsRead(t *testing.T) {
	rng := chance(21)
	s, now := past(rng)
	source, h := listed(s.replica, now)
	d := newDuel(source, h, now, s)
	mustPlay(t, d, rng)
	if w := source.Welcome(); w.Tier != wire.TierCBT || d.scanned != 0 {
		t.Errorf("tier %s, %d segments scanned: %s", w.Tier, d.scanned, w.Reason)
	}
}

func TestWhatWasNeverWrittenIsNotReadAndArrivesAsHoles(t *testing.T) {
	now := newInstant(members)
	now[0][3], now[0][900], now[1][0] = 7, 8, 9
	source, h := knowing(now)
	s := newStore(members)
	for v := range s.replica {
		for i := range s.replica[v] {
			s.replica[v][i] = 666 // what the replica holds before a first copy counts for nothing
		}
	}
	mustPlay(t, newDuel(source, h, now, s), chance(22))
	if w, got := source.Welcome(), source.Totals(); w.Tier != wire.TierAllocated || !w.Direct || got.Sent != 3*digest.BlockSize {
		t.Errorf("tier %s, %+v", w.Tier, got)
	}
}

// The link is cut at many messages, the target loses what was not durable, and the next connection may have another
// offer than the first: whatever the tiers, the replica becomes the instant.
func TestTiersGoOnWhereOthersWereCut(t *testing.T) {
	base, now := past(chance(23))
	offers := map[string]func(first bool) (*session.Source, wire.Hello){
		"nothing": func(bool) (*session.Source, wire.Hello) { return session.NewSource(hello("p1", 1)), hello("p1", 1) },
		"a list": func(first bool) (*session.Source, wire.Hello) {
			if first {
				return knowing(now)
			}
			return listed(base.replica, now)
		},
	}
	for was, before := range offers {
		for is, after := range offers {
			for _, first := range []bool{true, false} {
				from := base
				if first {
					from = newStore(members)
				}
				for cut := 1; ; cut += 1 + cut/10 {
					rng := chance(uint64(cut))
					s := from.fork()
					source, h := before(first)
					d := newDuel(source, h, now, s)
					for d.sends < cut && !source.Done() {
						if err := d.step(rng); err != nil {
							t.Fatal(err)
						}
					}
					if source.Done() {
						break
					}
					if cut%2 == 0 {
						s.crash(rng)
					}
					source, h = after(first)
					if err := newDuel(source, h, now, s).play(rng); err != nil {
						t.Fatalf("%s, then %s, cut %d: %v", was, is, cut, err)
					}
					if !s.replica.equal(now) {
						t.Fatalf("%s, then %s, cut %d: the replica is not the instant", was, is, cut)
					}
				}
			}
		}
	}
}

func TestAListThatDoesNotFitIsNotUsedAndTheReasonSaysWhy(t *testing.T) {
	at := func(epoch uint64) *session.Point { return &session.Point{ID: "p0", Epoch: epoch} }
	list := hello("p1", 2)
	list.Base = "p0"
	other := list
	other.Base = "p9"
	noted := hello("p1", 2)
	noted.Note = "the driver's list ended early"
	for name, c := range map[string]struct {
		holds session.Holding
		hello wire.Hello
		tier  wire.Tier
		says  string
	}{
		"it fits":              {session.Holding{Epoch: 2, Committed: at(2)}, list, wire.TierCBT, "since recovery point p0"},
		"from another point":   {session.Holding{Epoch: 2, Committed: at(2)}, other, wire.TierDigest, "leads from p9"},
		"point of older epoch": {session.Holding{Epoch: 2, Committed: at(1)}, list, wire.TierDigest, "another epoch"},
		"epoch rises":          {session.Holding{Epoch: 1, Committed: at(1)}, list, wire.TierDigest, "another epoch"},
		"replica is mixed":     {session.Holding{Epoch: 2, Committed: at(2), Mixed: true}, list, wire.TierDigest, "half-way"},
		"there is none":        {session.Holding{Epoch: 2, Committed: at(2)}, noted, wire.TierDigest, "ended early"},
	} {
		c.holds.Replication, c.holds.Members = "r", members
		d, refusal := session.Decide(c.holds, c.hello)
		if refusal != nil || d.Welcome.Tier != c.tier || !strings.Contains(d.Welcome.Reason, c.says) {
			t.Errorf("%s: %+v %v", name, d.Welcome, refusal)
		}
	}
}

func TestVerifyingComparesEvenThePointThatIsThere(t *testing.T) {
	h := session.Holding{Replication: "r", Members: members, Epoch: 1, Committed: &session.Point{ID: "p1", Epoch: 1}}
	ask := hello("p1", 1)
	ask.Verify, ask.Base = true, "p1"
	if d, _ := session.Decide(h, ask); !d.Welcome.Verify || d.Welcome.Tier != wire.TierDigest || d.Welcome.Committed {
		t.Errorf("%+v", d.Welcome)
	}
	h.Half = &session.Half{Point: "p1", Epoch: 1, Tier: wire.TierDigest, Verify: true}
	if d, _ := session.Decide(h, ask); d.DropHalf || !d.Welcome.Verify || !d.Welcome.Resumed {
		t.Errorf("a half verification is not gone on with: %+v", d)
	}
	if d, _ := session.Decide(h, hello("p1", 1)); !d.DropHalf || !d.Welcome.Committed {
		t.Errorf("a half verification that nobody asks for any more is kept: %+v", d)
	}
}

// Pieces of blocks become records that carry no more than them, in order, with the digests of the whole blocks.
func TestPiecesOfBlocksAreCarriedExactly(t *testing.T) {
	const k = digest.BlockSize
	p := bytes.Repeat([]byte{1}, 3*k+100)
	copy(p[k:2*k], make([]byte, k)) // the second block is zeros
	digests := digest.Blocks(p)
	got := session.Records(0, 10*k, p, digests, []digest.Extent{
		{Offset: 10*k + 4096, Length: 4096}, {Offset: 10*k + 16384, Length: 8192}, // two in one block
		{Offset: 11*k + 4096, Length: 4096}, {Offset: 11*k + 32768, Length: 4096}, // two in zeros
		{Offset: 12*k - 4096, Length: 8192},       // from zeros into the third
		{Offset: 13*k - 4096, Length: 4096 + 100}, // to the odd end
	})
	want := []wire.Message{
		wire.Data{Offset: 10*k + 4096, Length: 4096, More: true, Digests: []digest.Digest{}},
		wire.Data{Offset: 10*k + 16384, Length: 8192, Digests: digests[:1]},
		wire.Hole{Offset: 11 * k, Length: k},
		wire.Data{Offset: 12 * k, Length: 4096, More: true, Digests: []digest.Digest{}},
		wire.Data{Offset: 13*k - 4096, Length: 4096 + 100, Digests: digests[2:4]},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records: %+v", len(got), got)
	}
	for i := range want {
		d, ok := got[i].(wire.Data)
		if !ok {
			if got[i] != want[i] {
				t.Errorf("record %d is %+v", i, got[i])
			}
			continue
		}
		w := want[i].(wire.Data)
		if d.Offset != w.Offset || d.Length != w.Length || d.More != w.More || !slices.Equal(d.Digests, w.Digests) ||
			!bytes.Equal(d.Payload, p[d.Offset-10*k:][:d.Length]) {
			t.Errorf("record %d is from %d of %d bytes, more %t, %d digests", i, d.Offset, d.Length, d.More, len(d.Digests))
		}
		if _, _, err := wire.Decode(wire.Append(nil, d)); err != nil {
			t.Errorf("record %d cannot travel: %v", i, err)
		}
	}
}
