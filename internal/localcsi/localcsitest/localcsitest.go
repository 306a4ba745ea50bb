// Package localcsitest gives tests of the local driver a place where they can mount and attach and leave
// nothing behind, whatever way they end.
//
// Main runs the tests in a child process with a mount namespace of its own; when the child has ended, be it by
// a crash, its mounts are gone and the parent detaches the loop devices that remain. Begin reading at Main.
package localcsitest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"lifeboat.dev/lifeboat/internal/localcsi/loop"
)

const insideVariable = "LIFEBOAT_LOCALCSI_TEST_INSIDE"

// Main runs the tests of a package and returns the exit code. Without root they run in place, and those that
// need root skip by NeedRoot.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 || os.Getenv(insideVariable) != "" {
		return m.Run()
	}
	code, err := runInside()
	if err != nil {
		fmt.Fprintln(os.Stderr, "localcsitest:", err)
		return 1
	}
	return code
}

// NeedRoot skips the test when it cannot attach and mount.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root on Linux to attach loop devices and mount file systems")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("SKIPPED: needs the kernel's loop driver: ", err)
	}
	for _, tool := range []string{"mkfs.xfs", "mkfs.ext4", "mkfs.btrfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("SKIPPED: needs the packages e2fsprogs, xfsprogs and btrfs-progs: ", err)
		}
	}
}

func runInside() (int, error) {
	dir, err := os.MkdirTemp("", "localcsi-test-")
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"=1", "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	return cmd.ProcessState.ExitCode(), errors.Join(Sweep(dir), os.RemoveAll(dir))
}

// Sweep detaches the loop devices over images below dir, and those over files on these images.
func Sweep(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(text), dir) {
			continue
		}
		name := strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(file))), "loop")
		number, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		errs = append(errs, sweepOne(number))
	}
	return errors.Join(errs...)
}

// sweepOne detaches what lies on the image, and what is stacked on that, before the image.
func sweepOne(number int) error {
	image, err := loop.Open(number)
	if err != nil || image == nil {
		return err
	}
	return errors.Join(SweepFileSystem(image.Rdev()), image.Detach())
}

// SweepFileSystem detaches the loop devices over files of the file system with this device number, and what is
// stacked on them. Sweep finds those on an image by itself unless it holds btrfs, whose numbers are its own.
func SweepFileSystem(dev uint64) error {
	above, err := loop.OnFileSystem(dev)
	if err != nil {
		return err
	}
	var errs []error
	for _, device := range above {
		stacked, err := loop.StackedOn(device.Rdev())
		errs = append(errs, err)
		for _, top := range stacked {
			errs = append(errs, top.Detach())
		}
		errs = append(errs, device.Detach())
	}
	return errors.Join(errs...)
}
