package tree

import (
	"errors"
	"fmt"

	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// ApplyOptions is what an Applier works with; the zero value is the usual.
type ApplyOptions struct {
	// Progress is told how many records are done; may be nil.
	Progress func(records int64)
	// Step is asked before every change of the replica; its error stops the work there. Tests crash with it.
	Step func(op, path string) error
}

// Applier brings the committed records of one tree onto its replica and writes the index of what it holds then. Doing
// it again from the beginning, after it stopped anywhere, gives the same.
type Applier struct {
	volume  int
	direct  bool // the replica has the content, only directories and the index are left
	ledger  *ledger
	build   *builder
	w       *indexWriter
	old     *index
	done    int64
	keeping bool
	options ApplyOptions

	sp  *spool.Spool
	ref *spool.MapRef // of the old index, if it can stay
	// same says that nothing changed.
	same bool
}

// NewApplier prepares to apply the spool's committed delta to the tree of volume v.
func NewApplier(sp *spool.Spool, v int, root string, o ApplyOptions) (*Applier, error) {
	d := sp.State().Delta
	if d == nil || !sp.Pending() {
		return nil, errors.New("apply tree: no committed delta waits")
	}
	a := &Applier{volume: v, direct: d.Direct, options: o, sp: sp}
	var err error
	if a.old, err = memberIndex(sp, d, v); err != nil {
		return nil, err
	}
	if a.build, err = newBuilder(root, d.Serial, o.Step); err != nil {
		a.old.close()
		return nil, err
	}
	if a.old != nil && a.old.known {
		ref := sp.State().Maps[d.Members[v].Name]
		a.ref = &ref
	}
	done, err := a.build.kept()
	if err != nil {
		a.Close()
		return nil, err
	}
	a.keeping = !done && !d.Direct
	return a, nil
}

// NoIndex reports that the spool has no index of a replica that a delta is to be compared with: BuildIndex makes one.
type NoIndex struct{ Member string }

func (n *NoIndex) Error() string {
	return fmt.Sprintf("the spool has no index of tree %s: it must be built from the replica first", n.Member)
}

// memberIndex opens the index a delta is relative to; a direct delta is relative to nothing.
func memberIndex(sp *spool.Spool, d *spool.Delta, v int) (*index, error) {
	if v < 0 || v >= len(d.Members) {
		return nil, fmt.Errorf("tree %d of a delta of %d members", v, len(d.Members))
	}
	if d.Direct {
		return nil, nil
	}
	name := d.Members[v].Name
	ref, ok := sp.State().Maps[name]
	if !ok {
		return nil, &NoIndex{Member: name}
	}
	x, err := openIndex(sp, ref)
	if err != nil {
		return nil, fmt.Errorf("index of tree %s: %w", name, err)
	}
	return x, nil
}

// NeedsKeep reports whether the records have to be given to Keep, all of them and then Kept, before the first Record.
func (a *Applier) NeedsKeep() bool { return a.keeping }

// Keep sets aside the objects of a record that will live on under other names. Records of other members pass.
func (a *Applier) Keep(m wire.Message) error {
	put, ok := m.(wire.TreePut)
	if !a.keeping || !ok || put.Volume != a.volume {
		return nil
	}
	return a.items(put, func(it *wire.TreeItem, _ *buffer) error {
		if it.Op != wire.TreeKeep {
			return nil
		}
		return a.build.keep(it)
	})
}

// Kept ends the first pass: from here on names change.
func (a *Applier) Kept() error {
	if !a.keeping {
		return nil
	}
	a.keeping = false
	return a.build.markKept()
}

func (a *Applier) items(put wire.TreePut, visit func(*wire.TreeItem, *buffer) error) error {
	memory := newBuffer()
	defer memory.release()
	raw, err := unpack(put.Codec, put.Length, put.Payload, memory.b)
	if err != nil {
		return err
	}
	err = wire.TreeItems(raw, put.Count, func(it *wire.TreeItem) error { return visit(it, memory) })
	return errors.Join(err, a.build.endRun())
}

// open begins the new index with the first record that changes something.
func (a *Applier) open() (err error) {
	if a.ledger != nil {
		return nil
	}
	if a.w, err = newIndexWriter(a.sp, true); err != nil {
		return err
	}
	a.ledger = newLedger(a.volume, a.old, a.w, a.build.left)
	a.ledger.direct = a.direct
	return nil
}

// Record applies one record. Records of other members pass.
func (a *Applier) Record(m wire.Message) error {
	if v, ok := volumeOf(m); !ok || v != a.volume {
		return nil
	}
	if a.keeping {
		return errors.New("apply tree: the objects to be kept were not set aside")
	}
	if _, end := m.(wire.TreeEnd); end && a.ledger == nil && a.ref != nil {
		// The end alone: nothing changed, which was proven before the commit. The index stays.
		a.same = true
		return nil
	}
	if err := a.open(); err != nil {
		return err
	}
	a.done++
	if a.options.Progress != nil {
		a.options.Progress(a.done)
	}
	switch m := m.(type) {
	case wire.TreePut:
		return a.items(m, func(it *wire.TreeItem, from *buffer) error {
			if err := a.ledger.item(it); err != nil || a.direct {
				return err
			}
			return a.build.item(it, from)
		})
	case wire.TreeBlocks:
		if err := a.ledger.blocks(&m); err != nil || a.direct {
			return err
		}
		memory := newBuffer()
		defer memory.release()
		raw, err := unpack(m.Codec, m.Length, m.Payload, memory.b)
		if err != nil {
			return err
		}
		return a.build.blocks(raw, m.Offset, memory)
	case wire.TreeHole:
		if err := a.ledger.hole(&m); err != nil || a.direct {
			return err
		}
		return a.build.hole(m.Offset, m.Length)
	case wire.TreeFileEnd:
		if err := a.ledger.fileEnd(&m); err != nil || a.direct {
			return err
		}
		return a.build.fileEnd()
	case wire.TreeEnd:
		return a.ledger.end(&m)
	}
	return nil
}

// Finish makes the tree durable as it is now, and its new index; the spool is to name it. The Applier is closed.
func (a *Applier) Finish() (spool.MapRef, error) {
	defer a.Close()
	if a.same {
		return *a.ref, nil
	}
	if a.ledger == nil || !a.ledger.ended {
		return spool.MapRef{}, &spool.Damaged{What: "the log ends before the tree does"}
	}
	if err := a.build.endLeaving(); err != nil {
		return spool.MapRef{}, err
	}
	if err := a.build.sync(); err != nil {
		return spool.MapRef{}, err
	}
	w := a.w
	a.w = nil
	return w.finish()
}

// Close lets go of everything without finishing. It is safe after Finish and twice.
func (a *Applier) Close() {
	if a.build != nil {
		a.build.close()
		a.build = nil
	}
	a.w.abandon()
	a.w = nil
	a.old.close()
	a.old = nil
}

// Apply applies the spool's committed delta to one tree, in one call: the log is read twice.
func Apply(sp *spool.Spool, v int, root string, o ApplyOptions) (spool.MapRef, error) {
	a, err := NewApplier(sp, v, root, o)
	if err != nil {
		return spool.MapRef{}, err
	}
	defer a.Close()
	if a.NeedsKeep() {
		if err := sp.Replay(a.Keep); err != nil {
			return spool.MapRef{}, err
		}
		if err := a.Kept(); err != nil {
			return spool.MapRef{}, err
		}
	}
	if err := sp.Replay(a.Record); err != nil {
		return spool.MapRef{}, err
	}
	return a.Finish()
}
