package env

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/test/clusters/image"
)

// The tests of this file run on a pair of clusters of their own, in a slot of its own.
func open(t *testing.T, slot int) *Env {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: -short leaves out what needs two clusters")
	}
	e, err := Open(Config{Slot: slot, StateDir: fmt.Sprintf("/var/lib/lifeboat-clusters-test-%d", slot), Progress: t.Logf})
	var missing *Missing
	if errors.As(err, &missing) {
		t.Skipf("SKIPPED: %v", err)
	}
	must(t, err)
	return e
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually asks until the answer is nil, and fails with the last one when time is up.
func eventually(t *testing.T, limit time.Duration, ask func() error) {
	t.Helper()
	must(t, await(context.Background(), limit, t.Name(), func() bool { return true }, ask))
}

// TestClusters is one story because a pair of clusters is dear: each part stands on the one before.
func TestClusters(t *testing.T) {
	e := open(t, 2)
	ctx := context.Background()
	must(t, e.Down(ctx)) // what an earlier run that was killed left
	noTraces(t, e, nil)
	var attached []loop
	t.Cleanup(func() {
		if t.Failed() {
			for _, c := range e.clusters {
				text, _ := os.ReadFile(c.path("log/init.log"))
				t.Logf("%s, pid 1: %s", c.Name, text)
			}
		}
		must(t, e.Down(ctx))
		noTraces(t, e, attached)
		must(t, e.Down(ctx)) // nothing there is no error
	})
	must(t, e.Up(ctx))
	east, west := e.clusters[0], e.clusters[1]

	step := func(name string, do func(t *testing.T)) {
		if !t.Run(name, do) {
			t.FailNow()
		}
	}
	step("a second up changes nothing and takes less than 15 seconds", func(t *testing.T) {
		before := inits(t, e)
		begun := time.Now()
		must(t, e.Up(ctx))
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("it took %s", took)
		}
		if after := inits(t, e); !slices.Equal(before, after) {
			t.Errorf("processes were %v, are %v", before, after)
		}
	})
	step("an image is loaded once", func(t *testing.T) {
		archive := probeImage(t)
		must(t, e.LoadImage(ctx, nil, archive))
		again := *e
		again.config.Progress = func(format string, args ...any) { t.Errorf("second time: "+format, args...) }
		must(t, again.LoadImage(ctx, nil, archive))
	})
	step("pods, host ports, host networks and services reach each other across the clusters", func(t *testing.T) {
		for _, c := range e.clusters {
			kubectl(t, e, c, "apply", "-f", "testdata/probes.yaml")
		}
		for _, from := range e.clusters {
			callers := []string{podIP(t, e, from, "pod") + ":8080", from.Node.String() + ":9100"}
			for _, to := range e.clusters {
				service := kubectl(t, e, to, "get", "service", "probe", "-o", "jsonpath={.spec.clusterIP}") + ":80"
				for _, target := range []string{podIP(t, e, to, "pod") + ":8080", to.Node.String() + ":9002", to.Node.String() + ":9100", service} {
					for _, caller := range callers {
						eventually(t, 10*time.Second, func() error { return call(caller, target) })
					}
					eventually(t, 10*time.Second, func() error { return get("http://" + target + "/") })
				}
			}
		}
	})
	step("a cut stops open and new connections both ways and leaves the host both clusters", func(t *testing.T) {
		pods := []string{podIP(t, e, east, "pod") + ":8080", podIP(t, e, west, "pod") + ":8080"}
		nodes := []string{east.Node.String(), west.Node.String()}
		must(t, get("http://"+pods[0]+"/hold?to="+nodes[1]+":9003"))
		eventually(t, 5*time.Second, func() error { return echoes(pods[0]) })
		must(t, e.Cut(ctx))
		must(t, e.Cut(ctx))
		eventually(t, 5*time.Second, func() error {
			if age, err := echoAge(pods[0]); err != nil || age < time.Second {
				return fmt.Errorf("the open connection's last byte is %s old (%v)", age, err)
			}
			return nil
		})
		for i := range pods {
			if call(pods[i], nodes[1-i]+":9002") == nil || call(pods[i], pods[1-i]) == nil {
				t.Errorf("a new connection of %s passed the cut", pods[i])
			}
		}
		for _, c := range e.clusters {
			must(t, e.ask(ctx, c))
			must(t, get("http://"+c.Node.String()+":9002/"))
		}
		must(t, e.Restart(ctx, "west")) // it comes back on its own side of the cut
		if call(pods[0], nodes[1]+":9100") == nil {
			t.Error("a restart healed the cut")
		}
		must(t, e.Heal(ctx))
		must(t, e.Heal(ctx))
		eventually(t, 30*time.Second, func() error { return call(pods[0], nodes[1]+":9002") })
	})
	step("an open connection goes on after a short cut", func(t *testing.T) {
		pod := podIP(t, e, west, "pod") + ":8080"
		eventually(t, 30*time.Second, func() error { return get("http://" + pod + "/hold?to=" + east.Node.String() + ":9003") })
		eventually(t, 5*time.Second, func() error { return echoes(pod) })
		must(t, e.Cut(ctx))
		eventually(t, 5*time.Second, func() error {
			if age, err := echoAge(pod); err != nil || age < time.Second {
				return fmt.Errorf("last byte is %s old (%v)", age, err)
			}
			return nil
		})
		must(t, e.Heal(ctx))
		eventually(t, 20*time.Second, func() error { return echoes(pod) })
	})
	step("a killed cluster loses what power would take, keeps its data, and the other does not notice", func(t *testing.T) {
		kubectl(t, e, east, "create", "configmap", "kept", "--from-literal=a=b")
		attached = append(attached, attachLoops(t, e, east)...)
		before, _ := west.init()
		must(t, e.Kill(ctx, "east"))
		noneLeft(t, attached)
		if pids, err := processes(east); err != nil || len(pids) > 0 {
			t.Errorf("processes of east: %v, %v", pids, err)
		}
		if err := e.ask(ctx, west); err != nil {
			t.Errorf("west: %v", err)
		}
		if err := e.LoadImage(ctx, []string{"east"}, "none.tar"); err == nil || !strings.Contains(err.Error(), "east is not running") {
			t.Errorf("load-image into a dead cluster: %v", err)
		}
		must(t, e.Restart(ctx, "east"))
		if got := kubectl(t, e, east, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
			t.Errorf("the object's data is %q", got)
		}
		if _, err := os.Stat(filepath.Join(east.CSIDir(), "xfs.img")); err != nil {
			t.Error(err)
		}
		if after, alive := west.init(); !alive || after != before {
			t.Error("west was restarted")
		}
	})
	step("a server that dies is started again", func(t *testing.T) {
		pids, err := processes(west)
		must(t, err)
		for _, pid := range pids {
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(line, []byte("kube-apiserver")) {
				must(t, unix.Kill(pid, unix.SIGKILL))
			}
		}
		if e.ask(ctx, west) == nil {
			t.Fatal("the API server was not killed")
		}
		eventually(t, 60*time.Second, func() error { return e.ask(ctx, west) })
	})
	step("up brings back what died by itself", func(t *testing.T) {
		attached = append(attached, attachLoops(t, e, west)...)
		init, _ := west.init()
		must(t, unix.Kill(init.PID, unix.SIGKILL))
		eventually(t, 10*time.Second, func() error {
			if _, alive := west.init(); alive {
				return errors.New("still alive")
			}
			return nil
		})
		must(t, e.Up(ctx))
		noneLeft(t, attached)
		must(t, e.ask(ctx, west))
	})
	step("status tells what is true", func(t *testing.T) {
		must(t, e.Kill(ctx, "west"))
		must(t, e.Cut(ctx))
		all, err := e.Status(ctx)
		must(t, err)
		if all[0].NotUsable != nil || all[0].PID == 0 || all[0].Link != "cut" || all[1].NotUsable == nil || all[1].PID != 0 || all[1].Processes != 0 {
			t.Errorf("status is %+v", all)
		}
	})
	// Down, in the cleanup, finds one cluster alive with loop devices attached, one dead, and the link cut.
	attached = append(attached, attachLoops(t, e, east)...)
}

