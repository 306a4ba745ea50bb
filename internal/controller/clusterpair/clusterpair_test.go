package clusterpair_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/controller/clusterpair"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

var noon = time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)

// links remembers what was asked of it and answers with the state it is given.
type links struct {
	endpoints map[string]link.Endpoint
	tolerance int32
	state     heartbeat.State
}

func (l *links) Set(pair string, e link.Endpoint, tolerance int32) error {
	l.endpoints[pair], l.tolerance = e, tolerance
	return nil
}

func (l *links) SetBroken(pair, _, reason, message string) {
	delete(l.endpoints, pair)
	l.state = heartbeat.State{Link: v1alpha1.LinkRefused, Reason: reason, Message: message}
}

func (l *links) Remove(pair string)                 { delete(l.endpoints, pair) }
func (l *links) State(string) heartbeat.State       { return l.state }
func (l *links) Changes() <-chan event.GenericEvent { return nil }

func pairOf(name, peer string) *v1alpha1.ClusterPair {
	return &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 2},
		Spec: v1alpha1.ClusterPairSpec{PeerCluster: peer, GatewayAddress: "192.0.2.1:9002", TrustSecretName: "trust"}}
}

func trustOf(t *testing.T) *corev1.Secret {
	t.Helper()
	ca, err := identity.NewCA("west", noon)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "trust"}, Data: map[string][]byte{trust.KeyCA: ca.CertPEM()}}
}

func reconciler(t *testing.T, state heartbeat.State, objects ...client.Object) (*clusterpair.Reconciler, *links) {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithStatusSubresource(&v1alpha1.ClusterPair{}).Build()
	l := &links{endpoints: map[string]link.Endpoint{}, state: state}
	return &clusterpair.Reconciler{Client: c, Cluster: "east", Trust: trust.Reader{Reader: c}, Links: l}, l
}

func reconcile(t *testing.T, r *clusterpair.Reconciler, name string) (v1alpha1.ClusterPairStatus, ctrl.Result) {
	t.Helper()
	result, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Name: name}})
	if err != nil {
		t.Fatal(err)
	}
	var pair v1alpha1.ClusterPair
	if err := client.IgnoreNotFound(r.Get(t.Context(), client.ObjectKey{Name: name}, &pair)); err != nil {
		t.Fatal(err)
	}
	return pair.Status, result
}

func TestAPairGetsItsLinkAndShowsIt(t *testing.T) {
	connected := heartbeat.State{Link: v1alpha1.LinkConnected, LastHeartbeat: noon, RoundTrip: 3 * time.Millisecond, Version: "v1", Protocol: 1, Reason: heartbeat.ReasonAnswered}
	r, l := reconciler(t, connected, pairOf("to-west", "west"), trustOf(t))
	status, result := reconcile(t, r, "to-west")
	if e := l.endpoints["to-west"]; e.PeerCluster != "west" || e.Address != "192.0.2.1:9002" || e.CAPEM == "" || l.tolerance != 5 {
		t.Errorf("link %+v, tolerance %d", e, l.tolerance)
	}
	if status.LinkState != v1alpha1.LinkConnected || !status.LastHeartbeat.Time.Equal(noon) || status.RoundTripMicroseconds != 3000 ||
		status.PeerVersion != "v1" || status.ObservedGeneration != 2 || !meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionConnected) {
		t.Errorf("status %+v", status)
	}
	if result.RequeueAfter != 30*time.Second {
		t.Errorf("looks again after %s", result.RequeueAfter)
	}
	l.state = heartbeat.State{Link: v1alpha1.LinkUnknown, Reason: heartbeat.ReasonNotTried}
	status, _ = reconcile(t, r, "to-west")
	if c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionConnected); c.Status != metav1.ConditionUnknown || status.LastHeartbeat == nil {
		t.Errorf("after a restart of the manager: %+v", status)
	}
}

func TestAPairThatCannotBeUsedSaysWhy(t *testing.T) {
	cases := []struct {
		name    string
		objects []client.Object
		reason  string
	}{
		{"names this cluster", []client.Object{pairOf("p", "east"), trustOf(t)}, clusterpair.ReasonOwnName},
		{"no Secret", []client.Object{pairOf("p", "west")}, clusterpair.ReasonNoTrust},
		{"garbage in the Secret", []client.Object{pairOf("p", "west"), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "trust"}, Data: map[string][]byte{trust.KeyCA: []byte("x")}}}, clusterpair.ReasonNoTrust},
		{"another pair for the same peer", []client.Object{pairOf("p", "west"), pairOf("q", "west"), trustOf(t)}, clusterpair.ReasonAmbiguous},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, l := reconciler(t, heartbeat.Initial(), c.objects...)
			status, _ := reconcile(t, r, "p")
			got := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionConnected)
			if got.Status != metav1.ConditionFalse || got.Reason != c.reason || got.Message == "" || status.LinkState != v1alpha1.LinkRefused || len(l.endpoints) != 0 {
				t.Errorf("%+v, links %v", got, l.endpoints)
			}
		})
	}
}

func TestADeletedPairLosesItsLink(t *testing.T) {
	r, l := reconciler(t, heartbeat.Initial())
	l.endpoints["gone"] = link.Endpoint{}
	reconcile(t, r, "gone")
	if len(l.endpoints) != 0 {
		t.Error("the link is still there")
	}
}

// The trust that pairing made goes with its pair, by the cluster's garbage collector; a Secret that a person made does not.
func TestTrustGoesWithItsPair(t *testing.T) {
	for _, made := range []bool{true, false} {
		secret := trustOf(t)
		if made {
			secret.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat}
		}
		pair := pairOf("to-west", "west")
		pair.UID = "7"
		r, _ := reconciler(t, heartbeat.Initial(), pair, secret)
		for range 2 {
			reconcile(t, r, "to-west")
		}
		var now corev1.Secret
		if err := r.Get(t.Context(), client.ObjectKeyFromObject(secret), &now); err != nil {
			t.Fatal(err)
		}
		if owned := len(now.OwnerReferences) == 1 && now.OwnerReferences[0].UID == "7" && now.OwnerReferences[0].Kind == "ClusterPair"; owned != made {
			t.Errorf("made by pairing: %t, owners %+v", made, now.OwnerReferences)
		}
	}
}
