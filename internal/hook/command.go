package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const (
	// grace is how much longer a command's limit in its container is than the manager's: while there is a manager, it is the one to end it.
	grace = 10 * time.Second
	// tailSize is how much of what a failed command wrote to its standard error is told, in bytes. Nothing else of what commands print is:
	// it may be secret.
	tailSize = 200
)

// foreground ends a command that takes too long in the container itself, so that it ends also when nobody waits for it any more. Its
// arguments are seconds and command line.
const foreground = `command -v timeout >/dev/null || { echo "the container has no program timeout, which would end a command that takes too long" >&2; exit 127; }
exec timeout "$1" /bin/sh -c "$2"`

// background gives a command ${WAIT_CMD}: cat, which says what it is told, so that whoever tells it something and hears it again knows that the
// application is quiesced at that moment; and which ends with its standard input, or with the time. Its arguments are the seconds of the
// whole command, those of ${WAIT_CMD}, and the command line.
const background = `for p in timeout cat; do command -v $p >/dev/null || { echo "the container has no program $p, which a background action needs" >&2; exit 127; }; done
WAIT_CMD="timeout $2 cat"; export WAIT_CMD
exec timeout "$1" /bin/sh -c "$3"`

func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// runForeground runs a command that holds nothing to its end.
func runForeground(ctx context.Context, e Exec, in Container, action v1alpha1.RuleAction) error {
	limit := timeoutOf(action)
	ctx, cancel := context.WithTimeout(ctx, limit+grace/2)
	defer cancel()
	var errs tail
	began := time.Now()
	err := e.Run(ctx, in, []string{"/bin/sh", "-c", foreground, "lifeboat", seconds(limit), action.Value}, nil, io.Discard, &errs)
	var exited *Exited
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exited) && time.Since(began) >= limit, errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: the command took longer than %s and was ended", in, limit)
	case errors.As(err, &exited):
		return fmt.Errorf("%s: the command ended with code %d%s", in, exited.Code, errs.told())
	}
	return err
}

// hold is a command that runs in the background and holds the application for as long as its standard input is open.
type hold struct {
	in     Container
	limit  time.Duration // for getting to ${WAIT_CMD}, and for ending
	stdin  *io.PipeWriter
	said   echo
	errs   tail
	cancel context.CancelFunc
	// done is closed when the command has ended or its connection broke; err says how, from then on.
	done chan struct{}
	err  error
}

// start runs a background command, which does not hold before ask has been answered. It ends by itself when it takes twice its limit and holdFor.
func start(ctx context.Context, e Exec, in Container, action v1alpha1.RuleAction, holdFor time.Duration) *hold {
	ctx, cancel := context.WithCancel(ctx)
	reader, writer := io.Pipe()
	h := &hold{in: in, limit: timeoutOf(action), stdin: writer, cancel: cancel, done: make(chan struct{})}
	command := []string{"/bin/sh", "-c", background, "lifeboat", seconds(2*h.limit + holdFor + 2*grace), seconds(holdFor + grace), action.Value}
	go func() {
		h.err = e.Run(ctx, in, command, reader, &h.said, &h.errs)
		_ = reader.Close()
		close(h.done)
	}()
	return h
}

// ask tells the command a line that nobody told it before, and returns nil once the command has said it again: at that moment it is at
// ${WAIT_CMD}. It gives up when the command ends, or with ctx.
func (h *hold) ask(ctx context.Context, line string) error {
	heard := h.said.expect(line)
	go func() { _, _ = io.WriteString(h.stdin, line+"\n") }() // one that was let go hears it no more, which done tells
	select {
	case <-heard:
		return nil
	case <-h.done:
		return h.ended()
	case <-ctx.Done():
		return fmt.Errorf("%s: the command is not at ${WAIT_CMD}: it does not say again what it is told", h.in)
	}
}

// ended says how a command ended that should hold.
func (h *hold) ended() error {
	var exited *Exited
	switch {
	case h.err == nil:
		return fmt.Errorf("%s: the command that holds the application ended before it was told to", h.in)
	case errors.As(h.err, &exited):
		return fmt.Errorf("%s: the command that holds the application ended with code %d before it was told to%s", h.in, exited.Code, h.errs.told())
	}
	return fmt.Errorf("%s: the connection to the command that holds the application is lost: %w", h.in, h.err)
}

func (h *hold) lost() error {
	select {
	case <-h.done:
		return h.ended()
	default:
		return nil
	}
}

// release tells the command to end, and returns at once.
func (h *hold) release() { _ = h.stdin.Close() }

// end waits until a command that was released has ended, for at most its limit.
func (h *hold) end() error {
	defer h.cancel()
	late := time.NewTimer(h.limit)
	defer late.Stop()
	select {
	case <-h.done:
	case <-late.C:
		return fmt.Errorf("%s: the command that held the application has not ended within %s", h.in, h.limit)
	}
	var exited *Exited
	if errors.As(h.err, &exited) {
		return fmt.Errorf("%s: the command that held the application ended with code %d after it was let go%s", h.in, exited.Code, h.errs.told())
	}
	return nil // a lost connection lets go as well
}

// echo listens to what a command says, line by line, and keeps none of it.
type echo struct {
	mu    sync.Mutex
	line  []byte
	heard map[string]chan struct{}
}

// maxLine is the longest line that is compared; the rest of a longer one is dropped.
const maxLine = 512

func (e *echo) expect(line string) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.heard == nil {
		e.heard = map[string]chan struct{}{}
	}
	e.heard[line] = make(chan struct{})
	return e.heard[line]
}

func (e *echo) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range p {
		if b != '\n' {
			if len(e.line) < maxLine {
				e.line = append(e.line, b)
			}
			continue
		}
		for line, heard := range e.heard {
			// What the command said before need not have ended with a line.
			if bytes.HasSuffix(e.line, []byte(line)) {
				close(heard)
				delete(e.heard, line)
			}
		}
		e.line = e.line[:0]
	}
	return len(p), nil
}

// tail keeps the end of what is written.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append([]byte(nil), t.kept[over:]...)
	}
	return len(p), nil
}

// told is what was kept, as the end of a sentence.
func (t *tail) told() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(string(t.kept), ""))
	if text = strings.Join(strings.Fields(text), " "); text == "" {
		return ""
	}
	return ": " + text
}
