package pool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Source says what a volume was made from; at most one field is set.
type Source struct {
	Snapshot string `json:"snapshot,omitempty"`
	Volume   string `json:"volume,omitempty"`
}

// Volume is what does not change about a volume.
type Volume struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Block   bool      `json:"block"`            // made to be used as a block device
	FSType  string    `json:"fsType,omitempty"` // for a volume made to hold a file system
	Source  Source    `json:"source"`
	Created time.Time `json:"created"`

	Size int64 `json:"-"` // bytes; the size of the data file
}

// Snapshot is an unchanging copy of a volume.
type Snapshot struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Volume  string    `json:"volume"`
	Group   string    `json:"group,omitempty"` // the group it was cut with and goes with
	Block   bool      `json:"block"`
	FSType  string    `json:"fsType,omitempty"`
	Created time.Time `json:"created"` // when the cut was taken

	Size int64 `json:"-"`
}

// Staging is a place where a volume was made ready for use. It is a note of intent: whether the volume is
// there now is only what the kernel says.
type Staging struct {
	Path  string `json:"path"`
	Block bool   `json:"block"`
	// OnDemand is a staging that a publication made for itself; it goes with the last publication.
	OnDemand bool `json:"onDemand,omitempty"`
}

// ErrNotFound is the answer for a volume or snapshot the pool does not have.
var ErrNotFound = errors.New("not found")

// Lost is the answer for a volume or snapshot whose bytes are gone though it was never deleted.
type Lost struct{ Path string }

func (l *Lost) Error() string { return "the data file " + l.Path + " is missing" }

const (
	volumesDir   = "volumes"
	snapshotsDir = "snapshots"
	dataName     = "data"
	volumeFile   = "volume.json"
	snapshotFile = "snapshot.json"
	stagingsFile = "stagings.json"
	frozenName   = "frozen"

	// Folders with these prefixes are being made or being removed. No ID begins with a dot.
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
)

// plain are the names that serve as IDs as they are, so that the pool's folders can be read by people. Names
// that begin with x- are left to hashed IDs.
var plain = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ID returns the ID of the volume or snapshot of this name: always the same, and safe as a file name.
func ID(name string) string {
	if plain.MatchString(name) && !strings.HasPrefix(name, "x-") {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "x-" + hex.EncodeToString(sum[:20])
}

// ValidID tells whether s can be an ID; no path can be made with one.
func ValidID(s string) bool { return plain.MatchString(s) }

// VolumeData is the path of the volume's bytes.
func (p *Pool) VolumeData(id string) string {
	return filepath.Join(p.root, volumesDir, id, dataName)
}

// SnapshotData is the path of the snapshot's bytes.
func (p *Pool) SnapshotData(id string) string {
	return filepath.Join(p.root, snapshotsDir, id, dataName)
}

// Volume returns the volume, or ErrNotFound.
func (p *Pool) Volume(id string) (Volume, error) {
	var v Volume
	size, err := p.read(volumesDir, id, volumeFile, &v)
	if err != nil {
		return Volume{}, fmt.Errorf("volume %s: %w", id, err)
	}
	v.Size = size
	return v, nil
}

// Snapshot returns the snapshot, or ErrNotFound.
func (p *Pool) Snapshot(id string) (Snapshot, error) {
	var s Snapshot
	size, err := p.read(snapshotsDir, id, snapshotFile, &s)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", id, err)
	}
	s.Size = size
	return s, nil
}

// Volumes returns all volumes by ID.
func (p *Pool) Volumes() ([]Volume, error) {
	return all(p, volumesDir, p.Volume)
}

// Snapshots returns all snapshots by ID.
func (p *Pool) Snapshots() ([]Snapshot, error) {
	return all(p, snapshotsDir, p.Snapshot)
}

// all reads every entry of a folder; one that is deleted meanwhile, or whose bytes are lost, is left out.
func all[T any](p *Pool, dir string, get func(string) (T, error)) ([]T, error) {
	entries, err := os.ReadDir(filepath.Join(p.root, dir))
	if err != nil {
		return nil, err
	}
	var found []T
	for _, e := range entries {
		if !ValidID(e.Name()) {
			continue
		}
		one, err := get(e.Name())
		var lost *Lost
		if errors.As(err, &lost) {
			p.log.Error("data is missing", "path", lost.Path)
			continue
		}
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, one)
	}
	return found, nil
}

