package session

import (
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

// Read asks for bytes of the source as records (see Records), packed or not. Answers come as ReadDone, in the order
// the reads were asked for.
type Read struct {
	Seq    uint64
	Volume int
	Offset int64
	Length int
}

// ReadDone answers a Read. Records are the Data and Hole messages that carry exactly the bytes asked for.
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

// task is one segment on its way.
type task struct {
	volume, segment int
	state           taskState
	mine            []digest.Digest // block digests; when scanned, what the read must find again
	scanned         bool
	todo            []digest.Extent
	arrived         int // reads of this task that came back
	asked           int // reads of this task that were asked for
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
	offset int64
	length int
}

type sent struct {
	end   wire.Position
	bytes int64
}

// NewSource offers an instant of a group to a target.
func NewSource(hello wire.Hello) *Source {
	return &Source{hello: hello, shape: hello.Members}
}

// Begin starts a connection, the first or another after a cut.
func (s *Source) Begin() []Action {
	*s = Source{hello: s.hello, shape: s.shape, totals: s.totals, high: s.high, found: s.found, unacked: s.unacked, flying: s.flying}
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
	if w.Tier != wire.TierFull && w.Tier != wire.TierDigest {
		return violation("it wants %s", w.Tier)
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

// segmentStart is the beginning of the segment p lies in.
func (s *Source) segmentStart(p wire.Position) wire.Position {
	return wire.Position{Volume: p.Volume, Segment: p.Segment, Offset: int64(p.Segment) * digest.SegmentSize}
}

// expected is how many segment digests of volume v must be there before the walk begins: all in tier digest, those
// already proven in tier full.
func (s *Source) expected(v int) int {
	segments := s.shape.geo(v).Segments()
	start := s.welcome.Start
	switch {
	case s.welcome.Tier == wire.TierDigest || v < start.Volume:
		return segments
	case v == start.Volume:
		return start.Segment
	}
	return 0
}

func (s *Source) onSegmentDigests(m wire.SegmentDigests) error {
	if s.welcome == nil || m.Volume >= len(s.shape) {
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
		geo := s.shape.geo(t.volume)
		start := s.welcome.Start
		partly := start.Volume == t.volume && start.Segment == t.segment && start.Offset > geo.SegmentStart(t.segment)
		if s.welcome.Tier == wire.TierFull && !partly {
			t.state = taskReading
			t.mine = make([]digest.Digest, geo.SegmentBlocks(t.segment))
			t.todo = []digest.Extent{{Offset: geo.SegmentStart(t.segment), Length: geo.SegmentLen(t.segment)}}
		} else {
			out = append(out, Scan{Volume: t.volume, Segment: t.segment})
		}
		s.tasks = append(s.tasks, t)
		s.next = s.shape.after(t.volume, t.segment)
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
			x := &t.todo[0]
			n := min(x.Length, wire.MaxRecord)
			if inFlight := s.reading + s.flying; inFlight > 0 && inFlight+n > s.welcome.Window {
				return out
			}
			s.seq++
			t.asked++
			s.reading += n
			s.reads = append(s.reads, pendingRead{seq: s.seq, task: t, offset: x.Offset, length: int(n)})
			out = append(out, Read{Seq: s.seq, Volume: t.volume, Offset: x.Offset, Length: int(n)})
			x.Offset += n
			x.Length -= n
			if x.Length == 0 {
				t.todo = t.todo[1:]
			}
		}
	}
	return out
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
	full := s.welcome.Tier == wire.TierFull
	if !full && digest.Segment(t.mine) == s.theirs[t.volume][t.segment] {
		t.state = taskReading
		return nil, nil
	}
	t.state = taskAsking
	return []Action{Send{Message: wire.Want{Volume: t.volume, Segment: t.segment}}}, nil
}

func (s *Source) onBlockDigests(m wire.BlockDigests) error {
	t := s.find(m.Volume, m.Segment, taskAsking)
	if t == nil || len(m.Digests) != len(t.mine) {
		return violation("block digests of volume %d segment %d were not asked for", m.Volume, m.Segment)
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
	s.reading -= int64(r.length)
	first := int((r.offset - s.shape.geo(t.volume).SegmentStart(t.segment)) / digest.BlockSize)
	for i, d := range e.Digests {
		if t.scanned && t.mine[first+i] != d {
			return nil, &SourceChanged{Volume: s.shape[t.volume].Name, Offset: r.offset + int64(i)*digest.BlockSize}
		}
		t.mine[first+i] = d
	}
	end := wire.Position{Volume: t.volume, Segment: t.segment, Offset: r.offset + int64(r.length)}
	s.totals.Changed += s.firstFound(end, int64(r.length))
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
	var out []Action
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

func (s *Source) endSegment(out []Action, t *task) []Action {
	out = s.flushHole(out)
	d := digest.Segment(t.mine)
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
