package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// cluster is an API server, and who talks to it: the bench as its administrator, the manager by the rights that an installation gives it.
type cluster struct {
	env    *envtest.Environment
	config *rest.Config // the bench's; its calls are counted
	kube   client.Client
	scheme *runtime.Scheme
	// kubeconfig is the file the manager is started with, token its account's.
	kubeconfig, token string

	mu  sync.Mutex
	own map[string]float64 // the bench's own calls, as "VERB resource"
}

func startCluster(dir string) (*cluster, error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return nil, errors.New("KUBEBUILDER_ASSETS must name the folder with kube-apiserver and etcd: hack/bench-fleet.sh sets it")
	}
	c := &cluster{scheme: runtime.NewScheme(), own: map[string]float64{}}
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, snapshotv1.AddToScheme, groupsnapshotv1.AddToScheme} {
		if err := add(c.scheme); err != nil {
			return nil, err
		}
	}
	snapshotKinds, err := snapshotCRDs()
	if err != nil {
		return nil, err
	}
	c.env = &envtest.Environment{CRDDirectoryPaths: append([]string{filepath.Join("deploy", "crds")}, snapshotKinds...), ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: time.Minute, ControlPlaneStopTimeout: time.Minute}
	if _, err := c.env.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the API server: %w", err), c.env.Stop())
	}
	c.config = rest.CopyConfig(c.env.Config)
	c.config.QPS = -1
	c.config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counter{next, c} })
	if c.kube, err = client.New(c.config, client.Options{Scheme: c.scheme}); err != nil {
		return nil, errors.Join(err, c.env.Stop())
	}
	if err := c.install(context.Background(), dir); err != nil {
		return nil, errors.Join(err, c.env.Stop())
	}
	return c, nil
}

func (c *cluster) stop() {
	if err := c.env.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "fleet: stop the API server:", err)
	}
}

func snapshotCRDs() ([]string, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8").Output()
	if err != nil {
		return nil, fmt.Errorf("find the snapshot kinds: %w", err)
	}
	crds := filepath.Join(strings.TrimSpace(string(dir)), "config", "crd")
	var out []string
	for _, kind := range []string{"snapshot.storage.k8s.io_volumesnapshots", "snapshot.storage.k8s.io_volumesnapshotcontents",
		"snapshot.storage.k8s.io_volumesnapshotclasses", "groupsnapshot.storage.k8s.io_volumegroupsnapshots",
		"groupsnapshot.storage.k8s.io_volumegroupsnapshotclasses", "groupsnapshot.storage.k8s.io_volumegroupsnapshotcontents"} {
		out = append(out, filepath.Join(crds, kind+".yaml"))
	}
	return out, nil
}

// account is whom the manager is, and may do what, in every cluster.
const account = "lifeboat-manager"

// install gives the manager the rights that an installation gives it, and a kubeconfig with a token of its account.
func (c *cluster) install(ctx context.Context, dir string) error {
	if err := c.kube.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}); err != nil {
		return err
	}
	for _, file := range []string{filepath.Join("deploy", "rbac", "role.yaml"), filepath.Join("deploy", "manifests", "20-manager.yaml")} {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := c.apply(ctx, raw); err != nil {
			return fmt.Errorf("apply %s: %w", file, err)
		}
	}
	reader := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "fleet-reads-metrics"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "lifeboat-metrics-reader"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: v1alpha1.SystemNamespace, Name: account}}}
	if err := c.kube.Create(ctx, reader); err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	life := int64(6 * 3600)
	token, err := kube.CoreV1().ServiceAccounts(v1alpha1.SystemNamespace).CreateToken(ctx, account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &life}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("get a token for the manager: %w", err)
	}
	c.token, c.kubeconfig = token.Status.Token, filepath.Join(dir, "kubeconfig")
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"fleet": {Server: c.config.Host, CertificateAuthorityData: c.config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{account: {Token: c.token}},
		Contexts:       map[string]*clientcmdapi.Context{"fleet": {Cluster: "fleet", AuthInfo: account}},
		CurrentContext: "fleet",
	}, c.kubeconfig)
}

// apply makes the accounts, roles and bindings of a manifest. What needs nodes is left out.
func (c *cluster) apply(ctx context.Context, manifest []byte) error {
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := documents.Decode(&object.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		switch object.GetKind() {
		case "ServiceAccount", "ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding":
			if err := c.kube.Create(ctx, object); err != nil {
				return err
			}
		}
	}
}

// counter counts the bench's own calls: what the API server counts of others is the manager's.
type counter struct {
	next http.RoundTripper
	c    *cluster
}

func (k counter) RoundTrip(r *http.Request) (*http.Response, error) {
	call := callOf(r)
	k.c.mu.Lock()
	k.c.own[call]++
	k.c.mu.Unlock()
	return k.next.RoundTrip(r)
}

func (c *cluster) ownCalls() map[string]float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]float64{}
	for call, n := range c.own {
		out[call] = n
	}
	return out
}

// callOf names a call as the API server's metrics do: verb and resource, a subresource behind a slash.
func callOf(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	skip := 2 // api/v1
	if parts[0] == "apis" {
		skip = 3
	}
	if len(parts) <= skip || parts[0] != "api" && parts[0] != "apis" {
		return r.Method + " -"
	}
	parts = parts[skip:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		parts = parts[2:]
	}
	resource, named := parts[0], len(parts) > 1
	if len(parts) > 2 {
		resource += "/" + parts[2]
	}
	verb := r.Method
	switch {
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
		verb = "WATCH"
	case r.Method == http.MethodGet && !named:
		verb = "LIST"
	case r.Method == http.MethodDelete && !named:
		verb = "DELETECOLLECTION"
	}
	return verb + " " + resource
}

// manager is the process that is measured.
type manager struct {
	pid     int
	metrics string
	ended   chan error
	process *os.Process
}

func startManager(o options, c *cluster, dir string) (*manager, error) {
	log, err := os.Create(filepath.Join(dir, "manager.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(o.lifeboat, "manager", "--cluster-name="+here, "--image=lifeboat:fleet", "--leader-election=false",
		fmt.Sprintf("--max-sessions=%d", o.maxSessions), "--control-address="+ports[0], "--health-address="+ports[1], "--metrics-address="+ports[2])
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	cmd.Stdout, cmd.Stderr = log, log
	// It ends with the bench, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the manager: %w", err)
	}
	m := &manager{pid: cmd.Process.Pid, metrics: "https://" + ports[2] + "/metrics", ended: make(chan error, 1), process: cmd.Process}
	go func() {
		err := cmd.Wait()
		if err == nil {
			err = errors.New("nobody asked it to")
		}
		m.ended <- err
	}()
	return m, nil
}

func (m *manager) stop() {
	_ = m.process.Signal(os.Interrupt) // it may have ended
	select {
	case <-m.ended:
	case <-time.After(15 * time.Second):
		_ = m.process.Kill()
	}
}
