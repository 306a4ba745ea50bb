package hook

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Nobody closes the standard input, as when the manager's node has lost its power and nothing has noticed.
func TestABackgroundCommandGoesOnByItselfAfterItsLimit(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", background, "lifeboat", "30", "1", `echo held; ${WAIT_CMD}; echo gone`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	began := time.Now()
	out, err := cmd.Output()
	if err != nil || strings.Join(strings.Fields(string(out)), " ") != "held gone" {
		t.Errorf("it said %q: %v", out, err)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 20*time.Second {
		t.Errorf("it held for %s, want a second", took)
	}
}

// A command that does not go on is ended as a whole.
func TestABackgroundCommandThatDoesNotEndIsEnded(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", background, "lifeboat", "1", "1", `sleep 60; ${WAIT_CMD}`)
	began := time.Now()
	if err := cmd.Run(); err == nil || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func TestOnlyTheEndOfWhatACommandPrintsIsTold(t *testing.T) {
	var w tail
	for range 100 {
		_, _ = w.Write([]byte("a secret that was printed long before; "))
	}
	_, _ = w.Write([]byte("\x1b[1mthe end\n"))
	if told := w.told(); len(told) > tailSize+2 || !strings.HasSuffix(told, "the end") || strings.ContainsRune(told, '\x1b') {
		t.Errorf("%d bytes are told: %q", len(told), told)
	}
}
