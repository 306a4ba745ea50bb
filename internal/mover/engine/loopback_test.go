package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/endpoint/endpointtest"
	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/transport"
)

// site is a target that listens on loopback as it would in a cluster, and what a source needs to reach it.
type site struct {
	t                  *testing.T
	east, west         *authority
	source, replica    string // image files
	target             engine.TargetConfig
	status, statusAddr string
	stop               func() error
}

const (
	sourceIdentity  = "lifeboat://east/replication/shop/pg"
	targetIdentity  = "lifeboat://west/replication/shop/pg"
	managerIdentity = "lifeboat://west/manager"
)

func newSite(t *testing.T, size int64) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{
		t: t, east: newAuthority(t, "east"), west: newAuthority(t, "west"),
		source: filepath.Join(dir, "source.img"), replica: filepath.Join(dir, "replica.img"),
	}
	for _, path := range []string{s.source, s.replica} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
	}
	s.target = engine.TargetConfig{
		Replication: "shop/pg", Epoch: 3, Volumes: []engine.TargetVolume{{Name: "data", Device: s.replica, Size: size}},
		Spool: filepath.Join(dir, "spool"), Listen: freeAddress(t), StatusListen: freeAddress(t),
		IdentityDir:  s.west.issue(t, targetIdentity, s.east),
		PeerIdentity: sourceIdentity, ManagerIdentity: managerIdentity,
	}
	return s
}

// freeAddress is a loopback address nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := endpointtest.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the target until the test ends or stop is called.
func (s *site) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- engine.RunTarget(ctx, s.target, "test", quiet()) }()
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	s.t.Cleanup(func() { _ = s.stop() })
	s.await(func(st engine.State) bool { return st.Ready })
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (s *site) manager() transport.Material {
	s.t.Helper()
	m, err := transport.LoadMaterial(s.west.issue(s.t, managerIdentity, s.east))
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// await polls the target's status endpoint.
func (s *site) await(until func(engine.State) bool) engine.State {
	s.t.Helper()
	m := s.manager()
	deadline := time.Now().Add(hung)
	var last engine.State
	var err error
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		last, err = engine.FetchState(ctx, s.target.StatusListen, m, targetIdentity)
		cancel()
		if err == nil && until(last) {
			return last
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.t.Fatalf("the target never got there: %+v, %v", last, err)
	return last
}

func (s *site) session(point string) engine.SourceConfig {
	return engine.SourceConfig{
		Replication: "shop/pg", Epoch: 3, Point: point, PointTime: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Volumes: []engine.SourceVolume{{Name: "data", Device: s.source}},
		Address: s.target.Listen, ServerName: "pg.shop.receiver.lifeboat",
		IdentityDir: s.east.issue(s.t, sourceIdentity, s.west), PeerIdentity: targetIdentity,
	}
}

func (s *site) run(cfg engine.SourceConfig) engine.Report {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hung)
	defer cancel()
	return engine.RunSource(ctx, cfg, "test", quiet())
}

func (s *site) mustRun(cfg engine.SourceConfig) engine.Report {
	s.t.Helper()
	r := s.run(cfg)
	if !r.Done {
		s.t.Fatalf("session failed: %+v", r)
	}
	if r.BytesResent != 0 {
		s.t.Errorf("%d acknowledged bytes were sent again", r.BytesResent)
	}
	return r
}

func (s *site) mustEqual() {
	s.t.Helper()
	a, err := os.ReadFile(s.source)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := os.ReadFile(s.replica)
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		for i := range a {
			if a[i] != b[i] {
				s.t.Fatalf("replica differs from the source from byte %d on", i)
			}
		}
		s.t.Fatalf("replica has %d bytes, source %d", len(b), len(a))
	}
}

// write puts random bytes, or text when compressible, at an offset of the source.
func (s *site) write(off int64, n int, seed uint64, compressible bool) {
	s.t.Helper()
	f, err := os.OpenFile(s.source, os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content(n, seed, compressible), off); err != nil {
		s.t.Fatal(err)
	}
}

func content(n int, seed uint64, compressible bool) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 0, n+8)
	words := []string{"INSERT ", "INTO ", "accounts ", "VALUES ", "balance ", "teller ", "branch ", "0000000000 "}
	for len(p) < n {
		if compressible {
			p = append(p, words[rng.IntN(len(words))]...)
			continue
		}
		p = binary.LittleEndian.AppendUint64(p, rng.Uint64())
	}
	return p[:n]
}

