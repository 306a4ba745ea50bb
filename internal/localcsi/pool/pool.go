// Package pool keeps volumes and snapshots as sparse files on a file system that can share blocks between files.
//
// A volume or snapshot is a folder with the data and a small JSON file beside it. The folder appears under its
// name by one rename, when both are on disk, and disappears by one rename: there are no half-made volumes. What
// may change is not in the JSON: the size of a volume is the size of its data file.
//
//	volumes/<id>/data            the bytes, sparse
//	volumes/<id>/volume.json     Volume
//	volumes/<id>/stagings.json   where it is staged (see Staging)
//	volumes/<id>/frozen          there while this driver has the volume's file system frozen
//	snapshots/<id>/data
//	snapshots/<id>/snapshot.json Snapshot
//	groups/<id>.json             Group
//
// All data lies on one file system, so a snapshot is one reflinked file. On btrfs the folder volumes is a subvolume,
// so that one snapshot of it cuts all volumes at one instant. The package knows nothing of CSI and
// nothing of who uses a volume; callers hold a lock per volume and per snapshot. Begin reading at Open.
package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/loop"
	"lifeboat.dev/lifeboat/internal/localcsi/mount"
)

// Config says where the pool is and what to make when there is none yet.
type Config struct {
	// Dir is the folder of the pool. When its file system can share blocks between files it holds the volumes
	// itself; otherwise it holds the image file pool.img and the mount point mnt.
	Dir string
	// ImageSize is the size of pool.img in bytes. A larger value than the image has grows it; it never shrinks.
	ImageSize int64
	// ImageType is the file system made in a new image: xfs or btrfs.
	ImageType filesystem.Kind
	Log       *slog.Logger
}

// Pool is an open pool. Only one process has it open at a time.
type Pool struct {
	dir   string // the configured folder
	root  string // where volumes and snapshots are
	image string // path of pool.img, or empty
	point string // where the image is mounted
	lock  *os.File
	log   *slog.Logger

	// cutsTogether tells that all volumes lie in one btrfs subvolume.
	cutsTogether bool
}

const (
	imageName = "pool.img"
	pointName = "mnt"
	lockName  = "lock"
)

// Open opens the pool in cfg.Dir, or makes one. It waits for another process that still has the pool until
// ctx ends, and clears away what an interrupted process left half done.
func Open(ctx context.Context, cfg Config) (_ *Pool, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	p := &Pool{dir: dir, root: dir, log: cfg.Log}
	if p.lock, err = takeLock(ctx, filepath.Join(dir, lockName)); err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			_ = p.lock.Close()
		}
	}()
	if err := p.place(ctx, cfg); err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	if err := p.tidy(ctx); err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	return p, nil
}

// place decides where the data lies. An existing image is always used: it holds the volumes.
func (p *Pool) place(ctx context.Context, cfg Config) error {
	image := filepath.Join(p.dir, imageName)
	_, err := os.Stat(image)
	if err == nil {
		return p.openImage(ctx, image, cfg)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	shares, err := sharesBlocks(p.dir)
	if err != nil {
		return err
	}
	if shares {
		p.log.Info("pool on the folder's own file system", "dir", p.dir)
		return nil
	}
	if err := makeImage(ctx, image, cfg); err != nil {
		return err
	}
	p.log.Info("pool image made", "image", image, "bytes", cfg.ImageSize, "fs", cfg.ImageType)
	return p.openImage(ctx, image, cfg)
}

// sharesBlocks tries whether the folder's file system can clone a file.
func sharesBlocks(dir string) (bool, error) {
	from, err := os.CreateTemp(dir, ".share-*")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(from.Name()) }()
	defer func() { _ = from.Close() }()
	to, err := os.CreateTemp(dir, ".share-*")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(to.Name()) }()
	defer func() { _ = to.Close() }()
	if _, err := from.Write(make([]byte, 4096)); err != nil {
		return false, err
	}
	err = unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EXDEV) {
		return false, nil
	}
	return err == nil, err
}

// makeImage makes the image beside its place and moves it there whole.
func makeImage(ctx context.Context, image string, cfg Config) error {
	if cfg.ImageType != filesystem.XFS && cfg.ImageType != filesystem.Btrfs {
		return fmt.Errorf("pool file system %q: only xfs and btrfs share blocks between files", cfg.ImageType)
	}
	if cfg.ImageSize < filesystem.Minimum(filesystem.XFS) {
		return fmt.Errorf("pool size %d bytes: a pool needs at least %d bytes", cfg.ImageSize, filesystem.Minimum(filesystem.XFS))
	}
	made := image + ".new"
	if err := os.RemoveAll(made); err != nil {
		return err
	}
	if err := makeSparse(made, cfg.ImageSize); err != nil {
		return err
	}
	if err := filesystem.Format(ctx, made, cfg.ImageType); err != nil {
		return err
	}
	if err := syncFile(made); err != nil {
		return err
	}
	if err := os.Rename(made, image); err != nil {
		return err
	}
	return syncDir(filepath.Dir(image))
}

