// Package hooktest runs the commands of Rules on this machine instead of in pods: real shells, pipes and signals, where there is no
// kubelet.
package hooktest

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"lifeboat.dev/lifeboat/internal/hook"
)

// Machine runs commands. In them POD is the name of the pod, CONTAINER that of the container, and DIR a directory of the test's own, where they run.
type Machine struct {
	t   *testing.T
	Dir string

	mu    sync.Mutex
	cut   []context.CancelCauseFunc
	alive sync.WaitGroup
	// refuse is what connections fail with while it is set.
	refuse error
}

// New returns a Machine whose commands end with the test.
func New(t *testing.T) *Machine {
	m := &Machine{t: t, Dir: t.TempDir()}
	t.Cleanup(func() {
		m.Crash()
		m.alive.Wait()
	})
	return m
}

// Crash cuts every connection, as the end of the manager does. Commands that were run without a standard input go on.
func (m *Machine) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, cut := range m.cut {
		cut(errors.New("the connection was cut"))
	}
	m.cut = nil
}

// Refuse lets no connection come about, until it is called with nil.
func (m *Machine) Refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = err
}

// Run implements hook.Exec.
func (m *Machine) Run(ctx context.Context, in hook.Container, command []string, stdin io.Reader, out, errs io.Writer) error {
	m.mu.Lock()
	if err := m.refuse; err != nil {
		m.mu.Unlock()
		return err
	}
	ctx, cut := context.WithCancelCause(ctx)
	m.cut = append(m.cut, cut)
	m.mu.Unlock()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = m.Dir
	cmd.Env = append(os.Environ(), "POD="+in.Pod, "CONTAINER="+in.Name, "DIR="+m.Dir)
	cmd.Stdout, cmd.Stderr = out, errs
	var closing func()
	if stdin != nil {
		pipe, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		closing = func() { _ = pipe.Close() }
		go func() {
			_, _ = io.Copy(pipe, stdin)
			closing()
		}()
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	m.alive.Go(func() { ended <- cmd.Wait() })
	select {
	case <-ctx.Done():
		if closing != nil {
			closing()
		}
		return context.Cause(ctx)
	case err := <-ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return &hook.Exited{Code: exit.ExitCode()}
		}
		return err
	}
}

// Lines are those of a file that commands wrote in the Machine's directory; none when there is no such file.
func (m *Machine) Lines(file string) []string {
	m.t.Helper()
	raw, err := os.ReadFile(m.Dir + "/" + file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return strings.Fields(string(raw))
}
