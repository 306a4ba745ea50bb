package standalone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/mover/transport"
)

// Destination is a target as the source knows it.
type Destination struct {
	Peer    string // the host's name
	Address string // host:port
}

func (d Destination) String() string { return d.Peer + "@" + d.Address }

// SenderOptions is what a Sender is to do.
type SenderOptions struct {
	Host     *Host
	Group    string // both hosts call the group of sources so
	Epoch    uint64
	Members  []Member
	Targets  []Destination
	StateDir string // empty: the folder state in the host's

	Limit pace.Calendar // of each target's link
	Total pace.Calendar // of all of them together

	Compression engine.Compression
	ReadLimit   int64 // bytes per second read from the sources; 0: none
	Verify      bool
	// VerifyEvery is after how long the next session also reads and compares both sides; 0: never by itself. The clock
	// of a target begins with its first session.
	VerifyEvery time.Duration
	Fresh       bool   // an interrupted session is given up for a new instant
	Point       string // empty: a new name for each instant
	// Base and Changes are lists of changes made elsewhere: one file for each member, complete since the point Base.
	Base    string
	Changes []string
	// KeepBase keeps the newest instant of each target, so that the next session finds changes without reading.
	KeepBase bool
	// Watch is how long after a session's start the next one begins; 0: there is one session.
	Watch time.Duration
	// Patience is how long a target may be out of reach before its session fails; 0: for ever.
	Patience time.Duration

	Software string
	Log      *slog.Logger
	Now      func() time.Time
	// Observe is told what happens, one event at a time; it must not wait for the Sender.
	Observe func(Event)
}

// EventKind is what an Event tells.
type EventKind string

// The kinds.
const (
	EventNote    EventKind = "note"    // something a person should know; Text says it
	EventBegin   EventKind = "begin"   // a session begins, or goes on
	EventSession EventKind = "session" // a session ended; Report has all of it
)

// Event is something that happened to one target.
type Event struct {
	Time    time.Time      `json:"time"`
	Kind    EventKind      `json:"event"`
	Target  string         `json:"target,omitempty"`
	Point   string         `json:"point,omitempty"`
	Resumed bool           `json:"resumed,omitempty"` // an earlier run began this session
	Live    bool           `json:"live,omitempty"`    // the sources themselves are read: nobody may write them meanwhile
	Text    string         `json:"text,omitempty"`
	Report  *engine.Report `json:"report,omitempty"`
}

// Result is how a target's last session ended.
type Result struct {
	Target      Destination
	Report      engine.Report
	Interrupted bool
}

// Progress is what a target's session is doing.
type Progress struct {
	Target string       `json:"target"`
	State  engine.State `json:"state"`
	// Next is when the next session begins; zero while one runs or none will.
	Next time.Time `json:"next,omitzero"`
}

// Sender brings instants of a group of sources to several targets. Each target has its own sessions at its own pace.
type Sender struct {
	o      SenderOptions
	ledger *ledger
	total  *pace.Limiter
	lanes  []*lane

	observing sync.Mutex
}

// lane is the way to one target.
type lane struct {
	s     *Sender
	to    Destination
	peer  Peer
	limit *pace.Limiter

	mu     sync.Mutex
	source *engine.Source
	next   time.Time

	awaySince time.Time // belongs to the session's one dialling goroutine
	gaveUp    bool
}

