package session

import (
	"cmp"
	"fmt"
	"slices"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Scan asks for the block digests of a segment of the source. The answer is a Scanned.
type Scan struct{ Volume, Segment int }

// Scanned answers a Scan.
type Scanned struct {
	Volume, Segment int
	Digests         []digest.Digest
}

// Read asks for pieces of a run of blocks as records (see Records), packed or not, and for the digests of the blocks;
// one that would have to be read only for its digest may stay Unknown. Answers come as ReadDone, in the order the reads were asked for.
type Read struct {
	Seq    uint64
	Volume int
	Offset int64
	Length int
	Pieces []digest.Extent // nil: all of it
}

// ReadDone answers a Read. Digests are those of all blocks read, Records the Data and Hole messages that carry the
// pieces asked for.
type ReadDone struct {
	Seq     uint64
	Digests []digest.Digest
	Records []wire.Message
}

// SourceChanged reports that the source gave different bytes for the same blocks within one session: it is no instant.
type SourceChanged struct {
	Volume string
	Offset int64
}

func (s *SourceChanged) Error() string {
	return fmt.Sprintf("volume %s changed at offset %d while it was read: the source must be a snapshot", s.Volume, s.Offset)
}

// Remote is a failure the target reported; a later attempt may succeed.
type Remote struct {
	Kind wire.FailureKind
	Text string
}

func (r *Remote) Error() string { return "the target reports: " + r.Text }

// Totals counts what a source did, over all its connections. All are bytes of volumes, before compression.
type Totals struct {
	Changed int64 // found different, or all in tier full
	Zero    int64 // of the changed ones, those that are zero and were sent as holes
	Sent    int64 // carried by Data records
	Acked   int64 // of these, made durable by the target
	Resent  int64 // sent although they had been acknowledged before; anything but 0 is a defect
}

// Source walks the source's side of a session, over as many connections as it takes. Invariant: what is in flight
// (being read, or sent and not acknowledged) never exceeds the window the target granted, and records leave in the
// order of their positions.
type Source struct {
	hello  wire.Hello
	shape  shape
	offer  Offer
	totals Totals
	// high is the furthest position any connection's target acknowledged, found the furthest that was read to be sent.
	high, found wire.Position

	// The rest is of one connection.
	welcome *wire.Welcome
	theirs  [][]digest.Digest // what the target expects to hold, per volume and segment
	mine    [][]digest.Digest // proven segments
	next    wire.Position     // the first segment without a task
	tasks   []*task
	reads   []pendingRead
	reading int64 // bytes asked for and not read yet
	unacked []sent
	flying  int64 // bytes in unacked
	hole    *wire.Hole
	seq     uint64
	closed  bool
	done    bool
}

// Offer is what a source knows before it reads, per volume: extents in order, without overlap. It belongs to the
// Hello that announces it: Changes to Base, Allocated to Allocated.
type Offer struct {
	Changes   [][]digest.Extent // everything that changed since Base, aligned to wire.Grain
	Allocated [][]digest.Extent // everything that was ever written; the rest is zeros
}

// task is one segment on its way.
type task struct {
	volume, segment int
	state           taskState
	mine            []digest.Digest // block digests; when scanned, what the read must find again
	scanned         bool
	todo            []digest.Extent
	arrived         int // reads of this task that came back
	asked           int // reads of this task that were asked for
	// sparse says that what lies between the reads is zeros; emitted is up to where they were sent.
	sparse  bool
	emitted int64
}

type taskState uint8

const (
	taskScanning taskState = iota
	taskAsking             // waits for the target's block digests
	taskReading
)

type pendingRead struct {
	seq    uint64
	task   *task
	offset int64 // of the first block
	end    int64 // of the last piece
	bytes  int64 // of all pieces
}

type sent struct {
	end   wire.Position
	bytes int64
}

// NewSource offers an instant of a group to a target.
func NewSource(hello wire.Hello) *Source {
	return &Source{hello: hello, shape: hello.Members}
}

// Offer adds what the source knows. It comes before the first Begin.
func (s *Source) Offer(o Offer) { s.offer = o }

// Written has, per volume, what was ever written, if that is known; nil if not.
func (s *Source) Written() [][]digest.Extent { return s.offer.Allocated }

// Begin starts a connection, the first or another after a cut.
func (s *Source) Begin() []Action {
	*s = Source{hello: s.hello, shape: s.shape, offer: s.offer, totals: s.totals, high: s.high, found: s.found, unacked: s.unacked, flying: s.flying}
	return []Action{Send{Message: s.hello}}
}

// Totals is what was done so far.
func (s *Source) Totals() Totals { return s.totals }

// Welcome is the target's answer on this connection; nil before it came.
func (s *Source) Welcome() *wire.Welcome { return s.welcome }

// Done reports that the target holds the point, applied and durable.
func (s *Source) Done() bool { return s.done }

// Closed reports that the target has everything and only the commit is awaited.
func (s *Source) Closed() bool { return s.closed && s.high == s.shape.end() }

// Progress is how many bytes of the group are dealt with, durably at the target, and of how many.
func (s *Source) Progress() (done, total int64) {
	return s.shape.bytesBefore(s.high), s.shape.bytesBefore(s.shape.end())
}

// Step takes what happened and says what to do. After an error the connection is over; a *Refusal is for good.
func (s *Source) Step(e Event) ([]Action, error) {
	var out []Action
	var err error
	switch e := e.(type) {
	case wire.Refused:
		return nil, &Refusal{Kind: e.Kind, Mismatches: e.Mismatches}
	case wire.Failed:
		return nil, &Remote{Kind: e.Kind, Text: e.Text}
	case wire.Pulse:
		return nil, nil
	case wire.Welcome:
		err = s.onWelcome(e)
	case wire.SegmentDigests:
		err = s.onSegmentDigests(e)
	case wire.BlockDigests:
		err = s.onBlockDigests(e)
	case wire.Ack:
		err = s.onAck(e)
	case wire.Committed:
		err = s.onCommitted(e)
	case Scanned:
		out, err = s.onScanned(e)
	case ReadDone:
		out, err = s.onReadDone(e)
	default:
		err = violation("a source does not expect %T", e)
	}
	if err != nil {
		return nil, err
	}
	return s.advance(out), nil
}

func (s *Source) onWelcome(w wire.Welcome) error {
	if s.welcome != nil {
		return violation("welcomed twice")
	}
	if !s.can(w.Tier) {
		return violation("it wants tier %s, which this side did not offer", w.Tier)
	}
	if !w.Committed && (w.Window < wire.MaxRecord || w.Lookahead < 1) {
		return violation("window of %d bytes and %d segments is too small", w.Window, w.Lookahead)
	}
	if !s.shape.inside(w.Start) {
		return violation("it wants to begin at %+v", w.Start)
	}
	// What the target grants is taken only as far as this side's memory goes.
	w.Window, w.Lookahead = min(w.Window, Window), min(w.Lookahead, Lookahead)
	s.welcome = &w
	if w.Committed {
		s.done = true
		s.settle(s.shape.end())
		return nil
	}
	// What an earlier connection sent and this target holds was acknowledged, only the message was lost. The rest
	// will be sent again.
	s.settle(w.Start)
	s.unacked, s.flying = nil, 0
	s.theirs = make([][]digest.Digest, len(s.shape))
	s.mine = make([][]digest.Digest, len(s.shape))
	s.next = s.segmentStart(w.Start)
	return nil
}

// can reports that the source has what a tier needs.
func (s *Source) can(t wire.Tier) bool {
	switch t {
	case wire.TierFull, wire.TierDigest:
		return true
	case wire.TierAllocated:
		return s.hello.Allocated && len(s.offer.Allocated) == len(s.shape)
	case wire.TierCBT:
		return s.hello.Base != "" && len(s.offer.Changes) == len(s.shape)
	}
	return false
}

// segmentStart is the beginning of the segment p lies in.
func (s *Source) segmentStart(p wire.Position) wire.Position {
	return wire.Position{Volume: p.Volume, Segment: p.Segment, Offset: int64(p.Segment) * digest.SegmentSize}
}

// expected is how many segment digests of volume v must be there before the walk begins: all in a tier that compares,
// else those already proven.
func (s *Source) expected(v int) int {
	segments := s.shape.geo(v).Segments()
	start := s.welcome.Start
	switch {
	case s.welcome.Tier.Compares() || v < start.Volume:
		return segments
	case v == start.Volume:
		return start.Segment
	}
	return 0
}

func (s *Source) onSegmentDigests(m wire.SegmentDigests) error {
	if s.welcome == nil || s.done || m.Volume >= len(s.shape) {
		return violation("segment digests of volume %d out of place", m.Volume)
	}
	have := s.theirs[m.Volume]
	if m.First != len(have) || m.First+len(m.Digests) > s.expected(m.Volume) {
		return violation("segment digests %d to %d of volume %d, expected from %d", m.First, m.First+len(m.Digests), m.Volume, len(have))
	}
	s.theirs[m.Volume] = append(have, m.Digests...)
	return nil
}

// ready reports that all segment digests are there; the proven ones become the source's own then.
func (s *Source) ready() bool {
	if s.welcome == nil || s.done {
		return false
	}
	for v := range s.shape {
		if len(s.theirs[v]) < s.expected(v) {
			return false
		}
	}
	if s.mine[0] != nil {
		return true
	}
	for v := range s.shape {
		segments := s.shape.geo(v).Segments()
		s.mine[v] = make([]digest.Digest, 0, segments)
		switch {
		case v < s.next.Volume:
			s.mine[v] = append(s.mine[v], s.theirs[v]...)
		case v == s.next.Volume:
			s.mine[v] = append(s.mine[v], s.theirs[v][:s.next.Segment]...)
		}
	}
	return true
}

// advance gives out as much work as window and lookahead allow.
func (s *Source) advance(out []Action) []Action {
	if !s.ready() || s.closed {
		return out
	}
	out = s.openTasks(out)
	out = s.askReads(out)
	for len(s.tasks) > 0 {
		head := s.tasks[0]
		if head.state != taskReading || len(head.todo) > 0 || head.arrived < head.asked {
			break
		}
		out = s.endSegment(out, head)
		s.tasks = s.tasks[1:]
		out = s.openTasks(out)
		out = s.askReads(out)
	}
	if len(s.tasks) == 0 && s.next == s.shape.end() {
		s.closed = true
		out = append(out, Send{Message: wire.Close{Digest: Closing(s.hello.Point, s.shape, s.mine)}})
	}
	return out
}

func (s *Source) openTasks(out []Action) []Action {
	for len(s.tasks) < s.welcome.Lookahead && s.next != s.shape.end() {
		t := &task{volume: s.next.Volume, segment: s.next.Segment}
		out = s.open(out, t)
		s.tasks = append(s.tasks, t)
		s.next = s.shape.after(t.volume, t.segment)
	}
	return out
}

// open finds out how a segment is to be dealt with.
func (s *Source) open(out []Action, t *task) []Action {
	geo := s.shape.geo(t.volume)
	whole := digest.Extent{Offset: geo.SegmentStart(t.segment), Length: geo.SegmentLen(t.segment)}
	start := s.welcome.Start
	partly := start.Volume == t.volume && start.Segment == t.segment && start.Offset > whole.Offset
	switch {
	case s.welcome.Tier == wire.TierCBT:
		if partly {
			whole.Length -= start.Offset - whole.Offset
			whole.Offset = start.Offset
		}
		t.todo = within(s.offer.Changes[t.volume], whole)
		t.state = taskReading
		// Its digest follows from what the target holds, and from what is sent.
		if partly || len(t.todo) > 0 {
			t.state = taskAsking
			out = append(out, Send{Message: wire.Want{Volume: t.volume, Segment: t.segment}})
		}
	case s.welcome.Tier == wire.TierDigest || partly:
		out = append(out, Scan{Volume: t.volume, Segment: t.segment})
	default:
		t.state = taskReading
		t.mine = make([]digest.Digest, geo.SegmentBlocks(t.segment))
		t.todo = []digest.Extent{whole}
		if s.welcome.Tier == wire.TierAllocated {
			t.sparse, t.emitted = true, whole.Offset
			t.todo = toBlocks(within(s.offer.Allocated[t.volume], whole), geo.Size)
		}
	}
	return out
}

// within is the part of a list of extents that lies in x.
func within(list []digest.Extent, x digest.Extent) []digest.Extent {
	first, _ := slices.BinarySearchFunc(list, x.Offset, func(e digest.Extent, at int64) int {
		return cmp.Compare(e.Offset+e.Length, at+1)
	})
	var out []digest.Extent
	for _, e := range list[first:] {
		from, to := max(e.Offset, x.Offset), min(e.Offset+e.Length, x.Offset+x.Length)
		if from >= x.Offset+x.Length {
			break
		}
		if from < to {
			out = append(out, digest.Extent{Offset: from, Length: to - from})
		}
	}
	return out
}

// toBlocks widens extents to whole blocks and joins those that meet.
func toBlocks(list []digest.Extent, size int64) []digest.Extent {
	var out []digest.Extent
	for _, e := range list {
		from := e.Offset &^ (digest.BlockSize - 1)
		to := min(size, (e.Offset+e.Length+digest.BlockSize-1)&^(digest.BlockSize-1))
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length >= from {
			out[n-1].Length = max(out[n-1].Length, to-out[n-1].Offset)
			continue
		}
		out = append(out, digest.Extent{Offset: from, Length: to - from})
	}
	return out
}

// askReads asks for bytes in order. It stops at the first segment whose differences are not known yet: what lies
// behind it must not overtake it.
func (s *Source) askReads(out []Action) []Action {
	for _, t := range s.tasks {
		if t.state != taskReading {
			return out
		}
		for len(t.todo) > 0 {
			r, bytes, rest := nextRead(t.todo, s.shape.geo(t.volume).Size)
			if inFlight := s.reading + s.flying; inFlight > 0 && inFlight+bytes > s.welcome.Window {
				return out
			}
			s.seq++
			t.todo = rest
			t.asked++
			s.reading += bytes
			last := r.Pieces[len(r.Pieces)-1]
			s.reads = append(s.reads, pendingRead{
				seq: s.seq, task: t, offset: r.Offset, end: last.Offset + last.Length, bytes: bytes,
			})
			r.Seq, r.Volume = s.seq, t.volume
			out = append(out, r)
		}
	}
	return out
}

// nextRead takes from the front of todo what lies in one run of blocks that a record could carry. It never leaves a
// part of a block to the next read, which would have to read it again.
func nextRead(todo []digest.Extent, size int64) (r Read, bytes int64, rest []digest.Extent) {
	first := todo[0].Offset &^ (digest.BlockSize - 1)
	limit := first + wire.MaxRecord
	blocksEnd := first
	rest = todo
	for len(rest) > 0 && rest[0].Offset < limit && rest[0].Offset&^(digest.BlockSize-1) <= blocksEnd {
		x := rest[0]
		if over := x.Offset + x.Length - limit; over > 0 {
			x.Length -= over
			rest = slices.Clone(rest)
			rest[0] = digest.Extent{Offset: limit, Length: over}
		} else {
			rest = rest[1:]
		}
		r.Pieces = append(r.Pieces, x)
		bytes += x.Length
		blocksEnd = (x.Offset + x.Length + digest.BlockSize - 1) &^ (digest.BlockSize - 1)
	}
	r.Offset, r.Length = first, int(min(blocksEnd, size)-first)
	return r, bytes, rest
}

func (s *Source) find(volume, segment int, state taskState) *task {
	i := slices.IndexFunc(s.tasks, func(t *task) bool {
		return t.volume == volume && t.segment == segment && t.state == state
	})
	if i < 0 {
		return nil
	}
	return s.tasks[i]
}

func (s *Source) onScanned(e Scanned) ([]Action, error) {
	t := s.find(e.Volume, e.Segment, taskScanning)
	if t == nil || len(e.Digests) != s.shape.geo(e.Volume).SegmentBlocks(e.Segment) {
		return nil, fmt.Errorf("scan of volume %d segment %d was not asked for", e.Volume, e.Segment)
	}
	t.mine, t.scanned = e.Digests, true
	if s.welcome.Tier.Compares() && digest.Segment(t.mine) == s.theirs[t.volume][t.segment] {
		t.state = taskReading
		return nil, nil
	}
	t.state = taskAsking
	return []Action{Send{Message: wire.Want{Volume: t.volume, Segment: t.segment}}}, nil
}

func (s *Source) onBlockDigests(m wire.BlockDigests) error {
	t := s.find(m.Volume, m.Segment, taskAsking)
	if t == nil || len(m.Digests) != s.shape.geo(m.Volume).SegmentBlocks(m.Segment) {
		return violation("block digests of volume %d segment %d were not asked for", m.Volume, m.Segment)
	}
	if s.welcome.Tier == wire.TierCBT {
		t.mine, t.state = m.Digests, taskReading
		return nil
	}
	t.todo = s.shape.geo(t.volume).Differences(t.segment, t.mine, m.Digests)
	t.state = taskReading
	return nil
}

func (s *Source) onReadDone(e ReadDone) ([]Action, error) {
	if len(s.reads) == 0 || s.reads[0].seq != e.Seq {
		return nil, fmt.Errorf("read %d came back out of order", e.Seq)
	}
	r := s.reads[0]
	s.reads = s.reads[1:]
	t := r.task
	t.arrived++
	s.reading -= r.bytes
	first := int((r.offset - s.shape.geo(t.volume).SegmentStart(t.segment)) / digest.BlockSize)
	for i, d := range e.Digests {
		if t.scanned && t.mine[first+i] != d {
			return nil, &SourceChanged{Volume: s.shape[t.volume].Name, Offset: r.offset + int64(i)*digest.BlockSize}
		}
		t.mine[first+i] = d
	}
	var out []Action
	if t.sparse {
		out = s.addGap(out, t, r.offset)
		t.emitted = r.end
	}
	end := wire.Position{Volume: t.volume, Segment: t.segment, Offset: r.end}
	s.totals.Changed += s.firstFound(end, r.bytes)
	for _, m := range e.Records {
		if h, ok := m.(wire.Hole); ok {
			s.totals.Zero += s.firstFound(h.End(), h.Length)
		}
	}
	if s.found.Before(end) {
		s.found = end
	}
	last := -1
	for i, m := range e.Records {
		if _, ok := m.(wire.Data); ok {
			last = i
		}
	}
	for i, m := range e.Records {
		switch m := m.(type) {
		case wire.Hole:
			out = s.addHole(out, m)
		case wire.Data:
			out = s.flushHole(out)
			send := Send{Message: m}
			if i == last {
				send.Frees = e.Seq
			}
			out = append(out, send)
			s.sentData(m)
		}
	}
	return out, nil
}

// firstFound is how many of the bytes before end no earlier connection has found.
func (s *Source) firstFound(end wire.Position, length int64) int64 {
	switch {
	case !s.found.Before(end):
		return 0
	case s.found.Volume == end.Volume && s.found.Segment == end.Segment:
		return min(length, end.Offset-s.found.Offset)
	}
	return length
}

func (s *Source) sentData(m wire.Data) {
	n := int64(m.Length)
	s.totals.Sent += n
	if !s.high.Before(m.End()) {
		s.totals.Resent += n
	}
	s.unacked = append(s.unacked, sent{end: m.End(), bytes: n})
	s.flying += n
}

// addHole joins a hole to the one before it; a hole never leaves its segment.
func (s *Source) addHole(out []Action, h wire.Hole) []Action {
	if p := s.hole; p != nil && p.Volume == h.Volume && p.Offset+p.Length == h.Offset &&
		p.Offset/digest.SegmentSize == h.Offset/digest.SegmentSize {
		p.Length += h.Length
		return out
	}
	out = s.flushHole(out)
	s.hole = &h
	return out
}

func (s *Source) flushHole(out []Action) []Action {
	if s.hole == nil {
		return out
	}
	out = append(out, Send{Message: *s.hole})
	s.hole = nil
	return out
}

// addGap sends what was never written, up to an offset, as a hole.
func (s *Source) addGap(out []Action, t *task, to int64) []Action {
	if t.emitted >= to {
		return out
	}
	return s.addHole(out, wire.Hole{Volume: t.volume, Offset: t.emitted, Length: to - t.emitted})
}

func (s *Source) endSegment(out []Action, t *task) []Action {
	geo := s.shape.geo(t.volume)
	if t.sparse {
		out = s.addGap(out, t, geo.SegmentStart(t.segment)+geo.SegmentLen(t.segment))
	}
	out = s.flushHole(out)
	var d digest.Digest
	if t.mine == nil {
		d = s.theirs[t.volume][t.segment] // nothing of it is on the list
	} else {
		d = digest.Segment(t.mine)
	}
	s.mine[t.volume] = append(s.mine[t.volume], d)
	return append(out, Send{Message: wire.SegmentEnd{Volume: t.volume, Segment: t.segment, Digest: d}})
}

func (s *Source) onAck(a wire.Ack) error {
	if s.welcome == nil || !s.shape.inside(a.Durable) {
		return violation("acknowledged %+v", a.Durable)
	}
	s.settle(a.Durable)
	return nil
}

// settle counts as acknowledged what was sent before p.
func (s *Source) settle(p wire.Position) {
	if s.high.Before(p) {
		s.high = p
	}
	for len(s.unacked) > 0 && !p.Before(s.unacked[0].end) {
		s.flying -= s.unacked[0].bytes
		s.totals.Acked += s.unacked[0].bytes
		s.unacked = s.unacked[1:]
	}
}

func (s *Source) onCommitted(m wire.Committed) error {
	if !s.closed || m.Point != s.hello.Point {
		return violation("committed %q before the delta was closed", m.Point)
	}
	s.done = true
	s.settle(s.shape.end())
	return nil
}
