package standalone

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Member is one of a group: a name that both hosts know it by, and the device, file or folder here.
type Member struct{ Name, Path string }

// instant is a group at one time: a clone of each file where the file system can, else the sources themselves, which
// nobody may write until the session has ended.
type instant struct {
	Time  time.Time `json:"time"`
	Parts []part    `json:"parts"`
}

// part is one member at an instant.
type part struct {
	Source string `json:"source"`
	Clone  string `json:"clone,omitempty"` // empty: the source itself is read
	// Size and Changed are the source's when the instant was cut; a device has no Changed.
	Size    int64     `json:"size,omitempty"`
	Changed time.Time `json:"changed,omitzero"`
}

// path is what is read.
func (p part) path() string {
	if p.Clone != "" {
		return p.Clone
	}
	return p.Source
}

// live reports that some member is read from its source.
func (i instant) live() bool {
	for _, p := range i.Parts {
		if p.Clone == "" {
			return true
		}
	}
	return false
}

// plan says what an instant of the members at this time would be, with a clone of each file.
func plan(members []Member, point string, now time.Time) (instant, error) {
	i := instant{Time: now}
	for _, m := range members {
		full, err := filepath.Abs(m.Path)
		if err != nil {
			return instant{}, fmt.Errorf("find %s: %w", m.Path, err)
		}
		p, err := look(full)
		if err != nil {
			return instant{}, err
		}
		if !p.Changed.IsZero() {
			// Beside the source: a clone shares its blocks, so it must lie on the same file system.
			p.Clone = filepath.Join(filepath.Dir(full), "."+filepath.Base(full)+".lifeboat-"+point)
		}
		i.Parts = append(i.Parts, p)
	}
	return i, nil
}

// look is a member as it is now.
func look(path string) (part, error) {
	info, err := os.Stat(path)
	if err != nil {
		return part{}, fmt.Errorf("look at source: %w", err)
	}
	p := part{Source: path}
	switch {
	case info.Mode().IsRegular():
		p.Size, p.Changed = info.Size(), info.ModTime()
	case info.IsDir():
	default:
		f, err := os.Open(path)
		if err != nil {
			return part{}, fmt.Errorf("look at source: %w", err)
		}
		defer f.Close()
		if p.Size, err = f.Seek(0, io.SeekEnd); err != nil {
			return part{}, fmt.Errorf("size of source %s: %w", path, err)
		}
	}
	return p, nil
}

// cut takes the planned instant. Where one file cannot be cloned, none is: a group of which some members stand still
// and others move would be no instant at all.
func (i *instant) cut() error {
	for n := range i.Parts {
		p := &i.Parts[n]
		if p.Clone == "" {
			return i.uncut()
		}
		err := clone(p.Source, p.Clone)
		switch {
		case err == nil:
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL),
			errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
			return i.uncut()
		default:
			return errors.Join(fmt.Errorf("take an instant of %s: %w", p.Source, err), i.remove())
		}
	}
	return nil
}

func (i *instant) uncut() error {
	err := i.remove()
	for n := range i.Parts {
		i.Parts[n].Clone = ""
	}
	return err
}

// remove takes the clones away; what is away already is fine.
func (i instant) remove() error {
	var errs []error
	for _, p := range i.Parts {
		if p.Clone == "" {
			continue
		}
		if err := os.Remove(p.Clone); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove instant: %w", err))
		}
	}
	return errors.Join(errs...)
}

// gone says why the instant cannot be read any more; empty when it can. Of a device or a folder nobody can tell
// whether it was written since.
func (i instant) gone() string {
	for _, p := range i.Parts {
		now, err := look(p.path())
		switch {
		case err != nil:
			return err.Error()
		case now.Size != p.Size:
			return fmt.Sprintf("%s has %d bytes now, %d when the instant was cut", p.path(), now.Size, p.Size)
		case p.Clone == "" && !now.Changed.Equal(p.Changed):
			return fmt.Sprintf("%s was written at %s, after the instant was cut", p.Source, now.Changed.Format(time.RFC3339))
		}
	}
	return ""
}

// clone makes a file that shares all blocks with another one, and is not changed by writes to it.
func clone(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err != nil {
		return errors.Join(err, out.Close(), os.Remove(to))
	}
	// The clone must survive a crash as it is: it may become a base.
	return errors.Join(out.Sync(), out.Close())
}
