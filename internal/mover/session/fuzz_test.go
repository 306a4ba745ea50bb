package session_test

import (
	"errors"
	"slices"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// script yields what a fuzzer wants next; zeros when it has nothing more to say.
type script struct{ b []byte }

func (s *script) over() bool { return len(s.b) == 0 }

// pick is a number below n.
func (s *script) pick(n int) int {
	if len(s.b) == 0 {
		return 0
	}
	x := int(s.b[0])
	s.b = s.b[1:]
	return x % n
}

// fuzzed is a group with a volume of two segments, one of a few blocks with an odd end, and one of a few bytes.
var fuzzed = []wire.Member{{Name: "a", Size: digest.SegmentSize + 2*digest.BlockSize}, {Name: "b", Size: 3*digest.BlockSize + 10}, {Name: "c", Size: 10}}

func (s *script) position() wire.Position {
	p := wire.Position{Volume: s.pick(len(fuzzed) + 2), Segment: s.pick(3)}
	p.Offset = int64(p.Segment)*digest.SegmentSize + int64(s.pick(6))*digest.BlockSize
	switch s.pick(4) {
	case 1:
		p.Offset += wire.Grain
	case 2:
		p.Offset += 5
	}
	return p
}

// digests are some of a segment, right ones, wrong ones, unknown ones, too few or too many.
func (s *script) digests(right []digest.Digest) []digest.Digest {
	out := slices.Clone(right)
	for range s.pick(4) {
		if len(out) > 0 {
			out[s.pick(len(out))] = []digest.Digest{digest.Zero, digest.Unknown, {1}, blockDigest(7)}[s.pick(4)]
		}
	}
	switch s.pick(8) {
	case 1:
		return append(out, digest.Zero)
	case 2:
		return out[:len(out)/2]
	}
	return out
}

// fuzzedInstant is what a source holds in the fuzz tests.
func fuzzedInstant() instant {
	a := newInstant(fuzzed)
	a[0][0], a[0][1], a[0][5], a[0][1024] = 1, 2, 3, 4
	a[1][0], a[1][3] = 5, 6
	a[2][0] = 7
	return a
}

func extentsOf(blocks ...int64) []digest.Extent {
	var out []digest.Extent
	for _, b := range blocks {
		out = append(out, digest.Extent{Offset: b*digest.BlockSize + wire.Grain, Length: 2 * wire.Grain})
	}
	return out
}

// sourceDriver carries out honestly what a source asks for, and watches what it sends.
type sourceDriver struct {
	t      *testing.T
	source *session.Source
	now    instant
	scans  []session.Scan
	reads  []session.Read

	// Of this connection.
	at      wire.Position // everything before it was sent
	closed  bool
	window  int64
	ahead   int
	wants   map[[2]int]bool
	unacked []sentRecord
}

type sentRecord struct {
	end   wire.Position
	bytes int64
}

func (d *sourceDriver) begin() {
	d.scans, d.reads, d.closed, d.window, d.wants = nil, nil, false, 0, map[[2]int]bool{}
	d.carry(d.source.Begin())
}

func (d *sourceDriver) carry(actions []session.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case session.Scan:
			d.scans = append(d.scans, a)
		case session.Read:
			d.reads = append(d.reads, a)
			d.checkRead(a)
		case session.Send:
			d.sent(a.Message)
		}
	}
	if n := len(d.scans) + len(d.wants); n > d.ahead && d.ahead > 0 {
		d.t.Fatalf("%d segments are compared ahead, %d were granted", n, d.ahead)
	}
}

func (d *sourceDriver) checkRead(r session.Read) {
	size := fuzzed[r.Volume].Size
	end := r.Offset + int64(r.Length)
	if r.Length < 1 || r.Length > wire.MaxRecord || r.Offset%digest.BlockSize != 0 || end > size || end%digest.BlockSize != 0 && end != size {
		d.t.Fatalf("it reads %+v of a volume of %d bytes", r, size)
	}
	at := r.Offset
	for _, x := range r.Pieces {
		if x.Length < 1 || x.Offset < at || x.Offset+x.Length > end {
			d.t.Fatalf("it reads pieces %+v from %d to %d", r.Pieces, r.Offset, end)
		}
		at = x.Offset + x.Length
	}
}