func (p *Pool) read(dir, id, file string, into any) (int64, error) {
	if !ValidID(id) {
		return 0, ErrNotFound
	}
	path := filepath.Join(p.root, dir, id, file)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return 0, fmt.Errorf("%s cannot be read: %w", path, err)
	}
	data := filepath.Join(p.root, dir, id, dataName)
	size, err := fileSize(data)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, &Lost{data}
	}
	return size, err
}

// Cut runs clone at the moment the caller has chosen: between freezing and thawing, for example.
type Cut func(clone func() error) error

// AtOnce is the Cut that needs no preparation.
func AtOnce(clone func() error) error { return clone() }

// CreateVolume makes an empty volume of v.Size bytes.
func (p *Pool) CreateVolume(v Volume) error {
	return p.create(volumesDir, v.ID, volumeFile, v, func(data string) error { return makeSparse(data, v.Size) })
}

// CloneVolume makes a volume of v.Size bytes that begins with the content of the file from.
func (p *Pool) CloneVolume(v Volume, from string, cut Cut) error {
	return p.create(volumesDir, v.ID, volumeFile, v, func(data string) error {
		if err := clone(from, data, cut); err != nil {
			return err
		}
		size, err := fileSize(data)
		if err != nil || size == v.Size {
			return err
		}
		return os.Truncate(data, v.Size)
	})
}

// CreateSnapshot copies the volume s.Volume as it is at the cut.
func (p *Pool) CreateSnapshot(s Snapshot, cut Cut) error {
	return p.create(snapshotsDir, s.ID, snapshotFile, s, func(data string) error {
		return clone(p.VolumeData(s.Volume), data, cut)
	})
}

// create makes a folder with data and record under a hidden name and gives it its own by one rename.
func (p *Pool) create(dir, id, file string, record any, fill func(data string) error) (err error) {
	d, err := p.begin(dir, id)
	defer func() {
		if err != nil {
			err = p.explain(errors.Join(err, d.drop()))
		}
	}()
	if err != nil {
		return err
	}
	if err := fill(d.data); err != nil {
		return err
	}
	return d.finish(file, record)
}

// draft is a volume or snapshot that is being made, under a hidden name.
type draft struct{ parent, id, hidden, data string }

func (p *Pool) begin(dir, id string) (draft, error) {
	parent := filepath.Join(p.root, dir)
	d := draft{parent: parent, id: id, hidden: filepath.Join(parent, newPrefix+id)}
	d.data = filepath.Join(d.hidden, dataName)
	if err := d.drop(); err != nil {
		return d, err
	}
	return d, os.Mkdir(d.hidden, 0o700)
}

func (d draft) drop() error { return os.RemoveAll(d.hidden) }

// finish makes the draft durable and gives it its name.
func (d draft) finish(file string, record any) error {
	if err := syncFile(d.data); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(d.hidden, file), record); err != nil {
		return err
	}
	if err := syncDir(d.hidden); err != nil {
		return err
	}
	if err := os.Rename(d.hidden, filepath.Join(d.parent, d.id)); err != nil {
		return err
	}
	return syncDir(d.parent)
}

// clone makes the file to share all blocks of from, by one ioctl: the kernel lets no write of from in between.
func clone(from, to string, cut Cut) error {
	c, err := openCloning(from, to)
	if err != nil {
		return err
	}
	return errors.Join(cut(c.run), c.close())
}

// cloning is a clone that needs nothing but its ioctl any more.
type cloning struct{ in, out *os.File }

func openCloning(from, to string) (cloning, error) {
	in, err := os.Open(from)
	if err != nil {
		return cloning{}, err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		_ = in.Close()
		return cloning{}, err
	}
	return cloning{in, out}, nil
}

func (c cloning) run() error {
	if err := unix.IoctlFileClone(int(c.out.Fd()), int(c.in.Fd())); err != nil {
		return fmt.Errorf("clone %s: %w", c.in.Name(), err)
	}
	return nil
}

func (c cloning) close() error { return errors.Join(c.in.Close(), c.out.Close()) }

