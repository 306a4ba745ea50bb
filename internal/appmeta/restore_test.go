package appmeta

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/hook"
)

// The application goes west, is changed there, and comes home to what it left behind.
func TestAnApplicationGoesWestAndComesHomeAsItIs(t *testing.T) {
	east, west := open(t, "east"), open(t, "west")
	east.serveWidgets(t)
	east.makeNamespace(t, "shop", map[string]string{"pod-security.kubernetes.io/warn": "restricted"})
	east.run(t, "testdata/shop.yaml", "shop")
	there := Request{Namespace: "shop", ReplicatedClaims: []string{"data"}}
	snapshot, _ := east.keep(t, there, "shop-1")
	if err := east.send(t, west, snapshot, nil); err != nil {
		t.Fatal(err)
	}

	t.Run("a kind the other side lacks is named, the rest is restored", func(t *testing.T) {
		result := west.restore(t, snapshot, "op-1")
		if result.Applied != result.Total-1 || len(result.Failed) != 1 {
			t.Fatalf("%+v", result)
		}
		mustContain(t, fails(result.Failed), "Widget.widgets.example.com shop/one: this cluster serves no Widget.widgets.example.com: install its CustomResourceDefinition")
	})
	t.Run("once it is there the restore goes on and touches nothing else", func(t *testing.T) {
		west.serveWidgets(t)
		result := west.restore(t, snapshot, "op-1")
		if result.Applied != 1 || result.Unchanged != result.Total-1 || len(result.Failed) != 0 {
			t.Fatalf("%+v", result)
		}
	})
	t.Run("what is there now is what was captured", func(t *testing.T) {
		mustEqual(t, east.capture(t, there).Objects, west.capture(t, there).Objects)
		deployment := west.get(t, gvk("apps/v1", "Deployment"), "shop", "web")
		if by := deployment.GetAnnotations()[v1alpha1.AnnotationRestoredBy]; by != "shop/shop@op-1" {
			t.Errorf("restored by %q", by)
		}
		if field[int64](t, deployment, "spec", "replicas") != 3 {
			t.Error("the replica count was not kept")
		}
		if west.get(t, gvk("v1", "Namespace"), "", "shop").GetLabels()["pod-security.kubernetes.io/warn"] != "restricted" {
			t.Error("the namespace lost its label")
		}
		if claim := west.get(t, gvk("v1", "PersistentVolumeClaim"), "shop", "data"); field[string](t, claim, "spec", "volumeName") != "" {
			t.Error("a replicated claim names a volume of the other cluster")
		}
		ref := field[map[string]any](t, west.get(t, gvk("v1", "PersistentVolume"), "", "shop-share"), "spec", "claimRef")
		if ref["name"] != "share" || ref["namespace"] != "shop" || ref["uid"] != nil {
			t.Errorf("the static volume's claimRef is %v", ref)
		}
	})

	// In the west: a setting and a variable are removed, the count grows, a job ends, an object is new.
	west.edit(t, west.get(t, gvk("v1", "ConfigMap"), "shop", "settings"), func(o map[string]any) {
		delete(o["data"].(map[string]any), "colour")
	})
	west.edit(t, west.get(t, gvk("apps/v1", "Deployment"), "shop", "web"), func(o map[string]any) {
		_ = unstructured.SetNestedField(o, int64(5), "spec", "replicas")
		_ = unstructured.SetNestedSlice(o, []any{map[string]any{"name": "web", "image": "web:2", "env": []any{map[string]any{"name": "A", "value": "1"}}}}, "spec", "template", "spec", "containers")
	})
	// In the east it was taken offline meanwhile.
	hooks := hook.New(east.client, east.client)
	if _, err := hooks.Offline(context.Background(), "shop", nil, "op-1"); err != nil {
		t.Fatal(err)
	}
	before := east.get(t, gvk("v1", "Service"), "shop", "web")

	home, _ := west.keep(t, there, "shop-2")
	if err := west.send(t, east, home, nil); err != nil {
		t.Fatal(err)
	}
	t.Run("home again: what was removed in the west is gone, what the cluster gave is kept", func(t *testing.T) {
		result := east.restore(t, home, "op-2")
		if len(result.Failed) != 0 {
			t.Fatalf("failed: %s", strings.Join(fails(result.Failed), "\n"))
		}
		settings := field[map[string]any](t, east.get(t, gvk("v1", "ConfigMap"), "shop", "settings"), "data")
		if len(settings) != 1 || settings["size"] != "large" {
			t.Errorf("settings: %v, want size alone", settings)
		}
		deployment := east.get(t, gvk("apps/v1", "Deployment"), "shop", "web")
		if field[int64](t, deployment, "spec", "replicas") != 5 || hook.Marked(deployment) {
			t.Errorf("the deployment has %v replicas and the annotations %v", field[int64](t, deployment, "spec", "replicas"), deployment.GetAnnotations())
		}
		env := field[[]any](t, deployment, "spec", "template", "spec", "containers")[0].(map[string]any)["env"]
		if len(env.([]any)) != 1 {
			t.Errorf("env: %v", env)
		}
		if hook.Marked(east.get(t, gvk("apps/v1", "DaemonSet"), "shop", "agent")) || field[bool](t, east.get(t, gvk("batch/v1", "CronJob"), "shop", "report"), "spec", "suspend") {
			t.Error("the DaemonSet or the CronJob is still offline")
		}
		after := east.get(t, gvk("v1", "Service"), "shop", "web")
		if field[string](t, after, "spec", "clusterIP") != field[string](t, before, "spec", "clusterIP") {
			t.Error("the Service lost its address")
		}
		claim := east.get(t, gvk("v1", "PersistentVolumeClaim"), "shop", "data")
		if field[string](t, claim, "spec", "volumeName") != "shop-pvc-of-east" {
			t.Error("the claim lost its volume")
		}
		mustEqual(t, west.capture(t, there).Objects, east.capture(t, there).Objects)
	})
	t.Run("and once more changes nothing", func(t *testing.T) {
		if result := east.restore(t, home, "op-2"); result.Applied != 0 || result.Unchanged != result.Total {
			t.Fatalf("%+v", result)
		}
	})
}

