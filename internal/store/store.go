// Package store says what a place that keeps application snapshots has to promise: blobs under names,
// each there whole or not at all.
//
// It knows nothing of what the blobs mean, who may read them, or where a backend puts them; the backends
// are the folders below, and storetest is the contract each of them passes.
package store

import (
	"context"
	"fmt"
	"strings"
)

// MaxName bounds the length of a name, in bytes; every backend accepts this much.
const MaxName = 512

// maxShelf is what fits a Kubernetes label.
const maxShelf = 63

// Store keeps blobs under names such as "packs/4f2a…" or "manifests/shop/nightly". A name's first segment is
// its shelf. Every method may be repeated after any error. A name has one writer at a time; who shares a store
// between writers arranges that.
type Store interface {
	// Put writes the blob whole or not at all; a reader never sees a part. An existing blob of that name
	// is replaced: a reader then gets the old one or the new one.
	Put(ctx context.Context, name string, data []byte) error
	// Get returns the blob, or *NotFound, or *Damaged when what is kept is not what was put.
	Get(ctx context.Context, name string) ([]byte, error)
	// List returns the whole blobs whose names begin with prefix, sorted by name.
	List(ctx context.Context, prefix string) ([]Info, error)
	// Delete removes the blob. One that is not there is no error.
	Delete(ctx context.Context, name string) error
}

// Info is what a listing tells of a blob.
type Info struct {
	Name string
	// Size of the data in bytes.
	Size int64
}

// Blob is a named blob on its way from one store to another.
type Blob struct {
	Name string
	Data []byte
}

// NotFound says that the store has no whole blob of that name.
type NotFound struct{ Name string }

func (e *NotFound) Error() string { return fmt.Sprintf("the store has no %s", e.Name) }

// Damaged says that a blob is there and cannot be trusted.
type Damaged struct {
	Name string
	// Found tells what is wrong with it.
	Found string
}

func (e *Damaged) Error() string {
	return fmt.Sprintf("%s is damaged in the store: %s", e.Name, e.Found)
}

// BadName says that a name cannot be kept by every backend.
type BadName struct{ Name, Problem string }

func (e *BadName) Error() string { return fmt.Sprintf("store name %q: %s", e.Name, e.Problem) }

// CheckName refuses names that some backend could not keep: a name is two or more segments of letters,
// digits, '.', '-' and '_', joined by '/', and no segment is "." or "..".
func CheckName(name string) error {
	if len(name) > MaxName {
		return &BadName{name, fmt.Sprintf("longer than %d bytes", MaxName)}
	}
	segments := strings.Split(name, "/")
	if len(segments) < 2 {
		return &BadName{name, "has no shelf: a name is <shelf>/<name>"}
	}
	if len(segments[0]) > maxShelf {
		return &BadName{name, fmt.Sprintf("has a shelf longer than %d bytes", maxShelf)}
	}
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return &BadName{name, fmt.Sprintf("has the segment %q", s)}
		}
		if i := strings.IndexFunc(s, notNameRune); i >= 0 {
			return &BadName{name, fmt.Sprintf("has the character %q", s[i])}
		}
	}
	return nil
}

func notNameRune(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	case r == '.', r == '-', r == '_':
		return false
	}
	return true
}

// Shelf is a name's first segment.
func Shelf(name string) string {
	shelf, _, _ := strings.Cut(name, "/")
	return shelf
}