// NewSender checks the options and locks the group's ledger; Close lets go of it. Errors are *engine.ConfigError where
// an option is wrong.
func NewSender(o SenderOptions) (*Sender, error) {
	s := &Sender{o: o, total: pace.New(o.Now, o.Total)}
	for _, to := range o.Targets {
		peer, err := o.Host.Peer(to.Peer)
		if err != nil {
			return nil, err
		}
		to.Peer = peer.Name
		l := &lane{s: s, to: to, peer: peer, limit: pace.New(o.Now, o.Limit)}
		if slices.ContainsFunc(s.lanes, func(other *lane) bool { return other.to == to }) {
			return nil, &engine.ConfigError{Field: "target", Found: to.String() + " twice", Want: "name each target once"}
		}
		if err := s.config(l, o.Point, instant{}).Validate(); err != nil {
			return nil, err
		}
		s.lanes = append(s.lanes, l)
	}
	if (o.Base == "") != (len(o.Changes) == 0) {
		return nil, &engine.ConfigError{Field: "--base and --changes", Found: "only one of them", Want: "give the lists of changes, and the point since which they are complete"}
	}
	if len(o.Changes) > 0 && len(o.Changes) != len(o.Members) {
		return nil, &engine.ConfigError{Field: "--changes", Found: fmt.Sprintf("%d files for %d sources", len(o.Changes), len(o.Members)), Want: "give one for each source, in the same order"}
	}
	if o.StateDir == "" {
		o.StateDir = filepath.Join(o.Host.Dir, "state")
	}
	var err error
	s.ledger, err = openLedger(o.StateDir, s.replication(), o.Members)
	return s, err
}

// Close lets another process replicate these sources.
func (s *Sender) Close() error { return s.ledger.close() }

// replication is what both hosts call it: a target's spool belongs to one source host and one group of it.
func (s *Sender) replication() string { return s.o.Host.Name + "/" + s.o.Group }

// Run replicates to all targets until each is done, or ctx ends. The results are in the targets' order.
func (s *Sender) Run(ctx context.Context) []Result {
	results := make([]Result, len(s.lanes))
	began := s.o.Now()
	var wg sync.WaitGroup
	for i, l := range s.lanes {
		wg.Go(func() { results[i] = l.run(ctx, began) })
	}
	wg.Wait()
	return results
}

// Progress is what each target's session is doing now, in the targets' order.
func (s *Sender) Progress() []Progress {
	out := make([]Progress, len(s.lanes))
	for i, l := range s.lanes {
		l.mu.Lock()
		out[i] = Progress{Target: l.to.String(), Next: l.next}
		if l.source != nil {
			out[i].State = l.source.State()
		}
		l.mu.Unlock()
	}
	return out
}

func (s *Sender) observe(e Event) {
	s.observing.Lock()
	defer s.observing.Unlock()
	e.Time = s.o.Now()
	s.o.Observe(e)
}

// run runs a target's sessions, start to start.
func (l *lane) run(ctx context.Context, began time.Time) Result {
	s := l.s
	// What another target is given in the same round is good for this one too.
	for since := began; ; since = s.o.Now() {
		r := l.session(ctx, since)
		s.observe(Event{Kind: EventSession, Target: l.to.String(), Point: r.Point, Report: &r})
		if ctx.Err() != nil && !r.Done {
			return Result{Target: l.to, Report: r, Interrupted: true}
		}
		over := s.o.Watch == 0 || r.Kind.ForGood() || r.Kind == engine.KindConfiguration
		if over || l.rest(ctx, since.Add(s.o.Watch)) != nil {
			return Result{Target: l.to, Report: r}
		}
	}
}

func (l *lane) rest(ctx context.Context, until time.Time) error {
	l.mu.Lock()
	l.next = until
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.next = time.Time{}
		l.mu.Unlock()
	}()
	return wait(ctx, until.Sub(l.s.o.Now()))
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// session runs one session to its end, over as many connections as that takes.
func (l *lane) session(ctx context.Context, since time.Time) engine.Report {
	began := l.s.o.Now()
	point, i, err := l.take(since)
	var r engine.Report
	if err == nil {
		r, err = l.move(ctx, point, i)
	}
	if err != nil {
		return engine.Report{
			Replication: l.s.replication(), Epoch: l.s.o.Epoch, Point: point, PointTime: i.Time,
			Started: began, DurationSeconds: l.s.o.Now().Sub(began).Seconds(), Error: err.Error(), Kind: engine.KindOf(err),
		}
	}
	if l.gaveUp {
		r.Kind = engine.KindLink
	}
	if r.Done {
		if err := l.settle(point, r.Verified); err != nil {
			l.note("the point is committed, but: " + err.Error())
		}
	}
	return r
}

