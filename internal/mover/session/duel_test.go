package session_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// The duel is a source and a target without disks or sockets: a block of a volume is a number, zero is zero, and a
// record's payload is the numbers of its blocks. Everything that can happen next is in a bag, and chance, a script or
// a fault plan picks. Bytes travel encoded.

// instant is the content of a group: per volume one number per block.
type instant [][]uint64

func (a instant) clone() instant {
	out := make(instant, len(a))
	for v := range a {
		out[v] = slices.Clone(a[v])
	}
	return out
}

func (a instant) equal(b instant) bool {
	return slices.EqualFunc(a, b, func(x, y []uint64) bool { return slices.Equal(x, y) })
}

func newInstant(members []wire.Member) instant {
	out := make(instant, len(members))
	for v, m := range members {
		out[v] = make([]uint64, digest.Geometry{Size: m.Size}.Blocks())
	}
	return out
}

func blockDigest(x uint64) digest.Digest {
	if x == 0 {
		return digest.Zero
	}
	return digest.Block(binary.LittleEndian.AppendUint64(nil, x))
}

func (a instant) blocks(geo digest.Geometry, v, s int) []digest.Digest {
	first := s * digest.BlocksPerSegment
	out := make([]digest.Digest, geo.SegmentBlocks(s))
	for i := range out {
		out[i] = blockDigest(a[v][first+i])
	}
	return out
}

// store is the target's durable side.
type store struct {
	members   []wire.Member
	epoch     uint64
	replica   instant
	committed *session.Point
	mixed     bool
	written   bool

	half *session.Half
	log  []wire.Message
	sure int     // records of the log that would survive a crash
	base instant // what the replica held when the half delta began
}

func newStore(members []wire.Member) *store {
	return &store{members: members, replica: newInstant(members)}
}

func (s *store) holding() session.Holding {
	h := session.Holding{
		Replication: "r", Epoch: s.epoch, Members: s.members, Committed: s.committed, Mixed: s.mixed, Written: s.written,
	}
	if s.half != nil {
		half := *s.half
		h.Half = &half
	}
	return h
}

// crash forgets what was not durable. A direct copy's bytes may have reached the replica or not, as chance has it.
func (s *store) crash(rng *rand.Rand) {
	if s.half != nil && s.half.Direct {
		for _, m := range s.log[s.sure:] {
			if d, ok := m.(wire.Data); ok && rng.IntN(2) == 0 {
				s.write(s.replica, d)
			}
		}
	}
	s.log = s.log[:s.sure]
}

func (s *store) write(to instant, m wire.Message) {
	switch m := m.(type) {
	case wire.Data:
		for i := range m.Digests {
			to[m.Volume][int(m.Offset/digest.BlockSize)+i] = binary.LittleEndian.Uint64(m.Payload[8*i:])
		}
	case wire.Hole:
		first := int(m.Offset / digest.BlockSize)
		clear(to[m.Volume][first : first+int((m.Length+digest.BlockSize-1)/digest.BlockSize)])
	}
}

func (s *store) drop() {
	if s.half != nil && s.half.Direct {
		s.mixed = true
	}
	s.half, s.log, s.sure = nil, nil, 0
}

// sync makes the log durable; a direct copy's bytes are on the replica then.
func (s *store) sync() {
	if s.half.Direct {
		for _, m := range s.log[s.sure:] {
			s.write(s.replica, m)
		}
	}
	s.sure = len(s.log)
}

func (s *store) commit(hello wire.Hello) {
	for _, m := range s.log {
		s.write(s.replica, m)
	}
	s.committed = &session.Point{ID: hello.Point, Time: hello.PointTime, Epoch: hello.Epoch}
	s.mixed, s.half, s.log, s.sure = false, nil, nil, 0
}

