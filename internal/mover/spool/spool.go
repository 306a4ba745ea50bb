// Package spool is what a target remembers: the highest epoch it has seen, the recovery point it committed, a delta
// that is arriving or being applied, and the digest maps of its replica. It is a redo log beside a small state file.
//
// It knows files and the order in which they must become durable. It never touches a replica, and decides nothing:
// internal/mover/engine does both. Begin with State, then Spool.Commit; log.go has the records.
//
// Invariants, each kept by one durable write of the state file:
//   - Epoch never shrinks.
//   - A committed point whose delta is not applied yet has Applied false and its delta complete in the log.
//   - What is acknowledged is in the log, synced, or for a direct delta on the replica, synced before the log says so.
package spool

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// State is the content of the state file. It is replaced as a whole, never edited.
type State struct {
	Version     int            `json:"version"`
	Replication string         `json:"replication"`
	Epoch       uint64         `json:"epoch"`
	Committed   *session.Point `json:"committed,omitempty"`
	// Applied says that the replica holds the committed point, durably.
	Applied bool `json:"applied"`
	// Mixed says that a direct copy was left half-way, or that a committed delta could not be applied whole.
	Mixed bool `json:"mixed,omitempty"`
	// Verified is the last committed point whose replica was compared with the source block by block.
	Verified *session.Point `json:"verified,omitempty"`
	// Delta is arriving, or, when Applied is false, being applied.
	Delta *Delta `json:"delta,omitempty"`
	// Maps has the digest maps that describe the replica, by volume name. A map is only here while it is true.
	Maps map[string]MapRef `json:"maps,omitempty"`
	// Serial numbers the spool's files; it only grows, so no file is ever taken for another's.
	Serial uint64 `json:"serial"`
}

// Delta is one delta of one instant.
type Delta struct {
	Serial uint64        `json:"serial"`
	Point  session.Point `json:"point"`
	Tier   wire.Tier     `json:"tier"`
	Direct bool          `json:"direct"`
	// Verify says that it was made by comparing all of both sides.
	Verify  bool          `json:"verify,omitempty"`
	Reason  string        `json:"reason"`
	Members []wire.Member `json:"members"`
	// Records is how many records the log holds; it is set by the commit.
	Records int64 `json:"records,omitempty"`
}

// MapRef binds a digest map to what it describes.
type MapRef struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	Root string `json:"root"` // MapRoot of its segments
}

const (
	stateVersion = 1
	stateName    = "state"
	stateTemp    = "state.tmp"
)

// Foreign reports that a spool belongs to another replication.
type Foreign struct{ Have, Want string }

func (f *Foreign) Error() string {
	return fmt.Sprintf("the spool belongs to replication %s, not to %s: give each target a spool of its own", f.Have, f.Want)
}

// Damaged reports that the spool's files do not hold together.
type Damaged struct{ What string }

func (d *Damaged) Error() string { return "spool is damaged: " + d.What }

// Spool is an open spool. It is not safe for concurrent use.
type Spool struct {
	fs    FS
	state State
	log   *log
	// unsure says that the last save failed so late that the disk may have it or the one before.
	unsure bool
}

// Open reads the spool of a replication, a new one when the folder is empty. A damaged state file is an error, not a
// new spool: the epoch it held is what fences stale sources off.
func Open(fs FS, replication string) (*Spool, error) {
	s := &Spool{fs: fs}
	raw, err := readAll(fs, stateName)
	switch {
	case errors.Is(err, os.ErrNotExist):
		s.state = State{Version: stateVersion, Replication: replication}
		if err := s.save(s.state); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read spool state: %w", err)
	default:
		if s.state, err = parseState(raw); err != nil {
			return nil, err
		}
	}
	if s.state.Replication != replication {
		return nil, &Foreign{Have: s.state.Replication, Want: replication}
	}
	return s, s.Sweep()
}

