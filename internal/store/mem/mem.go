// Package mem is the store in memory: for tests, and for tools that need no place to keep things.
//
// It passes the same contract as every backend and can be told to fail. It never outlives its process.
package mem

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"

	"lifeboat.dev/lifeboat/internal/store"
)

// Store keeps blobs in a map.
type Store struct {
	mu    sync.Mutex
	blobs map[string][]byte
	fail  []error
	puts  int
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store { return &Store{blobs: map[string][]byte{}} }

// FailNext makes the next call fail with err and change nothing. Several calls queue up.
func (s *Store) FailNext(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = append(s.fail, err)
}

// Puts is how many blobs were written so far: what a snapshot cost.
func (s *Store) Puts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.puts
}

// Put writes the blob whole or not at all.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.next(ctx); err != nil {
		return err
	}
	s.blobs[name] = bytes.Clone(data)
	s.puts++
	return nil
}

// Get returns a copy of the blob.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.next(ctx); err != nil {
		return nil, err
	}
	data, ok := s.blobs[name]
	if !ok {
		return nil, &store.NotFound{Name: name}
	}
	return bytes.Clone(data), nil
}

// List returns the blobs whose names begin with prefix, by name.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.next(ctx); err != nil {
		return nil, err
	}
	var found []store.Info
	for name, data := range s.blobs {
		if strings.HasPrefix(name, prefix) {
			found = append(found, store.Info{Name: name, Size: int64(len(data))})
		}
	}
	slices.SortFunc(found, func(a, b store.Info) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// Delete removes the blob if it is there.
func (s *Store) Delete(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.next(ctx); err != nil {
		return err
	}
	delete(s.blobs, name)
	return nil
}

func (s *Store) next(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(s.fail) == 0 {
		return nil
	}
	err := s.fail[0]
	s.fail = s.fail[1:]
	return err
}
