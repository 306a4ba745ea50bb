package appmeta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"lifeboat.dev/lifeboat/internal/store"
	"lifeboat.dev/lifeboat/internal/store/mem"
)

// configMap is an object with size bytes that do not compress and depend on seed.
func configMap(name string, seed uint64, size int) *unstructured.Unstructured {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	noise := make([]byte, size/2)
	_, _ = rand.NewChaCha8(key).Read(noise)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "namespace": "shop"},
		"data":     map[string]any{"noise": fmt.Sprintf("%x", noise)},
	}}
}

func some(count, size int) []*unstructured.Unstructured {
	var all []*unstructured.Unstructured
	for i := range count {
		all = append(all, configMap(fmt.Sprintf("c-%04d", i), uint64(i), size))
	}
	return all
}

func keep(t *testing.T, l *Library, name string, objects []*unstructured.Unstructured) Kept {
	t.Helper()
	kept, err := l.Keep(context.Background(), "shop", name, objects)
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

func load(t *testing.T, l *Library, name string, kept Kept) []*unstructured.Unstructured {
	t.Helper()
	objects, err := l.Load(context.Background(), "shop", name, kept.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func sameObjects(t *testing.T, want, got []*unstructured.Unstructured) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("%d objects, want %d", len(got), len(want))
	}
	for i := range want {
		if string(must(want[i].MarshalJSON())) != string(must(got[i].MarshalJSON())) {
			t.Fatalf("object %d is %s, want %s", i, nameOf(got[i]), nameOf(want[i]))
		}
	}
}

func TestWhatDidNotChangeCostsNothing(t *testing.T) {
	s := mem.New()
	l := NewLibrary(s)
	objects := some(500, 4000)
	first := keep(t, l, "one", objects)
	if packs := s.Puts() - 1; packs < 2 || packs > 4 {
		t.Errorf("2 MB lie in %d packs, want 2 to 4", packs)
	}
	before := s.Puts()
	again := keep(t, l, "two", objects)
	if again.Digest != first.Digest || again.New != 0 || s.Puts() != before+1 {
		t.Errorf("the same again: digest equal %v, %d new bytes, %d blobs written; want the manifest alone", again.Digest == first.Digest, again.New, s.Puts()-before)
	}
	changed := slices.Clone(objects)
	changed[7] = configMap("c-0007", 99999, 4000)
	third := keep(t, l, "three", changed)
	if third.Digest == first.Digest || third.New == 0 || third.New > 5000 {
		t.Errorf("one of 500 changed: digest equal %v, %d new bytes; want about 2,500", third.Digest == first.Digest, third.New)
	}
	sameObjects(t, objects, load(t, l, "two", again))
	sameObjects(t, changed, load(t, l, "three", third))
}

// The same objects after the same snapshots give the same bytes, whoever packs them.
func TestPackingIsDeterministic(t *testing.T) {
	content := func() map[string]string {
		s := mem.New()
		l := NewLibrary(s)
		keep(t, l, "one", some(300, 4000))
		keep(t, l, "two", some(310, 4000))
		keep(t, l, "three", some(200, 4000))
		all := map[string]string{}
		for _, info := range must(s.List(context.Background(), "")) {
			all[info.Name] = string(must(s.Get(context.Background(), info.Name)))
		}
		return all
	}
	a, b := content(), content()
	if len(a) != len(b) {
		t.Fatalf("%d and %d blobs", len(a), len(b))
	}
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s differs", name)
		}
	}
}

func TestPacksThatAreMostlyUnusedAreWrittenAnew(t *testing.T) {
	s := mem.New()
	l := NewLibrary(s)
	keep(t, l, "one", some(200, 4000))
	few := keep(t, l, "two", some(20, 4000))
	if few.New == 0 || few.Size > 100_000 {
		t.Errorf("20 of 200 objects take %d bytes, %d new: the old pack is kept for a tenth of it", few.Size, few.New)
	}
	if swept := sweep(t, l, "shop/two"); swept != 2 {
		t.Errorf("%d swept, want the old manifest and its pack", swept)
	}
	sameObjects(t, some(20, 4000), load(t, l, "two", few))
}

func TestManySmallPacksAreJoined(t *testing.T) {
	s := mem.New()
	l := NewLibrary(s)
	var kept Kept
	objects := some(1, 400)
	for i := range 40 {
		objects = append(objects, configMap(fmt.Sprintf("d-%04d", i), uint64(1000+i), 400))
		kept = keep(t, l, fmt.Sprintf("s-%d", i), objects)
		sweep(t, l, fmt.Sprintf("shop/s-%d", i))
		if packs := len(must(s.List(context.Background(), shelfPacks))); packs > maxSmallPacks+2 {
			t.Fatalf("after %d changes %d packs are kept", i, packs)
		}
	}
	sameObjects(t, objects, load(t, l, "s-39", kept))
}

