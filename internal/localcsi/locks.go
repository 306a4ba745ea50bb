package localcsi

import (
	"context"
	"sort"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// locks gives one lock per name, so that a slow operation on one volume holds up no other.
type locks struct {
	mu   sync.Mutex
	held map[string]*held
}

type held struct {
	free  chan struct{} // holds one token while nobody has the lock
	users int           // holder and waiters; the entry goes when it is 0
}

// take takes the locks of all names, in one order whatever the order given, so that two callers never wait
// for each other. It gives up with Aborted when ctx ends first.
func (l *locks) take(ctx context.Context, names ...string) (release func(), err error) {
	names = append([]string(nil), names...)
	sort.Strings(names)
	var taken []string
	release = func() {
		for _, name := range taken {
			l.give(name)
		}
	}
	for _, name := range names {
		h := l.join(name)
		select {
		case <-h.free:
			taken = append(taken, name)
		case <-ctx.Done():
			l.leave(name)
			release()
			return nil, status.Errorf(codes.Aborted, "another operation on %s is still running", name)
		}
	}
	return release, nil
}

func (l *locks) join(name string) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.held[name]
	if !ok {
		h = &held{free: make(chan struct{}, 1)}
		h.free <- struct{}{}
		if l.held == nil {
			l.held = map[string]*held{}
		}
		l.held[name] = h
	}
	h.users++
	return h
}

func (l *locks) leave(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[name]
	if h.users--; h.users == 0 {
		delete(l.held, name)
	}
}

func (l *locks) give(name string) {
	l.mu.Lock()
	h := l.held[name]
	l.mu.Unlock()
	h.free <- struct{}{}
	l.leave(name)
}

func volumeLock(id string) string   { return "volume " + id }
func snapshotLock(id string) string { return "snapshot " + id }
func groupLock(id string) string    { return "group " + id }
