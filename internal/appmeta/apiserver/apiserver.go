// Package apiserver gives tests a real Kubernetes API server with Lifeboat's kinds in it: etcd and kube-apiserver on
// loopback ports, no controllers and no kubelet.
//
// It is imported by tests only. Where the binaries are missing the test is skipped, and says so.
package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Servers are the API servers that the tests of one package share, started when a test first asks, by name.
type Servers struct {
	mu      sync.Mutex
	running map[string]*envtest.Environment
	failed  map[string]error
	atEnd   []func()
}

// AtEnd has something done after the tests and before the servers end: watches must end first, since a server waits for those who watch.
func (s *Servers) AtEnd(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.atEnd = append(s.atEnd, do)
}

// Main runs the tests of a package and ends the servers they started.
func (s *Servers) Main(m *testing.M) int {
	log.SetLogger(logr.Discard())
	code := m.Run()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, do := range s.atEnd {
		do()
	}
	for name, server := range s.running {
		if err := server.Stop(); err != nil {
			fmt.Printf("stop API server %s: %v\n", name, err)
		}
	}
	return code
}

// Config returns how to reach the server of that name, or skips the test.
func (s *Servers) Config(t testing.TB, name string) *rest.Config {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		t.Skip("needs an API server: set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd and kubectl, or run make test")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if server, is := s.running[name]; is {
		return unlimited(server.Config)
	}
	if err, is := s.failed[name]; is {
		t.Fatalf("start API server %s, as before: %v", name, err)
	}
	crds, err := findCRDs()
	if err != nil {
		t.Fatal(err)
	}
	server := &envtest.Environment{
		CRDDirectoryPaths:     []string{crds},
		ErrorIfCRDPathMissing: true,
	}
	config, err := server.Start()
	if err != nil {
		// It may run already and have refused a kind: it is ended here, and not started again by every other test.
		err = errors.Join(err, server.Stop())
		if s.failed == nil {
			s.failed = map[string]error{}
		}
		s.failed[name] = err
		t.Fatalf("start API server %s: %v", name, err)
	}
	if s.running == nil {
		s.running = map[string]*envtest.Environment{}
	}
	s.running[name] = server
	return unlimited(config)
}

// Client returns an uncached client of the server of that name that knows Lifeboat's kinds.
func (s *Servers) Client(t testing.TB, name string) client.Client {
	t.Helper()
	config := s.Config(t, name)
	scheme := clientgoscheme.Scheme
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatalf("make a client of API server %s: %v", name, err)
	}
	return c
}

func unlimited(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.QPS = -1
	return config
}

// findCRDs looks for deploy/crds from the folder of the running test upwards.
func findCRDs() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; at != "/"; at = filepath.Dir(at) {
		found := filepath.Join(at, "deploy", "crds")
		if _, err := os.Stat(found); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("no folder above this test has deploy/crds")
}
