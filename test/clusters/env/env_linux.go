package env

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Env is the clusters of one Config.
type Env struct {
	config   Config
	clusters []Cluster
}

// Open checks the Config and that this machine can run clusters at all, and returns at once. It starts nothing.
func Open(c Config) (*Env, error) {
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	if err := Unfit(); err != nil {
		return nil, err
	}
	return &Env{config: c, clusters: c.clusters()}, nil
}

// Clusters are the clusters, in the order of their addresses.
func (e *Env) Clusters() []Cluster { return slices.Clone(e.clusters) }

// Cluster finds a cluster by its name.
func (e *Env) Cluster(name string) (Cluster, error) {
	all, err := e.choose([]string{name})
	if err != nil {
		return Cluster{}, err
	}
	return all[0], nil
}

func (e *Env) choose(names []string) ([]Cluster, error) {
	if len(names) == 0 {
		return e.clusters, nil
	}
	var chosen []Cluster
	for _, name := range names {
		i := slices.Index(e.config.Clusters, name)
		if i < 0 {
			return nil, fmt.Errorf("no cluster is named %q: there are %s", name, strings.Join(e.config.Clusters, ", "))
		}
		chosen = append(chosen, e.clusters[i])
	}
	return chosen, nil
}

// Kubeconfig is the path of a file with one context for each cluster, called like it. It is there after Up.
func (e *Env) Kubeconfig() string { return filepath.Join(e.config.StateDir, "kubeconfig") }

// Kubectl is the path of a kubectl of the clusters' version. It is there after Up.
func (e *Env) Kubectl() string { return filepath.Join(e.config.StateDir, "kubectl") }

// identity is what a state folder was made for; it also marks the folder as ours to remove.
type identity struct {
	Slot     int      `json:"slot"`
	Clusters []string `json:"clusters"`
}

func (e *Env) identityFile() string { return filepath.Join(e.config.StateDir, "clusters.json") }

// Up makes the clusters run and waits until they can be used. Clusters that run are left alone; one that died starts
// again with its data. It may be called again at any time, also after a call that was killed.
func (e *Env) Up(ctx context.Context) error {
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.claim(); err != nil {
		return err
	}
	if err := e.fits(ctx); err != nil {
		return err
	}
	if err := e.allowWatchers(); err != nil {
		return err
	}
	if err := e.install(ctx); err != nil {
		return err
	}
	b, err := e.Build(ctx)
	if err != nil {
		return err
	}
	if err := e.makeBridge(ctx); err != nil {
		return err
	}
	begun := time.Now()
	group, all := errgroup.WithContext(ctx)
	for _, c := range e.clusters {
		group.Go(func() error { return e.start(all, c, b) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := e.publish(b); err != nil {
		return err
	}
	e.config.Progress("%s usable after %.1f s", strings.Join(e.config.Clusters, " and "), time.Since(begun).Seconds())
	return nil
}

// claim makes the state folder, or sees that it was made for the same clusters.
func (e *Env) claim() error {
	if err := os.MkdirAll(e.config.StateDir, 0o755); err != nil {
		return err
	}
	want := identity{e.config.Slot, e.config.Clusters}
	text, err := os.ReadFile(e.identityFile())
	if errors.Is(err, os.ErrNotExist) {
		entries, err := os.ReadDir(e.config.StateDir)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("state folder %s holds other things (%s): choose an empty or new one with --state-dir", e.config.StateDir, entries[0].Name())
		}
		return writeJSON(e.identityFile(), want)
	}
	if err != nil {
		return err
	}
	var have identity
	if err := json.Unmarshal(text, &have); err != nil {
		return fmt.Errorf("%s: %w", e.identityFile(), err)
	}
	if have.Slot != want.Slot || !slices.Equal(have.Clusters, want.Clusters) {
		return fmt.Errorf("state folder %s belongs to slot %d with clusters %s: run `clusters down` for those first, or choose another --state-dir",
			e.config.StateDir, have.Slot, strings.Join(have.Clusters, ","))
	}
	return nil
}

// publish writes what users of the clusters need beside them.
func (e *Env) publish(b *Build) error {
	text, err := kubeconfig(e.clusters, "admin")
	if err != nil {
		return err
	}
	if err := replaceFile(e.Kubeconfig(), text, 0o600); err != nil {
		return err
	}
	if err := ignoreMissing(os.Remove(e.Kubectl())); err != nil {
		return err
	}
	return os.Symlink(filepath.Join(b.Dir, "kubectl"), e.Kubectl())
}

const patience = 3 * time.Minute

// start makes one cluster run and waits until it is usable. The images are loaded while its servers start.
func (e *Env) start(ctx context.Context, c Cluster, b *Build) error {
	begun := time.Now()
	if _, alive := c.init(); !alive {
		// What a crash left must go first: a new machine needs the same names.
		if err := e.crash(c); err != nil {
			return err
		}
		if err := writeKeys(c, net.IP(e.config.Host().AsSlice())); err != nil {
			return fmt.Errorf("keys of %s: %w", c.Name, err)
		}
		if err := e.boot(ctx, c, b); err != nil {
			return err
		}
	} else {
		begun = time.Time{} // it reported at some time, that is enough
		e.mention(c, b)
	}
	init, alive := c.init()
	if !alive {
		return fmt.Errorf("%s ended at once: %s", c.Name, e.lastWords(c))
	}
	a, err := c.api()
	if err != nil {
		return err
	}
	defer a.close()
	running := func() bool { _, alive := c.init(); return alive }
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := await(both, patience, c.Name+": containerd", running, func() error { return containerdUp(both, init.PID) }); err != nil {
			return err
		}
		return e.load(both, c, init.PID, b.Images)
	})
	group.Go(func() error {
		if err := await(both, patience, c.Name+": usable", running, func() error { return a.usable(both, c, begun) }); err != nil {
			return err
		}
		return await(both, patience, c.Name+": snapshot kinds", running, func() error { return a.furnish(both, b) })
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, e.lastWords(c))
	}
	// Not before its image is there: the kubelet would look again only after ten seconds.
	if err := a.apply(ctx, snapshotController); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return await(ctx, patience, c.Name+": snapshot controller", running, func() error {
		return a.controllerRuns(ctx, begun)
	})
}

