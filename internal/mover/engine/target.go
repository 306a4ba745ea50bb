package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// TargetParts is what a Target works with.
type TargetParts struct {
	FS spool.FS
	// Volumes are the replicas, in the configuration's order; nil: they are trees. Nobody else writes them.
	Volumes  []volume.Volume
	Software string
	Log      *slog.Logger
	Now      func() time.Time
	// SyncEvery is how many bytes are written before they are made durable; 0 for the usual.
	SyncEvery int64
}

// Target keeps the replicas of one group at the newest recovery point a source brought. One session runs at a time;
// a newer connection takes the session over from an older one, which may be dead without knowing.
type Target struct {
	cfg     TargetConfig
	parts   TargetParts
	members []wire.Member
	meter   *meter
	check   *unpacker
	reads   *pace.Limiter

	// turn is held by the connection whose session runs; spool, live and the replicas belong to its holder.
	turn  chan struct{}
	spool *spool.Spool
	live  *session.Target // of the half delta, kept from the connection before; nil: read it from the spool
	// tooLarge is the point whose delta the spool could not hold, and whose replica is kept elsewhere.
	tooLarge string
	// overflow is the point whose delta the spool could not hold, wherever the replica is kept; for whoever decides on that.
	overflow string

	mu      sync.Mutex
	holding session.Holding         // as of the last change of the spool
	evict   context.CancelCauseFunc // ends the session that runs
}

// errReplaced ends a session whose source has come again over another connection.
var errReplaced = errors.New("a newer connection of the source took the session over")

// NewTarget opens the spool. Nothing is applied before Recover.
func NewTarget(cfg TargetConfig, parts TargetParts) (*Target, error) {
	if parts.SyncEvery == 0 {
		parts.SyncEvery = syncEvery
	}
	t := &Target{
		cfg: cfg, parts: parts, turn: make(chan struct{}, 1),
		reads: pace.New(parts.Now, pace.Always(pace.Rate(cfg.ReadLimit))),
	}
	t.meter = newMeter(parts.Now, State{
		Role: RoleTarget, Replication: cfg.Replication, Epoch: cfg.Epoch, Software: parts.Software, Phase: PhaseStarting,
	})
	for i, v := range cfg.Volumes {
		if parts.Volumes == nil {
			t.members = append(t.members, wire.Member{Name: v.Name, Kind: wire.KindTree})
			continue
		}
		size := parts.Volumes[i].Size()
		switch {
		case size <= 0 || size > wire.MaxVolumeSize:
			return nil, &ConfigError{Field: "volumes[" + v.Name + "]", Found: "a device without content", Want: "give a device or file of at least one byte"}
		case size < v.Size:
			return nil, &ConfigError{Field: "volumes[" + v.Name + "].size", Found: "more than the device has", Want: "give the device at least that size"}
		}
		t.members = append(t.members, wire.Member{Name: v.Name, Size: size})
	}
	var err error
	if t.check, err = newUnpacker(); err != nil {
		return nil, err
	}
	if t.spool, err = spool.Open(parts.FS, cfg.Replication); err != nil {
		return nil, classify("spool "+cfg.Spool, err)
	}
	t.note()
	return t, nil
}

// classify makes an error of the spool or a volume one, unless it says something else already.
func classify(object string, err error) error {
	switch KindOf(err) {
	case KindInternal:
		return &VolumeError{Object: object, Err: err}
	}
	return err
}

// State is what the target is doing and what it holds.
func (t *Target) State() State { return t.meter.read() }

// Recover applies a committed delta that a crash interrupted and adopts the configured epoch. It must succeed before
// the first Handle.
func (t *Target) Recover(ctx context.Context) error {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	if err := t.redo(ctx); err != nil {
		return err
	}
	if err := t.spool.Raise(t.cfg.Epoch); err != nil {
		return classify("spool "+t.cfg.Spool, err)
	}
	if d := t.spool.State().Delta; d != nil && !slices.Equal(d.Members, t.members) {
		// Volumes came, went or grew since it began to arrive.
		if err := t.spool.Drop(); err != nil {
			return classify("spool "+t.cfg.Spool, err)
		}
	}
	if t.trees() {
		t.cleanTrees()
	}
	t.note()
	t.meter.set(func(s *State) { s.Phase, s.Message, s.Ready = PhaseIdle, "", true })
	return nil
}

// Close lets go of the spool's log.
func (t *Target) Close() error {
	t.turn <- struct{}{}
	return t.spool.Close()
}

// note publishes what the spool holds now.
func (t *Target) note() {
	st := t.spool.State()
	h := session.Holding{
		Replication: t.cfg.Replication, Epoch: st.Epoch, Members: t.members,
		Committed: st.Committed, Mixed: st.Mixed, Written: t.cfg.ReplicaHolds == HoldsData, TooLarge: t.tooLarge,
	}
	if d := st.Delta; d != nil && !t.spool.Pending() {
		h.Half = &session.Half{Point: d.Point.ID, Epoch: d.Point.Epoch, Tier: d.Tier, Direct: d.Direct, Verify: d.Verify, Reason: d.Reason}
		if t.live != nil {
			h.Half.Cursor = t.live.Cursor()
		}
	}
	t.mu.Lock()
	t.holding = h
	t.mu.Unlock()
	t.meter.set(func(s *State) {
		s.Epoch = max(st.Epoch, t.cfg.Epoch)
		s.Committed, s.Applied, s.Verified = st.Committed, st.Applied, st.Verified
		s.SpoolBytes, s.TooLarge = t.spool.Size(), t.overflow
	})
}

// Handle serves one connection of a source that is already trusted. Its error is for the log: the source has been told.
func (t *Target) Handle(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	stream, err := transport.NewStream(conn, wire.OwnBanner(t.parts.Software, "target"))
	if err != nil {
		_ = conn.Close()
		return err
	}
	hello, err := firstHello(stream)
	if err != nil {
		_ = stream.Close()
		return err
	}
	if t.trees() {
		return (&treeReceiver{target: t, stream: stream, hello: hello}).serve(ctx)
	}
	r := &receiver{target: t, process: ctx, log: t.parts.Log, hello: hello}
	r.link = newPipe(stream, 16, r.prepare)
	err = r.serve(ctx)
	patience := time.Duration(0)
	if r.farewell {
		patience = farewell
	}
	r.link.leave(patience)
	rest()
	return err
}

// trees reports that the members are directories.
func (t *Target) trees() bool { return len(t.members) > 0 && t.members[0].Kind == wire.KindTree }

func firstHello(stream *transport.Stream) (wire.Hello, error) {
	m, err := receiveSmall(stream)
	if err != nil {
		return wire.Hello{}, err
	}
	hello, ok := m.(wire.Hello)
	if !ok {
		return wire.Hello{}, &session.Violation{What: fmt.Sprintf("it begins with a %s", m.Type())}
	}
	return hello, nil
}

// take waits for the turn, after asking whoever has it to leave.
func (t *Target) take(ctx context.Context, evict context.CancelCauseFunc) error {
	t.mu.Lock()
	if t.evict != nil {
		t.evict(errReplaced)
	}
	t.evict = evict
	t.mu.Unlock()
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *Target) hold() session.Holding {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holding
}
