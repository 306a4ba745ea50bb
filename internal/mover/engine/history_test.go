package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// history is the life of one replication: a source that writes and is cut, a target that is brought up to date, and
// everything that may happen to either. After every step the target is held against the instants the source had.
type history struct {
	t   *testing.T
	rng *rand.Rand
	w   *world
	// steps is what was done, for whoever reads of a failure.
	steps    []string
	sessions int
	tiers    map[string]int

	points []string // cut by the present primary, in its present life
	cuts   int
	// log is everything the present primary wrote, and at how much of it a point was cut.
	log   []written
	cutAt map[string]int
	// known says that the log goes back to when the volumes were empty.
	known bool

	claimed string // the point the target holds; empty: none
	// kept is the instant the replica holds although nothing is committed, and keeps until something is.
	kept  string
	epoch uint64 // the highest the target has told of
	half  bool   // a delta may have arrived in part
	// unsure is a point whose commit was reported as failed, which may stand on the disk all the same.
	unsure string
	// force is the trouble of the next session; empty: chance picks.
	force string
}

// written is a write, or the part a volume grew by.
type written struct {
	name string
	x    digest.Extent
}

// seedEnv repeats one history, by the number a failure tells.
const seedEnv = "LIFEBOAT_TEST_SEED"

// Random histories with everything real but disks and sockets: groups of one to three volumes that are written,
// zeroed and grown; sessions with and without lists of changes, right ones and ones that could not be had, from bases
// that match and that do not; verifications of replicas that rotted; points that come again or in the wrong order; links that are cut or spoiled; targets
// that crash, run full, fail, restart, or lose their spool; epochs that rise, roles that are swapped, and sources of
// an older epoch that come back, also in the middle of a session.
//
// After each step the replica is the instant the target claims, all of the group; the epoch has not shrunk; and a
// session that was told of its commit was told the truth. A run is short; LIFEBOAT_TEST_LONG=10m makes it long, and
// LIFEBOAT_TEST_SEED repeats one history.
func TestLivesOfAReplication(t *testing.T) {
	var histories, sessions int
	tiers := map[string]int{}
	began := time.Now()
	one := func(seed uint64, steps int) {
		h := newHistory(t, seed)
		defer func() {
			if t.Failed() {
				t.Logf("%s=%d, %d steps:\n%s", seedEnv, seed, steps, strings.Join(h.steps, "\n"))
			}
		}()
		for range steps {
			h.step()
		}
		h.w.down()
		histories++
		sessions += h.sessions
		for tier, n := range h.tiers {
			tiers[tier] += n
		}
	}
	if seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64); err == nil {
		one(seed, 40)
		return
	}
	enough := func() bool {
		if long() > 0 {
			return time.Since(began) > long()
		}
		return histories >= 60 || testing.Short() && histories >= 3
	}
	for !enough() {
		rapid.Check(t, func(rt *rapid.T) {
			seed, steps := rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(4, 16).Draw(rt, "steps")
			if !enough() {
				one(seed, steps)
			}
		})
	}
	t.Logf("%d histories, %d sessions, by tier %v", histories, sessions, tiers)
	if !testing.Short() && (tiers["cbt"] == 0 || tiers["digest"] == 0 || tiers["full"] == 0 || tiers["allocated"] == 0) {
		t.Errorf("not every tier was seen: %v", tiers)
	}
}

func newHistory(t *testing.T, seed uint64) *history {
	rng := rand.New(rand.NewPCG(seed, 21))
	var members []member
	for i := range 1 + rng.IntN(3) {
		size := 1 + rng.Int64N(3<<20)
		switch rng.IntN(6) {
		case 0: // two segments
			size = 64<<20 + rng.Int64N(300<<10)
		case 1: // whole blocks
			size = (1 + rng.Int64N(20)) * digest.BlockSize
		}
		members = append(members, member{[]string{"data", "log", "wal"}[i], size})
	}
	w := newWorld(t, members)
	w.machine = w.machine.Clone(rng.Uint64())
	h := &history{t: t, rng: rng, w: w, cutAt: map[string]int{}, known: true, tiers: map[string]int{}}
	h.note("members %v", members)
	w.boot(func() { h.check("") })
	return h
}

func (h *history) note(format string, args ...any) {
	h.steps = append(h.steps, fmt.Sprintf(format, args...))
}

