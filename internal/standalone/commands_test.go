package standalone_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/cli"
	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/localcsitest"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// runEnv makes this test binary the lifeboat command: each host of a test is processes of its own.
const runEnv = "LIFEBOAT_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runEnv) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		os.Exit(cli.Report(os.Stderr, cli.NewRootCommand().ExecuteContext(ctx)))
	}
	os.Exit(localcsitest.Main(m))
}

const mib = 1 << 20

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// host is one of the two hosts: an identity, and a folder for files.
type host struct {
	t    *testing.T
	name string
	dir  string // of the identity
	disk string // where its files are
}

func newHost(t *testing.T, name string) *host {
	h := &host{t: t, name: name, dir: filepath.Join(t.TempDir(), "id"), disk: t.TempDir()}
	h.must(0, "identity", name, "--dir", h.dir)
	return h
}

// newHosts are two that trust each other.
func newHosts(t *testing.T) (east, west *host) {
	east, west = newHost(t, "east"), newHost(t, "west")
	east.trust(west)
	west.trust(east)
	return east, west
}

func (h *host) trust(other *host) {
	h.t.Helper()
	cmd := h.command("identity", "trust", "-", "--dir", h.dir)
	cmd.Stdin = strings.NewReader(other.must(0, "identity", "show", "--certificate", "--dir", other.dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("trust: %v\n%s", err, out)
	}
}

func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), runEnv+"=1", "LIFEBOAT_IDENTITY="+h.dir)
	return cmd
}

// must runs a command to its end and checks how it ends; it returns what was printed.
func (h *host) must(code int, args ...string) string {
	h.t.Helper()
	var out, errs bytes.Buffer
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != code {
		h.t.Fatalf("lifeboat %s ended with %d, expected %d\n%s%s", strings.Join(args, " "), got, code, &out, &errs)
	}
	if code != 0 {
		return errs.String()
	}
	return out.String()
}

// write makes a file of random content on the host's disk.
func (h *host) write(name string, size int) string {
	h.t.Helper()
	path := filepath.Join(h.disk, name)
	if err := os.WriteFile(path, random(size), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

func random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return p
}

func change(t *testing.T, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(random(n), at)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s (%d bytes) and %s (%d bytes) differ", a, len(x), b, len(y))
	}
}

// process is a command that goes on, with its lines of JSON as they come.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan event
}

// event is any line of JSON of both commands.
type event struct {
	Event    string         `json:"event"`
	Address  string         `json:"address"`
	Target   string         `json:"target"`
	Point    string         `json:"point"`
	Outcome  string         `json:"outcome"`
	Error    string         `json:"error"`
	Resumed  bool           `json:"resumed"`
	Live     bool           `json:"live"`
	Text     string         `json:"text"`
	ExitCode int            `json:"exitCode"`
	Failed   int            `json:"failed"`
	State    engine.State   `json:"state"`
	Report   *engine.Report `json:"report"`
}

func (h *host) start(args ...string) *process {
	h.t.Helper()
	p := &process{t: h.t, cmd: h.command(append(args, "--json")...), lines: make(chan event, 1000)}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			var e event
			if err := json.Unmarshal(in.Bytes(), &e); err != nil || e.Event == "" {
				h.t.Errorf("no event in JSON: %q, %v", in.Text(), err)
			}
			p.lines <- e
		}
	}()
	h.t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// await reads lines until one fits.
func (p *process) await(what string, fits func(event) bool) event {
	p.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case e, more := <-p.lines:
			if !more {
				p.t.Fatalf("%s never came: the process ended", what)
			}
			if fits(e) {
				return e
			}
		case <-timer.C:
			p.t.Fatalf("%s never came", what)
		}
	}
}

// end waits for the process's end and checks it; it returns the lines that were not read before.
func (p *process) end(code int) []event {
	p.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	var rest []event
	for e := range p.lines {
		rest = append(rest, e)
	}
	_ = p.cmd.Wait()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%v ended with %d, expected %d; it said %+v", p.cmd.Args, got, code, rest)
	}
	return rest
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// receive starts a target on the host; it returns its address.
func (h *host) receive(args ...string) (*process, string) {
	h.t.Helper()
	p := h.start(append([]string{"receive", "--listen", "127.0.0.1:0"}, args...)...)
	return p, p.await("the address", func(e event) bool { return e.Event == "ready" }).Address
}