// The state file: the BLAKE3 digest of the rest in hexadecimal, a newline, JSON.
func parseState(raw []byte) (State, error) {
	line, rest, _ := strings.Cut(string(raw), "\n")
	sum := blake3.Sum256([]byte(rest))
	if line != hex.EncodeToString(sum[:]) {
		return State{}, &Damaged{What: "the state file's digest differs"}
	}
	var st State
	if err := json.Unmarshal([]byte(rest), &st); err != nil {
		return State{}, &Damaged{What: "the state file: " + err.Error()}
	}
	if st.Version != stateVersion {
		return State{}, fmt.Errorf("spool state has version %d, this software knows %d: use the software that wrote it", st.Version, stateVersion)
	}
	if st.Committed != nil && !st.Applied && st.Delta == nil {
		return State{}, &Damaged{What: "the state file names a point to be applied and no delta"}
	}
	return st, nil
}

// State is what is durable now. The caller must not change what it points to.
func (s *Spool) State() State { return s.state }

// Close closes the log, if it is open.
func (s *Spool) Close() error { return s.closeLog() }

// Raise adopts a higher epoch. Another cluster was primary meanwhile, perhaps this one, so nothing that was known of
// the replica's content is: maps and a half delta are dropped. The committed point stays, it is still worth protecting.
func (s *Spool) Raise(epoch uint64) error {
	if epoch <= s.state.Epoch {
		return nil
	}
	if s.Pending() {
		return errors.New("raise epoch: a committed delta waits to be applied")
	}
	if err := s.closeLog(); err != nil {
		return err
	}
	next := s.state
	next.Epoch = epoch
	next.Maps = nil
	next = withoutDelta(next)
	return s.saveAndSweep(next)
}

// Begin records that a delta begins to arrive. There must be none. One that goes straight onto the replica ends what
// recovery point that holds.
func (s *Spool) Begin(d Delta) error {
	if s.state.Delta != nil {
		return errors.New("begin delta: there is one already")
	}
	next := s.state
	next.Serial++
	d.Serial = next.Serial
	next.Delta = &d
	if d.Direct {
		next.Committed, next.Applied = nil, false
	}
	return s.save(next)
}

// Drop forgets the delta that was arriving. What it already brought to the replica directly stays there: Mixed.
func (s *Spool) Drop() error {
	if s.state.Delta == nil || !s.receiving() {
		return nil
	}
	if err := s.closeLog(); err != nil {
		return err
	}
	if s.unsure {
		// A commit that failed may stand on the disk all the same: it must not find its log gone.
		if err := s.save(s.state); err != nil {
			return err
		}
	}
	// The log goes first: on a spool that is full there is no room for the new state before. A crash in between leaves
	// a delta that begins anew, which is as good as none.
	if err := s.removeLog(); err != nil {
		return err
	}
	return s.saveAndSweep(withoutDelta(s.state))
}

func (s *Spool) removeLog() error {
	names, err := s.fs.Names()
	if err != nil {
		return fmt.Errorf("list spool: %w", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, s.state.Delta.prefix()) {
			continue
		}
		if err := s.fs.Remove(name); err != nil {
			return fmt.Errorf("drop delta: %w", err)
		}
	}
	return nil
}

func withoutDelta(st State) State {
	if st.Delta != nil && st.Delta.Direct {
		st.Mixed = true
		st.Maps = nil
	}
	st.Delta = nil
	return st
}

// receiving reports that the delta, if any, is arriving rather than being applied.
func (s *Spool) receiving() bool { return s.state.Committed == nil || s.state.Applied }

// Pending reports that a committed delta waits to be applied.
func (s *Spool) Pending() bool { return !s.receiving() }

// Commit makes the delta's instant the recovery point. From here on it is applied, after a crash too; before, the
// old one stands. Everything appended must be synced.
func (s *Spool) Commit() error {
	if s.state.Delta == nil || s.log == nil || s.log.dirty {
		return errors.New("commit: the delta is not durable")
	}
	next := s.state
	d := *next.Delta
	d.Records = s.log.records
	next.Delta = &d
	next.Committed = &d.Point
	next.Applied = false
	if err := s.save(next); err != nil {
		return err // the log stays open: the commit may be tried again
	}
	return s.closeLog()
}

// Finish records that the committed delta is applied and durable, and which maps describe the replica now, and removes
// the delta.
func (s *Spool) Finish(maps map[string]MapRef) error {
	if err := s.Settle(maps); err != nil {
		return err
	}
	return s.Sweep()
}

