package control_test

import (
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// startReal runs west's server on a real API server. Each test has its own namespace and its own peer there.
func startReal(t *testing.T, caller string) (*fixture, string) {
	t.Helper()
	kube := servers.Client(t, west)
	namespace := "of-" + caller
	e, w := newSide(t, caller), newSide(t, west)
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}
	if err := client.IgnoreAlreadyExists(kube.Create(t.Context(), system)); err != nil {
		t.Fatal(err)
	}
	for _, o := range append(pairFor(e, namespace), class("fast-"+caller, false)) {
		if err := kube.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	f := start(t, kube, e, w, func(_ *control.ServerOptions, c *control.ClientOptions) { c.PeerCluster = west })
	return f, namespace
}

func TestACopyOfAPlanIsGuardedAtOnce(t *testing.T) {
	f, namespace := startReal(t, "plan-owner")
	k := key(namespace, "shop")
	spec := v1alpha1.DisasterRecoveryPlanSpec{PrimaryCluster: "plan-owner", PreferredClusterList: []string{"plan-owner", west}}
	if err := f.client.PutPlan(t.Context(), k, spec, 7, "plan-owner"); err != nil {
		t.Fatal(err)
	}
	var plan v1alpha1.DisasterRecoveryPlan
	if err := f.kube.Get(t.Context(), k, &plan); err != nil {
		t.Fatal(err)
	}
	if s := plan.Status; s.LocalCluster != west || s.PrimaryCluster != "plan-owner" || s.Epoch != 7 || plan.Spec.MaximumMetadataCopies != 5 {
		t.Errorf("copy %+v %+v", plan.Spec, s)
	}
	edited := plan.DeepCopy()
	edited.Spec.PrimaryCluster = west
	if err := f.kube.Update(t.Context(), edited); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "the primary is plan-owner") {
		t.Errorf("an edit of the copy: %v", err)
	}
	version := plan.ResourceVersion
	same := plan.Spec
	if err := f.client.PutPlan(t.Context(), k, same, 7, "plan-owner"); err != nil {
		t.Fatal(err)
	}
	if err := f.kube.Get(t.Context(), k, &plan); err != nil || plan.ResourceVersion != version {
		t.Errorf("putting what is there wrote again (%v)", err)
	}
	bad := plan.Spec
	bad.MaximumMetadataCopies = 1000
	wantRefused(t, f.client.PutPlan(t.Context(), k, bad, 7, "plan-owner"), control.ReasonInvalid, "maximumMetadataCopies")
	if err := f.client.PutPlan(t.Context(), key(namespace, "other"), spec, 1, "plan-owner"); err != nil {
		t.Fatal(err)
	}
}

func TestPreparingTwiceWritesOnce(t *testing.T) {
	f, namespace := startReal(t, "preparer")
	r := request(data(gib))
	r.Key.Namespace = namespace
	r.Claims[0].StorageClass = "fast-preparer"
	// A source's spec comes from its API server, defaults and all.
	retain := int32(3)
	r.Spec.Rlinks[0].Compression, r.Spec.Rlinks[0].PeerObjects, r.Spec.Rlinks[0].Retain = v1alpha1.CompressionAuto, v1alpha1.PeerObjectsCreate, &retain
	if got := must(f.client.PrepareReplication(t.Context(), r))(t); got.Ready {
		t.Fatalf("%+v: nobody can have bound the claim", got)
	}
	versions := func() string {
		var all strings.Builder
		for _, o := range []client.Object{&v1alpha1.Replication{}, &v1alpha1.PVCGroup{}, &corev1.PersistentVolumeClaim{}} {
			name := "db"
			if _, ok := o.(*corev1.PersistentVolumeClaim); ok {
				name = "data"
			}
			if err := f.kube.Get(t.Context(), key(namespace, name), o); err != nil {
				t.Fatal(err)
			}
			all.WriteString(o.GetResourceVersion() + " ")
		}
		return all.String()
	}
	before := versions()
	if got := must(f.client.PrepareReplication(t.Context(), r))(t); got.Ready || !strings.Contains(got.Message, "not bound") {
		t.Errorf("%+v", got)
	}
	if after := versions(); after != before {
		t.Errorf("versions were %s and are %s", before, after)
	}
	// The claim of the right size that a person resized to another is a conflict.
	r.Claims[0].SizeBytes = 2 * gib
	_, err := f.client.PrepareReplication(t.Context(), r)
	wantRefused(t, err, control.ReasonConflict, "1Gi", "2Gi", "preparer", west)
	r.Claims[0].SizeBytes = gib
	// What the API server does not take is refused with its words, and nothing else is lost by it.
	r.Spec.Rlinks[0].RlinkName = "Not A Name"
	_, err = f.client.PrepareReplication(t.Context(), r)
	wantRefused(t, err, control.ReasonInvalid, "rlinkName")
}

func TestANamespaceIsMadeOnlyWhenAllowed(t *testing.T) {
	f, namespace := startReal(t, "settler")
	r := request(data(gib))
	r.Claims[0].StorageClass = "fast-settler"
	r.Key.Namespace = "elsewhere"
	_, err := f.client.PrepareReplication(t.Context(), r)
	wantRefused(t, err, control.ReasonNamespace)
	var ns corev1.Namespace
	if err := f.kube.Get(t.Context(), client.ObjectKey{Name: "elsewhere"}, &ns); !apierrors.IsNotFound(err) {
		t.Errorf("namespace elsewhere: %v", err)
	}
	r.Key.Namespace = namespace
	must(f.client.PrepareReplication(t.Context(), r))(t)
	if err := f.kube.Get(t.Context(), client.ObjectKey{Name: namespace}, &ns); err != nil || ns.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat {
		t.Errorf("namespace %s: %v %v", namespace, ns.Labels, err)
	}
	if err := f.kube.Delete(t.Context(), &ns); err != nil {
		t.Fatal(err)
	}
	r.Key.Name = "another"
	_, err = f.client.PrepareReplication(t.Context(), r)
	wantRefused(t, err, control.ReasonConflict, "being deleted")
}

func TestTheCAOfARealClusterIsMadeOnce(t *testing.T) {
	kube := servers.Client(t, west)
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}
	if err := client.IgnoreAlreadyExists(kube.Create(t.Context(), system)); err != nil {
		t.Fatal(err)
	}
	type made struct {
		fingerprint string
		err         error
	}
	results := make(chan made)
	for range 4 { // managers that start at once
		go func() {
			ca, err := trust.EnsureCA(t.Context(), kube, west, time.Now())
			if err != nil {
				results <- made{err: err}
				return
			}
			results <- made{fingerprint: identity.Fingerprint(ca.CertPEM())}
		}()
	}
	first := <-results
	for range 3 {
		if r := <-results; r.err != nil || r.fingerprint != first.fingerprint {
			t.Errorf("%v, first %v", r, first)
		}
	}
}
