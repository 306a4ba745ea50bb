package machine

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run is the life of pid 1: wait for the word, build the file tree, set the network up, keep the components running.
// It returns only with an error. The kernel ends every process of the machine when pid 1 ends, and with the last of them
// its mounts and its network vanish: that is the whole shutdown.
func Run(spec Spec, word io.Reader) error {
	line, err := bufio.NewReader(word).ReadString('\n')
	if err != nil || line != Go {
		return errors.New("the maker of this machine went away before it was complete")
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("process %d is not pid 1 of its own namespace: refusing to change mounts", os.Getpid())
	}
	if err := tree(spec); err != nil {
		return fmt.Errorf("file tree: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("host name %q: %w", spec.Hostname, err)
	}
	os.Clearenv()
	for k, v := range map[string]string{"PATH": spec.Path, "HOME": "/root", "LANG": "C.UTF-8"} {
		if err := os.Setenv(k, v); err != nil {
			return err
		}
	}
	for _, key := range sortedKeys(spec.Sysctls) {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
		if err := os.WriteFile(path, []byte(spec.Sysctls[key]), 0o644); err != nil {
			return fmt.Errorf("sysctl %s: %w", key, err)
		}
	}
	for _, command := range spec.Setup {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
		}
	}
	return supervise(spec)
}

// tree replaces the host's file system by a tmpfs that shows only spec.Binds. With the old root go all mounts of the
// host, so the machine pins none of them: a file system that the host unmounts is really unmounted.
func tree(spec Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the host's mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", spec.Root, "tmpfs", 0, "mode=755,size=256m"); err != nil {
		return fmt.Errorf("mount root at %s: %w", spec.Root, err)
	}
	in := func(path string) string { return filepath.Join(spec.Root, path) }
	for _, dir := range []string{"proc", "sys", "run", "tmp", "root", "mnt", "srv", ".old"} {
		if err := os.MkdirAll(in(dir), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", in("proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// A fresh sysfs shows this network namespace's interfaces; the cgroups below it are the host's.
	if err := unix.Mount("sysfs", in("sys"), "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for _, dir := range []string{"run", "tmp"} {
		if err := unix.Mount("tmpfs", in(dir), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount /%s: %w", dir, err)
		}
	}
	if err := os.Chmod(in("tmp"), 0o1777); err != nil {
		return err
	}
	for _, b := range spec.Binds {
		if err := bind(b, in(b.To)); err != nil {
			return fmt.Errorf("show %s at %s: %w", b.From, b.To, err)
		}
	}
	if err := merged(in); err != nil {
		return err
	}
	if err := masks(spec.Masks, in); err != nil {
		return err
	}
	if err := unix.PivotRoot(spec.Root, in(".old")); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/.old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := os.Remove("/.old"); err != nil {
		return err
	}
	// The kubelet and CSI drivers pass mounts from one container to another through shared propagation.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts inside: %w", err)
	}
	return nil
}

func bind(b Bind, target string) error {
	if b.File {
		info, err := os.Lstat(target)
		if err != nil || !info.Mode().IsRegular() {
			return nil // a link to something that is not shown, or nothing at all, needs no cover
		}
	} else if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_BIND)
	if b.Tree {
		flags |= unix.MS_REC
	}
	if err := unix.Mount(b.From, target, "", flags, ""); err != nil {
		return err
	}
	if !b.ReadOnly {
		return nil
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// merged gives the new root the host's /bin, /lib and so on: links into /usr on a merged system, folders elsewhere.
func merged(in func(string) string) error {
	for _, dir := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		info, err := os.Lstat("/" + dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			if err := bind(Bind{From: "/" + dir, ReadOnly: true}, in(dir)); err != nil {
				return fmt.Errorf("show /%s: %w", dir, err)
			}
			continue
		}
		to, err := os.Readlink("/" + dir)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, in(dir)); err != nil {
			return err
		}
	}
	return nil
}

func masks(values map[string]string, in func(string) string) error {
	dir := in("run/masks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, path := range sortedKeys(values) {
		if _, err := os.Stat(in(path)); errors.Is(err, os.ErrNotExist) {
			continue // not every kernel has every key
		}
		file := filepath.Join(dir, strings.ReplaceAll(strings.Trim(path, "/"), "/", "."))
		if err := os.WriteFile(file, []byte(values[path]+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, in(path), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	return nil
}

// supervisor starts processes and collects every child, its own and the orphans that pid 1 inherits.
type supervisor struct {
	spec Spec
	// mu makes starting a process and noting its pid one step, so that a process that ends at once is still known.
	mu      sync.Mutex
	running map[int]Component
}

func supervise(spec Spec) error {
	s := &supervisor{spec: spec, running: map[int]Component{}}
	for _, c := range spec.Components {
		if c.After == "" {
			if err := s.start(c); err != nil {
				return err
			}
			continue
		}
		go s.startAfter(c)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		default:
			s.ended(pid, status)
		}
	}
}

func (s *supervisor) start(c Component) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.spec.Logs, c.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	program, err := exec.LookPath(c.Command[0])
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	pid, err := syscall.ForkExec(program, c.Command, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	s.running[pid] = c
	return nil
}

// ended starts a component again after a pause that keeps a broken one from eating the processor.
func (s *supervisor) ended(pid int, status syscall.WaitStatus) {
	s.mu.Lock()
	c, ours := s.running[pid]
	delete(s.running, pid)
	s.mu.Unlock()
	if !ours {
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %s ended (exit %d, signal %d); starting it again\n",
		time.Now().Format(time.RFC3339), c.Name, status.ExitStatus(), status.Signal())
	time.AfterFunc(time.Second, func() {
		if err := s.start(c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	})
}

func (s *supervisor) startAfter(c Component) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		// Only "is it up" is asked, on this machine's own loopback; nothing is sent and nothing is believed.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13},
	}}
	for !answers(&client, c.After) {
		time.Sleep(50 * time.Millisecond)
	}
	if err := s.start(c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answers(client *http.Client, url string) bool {
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