// take decides which instant the next session brings: the one an earlier session did not finish, or the one another
// target was given since this round began, or a new one. It is on record before it is cut.
func (l *lane) take(since time.Time) (string, instant, error) {
	s := l.s
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	t := s.ledger.of(l.to.String())
	if point := t.Unfinished; point != "" && l.goesOn(point) {
		i := s.ledger.data.Instants[point]
		s.observe(Event{Kind: EventBegin, Target: l.to.String(), Point: point, Resumed: true, Live: i.live()})
		return point, i, nil
	}
	t.Unfinished = ""
	if err := s.ledger.save(); err != nil {
		return "", instant{}, err
	}
	point, i, found := s.shared(since, t)
	if !found {
		var err error
		if point, i, err = s.cut(t); err != nil {
			return point, i, err
		}
	}
	t.Unfinished = point
	if err := s.ledger.save(); err != nil {
		return point, i, err
	}
	s.observe(Event{Kind: EventBegin, Target: l.to.String(), Point: point, Live: i.live()})
	return point, i, nil
}

// goesOn reports whether an interrupted session can go on, and tells when it cannot.
func (l *lane) goesOn(point string) bool {
	i, known := l.s.ledger.data.Instants[point]
	why := i.gone()
	switch {
	case !known:
		return false
	case l.s.o.Fresh:
		why = "a new instant was asked for"
	case l.s.o.Point != "" && l.s.o.Point != point:
		why = "point " + l.s.o.Point + " was asked for"
	}
	if why == "" {
		return true
	}
	l.note("the session of point " + point + " cannot go on, a new one begins: " + why)
	return false
}

// shared finds an instant that was cut for another target since this round began. Clones that are a little older are
// good too: targets that keep step then share them.
func (s *Sender) shared(since time.Time, t *target) (string, instant, bool) {
	for point, i := range s.ledger.data.Instants {
		from := since
		if !i.live() {
			from = since.Add(-s.o.Watch / 10)
		}
		if point != t.Base && !i.Time.Before(from) && i.gone() == "" {
			return point, i, true
		}
	}
	return "", instant{}, false
}

// cut takes a new instant for a target.
func (s *Sender) cut(t *target) (string, instant, error) {
	now := s.o.Now()
	point := s.o.Point
	if point == "" {
		point = pointID(now, rand.Uint32())
	}
	i, err := plan(s.o.Members, point, now)
	if err != nil {
		return point, instant{Time: now}, &engine.ConfigError{Field: "source", Found: "not usable", Want: err.Error()}
	}
	t.Unfinished = point
	s.ledger.data.Instants[point] = i
	if err := s.ledger.save(); err != nil {
		return point, i, err
	}
	if err := i.cut(); err != nil {
		return point, i, &engine.VolumeError{Object: "instant " + point, Err: err}
	}
	s.ledger.data.Instants[point] = i
	return point, i, nil
}

// settle records that the target holds a point. Its instant is kept where it can tell the next session what changed.
func (l *lane) settle(point string, verified bool) error {
	led := l.s.ledger
	led.mu.Lock()
	defer led.mu.Unlock()
	t := led.of(l.to.String())
	keep := l.s.o.KeepBase || l.s.o.Watch > 0 || t.Base != ""
	t.Unfinished, t.Base = "", ""
	if verified || t.Verified.IsZero() {
		t.Verified = l.s.o.Now()
	}
	if keep && !led.data.Instants[point].live() {
		t.Base = point
	}
	return led.save()
}

func (l *lane) note(text string) {
	l.s.observe(Event{Kind: EventNote, Target: l.to.String(), Text: text})
}

// config is a session's, of an instant.
func (s *Sender) config(l *lane, point string, i instant) engine.SourceConfig {
	c := engine.SourceConfig{
		Replication: s.replication(), Epoch: s.o.Epoch, Point: point, PointTime: i.Time,
		Address: l.to.Address, IdentityDir: s.o.Host.Dir, PeerIdentity: URI(l.peer.Name),
		Compression: s.o.Compression, Verify: s.o.Verify, ReadLimit: s.o.ReadLimit,
	}
	if point == "" {
		c.Point = "new"
	}
	for n, m := range s.o.Members {
		v := engine.SourceVolume{Name: m.Name, Device: m.Path}
		if n < len(i.Parts) {
			v.Device = i.Parts[n].path()
		}
		c.Volumes = append(c.Volumes, v)
	}
	return c
}