// replicate runs a command to its end and returns the report of its one target.
func (h *host) replicate(code int, args ...string) engine.Report {
	h.t.Helper()
	return report(h.t, h.start(append([]string{"replicate"}, args...)...).end(code), "")
}

func report(t *testing.T, events []event, target string) engine.Report {
	t.Helper()
	for _, e := range events {
		if e.Event == "session" && e.Report != nil && strings.HasSuffix(e.Target, target) {
			return *e.Report
		}
	}
	t.Fatalf("no report in %+v", events)
	return engine.Report{}
}

func TestTwoHostsFromNothing(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", 4*mib+4096), filepath.Join(west.disk, "db.img")
	target, address := west.receive(replica)

	first := east.replicate(0, source, address)
	same(t, source, replica)
	if !first.Done || first.BytesTotal != 4*mib+4096 {
		t.Errorf("the first report is %+v", first)
	}
	again := east.replicate(0, source, address)
	if again.Tier != "digest" || again.BytesData != 0 || again.Point == first.Point {
		t.Errorf("with nothing changed, the report is %+v", again)
	}
	change(t, source, mib+100, 5000)
	changed := east.replicate(0, source, address)
	same(t, source, replica)
	if changed.BytesData < 5000 || changed.BytesData > 4*64<<10 {
		t.Errorf("with 5000 bytes changed, %d were sent", changed.BytesData)
	}

	target.signal(syscall.SIGTERM)
	outcomes := 0
	for _, e := range target.end(0) {
		if e.Event == "session" && e.Outcome == "committed" {
			outcomes++
		}
	}
	if outcomes != 3 {
		t.Errorf("the target told of %d committed sessions, not of 3", outcomes)
	}
	// A target that was away goes on where it was.
	_, address = west.receive(replica)
	if r := east.replicate(0, source, address); r.Tier != "digest" || r.BytesData != 0 {
		t.Errorf("after a restart of the target the report is %+v", r)
	}
}

func TestAVerificationRepairsTheReplica(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", 2*mib), filepath.Join(west.disk, "db.img")
	_, address := west.receive(replica)
	east.replicate(0, source, address)
	change(t, replica, 300_000, 10) // what disks do
	east.replicate(0, source, address)
	r := east.replicate(0, source, address, "--verify")
	same(t, source, replica)
	if !r.Verified || r.BytesRepaired == 0 {
		t.Errorf("the report is %+v", r)
	}
}

func TestVerificationsComeByThemselves(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", mib), filepath.Join(west.disk, "db.img")
	_, address := west.receive(replica)
	east.replicate(0, source, address)
	if r := east.replicate(0, source, address, "--verify-every", "1h"); r.Verified {
		t.Errorf("verified before it was due: %+v", r)
	}
	if r := east.replicate(0, source, address, "--verify-every", "1ns"); !r.Verified {
		t.Errorf("not verified although it was due: %+v", r)
	}
	if r := east.replicate(0, source, address, "--verify-every", "1h"); r.Verified {
		t.Errorf("verified again at once: %+v", r)
	}
}

func TestAGroupKeepsItsNamesAndOrder(t *testing.T) {
	east, west := newHosts(t)
	data, log := east.write("data.img", mib), east.write("log.img", 2*mib)
	copies := []string{filepath.Join(west.disk, "d"), filepath.Join(west.disk, "l")}
	_, address := west.receive("data="+copies[0], "log="+copies[1])
	east.replicate(0, "data="+data, "log="+log, address)
	same(t, data, copies[0])
	same(t, log, copies[1])
	r := east.replicate(engine.ExitRefused, "log="+log, "data="+data, address)
	if r.Kind != engine.KindConflict || !strings.Contains(r.Error, "source has [log data], target has [data log]") {
		t.Errorf("another order ends with %s: %s", r.Kind, r.Error)
	}
}