// openImage mounts the image, over the loop device it already has if it has one.
//
// Invariant: never two loop devices over one image. Volumes keep an earlier mount of the image alive after its
// process and mount namespace are gone; a second device would be a second file system in memory writing to the
// same blocks. Mounting the same device again gives the same file system in memory.
func (p *Pool) openImage(ctx context.Context, image string, cfg Config) error {
	point := filepath.Join(p.dir, pointName)
	if err := os.MkdirAll(point, 0o700); err != nil {
		return err
	}
	grown, err := growImage(image, cfg.ImageSize)
	if err != nil {
		return err
	}
	device, err := imageDevice(image)
	if err != nil {
		return err
	}
	defer func() { _ = device.Close() }()
	if grown {
		if err := device.Refresh(); err != nil {
			return err
		}
	}
	file, err := os.Open(image)
	if err != nil {
		return err
	}
	found, err := filesystem.Probe(file)
	_ = file.Close()
	if err != nil {
		return err
	}
	if found.Kind != filesystem.XFS && found.Kind != filesystem.Btrfs {
		return fmt.Errorf("image %s holds no xfs or btrfs file system (found %q): move it away to start with an empty pool", image, found.Kind)
	}
	if err := mountOnce(device, point, found.Kind); err != nil {
		return err
	}
	// Set only now: a device that clears itself must not be without a user for a moment.
	if err := device.SetAutoClear(true); err != nil {
		return err
	}
	p.image, p.point, p.root = image, point, point
	if size, err := fileSize(image); err != nil {
		return err
	} else if grown || found.Size < size-(16<<20) {
		if err := filesystem.Grow(ctx, device.Path(), point, found.Kind); err != nil {
			return err
		}
	}
	p.log.Info("pool mounted", "image", image, "device", device.Path(), "fs", found.Kind, "directIO", device.DirectIO)
	return nil
}

// imageDevice returns the one loop device over the image.
func imageDevice(image string) (*loop.Device, error) {
	id, err := loop.Identify(image)
	if err != nil {
		return nil, err
	}
	devices, err := loop.Find(id)
	if err != nil {
		return nil, err
	}
	switch len(devices) {
	case 0:
		return loop.Attach(image, image, false)
	case 1:
		return devices[0], nil
	}
	var inUse []string
	for _, d := range devices {
		claimed, err := d.Claimed()
		if err != nil || claimed {
			inUse = append(inUse, d.Path())
		}
	}
	if len(inUse) > 0 {
		loop.CloseAll(devices)
		return nil, fmt.Errorf("image %s has several loop devices and %s is in use: two of them mounted destroy the pool; detach the others by hand (losetup -d)", image, strings.Join(inUse, " and "))
	}
	for _, d := range devices[1:] {
		if err := d.Detach(); err != nil {
			_ = devices[0].Close()
			return nil, err
		}
	}
	return devices[0], nil
}

// mountOnce mounts device at point unless it is mounted there.
func mountOnce(device *loop.Device, point string, kind filesystem.Kind) error {
	table, err := mount.Read()
	if err != nil {
		return err
	}
	there, mounted, err := table.At(point)
	if err != nil {
		return err
	}
	if !mounted {
		return mount.Mount(device.Path(), point, string(kind), mount.Options{"noatime", "discard"})
	}
	if there.Source != device.Path() {
		return fmt.Errorf("%s is mounted at %s, where the pool's %s belongs: unmount it", there.Source, point, device.Path())
	}
	return nil
}

func growImage(image string, size int64) (bool, error) {
	have, err := fileSize(image)
	if err != nil || have >= size {
		return false, err
	}
	return true, os.Truncate(image, size)
}

// Close gives the pool to the next process. Volumes in use keep the pool's file system alive; it is mounted
// again at the next Open.
func (p *Pool) Close() error {
	var err error
	if p.image != "" {
		if err = unix.Unmount(p.point, unix.MNT_DETACH); err != nil {
			err = fmt.Errorf("unmount the pool at %s: %w", p.point, err)
		}
	}
	return errors.Join(err, p.lock.Close())
}

// Device is the device number of the volumes' data files, as in stat(2); on btrfs each subvolume has its own.
func (p *Pool) Device() (uint64, error) {
	id, err := loop.Identify(filepath.Join(p.root, volumesDir))
	return id.Dev, err
}

// Space is how much the pool can take, in bytes.
type Space struct{ Free, Total int64 }

// Space returns the pool's free and total bytes. Where an image lies on a fuller file system, that one counts.
func (p *Pool) Space() (Space, error) {
	s, err := space(p.root)
	if err != nil || p.image == "" {
		return s, err
	}
	below, err := space(p.dir)
	if err != nil {
		return Space{}, err
	}
	s.Free = min(s.Free, below.Free)
	return s, nil
}

func space(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return Space{Free: int64(st.Bavail) * st.Bsize, Total: int64(st.Blocks) * st.Bsize}, nil
}

// Full is the answer to a request the pool has no space for.
type Full struct {
	Dir  string
	Free int64
	Err  error
}

func (f *Full) Error() string {
	return fmt.Sprintf("the pool %s is full (%d bytes free): delete volumes or snapshots, or enlarge it with --pool-size: %v", f.Dir, f.Free, f.Err)
}

func (f *Full) Unwrap() error { return f.Err }

// explain turns "no space left" into Full.
func (p *Pool) explain(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	free := int64(-1)
	if s, serr := p.Space(); serr == nil {
		free = s.Free
	}
	return &Full{Dir: p.dir, Free: free, Err: err}
}

// takeLock waits until no other process has the pool. The kernel gives the lock back when a process dies.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another process has the pool (it holds the lock on %s): %w", path, ctx.Err())
		case <-ticker.C:
		}
	}
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// makeSparse makes a file of the size that takes no space.
func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncDir makes names in the folder durable.
func syncDir(path string) error { return syncFile(path) }