// base adds to a session's configuration what is known of changes: a list the user gave, or the kept instant of the
// newest point that the target holds. now is the instant to bring.
func (l *lane) base(c *engine.SourceConfig, now instant) {
	s := l.s
	if s.o.Base != "" && len(s.o.Changes) > 0 {
		c.Base = s.o.Base
		for n := range c.Volumes {
			c.Volumes[n].Changes = &change.Origin{File: s.o.Changes[n]}
		}
		return
	}
	s.ledger.mu.Lock()
	point := s.ledger.of(l.to.String()).Base
	i, known := s.ledger.data.Instants[point]
	s.ledger.mu.Unlock()
	switch why := i.gone(); {
	case !known && now.live():
		c.ChangeNote = "of the source, which cannot be cloned, no earlier instant is kept"
	case !known:
		c.ChangeNote = "no earlier instant of the source is kept here"
	case why != "":
		c.ChangeNote = "the earlier instant cannot be compared with: " + why
	default:
		c.Base = point
		for n := range c.Volumes {
			c.Volumes[n].Changes = &change.Origin{BaseFile: i.Parts[n].path()}
		}
	}
}

// verifyDue reports that both sides are to be compared again.
func (l *lane) verifyDue() bool {
	every := l.s.o.VerifyEvery
	l.s.ledger.mu.Lock()
	defer l.s.ledger.mu.Unlock()
	last := l.s.ledger.of(l.to.String()).Verified
	return every > 0 && !last.IsZero() && l.s.o.Now().Sub(last) >= every
}

// move brings an instant to the target.
func (l *lane) move(ctx context.Context, point string, i instant) (engine.Report, error) {
	s := l.s
	c := s.config(l, point, i)
	c.Verify = c.Verify || l.verifyDue()
	l.base(&c, i)
	l.awaySince, l.gaveUp = time.Time{}, false
	log := s.o.Log.With("target", l.to.String(), "point", point)
	source, done, err := openSource(ctx, c, l.dial, s.o.Software, log)
	if err != nil {
		return engine.Report{}, err
	}
	defer done()
	l.mu.Lock()
	l.source = source
	l.mu.Unlock()
	return source.Run(ctx), nil
}

// OutOfReach is a target that could not be connected to for as long as patience lasted.
type OutOfReach struct {
	Target string
	For    time.Duration
	Last   string
}

func (o *OutOfReach) Error() string {
	return fmt.Sprintf("target %s is out of reach for %s: %s", o.Target, o.For.Round(time.Second), o.Last)
}

// dial connects, and says when it is time to give up.
func (l *lane) dial(ctx context.Context) (net.Conn, error) {
	conn, err := l.connect(ctx)
	var lost *transport.Lost
	if err == nil || !errors.As(err, &lost) {
		l.awaySince = time.Time{}
		return conn, err
	}
	now := l.s.o.Now()
	if l.awaySince.IsZero() {
		l.awaySince = now
	}
	if away := now.Sub(l.awaySince); l.s.o.Patience > 0 && away >= l.s.o.Patience && ctx.Err() == nil {
		l.gaveUp = true
		return nil, &OutOfReach{Target: l.to.String(), For: away, Last: err.Error()}
	}
	return nil, err
}

// connectTimeout bounds connecting and the TLS handshake.
const connectTimeout = 20 * time.Second

func (l *lane) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	m, err := l.s.o.Host.material(l.peer)()
	if err != nil {
		return nil, err
	}
	conf, err := transport.ClientConfig(m, transport.PeerCluster, "", URI(l.peer.Name))
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", l.to.Address)
	if err != nil {
		return nil, &transport.Lost{During: "connect to " + l.to.Address, Err: err}
	}
	link := l.limit.Conn(l.s.total.Conn(transport.Patient(raw, 0)))
	conn := tls.Client(transport.Gather(link), conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = link.Close()
		err = transport.Distrusted(err, URI(l.peer.Name))
		if engine.KindOf(err) == engine.KindTrust {
			return nil, err
		}
		return nil, &transport.Lost{During: "greet the target at " + l.to.Address, Err: err}
	}
	return conn, nil
}