func TestAFullCopyAndThenOnlyWhatDiffers(t *testing.T) {
	const size = 200<<20 + 4096*3 // three whole segments, a part, and an odd end
	s := newSite(t, size)
	s.write(0, 5<<20, 1, false)
	s.write(100<<20, 12<<20, 2, true)
	s.write(size-70000, 70000, 3, false)
	s.start()

	full := s.mustRun(s.session("p1"))
	s.mustEqual()
	if full.Tier != "allocated" || !full.Direct || full.TierReason == "" {
		t.Errorf("the first session was %s (%s), direct %v", full.Tier, full.TierReason, full.Direct)
	}
	// The file was written in three places; whole blocks around them are read.
	const written = 5<<20 + 12<<20 + 3*65536
	if full.BytesRead > written || full.BytesChanged > full.BytesRead || full.BytesData+full.ZeroBytes != full.BytesRead || full.BytesAcked != full.BytesData {
		t.Errorf("the first session's bytes do not add up: %+v", full)
	}
	if full.BytesSent >= full.BytesData {
		t.Errorf("nothing was compressed: %d of %d", full.BytesSent, full.BytesData)
	}

	s.write(64<<20+123, 5, 4, false) // one block
	s.write(100<<20, 1<<20, 5, true) // 16 blocks
	s.write(2<<20, 1<<20, 6, false)  // 16 blocks
	s.write(size-10, 10, 7, false)   // the odd end
	zero := make([]byte, 65536)      // a block that becomes zero
	f, _ := os.OpenFile(s.source, os.O_RDWR, 0)
	if _, err := f.WriteAt(zero, 1<<20); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	delta := s.mustRun(s.session("p2"))
	s.mustEqual()
	const changed = 33*65536 + 65536 + 4096*3
	if delta.Tier != "digest" || delta.Direct || delta.BytesChanged != changed || delta.ZeroBytes != 65536 {
		t.Errorf("the second session: %+v, expected %d bytes changed", delta, changed)
	}

	again := s.mustRun(s.session("p2"))
	if !again.Already || again.BytesRead != 0 {
		t.Errorf("a point that is committed was brought again: %+v", again)
	}
	nothing := s.mustRun(s.session("p3"))
	if nothing.BytesData != 0 || nothing.BytesChanged != 0 {
		t.Errorf("a session without changes sent something: %+v", nothing)
	}
	st := s.await(func(st engine.State) bool { return st.Phase == engine.PhaseIdle })
	if st.Committed == nil || st.Committed.ID != "p3" || !st.Applied || st.Committed.Epoch != 3 || !st.Committed.Time.Equal(s.session("").PointTime) {
		t.Errorf("state after three points: %+v", st)
	}
	if err := s.stop(); err != nil {
		t.Errorf("target did not stop cleanly: %v", err)
	}
}

// list writes down what changed, as somebody who knows it would.
func (s *site) list(extents ...digest.Extent) *change.Origin {
	s.t.Helper()
	info, err := os.Stat(s.source)
	if err != nil {
		s.t.Fatal(err)
	}
	normal, err := change.Normalize(info.Size(), extents, change.Grain)
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "extents")
	if err := change.WriteFile(path, change.List{Size: info.Size(), Extents: normal}); err != nil {
		s.t.Fatal(err)
	}
	return &change.Origin{File: path}
}

