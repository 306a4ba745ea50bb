package delta

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/spool"
)

// Notes is a folder that keeps notes across a crash. spool.FS is one; Folder is the operating system's.
type Notes interface {
	// Open opens a file; with create, it is made when missing. A missing one is os.ErrNotExist.
	Open(name string, create bool) (spool.File, error)
	// Remove removes a file; a missing one is no error.
	Remove(name string) error
	// SyncDir makes creations and removals durable.
	SyncDir() error
}

// note is what an Apply keeps while it writes: which delta it brings onto which volumes. Its being there is what it
// says; the content is for people.
type note struct {
	Delta   string   `json:"delta"` // its sum
	Point   string   `json:"point"`
	Volumes []string `json:"volumes"` // their identities
}

func (a *application) note() note {
	n := note{Delta: a.end.Sum.String(), Point: a.head.Point}
	for _, t := range a.targets {
		n.Volumes = append(n.Volumes, t.Identity)
	}
	return n
}

// name tells notes apart by all of it.
func (n note) name() string {
	b, _ := json.Marshal(n) // three texts and a list of texts
	sum := blake3.Sum256(b)
	return "apply-" + digest.Digest(sum).String()[:32] + ".json"
}

func readNote(fs Notes, n note) (bool, error) {
	if fs == nil {
		return false, nil
	}
	f, err := fs.Open(n.name(), false)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read note of an apply: %w", err)
	}
	return true, f.Close()
}

// writeNote is durable when it returns: the name first of all, for the name is what counts.
func writeNote(fs Notes, n note) error {
	if fs == nil {
		return nil
	}
	f, err := fs.Open(n.name(), true)
	if err != nil {
		return fmt.Errorf("note an apply: %w", err)
	}
	b, err := json.Marshal(n)
	if err == nil {
		_, err = f.WriteAt(append(b, '\n'), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("note an apply: %w", err)
	}
	if err := fs.SyncDir(); err != nil {
		return fmt.Errorf("note an apply: %w", err)
	}
	return nil
}

// removeNote is durable when it returns: a note that came back after a crash would let a later Apply of the same delta
// take what somebody else wrote meanwhile for torn.
func removeNote(fs Notes, n note) error {
	if fs == nil {
		return nil
	}
	err := fs.Remove(n.name())
	if err == nil {
		err = fs.SyncDir()
	}
	if err != nil {
		return fmt.Errorf("forget the note of an apply: %w", err)
	}
	return nil
}
