package env

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat.dev/lifeboat/test/clusters/image"
)

// LoadImage brings image archives into the named clusters, or into all when none is named. What a cluster already
// has, with the same content, is left alone.
func (e *Env) LoadImage(ctx context.Context, clusters []string, archives ...string) error {
	chosen, err := e.choose(clusters)
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, c := range chosen {
		group.Go(func() error {
			init, alive := c.init()
			if !alive {
				return fmt.Errorf("cluster %s is not running: run `clusters up` or `clusters restart %s` first", c.Name, c.Name)
			}
			return e.load(ctx, c, init.PID, archives)
		})
	}
	return group.Wait()
}

func (e *Env) load(ctx context.Context, c Cluster, pid int, archives []string) error {
	have, err := images(ctx, pid)
	if err != nil {
		return fmt.Errorf("images of %s: %w", c.Name, err)
	}
	for _, archive := range archives {
		named, err := image.Inspect(archive)
		if err != nil {
			return err
		}
		if present(named, have) {
			continue
		}
		begun := time.Now()
		if out, err := ctr(ctx, pid, "images", "import", "--snapshotter", "overlayfs", archive).CombinedOutput(); err != nil {
			return fmt.Errorf("load %s into %s: %w: %s", archive, c.Name, err, lastLines(string(out), 5))
		}
		e.config.Progress("%s: loaded %s in %.1f s", c.Name, filepath.Base(archive), time.Since(begun).Seconds())
	}
	return nil
}

func present(named []image.Named, have map[string]string) bool {
	for _, n := range named {
		if have[n.Name] != n.Digest {
			return false
		}
	}
	return len(named) > 0
}

// images are the names of the images that a machine has, with their digests.
func images(ctx context.Context, pid int) (map[string]string, error) {
	out, err := ctr(ctx, pid, "images", "list").Output()
	if err != nil {
		return nil, withOutput(err)
	}
	all := map[string]string{}
	for _, line := range strings.Split(string(out), "\n") {
		// REF TYPE DIGEST SIZE ...
		if fields := strings.Fields(line); len(fields) > 3 && strings.HasPrefix(fields[2], "sha256:") {
			all[fields[0]] = fields[2]
		}
	}
	return all, nil
}

// ctr runs containerd's client on the host against the containerd of a machine, which is reached through the file
// system of its pid 1: so archives are read where they are on the host.
func ctr(ctx context.Context, pid int, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ctr", append([]string{"--address", containerdSocket(pid), "--namespace", "k8s.io"}, args...)...)
}

func containerdSocket(pid int) string { return fmt.Sprintf("/proc/%d/root%s", pid, socket) }

// containerdUp tells whether a machine's containerd answers.
func containerdUp(ctx context.Context, pid int) error {
	if _, err := os.Stat(containerdSocket(pid)); err != nil {
		return errors.New("containerd is not there yet")
	}
	if out, err := ctr(ctx, pid, "version").CombinedOutput(); err != nil {
		return fmt.Errorf("containerd does not answer yet: %s", lastLines(string(out), 1))
	}
	return nil
}
