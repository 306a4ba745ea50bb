package tree

import (
	"context"
	"errors"
	"testing"
)

// A unit that has its place among those to send, when the session ends before a reader takes it, is not waited for.
func TestAUnitThatNoReaderTakesIsNotWaitedFor(t *testing.T) {
	over := errors.New("the session is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	// Nobody reads: the unit gets its place, and its work is handed to nobody.
	s := &sender{ctx: ctx, cancel: cancel, units: make(chan *unit), work: make(chan *unit)}
	handed := make(chan error, 1)
	go func() { handed <- (&planner{s: s}).hand(newUnit()) }()
	u := <-s.units
	cancel(over)
	if err := <-handed; !errors.Is(err, over) {
		t.Errorf("handing it on: %v", err)
	}
	if !u.isReady() || !errors.Is(u.err, over) {
		t.Errorf("ready %v, error %v: it would be waited for, or be taken for read", u.isReady(), u.err)
	}
}
