package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// btrfs is a file system in an image, with the volume as a file in a subvolume and its copies received beside it.
// Snapshots stay until its end: removing one would go on in the background of what is measured next.
type btrfs struct {
	at     string // where it is mounted
	newest int    // number of the newest snapshot; 0: none
	parent int    // number of the newest snapshot that was received; 0: the next one is sent whole
}

func (f *btrfs) volume() string        { return f.at + "/live/source.img" }
func (f *btrfs) snapshot(n int) string { return fmt.Sprintf("%s/snapshot-%d", f.at, n) }
func (f *btrfs) received(n int) string { return fmt.Sprintf("%s/received/snapshot-%d", f.at, n) }

// mountBtrfs makes an empty one. Its loop device goes around the page cache of the file system below, like a disk of
// its own.
func (b *bench) mountBtrfs(ctx context.Context, size int64) (*btrfs, error) {
	f := &btrfs{at: b.path("btrfs")}
	image := b.path("btrfs.image")
	if err := os.MkdirAll(f.at, 0o755); err != nil {
		return nil, fmt.Errorf("make btrfs: %w", err)
	}
	if err := writeHole(image, size); err != nil {
		return nil, err
	}
	if err := command(ctx, "mkfs.btrfs", "-q", "--nodiscard", image); err != nil {
		return nil, err
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", image)
	if err != nil {
		return nil, err
	}
	err = command(ctx, "mount", "-t", "btrfs", "-o", "noatime", device, f.at)
	// Detached while mounted it goes away with the last mount, and mounts go away with this process.
	err = errors.Join(err, command(ctx, "losetup", "--detach", device))
	if err != nil {
		return nil, err
	}
	b.leave(func() {
		if err := unix.Unmount(f.at, 0); err != nil {
			b.say("unmount btrfs: %v", err)
		}
	})
	return f, errors.Join(
		command(ctx, "btrfs", "-q", "subvolume", "create", f.at+"/live"), os.Mkdir(f.at+"/received", 0o755))
}

// begin gives the volume the source's content, of which nothing was sent yet.
func (f *btrfs) begin(ctx context.Context, source string) error {
	f.parent = 0
	return errors.Join(command(ctx, "cp", "--reflink=never", source, f.volume()), f.cut(ctx))
}

// cut makes a snapshot of the volume as it is.
func (f *btrfs) cut(ctx context.Context) error {
	f.newest++
	return errors.Join(
		command(ctx, "btrfs", "-q", "subvolume", "snapshot", "-r", f.at+"/live", f.snapshot(f.newest)),
		command(ctx, "sync", "-f", f.at))
}

// send brings the newest snapshot over, as the difference to the one that was received last.
func (f *btrfs) send(ctx context.Context) (usage, error) {
	text := `btrfs -q send "$1" | btrfs -q receive "$2"; sync -f "$2"`
	if f.parent > 0 {
		text = `btrfs -q send -p "$3" "$1" | btrfs -q receive "$2"; sync -f "$2"`
	}
	u, err := shell(ctx, text, f.snapshot(f.newest), f.at+"/received", f.snapshot(f.parent))
	if err == nil {
		f.parent = f.newest
	}
	return u, err
}

// btrfsFull is a contender that sends a whole volume each time.
func (b *bench) btrfsFull(source string, size int64) *contender {
	var f *btrfs
	return &contender{
		name: "btrfs-send",
		base: func(ctx context.Context) (err error) {
			f, err = b.mountBtrfs(ctx, int64(b.pairs+2)*size+1<<30)
			if err != nil {
				return err
			}
			return command(ctx, "cp", "--reflink=never", source, f.volume())
		},
		prepare: func(ctx context.Context, _ int) error {
			f.parent = 0
			return errors.Join(f.cut(ctx), cool(f.snapshot(f.newest)+"/source.img"))
		},
		work:  func(ctx context.Context, _ int) (usage, error) { return f.send(ctx) },
		check: func(context.Context) error { return sameFile(source, f.received(f.newest)+"/source.img") },
	}
}