// TestDownAfterAnyDeath kills the program at moments of its work and asks a later Down for a clean machine.
func TestDownAfterAnyDeath(t *testing.T) {
	e := open(t, 1)
	ctx := context.Background()
	_, err := e.Build(ctx)
	must(t, err)
	program := filepath.Join(t.TempDir(), "clusters")
	must(t, e.goBuild(ctx, "..", filepath.Dir(program), "."))
	arguments := func(command string) []string {
		return []string{"--slot", "1", "--state-dir", e.config.StateDir, command}
	}
	must(t, e.Down(ctx))
	for _, moment := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, 900 * time.Millisecond, 2 * time.Second, 5 * time.Second} {
		t.Run(moment.String(), func(t *testing.T) {
			killed(t, moment, program, arguments("up"))
			var attached []loop
			if c := e.clusters[0]; moment > time.Second {
				attached = attachLoops(t, e, c)
			}
			killed(t, moment/20, program, arguments("down"))
			must(t, e.Down(ctx))
			noTraces(t, e, attached)
		})
	}
	t.Run("and up after it", func(t *testing.T) {
		killed(t, 700*time.Millisecond, program, arguments("up"))
		must(t, e.Up(ctx))
		must(t, e.Down(ctx))
		noTraces(t, e, nil)
	})
}

