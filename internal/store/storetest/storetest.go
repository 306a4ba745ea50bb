// Package storetest is the contract of package store as a test suite: every backend runs it.
//
// It knows only the interface; how a backend is made and torn down is the caller's.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"lifeboat.dev/lifeboat/internal/store"
)

// Run proves that the stores open returns keep the contract. Each call of open gives an empty store.
func Run(t *testing.T, open func(*testing.T) store.Store) {
	for _, c := range []struct {
		name string
		rule func(*testing.T, store.Store)
	}{
		{"what was put is got", putThenGet},
		{"what was never put is NotFound", absent},
		{"a second put replaces the first, longer or shorter", replace},
		{"what the store returns is the caller's own", ownership},
		{"a listing is sorted, sized, and only under its prefix", list},
		{"deleted is gone, twice is no error", remove},
		{"names that some backend cannot keep are refused by all", badNames},
		{"a reader never sees a part while a blob is replaced", neverAPart},
		{"a cancelled context ends the call", cancelled},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) { c.rule(t, open(t)) })
	}
}

// sizes cross what a backend may split at: nothing, one byte, and more than two Kubernetes Secrets hold.
var sizes = []int{0, 1, 4096, 700 << 10, 768 << 10, 768<<10 + 1, 2500 << 10}

func putThenGet(t *testing.T, s store.Store) {
	for _, size := range sizes {
		name, want := fmt.Sprintf("packs/size-%d", size), noise(uint64(size), size)
		put(t, s, name, want)
		if got := get(t, s, name); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d other ones", size, len(got))
		}
	}
}

func absent(t *testing.T, s store.Store) {
	put(t, s, "packs/there", []byte("x"))
	for _, name := range []string{"packs/not-there", "packs/the", "manifests/there"} {
		mustBeAbsent(t, s, name)
	}
}

func replace(t *testing.T, s store.Store) {
	const name = "manifests/shop/nightly"
	for round, size := range []int{10, 2500 << 10, 900 << 10, 0, 5} {
		want := noise(uint64(100+round), size)
		put(t, s, name, want)
		if got := get(t, s, name); !bytes.Equal(got, want) {
			t.Fatalf("put %d of %d bytes: got %d others", round, size, len(got))
		}
		if infos := mustList(t, s, ""); len(infos) != 1 || infos[0].Size != int64(size) {
			t.Fatalf("put %d: the store lists %+v, want one blob of %d bytes", round, infos, size)
		}
	}
	put(t, s, name, []byte("same"))
	put(t, s, name, []byte("same"))
	if got := get(t, s, name); string(got) != "same" {
		t.Fatalf("the same twice: got %q", got)
	}
}

func ownership(t *testing.T, s store.Store) {
	data := []byte("before")
	put(t, s, "packs/a", data)
	copy(data, "AFTER!")
	got := get(t, s, "packs/a")
	if string(got) != "before" {
		t.Fatalf("changing the caller's slice changed the store: %q", got)
	}
	copy(got, "AFTER!")
	if again := get(t, s, "packs/a"); string(again) != "before" {
		t.Fatalf("changing what Get returned changed the store: %q", again)
	}
}

func list(t *testing.T, s store.Store) {
	for _, name := range []string{"packs/b", "packs/a", "manifests/shop/two", "manifests/shop/one", "manifests/shopping/x"} {
		put(t, s, name, []byte(name))
	}
	for prefix, want := range map[string]string{
		"packs/":          "packs/a packs/b",
		"manifests/":      "manifests/shop/one manifests/shop/two manifests/shopping/x",
		"manifests/shop/": "manifests/shop/one manifests/shop/two",
		"manifests/shop":  "manifests/shop/one manifests/shop/two manifests/shopping/x",
		"":                "manifests/shop/one manifests/shop/two manifests/shopping/x packs/a packs/b",
		"nothing/":        "",
	} {
		var names []string
		for _, info := range mustList(t, s, prefix) {
			names = append(names, info.Name)
			if info.Size != int64(len(info.Name)) {
				t.Errorf("%s: size %d, want %d", info.Name, info.Size, len(info.Name))
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("prefix %q lists %q, want %q", prefix, got, want)
		}
	}
}

func remove(t *testing.T, s store.Store) {
	put(t, s, "packs/small", []byte("x"))
	put(t, s, "packs/large", noise(7, 2500<<10))
	for _, name := range []string{"packs/small", "packs/large", "packs/small", "packs/never"} {
		if err := s.Delete(context.Background(), name); err != nil {
			t.Fatalf("delete %s: %v", name, err)
		}
		mustBeAbsent(t, s, name)
	}
	if infos := mustList(t, s, ""); len(infos) != 0 {
		t.Fatalf("after deleting everything the store lists %+v", infos)
	}
}

func badNames(t *testing.T, s store.Store) {
	for _, name := range []string{"", "flat", "/packs", "packs/", "packs//a", "packs/../a", "packs/.", "packs/a b", "packs/ä", "p/" + strings.Repeat("n", store.MaxName)} {
		var bad *store.BadName
		if err := s.Put(context.Background(), name, []byte("x")); !errors.As(err, &bad) {
			t.Errorf("Put %q: %v, want BadName", name, err)
		}
	}
	long := "manifests/" + strings.Repeat("n", 253) + "/" + strings.Repeat("s", 200)
	put(t, s, long, []byte("x"))
	get(t, s, long)
}

func neverAPart(t *testing.T, s store.Store) {
	const name = "manifests/shop/nightly"
	versions := [][]byte{noise(1, 1600<<10), noise(2, 900<<10), noise(3, 10)}
	put(t, s, name, versions[0])
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Add(1)
	go func() {
		defer writer.Done()
		defer close(done)
		for i := range 12 {
			if err := s.Put(context.Background(), name, versions[i%len(versions)]); err != nil {
				t.Errorf("put %d: %v", i, err)
				return
			}
		}
	}()
	for reads := 0; ; reads++ {
		got, err := s.Get(context.Background(), name)
		if err != nil {
			t.Fatalf("read %d while writing: %v", reads, err)
		}
		if !isOneOf(got, versions) {
			t.Fatalf("read %d while writing: %d bytes that nobody put", reads, len(got))
		}
		select {
		case <-done:
			writer.Wait()
			return
		default:
		}
	}
}

func cancelled(t *testing.T, s store.Store) {
	put(t, s, "packs/a", []byte("x"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Put(ctx, "packs/b", []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v, want context.Canceled", err)
	}
	if _, err := s.Get(ctx, "packs/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v, want context.Canceled", err)
	}
	mustBeAbsent(t, s, "packs/b")
}

func put(t *testing.T, s store.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(context.Background(), name, data); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func get(t *testing.T, s store.Store, name string) []byte {
	t.Helper()
	data, err := s.Get(context.Background(), name)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	return data
}

func mustList(t *testing.T, s store.Store, prefix string) []store.Info {
	t.Helper()
	infos, err := s.List(context.Background(), prefix)
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	return infos
}

func mustBeAbsent(t *testing.T, s store.Store, name string) {
	t.Helper()
	var missing *store.NotFound
	if _, err := s.Get(context.Background(), name); !errors.As(err, &missing) || missing.Name != name {
		t.Errorf("get %s: %v, want NotFound of that name", name, err)
	}
}

func isOneOf(got []byte, versions [][]byte) bool {
	for _, v := range versions {
		if bytes.Equal(got, v) {
			return true
		}
	}
	return false
}

// noise is size bytes that do not compress, the same for the same seed.
func noise(seed uint64, size int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(data)
	return data
}
