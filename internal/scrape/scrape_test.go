package scrape

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// serve guards a page with the server's word, asked with that configuration.
func serve(t *testing.T, config *rest.Config) *httptest.Server {
	t.Helper()
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	filter, err := Filter(config, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("figures")) })
	guarded, err := filter(logr.Discard(), page)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(guarded)
	t.Cleanup(server.Close)
	return server
}

func get(t *testing.T, server *httptest.Server, method, authorization string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

func TestOnlyWhoMayGetThePathIsLetIn(t *testing.T) {
	config := servers.Config(t, "east")
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	token := func(name string) string {
		t.Helper()
		_, err := kube.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(err)
		answer, err := kube.CoreV1().ServiceAccounts("default").CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		must(err)
		return answer.Status.Token
	}
	prometheus, somebody := token("prometheus"), token("somebody")
	_, err = kube.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		Rules: []rbacv1.PolicyRule{{NonResourceURLs: []string{"/metrics"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{})
	must(err)
	_, err = kube.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "prometheus"}}}, metav1.CreateOptions{})
	must(err)

	page := serve(t, config)
	for _, c := range []struct {
		name, method, authorization string
		want                        int
	}{
		{"nobody", http.MethodGet, "", http.StatusUnauthorized},
		{"no token", http.MethodGet, "Bearer ", http.StatusUnauthorized},
		{"a password", http.MethodGet, "Basic YTpi", http.StatusUnauthorized},
		{"a token of nobody", http.MethodGet, "Bearer nonsense", http.StatusUnauthorized},
		{"somebody who may not", http.MethodGet, "Bearer " + somebody, http.StatusForbidden},
		{"somebody who may read wants to write", http.MethodPost, "Bearer " + prometheus, http.StatusForbidden},
		{"somebody who may read", http.MethodGet, "Bearer " + prometheus, http.StatusOK},
	} {
		if got := get(t, page, c.method, c.authorization); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}

	unheard := rest.CopyConfig(config)
	unheard.Host = "https://127.0.0.1:1"
	if got := get(t, serve(t, unheard), http.MethodGet, "Bearer "+prometheus); got != http.StatusInternalServerError {
		t.Errorf("nobody can be asked: %d", got)
	}
}
