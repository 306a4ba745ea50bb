package engine_test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// targetConfigEnv makes this test binary a target mover: see TestMain.
const targetConfigEnv = "LIFEBOAT_TEST_TARGET_CONFIG"

func TestMain(m *testing.M) {
	path := os.Getenv(targetConfigEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	cfg, err := engine.LoadTargetConfig(path)
	if err == nil {
		err = engine.RunTarget(context.Background(), cfg, "test", quiet())
	}
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}

// process starts the target as a process of its own.
func (s *site) process() *exec.Cmd {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "target.json")
	raw, err := json.Marshal(s.target)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), targetConfigEnv+"="+path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// A target process is killed again and again while sessions run; each session ends with its point all the same.
func TestATargetProcessThatIsKilled(t *testing.T) {
	s := newSite(t, 80<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	target := s.process()
	for i, point := range []string{"p1", "p2", "p3"} {
		s.write(int64(i)<<20, 24<<20, uint64(i), false)
		done := make(chan engine.Report, 1)
		cfg := s.session(point)
		cfg.BandwidthLimit = 60 << 20 // so that there is something to kill
		go func() { done <- s.run(cfg) }()
		for range 2 {
			// Somewhere in the middle, wherever that is.
			past := rng.Int64N(80 << 20)
			s.await(func(st engine.State) bool {
				return st.Committed != nil && st.Committed.ID == point || st.Point == point && st.BytesDone >= past
			})
			_ = target.Process.Signal(syscall.SIGKILL)
			_ = target.Wait()
			target = s.process()
			s.await(func(st engine.State) bool { return st.Ready })
		}
		r := <-done
		if !r.Done || r.BytesResent != 0 {
			t.Fatalf("%s: %+v", point, r)
		}
		s.mustEqual()
	}
}
