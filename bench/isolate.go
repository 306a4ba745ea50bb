package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// interrupts are the signals that end a bench early, with everything put away.
var interrupts = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}

// inside says that this process already has its namespaces.
const inside = "LIFEBOAT_BENCH_INSIDE"

func isolated() bool { return os.Getenv(inside) != "" }

// peerPackages are the Debian packages of the tools the engine is compared with, and of those that measure.
var peerPackages = []string{"rsync", "restic", "rclone", "btrfs-progs", "iproute2"}

// isolate runs this program again in network and mount namespaces of its own and waits for it: what it mounts and
// which devices it makes ends with it, however it ends. Peers are installed before that, while there is a network; a
// peer that cannot be had costs its own rows only.
func isolate(chosen []stage) error {
	if os.Geteuid() != 0 {
		return errors.New("it mounts file systems and shapes a link, and needs root for that: run it as root")
	}
	if slices.ContainsFunc(chosen, func(s stage) bool { return s.peers }) {
		install()
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	// The child is to end when this process does, and the kernel takes the thread for the process.
	runtime.LockOSThread()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM, Setpgid: true}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, interrupts...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(max(1, exit.ExitCode())) // it has said why
	}
	return err
}

// install gets what is missing and says what cannot be had.
func install() {
	for _, name := range peerPackages {
		if out, err := exec.Command("hack/apt.sh", name).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s cannot be installed, rows that need it will say so: %s\n", name, out)
		}
	}
}

// loopbackUp lets processes of this namespace talk to each other.
func loopbackUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return command(ctx, "ip", "link", "set", loopback, "up")
}
