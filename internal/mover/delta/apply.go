package delta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Target is a volume a delta is applied to.
type Target struct {
	Name   string // as in the delta
	Volume volume.Volume
	// Identity tells the volume from others of the same name for as long as an apply may be interrupted, such as an
	// absolute path.
	Identity string
}

// ApplyOptions say how careful an Apply is.
type ApplyOptions struct {
	// Full checks whole volumes before anything is written, not just the segments that change.
	Full bool
	// Interrupted says that an Apply of this delta was interrupted on these volumes, when Notes have not kept it.
	Interrupted bool
	// Notes is a folder where an Apply notes, durably and before it writes, what it is about to do, and forgets it when
	// that is durable. nil: no note; what an interrupted Apply leaves torn is then refused.
	Notes Notes
}

// Applied is what an Apply did.
type Applied struct {
	Summary Summary
	// Already says that the volumes held everything: nothing was written.
	Already bool
	// Continued says that an Apply of the same delta had been interrupted.
	Continued bool
}

// Apply brings volumes that hold a delta's base to its point. It reads the delta three times from its beginning: to prove it whole, to
// check the volumes, to write. The order is the promise: before the first byte is written the delta is whole, every
// segment it changes is at the base, and every block it changes will come to its digest.
//
// Applying twice is the same as once. After a crash at any point, applying again gives the point: blocks are then at
// the base, at the point, or torn between the two. A torn block is told from a foreign one by the note, see
// ApplyOptions; what it must become is proven either way.
//
// The error is one of Corrupt, TooNew, MembersDiffer, SizeDiffers, WrongBase, NotKnown (nothing was written), or
// VolumeError.
func Apply(ctx context.Context, delta io.ReadSeeker, targets []Target, o ApplyOptions) (Applied, error) {
	if _, err := delta.Seek(0, io.SeekStart); err != nil {
		return Applied{}, fmt.Errorf("read delta: %w", err)
	}
	summary, err := Verify(ctx, delta, nil)
	if err != nil {
		return Applied{}, err
	}
	out := Applied{Summary: summary}
	a := &application{delta: delta, head: summary.Head, end: summary.End, options: o}
	if a.targets, err = match(summary.Head.Members, targets); err != nil {
		return out, err
	}
	noted, err := readNote(o.Notes, a.note())
	if err != nil {
		return out, err
	}
	out.Continued = noted
	a.torn = noted || o.Interrupted
	if out.Already, err = a.check(ctx); err != nil {
		return out, err
	}
	if !out.Already {
		if !a.head.Full && !noted {
			if err := writeNote(o.Notes, a.note()); err != nil {
				return out, err
			}
		}
		if err := a.write(ctx); err != nil {
			return out, err
		}
	}
	// Also when there was nothing to write: what an interrupted run wrote may not be durable yet.
	for _, t := range a.targets {
		if err := t.Volume.Sync(); err != nil {
			return out, &VolumeError{t.Name, err}
		}
	}
	return out, removeNote(o.Notes, a.note())
}

// match puts the targets in the order of the members.
func match(members []wire.Member, targets []Target) ([]Target, error) {
	differ := &MembersDiffer{}
	for _, m := range members {
		differ.Delta = append(differ.Delta, m.Name)
	}
	for _, t := range targets {
		differ.Here = append(differ.Here, t.Name)
	}
	out := make([]Target, len(members))
	for i, m := range members {
		at := slices.IndexFunc(targets, func(t Target) bool { return t.Name == m.Name })
		if at < 0 || len(targets) != len(members) {
			return nil, differ
		}
		out[i] = targets[at]
		if here := out[i].Volume.Size(); here != m.Size {
			return nil, &SizeDiffers{Volume: m.Name, Delta: m.Size, Here: here}
		}
	}
	return out, nil
}

// application is one run of Apply.
type application struct {
	delta   io.ReadSeeker
	head    Head
	end     End
	targets []Target
	options ApplyOptions
	torn    bool // blocks may be torn between base and point
}

// pass reads the delta once more, and makes sure that it still is the one that was proven.
func (a *application) pass(ctx context.Context, work func(step) (step, error), take func(step) error) error {
	if _, err := a.delta.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read delta again: %w", err)
	}
	r, err := NewReader(a.delta)
	if err != nil {
		return err
	}
	if err := walk(ctx, r, true, nil, work, take); err != nil {
		return err
	}
	if r.End().Sum != a.end.Sum {
		return &Corrupt{At: r.at, What: "it was changed while it was read"}
	}
	return nil
}

// write writes everything the delta holds. Records do not overlap, so several go at a time and in any order.
func (a *application) write(ctx context.Context) error {
	return a.pass(ctx, func(s step) (step, error) {
		switch {
		case s.hole != nil:
			if err := a.targets[s.hole.Volume].Volume.Zero(s.hole.Offset, s.hole.Length); err != nil {
				return s, &VolumeError{a.targets[s.hole.Volume].Name, err}
			}
		case s.window != nil:
			if s, err := s.prove(); err != nil {
				return s, err
			}
			return s, a.writeWindow(s.window)
		}
		return s, nil
	}, func(step) error { return nil })
}

func (a *application) writeWindow(w *window) error {
	t := a.targets[w.volume]
	for _, m := range w.records() {
		var err error
		switch m := m.(type) {
		case wire.Data:
			_, err = t.Volume.WriteAt(m.Payload, m.Offset)
		case wire.Hole:
			err = t.Volume.Zero(m.Offset, m.Length)
		}
		if err != nil {
			return &VolumeError{t.Name, err}
		}
	}
	return nil
}

// readFull reads p whole.
func readFull(v volume.Reader, name string, p []byte, off int64) error {
	n, err := v.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &VolumeError{name, err}
}

// blockExtent is where block b of segment s of a volume lies.
func blockExtent(geo digest.Geometry, s, b int) (offset, length int64) {
	offset = geo.SegmentStart(s) + int64(b)*digest.BlockSize
	return offset, min(digest.BlockSize, geo.Size-offset)
}