// flying is how many bytes of records are unacknowledged or being read.
func (d *sourceDriver) flying() int64 {
	var n int64
	for _, u := range d.unacked {
		n += u.bytes
	}
	for _, r := range d.reads {
		for _, x := range r.Pieces {
			n += x.Length
		}
		if r.Pieces == nil {
			n += int64(r.Length)
		}
	}
	return n
}

// sent holds what is true of everything a source sends: records in the order of their places, each segment ended once
// and in turn, the end last, and never more in flight than was granted.
func (d *sourceDriver) sent(m wire.Message) {
	frame := wire.Append(nil, m)
	if back, _, err := wire.Decode(frame); err != nil {
		d.t.Fatalf("it sends what nobody takes: %+v, %v", back, err)
	}
	if d.closed {
		d.t.Fatalf("it sends %+v after the end", m)
	}
	record := func(volume int, from, length int64) {
		if volume != d.at.Volume || from < d.at.Offset || int(from/digest.SegmentSize) != d.at.Segment || int((from+length-1)/digest.SegmentSize) != d.at.Segment {
			d.t.Fatalf("it sends %T of volume %d from %d, %d bytes, at %+v", m, volume, from, length, d.at)
		}
		d.at.Offset = from + length
	}
	switch m := m.(type) {
	case wire.Data:
		record(m.Volume, m.Offset, int64(m.Length))
		d.unacked = append(d.unacked, sentRecord{m.End(), int64(m.Length)})
		if n := d.flying(); n > max(d.window, wire.MaxRecord) {
			d.t.Fatalf("%d bytes are in flight, %d were granted", n, d.window)
		}
	case wire.Hole:
		record(m.Volume, m.Offset, m.Length)
	case wire.SegmentEnd:
		if m.Volume != d.at.Volume || m.Segment != d.at.Segment {
			d.t.Fatalf("it ends segment %d of volume %d at %+v", m.Segment, m.Volume, d.at)
		}
		geo := digest.Geometry{Size: fuzzed[m.Volume].Size}
		if d.at.Segment+1 < geo.Segments() {
			d.at = wire.Position{Volume: m.Volume, Segment: m.Segment + 1, Offset: geo.SegmentStart(m.Segment + 1)}
		} else {
			d.at = wire.Position{Volume: m.Volume + 1}
		}
	case wire.Want:
		d.wants[[2]int{m.Volume, m.Segment}] = true
	case wire.Close:
		if d.at != (wire.Position{Volume: len(fuzzed)}) {
			d.t.Fatalf("it closes at %+v", d.at)
		}
		d.closed = true
	}
}

// answer does one of the things the source asked for.
func (d *sourceDriver) answer(which int) (session.Event, bool) {
	if len(d.scans) > 0 && (which%2 == 0 || len(d.reads) == 0) {
		i := which / 2 % len(d.scans)
		s := d.scans[i]
		d.scans = slices.Delete(d.scans, i, i+1)
		return session.Scanned{Volume: s.Volume, Segment: s.Segment, Digests: d.now.blocks(digest.Geometry{Size: fuzzed[s.Volume].Size}, s.Volume, s.Segment)}, true
	}
	if len(d.reads) == 0 {
		return nil, false
	}
	r := pop(&d.reads)
	done := session.ReadDone{Seq: r.Seq}
	first := int(r.Offset / digest.BlockSize)
	for _, x := range d.now[r.Volume][first : first+(r.Length+digest.BlockSize-1)/digest.BlockSize] {
		done.Digests = append(done.Digests, blockDigest(x))
	}
	done.Records = session.Records(r.Volume, r.Offset, make([]byte, r.Length), done.Digests, r.Pieces)
	return done, true
}

