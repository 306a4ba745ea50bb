package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
)

// Group is a set of snapshots that were cut together and go together.
type Group struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Snapshots []string  `json:"snapshots"` // IDs
	Created   time.Time `json:"created"`
}

const (
	groupsDir   = "groups"
	groupSuffix = ".json"

	// cutPrefix begins the names of subvolumes that exist only while a group is made.
	cutPrefix = ".cut-"
)

// CutsTogether tells whether the pool cuts any number of volumes at one instant by itself, whoever writes to them.
// Other pools cut one after the other: then writers have to be held meanwhile.
func (p *Pool) CutsTogether() bool { return p.cutsTogether }

// Group returns the group, or ErrNotFound.
func (p *Pool) Group(id string) (Group, error) {
	var g Group
	if !ValidID(id) {
		return g, fmt.Errorf("group snapshot %s: %w", id, ErrNotFound)
	}
	text, err := os.ReadFile(p.groupPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return g, fmt.Errorf("group snapshot %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(text, &g); err != nil {
		return g, fmt.Errorf("%s cannot be read: %w", p.groupPath(id), err)
	}
	return g, nil
}

func (p *Pool) groupPath(id string) string {
	return filepath.Join(p.root, groupsDir, id+groupSuffix)
}

// CreateGroup copies the volumes of all members as they are at the cut. The group's record comes last: members
// without one are removed at the next start.
func (p *Pool) CreateGroup(ctx context.Context, g Group, members []Snapshot, cut Cut) (err error) {
	var drafts []draft
	defer func() {
		if err == nil {
			return
		}
		for _, d := range drafts {
			err = errors.Join(err, d.drop())
		}
		for _, id := range g.Snapshots {
			err = errors.Join(err, p.DeleteSnapshot(id))
		}
		err = p.explain(err)
	}()
	for _, m := range members {
		if err := p.refuseMember(m); err != nil {
			return err
		}
		d, err := p.begin(snapshotsDir, m.ID)
		if err != nil {
			return err
		}
		drafts = append(drafts, d)
	}
	if err := p.cutGroup(ctx, g, members, drafts, cut); err != nil {
		return err
	}
	for i, m := range members {
		if err := drafts[i].finish(snapshotFile, m); err != nil {
			return err
		}
		g.Snapshots = append(g.Snapshots, m.ID)
	}
	return p.writeGroup(g)
}

// refuseMember makes sure that the member's place is free; what an earlier attempt left there is removed.
func (p *Pool) refuseMember(m Snapshot) error {
	have, err := p.Snapshot(m.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case have.Group != m.Group:
		return fmt.Errorf("snapshot %s exists and is none of group %s", m.ID, m.Group)
	}
	return p.DeleteSnapshot(m.ID)
}

func (p *Pool) cutGroup(ctx context.Context, g Group, members []Snapshot, drafts []draft, cut Cut) error {
	if p.cutsTogether {
		return p.cutSubvolume(ctx, filepath.Join(p.root, cutPrefix+g.ID), members, drafts, cut)
	}
	var all []cloning
	defer func() {
		for _, c := range all {
			_ = c.close() // finish syncs the data by its name
		}
	}()
	for i, m := range members {
		c, err := openCloning(p.VolumeData(m.Volume), drafts[i].data)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	return cut(func() error {
		for _, c := range all {
			if err := c.run(); err != nil {
				return err
			}
		}
		return nil
	})
}

// cutSubvolume cuts all volumes of the pool at once and takes the members' data out of the cut.
func (p *Pool) cutSubvolume(ctx context.Context, at string, members []Snapshot, drafts []draft, cut Cut) (err error) {
	if err := removeCut(ctx, at); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeCut(context.WithoutCancel(ctx), at)) }()
	err = cut(func() error { return filesystem.CutSubvolume(ctx, filepath.Join(p.root, volumesDir), at) })
	if err != nil {
		return err
	}
	for i, m := range members {
		if err := clone(filepath.Join(at, m.Volume, dataName), drafts[i].data, AtOnce); err != nil {
			return err
		}
	}
	return nil
}

func removeCut(ctx context.Context, at string) error {
	if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return filesystem.RemoveSubvolume(ctx, at)
}

func (p *Pool) writeGroup(g Group) error {
	path := p.groupPath(g.ID)
	if err := writeJSON(path+".new", g); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// DeleteGroup removes the group and its snapshots. The record goes first: what it leaves behind when interrupted is
// removed at the next start.
func (p *Pool) DeleteGroup(g Group) error {
	if err := os.Remove(p.groupPath(g.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Join(p.root, groupsDir)); err != nil {
		return err
	}
	for _, id := range g.Snapshots {
		if err := p.DeleteSnapshot(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// makeFolders makes the pool's folders; that of the volumes is a subvolume where that is possible.
func (p *Pool) makeFolders(ctx context.Context) error {
	volumes := filepath.Join(p.root, volumesDir)
	for _, dir := range []string{filepath.Join(p.root, snapshotsDir), filepath.Join(p.root, groupsDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := p.makeVolumesFolder(ctx, volumes); err != nil {
		return err
	}
	together, err := filesystem.IsSubvolume(volumes)
	p.cutsTogether = together
	return err
}

func (p *Pool) makeVolumesFolder(ctx context.Context, volumes string) error {
	if _, err := os.Stat(volumes); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.root, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: p.root, Err: err}
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return os.Mkdir(volumes, 0o700)
	}
	if err := filesystem.MakeSubvolume(ctx, volumes); err != nil {
		return err
	}
	return os.Chmod(volumes, 0o700)
}

// tidyGroups removes what was being made of groups, or removed, when an earlier process ended.
func (p *Pool) tidyGroups(ctx context.Context) error {
	cuts, err := filepath.Glob(filepath.Join(p.root, cutPrefix+"*"))
	if err != nil {
		return err
	}
	for _, at := range cuts {
		if err := filesystem.RemoveSubvolume(ctx, at); err != nil {
			return err
		}
	}
	if err := removeNew(filepath.Join(p.root, groupsDir)); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(p.root, snapshotsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := p.tidyMember(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// tidyMember removes a snapshot whose group was never finished, or is half removed.
func (p *Pool) tidyMember(id string) error {
	s, err := p.Snapshot(id)
	var lost *Lost
	if errors.Is(err, ErrNotFound) || errors.As(err, &lost) || err == nil && s.Group == "" {
		return nil
	}
	if err == nil {
		_, err = p.Group(s.Group)
	}
	if !errors.Is(err, ErrNotFound) {
		if err != nil { // one that cannot be read holds nobody else up
			p.log.Error("a snapshot's record or that of its group cannot be read", "snapshot", id, "error", err)
		}
		return nil
	}
	p.log.Info("removing a snapshot of a group that was never finished, or half removed", "snapshot", id, "group", s.Group)
	return p.DeleteSnapshot(id)
}
