package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Debian names a file tree that is made of Debian packages.
type Debian struct {
	// Suite is the release, such as "bookworm". Empty means that.
	Suite string
	// Packages are installed with what they depend on, over the packages that every system has.
	Packages []string
	// Files are written, as path and text, before the packages are configured, to answer what their set-up would ask.
	Files map[string]string
}

// Bases are the trees that have a name.
var Bases = map[string]Debian{
	// The file system tools that a storage driver calls.
	"debian-tools": {Packages: []string{"btrfs-progs", "e2fsprogs", "mount", "util-linux", "xfsprogs"}},
	// A PostgreSQL 15 with its contributed modules, of which none is started or initialised.
	"debian-postgres": {
		Packages: []string{"postgresql", "postgresql-contrib"},
		Files:    map[string]string{"/etc/postgresql-common/createcluster.conf": "create_main_cluster = false\n"},
	},
}

// recipe is raised when the same packages give another tree.
const recipe = "2"

func (d Debian) key() string {
	h := sha256.New()
	packages := append([]string(nil), d.Packages...)
	sort.Strings(packages)
	fmt.Fprintln(h, recipe, d.suite(), packages)
	paths := make([]string, 0, len(d.Files))
	for p := range d.Files {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		fmt.Fprintf(h, "%s %q\n", p, d.Files[p])
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func (d Debian) suite() string {
	if d.Suite == "" {
		return "bookworm"
	}
	return d.Suite
}

// Installer brings Debian packages to this machine.
type Installer func(ctx context.Context, progress func(string, ...any), packages ...string) error

// Base gives the folder of d's file tree, for Spec.Base. It is made once and kept in the cache folder by what d says,
// not by the day: remove the folder to have newer packages. It needs root, and Debian's archive the first time.
func Base(ctx context.Context, cache string, d Debian, install Installer, progress func(string, ...any)) (string, error) {
	dir := filepath.Join(cache, "debian-"+d.key())
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := lock(filepath.Join(cache, "debian.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // somebody made it while we waited
	}
	begun := time.Now()
	progress("making a Debian %s base with %s: about a minute, the first time", d.suite(), strings.Join(d.Packages, " "))
	half := filepath.Join(cache, "debian.half")
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	_, err = makeLayer(half, func(to io.Writer) error { return bootstrap(ctx, d, to, install, progress) })
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(half))
	}
	progress("  made in %s", time.Since(begun).Round(time.Second))
	return dir, os.Rename(half, dir)
}

// bootstrap writes the tree as a tar.
func bootstrap(ctx context.Context, d Debian, out io.Writer, install Installer, progress func(string, ...any)) error {
	if os.Geteuid() != 0 {
		return errors.New("making a Debian base needs root: run it with sudo")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		if err := install(ctx, progress, "mmdebstrap"); err != nil {
			return fmt.Errorf("making a Debian base needs mmdebstrap: %w", err)
		}
	}
	answers, err := os.MkdirTemp("", "clusters-base-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(answers) }()
	for path, text := range d.Files {
		file := filepath.Join(answers, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	args := []string{"--quiet", "--mode=root", "--variant=minbase", "--format=tar",
		"--include=" + strings.Join(d.Packages, ","),
		`--aptopt=Acquire::Languages "none"`, `--aptopt=APT::Install-Recommends "false"`, "--dpkgopt=force-confold",
	}
	if len(d.Files) > 0 {
		args = append(args, "--essential-hook=copy-in "+strings.Join(children(answers), " ")+" /")
	}
	// What nobody reads in a container is a third of the tree.
	args = append(args, "--customize-hook=cd \"$1\" && rm -rf usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* var/log/*.log")
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, d.suite(), "-")...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap with %s: %w: %s", strings.Join(d.Packages, " "), err, lastLines(said.String(), 10))
	}
	return nil
}

func children(dir string) []string {
	entries, _ := os.ReadDir(dir) // made a moment ago
	all := make([]string, len(entries))
	for i, entry := range entries {
		all[i] = filepath.Join(dir, entry.Name())
	}
	return all
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func lock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