func (h *history) step() {
	steps := []struct {
		weight int
		do     func()
	}{
		{10, func() { h.write(); h.session(h.cut()) }},
		{2, h.again},
		{2, h.staleKnocks},
		{1, h.restart},
		{1, h.loseSpool},
		{1, h.raise},
		{1, h.swapRoles},
		{1, h.grow},
		{1, h.rot},
	}
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	pick := h.rng.IntN(total)
	for _, s := range steps {
		if pick -= s.weight; pick < 0 {
			s.do()
			return
		}
	}
}

// write changes the source: small writes anywhere, larger ones, zeros.
func (h *history) write() {
	for range h.rng.IntN(7) {
		m := h.w.members[h.rng.IntN(len(h.w.members))]
		n := min(m.size, 1+h.rng.Int64N(9000))
		if h.rng.IntN(3) == 0 {
			n = min(m.size, 1+h.rng.Int64N(400<<10))
		}
		at := h.rng.Int64N(m.size - n + 1)
		switch h.rng.IntN(4) {
		case 0:
			h.w.zero(m.name, at, n)
		case 1: // what compresses
			h.w.put(m.name, at, bytes.Repeat([]byte{byte(1 + h.rng.IntN(255))}, int(n)))
		default:
			h.w.write(m.name, at, int(n), h.rng.Uint64())
		}
		h.log = append(h.log, written{m.name, digest.Extent{Offset: at, Length: n}})
	}
}

func (h *history) cut() string {
	h.cuts++
	point := fmt.Sprintf("p%d", h.cuts)
	h.w.cut(point)
	h.points = append(h.points, point)
	h.cutAt[point] = len(h.log)
	return point
}

// attempt is a source, what it offers, and what is expected of it.
type attempt struct {
	point  string
	base   string
	offer  engine.Offer
	verify bool
}

// lists makes a list of changes per volume, of the log from one place to another, now and then with more than that.
func (h *history) lists(point string, from, to int) []change.List {
	var out []change.List
	for _, m := range h.w.members {
		size := h.w.instant[point].Volume(m.name, m.size).Size()
		var extents []digest.Extent
		for _, x := range h.log[from:to] {
			if x.name == m.name && x.x.Offset < size {
				x.x.Length = min(x.x.Length, size-x.x.Offset)
				extents = append(extents, x.x)
			}
		}
		if h.rng.IntN(4) == 0 { // a driver may list more than was written
			at := h.rng.Int64N(size)
			extents = append(extents, digest.Extent{Offset: at, Length: min(size-at, 1+h.rng.Int64N(200<<10))})
		}
		normal, err := change.Normalize(size, extents, change.Grain)
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, change.List{Size: size, Extents: normal})
	}
	return out
}

// plan decides what the source of a point offers.
func (h *history) plan(point string) attempt {
	a := attempt{point: point, verify: h.rng.IntN(10) == 0}
	i := slices.Index(h.points, point)
	if h.known && h.rng.IntN(2) == 0 {
		a.offer.Allocated = h.lists(point, 0, h.cutAt[point])
	}
	switch {
	case i < 0:
	case h.rng.IntN(5) == 0:
		a.offer.Note = "the list of changes ended early"
	case h.rng.IntN(4) > 0:
		// Mostly from what the target holds, else from any earlier point.
		from := slices.Index(h.points[:i+1], h.claimed)
		if from < 0 || h.rng.IntN(5) == 0 {
			from = h.rng.IntN(i + 1)
		}
		a.base = h.points[from]
		a.offer.Changes = h.lists(point, h.cutAt[a.base], h.cutAt[point])
	}
	return a
}

