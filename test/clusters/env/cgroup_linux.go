package env

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchies are the mount points of the machine's cgroup trees: one for each controller on version 1, one in all
// on version 2.
func hierarchies() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []string
	seen := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// mountinfo: ID parent major:minor root mountpoint options [tags...] - type source options
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 5 || !strings.HasPrefix(right, "cgroup") || seen[fields[2]] {
			continue
		}
		seen[fields[2]] = true
		all = append(all, fields[4])
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroup file system is mounted: the kubelet needs cgroups (version 1 or 2) below /sys/fs/cgroup")
	}
	return all, nil
}

// The machine's pid 1 and all servers are in this child, so that on version 2 the parent, which has the pods'
// branch as another child, stays free of processes.
const systemCgroup = "system"

// makeCgroups makes the cluster's branch in every hierarchy.
func makeCgroups(c Cluster) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		if isCgroup2(mount) && len(mounts) == 1 {
			if err := delegate(mount); err != nil {
				return err
			}
		}
		for _, dir := range []string{filepath.Join(mount, c.cgroup()), filepath.Join(mount, c.cgroup(), systemCgroup)} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := inheritCPUs(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func isCgroup2(mount string) bool {
	var info unix.Statfs_t
	return unix.Statfs(mount, &info) == nil && info.Type == unix.CGROUP2_SUPER_MAGIC
}

// delegate lets children of a version 2 root have all of its controllers.
func delegate(mount string) error {
	text, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(text)) {
		// One that cannot be passed on is reported by the kubelet if it is one that it needs.
		_ = os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
	return nil
}

// inheritCPUs fills cpuset.cpus and cpuset.mems, which begin empty on version 1 and then admit no process.
func inheritCPUs(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(have)) != "" || isCgroup2(dir) {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0o644); err != nil {
			return fmt.Errorf("%s/%s: %w", dir, file, err)
		}
	}
	return nil
}

// joinCgroups moves a process into the cluster's branch; its children are born there.
func joinCgroups(c Cluster, pid int) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		file := filepath.Join(mount, c.cgroup(), systemCgroup, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("move process %d: %w", pid, err)
		}
	}
	return nil
}

// processes lists every process in the cluster's branches: all that the cluster runs, whoever started it.
func processes(c Cluster) ([]int, error) {
	mounts, err := hierarchies()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	for _, mount := range mounts {
		for _, pid := range processesBelow(filepath.Join(mount, c.cgroup())) {
			seen[pid] = true
		}
	}
	all := make([]int, 0, len(seen))
	for pid := range seen {
		all = append(all, pid)
	}
	return all, nil
}

// processesBelow lists the processes of one cgroup and of those below it. Groups that go away meanwhile have none.
func processesBelow(top string) []int {
	var all []int
	// The function returns only nil, so WalkDir does.
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				all = append(all, pid)
			}
		}
		return nil
	})
	return all
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// removeCgroups removes the cluster's branch of every hierarchy. The kernel needs a moment after the last process.
func removeCgroups(c Cluster) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, mount := range mounts {
		top := filepath.Join(mount, c.cgroup())
		for {
			err := removeTree(top)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", top, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// removeTree removes a folder of folders, the deepest first. The files in it are the kernel's and go by themselves.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return ignoreMissing(unix.Rmdir(dir))
}
