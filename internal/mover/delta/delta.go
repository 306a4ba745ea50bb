// Package delta keeps the changes between two instants of a group of volumes in one portable file: Export writes it,
// Apply brings it onto volumes that hold the earlier instant, Verify proves it without any volume, Fold makes one of
// a chain. docs/spec/delta.md draws the bytes.
//
// It knows the format, volumes and digests. It knows no session, no connection and no Kubernetes, and never decides
// which instants are worth keeping. A delta is written and read front to back, so it may be piped; memory does not
// grow with its size, but for 64 bytes per 64 MiB of volume. Begin with Head, then Writer and Reader, then Export and
// Apply.
package delta

import (
	"errors"
	"fmt"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Head says which instants a delta lies between and what it is about.
type Head struct {
	// Replication is the name of the group's replication; empty when it has none.
	Replication string
	// Full says that there is no base: the delta holds the whole of every volume and is applied onto anything of the
	// right size.
	Full bool
	// Base is the point the delta starts from. It may be empty, also when the delta is not full: an instant that was
	// never named.
	Base string
	// Point is the point a group is at once the delta is applied.
	Point     string
	PointTime time.Time
	// Members are the volumes, in the order records name them by.
	Members []wire.Member
}

// geo is the geometry of a member.
func (h *Head) geo(v int) digest.Geometry { return digest.Geometry{Size: h.Members[v].Size} }

// check holds what must be true of a head wherever it comes from.
func (h *Head) check() error {
	if h.Point == "" {
		return errors.New("the point has no name")
	}
	if h.Full && h.Base != "" {
		return errors.New("there is a base point and there is none")
	}
	if len(h.Members) == 0 || len(h.Members) > wire.MaxVolumes {
		return fmt.Errorf("%d volumes, 1 to %d are allowed", len(h.Members), wire.MaxVolumes)
	}
	for _, text := range []string{h.Replication, h.Base, h.Point} {
		if len(text) > wire.MaxName {
			return fmt.Errorf("a name of %d bytes, at most %d are allowed", len(text), wire.MaxName)
		}
	}
	seen := map[string]bool{}
	for _, m := range h.Members {
		switch {
		case m.Name == "" || len(m.Name) > wire.MaxName:
			return fmt.Errorf("a volume's name has %d bytes, 1 to %d are allowed", len(m.Name), wire.MaxName)
		case seen[m.Name]:
			return fmt.Errorf("two volumes are named %s", m.Name)
		case m.Size <= 0 || m.Size > wire.MaxVolumeSize:
			return fmt.Errorf("volume %s has %d bytes, 1 to %d are allowed", m.Name, m.Size, int64(wire.MaxVolumeSize))
		}
		seen[m.Name] = true
	}
	return nil
}

// End is what is known once a delta has been read or written whole.
type End struct {
	// Roots are those of the volumes at the base and at the point, by member. digest.Unknown: whoever exported did not
	// read the whole volume, or there is no base.
	Base, After []digest.Digest
	// Records counts Data and Hole records.
	Records int64
	// DataBytes and HoleBytes are the bytes of volumes the records carry and zero.
	DataBytes, HoleBytes int64
	// Closing names the change itself, whatever way it was found, cut into records and compressed.
	Closing digest.Digest
	// Sum is the BLAKE3 of every byte of the delta before it.
	Sum digest.Digest
}

// Corrupt reports bytes that are no delta, or not all of one. Nothing of it may be used.
type Corrupt struct {
	At   int64 // byte of the delta, where it was noticed
	What string
	Err  error // may be nil
}

func (c *Corrupt) Error() string {
	what := c.What
	if c.Err != nil {
		what += ": " + c.Err.Error()
	}
	return fmt.Sprintf("the delta is damaged at byte %d: %s; fetch or export it again", c.At, what)
}

// Unwrap is the cause, if it has one of its own.
func (c *Corrupt) Unwrap() error { return c.Err }

// TooNew reports a delta of a later format.
type TooNew struct{ Version uint8 }

func (t *TooNew) Error() string {
	return fmt.Sprintf("the delta is of format %d, this software reads up to %d; use a newer one", t.Version, formatVersion)
}

// WrongBase reports that a volume does not hold the instant a delta starts from. Nothing was written.
type WrongBase struct {
	Volume          string
	Offset, Length  int64 // the bytes the digests are of
	Expected, Found digest.Digest
	Base            string // the point, may be empty
	// Torn says that the bytes would become right if an interrupted Apply of this delta had left them.
	Torn bool
}

func (w *WrongBase) Error() string {
	base := "its base"
	if w.Base != "" {
		base = "its base " + w.Base
	}
	advice := "apply it to a copy of the base, or export from what the volume holds"
	if w.Torn {
		advice = "if an apply of this very delta was interrupted here, say so with --interrupted; else " + advice
	}
	return fmt.Sprintf("volume %s is not at the delta's base: %d bytes at %d have digest %s, %s has %s there; nothing was written; %s",
		w.Volume, w.Length, w.Offset, w.Found, base, w.Expected, advice)
}

// SizeDiffers reports a volume that is not exactly as large as the delta's.
type SizeDiffers struct {
	Volume      string
	Delta, Here int64 // bytes
}

func (s *SizeDiffers) Error() string {
	return fmt.Sprintf("volume %s has %d bytes, in the delta it has %d: sizes must be equal; make the volume exactly that size", s.Volume, s.Here, s.Delta)
}

// MembersDiffer reports volumes that are not those of the delta.
type MembersDiffer struct{ Delta, Here []string }

func (m *MembersDiffer) Error() string {
	return fmt.Sprintf("the delta is of volumes %q, given are %q: give each of the delta's volumes once, as NAME=PATH", m.Delta, m.Here)
}

// Broken reports deltas that do not follow one another.
type Broken struct {
	First, Second string // what the two are called
	What          string
	End, Begin    string // of the first, of the second
}

func (b *Broken) Error() string {
	return fmt.Sprintf("%s does not lead to %s: %s is %s at the end of the first and %s at the beginning of the second; give a chain in order",
		b.First, b.Second, b.What, b.End, b.Begin)
}

// NotKnown reports a question a delta cannot answer.
type NotKnown struct{ Volume, What string }

func (n *NotKnown) Error() string { return fmt.Sprintf("volume %s: %s", n.Volume, n.What) }

// VolumeError says what could not be done with a volume.
type VolumeError struct {
	Volume string
	Err    error
}

func (v *VolumeError) Error() string { return "volume " + v.Volume + ": " + v.Err.Error() }

// Unwrap is what the volume said.
func (v *VolumeError) Unwrap() error { return v.Err }

// Refused reports whether err says that a delta, a chain or a volume is not what it must be: trying again cannot help.
func Refused(err error) bool {
	var (
		corrupt *Corrupt
		tooNew  *TooNew
		wrong   *WrongBase
		size    *SizeDiffers
		broken  *Broken
		unknown *NotKnown
	)
	return errors.As(err, &corrupt) || errors.As(err, &tooNew) || errors.As(err, &wrong) || errors.As(err, &size) ||
		errors.As(err, &broken) || errors.As(err, &unknown)
}