// After ^C the same command goes on with the same instant; nothing acknowledged is sent again.
func TestAnInterruptedSessionGoesOn(t *testing.T) {
	east, west := newHosts(t)
	const size = 48 * mib
	source, replica := east.write("db.img", size), filepath.Join(west.disk, "db.img")
	_, address := west.receive(replica, "--create", "48Mi")

	run := east.start("replicate", source, address, "--limit", "12MB")
	run.await("progress", func(e event) bool { return e.Event == "progress" && e.State.BytesDone > 4*mib })
	run.signal(syscall.SIGINT)
	cut := report(t, run.end(130), "")
	if cut.Done || cut.Kind != engine.KindCancelled || cut.BytesAcked == 0 {
		t.Fatalf("the interrupted session's report is %+v", cut)
	}
	rest := east.replicate(0, source, address)
	same(t, source, replica)
	if rest.Point != cut.Point || rest.Resumed == 0 {
		t.Errorf("point %s was interrupted, then came %s, resumed %d times", cut.Point, rest.Point, rest.Resumed)
	}
	if rest.BytesData > size-cut.BytesAcked || rest.BytesResent != 0 {
		t.Errorf("%d bytes were acknowledged before, %d of %d sent after", cut.BytesAcked, rest.BytesData, size)
	}
	if next := east.replicate(0, source, address); next.Point == cut.Point {
		t.Error("a point that is done is brought again")
	}
}

// What was interrupted cannot go on when the source was written since: the target must never hold a mixture.
func TestAnInterruptedInstantThatIsGoneIsGivenUp(t *testing.T) {
	east, west := newHosts(t)
	const size = 24 * mib
	source, replica := east.write("db.img", size), filepath.Join(west.disk, "db.img")
	_, address := west.receive(replica)
	run := east.start("replicate", source, address, "--limit", "8MB")
	first := run.await("the beginning", func(e event) bool { return e.Event == "begin" })
	if !first.Live {
		t.Skip("SKIPPED: the temporary folder's file system clones files")
	}
	run.await("progress", func(e event) bool { return e.Event == "progress" && e.State.Phase == engine.PhaseTransferring })
	run.signal(syscall.SIGINT)
	run.end(130)
	change(t, source, 0, 4096)
	events := east.start("replicate", source, address).end(0)
	same(t, source, replica)
	told := false
	for _, e := range events {
		told = told || e.Event == "note" && strings.Contains(e.Text, "was written at")
	}
	if r := report(t, events, ""); r.Point == first.Point || !told {
		t.Errorf("point %s went on, or nobody was told: %+v", r.Point, events)
	}
}

func TestWhoIsNotExpectedIsRefused(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", mib), filepath.Join(west.disk, "db.img")
	target, address := west.receive(replica)

	north := newHost(t, "north") // trusts west, but west does not know it
	north.trust(west)
	r := north.replicate(engine.ExitRefused, source, address)
	if r.Kind != engine.KindTrust || r.Attempts != 1 {
		t.Errorf("a stranger ends with %s after %d attempts: %s", r.Kind, r.Attempts, r.Error)
	}
	target.await("the refusal", func(e event) bool { return e.Outcome == "refused" })

	impostor := newHost(t, "west") // another host of that name
	other := newHost(t, "east")
	other.trust(impostor)
	r = other.replicate(engine.ExitRefused, source, address)
	if r.Kind != engine.KindTrust {
		t.Errorf("a target with the wrong CA ends with %s: %s", r.Kind, r.Error)
	}
	if _, err := os.Stat(replica); err == nil {
		t.Error("a stranger had a replica made")
	}
}

func TestAnotherSizeIsRefused(t *testing.T) {
	east, west := newHosts(t)
	source := east.write("db.img", mib)
	_, address := west.receive(west.write("db.img", 2*mib))
	r := east.replicate(engine.ExitRefused, source, address)
	if r.Kind != engine.KindConflict || !strings.Contains(r.Error, "source has 1048576 bytes, target has 2097152 bytes") {
		t.Errorf("ended with %s: %s", r.Kind, r.Error)
	}
	// The same before the target's other file is made.
	_, address = west.receive(west.write("first.img", 2*mib), filepath.Join(west.disk, "second.img"), "--group", "two")
	r = east.replicate(engine.ExitRefused, source, source, address, "--group", "two")
	if r.Kind != engine.KindConflict {
		t.Errorf("ended with %s: %s", r.Kind, r.Error)
	}
	if _, err := os.Stat(filepath.Join(west.disk, "second.img")); err == nil {
		t.Error("a file was made for a source that does not fit")
	}
}

