package appmeta

import (
	"context"
	"errors"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/store"
)

func (s *site) object(t testing.TB, namespace, name string) *v1alpha1.ApplicationSnapshot {
	t.Helper()
	found := &v1alpha1.ApplicationSnapshot{}
	err := s.client.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, found)
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	if err != nil {
		return nil
	}
	return found
}

// keptOnEast keeps a few objects of a namespace and shows the snapshot.
func keptOnEast(t *testing.T, east *site, namespace, name string, objects ...*unstructured.Unstructured) *v1alpha1.ApplicationSnapshot {
	t.Helper()
	snapshot := east.received(t, namespace, name, objects)
	snapshot.Status.SourceCluster = "east"
	return snapshot
}

func inNamespace(namespace string, objects ...*unstructured.Unstructured) []*unstructured.Unstructured {
	for _, o := range objects {
		o.SetNamespace(namespace)
	}
	return objects
}

func TestASnapshotThatArrivesIsShownWholeAndOnce(t *testing.T) {
	east, west := open(t, "east"), open(t, "west")
	east.makeNamespace(t, "send", nil)
	snapshot := keptOnEast(t, east, "send", "one", inNamespace("send", some(3, 400)...)...)
	for range 2 {
		if err := east.send(t, west, snapshot, nil); err != nil {
			t.Fatal(err)
		}
		got := west.object(t, "send", "one")
		if got.Status.Phase != v1alpha1.SnapshotCompleted || got.Status.SourceCluster != "east" || got.Status.Digest != snapshot.Status.Digest ||
			got.Annotations[AnnotationReceivedFrom] != "east" || got.Status.Location != "mem/manifests/send/one" {
			t.Fatalf("shown as %+v %+v", got.ObjectMeta, got.Status)
		}
	}
	objects, err := west.library.Load(context.Background(), "send", "one", snapshot.Status.Digest)
	if err != nil || len(objects) != 3 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}

	t.Run("packs that are there need not come again", func(t *testing.T) {
		more := append(inNamespace("send", some(3, 400)...), inNamespace("send", configMap("new", 77, 400))...)
		two := keptOnEast(t, east, "send", "two", more...)
		held := map[string]bool{}
		for _, pack := range must(east.library.Packs(context.Background(), "send", "one")) {
			held[pack] = true
		}
		blobs := must(east.library.Blobs(context.Background(), "send", "two", held))
		if len(blobs) != 2 || len(blobs[1].Data) > 1000 {
			t.Errorf("%d blobs are sent for one new object", len(blobs))
		}
		if err := east.send(t, west, two, held); err != nil {
			t.Fatal(err)
		}
		if objects := must(west.library.Load(context.Background(), "send", "two", two.Status.Digest)); len(objects) != 4 {
			t.Errorf("%d objects", len(objects))
		}
	})
}

func TestASnapshotIsTakenInWholeOrNotAtAll(t *testing.T) {
	east := open(t, "east")
	east.makeNamespace(t, "whole-in", nil)
	snapshot := keptOnEast(t, east, "whole-in", "one", inNamespace("whole-in", some(3, 400)...)...)
	other := keptOnEast(t, east, "whole-in", "foreign", append(inNamespace("whole-in", some(1, 100)...), inNamespace("bank", configMap("theirs", 5, 100))...)...)
	role := object(t, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"root"}}`)
	scoped := keptOnEast(t, east, "whole-in", "scoped", role)
	all := func(s *v1alpha1.ApplicationSnapshot) []store.Blob {
		return must(east.library.Blobs(context.Background(), s.Namespace, s.Name, nil))
	}
	full := errors.New("disk full")
	for _, c := range []struct {
		name string
		send func(*site) error
		want string
	}{
		{"a pack is missing", func(w *site) error { return w.put(snapshot, all(snapshot)[:1]) }, "1 of its packs were neither sent nor are they here"},
		{"the manifest is missing", func(w *site) error { return w.put(snapshot, all(snapshot)[1:]) }, "manifest manifests/whole-in/one was not sent"},
		{"a pack is damaged", func(w *site) error {
			blobs := all(snapshot)
			blobs[1].Data[len(blobs[1].Data)/2] ^= 1
			return w.put(snapshot, blobs)
		}, "is damaged"},
		{"the content is another", func(w *site) error {
			wrong := snapshot.DeepCopy()
			wrong.Status.Digest = "blake3:00"
			return w.put(wrong, all(snapshot))
		}, "its status.digest says blake3:00"},
		{"it reaches into another namespace", func(w *site) error { return w.put(other, all(other)) }, "bank/theirs, which is not of namespace whole-in"},
		{"it reaches for the cluster", func(w *site) error { return w.put(scoped, all(scoped)) }, "ClusterRole.rbac.authorization.k8s.io /root"},
		{"it is not complete", func(w *site) error {
			wrong := snapshot.DeepCopy()
			wrong.Status.Phase = v1alpha1.SnapshotCapturing
			return w.put(wrong, all(snapshot))
		}, "only Completed ones"},
		{"it claims to be captured here", func(w *site) error {
			wrong := snapshot.DeepCopy()
			wrong.Status.SourceCluster = "west"
			return w.put(wrong, all(snapshot))
		}, "only what another cluster captured"},
		{"the store fails at the manifest", func(w *site) error {
			w.store.FailNext(nil)
			w.store.FailNext(nil)
			w.store.FailNext(full)
			return w.put(snapshot, all(snapshot))
		}, "disk full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			west := open(t, "west")
			err := c.send(west)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			for _, name := range []string{"one", "foreign", "scoped"} {
				if west.object(t, "whole-in", name) != nil {
					t.Errorf("%s is shown", name)
				}
			}
			if left := must(west.store.List(context.Background(), shelfManifests)); len(left) != 0 {
				t.Errorf("%v is kept", left)
			}
		})
	}
}

func (s *site) put(snapshot *v1alpha1.ApplicationSnapshot, blobs []store.Blob) error {
	return s.inbox.Put(context.Background(), client.ObjectKeyFromObject(snapshot), snapshot.Spec, snapshot.Status, blobs)
}

func TestAnotherSnapshotOfThatNameIsNeverReplaced(t *testing.T) {
	east, west := open(t, "east"), open(t, "west")
	east.makeNamespace(t, "names", nil)
	one := keptOnEast(t, east, "names", "one", inNamespace("names", configMap("a", 1, 100))...)
	if err := east.send(t, west, one, nil); err != nil {
		t.Fatal(err)
	}
	if err := east.client.Delete(context.Background(), one); err != nil {
		t.Fatal(err)
	}
	other := keptOnEast(t, east, "names", "one", inNamespace("names", configMap("b", 2, 100))...)
	var refused *Refused
	if err := east.send(t, west, other, nil); !errors.As(err, &refused) {
		t.Errorf("other content of that name: %v, want Refused", err)
	}
	if err := west.client.Delete(context.Background(), west.object(t, "names", "one")); err != nil {
		t.Fatal(err)
	}
	west.received(t, "names", "one", inNamespace("names", configMap("c", 3, 100)))
	if err := east.send(t, west, other, nil); !errors.As(err, &refused) {
		t.Errorf("one that was made there: %v, want Refused", err)
	}
	if _, err := west.library.Load(context.Background(), "names", "one", west.object(t, "names", "one").Status.Digest); err != nil {
		t.Errorf("the one that was there: %v", err)
	}
}
