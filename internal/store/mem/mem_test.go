package mem_test

import (
	"context"
	"errors"
	"testing"

	"lifeboat.dev/lifeboat/internal/store"
	"lifeboat.dev/lifeboat/internal/store/mem"
	"lifeboat.dev/lifeboat/internal/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return mem.New() })
}

func TestFailNextFailsOneCallAndChangesNothing(t *testing.T) {
	ctx, s, full := context.Background(), mem.New(), errors.New("disk full")
	s.FailNext(full)
	if err := s.Put(ctx, "packs/a", []byte("x")); !errors.Is(err, full) {
		t.Fatalf("Put: %v, want %v", err, full)
	}
	var missing *store.NotFound
	if _, err := s.Get(ctx, "packs/a"); !errors.As(err, &missing) {
		t.Fatalf("after a failed Put, Get: %v, want NotFound", err)
	}
	if err := s.Put(ctx, "packs/a", []byte("x")); err != nil {
		t.Fatalf("the second Put: %v", err)
	}
}
