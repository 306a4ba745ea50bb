package delta

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
)

// workers is how many goroutines work side by side: some wait for a disk while others compute.
func workers() int { return max(2, min(8, 2*runtime.GOMAXPROCS(0))) }

// inOrder takes inputs from next until io.EOF, works on several at a time, and gives the results to take in the order
// of the inputs. next and take run in one goroutine each; at most depth inputs are between the two, which bounds
// memory. The first error ends it all and is returned once every goroutine has ended.
func inOrder[In, Out any](ctx context.Context, depth int, next func() (In, error), work func(In) (Out, error), take func(Out) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type slot struct {
		in   In
		out  Out
		err  error
		done chan struct{}
	}
	order, jobs := make(chan *slot, depth), make(chan *slot, depth)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(jobs)
		defer close(order)
		for ctx.Err() == nil {
			in, err := next()
			if errors.Is(err, io.EOF) {
				return
			}
			s := &slot{in: in, err: err, done: make(chan struct{})}
			select {
			case order <- s:
			case <-ctx.Done():
				return
			}
			if err != nil {
				close(s.done)
				return
			}
			select {
			case jobs <- s:
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers() {
		wg.Go(func() {
			for s := range jobs {
				if ctx.Err() == nil {
					s.out, s.err = work(s.in)
				}
				close(s.done)
			}
		})
	}
	err := func() error {
		for s := range order {
			select {
			case <-s.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if s.err != nil {
				return s.err
			}
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := take(s.out); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	}()
	cancel(err)
	wg.Wait()
	return err
}
