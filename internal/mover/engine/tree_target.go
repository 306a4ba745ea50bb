package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/tree"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// treeReceiver serves one connection of a source of trees.
type treeReceiver struct {
	target *Target
	stream *transport.Stream
	hello  wire.Hello
	turn   sync.Mutex // who sends
}

func (r *treeReceiver) send(m wire.Message) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	return sendNow(r.stream, m)
}

// serve runs the session to its end and leaves the connection closed.
func (r *treeReceiver) serve(ctx context.Context) error {
	t := r.target
	if refusal := session.Refuse(t.hold(), r.hello); refusal != nil {
		return r.part(refusal.Message(), refusal)
	}
	own, evict := context.WithCancelCause(ctx)
	defer evict(nil)
	unhook := context.AfterFunc(own, func() { _ = r.stream.Close() })
	defer unhook()
	quiet := r.pulse(own)
	if err := t.take(own, evict); err != nil {
		quiet()
		return r.fail(own, err)
	}
	defer func() { <-t.turn }()
	defer t.note()
	err := r.session(ctx, own, quiet)
	quiet()
	if err != nil {
		return r.fail(own, errors.Join(err, r.settle(err)))
	}
	t.meter.phase(PhaseIdle, "")
	return nil
}

// session decides about the source, and receives and commits what it brings. quiet ends the pulses, which must not
// come between what package tree says.
func (r *treeReceiver) session(process, ctx context.Context, quiet func()) error {
	t := r.target
	d, refusal, err := t.decide(process, r.hello)
	if refusal != nil {
		quiet()
		return r.part(refusal.Message(), refusal)
	}
	if err != nil {
		return err
	}
	if d.Welcome.Committed {
		quiet()
		return r.part(d.Welcome, nil)
	}
	receivers, err := r.begin(process, d)
	defer func() {
		for _, x := range receivers {
			x.Close()
		}
	}()
	if err != nil {
		return err
	}
	quiet()
	t.meter.phase(PhaseReceiving, "")
	if err := r.send(d.Welcome); err != nil {
		return err
	}
	for _, x := range receivers {
		if _, err := x.Run(ctx, r.stream); err != nil {
			return err
		}
	}
	if err := r.awaitClose(); err != nil {
		return err
	}
	return r.commit(process)
}

// begin brings the spool and the indexes to where the session begins.
func (r *treeReceiver) begin(ctx context.Context, d session.Decision) ([]*tree.Receiver, error) {
	t := r.target
	if d.Welcome.Verify && !d.Welcome.Resumed {
		if err := t.spool.SetMaps(nil); err != nil {
			return nil, classify("spool", err)
		}
	}
	if d.Welcome.Tier.Compares() && !d.Welcome.Direct {
		if err := t.buildIndexes(ctx); err != nil {
			return nil, err
		}
	}
	if !d.Welcome.Resumed {
		if err := t.spool.Begin(r.delta(d)); err != nil {
			return nil, classify("spool", err)
		}
	}
	var out []*tree.Receiver
	for v := range t.members {
		x, err := tree.NewReceiver(t.spool, v, t.cfg.Volumes[v].Device, tree.ReceiveOptions{
			Log: t.parts.Log, Progress: func(done int64) { t.meter.progress(done, done) },
		})
		if err != nil {
			return out, err
		}
		out = append(out, x)
	}
	err := t.spool.OpenLog(func(m wire.Message) error {
		for v, x := range out {
			if tree.IsRecord(m, v) {
				return x.Restore(m)
			}
		}
		return &spool.Damaged{What: fmt.Sprintf("a %s in the log of a delta of trees", m.Type())}
	})
	return out, classifyNil("spool", err)
}

func classifyNil(object string, err error) error {
	if err == nil {
		return nil
	}
	return classify(object, err)
}

func (r *treeReceiver) delta(d session.Decision) spool.Delta {
	return spool.Delta{
		Point: session.Point{ID: r.hello.Point, Time: r.hello.PointTime, Epoch: r.hello.Epoch, Cut: r.hello.Cut},
		Tier:  d.Welcome.Tier, Direct: d.Welcome.Direct, Verify: d.Welcome.Verify, Reason: d.Welcome.Reason, Members: r.target.members,
	}
}