// said is what the peer says next.
func (d *sourceDriver) said(s *script) session.Event {
	v, x := s.pick(len(fuzzed)+1), s.pick(3)
	var right []digest.Digest
	if v < len(fuzzed) && x < (digest.Geometry{Size: fuzzed[v].Size}).Segments() {
		right = d.now.blocks(digest.Geometry{Size: fuzzed[v].Size}, v, x)
	}
	switch s.pick(12) {
	case 0, 1:
		w := wire.Welcome{
			Tier: wire.Tier(s.pick(6)), Committed: s.pick(16) == 1, Window: []int64{wire.MaxRecord, 256 << 20, 1 << 40, 5}[s.pick(4)],
			Lookahead: []int{2, 16, 60000, 0}[s.pick(4)],
		}
		if s.pick(2) == 1 {
			w.Start, w.Resumed = s.position(), true
		}
		return w
	case 2, 3:
		var segments []digest.Digest
		if v < len(fuzzed) {
			geo := digest.Geometry{Size: fuzzed[v].Size}
			for i := range geo.Segments() {
				segments = append(segments, digest.Segment(d.now.blocks(geo, v, i)))
			}
		}
		return wire.SegmentDigests{Volume: v, First: s.pick(2) * x, Digests: s.digests(segments)}
	case 4, 5:
		return wire.BlockDigests{Volume: v, Segment: x, Digests: s.digests(right)}
	case 6, 7:
		return wire.Ack{Durable: s.position()}
	case 8:
		return wire.Committed{Point: []string{"p", "q"}[s.pick(2)]}
	case 9:
		return wire.Pulse{}
	case 10:
		return wire.Refused{Kind: wire.RefusalKind(s.pick(6))}
	}
	return []session.Event{wire.Failed{}, wire.Hello{}, wire.Data{}, wire.Hole{}, wire.Want{}, wire.SegmentEnd{}, wire.Close{}, nil, 7}[s.pick(9)]
}

// FuzzSource gives a source any messages, over any number of connections, while its own reads come back honestly. It
// never panics; it sends in order, no more than was granted, and nothing after the end; and it believes in a commit
// only when it was told of its point.
func FuzzSource(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(slices.Repeat([]byte{0, 0, 0, 0, 0, 2, 0, 2, 1, 2, 2, 4, 1, 1, 6}, 8))
	f.Add(slices.Repeat([]byte{2, 1, 3, 0, 4, 0, 0, 2, 0, 2, 1, 2, 2, 4, 1, 1, 6}, 8))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &script{raw}
		h := wire.Hello{Replication: "r", Epoch: 1, Point: "p", Members: fuzzed}
		offers := s.pick(4)
		if offers&1 != 0 {
			h.Base = "o"
		}
		h.Allocated = offers&2 != 0
		d := &sourceDriver{t: t, source: session.NewSource(h), now: fuzzedInstant()}
		var o session.Offer
		if h.Base != "" {
			o.Changes = [][]digest.Extent{extentsOf(0, 5, 1024), extentsOf(1), nil}
		}
		if h.Allocated {
			o.Allocated = [][]digest.Extent{extentsOf(0, 1, 5, 1024), {{Length: fuzzed[1].Size}}, {{Length: 10}}}
		}
		d.source.Offer(o)
		d.begin()
		told := false
		for steps := 0; !s.over() && steps < 400; steps++ {
			var e session.Event
			if s.pick(3) > 0 {
				var ok bool
				if e, ok = d.answer(s.pick(8)); !ok {
					e = d.said(s)
				}
			} else {
				e = d.said(s)
			}
			switch m := e.(type) {
			case wire.Welcome:
				if d.source.Welcome() == nil {
					d.window, d.ahead = min(m.Window, session.Window), min(m.Lookahead, session.Lookahead)
					d.at = m.Start
					if m.Start.Volume < len(fuzzed) {
						d.at.Offset = max(d.at.Offset, int64(d.at.Segment)*digest.SegmentSize)
					}
					d.unacked = nil
				}
				told = told || m.Committed
			case wire.BlockDigests:
				delete(d.wants, [2]int{m.Volume, m.Segment})
			case wire.Ack:
				d.unacked = slices.DeleteFunc(d.unacked, func(u sentRecord) bool { return !m.Durable.Before(u.end) })
			case wire.Committed:
				told = told || d.closed && m.Point == "p"
			}
			actions, err := d.source.Step(e)
			if d.source.Done() && !told {
				t.Fatalf("it believes in a commit after %+v", e)
			}
			if err != nil {
				// The connection is over; the next one begins.
				d.begin()
				continue
			}
			d.carry(actions)
			if got := d.source.Totals(); got.Acked > got.Sent || got.Zero > got.Changed {
				t.Fatalf("the totals are %+v", got)
			}
		}
	})
}

