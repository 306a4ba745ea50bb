package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// receiver serves one connection.
type receiver struct {
	target *Target
	link   *pipe
	log    *slog.Logger

	process  context.Context // of the whole target: a commit outlives its connection
	hello    wire.Hello
	delta    *spool.Delta
	maps     maps
	farewell bool // the source has been sent something it must read before the connection ends
}

// result is what became of a Data's bytes: proven, and unpacked for a replica.
type result struct {
	raw    []byte
	memory []byte
	from   *volume.Pool // of memory; nil: raw lies elsewhere
	err    error
}

func (r *result) release() {
	if r.from != nil {
		r.from.Put(r.memory)
		r.from = nil
	}
}

// prepare unpacks and proves a Data while the ones before it are being stored.
func (r *receiver) prepare(f transport.Frame) <-chan result {
	m, ok := f.Message.(wire.Data)
	if !ok {
		return nil
	}
	if m.Volume >= len(r.target.members) {
		return nil // the session will say so
	}
	done := make(chan result, 1)
	go func() {
		x := result{}
		if !liesRight(m) {
			x.from = recordPool(m.Length)
			x.memory = x.from.Get()
		}
		x.raw, x.err = r.target.check.unpack(m, r.target.members[m.Volume].Size, x.memory)
		var spoiled *session.Integrity
		if f.Bare && errors.As(x.err, &spoiled) {
			x.err = &transport.Lost{During: "receive", Err: fmt.Errorf("%w: %w", wire.ErrCorrupt, x.err)}
		}
		done <- x
	}()
	return done
}

// serve runs the session of this connection to its end.
func (r *receiver) serve(ctx context.Context) error {
	defer func() { r.maps.close() }()
	t := r.target
	// A stale source is turned away before it can disturb the session that runs.
	if refusal := session.Refuse(t.hold(), r.hello); refusal != nil {
		return r.refuse(refusal)
	}
	ctx, evict := context.WithCancelCause(ctx)
	defer evict(nil)
	quiet := r.pulse(ctx)
	err := t.take(ctx, evict)
	if err != nil {
		quiet()
		return r.fail(err)
	}
	defer func() { <-t.turn }()
	core, refusal, err := r.open()
	quiet()
	if refusal != nil {
		return r.refuse(refusal)
	}
	if err == nil && core != nil {
		err = r.receive(ctx, core)
	}
	if err != nil {
		return r.fail(err)
	}
	r.farewell = true
	t.meter.phase(PhaseIdle, "")
	return nil
}

func (r *receiver) refuse(refusal *session.Refusal) error {
	r.link.send(refusal.Message(), nil)
	r.farewell = true
	return refusal
}

// fail tells the source, if there is still a way to, and the state.
func (r *receiver) fail(err error) error {
	var lost *transport.Lost
	var remote *session.Remote
	if errors.Is(err, errReplaced) {
		r.link.send(wire.Failed{Kind: wire.FailedReplaced, Text: err.Error()}, nil)
		r.farewell = true
		return err
	}
	r.target.meter.phase(PhaseIdle, "the last session ended early: "+err.Error())
	if !errors.As(err, &lost) && !errors.As(err, &remote) {
		r.link.send(failure(err), nil)
		r.farewell = true
	}
	return err
}