func TestWithAListOfChangesTheTimeFollowsTheDelta(t *testing.T) {
	const size = 200<<20 + 4096*3
	s := newSite(t, size)
	s.write(0, 80<<20, 1, false)
	s.start()
	s.mustRun(s.session("p1"))

	s.write(3<<20+123, 5, 4, false)        // a grain
	s.write(3<<20+9000, 4096, 5, false)    // two more in the same block
	s.write(10<<20+60000, 20000, 6, false) // the end of a block and the beginning of the next
	s.write(150<<20, 3<<20+4096, 7, true)  // more than a record
	s.write(size-10, 10, 8, false)         // the odd end
	s.write(20<<20, 65536, 9, false)       // one that the list names twice
	cfg := s.session("p2")
	cfg.Base = "p1"
	cfg.Volumes[0].Changes = s.list(
		digest.Extent{Offset: 3<<20 + 123, Length: 5}, digest.Extent{Offset: 3<<20 + 9000, Length: 4096},
		digest.Extent{Offset: 10<<20 + 60000, Length: 20000}, digest.Extent{Offset: 150 << 20, Length: 3<<20 + 4096},
		digest.Extent{Offset: size - 10, Length: 10}, digest.Extent{Offset: 20 << 20, Length: 65536}, digest.Extent{Offset: 20 << 20, Length: 4096},
	)
	r := s.mustRun(cfg)
	s.mustEqual()
	const listed = 4096 + 8192 + 24576 + 3<<20 + 4096 + 4096 + 65536
	if r.Tier != "cbt" || r.Direct || r.BytesChanged != listed || r.BytesData != listed {
		t.Errorf("expected %d bytes by the list: %+v", listed, r)
	}
	if r.BytesRead > 4<<20 {
		t.Errorf("%d bytes were read to send %d", r.BytesRead, listed)
	}

	// The digests the target remembers are those of the whole blocks: comparing finds nothing.
	nothing := s.mustRun(s.session("p3"))
	if nothing.Tier != "digest" || nothing.BytesChanged != 0 {
		t.Errorf("after a delta of pieces, digests differ: %+v", nothing)
	}

	// A list that leads from elsewhere, and one that ends early, are not used, and nothing is lost.
	s.write(30<<20, 4096, 10, false)
	cfg = s.session("p4")
	cfg.Base, cfg.Volumes[0].Changes = "p1", s.list()
	if r := s.mustRun(cfg); r.Tier != "digest" || !strings.Contains(r.TierReason, "leads from p1") {
		t.Errorf("a list from another point: %s (%s)", r.Tier, r.TierReason)
	}
	s.mustEqual()
	s.write(40<<20, 4096, 11, false)
	cfg = s.session("p5")
	cfg.Base, cfg.Volumes[0].Changes = "p4", s.list(digest.Extent{Offset: 40 << 20, Length: 4096})
	raw, err := os.ReadFile(cfg.Volumes[0].Changes.File)
	if err == nil {
		err = os.WriteFile(cfg.Volumes[0].Changes.File, raw[:len(raw)-len("end 1\n")], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := s.mustRun(cfg); r.Tier != "digest" || !strings.Contains(r.TierReason, "cannot be had") {
		t.Errorf("a list that ends early: %s (%s)", r.Tier, r.TierReason)
	}
	s.mustEqual()
}

// M-102: one percent of the volume has changed, all over it, and one percent crosses the link, whether somebody lists the changes or the
// source has to look for them.
func TestOnePercentChangedIsOnePercentSent(t *testing.T) {
	const (
		size    = 200 << 20
		changed = size / 100
	)
	s := newSite(t, size)
	s.write(0, size, 1, false)
	s.start()
	s.mustRun(s.session("p1"))
	for round, listed := range []bool{false, true} {
		var extents []digest.Extent
		for i := range int64(changed / digest.BlockSize) {
			x := digest.Extent{Offset: i * 100 * digest.BlockSize, Length: digest.BlockSize}
			s.write(x.Offset, int(x.Length), uint64(1000*(round+1))+uint64(i), false)
			extents = append(extents, x)
		}
		cfg := s.session(fmt.Sprintf("p%d", round+2))
		if listed {
			cfg.Base, cfg.Volumes[0].Changes = fmt.Sprintf("p%d", round+1), s.list(extents...)
		}
		r := s.mustRun(cfg)
		s.mustEqual()
		t.Logf("%s: of %d bytes %d were changed, %d read, %d on the wire", r.Tier, r.BytesTotal, r.BytesChanged, r.BytesRead, r.BytesWire)
		if r.BytesChanged != changed || r.BytesWire < changed || r.BytesWire > changed+changed/10 {
			t.Errorf("listed %v: %d bytes were changed, %d found changed, %d sent", listed, changed, r.BytesChanged, r.BytesWire)
		}
	}
}

func TestVerifyingFindsWhatRottedAndRepairsIt(t *testing.T) {
	const size = 130 << 20
	s := newSite(t, size)
	s.write(0, 70<<20, 1, false)
	s.start()
	s.mustRun(s.session("p1"))
	f, err := os.OpenFile(s.replica, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("rot"), 66<<20)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	// What is remembered of the replica cannot tell.
	if r := s.mustRun(s.session("p2")); r.BytesChanged != 0 {
		t.Fatalf("a session that compares what is remembered found something: %+v", r)
	}
	cfg := s.session("p2")
	cfg.Verify = true
	cfg.Cut = "Atomic"
	if r := s.mustRun(cfg); !r.Verified || r.BytesRepaired != 65536 || !strings.Contains(r.TierReason, "verify") {
		t.Errorf("verifying the point that is there: %+v", r)
	}
	s.mustEqual()
	st := s.await(func(st engine.State) bool { return st.Phase == engine.PhaseIdle })
	if st.Committed != nil && st.Committed.Cut != "Atomic" {
		t.Errorf("the point does not tell how it was cut: %+v", st.Committed)
	}
	if st.Verified == nil || st.Verified.ID != "p2" || st.Committed.ID != "p2" {
		t.Errorf("state after verifying: %+v", st)
	}
}

func TestADeltaThatTheSpoolCannotHold(t *testing.T) {
	const size = 20 << 20
	s := newSite(t, size)
	s.target.SpoolLimit = 2 << 20
	s.write(0, 10<<20, 1, false)
	s.start()
	s.mustRun(s.session("p1")) // a first copy needs no spool
	before, err := os.ReadFile(s.replica)
	if err != nil {
		t.Fatal(err)
	}
	s.write(1<<20, 5<<20, 2, false)

	r := s.run(s.session("p2"))
	if r.Done || r.Kind != engine.KindSpace || !strings.Contains(r.Error, "limited to 2097152 bytes") {
		t.Errorf("the session should fail for space and say so: %+v", r)
	}
	after, err := os.ReadFile(s.replica)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the recovery point was put at risk")
	}
	if st := s.await(func(st engine.State) bool { return st.Phase == engine.PhaseIdle }); st.Committed == nil || st.Committed.ID != "p1" || !strings.Contains(st.Message, "limited") {
		t.Errorf("state of the target: %+v", st)
	}

	if st := s.await(func(st engine.State) bool { return st.Phase == engine.PhaseIdle }); st.TooLarge != "p2" {
		t.Errorf("the target does not tell whose delta was too large: %+v", st)
	}

	// A recovery point that also exists elsewhere is not lost when the replica is overwritten.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.target.KeptElsewhere = true
	s.start()
	r = s.mustRun(s.session("p2"))
	s.mustEqual()
	if st := s.await(func(st engine.State) bool { return st.Phase == engine.PhaseIdle }); st.TooLarge != "" {
		t.Errorf("it is committed, and still too large: %+v", st)
	}
	if !r.Direct || !strings.Contains(r.TierReason, "kept elsewhere") {
		t.Errorf("expected a direct delta: %+v", r)
	}
	s.write(15<<20, 4096, 3, false)
	if r := s.mustRun(s.session("p3")); r.Direct || r.Tier != "digest" {
		t.Errorf("a delta that fits goes through the spool again: %+v", r)
	}
	s.mustEqual()
}

func TestWrongTrustIsRefusedForGood(t *testing.T) {
	s := newSite(t, 1<<20)
	s.start()
	stranger := newAuthority(t, "stranger")
	for name, spoil := range map[string]func(*engine.SourceConfig){
		"the source is of an unknown CA": func(c *engine.SourceConfig) { c.IdentityDir = stranger.issue(t, sourceIdentity, s.west) },
		"the source is somebody else": func(c *engine.SourceConfig) {
			c.IdentityDir = s.east.issue(t, "lifeboat://east/replication/shop/other", s.west)
		},
		"the source does not trust the target": func(c *engine.SourceConfig) { c.IdentityDir = s.east.issue(t, sourceIdentity, stranger) },
		"the target is not who was meant":      func(c *engine.SourceConfig) { c.PeerIdentity = "lifeboat://west/replication/shop/other" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.session("p1")
			spoil(&cfg)
			r := s.run(cfg)
			if r.Done || r.Kind != engine.KindTrust || r.ExitCode() != engine.ExitRefused || r.Error == "" {
				t.Errorf("got %+v", r)
			}
		})
	}
	t.Run("the status is only for the manager", func(t *testing.T) {
		m, err := transport.LoadMaterial(s.west.issue(t, "lifeboat://west/somebody", s.east))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := engine.FetchState(context.Background(), s.target.StatusListen, m, targetIdentity); err == nil {
			t.Error("somebody else read the status")
		}
	})
}