// A manager may end at any request: the next call goes on from there, and the end is the same.
func TestARestoreThatIsCutGoesOnWhereItEnded(t *testing.T) {
	east, west := open(t, "east"), open(t, "west")
	east.serveWidgets(t)
	west.serveWidgets(t)
	east.makeNamespace(t, "cut", nil)
	east.run(t, "testdata/shop.yaml", "cut")
	there := Request{Namespace: "cut", ReplicatedClaims: []string{"data"}}
	snapshot, _ := east.keep(t, there, "cut-1")
	if err := east.send(t, west, snapshot, nil); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for allowed := int64(1); ; allowed += 3 {
		ctx, cut := context.WithCancel(context.Background())
		restorer, err := NewRestorer(cutAfter(west.config, allowed, cut), west.client, west.library)
		if err != nil {
			t.Fatal(err)
		}
		result, err := restorer.Restore(ctx, "cut", "cut-1", "op")
		cut()
		if err == nil && result.Done {
			if len(result.Failed) > 0 {
				t.Fatalf("failed: %s", strings.Join(fails(result.Failed), "\n"))
			}
			break
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d writes: %v", allowed, err)
		}
		cuts++
	}
	if cuts < 3 {
		t.Errorf("it was cut only %d times", cuts)
	}
	mustEqual(t, east.capture(t, there).Objects, west.capture(t, there).Objects)
}

