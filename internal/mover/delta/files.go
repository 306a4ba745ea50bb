package delta

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"lifeboat.dev/lifeboat/internal/mover/spool"
)

// Folder keeps notes in a folder of the operating system, which it makes when it is first needed.
type Folder string

// Open implements Notes.
func (f Folder) Open(name string, create bool) (spool.File, error) {
	mode := os.O_RDWR
	if create {
		mode |= os.O_CREATE
		if err := os.MkdirAll(string(f), 0o700); err != nil {
			return nil, err
		}
	}
	file, err := os.OpenFile(filepath.Join(string(f), name), mode, 0o600)
	if err != nil {
		return nil, err
	}
	return noteFile{file}, nil
}

// Remove implements Notes.
func (f Folder) Remove(name string) error {
	if err := os.Remove(filepath.Join(string(f), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// SyncDir implements Notes. The folder's own name is made durable too: it may be new.
func (f Folder) SyncDir() error {
	err := syncFolder(string(f))
	if errors.Is(err, os.ErrNotExist) {
		return nil // there was never a note
	}
	return errors.Join(err, syncFolder(filepath.Dir(string(f))))
}

type noteFile struct{ *os.File }

// Size implements spool.File.
func (f noteFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// NewFile is a file that has its name only once it is whole and durable: until Keep the file of that name, if any, is
// as it was.
type NewFile struct {
	*os.File
	path string
}

// CreateFile begins the file at path.
func CreateFile(path string) (*NewFile, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.part")
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return &NewFile{File: f, path: path}, nil
}

// Keep makes the file durable and gives it its name.
func (f *NewFile) Keep() error {
	err := f.Chmod(0o644)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), f.path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(f.path))
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", f.path, err)
	}
	return nil
}

// Discard closes the file and, unless it was kept, removes it.
func (f *NewFile) Discard() {
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// Spool copies a delta that can be read only once into a nameless file in folder, which vanishes when it is closed.
// An empty folder is that for temporary files.
func Spool(in io.Reader, folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, "lifeboat-delta-*")
	if err != nil {
		return nil, fmt.Errorf("spool delta: %w", err)
	}
	_ = os.Remove(f.Name())
	_, err = io.Copy(f, in)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("spool delta in %s: %w; TMPDIR names a folder with more space", filepath.Dir(f.Name()), err)
	}
	return f, nil
}