func TestConflictsNameBothSides(t *testing.T) {
	s := newSite(t, 1<<20)
	s.start()
	for name, c := range map[string]struct {
		spoil func(*engine.SourceConfig)
		kind  engine.Kind
		says  []string
	}{
		"another replication": {func(c *engine.SourceConfig) { c.Replication = "shop/other" }, engine.KindConflict, []string{"shop/other", "shop/pg"}},
		"another volume":      {func(c *engine.SourceConfig) { c.Volumes[0].Name = "logs" }, engine.KindConflict, []string{"[logs]", "[data]"}},
		"another size": {func(c *engine.SourceConfig) {
			c.Volumes[0].Device = filepath.Join(t.TempDir(), "bigger")
			if err := os.WriteFile(c.Volumes[0].Device, make([]byte, 2<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}, engine.KindConflict, []string{"data", "2097152", "1048576"}},
		"a stale epoch": {func(c *engine.SourceConfig) { c.Epoch = 2 }, engine.KindStaleEpoch, []string{"2", "3"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.session("p1")
			c.spoil(&cfg)
			r := s.run(cfg)
			if r.Done || r.Kind != c.kind || r.ExitCode() != engine.ExitRefused {
				t.Errorf("got %+v", r)
			}
			for _, word := range c.says {
				if !strings.Contains(r.Error, word) {
					t.Errorf("%q does not name %q", r.Error, word)
				}
			}
		})
	}
}

// M-100: without an answer to its greeting a session says whom it did not reach, and the replica is as it was; it ends when it is told to.
func TestASourceThatNobodyAnswersSaysSoAndChangesNothing(t *testing.T) {
	s := newSite(t, 1<<20)
	s.write(0, 1<<20, 1, false)
	before, err := os.ReadFile(s.replica)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.session("p1")
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	r := engine.RunSource(ctx, cfg, "test", quiet())
	if r.Done || r.BytesWire != 0 || r.Attempts == 0 || r.Error == "" {
		t.Errorf("nobody answers, and it says %+v", r)
	}
	if after, err := os.ReadFile(s.replica); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the replica was changed, %v", err)
	}
}

func TestASourceWaitsForALinkThatIsDown(t *testing.T) {
	s := newSite(t, 1<<20)
	s.write(0, 1<<20, 1, false)
	cfg := s.session("p1")
	cfg.StatusListen, cfg.ManagerIdentity = freeAddress(t), "lifeboat://east/manager"
	done := make(chan engine.Report, 1)
	go func() { done <- s.run(cfg) }()
	m, err := transport.LoadMaterial(s.east.issue(t, cfg.ManagerIdentity, s.west))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		st, err := engine.FetchState(context.Background(), cfg.StatusListen, m, sourceIdentity)
		if err == nil && st.Phase == engine.PhaseWaiting && strings.Contains(st.Message, cfg.Address) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the source never said that it waits: %+v, %v", st, err)
		}
	}
	s.start()
	if r := <-done; !r.Done || r.Attempts < 2 {
		t.Errorf("got %+v", r)
	}
	s.mustEqual()
}

