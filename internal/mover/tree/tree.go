// Package tree brings a directory tree to a target: the engine of volumes that cannot be block devices (NFS, CephFS,
// shared ones). It knows names, entries, inodes, the index of what a replica holds and the messages about them. It
// never dials, and decides nothing about sessions, epochs or points: internal/mover/engine does, and calls it.
//
// A tree's entries have one order, that of a walk (wire.CompareTreePaths): a directory before what is in it, names by
// their bytes. Everything here is a merge of sorted streams, so that no tree is ever held in memory: the source's walk
// with the index of the target finds the changes; the log of changes with the old index makes the new one.
//
// An object is what an inode number of the source names. Names that point to another object than before are pointed
// anew; an object that lost its old name and has another now is kept, not sent again. Unchanged means that everything
// wire.TreeMeta says is what it was, the inode number and the time of change included, which nobody can set back. All
// other files are compared block by block with the digests of the index.
//
// # How to call it
//
// The target, for member v, with the spool's delta begun:
//
//	ref known?        if the replica holds a point and State().Maps has no entry of the member (a new epoch dropped it,
//	                  or the content is to be verified): ref, err := BuildIndex(...), then Spool.SetMaps with it
//	r, err := NewReceiver(sp, v, root, options)
//	sp.OpenLog(visit) visit gives the records of this member (IsRecord) to r.Restore, in order
//	r.Run(ctx, stream) after the Welcome and all members before v; nothing of the replica has changed when it returns,
//	                  unless Direct. After an error: drop r, and for the next connection begin again at NewReceiver
//	r.Close()
//	sp.Commit()       after all members
//	a, err := NewApplier(sp, v, root, options)
//	a.Keep(record)    in a first Spool.Replay; a.Kept() after it. Both may be left out when a.NeedsKeep() is false
//	a.Record(record)  in a second Spool.Replay (the one that applies block volumes too)
//	ref, err := a.Finish() the tree is durable and has the new point; ref belongs in Spool.Finish
//	sp.Finish(refs)
//	Clean(root)       removes what was set aside
//
// Apply does all from NewApplier to Finish for one member. The source calls Send, after the Welcome and all members
// before v; it returns once everything is durable at the target.
//
// # Memory
//
// Whatever the tree: about 64 MiB on the source and 64 MiB on the target for records under way. In addition, on the
// source the names of the directories on the way from the root to where the walk is (about 50 bytes each: 50 MB for one
// directory of a million files) and 24 bytes for each object with several links; on the target 16 bytes for each object
// of more than one block or with several links, and 24 bytes for each that several links were made to in this session.
//
// # What is left out
//
// Below the root, what stands under the names of Reserved; file systems mounted somewhere in the tree (their mount
// points are carried as empty directories); the attribute security.selinux, which belongs to the node; access times.
package tree

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// stageName is where the target sets objects aside while a delta is applied, below the root.
const stageName = ".lifeboat-tree"

// Reserved reports whether a name directly below a root belongs to the file system or to this package: it is never
// carried, removed or changed.
func Reserved(name string) bool { return name == stageName || name == "lost+found" }

// IsRecord reports whether a message of a spool's log is a record of the tree of volume v.
func IsRecord(m wire.Message, v int) bool {
	at, ok := volumeOf(m)
	return ok && at == v
}

func volumeOf(m wire.Message) (int, bool) {
	switch m := m.(type) {
	case wire.TreePut:
		return m.Volume, true
	case wire.TreeBlocks:
		return m.Volume, true
	case wire.TreeHole:
		return m.Volume, true
	case wire.TreeFileEnd:
		return m.Volume, true
	case wire.TreeEnd:
		return m.Volume, true
	}
	return 0, false
}

// Totals counts what one Send or Receiver did. Bytes are of files, before compression, unless said otherwise.
type Totals struct {
	Entries int64 // the source has
	Changed int64 // entries that were sent
	Deleted int64 // paths, each with everything below it
	Bytes   int64 // all files of the source together
	Read    int64 // from the source's files
	Data    int64 // content that was sent
	Payload int64 // the same as sent, after compression
	Wire    int64 // bytes of frames sent by this side
	Records int64
}

// SourceChanged reports that an entry of the source vanished or changed while it was read: the source is no instant.
type SourceChanged struct {
	Path string
	What string
}

func (s *SourceChanged) Error() string {
	return fmt.Sprintf("%q %s while the tree was read: the source must be a snapshot", s.Path, s.What)
}

// Diverged reports that the replica is not what the target's index says: somebody else wrote it. The index must be
// built again from the replica.
type Diverged struct {
	Path        string
	Want, Found string
}

func (d *Diverged) Error() string {
	return fmt.Sprintf("replica: %q should be %s and is %s: something else than this replication wrote it", d.Path, d.Want, d.Found)
}

// PathError says what could not be done with which entry.
type PathError struct {
	Op   string
	Path string
	Err  error
}

func (p *PathError) Error() string { return fmt.Sprintf("%s %q: %v", p.Op, p.Path, p.Err) }

// Unwrap is what the operating system said.
func (p *PathError) Unwrap() error { return p.Err }

func failed(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &PathError{Op: op, Path: path, Err: err}
}

// ErrIndex is the root of errors about an index that does not hold together; it must be built again.
var ErrIndex = errors.New("index of the tree is damaged")

// workers is how many goroutines read or write files: more than there are cores, because each waits for the disk.
func workers() int { return max(4, min(16, 2*runtime.GOMAXPROCS(0))) }

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// blocksOf is how many blocks size bytes have.
func blocksOf(size int64) int64 { return digest.Geometry{Size: size}.Blocks() }