func (h *history) source(a attempt, epoch uint64) *engine.Source {
	cfg := engine.SourceConfig{Replication: "shop/pg", Epoch: epoch, Point: a.point, Base: a.base, Verify: a.verify}
	parts := engine.SourceParts{
		Dial: h.w.dial, Software: "test", Log: quiet(), Now: time.Now, Offer: a.offer,
		Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}
	for _, m := range h.w.members {
		cfg.Volumes = append(cfg.Volumes, engine.SourceVolume{Name: m.name, Device: m.name})
		parts.Volumes = append(parts.Volumes, h.w.instant[a.point].Volume(m.name, m.size))
	}
	s, err := engine.NewSource(cfg, parts)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// run runs a source to its end, booting the target after each crash.
func (h *history) run(ctx context.Context, s *engine.Source, point string) engine.Report {
	ctx, cancel := context.WithTimeout(ctx, hung)
	defer cancel()
	h.sessions++
	done := make(chan engine.Report, 1)
	go func() { done <- s.Run(ctx) }()
	for {
		select {
		case r := <-done:
			return r
		case <-h.w.crashed:
			h.w.down()
			h.w.machine = h.w.machine.Restart()
			h.w.boot(func() { h.check(point) })
		}
	}
}

// session brings a point, with or without trouble on the way.
func (h *history) session(point string) {
	a := h.plan(point)
	s := h.source(a, h.w.epoch)
	troubles := map[string]func(){
		"none": nil, "none again": nil, "none at all": nil,
		"source goes away": nil, "target crashes": nil, "link is cut": nil, "frame is spoiled": nil,
		"stale source in between": nil, "target's disk fails": nil,
	}
	names := make([]string, 0, len(troubles))
	for name := range troubles {
		names = append(names, name)
	}
	slices.Sort(names)
	trouble := names[h.rng.IntN(len(names))]
	if h.force != "" {
		trouble, h.force = h.force, ""
	}
	clear := !h.half && h.claimed != ""
	holds := h.claimed
	h.note("epoch %d: session of %s, base %q, note %q, allocated %v, verify %v: %s", h.w.epoch, point, a.base, a.offer.Note, a.offer.Allocated != nil, a.verify, trouble)
	r, done := h.trouble(trouble, s, point)
	waitFor(h.t, func() bool { return h.w.target.State().Phase == engine.PhaseIdle })
	h.note("  done %v, tier %s (%s), attempts %d, resumed %d, %d bytes of data, error %q", r.Done, r.Tier, r.TierReason, r.Attempts, r.Resumed, r.BytesData, r.Error)
	if done && !r.Done {
		h.t.Fatalf("the session of %s failed: %s (%s)", point, r.Error, r.Kind)
	}
	h.check(point)
	if !r.Done {
		h.half, h.unsure = true, point
		return
	}
	h.half, h.unsure = false, ""
	if h.claimed != point {
		h.t.Fatalf("the source was told that %s is committed, the target claims %q", point, h.claimed)
	}
	if done && r.BytesResent != 0 {
		h.t.Fatalf("%d acknowledged bytes were sent again", r.BytesResent)
	}
	h.tiers[r.Tier]++
	h.expectTier(a, r, clear, holds)
}

// expectTier checks what is certain of the tier: a list that leads from what the target holds is used, and why it is
// not is said.
func (h *history) expectTier(a attempt, r engine.Report, clear bool, held string) {
	switch {
	case r.Already || !clear || a.verify:
	case a.offer.Changes != nil && a.base == held && r.Attempts == 1 && r.Tier != "cbt" && !strings.Contains(r.TierReason, "epoch"):
		h.t.Fatalf("with a list from %s, which the target holds, the tier is %s: %s", a.base, r.Tier, r.TierReason)
	case r.Tier == "cbt" && a.base != held && r.Attempts == 1:
		h.t.Fatalf("with a list from %s the target, which holds %s, chose %s: %s", a.base, held, r.Tier, r.TierReason)
	case r.Tier == "digest" && a.offer.Note != "" && r.Attempts == 1 && !strings.Contains(r.TierReason, a.offer.Note):
		h.t.Fatalf("the reason for tier %s does not say that %s: %s", r.Tier, a.offer.Note, r.TierReason)
	}
}

// trouble runs a session through some trouble. It reports whether the session has to be done in the end, with nothing
// acknowledged sent again.
func (h *history) trouble(kind string, s *engine.Source, point string) (r engine.Report, mustBeDone bool) {
	w, rng := h.w, h.rng
	defer func() { w.wrap = nil }()
	switch kind {
	case "source goes away":
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		left := rng.Int64N(300 << 10)
		w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
			return &cutting{Conn: client, left: left, cut: cancel}, server
		}
		return h.run(ctx, s, point), false
	case "target crashes":
		w.crashAfter(1 + rng.IntN(70))
		r = h.run(context.Background(), s, point)
		w.machine.CrashAfter(1<<40, nil)
		w.drainCrash()
		if w.machine.Crashed() { // at the very end
			w.down()
			w.machine = w.machine.Restart()
			w.boot(func() { h.check(point) })
		}
		return r, true
	case "link is cut":
		left := 1 + rng.IntN(3)
		w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
			if left--; left < 0 {
				return client, server
			}
			return &cutting{Conn: client, left: rng.Int64N(300 << 10)}, server
		}
		return h.run(context.Background(), s, point), true
	case "frame is spoiled":
		faults := wireFaults(rng.Int64N(24))
		f := faults[rng.IntN(len(faults))]
		h.note("  %s", f.name)
		first := true
		w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
			relay, near, far := newRelay(client, server)
			if first {
				spoiled := []*lane{&relay.toTarget, &relay.toSource}[rng.IntN(2)]
				spoiled.at, spoiled.fault = 1+rng.Int64N(12), f.do
			}
			first = false
			relay.start()
			return near, far
		}
		r = h.run(context.Background(), s, point)
		return r, f.honest
	case "stale source in between":
		return h.staleInBetween(s, point), true
	case "target's disk fails":
		h.diskFails()
		r = h.run(context.Background(), s, point)
		w.machine.FailWith(nil)
		// An error after the commit delays the apply; the next session of anybody finishes it.
		waitFor(h.t, func() bool { return w.target.State().Phase == engine.PhaseIdle })
		if st := w.target.State(); st.Committed != nil && !st.Applied {
			h.note("  %s is committed and not applied", st.Committed.ID)
			return h.run(context.Background(), h.source(attempt{point: point}, w.epoch), point), true
		}
		return r, false
	}
	return h.run(context.Background(), s, point), true
}

