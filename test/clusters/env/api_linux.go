package env

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	_ "embed"

	"sigs.k8s.io/yaml"
)

// api speaks to one cluster's API server with its administrator's certificate: the few calls that Up needs, in plain
// HTTP. A client library would double the time until the program itself is built.
type api struct {
	base string
	http http.Client
}

func (c Cluster) api() (*api, error) {
	pki := func(name string) string { return c.path("pki", name) }
	pair, err := tls.LoadX509KeyPair(pki("admin.crt"), pki("admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &api{base: c.API(), http: http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{
			RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13,
		}},
	}}, nil
}

func (a *api) close() { a.http.CloseIdleConnections() }

func (a *api) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, firstPart(text))
	}
	return text, nil
}

func firstPart(text []byte) string {
	var status struct{ Message string }
	if json.Unmarshal(text, &status) == nil && status.Message != "" {
		return status.Message
	}
	return string(text[:min(len(text), 200)])
}

func (a *api) get(ctx context.Context, path string, into any) error {
	text, err := a.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// collections are the paths under which the kinds of our manifests are served.
var collections = map[string]string{
	"ServiceAccount":           "/api/v1/namespaces/%s/serviceaccounts",
	"Role":                     "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/roles",
	"RoleBinding":              "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/rolebindings",
	"Deployment":               "/apis/apps/v1/namespaces/%s/deployments",
	"ClusterRole":              "/apis/rbac.authorization.k8s.io/v1/clusterroles",
	"ClusterRoleBinding":       "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	"CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}

// apply brings the objects of a manifest to what it says (server-side apply), creating them when needed.
func (a *api) apply(ctx context.Context, manifest []byte) error {
	for _, document := range bytes.Split(append([]byte("\n"), manifest...), []byte("\n---")) {
		var object struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal(document, &object); err != nil {
			return err
		}
		if object.Kind == "" {
			continue // only comments
		}
		collection, ok := collections[object.Kind]
		if !ok {
			return fmt.Errorf("manifest of kind %s: no path known for it", object.Kind)
		}
		if strings.Contains(collection, "%s") {
			collection = fmt.Sprintf(collection, object.Metadata.Namespace)
		}
		path := collection + "/" + object.Metadata.Name + "?fieldManager=lifeboat-clusters&force=true"
		if _, err := a.do(ctx, http.MethodPatch, path, "application/apply-patch+yaml", document); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.Kind, object.Metadata.Name, err)
		}
	}
	return nil
}

//go:embed snapshot-controller.yaml
var snapshotController []byte

// furnish installs the snapshot kinds and what their controller may do.
func (a *api) furnish(ctx context.Context, b *Build) error {
	var files []string
	for _, pattern := range []string{"crds/*.yaml", "rbac/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(b.Dir, pattern))
		if err != nil {
			return err
		}
		sort.Strings(found)
		files = append(files, found...)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := a.apply(ctx, text); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

// usable tells what still keeps the cluster from being used; nil when nothing does. What a server remembers from before
// a crash does not count: the node must have reported after since.
func (a *api) usable(ctx context.Context, c Cluster, since time.Time) error {
	if _, err := a.do(ctx, http.MethodGet, "/readyz", "", nil); err != nil {
		return err
	}
	var lease struct{ Spec struct{ RenewTime time.Time } }
	if err := a.get(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+c.Name, &lease); err != nil {
		return err
	}
	if lease.Spec.RenewTime.Before(since) {
		return errors.New("the node has not reported since the start")
	}
	if err := a.nodeReady(ctx, c); err != nil {
		return err
	}
	var account struct{}
	return a.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", &account)
}

type condition struct{ Type, Status, Message string }

func (a *api) nodeReady(ctx context.Context, c Cluster) error {
	var node struct {
		Spec   struct{ Taints []struct{ Key string } }
		Status struct{ Conditions []condition }
	}
	if err := a.get(ctx, "/api/v1/nodes/"+c.Name, &node); err != nil {
		return err
	}
	for _, taint := range node.Spec.Taints {
		return fmt.Errorf("node %s has taint %s", c.Name, taint.Key)
	}
	return is(node.Status.Conditions, "Ready", "node "+c.Name)
}

// controllerRuns tells whether a snapshot controller is ready that was started after since: what the API says of pods
// right after a crash is from before it.
func (a *api) controllerRuns(ctx context.Context, since time.Time) error {
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions        []condition
				ContainerStatuses []struct {
					State struct{ Running struct{ StartedAt time.Time } }
				}
			}
		}
	}
	if err := a.get(ctx, "/api/v1/namespaces/kube-system/pods?labelSelector=app%3Dsnapshot-controller", &pods); err != nil {
		return err
	}
	for _, pod := range pods.Items {
		if err := is(pod.Status.Conditions, "Ready", "pod "+pod.Metadata.Name); err != nil {
			return err
		}
		for _, container := range pod.Status.ContainerStatuses {
			// The API's times are whole seconds.
			if container.State.Running.StartedAt.Before(since.Truncate(time.Second)) {
				return fmt.Errorf("pod %s is from before the start", pod.Metadata.Name)
			}
		}
	}
	if len(pods.Items) == 0 {
		return errors.New("no pod of the snapshot controller yet")
	}
	return nil
}

func is(conditions []condition, want, what string) error {
	for _, c := range conditions {
		if c.Type == want && c.Status == "True" {
			return nil
		}
		if c.Type == want {
			return fmt.Errorf("%s is not %s: %s", what, want, c.Message)
		}
	}
	return fmt.Errorf("%s says nothing about %s yet", what, want)
}

// await asks until the answer is nil. It gives the last answer when time is up or when alive turns false.
func await(ctx context.Context, limit time.Duration, what string, alive func() bool, ask func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if !alive() {
			return fmt.Errorf("%s: its pid 1 has ended; the last answer was: %w", what, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not after %s: %w", what, limit, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
