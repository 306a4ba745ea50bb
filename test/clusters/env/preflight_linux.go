package env

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// needs are the programs of the system that clusters are made of, with the Debian package that has each.
var needs = []struct{ program, pkg string }{
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"containerd-shim-runc-v2", "containerd"},
	{"runc", "runc"},
	{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	{"/usr/lib/cni/host-local", "containernetworking-plugins"},
	{"/usr/lib/cni/loopback", "containernetworking-plugins"},
	{"/usr/lib/cni/portmap", "containernetworking-plugins"},
	{"ip", "iproute2"},
	{"bridge", "iproute2"},
	{"nft", "nftables"},
	{"iptables", "iptables"},
	{"nsenter", "util-linux"},
	{"unshare", "util-linux"},
	{"mount", "mount"},
	{"mkfs.btrfs", "btrfs-progs"},
	{"mkfs.xfs", "xfsprogs"},
}

// Missing is what keeps the clusters from running on this machine: everything that was found, at once.
type Missing struct {
	// Reasons cannot be helped by this program.
	Reasons []string
	// Packages of Debian would help, and could not be installed here.
	Packages []string
}

func (m *Missing) Error() string {
	lines := slices.Clone(m.Reasons)
	if len(m.Packages) > 0 {
		lines = append(lines, "missing programs; on Debian: apt-get install "+strings.Join(m.Packages, " "))
	}
	return "this machine cannot run the clusters:\n  " + strings.Join(lines, "\n  ")
}

// Check tells in milliseconds whether clusters can run here. It changes nothing.
func Check() error {
	m := unfit()
	m.Packages = missingPackages()
	if len(m.Reasons) == 0 && len(m.Packages) == 0 {
		return nil
	}
	return m
}

// Unfit is Check without what could be installed: nil when Up can be tried.
func Unfit() error {
	m := unfit()
	m.Packages = missingPackages()
	if len(m.Packages) > 0 && canInstall() {
		m.Packages = nil
	}
	if len(m.Reasons) == 0 && len(m.Packages) == 0 {
		return nil
	}
	return m
}