// staleInBetween lets a source of an older epoch knock while a session runs.
func (h *history) staleInBetween(s *engine.Source, point string) engine.Report {
	w := h.w
	held, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	first := true
	w.wrap = func(client, server net.Conn) (net.Conn, net.Conn) {
		relay, near, far := newRelay(client, server)
		if first {
			relay.toTarget.at = 1 + h.rng.Int64N(6)
			relay.toTarget.fault = func(l *lane, frame []byte) bool {
				once.Do(func() { close(held) })
				<-goOn
				return l.send(frame)
			}
		}
		first = false
		relay.start()
		return near, far
	}
	done := make(chan engine.Report, 1)
	go func() {
		r := h.run(context.Background(), s, point)
		once.Do(func() { close(held) }) // it was over before that frame
		done <- r
	}()
	<-held
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	stale := h.source(attempt{point: h.points[h.rng.IntN(len(h.points))]}, h.epoch-1).Run(ctx)
	close(goOn)
	if stale.Kind != engine.KindStaleEpoch {
		h.t.Errorf("a stale source got %+v", stale)
	}
	r := <-done
	if r.Attempts > 1 {
		h.t.Errorf("a stale source disturbed the session: %+v", r)
	}
	return r
}

// diskFails makes operations of the target's disks fail, of one kind from some time on.
func (h *history) diskFails() {
	errno := []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS}[h.rng.IntN(3)]
	op := []string{"write", "sync", "create", "rename", "zero", "truncate", "remove", "syncdir"}[h.rng.IntN(8)]
	after := h.rng.IntN(12)
	h.note("  %s fails with %v after %d", op, errno, after)
	h.w.machine.FailWith(func(o, _ string) error {
		if o != op {
			return nil
		}
		if after--; after >= 0 {
			return nil
		}
		return errno
	})
}

// check holds the target against what it may be: at the point it claimed before, or at the one under way.
func (h *history) check(underWay string) {
	h.t.Helper()
	st := h.w.target.State()
	if st.Epoch < h.epoch {
		h.t.Fatalf("the epoch shrank from %d to %d", h.epoch, st.Epoch)
	}
	h.epoch = st.Epoch
	if st.Committed == nil {
		if h.claimed != "" {
			h.t.Fatalf("the target forgot %s", h.claimed)
		}
		if h.kept != "" {
			h.replicaIs(h.kept)
		}
		return
	}
	got := st.Committed.ID
	if got != h.claimed && got != underWay && (h.unsure == "" || got != h.unsure) {
		h.t.Fatalf("the target claims %s; it held %q and was brought %q", got, h.claimed, underWay)
	}
	if !st.Applied {
		h.t.Fatalf("point %s is not applied although nothing runs", got)
	}
	h.replicaIs(got)
	h.claimed, h.kept = got, ""
}