// Settle is Finish without removing anything: who waits for the point need not wait for that. Sweep does it; so does
// Open, after a crash.
func (s *Spool) Settle(maps map[string]MapRef) error {
	next := s.state
	next.Applied = true
	next.Mixed = false
	if next.Delta != nil && next.Delta.Verify {
		next.Verified = next.Committed
	}
	next.Delta = nil
	next.Maps = maps
	return s.save(next)
}

// Abandon records that the committed delta cannot be applied because its log is damaged: the replica may hold a part
// of it, so there is no recovery point any more until a source brings one.
func (s *Spool) Abandon() error {
	next := s.state
	next.Committed = nil
	next.Applied = false
	next.Mixed = true
	next.Delta = nil
	next.Maps = nil
	return s.saveAndSweep(next)
}

// CreateMapFile makes a file for a new digest map. It belongs to nobody until SetMaps or Finish names it.
func (s *Spool) CreateMapFile() (string, File, error) {
	next := s.state
	next.Serial++
	if err := s.save(next); err != nil {
		return "", nil, err
	}
	name := fmt.Sprintf("map-%08d", next.Serial)
	f, err := s.fs.Open(name, true)
	if err != nil {
		return "", nil, fmt.Errorf("make digest map: %w", err)
	}
	if err := s.fs.SyncDir(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("make digest map: %w", err), f.Close())
	}
	return name, f, nil
}

// OpenMapFile opens a map's file.
func (s *Spool) OpenMapFile(name string) (File, error) { return s.fs.Open(name, false) }

// SetMaps records which maps describe the replica.
func (s *Spool) SetMaps(maps map[string]MapRef) error {
	next := s.state
	next.Maps = maps
	return s.saveAndSweep(next)
}

// Ref describes a map for SetMaps and Finish.
func Ref(file string, m *digest.Map, size int64) (MapRef, error) {
	segments, err := m.Segments()
	if err != nil {
		return MapRef{}, err
	}
	return MapRef{File: file, Size: size, Root: MapRoot(segments)}, nil
}

// MapRoot is what binds a map to its MapRef: the root of its segments, or their sum when one of them is unknown.
func MapRoot(segments []digest.Digest) string {
	if root := digest.Root(segments); root != digest.Unknown {
		return root.String()
	}
	return digest.Sum(segments).String()
}

// save replaces the state file, whole or not at all.
func (s *Spool) save(next State) error {
	body, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("save spool state: %w", err)
	}
	sum := blake3.Sum256(body)
	raw := append([]byte(hex.EncodeToString(sum[:])+"\n"), body...)
	f, err := s.fs.Open(stateTemp, true)
	if err != nil {
		return fmt.Errorf("save spool state: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(raw, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("save spool state: %w", err)
	}
	s.unsure = true
	if err := s.fs.Rename(stateTemp, stateName); err != nil {
		return fmt.Errorf("save spool state: %w", err)
	}
	if err := s.fs.SyncDir(); err != nil {
		return fmt.Errorf("save spool state: %w", err)
	}
	s.state, s.unsure = next, false
	return nil
}

func (s *Spool) saveAndSweep(next State) error {
	if err := s.save(next); err != nil {
		return err
	}
	return s.Sweep()
}

// Sweep removes the files the state does not name.
func (s *Spool) Sweep() error {
	names, err := s.fs.Names()
	if err != nil {
		return fmt.Errorf("list spool: %w", err)
	}
	keep := []string{stateName}
	for _, ref := range s.state.Maps {
		keep = append(keep, ref.File)
	}
	for _, name := range names {
		if slices.Contains(keep, name) || s.state.Delta != nil && strings.HasPrefix(name, s.state.Delta.prefix()) {
			continue
		}
		if err := s.fs.Remove(name); err != nil {
			return fmt.Errorf("sweep spool: %w", err)
		}
	}
	return nil
}

func readAll(fs FS, name string) ([]byte, error) {
	f, err := fs.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	raw := make([]byte, size)
	if n, err := f.ReadAt(raw, 0); n != len(raw) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return raw, nil
}