func TestADeadTargetHoldsNobodyBack(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", mib), filepath.Join(west.disk, "db.img")
	_, alive := west.receive(replica)
	const dead = "127.0.0.1:1"
	events := east.start("replicate", source, alive, "--to", "west@"+dead, "--give-up", "1s").end(11)
	same(t, source, replica)
	if r := report(t, events, alive); !r.Done {
		t.Errorf("the living target's session ended with %+v", r)
	}
	r := report(t, events, dead)
	if r.Done || r.Kind != engine.KindLink || !strings.Contains(r.Error, "out of reach") {
		t.Errorf("the dead target's session ended with %+v", r)
	}
	if last := events[len(events)-1]; last.Event != "end" || last.Failed != 1 || last.ExitCode != 11 {
		t.Errorf("the last line is %+v", last)
	}
}

// Two targets far apart are given one instant.
func TestTwoTargetsHoldOneInstant(t *testing.T) {
	east, west := newHosts(t)
	source := east.write("db.img", mib)
	one, two := filepath.Join(west.disk, "1"), filepath.Join(west.disk, "2")
	_, first := west.receive(one)
	_, second := west.receive(two)
	events := east.start("replicate", source, first, "--to", second, "--limit-total", "50MB").end(0)
	same(t, source, one)
	same(t, source, two)
	if a, b := report(t, events, first), report(t, events, second); a.Point != b.Point {
		t.Errorf("points %s and %s", a.Point, b.Point)
	}
}

// xfs is a folder on a file system that clones files.
func xfs(t *testing.T) string {
	t.Helper()
	localcsitest.NeedRoot(t)
	image, point := filepath.Join(t.TempDir(), "image"), t.TempDir()
	err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 512*mib), filesystem.Format(t.Context(), image, filesystem.XFS))
	if err != nil {
		t.Fatal(err)
	}
	device, err := loop.Attach(image, image, false)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(mount.Mount(device.Path(), point, string(filesystem.XFS), nil), device.SetAutoClear(true), device.Close())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	return point
}

// A watch takes clones as instants: the source is written all the time, and the second session reads only what changed.
func TestAWatchFindsChangesByTheKeptInstant(t *testing.T) {
	east, west := newHosts(t)
	east.disk = xfs(t)
	source, replica := east.write("db.img", 8*mib), filepath.Join(west.disk, "db.img")
	_, address := west.receive(replica)
	watch := east.start("replicate", source, address, "--watch", "1s")
	ended := func(e event) bool { return e.Event == "session" }
	if begin := watch.await("the first session", func(e event) bool { return e.Event == "begin" }); begin.Live {
		t.Fatal("the source itself is read although it can be cloned")
	}
	first := watch.await("the first session's end", ended)
	change(t, source, 3*mib, 8192)
	var second event
	for second.Report == nil || second.Report.BytesChanged == 0 {
		second = watch.await("a session with a change", ended)
	}
	if r := second.Report; !r.Done || r.Tier != "cbt" || r.BytesRead > mib || r.Point == first.Point {
		t.Errorf("the report is %+v", r)
	}
	same(t, source, replica)
	watch.signal(syscall.SIGTERM)
	watch.end(0)
	names, err := filepath.Glob(filepath.Join(east.disk, ".db.img.lifeboat-*"))
	if err != nil || len(names) != 1 {
		t.Errorf("instants left: %v, %v; expected the base alone", names, err)
	}
	// The base serves a single session too.
	change(t, source, 5*mib, 4096)
	if r := east.replicate(0, source, address); r.Tier != "cbt" || r.BytesRead > mib {
		t.Errorf("after the watch the report is %+v", r)
	}
	same(t, source, replica)
}