// replicaIs compares all members with one instant; what a replica has grown by since is zeros.
func (h *history) replicaIs(point string) {
	h.t.Helper()
	for _, m := range h.w.members {
		replica, instant := h.w.machine.Volume(m.name, m.size), h.w.instant[point].Volume(m.name, m.size)
		if replica.Size() == instant.Size() {
			if at, same := crash.Same(h.w.machine, h.w.instant[point], m.name); !same {
				h.t.Fatalf("volume %s is not as it was at %s, from byte %d on", m.name, point, at)
			}
			continue
		}
		got, want := make([]byte, replica.Size()), make([]byte, replica.Size())
		for v, p := range map[io.ReaderAt][]byte{replica: got, instant: want[:instant.Size()]} {
			if _, err := v.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
				h.t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			h.t.Fatalf("volume %s, which has grown, is not as it was at %s", m.name, point)
		}
	}
}

// again brings a point that was cut before: the one the target holds, or an older one.
func (h *history) again() {
	if len(h.points) == 0 {
		return
	}
	point := h.points[h.rng.IntN(len(h.points))]
	if h.sizesDiffer(point) {
		r := h.run(context.Background(), h.source(attempt{point: point}, h.w.epoch), point)
		h.note("%s has another size: %s", point, r.Error)
		if r.Kind != engine.KindConflict {
			h.t.Fatalf("an instant of another size got %+v", r)
		}
		h.check("")
		return
	}
	h.session(point)
}

func (h *history) sizesDiffer(point string) bool {
	return slices.ContainsFunc(h.w.members, func(m member) bool { return h.w.instant[point].Volume(m.name, m.size).Size() != m.size })
}

// staleKnocks lets a source of an older epoch in: it is refused and changes nothing.
func (h *history) staleKnocks() {
	if len(h.points) == 0 {
		return
	}
	before := h.w.machine.Ops()
	a := h.plan(h.points[h.rng.IntN(len(h.points))])
	r := h.run(context.Background(), h.source(a, h.epoch-1-uint64(h.rng.IntN(2))), "")
	h.note("a stale source knocks with %s: %s", a.point, r.Error)
	if r.Kind != engine.KindStaleEpoch || r.ExitCode() != engine.ExitRefused {
		h.t.Fatalf("a stale source got %+v", r)
	}
	if n := h.w.machine.Ops() - before; n != 0 {
		h.t.Fatalf("a stale source caused %d changes", n)
	}
	h.check("")
}

// goesAwayNext lets the next session, as often as not, be broken off: what a replica keeps until a delta is whole is seen
// only then.
func (h *history) goesAwayNext() {
	if h.rng.IntN(2) == 0 {
		h.force = "source goes away"
	}
}

func (h *history) restart() {
	h.w.down()
	crashes := h.rng.IntN(2) == 0
	h.note("restart, crash %v", crashes)
	if crashes {
		h.w.machine = h.w.machine.Restart()
	}
	h.w.boot(func() { h.check("") })
}

// loseSpool takes the spool away. Whoever does that says what the replica holds.
func (h *history) loseSpool() {
	h.w.down()
	h.w.machine = h.w.machine.WithFolderOf(crash.New(0)).Clone(h.rng.Uint64())
	h.w.holds = []engine.Content{engine.HoldsNothing, engine.HoldsData}[h.rng.IntN(2)]
	h.note("the spool is lost, the replica is said to hold %s", h.w.holds)
	if h.claimed != "" {
		h.kept = h.claimed
	}
	if h.w.holds == engine.HoldsNothing {
		h.kept = ""
	}
	h.goesAwayNext()
	h.claimed, h.half, h.unsure = "", false, ""
	h.w.boot(func() { h.check("") })
}

// raise begins a new epoch of the same primary.
func (h *history) raise() {
	h.w.epoch++
	h.note("epoch %d", h.w.epoch)
	if h.rng.IntN(2) == 0 {
		h.w.down()
		h.w.boot(func() { h.check("") })
	}
}