// ReplaceData fills a new file of the volume's size and puts it in the place of the old one, whole or not at
// all. Nothing may have the old one open.
func (p *Pool) ReplaceData(id string, fill func(path string) error) error {
	data := p.VolumeData(id)
	size, err := fileSize(data)
	if err != nil {
		return err
	}
	made := data + ".new"
	if err := os.RemoveAll(made); err != nil {
		return err
	}
	if err := makeSparse(made, size); err != nil {
		return p.explain(err)
	}
	if err := fill(made); err != nil {
		return p.explain(errors.Join(err, os.Remove(made)))
	}
	if err := syncFile(made); err != nil {
		return p.explain(errors.Join(err, os.Remove(made)))
	}
	if err := os.Rename(made, data); err != nil {
		return err
	}
	return syncDir(filepath.Dir(data))
}

// GrowVolume makes the volume size bytes large. It never shrinks one.
func (p *Pool) GrowVolume(id string, size int64) error {
	data := p.VolumeData(id)
	have, err := fileSize(data)
	if err != nil || have >= size {
		return err
	}
	if err := os.Truncate(data, size); err != nil {
		return p.explain(err)
	}
	return syncFile(data)
}

// DeleteVolume removes the volume and its bytes. Snapshots and clones of it keep theirs.
func (p *Pool) DeleteVolume(id string) error { return p.remove(volumesDir, id) }

// DeleteSnapshot removes the snapshot.
func (p *Pool) DeleteSnapshot(id string) error { return p.remove(snapshotsDir, id) }

func (p *Pool) remove(dir, id string) error {
	parent := filepath.Join(p.root, dir)
	hidden := filepath.Join(parent, gonePrefix+id)
	if err := os.RemoveAll(hidden); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(parent, id), hidden); err != nil {
		return err
	}
	if err := syncDir(parent); err != nil {
		return err
	}
	return os.RemoveAll(hidden)
}

// Stagings returns the noted stagings of the volume, by path.
func (p *Pool) Stagings(id string) ([]Staging, error) {
	path := filepath.Join(p.root, volumesDir, id, stagingsFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s []Staging
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, err)
	}
	return s, nil
}

// SetStagings notes the stagings of the volume in the place of those noted before.
func (p *Pool) SetStagings(id string, s []Staging) error {
	sort.Slice(s, func(i, j int) bool { return s[i].Path < s[j].Path })
	path := filepath.Join(p.root, volumesDir, id, stagingsFile)
	made := path + ".new"
	if err := writeJSON(made, s); err != nil {
		return p.explain(err)
	}
	if err := os.Rename(made, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// MarkFrozen notes that this driver freezes the volume's file system, so that a later process thaws it. The
// note need not survive the machine: neither does the freeze.
func (p *Pool) MarkFrozen(id string) error {
	return p.explain(os.WriteFile(p.frozenPath(id), nil, 0o600))
}

// ClearFrozen removes the note.
func (p *Pool) ClearFrozen(id string) error {
	err := os.Remove(p.frozenPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Frozen tells whether the note is there.
func (p *Pool) Frozen(id string) (bool, error) {
	_, err := os.Stat(p.frozenPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (p *Pool) frozenPath(id string) string {
	return filepath.Join(p.root, volumesDir, id, frozenName)
}

// tidy removes what was being made or removed when an earlier process ended.
func (p *Pool) tidy(ctx context.Context) error {
	if err := p.makeFolders(ctx); err != nil {
		return err
	}
	for _, dir := range []string{volumesDir, snapshotsDir} {
		parent := filepath.Join(p.root, dir)
		entries, err := os.ReadDir(parent)
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(parent, e.Name())
			if strings.HasPrefix(e.Name(), newPrefix) || strings.HasPrefix(e.Name(), gonePrefix) {
				p.log.Info("removing what an interrupted operation left", "path", path)
				if err := os.RemoveAll(path); err != nil {
					return err
				}
				continue
			}
			if err := removeNew(path); err != nil {
				return err
			}
		}
	}
	return p.tidyGroups(ctx)
}

// removeNew removes files that were to replace others.
func removeNew(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "*.new"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return syncFile(path)
}