func sweep(t *testing.T, l *Library, alive ...string) int {
	t.Helper()
	swept, err := l.Sweep(context.Background(), func(namespace, name string) (bool, error) {
		return slices.Contains(alive, namespace+"/"+name), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return swept
}

func TestSweepKeepsWhatAnySnapshotUses(t *testing.T) {
	ctx, s := context.Background(), mem.New()
	l := NewLibrary(s)
	one := keep(t, l, "one", some(300, 4000))
	two := keep(t, l, "two", some(310, 4000))
	if swept := sweep(t, l, "shop/one", "shop/two"); swept != 0 {
		t.Fatalf("%d swept while all are in use", swept)
	}
	sweep(t, l, "shop/two")
	sameObjects(t, some(310, 4000), load(t, l, "two", two))
	var gone *store.NotFound
	if _, err := l.Load(ctx, "shop", "one", one.Digest); !errors.As(err, &gone) {
		t.Errorf("the deleted one: %v, want NotFound", err)
	}
	t.Run("not knowing is not gone", func(t *testing.T) {
		unknown := errors.New("the API server does not answer")
		if _, err := l.Sweep(ctx, func(string, string) (bool, error) { return false, unknown }); !errors.Is(err, unknown) {
			t.Errorf("%v", err)
		}
		sameObjects(t, some(310, 4000), load(t, l, "two", two))
	})
	t.Run("a damaged manifest keeps every pack", func(t *testing.T) {
		keep(t, l, "three", some(5, 4000))
		if err := s.Put(ctx, manifestName("shop", "three"), []byte("rot")); err != nil {
			t.Fatal(err)
		}
		packs := len(must(s.List(ctx, shelfPacks)))
		sweep(t, l, "shop/three")
		if left := len(must(s.List(ctx, shelfPacks))); left != packs {
			t.Errorf("%d of %d packs are left", left, packs)
		}
		four := keep(t, l, "four", some(5, 4000))
		sameObjects(t, some(5, 4000), load(t, l, "four", four))
		if sweep(t, l); len(must(s.List(ctx, ""))) != 0 {
			t.Error("with nothing in use something is left")
		}
	})
}

// A store that fails at any write leaves no snapshot, and the next try succeeds.
func TestAKeepThatFailsLeavesNoSnapshot(t *testing.T) {
	ctx, full := context.Background(), errors.New("disk full")
	for _, name := range []string{"pack", "manifest"} {
		s := mem.New()
		l := NewLibrary(s)
		objects := some(3, 400)
		// Calls of a first Keep: two lists, one pack, one manifest.
		for range map[string]int{"pack": 2, "manifest": 3}[name] {
			s.FailNext(nil)
		}
		s.FailNext(full)
		if _, err := l.Keep(ctx, "shop", "one", objects); !errors.Is(err, full) {
			t.Fatalf("%s: %v", name, err)
		}
		if left := must(s.List(ctx, shelfManifests)); len(left) != 0 {
			t.Errorf("%s: %v is left", name, left)
		}
		sameObjects(t, objects, load(t, l, "one", keep(t, l, "one", objects)))
	}
}

func TestEveryByteIsChecked(t *testing.T) {
	ctx := context.Background()
	for _, shelf := range []string{shelfPacks, shelfManifests} {
		s := mem.New()
		l := NewLibrary(s)
		kept := keep(t, l, "one", some(3, 100))
		blob := must(s.List(ctx, shelf))[0].Name
		good := must(s.Get(ctx, blob))
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			_ = s.Put(ctx, blob, bad)
			if objects, err := l.Load(ctx, "shop", "one", kept.Digest); err == nil {
				// zstd has bits that mean nothing; what counts is that no wrong object comes out.
				sameObjects(t, some(3, 100), objects)
			}
		}
	}
}

func TestWhatUnpacksToTooMuchIsRefused(t *testing.T) {
	bomb := encoder.EncodeAll(make([]byte, maxUnpacked+1), nil)
	if _, err := decodePack(bomb); err == nil || !strings.Contains(err.Error(), "unpack") {
		t.Errorf("%d bytes that unpack to %d: %v", len(bomb), maxUnpacked+1, err)
	}
	if _, err := decodeManifest(bomb); err == nil {
		t.Error("the same as a manifest is read")
	}
	for _, raw := range []string{"", "LBP", "LBP2", "LBP1\x05abc", "LBP1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if _, err := decodePack(encoder.EncodeAll([]byte(raw), nil)); err == nil {
			t.Errorf("%q is taken for a pack", raw)
		}
	}
}

// Restore applies a wave after the one before it: this is the order of what is looked at.
func TestTheOrderOfARestore(t *testing.T) {
	var objects []*unstructured.Unstructured
	for _, kind := range []string{
		"batch/v1 CronJob", "autoscaling/v2 HorizontalPodAutoscaler", "apps/v1 Deployment", "example.com/v1 Widget", "v1 Service",
		"v1 PersistentVolumeClaim", "v1 PersistentVolume", "v1 Secret", "rbac.authorization.k8s.io/v1 RoleBinding",
		"rbac.authorization.k8s.io/v1 Role", "v1 ServiceAccount", "v1 Namespace", "networking.k8s.io/v1 NetworkPolicy",
	} {
		version, name, _ := strings.Cut(kind, " ")
		o := &unstructured.Unstructured{}
		o.SetGroupVersionKind(gvk(version, name))
		o.SetName("a")
		objects = append(objects, o)
	}
	var waves []string
	for _, w := range byWaves(objects) {
		waves = append(waves, strings.ReplaceAll(strings.Join(names(w), " "), " a", ""))
	}
	want := []string{
		"Namespace", "ServiceAccount NetworkPolicy Role", "Secret RoleBinding", "PersistentVolume", "PersistentVolumeClaim",
		"Service", "Widget", "Deployment", "HorizontalPodAutoscaler CronJob",
	}
	if !slices.Equal(waves, want) {
		t.Errorf("waves:\n%s\nwant:\n%s", strings.Join(waves, "\n"), strings.Join(want, "\n"))
	}
}