// cutAfter lets that many writes through and then cancels.
func cutAfter(config *rest.Config, allowed int64, cut func()) *rest.Config {
	config = rest.CopyConfig(config)
	var writes atomic.Int64
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && writes.Add(1) > allowed {
				cut()
			}
			return next.RoundTrip(r)
		})
	})
	return config
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWhatCannotBeRestoredIsNamedWithWhatToDo(t *testing.T) {
	west := open(t, "west")
	west.makeNamespace(t, "stuck", nil)
	for _, o := range []string{
		`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"fixed","namespace":"stuck"},"immutable":true,"stringData":{"password":"old-plaintext"}}`,
		`{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"stuck-share"},"spec":{"accessModes":["ReadWriteMany"],"capacity":{"storage":"1Gi"},"nfs":{"server":"nfs","path":"/"},"claimRef":{"namespace":"other","name":"theirs"}}}`,
		`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"import","namespace":"stuck"},"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"import","image":"import:1"}]}}}}`,
	} {
		if err := west.client.Create(context.Background(), object(t, o)); err != nil {
			t.Fatal(err)
		}
	}
	snapshot := west.received(t, "stuck", "stuck-1", []*unstructured.Unstructured{
		object(t, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"fixed","namespace":"stuck"},"immutable":true,"data":{"password":"bmV3LXBsYWludGV4dA=="}}`),
		object(t, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"tls","namespace":"stuck"},"type":"kubernetes.io/tls","data":{"password":"bmV3LXBsYWludGV4dA=="}}`),
		object(t, `{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"stuck-share"},"spec":{"accessModes":["ReadWriteMany"],"capacity":{"storage":"1Gi"},"nfs":{"server":"nfs","path":"/"},"claimRef":{"namespace":"stuck","name":"share"}}}`),
		object(t, `{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"stuck-node"},"spec":{"accessModes":["ReadWriteMany"],"capacity":{"storage":"1Gi"},"hostPath":{"path":"/"},"claimRef":{"namespace":"stuck","name":"root"}}}`),
		object(t, `{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"stuck-foreign"},"spec":{"accessModes":["ReadWriteMany"],"capacity":{"storage":"1Gi"},"nfs":{"server":"nfs","path":"/"},"claimRef":{"namespace":"bank","name":"vault"}}}`),
		object(t, `{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"share","namespace":"stuck"},"spec":{"accessModes":["ReadWriteMany"],"storageClassName":"","resources":{"requests":{"storage":"1Gi"}}}}`),
		object(t, `{"apiVersion":"apps/v9","kind":"Deployment","metadata":{"name":"later","namespace":"stuck"}}`),
		object(t, `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"import","namespace":"stuck"},"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"import","image":"import:2"}]}}}}`),
		object(t, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"fine","namespace":"stuck"}}`),
	})
	result := west.restore(t, snapshot, "op")
	texts := fails(result.Failed)
	for _, want := range []string{
		"Secret stuck/fixed: the API server refuses it: Invalid; data: FieldValueForbidden; the object exists here already",
		"Secret stuck/tls: the API server refuses it: Invalid; data[tls.crt]: FieldValueRequired",
		"PersistentVolume stuck-share: a PersistentVolume of that name exists here for claim other/theirs",
		"PersistentVolume stuck-node: it is a directory or disk of a node",
		`PersistentVolume stuck-foreign: its spec.claimRef.namespace is "bank"`,
		"PersistentVolumeClaim stuck/share: not made, because its PersistentVolume stuck-share could not be restored",
		"Deployment.apps stuck/later: this cluster serves Deployment.apps as v1, not as v9",
		"Job.batch stuck/import:",
	} {
		mustContain(t, texts, want)
	}
	if len(texts) != 8 || result.Applied != 1 {
		t.Errorf("%d applied, failed:\n%s", result.Applied, strings.Join(texts, "\n"))
	}
	if all := strings.Join(texts, "\n"); strings.Contains(all, "plaintext") || strings.Contains(all, "bmV3LX") {
		t.Errorf("a Secret is quoted:\n%s", all)
	}
}

func TestOnlyAWholeAndCompletedSnapshotIsRestored(t *testing.T) {
	west := open(t, "west")
	west.makeNamespace(t, "whole", nil)
	snapshot := west.received(t, "whole", "s", []*unstructured.Unstructured{object(t, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"whole"}}`)})
	refused := func(t *testing.T, want string) {
		t.Helper()
		if _, err := west.restorer.Restore(context.Background(), "whole", "s", "op"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if west.find(t, gvk("v1", "ConfigMap"), "whole", "a") != nil {
			t.Error("something was restored")
		}
	}
	status := snapshot.Status
	set := func(edit func(*v1alpha1.ApplicationSnapshotStatus)) {
		snapshot.Status = status
		edit(&snapshot.Status)
		if err := west.client.Status().Update(context.Background(), snapshot); err != nil {
			t.Fatal(err)
		}
	}
	set(func(s *v1alpha1.ApplicationSnapshotStatus) { s.Phase = v1alpha1.SnapshotCapturing })
	refused(t, `its phase is "Capturing"`)
	set(func(s *v1alpha1.ApplicationSnapshotStatus) { s.Digest = "blake3:00" })
	refused(t, "the ApplicationSnapshot shows blake3:00")
	set(func(*v1alpha1.ApplicationSnapshotStatus) {})
	for _, info := range must(west.store.List(context.Background(), shelfPacks)) {
		if err := west.store.Put(context.Background(), info.Name, []byte("rot")); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, "is damaged in the store")
}

// received keeps objects as if they had been captured elsewhere.
func (s *site) received(t testing.TB, namespace, name string, objects []*unstructured.Unstructured) *v1alpha1.ApplicationSnapshot {
	t.Helper()
	kept, err := s.library.Keep(context.Background(), namespace, name, objects)
	if err != nil {
		t.Fatal(err)
	}
	snapshot := &v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := s.client.Create(context.Background(), snapshot); err != nil {
		t.Fatal(err)
	}
	snapshot.Status = v1alpha1.ApplicationSnapshotStatus{Phase: v1alpha1.SnapshotCompleted, SourceCluster: "elsewhere", Digest: kept.Digest}
	if err := s.client.Status().Update(context.Background(), snapshot); err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// mustEqual compares captures, less PersistentVolumes: where no controller binds claims, none leads to a volume.
func mustEqual(t *testing.T, want, got []*unstructured.Unstructured) {
	t.Helper()
	seen := map[string]string{}
	for _, o := range got {
		seen[nameOf(o)] = string(must(o.MarshalJSON()))
	}
	for _, o := range want {
		if o.GetKind() == "PersistentVolume" {
			continue
		}
		text, found := seen[nameOf(o)]
		if !found {
			t.Errorf("%s is missing", nameOf(o))
		} else if w := string(must(o.MarshalJSON())); w != text {
			t.Errorf("%s is\n%s, want\n%s", nameOf(o), text, w)
		}
		delete(seen, nameOf(o))
	}
	for name := range seen {
		if !strings.HasPrefix(name, "PersistentVolume ") {
			t.Errorf("%s is too many", name)
		}
	}
}

func object(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return o
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