func unfit() *Missing {
	m := &Missing{}
	miss := func(format string, args ...any) { m.Reasons = append(m.Reasons, fmt.Sprintf(format, args...)) }
	if runtime.GOOS != "linux" {
		miss("it runs %s: the clusters need Linux", runtime.GOOS)
		return m
	}
	if os.Geteuid() != 0 {
		miss("you are not root (user %d): namespaces, mounts and bridges need it; run it with sudo", os.Geteuid())
	} else {
		for name, bit := range map[string]int{"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN} {
			if !capable(bit) {
				miss("root lacks %s here (a container?): run it on a virtual or real machine, or in a privileged container", name)
			}
		}
	}
	if _, err := hierarchies(); err != nil {
		miss("%v", err)
	}
	if text, err := os.ReadFile("/proc/filesystems"); err == nil && !strings.Contains(string(text), "overlay") {
		// A kernel with modules may load it on first use.
		if _, err := os.Stat("/lib/modules"); err != nil {
			miss("the kernel has no overlayfs")
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		miss("/dev/loop-control is missing: the storage driver keeps volumes behind loop devices")
	}
	if _, err := exec.LookPath("go"); err != nil {
		miss("no go in PATH: the clusters are built from source with Go 1.26 or newer")
	}
	return m
}

// Two clusters take about 1 GiB of memory and, with their images, 2 GiB of disk when nothing runs on them.
const (
	leastMemory = 3 << 30
	leastDisk   = 4 << 30
)

// fits checks what depends on the Config: address ranges and room. It needs no build, so it comes before it.
func (e *Env) fits(ctx context.Context) error {
	m := &Missing{}
	if _, err := exec.LookPath("ip"); err == nil && !linkExists(e.config.bridge()) {
		if err := e.rangesFree(ctx); err != nil {
			m.Reasons = append(m.Reasons, err.Error())
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil && uint64(info.Totalram)*uint64(info.Unit) < leastMemory {
		m.Reasons = append(m.Reasons, fmt.Sprintf("it has %d MiB of memory: two clusters want %d", uint64(info.Totalram)*uint64(info.Unit)>>20, leastMemory>>20))
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(e.config.StateDir, &disk); err == nil && disk.Bavail*uint64(disk.Bsize) < leastDisk {
		m.Reasons = append(m.Reasons, fmt.Sprintf("%s has %d MiB of free disk: two clusters want %d; choose another place with --state-dir", e.config.StateDir, disk.Bavail*uint64(disk.Bsize)>>20, leastDisk>>20))
	}
	if len(m.Reasons) > 0 {
		return m
	}
	return nil
}

// A cluster holds about 25 inotify instances, and all of root's share one limit, which is 128 by default: with a few
// clusters or development servers beside each other the next kubelet would not start.
const (
	watchers      = "/proc/sys/fs/inotify/max_user_instances"
	leastWatchers = 1024
)

// allowWatchers raises the kernel's limit if it is lower. Down leaves it raised: others may have come to need it, and
// it holds nothing by itself.
func (e *Env) allowWatchers() error {
	text, err := os.ReadFile(watchers)
	if err != nil {
		return err
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", watchers, err)
	}
	if have >= leastWatchers {
		return nil
	}
	e.config.Progress("raising the kernel's limit fs.inotify.max_user_instances from %d to %d until the next boot", have, leastWatchers)
	if err := os.WriteFile(watchers, []byte(strconv.Itoa(leastWatchers)), 0o644); err != nil {
		e.config.Progress("  that was refused (%v): with more than one pair of clusters a kubelet may not start", err)
	}
	return nil
}

func capable(bit int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true // unknown is not false: what really fails will say so
	}
	return data[bit/32].Effective&(1<<(bit%32)) != 0
}

func missingPackages() []string {
	found := map[string]bool{}
	for _, n := range needs {
		if !installed(n.program) {
			found[n.pkg] = true
		}
	}
	all := make([]string, 0, len(found))
	for pkg := range found {
		all = append(all, pkg)
	}
	sort.Strings(all)
	return all
}

// installed looks also where an ordinary user's PATH does not.
func installed(program string) bool {
	for _, place := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if _, err := exec.LookPath(place); err == nil {
			return true
		}
	}
	return false
}

func canInstall() bool {
	_, err := exec.LookPath("apt-get")
	return err == nil && os.Geteuid() == 0
}

// install brings the missing Debian packages.
func (e *Env) install(ctx context.Context) error {
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	if err := InstallPackages(ctx, e.config.Progress, missing...); err != nil {
		return err
	}
	if left := missingPackages(); len(left) > 0 {
		return &Missing{Packages: left}
	}
	return nil
}

const (
	policyFile = "/usr/sbin/policy-rc.d"
	// policy keeps packages from starting their services: the clusters run a containerd of their own. 101 is
	// Debian policy's "action forbidden".
	policy = "#!/bin/sh\n# made by lifeboat clusters for the time of one installation\nexit 101\n"
)

// InstallPackages installs Debian packages without starting any service of theirs. It refreshes the package lists only
// when the packages are not known from older ones.
func InstallPackages(ctx context.Context, progress func(string, ...any), packages ...string) error {
	progress("installing Debian packages: %s", strings.Join(packages, " "))
	restore, err := forbidServices()
	if err != nil {
		return err
	}
	defer restore()
	install := append([]string{"-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends"}, packages...)
	if err := apt(ctx, install...); err == nil {
		return nil
	}
	if err := apt(ctx, "-o", "DPkg::Lock::Timeout=120", "update"); err != nil {
		// One broken foreign source need not matter: the installation decides.
		progress("  apt-get update had complaints: %v", err)
	}
	return apt(ctx, install...)
}

func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, lastLines(string(out), 6))
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// forbidServices lays down the policy unless the administrator has one. One that an earlier, killed run of this
// program left is taken over, and so removed.
func forbidServices() (restore func(), err error) {
	have, err := os.ReadFile(policyFile)
	if err == nil && string(have) != policy {
		return func() {}, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.WriteFile(policyFile, []byte(policy), 0o755); err != nil {
		return nil, err
	}
	return func() { _ = os.Remove(policyFile) }, nil
}

// forgetPolicy removes what a killed installation left.
func forgetPolicy() {
	if have, err := os.ReadFile(policyFile); err == nil && string(have) == policy {
		_ = os.Remove(policyFile)
	}
}
