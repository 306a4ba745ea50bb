package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// FS is the part of a file system the spool needs, with the weak promises a crash leaves of one: what was not synced
// may be there, in part, or not. Names are relative to the spool's folder.
type FS interface {
	// Open opens a file to read and write; with create, it is made when missing.
	Open(name string, create bool) (File, error)
	// Names lists the files, sorted.
	Names() ([]string, error)
	// Rename replaces the file of the new name, if any. It is durable after SyncDir.
	Rename(from, to string) error
	// Remove removes a file; a missing one is no error. It is durable after SyncDir.
	Remove(name string) error
	// SyncDir makes creations, renames and removals durable.
	SyncDir() error
}

// File is an open file of the spool.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Truncate sets the length.
	Truncate(size int64) error
	// Size is the current length.
	Size() (int64, error)
	// Sync makes content and length durable, not the name.
	Sync() error
}

// Dir is an FS over a folder of the operating system.
type Dir struct {
	path string
	lock *os.File
}

// InUse reports that another process holds the spool.
type InUse struct{ Path string }

func (u *InUse) Error() string {
	return fmt.Sprintf("spool %s is in use by another target: only one may write a replica", u.Path)
}

// OpenDir makes the folder when it is missing and locks it against other processes until Close.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock spool: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &InUse{Path: path}
		}
		return nil, fmt.Errorf("lock spool %s: %w", path, err)
	}
	return &Dir{path: path, lock: lock}, nil
}

const lockName = "lock"

// Close lets go of the lock.
func (d *Dir) Close() error { return d.lock.Close() }

// Open implements FS.
func (d *Dir) Open(name string, create bool) (File, error) {
	mode := os.O_RDWR
	if create {
		mode |= os.O_CREATE
	}
	f, err := os.OpenFile(filepath.Join(d.path, name), mode, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Names implements FS.
func (d *Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name() != lockName {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Rename implements FS.
func (d *Dir) Rename(from, to string) error {
	return os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to))
}

// Remove implements FS.
func (d *Dir) Remove(name string) error {
	if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// SyncDir implements FS.
func (d *Dir) SyncDir() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

type osFile struct{ *os.File }

// Size implements File.
func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