// An instant that is a clone goes on after ^C whatever became of the source.
func TestAnInterruptedCloneGoesOnThoughTheSourceWasWritten(t *testing.T) {
	east, west := newHosts(t)
	east.disk = xfs(t)
	source, replica := east.write("db.img", 48*mib), filepath.Join(west.disk, "db.img")
	before := filepath.Join(west.disk, "before.img")
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(before, content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, address := west.receive(replica)
	run := east.start("replicate", source, address, "--limit", "12MB")
	run.await("progress", func(e event) bool { return e.Event == "progress" && e.State.BytesDone > 4*mib })
	run.signal(syscall.SIGTERM)
	cut := report(t, run.end(130), "")
	change(t, source, 0, 4096)
	change(t, source, 40*mib, 4096)
	if rest := east.replicate(0, source, address); rest.Point != cut.Point || rest.Resumed == 0 {
		t.Errorf("point %s was interrupted, then came %+v", cut.Point, rest)
	}
	same(t, before, replica)
	names, err := filepath.Glob(filepath.Join(east.disk, ".db.img.lifeboat-*"))
	if err != nil || len(names) != 0 {
		t.Errorf("instants left: %v, %v", names, err)
	}
}

func TestWrongCommandsAreExplained(t *testing.T) {
	east, _ := newHosts(t)
	source := east.write("db.img", mib)
	empty := t.TempDir()
	for _, c := range []struct {
		args string
		want string
	}{
		{"replicate " + source, "target is missing"},
		{"replicate west:9100", "source is missing"},
		{"replicate " + source + " west:9100 --identity " + empty, "make one with: lifeboat identity"},
		{"replicate " + source + " north@10.0.0.1:9100", `peer is "north": trusted are west`},
		{"replicate " + source + " west:9100 --to nowhere", `--to is "nowhere"`},
		{"replicate " + source + " west:9100 --to west:9100", "west@west:9100 twice"},
		{"replicate " + source + " west:9100 --limit fast", `rate "fast"`},
		{"replicate " + source + " west:9100 --compression lots", "compression"},
		{"replicate " + source + " west:9100 --base p1", "--base and --changes"},
		{"replicate " + source + " west:9100 --watch 1s --point p", "--watch"},
		{"replicate /does/not/exist 127.0.0.1:1", "/does/not/exist"},
		{"receive /dev/does-not-exist", "--spool is missing"},
		{"receive /does/not/exist", "make its folder first"},
		{"receive " + source + " --spool-limit lots", "--spool-limit"},
		{"receive " + source + " --peer north", `peer is "north"`},
		{"receive " + source + " --holds much", "replicaHolds"},
		{"receive a=" + source + " a=" + source, "name each volume once"},
		{"receive " + source + " " + empty, "a group of its own for each kind"},
		{"identity UPPER --dir " + empty, "name"},
		{"identity other --dir " + east.dir, "the identity of east"},
		{"identity trust /does/not/exist", "certificate"},
	} {
		said := east.must(engine.ExitConfiguration, strings.Fields(c.args)...)
		if !strings.Contains(said, c.want) {
			t.Errorf("lifeboat %s said %q, expected something about %q", c.args, said, c.want)
		}
	}
}

func TestIdentityFilesAreForTheirOwnerOnly(t *testing.T) {
	east, _ := newHosts(t)
	for _, name := range []string{"ca.crt", "ca.key", "tls.crt", "tls.key", "peer-ca.crt", "peers/west.crt"} {
		info, err := os.Stat(filepath.Join(east.dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	shown := east.must(0, "identity", "show")
	if !strings.Contains(shown, "host   east") || !strings.Contains(shown, "trusts west") {
		t.Errorf("shown is %q", shown)
	}
	// Another CA for a known name is not taken silently.
	impostor := newHost(t, "west")
	path := filepath.Join(t.TempDir(), "crt")
	if err := os.WriteFile(path, []byte(impostor.must(0, "identity", "show", "--certificate")), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := east.must(engine.ExitConfiguration, "identity", "trust", path); !strings.Contains(said, "--replace") {
		t.Errorf("said %q", said)
	}
	east.must(0, "identity", "trust", path, "--replace")
	// With two peers there is no CA that speaks for both.
	north := newHost(t, "north")
	east.trust(north)
	if _, err := os.Stat(filepath.Join(east.dir, "peer-ca.crt")); err == nil {
		t.Error("peer-ca.crt is there although there are two peers")
	}
	east.must(0, "identity", "distrust", "west")
	if shown := east.must(0, "identity", "show"); strings.Contains(shown, "west") || !strings.Contains(shown, "trusts north") {
		t.Errorf("shown is %q", shown)
	}
	if _, err := os.Stat(filepath.Join(east.dir, "peer-ca.crt")); err != nil {
		t.Error(err)
	}
}

// The second process would take the first one's instants away.
func TestOneProcessAtATime(t *testing.T) {
	east, _ := newHosts(t)
	source := east.write("db.img", mib)
	first := east.start("replicate", source, "127.0.0.1:1", "--give-up", "0s")
	first.await("the beginning", func(e event) bool { return e.Event == "begin" })
	said := east.must(engine.ExitConfiguration, "replicate", source, "127.0.0.1:1")
	if !strings.Contains(said, "replicated by another process") {
		t.Errorf("said %q", said)
	}
	first.signal(syscall.SIGINT)
	first.end(130)
}

// The plain lines are for people: they name the target, the point and the tier.
func TestPlainLines(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", mib), filepath.Join(west.disk, "db.img")
	_, address := west.receive(replica)
	said := east.must(0, "replicate", source, address, "--point", "monday")
	want := fmt.Sprintf("west@%s  monday done in ", address)
	if !strings.HasPrefix(said, want) || !strings.Contains(said, "tier ") || strings.Contains(said, "\x1b") {
		t.Errorf("said %q, expected it to begin with %q", said, want)
	}
}

// Clones are kept for as long as a target needs them: the slow one its unfinished instant, each done one its base.
func TestEachTargetKeepsItsOwnInstants(t *testing.T) {
	east, west := newHosts(t)
	east.disk = xfs(t)
	source := east.write("db.img", 2*mib)
	fast, slow := filepath.Join(west.disk, "fast"), filepath.Join(west.disk, "slow")
	_, quick := west.receive(fast)
	behind, late := west.receive(slow)
	watch := east.start("replicate", source, quick, "--to", late, "--watch", "1s")
	done := func(target string) func(event) bool {
		return func(e event) bool {
			return e.Event == "session" && e.Report.Done && strings.HasSuffix(e.Target, target)
		}
	}
	watch.await("the slow target's first point", done(late))
	behind.signal(syscall.SIGTERM)
	behind.end(0)
	// One target is away; the other one goes on.
	for range 2 {
		change(t, source, mib, 4096)
		watch.await("a point of the quick target", done(quick))
	}
	again := west.start("receive", "--listen", late, slow)
	again.await("the address", func(e event) bool { return e.Event == "ready" })
	change(t, source, 0, 4096)
	var tier string
	for range 3 { // what it was interrupted in, then what is new
		tier = watch.await("a point of the slow target", done(late)).Report.Tier
	}
	if tier != "cbt" {
		t.Errorf("the target that was away is brought up to date by tier %s", tier)
	}
	watch.await("a point of the quick target", done(quick))
	watch.signal(syscall.SIGINT)
	_ = watch.cmd.Wait() // 0 between two sessions, 130 in one
	same(t, source, fast)
	same(t, source, slow)
}

// The way home: the copy was used, the old primary still has its data, and only what differs goes back. From then on
// the old direction is refused.
func TestRolesAreSwapped(t *testing.T) {
	east, west := newHosts(t)
	source, replica := east.write("db.img", 4*mib), filepath.Join(west.disk, "db.img")
	target, address := west.receive(replica)
	east.replicate(0, source, address)
	target.signal(syscall.SIGTERM)
	target.end(0)
	change(t, replica, mib, 4096) // west is the primary now

	home, address := east.receive(source, "--epoch", "2", "--holds", "data")
	r := west.replicate(0, replica, address, "--epoch", "2")
	same(t, source, replica)
	if r.Tier != "digest" || r.BytesData > 2*64<<10 {
		t.Errorf("the way home: %+v", r)
	}
	home.signal(syscall.SIGTERM)
	home.end(0)

	_, address = west.receive(replica, "--epoch", "2")
	if r := east.replicate(engine.ExitRefused, source, address, "--fresh"); r.Kind != engine.KindStaleEpoch {
		t.Errorf("the old direction ends with %+v", r)
	}
}
