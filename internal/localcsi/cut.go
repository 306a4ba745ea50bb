package localcsi

import (
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// freezeLimit is how long writers are held at most. Copying takes 20 to 35 microseconds for each extent of a file.
const freezeLimit = 30 * time.Second

// freezable is the mounted file system of a volume.
type freezable struct{ id, point string }

// still is what is known of volumes that are about to be cut: the file systems to freeze, and the volumes whose raw
// device somebody may write to, which nothing can hold.
type still struct {
	mounted []freezable
	raw     []string
	open    []*usage // their handles keep device numbers from being given to other files
}

func (s *still) close() {
	for _, u := range s.open {
		u.close()
	}
}

// prepare finds out what has to be frozen for a cut of the volumes, and writes out what raw writers left in the
// page cache. The caller holds the volumes' locks and closes what it gets.
func (d *Driver) prepare(ids ...string) (_ *still, err error) {
	s := &still{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, id := range ids {
		u, err := d.observe(id)
		if err != nil {
			return nil, err
		}
		s.open = append(s.open, u)
		if point, ok := u.writable(); ok {
			s.mounted = append(s.mounted, freezable{id, point})
			continue
		}
		device := u.device(false)
		if device == nil {
			continue
		}
		claimed, err := device.Claimed()
		if err != nil {
			return nil, err
		}
		// A file system that is claimed but not to be seen is mounted where this process cannot freeze it.
		if len(u.written) > 0 || claimed && len(u.fileSystem()) == 0 {
			s.raw = append(s.raw, id)
		}
		if err := device.Sync(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// writable returns where the volume's file system is mounted, if it can be written to.
func (u *usage) writable() (string, bool) {
	for _, e := range u.fileSystem() {
		if !e.FileSystemReadOnly() {
			return e.Point, true
		}
	}
	return "", false
}

// cut makes the moment of a snapshot or clone good: a file system of the volume that is mounted is frozen, so
// that the copy needs no repair; what was written to the raw device is written out. The clone itself is atomic
// in any case. The caller holds the volume's lock.
func (d *Driver) cut(id string) pool.Cut {
	return func(clone func() error) error {
		s, err := d.prepare(id)
		if err != nil {
			return err
		}
		defer s.close()
		_, err = d.whileFrozen(s.mounted, clone)
		return err
	}
}

// cutTogether makes the moment of a group good: while all file systems are frozen nobody writes, so that copies made
// one after the other are of one instant. One volume whose raw device is written to may be among them: the moment
// of its own copy is the instant. A pool that cuts volumes together needs no help. The caller holds all volumes'
// locks. It refuses what would not be one instant.
func (d *Driver) cutTogether(ids []string) pool.Cut {
	return func(clone func() error) error {
		s, err := d.prepare(ids...)
		if err != nil {
			return err
		}
		defer s.close()
		if len(s.raw) > 1 && !d.pool.CutsTogether() {
			return refuse(codes.FailedPrecondition,
				"volumes %v are written to as block devices, and this pool cannot cut more than one of those at one instant: use a new btrfs pool (--pool-fs btrfs), end all writers but one, or take snapshots one by one", s.raw)
		}
		held, err := d.whileFrozen(s.mounted, clone)
		if err == nil && !held && !d.pool.CutsTogether() {
			return refuse(codes.Aborted, "the volumes' file systems were not all held until the last copy was made (at most %s): the copies are not of one instant and were removed; try again", d.freezeLimit)
		}
		return err
	}
}

// whileFrozen runs clone while the file systems are frozen, and tells whether all of them were, by us, until it
// ended. Whatever happens they are thawed: when clone takes too long by a timer, when this process dies by the
// next one, which finds the notes. A note comes before its freeze and goes after the thaw.
func (d *Driver) whileFrozen(mounted []freezable, clone func() error) (held bool, err error) {
	if len(mounted) == 0 {
		return true, clone()
	}
	// Most of the writing out happens here, while writers may still continue.
	for _, m := range mounted {
		if err := filesystem.Sync(m.point); err != nil {
			return false, err
		}
	}
	for _, m := range mounted {
		if err := d.pool.MarkFrozen(m.id); err != nil {
			return false, errors.Join(err, d.clearNotes(mounted))
		}
	}
	began, limit := d.now(), d.freezeLimit // the timer's end may outlive this call
	var ice ice
	timer := time.AfterFunc(limit, func() {
		d.log.Error("writers were held too long and are let go", "limit", limit, "error", ice.thaw())
	})
	defer timer.Stop()
	held = true
	for _, m := range mounted {
		frozen, err := ice.freeze(m.point)
		if !frozen {
			held = false
			d.log.Warn("the copy is crash-consistent only: the file system could not be frozen", "volume", m.id, "error", err)
		}
	}
	err = clone()
	held = held && timer.Stop()
	if thawed := ice.thaw(); thawed != nil {
		return held, errors.Join(err, thawed) // the notes stay: the next start tries again
	}
	d.log.Debug("file systems were frozen", "volumes", len(mounted), "took", d.now().Sub(began).Round(time.Millisecond))
	return held, errors.Join(err, d.clearNotes(mounted))
}

func (d *Driver) clearNotes(mounted []freezable) error {
	var errs []error
	for _, m := range mounted {
		errs = append(errs, d.pool.ClearFrozen(m.id))
	}
	return errors.Join(errs...)
}

// ice is the file systems that are frozen now. Once thawed it freezes no more.
type ice struct {
	mu     sync.Mutex
	points []string
	melted bool
}

// freeze returns false for a file system that somebody else froze, who may thaw it at any moment.
func (i *ice) freeze(point string) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.melted {
		return false, nil
	}
	frozen, err := filesystem.Freeze(point)
	if frozen {
		i.points = append(i.points, point)
	}
	return frozen, err
}

// thaw lets all writers go. Points that could not be thawed are tried again when it is called again.
func (i *ice) thaw() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.melted = true
	var errs []error
	var left []string
	for _, point := range i.points {
		if err := filesystem.Thaw(point); err != nil {
			errs, left = append(errs, err), append(left, point)
		}
	}
	i.points = left
	return errors.Join(errs...)
}

// thaw thaws the volume's file system where an interrupted driver had frozen it.
func (d *Driver) thaw(id string) error {
	u, err := d.observe(id)
	if err != nil {
		return err
	}
	defer u.close()
	mounts := u.fileSystem()
	if len(mounts) == 0 {
		return nil // the next staging thaws it: the kernel keeps a frozen file system though nothing mounts it
	}
	return d.thawAt(id, mounts[0].Point)
}

// thawAt thaws the file system mounted at point if the volume has the note of a freeze.
func (d *Driver) thawAt(id, point string) error {
	frozen, err := d.pool.Frozen(id)
	if err != nil || !frozen {
		return err
	}
	if err := filesystem.Thaw(point); err != nil {
		return err
	}
	d.log.Info("thawed a file system that an interrupted snapshot had frozen", "volume", id)
	return d.pool.ClearFrozen(id)
}