// mention says that a running cluster was started from another build. It is not restarted: somebody may be using it.
func (e *Env) mention(c Cluster, b *Build) {
	text, err := os.ReadFile(c.path("spec.json"))
	if err == nil && !strings.Contains(string(text), b.Dir) {
		e.config.Progress("%s runs an older build; `clusters restart %s` brings the new one", c.Name, c.Name)
	}
}

// nothingMounted refuses a folder in which the host has something mounted, because removing the folder would
// remove what is mounted there.
func nothingMounted(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			return fmt.Errorf("%s is mounted on this machine: unmount it, then run `clusters down` again", fields[4])
		}
	}
	return nil
}

// lastWords is the end of what the cluster's pid 1 wrote, for an error.
func (e *Env) lastWords(c Cluster) string {
	text, err := os.ReadFile(c.path("log/init.log"))
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	return fmt.Sprintf("logs are in %s; pid 1 said last: %s", c.path("log"), lastLines(string(text), 5))
}

// Kill ends a cluster as a loss of power would. Its data stays; Restart or Up bring it back.
func (e *Env) Kill(ctx context.Context, name string) error {
	c, err := e.Cluster(name)
	if err != nil {
		return err
	}
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return e.crash(c)
}

// Restart ends a cluster as Kill does, if it runs, starts it with its data and waits until it is usable.
func (e *Env) Restart(ctx context.Context, name string) error {
	c, err := e.Cluster(name)
	if err != nil {
		return err
	}
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(c.path("pki/complete")); err != nil {
		return fmt.Errorf("cluster %s was never up: run `clusters up` first", name)
	}
	b, err := e.Build(ctx)
	if err != nil {
		return err
	}
	if err := e.crash(c); err != nil {
		return err
	}
	if err := e.makeBridge(ctx); err != nil {
		return err
	}
	return e.start(ctx, c, b)
}

