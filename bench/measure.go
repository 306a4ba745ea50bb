package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage is what one run of one contender took.
type usage struct {
	wall time.Duration
	cpu  time.Duration // user and system time of all its processes; kernel threads (writeback, loop devices) are nobody's
	wire int64         // bytes on the link in both directions, headers included; negative: it uses no link
	peak int64         // bytes: the largest sum of what its processes had resident at their worst
	side int64         // the same for the larger side alone, where a contender has two
	note string

	// Of ours only.
	engine time.Duration // a session as the engine counts it, without starting a process
	again  int64         // bytes sent a second time
}

// noWire says that a contender uses no link.
const noWire = -1

// process is a child of the bench, in a process group of its own so that all of it can be ended.
type process struct {
	cmd    *exec.Cmd
	output *tail
	ended  chan struct{}
	err    error // of Wait, once ended is closed
}

// start runs a program until it ends or ctx does.
func start(ctx context.Context, argv ...string) (*process, error) {
	p := &process{output: &tail{}, ended: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// wait returns when the program has ended; its last words are in the error.
func (p *process) wait() error {
	<-p.ended
	if p.err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(p.cmd.Path), p.err, strings.TrimSpace(p.output.String()))
	}
	return nil
}

// stop asks the program to end and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.ended
	}
}

// listening returns once a daemon accepts connections.
func listening(ctx context.Context, address string, daemon *process) error {
	for {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-daemon.ended:
			return fmt.Errorf("it does not run: %w", daemon.wait())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// cpu is what the running program and those of its children that have ended took so far.
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read a process's CPU time: %w", err)
	}
	return parseCPU(string(text))
}

// parseCPU reads utime, stime, cutime and cstime of proc(5)'s stat. A tick is 10 ms on every Linux that matters.
func parseCPU(stat string) (time.Duration, error) {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return 0, fmt.Errorf("read a process's CPU time: %q is too short", stat)
	}
	ticks := 0
	for _, f := range fields[11:15] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("read a process's CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// loopback is the device two processes of one namespace talk over.
const loopback = "lo"

// measured runs a program to its end and counts in what long-lived helpers (daemons) do meanwhile, and what passes
// between them over a network device; empty: they use none.
func measured(ctx context.Context, device string, helpers []*process, argv ...string) (usage, error) {
	before, err := cpuOf(helpers)
	if err != nil {
		return usage{}, err
	}
	wire, err := meter(device)
	if err != nil {
		return usage{}, err
	}
	began := time.Now()
	p, err := start(ctx, argv...)
	if err != nil {
		return usage{}, err
	}
	w := watch(append([]*process{p}, helpers...))
	err = p.wait()
	took := time.Since(began)
	peaks := w.stop()
	if err != nil {
		return usage{}, err
	}
	after, err := cpuOf(helpers)
	if err != nil {
		return usage{}, err
	}
	u := usage{wall: took, cpu: p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime() + after - before, peak: peaks.sum, side: peaks.side}
	u.wire, err = wire()
	return u, err
}

// meter begins to count a device's bytes; what it returns ends it.
func meter(device string) (passed func() (int64, error), err error) {
	if device == "" {
		return func() (int64, error) { return noWire, nil }, nil
	}
	before, err := wireBytes(device)
	return func() (int64, error) {
		after, err := wireBytes(device)
		return after - before, err
	}, err
}

func cpuOf(running []*process) (time.Duration, error) {
	var sum time.Duration
	for _, p := range running {
		if err := p.settle(); err != nil {
			return 0, err
		}
		c, err := p.cpu()
		if err != nil {
			return 0, err
		}
		sum += c
	}
	return sum, nil
}

// settle waits until a daemon has collected the children that served the last connection: before that their time is
// not in its own account.
func (p *process) settle() error {
	for deadline := time.Now().Add(5 * time.Second); len(children(p.cmd.Process.Pid)) > 0; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s still has children at work", filepath.Base(p.cmd.Path))
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// peaks is what a watcher has seen.
type peaks struct {
	sum  int64 // largest sum over all processes alive at one time
	side int64 // largest over one root and its descendants
}

// watcher looks at how much memory processes and their descendants have had resident. The kernel's own account of a
// child that has ended (ru_maxrss) would not do: it begins at what the parent had.
type watcher struct {
	end  chan struct{}
	done chan peaks
}

func watch(roots []*process) *watcher {
	w := &watcher{end: make(chan struct{}), done: make(chan peaks, 1)}
	go func() {
		var seen peaks
		// Often at first, for runs that are over soon; then rarely, so that looking costs nothing. What is read is
		// each process's own high-water mark: only what grows after the last look is missed.
		pause := 2 * time.Millisecond
		for {
			sum := int64(0)
			for _, p := range roots {
				one := residentTree(p.cmd.Process.Pid)
				seen.side = max(seen.side, one)
				sum += one
			}
			seen.sum = max(seen.sum, sum)
			select {
			case <-w.end:
				w.done <- seen
				return
			case <-time.After(pause):
				pause = min(2*pause, 50*time.Millisecond)
			}
		}
	}()
	return w
}

func (w *watcher) stop() peaks {
	close(w.end)
	return <-w.done
}

func residentTree(pid int) int64 {
	sum := resident(pid)
	for _, child := range children(pid) {
		sum += residentTree(child)
	}
	return sum
}

// resident is a process's high-water mark in bytes; 0 when it is gone.
func resident(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return parseResident(string(text))
}

func parseResident(status string) int64 {
	_, rest, found := strings.Cut(status, "VmHWM:")
	if !found {
		return 0
	}
	fields := strings.Fields(rest)
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// children are a process's living children, of all its threads.
func children(pid int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var pids []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// wireBytes is what has passed a network device of the bench's own namespace so far, in both directions. Nobody else
// is there, and on loopback what one process sends another has received.
func wireBytes(device string) (int64, error) {
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, fmt.Errorf("count bytes on the wire: %w", err)
	}
	received, sent, err := parseWire(string(text), device)
	if device == loopback {
		sent = 0
	}
	return received + sent, err
}

func parseWire(dev, device string) (received, sent int64, err error) {
	for line := range strings.Lines(dev) {
		name, rest, found := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !found || strings.TrimSpace(name) != device || len(fields) < 9 {
			continue
		}
		received, err = strconv.ParseInt(fields[0], 10, 64)
		if err == nil {
			sent, err = strconv.ParseInt(fields[8], 10, 64)
		}
		return received, sent, err
	}
	return 0, 0, fmt.Errorf("count bytes on the wire: there is no device %s", device)
}

// command runs a program that is not measured.
func command(ctx context.Context, argv ...string) error {
	p, err := start(ctx, argv...)
	if err != nil {
		return err
	}
	return p.wait()
}

// output runs a program that is not measured and returns what it says.
func output(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return "", fmt.Errorf("run %s: %w", argv[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// tail keeps the end of what a program says. Only the goroutine that copies writes, and it is read after the end.
type tail struct{ text []byte }

const tailSize = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - tailSize; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.text) }
