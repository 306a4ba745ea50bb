package env

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"lifeboat.dev/lifeboat/test/clusters/image"
)

// KubernetesVersion is the version of every server of the clusters; kube/go.mod pins the same.
const KubernetesVersion = "v1.37.1"

// The images that the clusters themselves need. Nothing is ever pulled.
const (
	pauseImage    = "lifeboat-clusters/pause:dev"
	sidecarsImage = "lifeboat-clusters/csi-sidecars:dev"
)

var sidecars = []string{"csi-provisioner", "csi-resizer", "csi-snapshot-metadata", "csi-snapshotter", "snapshot-controller"}

// Build is where the built things are.
type Build struct {
	// Dir holds the servers (kube, and kubectl as a link to it), the CSI sidecars and crds/.
	Dir string
	// Init is the program that is pid 1 of a machine.
	Init string
	// Images are the archives to load into every cluster.
	Images []string
}

// one set of flags everywhere: they are part of Go's cache key.
var goEnvironment = []string{"CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -trimpath"}

// Build makes the servers, or finds them made: they are kept by a hash of all that they are made from.
func (e *Env) Build(ctx context.Context) (*Build, error) {
	source, err := e.source()
	if err != nil {
		return nil, err
	}
	unlock, err := lockFile(ctx, filepath.Join(e.config.Cache, "build.lock"), func() {
		e.config.Progress("waiting: another command is building the clusters' programs")
	})
	if err != nil {
		return nil, err
	}
	defer unlock()
	goVersion, err := goTool(ctx, source, "env", "GOVERSION").Output()
	if err != nil {
		return nil, fmt.Errorf("run go: %w", withOutput(err))
	}
	stamp := strings.TrimSpace(string(goVersion)) + " " + runtime.GOARCH + " " + strings.Join(goEnvironment, " ")
	kube, err := e.cached(ctx, "kube", stamp+versionFlags()+fmt.Sprint(changes), []string{filepath.Join(source, "kube")}, func(dir string) error {
		return e.buildKube(ctx, filepath.Join(source, "kube"), dir)
	})
	if err != nil {
		return nil, fmt.Errorf("build Kubernetes: %w", err)
	}
	own := []string{"go.mod", "go.sum", "init", "pause", "machine"}
	for i, name := range own {
		own[i] = filepath.Join(source, name)
	}
	tools, err := e.cached(ctx, "machine", stamp, own, func(dir string) error {
		return e.goBuild(ctx, source, dir, "-ldflags=-s -w", "./init", "./pause")
	})
	if err != nil {
		return nil, fmt.Errorf("build the machine's own programs: %w", err)
	}
	b := &Build{Dir: kube, Init: filepath.Join(tools, "init")}
	images, err := e.cached(ctx, "images", filepath.Base(kube)+filepath.Base(tools), []string{filepath.Join(source, "image")}, func(dir string) error {
		return ownImages(kube, tools, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("make the clusters' own images: %w", err)
	}
	b.Images = []string{filepath.Join(images, "pause.tar"), filepath.Join(images, "sidecars.tar")}
	return b, nil
}

// cached gives the folder of the cache that holds what make put there for exactly these inputs.
func (e *Env) cached(_ context.Context, what, stamp string, inputs []string, make func(dir string) error) (string, error) {
	key, err := contentKey(stamp, inputs)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(e.config.Cache, what+"-"+key)
	if err := os.Chtimes(dir, time.Time{}, time.Now()); err == nil {
		return dir, nil
	}
	if err := e.forgetUnused(what); err != nil {
		return "", err
	}
	half := filepath.Join(e.config.Cache, what+".half") // under the lock nobody else writes there
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	if err := os.MkdirAll(half, 0o755); err != nil {
		return "", err
	}
	if err := make(half); err != nil {
		return "", err
	}
	return dir, os.Rename(half, dir)
}

// unused is how long a build stays in the cache after its last use.
const unused = 7 * 24 * time.Hour

func (e *Env) forgetUnused(what string) error {
	dirs, err := filepath.Glob(filepath.Join(e.config.Cache, what+"-*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < unused {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// contentKey hashes a text and the names and contents of all files in the inputs.
func contentKey(stamp string, inputs []string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", stamp)
	for _, input := range inputs {
		err := filepath.WalkDir(input, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(filepath.Dir(input), path)
			fmt.Fprintf(h, "%s %d\n", name, len(text))
			h.Write(text)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func versionFlags() string {
	parts := strings.Split(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	const at = "k8s.io/component-base/version."
	return fmt.Sprintf("-ldflags=-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s -X %[1]sgitTreeState=clean",
		at, KubernetesVersion, parts[0], parts[1])
}

const (
	provisioner = "github.com/kubernetes-csi/external-provisioner/v6"
	snapshotter = "github.com/kubernetes-csi/external-snapshotter/v8"
	resizer     = "github.com/kubernetes-csi/external-resizer/v2"
	metadata    = "github.com/kubernetes-csi/external-snapshot-metadata"
)

// kindModules have the kinds that the sidecars serve, under config/crd.
var kindModules = []string{"github.com/kubernetes-csi/external-snapshotter/client/v8", metadata + "/client"}

func (e *Env) buildKube(ctx context.Context, source, dir string) error {
	e.config.Progress("building Kubernetes %s, etcd and the CSI sidecars: the first time takes 6 to 10 minutes on 2 cores", KubernetesVersion)
	modules, err := moduleDirs(ctx, source, append([]string{provisioner, snapshotter, metadata}, kindModules...)...)
	if err != nil {
		return err
	}
	if err := e.goBuild(ctx, source, dir, versionFlags(), ".", resizer+"/cmd/csi-resizer",
		snapshotter+"/cmd/csi-snapshotter", snapshotter+"/cmd/snapshot-controller"); err != nil {
		return err
	}
	if err := e.buildChanged(ctx, source, modules, dir, provisioner+"/cmd/csi-provisioner", metadata+"/cmd/csi-snapshot-metadata"); err != nil {
		return err
	}
	if err := os.Symlink("kube", filepath.Join(dir, "kubectl")); err != nil {
		return err
	}
	for _, module := range kindModules {
		if err := copyFiles(filepath.Join(modules[module], "config/crd", "*storage.k8s.io_*.yaml"), filepath.Join(dir, "crds")); err != nil {
			return err
		}
	}
	return copyFiles(filepath.Join(modules[snapshotter], "deploy/kubernetes/snapshot-controller/rbac-*.yaml"), filepath.Join(dir, "rbac"))
}

// change is a line of a module that does not compile at the one version, and what stands there instead. With an empty line the
// whole file is left out.
type change struct{ module, file, from, to string }

var changes = []change{
	// external-provisioner v6.3.0 still knows an older form of CSIStorageCapacity, for servers of old, through a type that
	// client-go v0.37 extended; the one line that uses it does not compile any more and would never run here. Its successor
	// v6.4.0 needs a library that the module proxy does not serve.
	{provisioner, "cmd/csi-provisioner/csi-provisioner.go",
		"cInformer = capacity.NewV1beta1InformerBridge(factoryForNamespace.Storage().V1beta1().CSIStorageCapacities())",
		`klog.Fatal("this build speaks only version v1 of CSIStorageCapacity")`},
	// external-snapshot-metadata v1.1.0 compiles what its own tests stand on into the program; that wants an older csi-test
	// than the CSI version of the other sidecars allows.
	{module: metadata, file: "pkg/internal/runtime/test_harness.go"},
}

// buildChanged builds packages from copies of their modules with the changes made.
func (e *Env) buildChanged(ctx context.Context, source string, modules map[string]string, dir string, packages ...string) error {
	scratch := filepath.Join(e.config.Cache, "changed.half")
	if err := os.RemoveAll(scratch); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return err
	}
	for i, c := range changes {
		dir := filepath.Join(scratch, fmt.Sprintf("module%d", i))
		if err := os.CopyFS(dir, os.DirFS(modules[c.module])); err != nil {
			return err
		}
		if err := c.apply(dir); err != nil {
			return err
		}
		mod = append(mod, fmt.Sprintf("\nreplace %s => %s\n", c.module, dir)...)
	}
	if err := os.WriteFile(filepath.Join(scratch, "go.mod"), mod, 0o644); err != nil {
		return err
	}
	if err := copyFiles(filepath.Join(source, "go.sum"), scratch); err != nil {
		return err
	}
	return e.goBuild(ctx, source, dir, append([]string{"-modfile=" + filepath.Join(scratch, "go.mod"), "-ldflags=-s -w"}, packages...)...)
}

func (c change) apply(dir string) error {
	path := filepath.Join(dir, c.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s: the file to change is not there; the version in kube/go.mod has changed: see whether the change is still needed: %w", c.module, err)
	}
	// The module cache's files are read-only, and so are their copies.
	if err := os.Remove(path); err != nil || c.from == "" {
		return err
	}
	if n := strings.Count(string(text), c.from); n != 1 {
		return fmt.Errorf("%s: the line to change occurs %d times; the version in kube/go.mod has changed: see whether the change is still needed", c.module, n)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), c.from, c.to, 1)), 0o644)
}

func moduleDirs(ctx context.Context, source string, paths ...string) (map[string]string, error) {
	out, err := goTool(ctx, source, append([]string{"mod", "download", "-json"}, paths...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("download modules: %w", withOutput(err))
	}
	dirs := map[string]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var m struct{ Path, Dir, Error string }
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
		if m.Error != "" {
			return nil, fmt.Errorf("download %s: %s", m.Path, m.Error)
		}
		dirs[m.Path] = m.Dir
	}
}

func copyFiles(pattern, dir string) error {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		return errors.Join(err, fmt.Errorf("no file is named %s", pattern))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	sort.Strings(files)
	for _, from := range files {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(from)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func goTool(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(goEnvironment, "GOWORK=off")...)
	return cmd
}

// goBuild builds the packages named in args into dir and says every ten seconds how far it is.
func (e *Env) goBuild(ctx context.Context, source, dir string, args ...string) error {
	cmd := goTool(ctx, source, append([]string{"build", "-v", "-o", dir + "/"}, args...)...)
	output, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run go: %w", err)
	}
	var compiled atomic.Int64
	begun, done := time.Now(), make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				e.config.Progress("  still building after %s: %d packages compiled (about 3000 when nothing is cached)",
					time.Since(begun).Round(time.Second), compiled.Load())
			}
		}
	}()
	var complaints []string
	for lines := bufio.NewScanner(output); lines.Scan(); {
		line := lines.Text()
		if isPackage(line) {
			compiled.Add(1)
			continue
		}
		complaints = append(complaints, line)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go build: %w:\n%s", err, strings.Join(complaints[max(0, len(complaints)-20):], "\n"))
	}
	return nil
}

// isPackage tells the lines of `go build -v` that name a package from everything else that go says.
func isPackage(line string) bool {
	return line != "" && !strings.ContainsAny(line, " \t:#")
}

func withOutput(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}

// source finds the folder of this module: the kube module in it is built from there.
func (e *Env) source() (string, error) {
	const mark = "kube/go.mod"
	if e.config.Source != "" {
		_, err := os.Stat(filepath.Join(e.config.Source, mark))
		return e.config.Source, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		for _, candidate := range []string{dir, filepath.Join(dir, "test/clusters")} {
			if _, err := os.Stat(filepath.Join(candidate, mark)); err == nil {
				return candidate, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the sources of the clusters (test/clusters) are not above the working directory: run inside the source tree or set LIFEBOAT_CLUSTERS_SOURCE")
		}
	}
}

func ownImages(kube, tools, dir string) error {
	pause := image.Spec{
		Name:       pauseImage,
		Files:      []image.File{{From: filepath.Join(tools, "pause"), To: "/pause"}},
		Entrypoint: []string{"/pause"}, User: "65535:65535",
	}
	if _, err := image.Write(pause, filepath.Join(dir, "pause.tar")); err != nil {
		return err
	}
	all := image.Spec{Name: sidecarsImage}
	for _, name := range sidecars {
		all.Files = append(all.Files, image.File{From: filepath.Join(kube, name), To: "/usr/local/bin/" + name})
	}
	_, err := image.Write(all, filepath.Join(dir, "sidecars.tar"))
	return err
}