// buildIndexes reads the replicas whose index is missing.
func (t *Target) buildIndexes(ctx context.Context) error {
	refs := map[string]spool.MapRef{}
	built := false
	for v, m := range t.members {
		if ref, known := t.spool.State().Maps[m.Name]; known {
			refs[m.Name] = ref
			continue
		}
		t.meter.phase(PhaseReconciling, "reads replica "+m.Name+" to learn what it holds")
		ref, err := tree.BuildIndex(ctx, t.spool, t.cfg.Volumes[v].Device, nil)
		if err != nil {
			return err
		}
		refs[m.Name], built = ref, true
	}
	if !built {
		return nil
	}
	return classifyNil("spool", t.spool.SetMaps(refs))
}

func (r *treeReceiver) awaitClose() error {
	for {
		m, err := receiveSmall(r.stream)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case wire.Pulse:
		case wire.Failed:
			return &session.Remote{Kind: m.Kind, Text: m.Text}
		case wire.Close:
			if want := treeClosing(r.hello); m.Digest != want {
				return &session.Integrity{What: "delta as received", Want: m.Digest, Got: want}
			}
			return nil
		default:
			return &session.Violation{What: fmt.Sprintf("a %s after the last tree", m.Type())}
		}
	}
}

// commit makes the point the recovery point and says so. It outlives the connection.
func (r *treeReceiver) commit(process context.Context) error {
	quiet := r.pulse(process)
	err := r.target.commit(process)
	quiet()
	if err != nil {
		return err
	}
	return r.part(wire.Committed{Point: r.hello.Point}, nil)
}

// pulse says at every beat what the target does, until the returned function is called, once or more.
func (r *treeReceiver) pulse(ctx context.Context) (quiet func()) {
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
				if r.send(r.target.beat()) != nil {
					return
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

// part says the last word and waits until the source has read it and closed.
func (r *treeReceiver) part(m wire.Message, err error) error {
	timer := time.AfterFunc(farewell, func() { _ = r.stream.Close() })
	defer timer.Stop()
	if r.send(m) == nil {
		r.stream.EndWrite()
		for {
			f, err := r.stream.Receive()
			f.Release()
			if err != nil {
				break
			}
		}
	}
	_ = r.stream.Close()
	return err
}

// fail tells the source why the session ends, if there is still a way to, and the state.
func (r *treeReceiver) fail(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errReplaced) {
		_ = r.stream.Close()
		return cause
	}
	var refusal *session.Refusal
	if errors.As(err, &refusal) {
		return err
	}
	r.target.meter.phase(PhaseIdle, "the last session ended early: "+err.Error())
	return r.part(failure(err), err)
}

// settle leaves the spool so that the next session can go on, or begin anew where going on would not be safe.
func (r *treeReceiver) settle(err error) error {
	t := r.target
	var broke *session.Violation
	var wrong *session.Integrity
	var diverged *tree.Diverged
	switch {
	case t.spool.Pending(), t.spool.State().Delta == nil:
		return nil
	case errors.As(err, &wrong), errors.As(err, &broke), errors.As(err, &diverged), errors.Is(err, tree.ErrIndex):
		return errors.Join(t.spool.Drop(), t.spool.SetMaps(nil))
	case KindOf(err) == KindSpace:
		return t.spool.Drop()
	}
	return nil
}

// applyTrees brings the committed delta onto the trees: everything of it may be done again from the beginning.
func (t *Target) applyTrees(ctx context.Context, d *spool.Delta) error {
	refs := map[string]spool.MapRef{}
	for v, m := range d.Members {
		at, err := t.memberNamed(m)
		if err != nil {
			return err
		}
		ref, err := tree.Apply(t.spool, v, t.cfg.Volumes[at].Device, tree.ApplyOptions{
			Step: func(string, string) error { return ctx.Err() },
		})
		if err != nil {
			return err
		}
		refs[m.Name] = ref
	}
	if err := t.spool.Finish(refs); err != nil {
		return classify("spool "+t.cfg.Spool, err)
	}
	t.cleanTrees()
	return nil
}

// cleanTrees removes what an apply that is over, or was given up, had set aside. A first copy that goes straight to the
// replica has objects set aside for names that are still to come, also while no connection brings any.
func (t *Target) cleanTrees() {
	if t.spool.State().Delta != nil && t.spool.State().Delta.Direct {
		return
	}
	for v := range t.members {
		if err := tree.Clean(t.cfg.Volumes[v].Device); err != nil {
			t.parts.Log.Warn("what was set aside in the tree is left", "tree", t.members[v].Name, "error", err.Error())
		}
	}
}
