// Package internal holds the one test that keeps the map true: who may import whom.
package internal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "lifeboat.dev/lifeboat/"

// pure packages receive bytes, values and the time; they do no input or output themselves.
var pure = []string{
	"internal/runbook", "internal/cycle", "internal/schedule", "internal/objective", "internal/queue", "internal/retention", "internal/endpoint",
	"internal/mover/wire", "internal/mover/session",
}

// impure are the standard packages that pure packages may not reach for.
var impure = []string{"net", "net/http", "os", "os/exec", "syscall", "log", "log/slog", "database/sql", "golang.org/x/sys/unix"}

// withoutKubernetes are the trees that must stay usable where there is no cluster.
var withoutKubernetes = []string{"internal/mover/", "internal/dns/", "internal/store"}

// storeBackendsOnKubernetes are the store backends whose very job is to write to a cluster.
var storeBackendsOnKubernetes = []string{"internal/store/secrets"}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestEveryImportFollowsTheMap(t *testing.T) {
	packages := list(t)
	for _, p := range packages {
		for _, problem := range problems(p) {
			t.Error(problem)
		}
	}
	if len(packages) < 10 {
		t.Fatalf("go list found only %d packages: the test looks in the wrong place", len(packages))
	}
}

// The rules themselves must be able to fail.
func TestTheRulesCatchWhatTheyForbid(t *testing.T) {
	forbidden := []listed{
		{ImportPath: module + "api/v1alpha1", Imports: []string{module + "internal/link"}},
		{ImportPath: module + "internal/runbook", Imports: []string{"net/http"}},
		{ImportPath: module + "internal/runbook", Imports: []string{module + "internal/link"}},
		{ImportPath: module + "internal/mover/engine", Deps: []string{"k8s.io/apimachinery/pkg/types"}},
		{ImportPath: module + "internal/controller/plan", Imports: []string{module + "internal/controller/replication"}},
		{ImportPath: module + "internal/link/control", Imports: []string{module + "internal/controller/plan"}},
		{ImportPath: module + "internal/hook", Imports: []string{module + "internal/cli"}},
	}
	for _, p := range forbidden {
		if len(problems(p)) == 0 {
			t.Errorf("%s importing %v%v is not caught", p.ImportPath, p.Imports, p.Deps)
		}
	}
}

func problems(p listed) []string {
	name := strings.TrimPrefix(p.ImportPath, module)
	var found []string
	refuse := func(imported, rule string) {
		found = append(found, name+" imports "+strings.TrimPrefix(imported, module)+": "+rule)
	}
	for _, imported := range p.Imports {
		ours := strings.HasPrefix(imported, module)
		other := strings.TrimPrefix(imported, module)
		switch {
		case strings.HasPrefix(name, "api/") && ours:
			refuse(imported, "api imports nothing of ours")
		case slices.Contains(pure, name) && slices.Contains(impure, imported):
			refuse(imported, "a pure package does no I/O")
		case slices.Contains(pure, name) && ours && !strings.HasPrefix(other, "api/") && !slices.Contains(pure, other) && other != "internal/mover/digest":
			refuse(imported, "a pure package imports only api and pure packages")
		case strings.HasPrefix(other, "internal/controller/") && ours && name != "cmd/lifeboat" && other != name:
			refuse(imported, "only cmd knows the controllers; controllers never import each other")
		case other == "internal/cli" && ours && name != "cmd/lifeboat":
			refuse(imported, "only cmd knows the command line")
		}
	}
	for _, dep := range p.Deps {
		if strings.HasPrefix(dep, "k8s.io/") || strings.HasPrefix(dep, "sigs.k8s.io/") {
			if staysOffKubernetes(name) {
				refuse(dep, "this tree never sees Kubernetes")
				break
			}
		}
	}
	return found
}

func staysOffKubernetes(name string) bool {
	if slices.Contains(storeBackendsOnKubernetes, name) {
		return false
	}
	return slices.ContainsFunc(withoutKubernetes, func(tree string) bool { return strings.HasPrefix(name, tree) })
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []listed
	d := json.NewDecoder(bytes.NewReader(out))
	for {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("read go list: %v", err)
		}
		packages = append(packages, p)
	}
}