func TestAForeignStateFolderIsLeftAlone(t *testing.T) {
	open(t, 1)
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	must(t, os.WriteFile(precious, nil, 0o600))
	e, err := Open(Config{Slot: 1, StateDir: dir})
	must(t, err)
	for name, do := range map[string]func(context.Context) error{"up": e.Up, "down": e.Down} {
		if err := do(context.Background()); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, want an error that names the folder", name, err)
		}
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestTakenAddressesAreNamed(t *testing.T) {
	e := open(t, 1)
	must(t, run(t.Context(), "ip", "link", "add", "lbctest", "type", "bridge"))
	defer func() { _ = run(context.Background(), "ip", "link", "delete", "lbctest") }()
	must(t, run(t.Context(), "ip", "address", "add", "10.172.1.9/16", "dev", "lbctest"))
	must(t, run(t.Context(), "ip", "link", "set", "lbctest", "up"))
	err := e.rangesFree(t.Context())
	if err == nil || !strings.Contains(err.Error(), "10.172.1.0/24") || !strings.Contains(err.Error(), "lbctest") {
		t.Errorf("got %v, want an error that names the range and who has it", err)
	}
}

func killed(t *testing.T, after time.Duration, program string, args []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), after) // its end is a SIGKILL
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	t.Logf("killed after %s: %v %s", after, err, bytes.TrimSpace(out))
}

// noTraces fails for everything of the clusters that the machine still has.
func noTraces(t *testing.T, e *Env, attached []loop) {
	t.Helper()
	for _, c := range e.clusters {
		if linkExists(c.link()) {
			t.Errorf("interface %s is left", c.link())
		}
		mounts, err := hierarchies()
		must(t, err)
		for _, mount := range mounts {
			if _, err := os.Stat(mount + c.cgroup()); err == nil {
				t.Errorf("cgroup %s%s is left", mount, c.cgroup())
			}
		}
	}
	if linkExists(e.config.bridge()) {
		t.Errorf("bridge %s is left", e.config.bridge())
	}
	for _, path := range []string{e.config.StateDir, e.config.StateDir + ".lock", "/run/netns/" + e.config.bridge()} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	routes, err := exec.Command("ip", "-4", "route", "show", "table", "all").Output()
	must(t, err)
	for _, r := range e.ranges() {
		if strings.Contains(string(routes), r.String()) {
			t.Errorf("a route to %s is left", r)
		}
	}
	// A process, or a mount in whatever namespace, that knows the state folder. The folder's name with the slash is in
	// no command line of the test itself.
	everywhere, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, dir := range everywhere {
		if pid, _ := strconv.Atoi(filepath.Base(dir)); ended(pid) {
			continue // all but its exit status is gone, and that is its parent's to collect
		}
		for _, file := range []string{"cmdline", "mountinfo", "cgroup"} {
			text, _ := os.ReadFile(filepath.Join(dir, file)) // a process may end meanwhile
			for _, c := range e.clusters {
				if bytes.Contains(text, []byte(c.Dir+"/")) || (file == "cgroup" && bytes.Contains(text, []byte(c.cgroup()))) {
					t.Errorf("%s/%s still has %s", dir, file, c.Name)
				}
			}
		}
	}
	noneLeft(t, attached)
}

func ended(pid int) bool {
	_, err := identify(pid)
	return err != nil
}

