package secrets_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/store"
	"lifeboat.dev/lifeboat/internal/store/secrets"
	"lifeboat.dev/lifeboat/internal/store/storetest"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

var namespaces atomic.Int32

// fresh is an empty namespace of the test's own.
func fresh(t *testing.T, c client.Client) string {
	t.Helper()
	name := fmt.Sprintf("store-%d", namespaces.Add(1))
	if err := c.Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		c := servers.Client(t, "east")
		return secrets.New(c, c, fresh(t, c))
	})
}

func TestEverySecretIsLabelledTypedAndUnder900KiB(t *testing.T) {
	c := servers.Client(t, "east")
	namespace := fresh(t, c)
	s := secrets.New(c, c, namespace)
	if err := s.Put(context.Background(), "packs/large", make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	all := listSecrets(t, c, namespace)
	if len(all) != 4 {
		t.Errorf("3 MiB lie in %d Secrets, want 4", len(all))
	}
	for _, secret := range all {
		if secret.Type != secrets.Type || secret.Labels["app.kubernetes.io/managed-by"] != "lifeboat" || secret.Labels["lifeboat.dev/store"] == "" {
			t.Errorf("Secret %s has the type %s and the labels %v", secret.Name, secret.Type, secret.Labels)
		}
		if size := secret.Size(); size > 900<<10 {
			t.Errorf("Secret %s has %d bytes", secret.Name, size)
		}
	}
	if want := "secrets/" + namespace + "/"; !strings.HasPrefix(s.Location("packs/large"), want) {
		t.Errorf("location %s, want %s…", s.Location("packs/large"), want)
	}
	found := false
	for _, secret := range all {
		found = found || s.Location("packs/large") == "secrets/"+namespace+"/"+secret.Name
	}
	if !found {
		t.Errorf("location %s is none of the Secrets", s.Location("packs/large"))
	}
}

// The manager ends between any two requests of a Put: a reader has the old blob or the new one, and the next Put
// leaves nothing of either try behind.
func TestAPutThatIsCutLeavesTheOldBlobOrTheNew(t *testing.T) {
	direct := servers.Client(t, "east")
	ctx := context.Background()
	older, newer := strings.Repeat("old", 600<<10), strings.Repeat("new", 700<<10)
	seen := map[string]int{}
	for allowed := 0; ; allowed++ {
		namespace := fresh(t, direct)
		whole := secrets.New(direct, direct, namespace)
		if err := whole.Put(ctx, "manifests/shop/a", []byte(older)); err != nil {
			t.Fatal(err)
		}
		cut := secrets.New(&ending{Client: direct, left: allowed}, direct, namespace)
		failed := cut.Put(ctx, "manifests/shop/a", []byte(newer))
		if failed != nil && !errors.Is(failed, errEnded) {
			t.Fatal(failed)
		}
		got, err := whole.Get(ctx, "manifests/shop/a")
		if err != nil {
			t.Fatalf("after %d writes: %v", allowed, err)
		}
		switch string(got) {
		case older:
			seen["old"]++
		case newer:
			seen["new"]++
		default:
			t.Fatalf("after %d writes: %d bytes that nobody put", allowed, len(got))
		}
		if err := whole.Put(ctx, "manifests/shop/a", []byte("small")); err != nil {
			t.Fatal(err)
		}
		if left := listSecrets(t, direct, namespace); len(left) != 1 {
			t.Errorf("after %d writes and a small Put %d Secrets are left", allowed, len(left))
		}
		if failed == nil {
			break
		}
	}
	if seen["old"] < 3 || seen["new"] < 2 {
		t.Errorf("the cuts left %v: the old and the new blob were expected several times each", seen)
	}
}

var errEnded = errors.New("the manager ended")

// ending is a client whose manager ends after so many writes.
type ending struct {
	client.Client
	left int
}

func (e *ending) write(do func() error) error {
	if e.left == 0 {
		return errEnded
	}
	e.left--
	return do()
}

func (e *ending) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	return e.write(func() error { return e.Client.Create(ctx, o, opts...) })
}

func (e *ending) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	return e.write(func() error { return e.Client.Update(ctx, o, opts...) })
}

func (e *ending) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	return e.write(func() error { return e.Client.Delete(ctx, o, opts...) })
}

func listSecrets(t *testing.T, c client.Client, namespace string) []corev1.Secret {
	t.Helper()
	var all corev1.SecretList
	if err := c.List(context.Background(), &all, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	return all.Items
}

func TestWhatSomebodyChangedIsDamaged(t *testing.T) {
	c := servers.Client(t, "east")
	namespace := fresh(t, c)
	s := secrets.New(c, c, namespace)
	if err := s.Put(context.Background(), "packs/a", []byte("as it was put")); err != nil {
		t.Fatal(err)
	}
	secret := listSecrets(t, c, namespace)[0]
	secret.Data["part"] = []byte("as somebody left it")
	if err := c.Update(context.Background(), &secret); err != nil {
		t.Fatal(err)
	}
	var damaged *store.Damaged
	if _, err := s.Get(context.Background(), "packs/a"); !errors.As(err, &damaged) || strings.Contains(err.Error(), "somebody") {
		t.Errorf("%v, want Damaged without the content", err)
	}
}