// welcome does what the driver of a target does with a Hello.
func (s *store) welcome(hello wire.Hello, window int64, lookahead int) (*session.Target, wire.Welcome, *session.Refusal, error) {
	d, refusal := session.Decide(s.holding(), hello)
	if refusal != nil {
		return nil, wire.Welcome{}, refusal, nil
	}
	if d.Raise {
		s.epoch = hello.Epoch
		if s.half != nil {
			s.drop()
		}
		if s.written {
			s.mixed = false
		}
	}
	if d.DropHalf && s.half != nil {
		s.drop()
	}
	w := d.Welcome
	w.Window, w.Lookahead = window, lookahead
	if w.Committed {
		return nil, w, nil, nil
	}
	if s.half == nil {
		s.half = &session.Half{Point: hello.Point, Epoch: hello.Epoch, Tier: w.Tier, Direct: w.Direct, Reason: w.Reason}
		s.base = s.replica.clone()
	}
	var expect [][]digest.Digest
	if w.Tier.Compares() {
		for v, m := range s.members {
			geo := digest.Geometry{Size: m.Size}
			var segments []digest.Digest
			for x := range geo.Segments() {
				segments = append(segments, digest.Segment(s.base.blocks(geo, v, x)))
			}
			expect = append(expect, segments)
		}
	}
	t := session.NewTarget(hello, w.Tier, expect)
	for _, m := range s.log {
		if err := t.Restore(m); err != nil {
			return nil, w, nil, fmt.Errorf("restore: %w", err)
		}
	}
	s.sure = len(s.log)
	if s.half.Direct {
		s.sure = 0
		s.sync()
	}
	w.Start = t.Cursor()
	return t, w, nil, nil
}

// duel is one connection.
type duel struct {
	scanned int
	source  *session.Source
	store   *store
	target  *session.Target
	hello   wire.Hello
	now     instant // the source's

	window    int64
	lookahead int

	toTarget, toSource [][]byte
	scans              []session.Scan
	reads              []session.Read
	loads              []session.Load
	unsynced           int
	commits            bool
	unacked            int64
	sends              int // messages sent so far, both ways
}

func newDuel(source *session.Source, hello wire.Hello, now instant, s *store) *duel {
	d := &duel{source: source, store: s, hello: hello, now: now, window: wire.MaxRecord, lookahead: 2}
	d.carrySource(source.Begin())
	return d
}

// choices are the things that can happen next.
func (d *duel) choices() []func() error {
	var out []func() error
	if len(d.toTarget) > 0 {
		out = append(out, d.deliverTarget)
	}
	if len(d.toSource) > 0 {
		out = append(out, d.deliverSource)
	}
	for i := range d.scans {
		out = append(out, func() error { return d.scan(i) })
	}
	if len(d.reads) > 0 {
		out = append(out, d.read)
	}
	if len(d.loads) > 0 {
		out = append(out, d.load)
	}
	if d.unsynced > 0 {
		out = append(out, d.syncStore)
	}
	if d.commits {
		out = append(out, d.commit)
	}
	return out
}

var errStuck = errors.New("nothing can happen and the session is not done")

// step lets chance pick what happens.
func (d *duel) step(rng *rand.Rand) error {
	choices := d.choices()
	if len(choices) == 0 {
		return errStuck
	}
	return choices[rng.IntN(len(choices))]()
}

// play goes on until the source is done.
func (d *duel) play(rng *rand.Rand) error {
	for !d.source.Done() {
		if err := d.step(rng); err != nil {
			return err
		}
	}
	return nil
}

func pop[T any](list *[]T) T {
	x := (*list)[0]
	*list = (*list)[1:]
	return x
}

func (d *duel) deliverTarget() error {
	m, _, err := wire.Decode(pop(&d.toTarget))
	if err != nil {
		return err
	}
	if hello, ok := m.(wire.Hello); ok {
		t, w, refusal, err := d.store.welcome(hello, d.window, d.lookahead)
		if err != nil {
			return err
		}
		if refusal != nil {
			d.sendSource(refusal.Message())
			return nil
		}
		d.target = t
		d.sendSource(w)
		if t != nil {
			for _, m := range t.Opening() {
				d.sendSource(m)
			}
		}
		return nil
	}
	if d.target == nil {
		return &session.Violation{What: "no Hello came first"}
	}
	return d.stepTarget(m)
}

func (d *duel) stepTarget(e session.Event) error {
	actions, err := d.target.Step(e)
	if err != nil {
		return err
	}
	for _, a := range actions {
		switch a := a.(type) {
		case session.Send:
			d.sendSource(a.Message)
		case session.Store:
			d.store.log = append(d.store.log, a.Record)
			d.unsynced++
		case session.Load:
			d.loads = append(d.loads, a)
		case session.Commit:
			d.commits = true
		}
	}
	return nil
}

func (d *duel) sendSource(m wire.Message) {
	d.sends++
	d.toSource = append(d.toSource, wire.Append(nil, m))
}

