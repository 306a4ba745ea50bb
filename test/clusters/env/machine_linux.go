package env

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/test/clusters/machine"
)

// process is a process of which the number cannot be mistaken for a later one's.
type process struct {
	PID int `json:"pid"`
	// Start is the process's start time in clock ticks since boot, as in field 22 of /proc/PID/stat.
	Start uint64 `json:"start"`
	// Boot is the kernel's boot id: after a reboot nothing of the file is true.
	Boot string `json:"boot"`
}

func identify(pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The command's name, in parentheses, may hold anything; the fields after it are plain.
	_, rest, ok := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return process{}, fmt.Errorf("process %d: unreadable state", pid)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return process{}, fmt.Errorf("process %d has ended", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return process{pid, start, strings.TrimSpace(string(boot))}, err
}

// init is the cluster's running pid 1, if it runs.
func (c Cluster) init() (process, bool) {
	text, err := os.ReadFile(c.path("init.json"))
	if err != nil {
		return process{}, false
	}
	var noted process
	if err := json.Unmarshal(text, &noted); err != nil {
		return process{}, false
	}
	now, err := identify(noted.PID)
	return noted, err == nil && now == noted
}

// boot starts the cluster's machine. It is complete, and noted, before its pid 1 hears the word to begin; until then
// it ends by itself when the caller dies.
func (e *Env) boot(ctx context.Context, c Cluster, b *Build) error {
	spec, err := e.settings(c, b)
	if err != nil {
		return fmt.Errorf("settings of %s: %w", c.Name, err)
	}
	if err := writeJSON(c.path("spec.json"), spec); err != nil {
		return err
	}
	if err := makeCgroups(c); err != nil {
		return err
	}
	log, err := os.OpenFile(c.path("log/init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(b.Init, c.path("spec.json"))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", []string{}, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
	}
	word, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	defer word.Close()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start pid 1 of %s: %w", c.Name, err)
	}
	go func() { _ = cmd.Wait() }() // collects it if it ends while this program lives; afterwards the host's own pid 1 does
	err = func() error {
		if err := joinCgroups(c, cmd.Process.Pid); err != nil {
			return err
		}
		if err := e.plug(ctx, c, cmd.Process.Pid); err != nil {
			return err
		}
		id, err := identify(cmd.Process.Pid)
		if err != nil {
			return err
		}
		if err := writeJSON(c.path("init.json"), id); err != nil {
			return err
		}
		_, err = io.WriteString(word, machine.Go)
		return err
	}()
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Name, errors.Join(err, e.crash(c)))
	}
	return nil
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, text, 0o644)
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, text []byte, mode os.FileMode) error {
	if err := os.WriteFile(path+".new", text, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// crash ends the cluster's machine as a loss of power would: no process gets to say goodbye, and what the kernel would
// lose with the machine (its mounts, network, cgroups and loop devices) is gone afterwards. The data stays.
func (e *Env) crash(c Cluster) error {
	if init, alive := c.init(); alive {
		if err := unix.Kill(init.PID, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill pid 1 of %s: %w", c.Name, err)
		}
	}
	if err := killAll(c); err != nil {
		return err
	}
	if err := detachLoops(c); err != nil {
		return err
	}
	if err := unplug(context.Background(), c); err != nil {
		return err
	}
	if err := removeCgroups(c); err != nil {
		return err
	}
	return ignoreMissing(os.Remove(c.path("init.json")))
}

// killAll ends every process of the cluster and waits until the kernel has let go of the last.
func killAll(c Cluster) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		pids, err := processes(c)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of %s do not end, the first is %d", len(pids), c.Name, pids[0])
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d of %s: %w", pid, c.Name, err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}