func TestBadConfigurationsNameTheField(t *testing.T) {
	for content, field := range map[string]string{
		`{`:                   "--config",
		`{"replicatoin":"a"}`: "--config",
		`{"replication":"a"}`: "point",
		`{"replication":"a","point":"p","volumes":[{"name":"x"}]}`: "volumes[0].device",
	} {
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := engine.LoadSourceConfig(path)
		var wrong *engine.ConfigError
		if !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("%s: got %v, expected a complaint about %s", content, err, field)
		}
	}
}

// Sessions and status between two movers that have no IPv4 at all.
func TestMoversNeedNoIPv4(t *testing.T) {
	endpointtest.OnlyIPv6(t, "^(TestAFullCopyAndThenOnlyWhatDiffers|TestASourceWaitsForALinkThatIsDown|TestASourceThatIsToldToStopGoesOn|TestWrongTrustIsRefusedForGood)$")
}

// M-156: a mover that is told to stop, as when its node is drained, says so by its exit code; the next one goes on where it was.
func TestASourceThatIsToldToStopGoesOn(t *testing.T) {
	s := newSite(t, 48<<20)
	s.start()
	s.write(0, 48<<20, 3, false)
	cfg := s.session("p1")
	cfg.BandwidthLimit = 24 << 20
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan engine.Report, 1)
	go func() { done <- engine.RunSource(ctx, cfg, "test", quiet()) }()
	s.await(func(st engine.State) bool { return st.Point == "p1" && st.BytesDone >= 12<<20 })
	stop()
	r := <-done
	if r.Done || r.Kind != engine.KindCancelled || r.ExitCode() != engine.ExitInterrupted {
		t.Fatalf("told to stop, it says %+v, exit code %d", r, r.ExitCode())
	}
	cfg.BandwidthLimit = 0
	again := s.run(cfg)
	if !again.Done || again.Resumed != 1 || again.BytesResent != 0 || again.BytesData >= 48<<20 {
		t.Errorf("started again: %+v", again)
	}
	t.Logf("the first sent %d bytes, the second %d", r.BytesData, again.BytesData)
}