func (d *duel) deliverSource() error {
	m, _, err := wire.Decode(pop(&d.toSource))
	if err != nil {
		return err
	}
	return d.stepSource(m)
}

func (d *duel) stepSource(e session.Event) error {
	acked := d.source.Totals().Acked
	actions, err := d.source.Step(e)
	if err != nil {
		return err
	}
	d.unacked -= d.source.Totals().Acked - acked
	d.carrySource(actions)
	return nil
}

func (d *duel) carrySource(actions []session.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case session.Send:
			d.sends++
			if x, ok := a.Message.(wire.Data); ok {
				d.unacked += int64(x.Length)
				if d.unacked > d.window {
					panic(fmt.Sprintf("%d bytes unacknowledged, the window is %d", d.unacked, d.window))
				}
			}
			d.toTarget = append(d.toTarget, wire.Append(nil, a.Message))
		case session.Scan:
			d.scans = append(d.scans, a)
		case session.Read:
			d.reads = append(d.reads, a)
		}
	}
}

func (d *duel) scan(i int) error {
	d.scanned++
	s := d.scans[i]
	d.scans = slices.Delete(d.scans, i, i+1)
	geo := digest.Geometry{Size: d.hello.Members[s.Volume].Size}
	return d.stepSource(session.Scanned{Volume: s.Volume, Segment: s.Segment, Digests: d.now.blocks(geo, s.Volume, s.Segment)})
}

func (d *duel) read() error {
	r := pop(&d.reads)
	first := int(r.Offset / digest.BlockSize)
	numbers := d.now[r.Volume][first : first+(r.Length+digest.BlockSize-1)/digest.BlockSize]
	done := session.ReadDone{Seq: r.Seq}
	for _, x := range numbers {
		done.Digests = append(done.Digests, blockDigest(x))
	}
	done.Records = session.Records(r.Volume, r.Offset, make([]byte, r.Length), done.Digests, r.Pieces)
	for i, m := range done.Records {
		if data, ok := m.(wire.Data); ok {
			data.Codec, data.Payload = wire.CodecZstd, nil
			for j := range data.Digests {
				data.Payload = binary.LittleEndian.AppendUint64(data.Payload, numbers[int(data.Offset-r.Offset)/digest.BlockSize+j])
			}
			done.Records[i] = data
		}
	}
	return d.stepSource(done)
}

func (d *duel) load() error {
	l := pop(&d.loads)
	geo := digest.Geometry{Size: d.hello.Members[l.Volume].Size}
	return d.stepTarget(session.Loaded{Volume: l.Volume, Segment: l.Segment, Digests: d.store.base.blocks(geo, l.Volume, l.Segment)})
}

func (d *duel) syncStore() error {
	d.store.sync()
	d.unsynced = 0
	return d.stepTarget(session.Durable{Position: d.target.Cursor()})
}

func (d *duel) commit() error {
	d.commits = false
	d.store.commit(d.hello)
	return d.stepTarget(session.Applied{})
}

// A group that has what matters: more than a segment, less than one, an odd end, one block.
var members = []wire.Member{
	{Name: "data", Size: digest.SegmentSize + 3*digest.BlockSize + 5}, {Name: "log", Size: 5 * digest.BlockSize}, {Name: "one", Size: 1},
}

// scribble changes a few blocks, some of them to zero.
func (a instant) scribble(rng *rand.Rand, changes int) {
	for range changes {
		v := rng.IntN(len(a))
		start := rng.IntN(len(a[v]))
		for i := start; i < min(len(a[v]), start+1+rng.IntN(40)); i++ {
			a[v][i] = uint64(rng.IntN(3)) * rng.Uint64()
		}
	}
}

func hello(point string, epoch uint64) wire.Hello {
	return wire.Hello{Replication: "r", Epoch: epoch, Point: point, Members: members}
}

func mustPlay(t *testing.T, d *duel, rng *rand.Rand) {
	t.Helper()
	if err := d.play(rng); err != nil {
		t.Fatal(err)
	}
	if !d.store.replica.equal(d.now) {
		t.Fatal("the replica is not the instant that was committed")
	}
	if d.source.Totals().Resent != 0 {
		t.Fatalf("%d acknowledged bytes were sent again", d.source.Totals().Resent)
	}
}