// attachLoops does in a cluster what a storage driver and the kubelet do: a file system of each kind on a loop device,
// a volume in it behind a second one, and a third that holds the second's device.
func attachLoops(t *testing.T, e *Env, c Cluster) []loop {
	t.Helper()
	const script = `set -e; cd /var/lib/lifeboat-csi
for kind in xfs btrfs; do
  [ -e $kind.img ] || { truncate -s 400M $kind.img; mkfs.$kind -q $kind.img >/dev/null; }
  mkdir -p $kind; mount -o loop $kind.img $kind; truncate -s 20M $kind/volume
  losetup --find $(losetup --find --show $kind/volume)
done`
	var out []byte
	eventually(t, 20*time.Second, func() error {
		if err := containerdUp(t.Context(), mustInit(t, c)); err != nil {
			return err // the file tree is complete when containerd runs
		}
		var err error
		out, err = exec.Command("nsenter", enter(t, c, "sh", "-c", script)...).CombinedOutput()
		return err
	})
	found, err := loopsOf(c)
	must(t, err)
	if len(found) != 6 {
		t.Fatalf("%d loop devices found for %s, want the six that were attached: %+v\n%s", len(found), c.Name, found, out)
	}
	return found
}

func mustInit(t *testing.T, c Cluster) int {
	t.Helper()
	init, alive := c.init()
	if !alive {
		t.Fatalf("%s does not run", c.Name)
	}
	return init.PID
}

func enter(t *testing.T, c Cluster, command ...string) []string {
	t.Helper()
	return append([]string{"-t", strconv.Itoa(mustInit(t, c)), "-m", "-u", "-i", "-n", "-p", "--"}, command...)
}

// noneLeft fails for devices that are still attached to the images they were attached to. Those on top need no look: one
// that is left holds the device below it. The folder that a device shows does not count, because it changes when the
// mount goes on which the file was; nor do numbers alone, because others use the same devices a moment later.
func noneLeft(t *testing.T, attached []loop) {
	t.Helper()
	now, err := loops()
	must(t, err)
	for _, l := range attached {
		image := filepath.Base(l.shown)
		if !strings.HasSuffix(image, ".img") {
			continue
		}
		for _, n := range now {
			if n.path == l.path && n.file == l.file && strings.Contains(n.shown, image) {
				t.Errorf("%s is still attached to %s", l.path, l.shown)
			}
		}
	}
}

func inits(t *testing.T, e *Env) []process {
	t.Helper()
	var all []process
	for _, c := range e.clusters {
		p, alive := c.init()
		if !alive {
			t.Errorf("%s does not run", c.Name)
		}
		all = append(all, p)
	}
	return all
}

func probeImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := goTool(t.Context(), ".", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "./testdata/probe")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v: %s", err, out)
	}
	archive := filepath.Join(dir, "probe.tar")
	_, err := image.Write(image.Spec{
		Name: "lifeboat-clusters/probe:dev", Entrypoint: []string{"/probe"}, User: "65534",
		Files: []image.File{{From: filepath.Join(dir, "probe"), To: "/probe"}},
	}, archive)
	must(t, err)
	return archive
}

func kubectl(t *testing.T, e *Env, c Cluster, args ...string) string {
	t.Helper()
	cmd := exec.Command(e.Kubectl(), append([]string{"--kubeconfig", e.Kubeconfig(), "--context", c.Name}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), withOutput(err))
	}
	return string(out)
}

// podIP waits until the pod has an address.
func podIP(t *testing.T, e *Env, c Cluster, name string) string {
	t.Helper()
	var ip string
	eventually(t, 30*time.Second, func() error {
		ip = kubectl(t, e, c, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
		if ip == "" {
			return errors.New("the pod has no address yet")
		}
		return nil
	})
	return ip
}

var web = http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func fetch(url string) (string, error) {
	resp, err := web.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, text)
	}
	return string(text), err
}

func get(url string) error {
	_, err := fetch(url)
	return err
}

func call(from, to string) error { return get("http://" + from + "/call?to=" + to) }

func echoAge(probe string) (time.Duration, error) {
	text, err := fetch("http://" + probe + "/held")
	if err != nil {
		return 0, err
	}
	ms, err := strconv.Atoi(text)
	if err != nil {
		return 0, errors.New(text)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func echoes(probe string) error {
	age, err := echoAge(probe)
	if err == nil && age > 500*time.Millisecond {
		err = fmt.Errorf("the last byte is %s old", age)
	}
	return err
}