// swapRoles makes the replica the primary, from the point it holds, and what was the primary its replica.
func (h *history) swapRoles() {
	if h.claimed == "" {
		return
	}
	h.w.down()
	old := h.w
	diverged := fmt.Sprintf("as the primary was left in epoch %d", old.epoch)
	w := newWorld(h.t, old.members)
	w.epoch, w.holds = old.epoch+1, engine.HoldsData
	w.instant = old.instant
	w.instant[diverged] = old.source.Clone(9)
	w.source = old.machine.Clone(1)
	w.machine = old.source.WithFolderOf(crash.New(0)).Clone(h.rng.Uint64())
	h.note("roles are swapped at %s, epoch %d", h.claimed, w.epoch)
	h.w, h.points, h.log, h.cutAt, h.known = w, nil, nil, map[string]int{}, false
	h.claimed, h.kept, h.half, h.unsure = "", diverged, false, ""
	h.goesAwayNext()
	w.boot(func() { h.check("") })
}

// rot changes the replica behind the target's back. Verifying finds it and makes it good.
func (h *history) rot() {
	if !slices.Contains(h.points, h.claimed) || h.sizesDiffer(h.claimed) {
		return
	}
	m := h.w.members[h.rng.IntN(len(h.w.members))]
	n := min(m.size, 1+h.rng.Int64N(200<<10))
	at := h.rng.Int64N(m.size - n + 1)
	replica := h.w.machine.Volume(m.name, m.size)
	if _, err := replica.WriteAt(random(int(n), h.rng.Uint64()), at); err != nil {
		h.t.Fatal(err)
	}
	if err := replica.Sync(); err != nil {
		h.t.Fatal(err)
	}
	a := h.plan(h.claimed)
	a.verify = true
	r := h.run(context.Background(), h.source(a, h.w.epoch), h.claimed)
	h.note("volume %s rots from %d, %d bytes; verified %v, %d bytes repaired: %s %s", m.name, at, n, r.Verified, r.BytesRepaired, r.TierReason, r.Error)
	waitFor(h.t, func() bool { return h.w.target.State().Phase == engine.PhaseIdle })
	if !r.Done || !r.Verified || r.BytesRepaired < n {
		h.t.Fatalf("a replica that rotted was not made good: %+v", r)
	}
	h.half = false
	h.check(h.claimed)
	if v := h.w.target.State().Verified; v == nil || v.ID != h.claimed {
		h.t.Fatalf("the target says that %+v was verified", v)
	}
}

// grow makes volumes of both sides larger, one side first: until the other follows, sources are refused.
func (h *history) grow() {
	w := h.w
	larger := slices.Clone(w.members)
	for i := range larger {
		if h.rng.IntN(2) == 0 {
			larger[i].size += 1 + h.rng.Int64N(300<<10)
		}
	}
	sourceFirst := h.rng.IntN(2) == 0
	h.note("volumes grow from %v to %v, the source's first %v", w.members, larger, sourceFirst)
	growSource := func() {
		for i, m := range larger {
			if was := w.members[i].size; m.size > was {
				h.log = append(h.log, written{m.name, digest.Extent{Offset: was, Length: m.size - was}})
			}
		}
		w.source = h.grown(w.source, larger)
	}
	growTarget := func() {
		w.down()
		w.machine = h.grown(w.machine, larger)
		w.members = larger
		w.boot(func() { h.check("") })
	}
	first, second := growTarget, growSource
	if sourceFirst {
		first, second = growSource, growTarget
	}
	same := slices.Equal(w.members, larger)
	first()
	if !same {
		point := h.cut()
		r := h.run(context.Background(), h.source(attempt{point: point}, w.epoch), point)
		if r.Kind != engine.KindConflict {
			h.t.Fatalf("a source of another size got %+v", r)
		}
		h.check("")
	}
	second()
	w.members = larger
	h.check("")
}

// grown is a machine with larger volumes and the same folder.
func (h *history) grown(m *crash.Machine, larger []member) *crash.Machine {
	next := crash.New(h.rng.Uint64())
	buf := make([]byte, 1<<20)
	for _, x := range larger {
		from, to := m.Volume(x.name, x.size), next.Volume(x.name, x.size)
		for at := int64(0); at < from.Size(); at += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), from.Size()-at)]
			if _, err := from.ReadAt(p, at); err != nil && !errors.Is(err, io.EOF) {
				h.t.Fatal(err)
			}
			if digest.IsZero(p) {
				continue
			}
			if _, err := to.WriteAt(p, at); err != nil {
				h.t.Fatal(err)
			}
		}
		if err := to.Sync(); err != nil {
			h.t.Fatal(err)
		}
	}
	return next.WithFolderOf(m).Clone(h.rng.Uint64())
}