// FuzzTargetCompares gives a target that compares any messages in any order. It stores only in order, only what was
// compared, asks for a commit only when every segment is proven and durable, and answers with what it will hold.
func FuzzTargetCompares(f *testing.F) {
	f.Add([]byte{0})
	f.Add(slices.Repeat([]byte{3, 0, 0, 5, 1, 0, 1, 2, 6, 2, 0, 0}, 6))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &script{raw}
		base := fuzzedInstant()
		var expect [][]digest.Digest
		for v, m := range fuzzed {
			geo := digest.Geometry{Size: m.Size}
			var segments []digest.Digest
			for x := range geo.Segments() {
				segments = append(segments, digest.Segment(base.blocks(geo, v, x)))
			}
			expect = append(expect, segments)
		}
		tier := []wire.Tier{wire.TierDigest, wire.TierCBT}[s.pick(2)]
		hello := wire.Hello{Point: "p", Members: fuzzed}
		target := session.NewTarget(hello, tier, expect)
		end := wire.Position{Volume: len(fuzzed)}
		var stored, durable wire.Position
		var loads []session.Load
		asked := map[[2]int]bool{}
		for steps := 0; !s.over() && steps < 400; steps++ {
			v, x := target.Cursor().Volume, target.Cursor().Segment
			if s.pick(8) == 1 {
				v, x = s.pick(len(fuzzed)+1), s.pick(3)
			}
			at := int64(x)*digest.SegmentSize + int64(s.pick(6))*digest.BlockSize
			var e session.Event
			switch s.pick(10) {
			case 0, 1:
				d := wire.Data{Volume: v, Codec: wire.CodecZstd, Offset: at + int64(s.pick(4))*wire.Grain, Length: (1 + s.pick(40)) * wire.Grain, More: s.pick(4) == 1}
				n := d.Touched()
				if d.More {
					n--
				}
				for range n {
					d.Digests = append(d.Digests, blockDigest(uint64(s.pick(5))))
				}
				e = d
			case 2:
				e = wire.Hole{Volume: v, Offset: at, Length: []int64{digest.BlockSize, 2 * digest.BlockSize, 10, digest.SegmentSize}[s.pick(4)]}
			case 3, 4:
				m := wire.SegmentEnd{Volume: v, Segment: x}
				if v < len(fuzzed) && x < len(expect[v]) {
					m.Digest = expect[v][x]
				}
				e = m
			case 5, 6:
				e = wire.Want{Volume: v, Segment: x}
			case 7:
				if len(loads) == 0 {
					continue
				}
				l := pop(&loads)
				e = session.Loaded{Volume: l.Volume, Segment: l.Segment, Digests: base.blocks(digest.Geometry{Size: fuzzed[l.Volume].Size}, l.Volume, l.Segment)}
			case 8:
				durable = stored
				e = session.Durable{Position: durable}
			default:
				e = wire.Close{Digest: session.Closing("p", fuzzed, expect)}
			}
			before := target.Cursor()
			actions, err := target.Step(e)
			if err != nil {
				var broke *session.Violation
				var wrong *session.Integrity
				if !errors.As(err, &broke) && !errors.As(err, &wrong) {
					t.Fatalf("an error of another kind: %v", err)
				}
				if target.Cursor() != before {
					t.Fatalf("it refused %+v and went on from %+v to %+v", e, before, target.Cursor())
				}
				return
			}
			for _, a := range actions {
				switch a := a.(type) {
				case session.Load:
					loads = append(loads, a)
					asked[[2]int{a.Volume, a.Segment}] = true
					if len(asked) > session.Lookahead {
						t.Fatalf("%d segments are compared ahead", len(asked))
					}
				case session.Store:
					if !stored.Before(a.After) || a.After != target.Cursor() {
						t.Fatalf("stored up to %+v after %+v, the cursor is %+v", a.After, stored, target.Cursor())
					}
					if _, ends := a.Record.(wire.SegmentEnd); ends {
						delete(asked, [2]int{before.Volume, before.Segment})
					} else if !asked[[2]int{before.Volume, before.Segment}] {
						t.Fatalf("it stored %+v of a segment nobody compared", a.Record)
					}
					stored = a.After
				case session.Commit:
					if stored != end || durable != end {
						t.Fatalf("it commits at %+v, durable up to %+v", stored, durable)
					}
				case session.Send:
					if ack, ok := a.Message.(wire.Ack); ok && durable.Before(ack.Durable) {
						t.Fatalf("it acknowledged %+v, durable is %+v", ack.Durable, durable)
					}
				}
			}
		}
	})
}

