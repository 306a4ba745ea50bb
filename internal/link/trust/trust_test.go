package trust_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

func cluster(t *testing.T, objects ...client.Object) client.Client {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).Build()
}

func TestTheCAIsMadeOnceAndPublishedWithoutItsKey(t *testing.T) {
	c := cluster(t)
	first, err := trust.EnsureCA(t.Context(), c, "east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	second, err := trust.EnsureCA(t.Context(), c, "east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.CertPEM(), second.CertPEM()) {
		t.Error("a second start made another CA")
	}
	var published corev1.ConfigMap
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: trust.CAName}, &published); err != nil {
		t.Fatal(err)
	}
	if len(published.Data) != 1 || published.Data[trust.KeyCA] != string(first.CertPEM()) {
		t.Errorf("published %v", published.Data)
	}
}

func TestABrokenCASecretIsNotReplaced(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: trust.CAName}, Data: map[string][]byte{"tls.crt": []byte("x")}}
	if _, err := trust.EnsureCA(t.Context(), cluster(t, secret), "east", time.Now()); err == nil {
		t.Error("no error")
	}
}

func TestPairForWantsExactlyOne(t *testing.T) {
	pair := func(name, peer string) *v1alpha1.ClusterPair {
		return &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ClusterPairSpec{PeerCluster: peer, TrustSecretName: "t"}}
	}
	c := cluster(t, pair("a", "west"), pair("b", "north"), pair("c", "north"))
	r := trust.Reader{Reader: c}
	if got, err := r.PairFor(t.Context(), "west"); err != nil || got.Name != "a" {
		t.Errorf("%v %v", got, err)
	}
	var none *trust.NoPairError
	if _, err := r.PairFor(t.Context(), "south"); !errors.As(err, &none) {
		t.Errorf("%v", err)
	}
	var many *trust.AmbiguousError
	if _, err := r.PairFor(t.Context(), "north"); !errors.As(err, &many) || len(many.Pairs) != 2 {
		t.Errorf("%v", err)
	}
	var secret *trust.SecretError
	if _, _, err := r.RootsFor(t.Context(), "west"); !errors.As(err, &secret) || secret.Pair != "a" {
		t.Errorf("%v", err)
	}
}
