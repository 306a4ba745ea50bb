package engine_test

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// M-105: a replica is made what its point holds, whatever it holds now: changed, zeroed, grown since; only what differs is written; and when
// it was interrupted anywhere, doing it again ends the same.
func TestARollbackMakesTheReplicaItsPoint(t *testing.T) {
	const size = 10<<20 + 4096
	random := rand.New(rand.NewSource(1))
	point := make([]byte, size)
	random.Read(point[:6<<20])
	now := append(bytes.Clone(point), make([]byte, 3<<20)...)
	copy(now[1<<20:], "changed")
	copy(now[8<<20:], "written where the point has nothing")
	clear(now[2<<20 : 3<<20])
	copy(now[size+100:], "written after it grew")
	wanted := append(bytes.Clone(point), make([]byte, 3<<20)...)

	dir := t.TempDir()
	from, to := filepath.Join(dir, "point"), filepath.Join(dir, "replica")
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(from, point)
	cfg := engine.RollbackConfig{Replication: "shop/app", Point: "p1", Volumes: []engine.RollbackVolume{{Name: "data", From: from, Device: to}}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, begin := range map[string][]byte{"as it is": now, "interrupted half-way": append(bytes.Clone(wanted[:5<<20]), now[5<<20:]...), "done already": wanted} {
		write(to, begin)
		r := engine.RunRollback(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if !r.Done {
			t.Fatalf("%s: %+v", name, r)
		}
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, wanted) {
			t.Errorf("%s: the replica is not the point: %v", name, err)
		}
		if name == "done already" && r.BytesChanged != 0 || r.BytesChanged > 2<<20 {
			t.Errorf("%s: %d bytes written", name, r.BytesChanged)
		}
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	write(to, now)
	if r := engine.RunRollback(stopped, cfg, slog.New(slog.DiscardHandler)); r.Done {
		t.Error("a rollback that was stopped says that it is done")
	}
	write(to, now[:1<<20])
	if r := engine.RunRollback(t.Context(), cfg, slog.New(slog.DiscardHandler)); r.Done || r.Kind != engine.KindConfiguration {
		t.Errorf("onto a device that is too small: %+v", r)
	}
	for _, bad := range []engine.RollbackConfig{{}, {Replication: "a/b", Point: "p"}, {Replication: "a/b", Point: "p", Volumes: []engine.RollbackVolume{{Name: "x", From: "y"}}}} {
		if bad.Validate() == nil {
			t.Errorf("accepted: %+v", bad)
		}
	}
}
