package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/tree"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// SourceParts is what a Source works with.
type SourceParts struct {
	// Dial makes a connection to the target that is already trusted.
	Dial func(context.Context) (net.Conn, error)
	// Volumes are the members, in the configuration's order; nil: they are trees. They do not change while the Source
	// runs.
	Volumes []volume.Reader
	// Offer is what is known of them; the zero Offer is nothing.
	Offer    Offer
	Software string
	Log      *slog.Logger
	Now      func() time.Time
	// Wait waits, or ends early with the context's error.
	Wait func(context.Context, time.Duration) error
}

// Source runs one session to its end, over as many connections as that takes.
type Source struct {
	cfg   SourceConfig
	parts SourceParts
	hello wire.Hello
	kind  wire.Kind
	core  *session.Source
	pack  *packer
	reads *pace.Limiter
	meter *meter

	read     atomic.Int64
	traffic  traffic // of connections that ended
	attempts int
	resumed  int
	tier     *wire.Welcome
	trees    tree.Totals // of the trees that are through
}

// NewSource prepares a session.
func NewSource(cfg SourceConfig, parts SourceParts) (*Source, error) {
	hello := wire.Hello{Replication: cfg.Replication, Epoch: cfg.Epoch, Point: cfg.Point, PointTime: cfg.PointTime, Cut: cfg.Cut}
	hello.Note, hello.Verify = parts.Offer.Note, cfg.Verify
	hello.Allocated = parts.Offer.Allocated != nil
	if parts.Offer.Changes != nil {
		hello.Base = cfg.Base
	}
	kind := wire.KindBlocks
	if parts.Volumes == nil {
		kind = wire.KindTree
	}
	var total int64
	for i, v := range cfg.Volumes {
		if kind == wire.KindTree {
			hello.Members = append(hello.Members, wire.Member{Name: v.Name, Kind: kind})
			continue
		}
		size := parts.Volumes[i].Size()
		if size <= 0 || size > wire.MaxVolumeSize {
			return nil, &ConfigError{Field: "volumes[" + v.Name + "]", Found: "a device without content", Want: "give a device or file of at least one byte"}
		}
		hello.Members = append(hello.Members, wire.Member{Name: v.Name, Size: size})
		total += size
	}
	pack, err := newPacker(cfg.Compression)
	if err != nil {
		return nil, err
	}
	core := session.NewSource(hello)
	core.Offer(parts.Offer.session())
	return &Source{
		cfg: cfg, parts: parts, hello: hello, kind: kind, core: core, pack: pack,
		reads: pace.New(parts.Now, pace.Always(pace.Rate(cfg.ReadLimit))),
		meter: newMeter(parts.Now, State{
			Role: RoleSource, Replication: cfg.Replication, Epoch: cfg.Epoch, Software: parts.Software,
			Phase: PhaseConnecting, Point: cfg.Point, PointTime: cfg.PointTime, BytesTotal: total,
		}),
	}, nil
}

// State is what the source is doing.
func (s *Source) State() State { return s.meter.read() }

const (
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// maxFailures is how often in a row the target may fail, without anything gained, before the source gives up. A
	// link that is down is waited for as long as it takes.
	maxFailures = 4
	// farewell is how long a peer is given to read the last message.
	farewell = 2 * time.Second
)

// Run runs the session and says how it ended.
func (s *Source) Run(ctx context.Context) Report {
	began := s.parts.Now()
	err := s.run(ctx)
	r := s.report(began, err)
	s.meter.set(func(st *State) {
		st.Report = &r
		st.Phase, st.Message = PhaseDone, ""
		if err != nil {
			st.Phase, st.Message = PhaseFailed, err.Error()
		}
	})
	return r
}

