package appmeta

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/store/mem"
)

// site is one cluster of a story: its API server, its library, and this package's parts on it.
type site struct {
	name     string
	config   *rest.Config
	client   client.Client
	store    *mem.Store
	library  *Library
	capturer *Capturer
	restorer *Restorer
	inbox    *Inbox
}

func open(t testing.TB, name string) *site {
	t.Helper()
	s := &site{name: name, config: servers.Config(t, name), client: servers.Client(t, name), store: mem.New()}
	s.library = NewLibrary(s.store)
	var err error
	if s.capturer, err = NewCapturer(s.config); err != nil {
		t.Fatal(err)
	}
	if s.restorer, err = NewRestorer(s.config, s.client, s.library); err != nil {
		t.Fatal(err)
	}
	s.inbox = NewInbox(s.client, s.client, s.library, name, func(m string) string { return "mem/" + m })
	return s
}

// serveWidgets teaches an API server a kind that no Kubernetes has.
func (s *site) serveWidgets(t testing.TB) {
	t.Helper()
	yes := true
	crd := &apiextensions.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "widgets.widgets.example.com"},
		Spec: apiextensions.CustomResourceDefinitionSpec{
			Group: "widgets.example.com", Scope: apiextensions.NamespaceScoped,
			Names: apiextensions.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: "Widget", ListKind: "WidgetList"},
			Versions: []apiextensions.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Schema: &apiextensions.CustomResourceValidation{OpenAPIV3Schema: &apiextensions.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &yes}}}},
		},
	}
	if _, err := envtest.InstallCRDs(s.config, envtest.CRDInstallOptions{CRDs: []*apiextensions.CustomResourceDefinition{crd}}); err != nil {
		t.Fatalf("serve widgets on %s: %v", s.name, err)
	}
}

// fixedPort is the node port of a namespace's Service; a cluster has each only once.
var fixedPort = map[string]int64{"capture": 30123, "shop": 30124, "cut": 30125, "send": 30126}

// run creates the objects of a YAML file in a namespace of the test's own, where the file says "shop".
func (s *site) run(t testing.TB, path, namespace string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("namespace: shop", "namespace: "+namespace, "nodePort: 30123", fmt.Sprintf("nodePort: %d", fixedPort[namespace])).Replace(string(data))
	for _, doc := range strings.Split(text, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		if o.GetNamespace() == "" {
			o.SetName(namespace + "-" + o.GetName())
		}
		if volume, _, _ := unstructured.NestedString(o.Object, "spec", "volumeName"); volume != "" {
			_ = unstructured.SetNestedField(o.Object, namespace+"-"+volume, "spec", "volumeName")
		}
		s.own(t, o)
		if err := s.client.Create(context.Background(), o, client.FieldOwner("kubectl")); err != nil {
			t.Fatalf("create %s on %s: %v", nameOf(o), s.name, err)
		}
	}
}

// own turns the annotation test/owner into a controller reference.
func (s *site) own(t testing.TB, o *unstructured.Unstructured) {
	t.Helper()
	annotations := o.GetAnnotations()
	path := strings.Split(annotations["test/owner"], "/")
	if len(path) != 3 {
		return
	}
	delete(annotations, "test/owner")
	o.SetAnnotations(annotations)
	kind, group, _ := strings.Cut(path[0], ".")
	owner := s.get(t, schema.GroupVersionKind{Group: group, Version: path[1], Kind: kind}, o.GetNamespace(), path[2])
	o.SetOwnerReferences([]metav1.OwnerReference{*metav1.NewControllerRef(owner, owner.GroupVersionKind())})
}

func (s *site) get(t testing.TB, kind schema.GroupVersionKind, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	o := s.find(t, kind, namespace, name)
	if o == nil {
		t.Fatalf("%s has no %s %s/%s", s.name, kind.Kind, namespace, name)
	}
	return o
}

func (s *site) find(t testing.TB, kind schema.GroupVersionKind, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(kind)
	err := s.client.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatalf("get %s %s/%s on %s: %v", kind.Kind, namespace, name, s.name, err)
	}
	return o
}