// pulse tells the source at every beat what it waits for, until the returned function is called.
func (r *receiver) pulse(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		beat := time.NewTicker(transport.Beat)
		defer beat.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-beat.C:
				r.link.send(r.target.beat(), nil)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// beat is a Pulse of what the target is doing now.
func (t *Target) beat() wire.Pulse {
	s := t.meter.read()
	p := wire.Pulse{Done: uint64(s.BytesDone), Total: uint64(s.BytesTotal), Phase: wire.PhaseWaiting}
	switch s.Phase {
	case PhaseReconciling:
		p.Phase = wire.PhaseReconciling
	case PhaseReceiving:
		p.Phase = wire.PhaseTransferring
	case PhaseCommitting:
		p.Phase = wire.PhaseCommitting
	case PhaseApplying, PhaseRedoing:
		p.Phase = wire.PhaseApplying
	}
	p.Text = fmt.Sprintf("the target is %s, %.0f %%", s.Phase, s.Percent)
	if s.Message != "" {
		p.Text += ": " + s.Message
	}
	return p
}

// decide says what to do with a source, after what a crash interrupted is done, and does what comes before the session.
func (t *Target) decide(ctx context.Context, hello wire.Hello) (session.Decision, *session.Refusal, error) {
	if err := t.redo(ctx); err != nil {
		return session.Decision{}, nil, err
	}
	t.note()
	d, refusal := session.Decide(t.hold(), hello)
	if refusal != nil {
		return d, refusal, nil
	}
	t.meter.set(func(s *State) {
		s.Phase, s.Message = PhaseReconciling, ""
		s.Point, s.PointTime = hello.Point, hello.PointTime
		s.Tier, s.TierReason, s.Direct = d.Welcome.Tier.String(), d.Welcome.Reason, d.Welcome.Direct
	})
	if d.Raise {
		t.live = nil
		if err := t.spool.Raise(hello.Epoch); err != nil {
			return d, nil, classify("spool", err)
		}
	}
	if d.DropHalf {
		t.live = nil
		if err := t.spool.Drop(); err != nil {
			return d, nil, classify("spool", err)
		}
	}
	t.note()
	return d, nil, nil
}

// open decides about the source and brings spool and digest maps to where the session begins. A nil core means that
// there is nothing to do.
func (r *receiver) open() (*session.Target, *session.Refusal, error) {
	t := r.target
	d, refusal, err := t.decide(r.process, r.hello)
	if refusal != nil || err != nil {
		return nil, refusal, err
	}
	if d.Welcome.Committed {
		r.link.send(d.Welcome, nil)
		return nil, nil, nil
	}
	core, err := r.begin(d)
	if err != nil {
		return nil, nil, err
	}
	d.Welcome.Start = core.Cursor()
	r.link.send(d.Welcome, nil)
	for _, m := range core.Opening() {
		r.link.send(m, nil)
	}
	r.log.Info("session begins", "point", r.hello.Point, "epoch", r.hello.Epoch, "tier", d.Welcome.Tier.String(),
		"reason", d.Welcome.Reason, "resumed", d.Welcome.Resumed)
	return core, nil, nil
}

// begin makes the core of a new delta, or finds that of the half one.
func (r *receiver) begin(d session.Decision) (*session.Target, error) {
	t := r.target
	var expect [][]digest.Digest
	if d.Welcome.Tier.Compares() {
		if d.Welcome.Verify && !d.Welcome.Resumed {
			// Not what is remembered of the replica is to be compared, but the replica.
			if err := t.spool.SetMaps(nil); err != nil {
				return nil, classify("spool", err)
			}
		}
		var err error
		// Reading a whole replica may take long: a link that flaps meanwhile must not make it begin anew each time.
		if r.maps, expect, err = t.openMaps(r.process); err != nil {
			return nil, err
		}
		if d.Welcome.Tier == wire.TierDigest {
			if err := t.fill(r.process, r.maps, expect); err != nil {
				return nil, err
			}
		}
	}
	if t.live != nil {
		t.live.Rejoin()
		r.delta = t.spool.State().Delta
		return t.live, nil
	}
	if !d.Welcome.Resumed {
		err := t.spool.Begin(spool.Delta{
			Point: session.Point{ID: r.hello.Point, Time: r.hello.PointTime, Epoch: r.hello.Epoch, Cut: r.hello.Cut},
			Tier:  d.Welcome.Tier, Direct: d.Welcome.Direct, Verify: d.Welcome.Verify, Reason: d.Welcome.Reason, Members: t.members,
		})
		if err != nil {
			return nil, classify("spool", err)
		}
	}
	core := session.NewTarget(r.hello, d.Welcome.Tier, expect)
	if err := t.spool.OpenLog(core.Restore); err != nil {
		return nil, classify("spool", err)
	}
	r.delta = t.spool.State().Delta
	t.live = core
	return core, nil
}

// receive carries out what the core asks for until the point is committed or the connection is over.
func (r *receiver) receive(ctx context.Context, core *session.Target) error {
	t := r.target
	t.meter.phase(PhaseReceiving, "")
	keep := newKeeper(t, r.delta.Direct)
	err := r.drive(ctx, core, keep)
	stored := keep.end()
	defer t.note()
	if t.spool.State().Delta == nil {
		t.sweep() // the source has been told, or is gone
	}
	if err == nil {
		t.live = nil
		return nil
	}
	return errors.Join(err, r.settle(err, stored))
}

// settle leaves the spool so that the next session can go on, or begin anew where going on would not be safe.
func (r *receiver) settle(err, stored error) error {
	t := r.target
	var broke *session.Violation
	var wrong *session.Integrity
	var unsafe *unsynced
	var log *spool.Unsynced
	var full *SpoolFull
	switch {
	case t.spool.Pending(), t.spool.State().Delta == nil:
		t.live = nil // it was committed, applied or not
	case errors.As(err, &wrong), errors.As(err, &broke), errors.Is(err, digest.ErrDamaged):
		// What the two sides believe of each other cannot both be true: compare from the bytes up.
		t.live = nil
		return errors.Join(t.spool.Drop(), t.spool.SetMaps(nil))
	case errors.As(err, &full):
		t.live = nil
		t.overflow = r.hello.Point
		if t.cfg.KeptElsewhere {
			t.tooLarge = r.hello.Point
		}
		return t.spool.Drop()
	case errors.As(stored, &unsafe), errors.As(stored, &log):
		// After a sync that failed, nobody knows what is on the disk.
		t.live = nil
		return t.spool.Drop()
	case stored != nil:
		t.live = nil
	}
	return nil
}

// graceForReplaced is how long a connection that was replaced may go on delivering what it had.
const graceForReplaced = 500 * time.Millisecond

func (r *receiver) drive(ctx context.Context, core *session.Target, keep *keeper) error {
	t := r.target
	beat := time.NewTicker(transport.Beat)
	defer beat.Stop()
	committed := make(chan error, 1)
	committing := false
	defer func() {
		// A commit that has begun is not left alone with the spool.
		if committing {
			<-committed
		}
	}()
	over := ctx.Done()
	var replaced <-chan time.Time
	for !core.Done() {
		var event session.Event
		var work result
		var frame transport.Frame
		select {
		case <-over:
			if !errors.Is(context.Cause(ctx), errReplaced) {
				return context.Cause(ctx)
			}
			// The source came again because this connection broke: what it had sent before is still arriving.
			over, replaced = nil, time.After(graceForReplaced)
			continue
		case <-replaced:
			return errReplaced
		case a := <-r.link.in:
			if a.err != nil && replaced != nil {
				return errReplaced
			}
			if a.err != nil {
				return a.err
			}
			frame, event = a.frame, a.frame.Message
			if a.work != nil {
				work = <-a.work
			}
			if work.err != nil {
				work.release()
				frame.Release()
				return work.err
			}
		case <-keep.wake:
			position, err := keep.durable()
			if err != nil {
				return err
			}
			event = session.Durable{Position: position}
		case err := <-committed:
			committing = false
			if err != nil {
				return err
			}
			event = session.Applied{}
		case <-beat.C:
			r.link.send(t.beat(), nil)
			continue
		}
		actions, err := core.Step(event)
		if err != nil {
			work.release()
			frame.Release()
			return err
		}
		kept := false
		for _, a := range actions {
			switch a := a.(type) {
			case session.Send:
				r.link.send(a.Message, nil)
			case session.Store:
				keep.store(item{record: a.Record, after: a.After, frame: frame, work: work})
				kept = true
			case session.Load:
				if err := r.load(core, a); err != nil {
					return err
				}
			case session.Commit:
				committing = true
				go func() { committed <- t.commit(r.process) }()
			}
		}
		if !kept {
			work.release()
			frame.Release()
		}
		if _, whole := event.(wire.Close); whole && !committing {
			keep.hurry()
		}
		if !committing {
			t.meter.progress(core.Progress())
		}
	}
	return nil
}

// load answers a Load from the digest map.
func (r *receiver) load(core *session.Target, l session.Load) error {
	blocks, err := r.maps.blocks(l.Volume, l.Segment)
	if err != nil {
		return err
	}
	actions, err := core.Step(session.Loaded{Volume: l.Volume, Segment: l.Segment, Digests: blocks})
	if err != nil {
		return err
	}
	for _, a := range actions {
		r.link.send(a.(session.Send).Message, nil)
	}
	return nil
}
