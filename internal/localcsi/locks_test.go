package localcsi

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
)

func TestLocksOfDifferentVolumesDoNotWaitForEachOther(t *testing.T) {
	var l locks
	release, err := l.take(t.Context(), "a")
	must(t, err)
	other, err := l.take(t.Context(), "b")
	must(t, err)
	other()
	release()
	if len(l.held) != 0 {
		t.Errorf("%d locks remain", len(l.held))
	}
}

func TestAWaiterGivesUpWithItsCaller(t *testing.T) {
	var l locks
	release, err := l.take(t.Context(), "a")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.take(ctx, "b", "a")
	wantCode(t, err, codes.Aborted)
	release()
	again, err := l.take(t.Context(), "a", "b") // what the waiter had is free again
	must(t, err)
	again()
}

func TestOppositeOrdersDoNotBlockForever(t *testing.T) {
	var l locks
	var running int // only ever changed under both locks
	var group sync.WaitGroup
	for i := range 8 {
		names := []string{"a", "b"}
		if i%2 == 1 {
			names = []string{"b", "a"}
		}
		group.Go(func() {
			for range 200 {
				release, err := l.take(t.Context(), names...)
				if err != nil {
					t.Error(err)
					return
				}
				if running++; running != 1 {
					t.Error("two have the lock")
				}
				running--
				release()
			}
		})
	}
	group.Wait()
}