// edit changes an object as a user with kubectl would.
func (s *site) edit(t testing.TB, o *unstructured.Unstructured, change func(map[string]any)) {
	t.Helper()
	change(o.Object)
	if err := s.client.Update(context.Background(), o, client.FieldOwner("kubectl")); err != nil {
		t.Fatalf("edit %s on %s: %v", nameOf(o), s.name, err)
	}
}

func (s *site) makeNamespace(t testing.TB, name string, labels map[string]string) {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
	o.SetName(name)
	o.SetLabels(labels)
	if err := s.client.Create(context.Background(), o); err != nil {
		t.Fatalf("make namespace %s on %s: %v", name, s.name, err)
	}
}

func (s *site) capture(t testing.TB, req Request) Captured {
	t.Helper()
	captured, err := s.capturer.Capture(context.Background(), req)
	if err != nil {
		t.Fatalf("capture on %s: %v", s.name, err)
	}
	return captured
}

// keep captures, keeps, and shows the snapshot as the controller would.
func (s *site) keep(t testing.TB, req Request, name string) (*v1alpha1.ApplicationSnapshot, Kept) {
	t.Helper()
	captured := s.capture(t, req)
	kept, err := s.library.Keep(context.Background(), req.Namespace, name, captured.Objects)
	if err != nil {
		t.Fatal(err)
	}
	snapshot := &v1alpha1.ApplicationSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: req.Namespace, Name: name},
		Spec:       v1alpha1.ApplicationSnapshotSpec{PlanName: "shop"},
	}
	if err := s.client.Create(context.Background(), snapshot); err != nil {
		t.Fatal(err)
	}
	snapshot.Status = v1alpha1.ApplicationSnapshotStatus{Phase: v1alpha1.SnapshotCompleted, SourceCluster: s.name, Digest: kept.Digest, Objects: int32(kept.Objects)}
	if err := s.client.Status().Update(context.Background(), snapshot); err != nil {
		t.Fatal(err)
	}
	return snapshot, kept
}

// send hands a kept snapshot to another site.
func (s *site) send(t testing.TB, to *site, snapshot *v1alpha1.ApplicationSnapshot, held map[string]bool) error {
	t.Helper()
	blobs, err := s.library.Blobs(context.Background(), snapshot.Namespace, snapshot.Name, held)
	if err != nil {
		t.Fatal(err)
	}
	return to.inbox.Put(context.Background(), client.ObjectKeyFromObject(snapshot), snapshot.Spec, snapshot.Status, blobs)
}

func (s *site) restore(t testing.TB, snapshot *v1alpha1.ApplicationSnapshot, operation string) RestoreResult {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		result, err := s.restorer.Restore(context.Background(), snapshot.Namespace, snapshot.Name, operation)
		if err != nil {
			t.Fatalf("restore on %s: %v", s.name, err)
		}
		if result.Done {
			return result
		}
		if time.Now().After(deadline) {
			t.Fatalf("restore on %s still waits: %+v", s.name, result)
		}
	}
}

func (s *site) dynamic(t testing.TB) dynamic.Interface {
	t.Helper()
	d, err := dynamic.NewForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// names are objects as "Kind name", in order.
func names(objects []*unstructured.Unstructured) []string {
	var all []string
	for _, o := range objects {
		all = append(all, o.GetKind()+" "+o.GetName())
	}
	return all
}

func gvk(apiVersion, kind string) schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(apiVersion, kind)
}

func field[T any](t testing.TB, o *unstructured.Unstructured, path ...string) T {
	t.Helper()
	value, _, _ := unstructured.NestedFieldCopy(o.Object, path...)
	typed, ok := value.(T)
	if !ok && value != nil {
		t.Fatalf("%s: %s is a %T", nameOf(o), strings.Join(path, "."), value)
	}
	return typed
}

func mustContain(t testing.TB, all []string, part string) {
	t.Helper()
	if !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, part) }) {
		t.Errorf("nothing says %q in:\n%s", part, strings.Join(all, "\n"))
	}
}

func fails(all []ObjectError) []string {
	var texts []string
	for _, e := range all {
		texts = append(texts, fmt.Sprintf("%s: %s", e.Object, e.Reason))
	}
	return texts
}
