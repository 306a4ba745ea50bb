package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// trees is a directory of small files and the copies that follow it.
type trees struct {
	deltas
	source tree
}

// fileRoom is what a small file takes on disk, with its inode and name; bytes.
const fileRoom = 9 << 10

// small is about many small files: what a file costs, not what a byte costs. They are in the page cache for everybody.
func (b *bench) small() stage {
	t := &trees{deltas: deltas{b: b, at: map[string]int{}, followed: map[string]*movers{}}}
	st := stage{
		needs: int64(b.files) * fileRoom * 4, peers: true,
		setUp: func(ctx context.Context) error {
			if err := b.mountFresh(ctx, int64(b.files)*fileRoom*4+1<<30); err != nil {
				return err
			}
			t.source = tree{root: b.path("tree"), count: b.files}
			return t.source.make(1)
		},
		scenes: []scene{{
			name: "small-fresh", about: fmt.Sprintf("first copy of a directory of %d small files", b.files),
			rows: []row{
				{name: "small-fresh/rsync", ours: ours, theirs: "rsync", goal: 0.8},
				{name: "small-fresh/cp", ours: ours, theirs: "cp"},
			},
			cast: func(ctx context.Context) ([]*contender, error) { return t.cast(ctx, true), nil },
		}},
	}
	for _, part := range []struct {
		name     string
		fraction float64
		goal     float64
	}{{"small-0pct", 0, noGoal}, {"small-1pct", 0.01, 1}} {
		st.scenes = append(st.scenes, scene{
			name: part.name, about: fmt.Sprintf("%g %% of %d small files have other content", part.fraction*100, b.files),
			rows: []row{{name: part.name + "/rsync", ours: ours, theirs: "rsync", goal: part.goal}},
			cast: func(ctx context.Context) ([]*contender, error) { return t.cast(ctx, false), nil },
			turn: func(context.Context, int) error {
				t.turns++
				return t.source.change(part.fraction, t.seed())
			},
		})
	}
	return st
}

// mountFresh puts the stage's files on an ext4 of their own, with a journal, in an image that goes around the page cache
// of the file system below. Without a journal ext4 looks, for each file it makes, at every inode that was freed in the
// last minutes: then each run would pay for the copies that earlier ones removed, not for its own.
func (b *bench) mountFresh(ctx context.Context, size int64) error {
	outer, at, image := b.dir, b.path("fresh"), b.path("fresh.image")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return fmt.Errorf("make a file system: %w", err)
	}
	if err := writeHole(image, size); err != nil {
		return err
	}
	if err := command(ctx, "mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", "-i", "4096", image); err != nil {
		return err
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", image)
	if err != nil {
		return err
	}
	err = command(ctx, "mount", "-t", "ext4", "-o", "noatime", device, at)
	// Detached while mounted it goes away with the last mount, and mounts go away with this process.
	if err := errors.Join(err, command(ctx, "losetup", "--detach", device)); err != nil {
		return err
	}
	b.dir = at
	b.leave(func() {
		b.dir = outer
		if err := unix.Unmount(at, 0); err != nil {
			b.say("unmount the small files' file system: %v", err)
		}
	})
	return nil
}

func (t *trees) cast(ctx context.Context, anew bool) []*contender {
	same := func(copy string) func() error { return func() error { return treesEqual(ctx, t.source.root, copy) } }
	all := []*contender{t.ours(anew), t.stored(anew, same)}
	if anew {
		cp := t.b.path("cp")
		all = append(all, plain("cp", cpTreeScript, t.source.root, cp, false, true, same(cp)))
	}
	return all
}

// begun lets a contender whose every run brings its copy in step begin with such a run, unless it is in step or is to
// begin anew each time.
func (t *trees) begun(c *contender, anew bool) *contender {
	work, prepare := c.work, c.prepare
	if !anew {
		c.base = func(ctx context.Context) error {
			if err := prepare(ctx, 0); err != nil {
				return err
			}
			_, err := work(ctx, 0)
			return err
		}
	}
	return t.follower(c)
}

func (t *trees) ours(anew bool) *contender {
	m := t.own(ours, t.source.root, "replica")
	c := &contender{
		name: ours,
		work: func(ctx context.Context, _ int) (usage, error) {
			u, _, err := m.session(ctx, ask{})
			return u, err
		},
		check: func(ctx context.Context) error { return treesEqual(ctx, t.source.root, m.target) },
	}
	if anew {
		c.prepare = func(ctx context.Context, _ int) error { return m.forget(ctx) }
		return t.follower(c)
	}
	c.base = func(ctx context.Context) error {
		if err := m.forget(ctx); err != nil {
			return err
		}
		_, _, err := m.session(ctx, ask{})
		return err
	}
	return t.follower(c)
}

func (t *trees) stored(anew bool, same func(string) func() error) *contender {
	if err := t.serve(); err != nil {
		return &contender{name: "rsync", err: err}
	}
	copy := t.b.path("rsync/tree")
	return t.begun(t.daemon.tree("rsync", t.source.root, copy, anew, same(copy)), anew)
}