func (s *Source) run(ctx context.Context) error {
	backoff, failures := firstBackoff, 0
	for {
		gained := s.core.Totals().Acked
		s.attempts++
		s.meter.set(func(st *State) { st.Attempts = s.attempts })
		err := s.attempt(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.core.Totals().Acked > gained {
			backoff, failures = firstBackoff, 0
		}
		kind := KindOf(err)
		switch kind {
		case KindLink:
		case KindVolume, KindSpace, KindIntegrity, KindTarget:
			var own *VolumeError
			failures++
			if errors.As(err, &own) || failures >= maxFailures {
				return err
			}
		default:
			return err
		}
		s.parts.Log.Warn("session interrupted", "point", s.cfg.Point, "kind", string(kind), "error", err.Error(), "retryIn", backoff.String())
		// It stays in this phase until the target answers: a connection may be tried for long.
		s.meter.phase(PhaseWaiting, "connects again after "+backoff.String()+": "+err.Error())
		if err := s.parts.Wait(ctx, backoff); err != nil {
			return err
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func (s *Source) report(began time.Time, err error) Report {
	t := s.core.Totals()
	_, total := s.core.Progress()
	r := Report{
		Replication: s.cfg.Replication, Epoch: s.cfg.Epoch, Point: s.cfg.Point, PointTime: s.cfg.PointTime,
		Done: err == nil, Attempts: s.attempts, Resumed: s.resumed,
		BytesTotal: total, BytesRead: s.read.Load(), BytesChanged: t.Changed, ZeroBytes: t.Zero,
		BytesData: s.traffic.data, BytesSent: s.traffic.payload, BytesWire: s.traffic.wire, BytesAcked: t.Acked, BytesResent: t.Resent,
		Started: began, DurationSeconds: s.parts.Now().Sub(began).Seconds(),
	}
	if s.kind == wire.KindTree {
		r.BytesTotal, r.BytesChanged, r.BytesAcked = s.trees.Bytes, s.traffic.data, 0
		r.Entries, r.EntriesChanged, r.EntriesDeleted = s.trees.Entries, s.trees.Changed, s.trees.Deleted
		if r.Done {
			r.BytesAcked = s.traffic.data
		}
	}
	if w := s.tier; w != nil {
		r.Tier, r.TierReason, r.Direct, r.Already = w.Tier.String(), w.Reason, w.Direct, w.Committed
		if r.Verified = w.Verify && r.Done; r.Verified {
			r.BytesRepaired = t.Changed
		}
	}
	if err != nil {
		r.Error, r.Kind = err.Error(), KindOf(err)
	}
	return r
}

// attempt runs the session over one connection.
func (s *Source) attempt(ctx context.Context) error {
	conn, err := s.parts.Dial(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	stream, err := transport.NewStream(conn, wire.OwnBanner(s.parts.Software, "source"))
	if err != nil {
		_ = conn.Close()
		return transport.Distrusted(err, s.cfg.PeerIdentity)
	}
	if s.kind == wire.KindTree {
		return transport.Distrusted(s.attemptTrees(ctx, stream), s.cfg.PeerIdentity)
	}
	names := make([]string, len(s.cfg.Volumes))
	for i, v := range s.cfg.Volumes {
		names[i] = v.Name
	}
	link := newPipe(stream, 64, nil)
	work := newExtractor(ctx, reading{
		volumes: s.parts.Volumes, names: names, written: s.core.Written(), limit: s.reads, read: &s.read,
	}, s.pack)
	err = s.drive(ctx, link, work)
	patience := time.Duration(0)
	var own *VolumeError
	if errors.As(err, &own) {
		patience = farewell // the target is told why
	}
	link.leave(patience)
	cancel()
	work.wait()
	s.traffic.add(link.traffic())
	return transport.Distrusted(err, s.cfg.PeerIdentity)
}

// drive carries out what the core asks for until the point is committed or the connection is over.
func (s *Source) drive(ctx context.Context, link *pipe, work *extractor) error {
	beat := time.NewTicker(transport.Beat)
	defer beat.Stop()
	s.meter.phase(PhaseReconciling, "")
	actions := s.core.Begin()
	broken := link.broken
	var late <-chan time.Time
	for {
		s.carryOut(actions, link, work)
		if s.core.Done() {
			return nil
		}
		var event session.Event
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a := <-link.in:
			if a.err != nil {
				return a.err
			}
			event = a.frame.Message
			s.hear(event)
		case <-broken:
			// Why the target went away may still be on its way here.
			broken, late = nil, time.After(farewell)
			actions = nil
			continue
		case <-late:
			return &transport.Lost{During: "send", Err: net.ErrClosed}
		case r := <-work.results:
			if r.err != nil {
				link.send(failure(r.err), nil)
				return r.err
			}
			event = r.event
		case <-beat.C:
			done, total := s.core.Progress()
			link.send(wire.Pulse{Phase: wire.PhaseTransferring, Done: uint64(done), Total: uint64(total)}, nil)
			actions = nil
			continue
		}
		var err error
		if actions, err = s.core.Step(event); err != nil {
			return err
		}
		s.meter.progress(s.core.Progress())
		if s.core.Closed() && s.meter.read().Phase != PhaseCommitting {
			s.meter.phase(PhaseCommitting, "")
		}
	}
}

func (s *Source) carryOut(actions []session.Action, link *pipe, work *extractor) {
	for _, a := range actions {
		switch a := a.(type) {
		case session.Send:
			s.say(a.Message)
			if a.Frees == 0 {
				link.send(a.Message, nil)
				continue
			}
			link.send(a.Message, func() { work.release(a.Frees, s.parts.Now(), link.busy) })
		case session.Scan:
			work.scans <- a
		case session.Read:
			work.reads <- a
		}
	}
}

// hear notes in the state what a message from the target means to whoever watches.
func (s *Source) hear(e session.Event) {
	switch m := e.(type) {
	case wire.Welcome:
		s.tier = &m
		if m.Resumed {
			s.resumed++
		}
		s.parts.Log.Info("session accepted", "point", s.cfg.Point, "tier", m.Tier.String(), "reason", m.Reason, "resumed", m.Resumed)
		s.meter.set(func(st *State) {
			st.Phase, st.Message = PhaseExtracting, ""
			st.Tier, st.TierReason, st.Direct = m.Tier.String(), m.Reason, m.Direct
		})
	case wire.Pulse:
		s.hearPulse(m)
	}
}

// hearPulse matters while the target is busy and the source can only wait.
func (s *Source) hearPulse(m wire.Pulse) {
	switch {
	case s.core.Welcome() == nil:
		s.meter.phase(PhaseReconciling, m.Text)
	case s.core.Closed():
		s.meter.phase(PhaseCommitting, m.Text)
	}
}

func (s *Source) say(m wire.Message) {
	switch m.(type) {
	case wire.Data, wire.Hole:
		s.meter.phase(PhaseTransferring, "")
	}
}