// Down removes the clusters and all that they were. It finds what to remove by looking, so it also cleans up after
// anything that died half-way, and it is no error when there is nothing.
func (e *Env) Down(ctx context.Context) error {
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	forgetPolicy()
	for _, c := range e.clusters {
		if err := e.crash(c); err != nil {
			return err
		}
	}
	if err := e.removeBridge(ctx); err != nil {
		return err
	}
	if _, err := os.Stat(e.identityFile()); err != nil {
		if entries, err := os.ReadDir(e.config.StateDir); err == nil && len(entries) > 0 {
			return fmt.Errorf("state folder %s is not one of clusters (no %s in it): remove it yourself if it is yours", e.config.StateDir, filepath.Base(e.identityFile()))
		}
		return nil
	}
	if err := nothingMounted(e.config.StateDir); err != nil {
		return err
	}
	// The mark goes last, so that a Down that was killed can be made again.
	entries, err := os.ReadDir(e.config.StateDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(e.config.StateDir, entry.Name())
		if path == e.identityFile() {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return os.RemoveAll(e.config.StateDir)
}

// Status is what is true of a cluster now.
type Status struct {
	Name    string
	Address string
	// PID is the machine's pid 1 on the host; 0 when the cluster does not run.
	PID       int
	Processes int
	// NotUsable says why the cluster cannot be used; nil when it can.
	NotUsable error
	// Link is "up" or "cut".
	Link string
}

// Status looks at every cluster.
func (e *Env) Status(ctx context.Context) ([]Status, error) {
	all := make([]Status, len(e.clusters))
	for i, c := range e.clusters {
		s := Status{Name: c.Name, Address: c.Node.String(), Link: "up"}
		if e.isCut() {
			s.Link = "cut"
		}
		pids, err := processes(c)
		if err != nil {
			return nil, err
		}
		s.Processes = len(pids)
		init, alive := c.init()
		if alive {
			s.PID = init.PID
			s.NotUsable = e.ask(ctx, c)
		} else {
			s.NotUsable = errors.New("not running")
		}
		all[i] = s
	}
	return all, nil
}

func (e *Env) ask(ctx context.Context, c Cluster) error {
	a, err := c.api()
	if err != nil {
		return err
	}
	defer a.close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return a.usable(ctx, c, time.Time{})
}

// Command is a command that runs in a cluster's machine: in its namespaces, with its file tree.
func (e *Env) Command(ctx context.Context, name string, command ...string) (*exec.Cmd, error) {
	c, err := e.Cluster(name)
	if err != nil {
		return nil, err
	}
	init, alive := c.init()
	if !alive {
		return nil, fmt.Errorf("cluster %s is not running", name)
	}
	// The pid namespace has to be entered with the mount namespace: the new /proc knows only processes of its own.
	args := append([]string{"-t", fmt.Sprint(init.PID), "-m", "-u", "-i", "-n", "-p", "--"}, command...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append(cmd.Environ(), "PATH="+inBin+":/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_NAMESPACE=k8s.io",
		"KUBECONFIG="+inNode+"/etc/admin.kubeconfig", "HOME=/root")
	return cmd, nil
}

// lock keeps two calls from changing the same clusters at once. The kernel drops it when the holder dies.
func (e *Env) lock(ctx context.Context) (unlock func(), err error) {
	return lockFile(ctx, e.config.StateDir+".lock", func() {
		e.config.Progress("waiting: another command is at work on these clusters")
	})
}

func lockFile(ctx context.Context, path string, busy func()) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		unlock, err := tryLock(path)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return unlock, err
		}
		if first {
			busy()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func tryLock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	mine, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	there, err := os.Stat(path)
	if err != nil || !os.SameFile(mine, there) {
		// The holder before us removed the file: we have a lock that nobody else will ever meet.
		_ = f.Close()
		return nil, unix.EWOULDBLOCK
	}
	return func() { _, _ = os.Remove(path), f.Close() }, nil
}

// KubeconfigOf is the text of a kubeconfig with one context for each named cluster, or for all.
func (e *Env) KubeconfigOf(names ...string) ([]byte, error) {
	chosen, err := e.choose(names)
	if err != nil {
		return nil, err
	}
	text, err := kubeconfig(chosen, "admin")
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("the clusters were never up: run `clusters up` first")
	}
	return text, err
}