// FuzzDuel lets a source and a target talk over a wire that repeats, swaps, loses and spoils messages as the fuzzer
// wants, with cuts and crashes. Whatever comes of it, the replica is one of the two instants, the one that is claimed.
func FuzzDuel(f *testing.F) {
	f.Add(uint64(1), []byte{0, 1, 2, 3})
	f.Add(uint64(2), slices.Repeat([]byte{0, 0, 0, 0, 0, 0, 7}, 20))
	f.Fuzz(func(t *testing.T, seed uint64, raw []byte) {
		s := &script{raw}
		rng := chance(seed)
		st, now := past(rng)
		old := st.replica.clone()
		source := session.NewSource(hello("p1", 1))
		d := newDuel(source, hello("p1", 1), now, st)
		for steps := 0; !source.Done() && steps < 3000; steps++ {
			q := []*[][]byte{&d.toTarget, &d.toSource}[s.pick(2)]
			var err error
			fault := s.pick(40)
			switch {
			case fault == 1 && len(*q) > 0:
				*q = append([][]byte{(*q)[0]}, *q...)
			case fault == 2 && len(*q) > 1:
				(*q)[0], (*q)[1] = (*q)[1], (*q)[0]
			case fault == 3 && len(*q) > 0:
				*q = (*q)[1:]
			case fault == 4 && len(*q) > 0:
				(*q)[0][s.pick(256)%len((*q)[0])] ^= 1 << s.pick(8)
			case fault == 5:
				err = errStuck
			default:
				err = d.step(rng)
			}
			if claims := st.committed.ID; claims == "p0" && !st.replica.equal(old) || claims == "p1" && !st.replica.equal(now) {
				t.Fatalf("the replica is not %s, which it is said to be", claims)
			}
			if err != nil {
				var broke *session.Violation
				var wrong *session.Integrity
				if errors.As(err, &broke) || errors.As(err, &wrong) {
					st.drop()
				}
				if s.pick(2) == 0 {
					st.crash(rng)
				}
				d = newDuel(source, hello("p1", 1), now, st)
			}
		}
		if source.Done() && st.committed.ID != "p1" {
			t.Fatal("the source believes that its point is committed")
		}
	})
}
