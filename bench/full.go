package main

import (
	"context"
	"fmt"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// The contenders' names that several scenes share.
const (
	ours         = "lifeboat"
	uncompressed = "uncompressed" // ours, told not to compress
)

// fullRandom is a first copy of incompressible data that is not in the page cache.
func (b *bench) fullRandom() stage {
	return stage{needs: 5 * b.size, peers: true, scenes: []scene{{
		name: "full-random-cold", about: "first copy of " + binary(b.size) + " that nothing compresses, not in the page cache",
		rows: []row{
			{name: "full-random-cold/cp", ours: ours, theirs: "cp", goal: 0.6},
			{name: "full-random-cold/rsync", ours: ours, theirs: "rsync", goal: 0.65},
			{name: "full-random-cold/dd-direct", ours: ours, theirs: "dd-direct", goal: 1.15},
		},
		cast: func(ctx context.Context) ([]*contender, error) {
			source := b.path("source.img")
			if err := writeFile(source, b.size, random(1)); err != nil {
				return nil, err
			}
			return append(b.copies(ctx, source, true), b.firstCopy(source, ours, true, ask{})), nil
		},
	}}}
}

// fullText is a first copy of data that compresses like prose: compression must never slow a fast link.
func (b *bench) fullText() stage {
	return stage{needs: 5 * b.size, peers: true, scenes: []scene{{
		name: "full-text", about: "first copy of " + binary(b.size) + " that compresses 2.4 to 1, not in the page cache",
		rows: []row{
			{name: "full-text/uncompressed", ours: ours, theirs: uncompressed, goal: 1.05},
			{name: "full-text/cp", ours: ours, theirs: "cp"},
			{name: "full-text/rsync", ours: ours, theirs: "rsync"},
		},
		cast: func(ctx context.Context) ([]*contender, error) {
			source := b.path("source.img")
			if err := writeFile(source, b.size, newText(1)); err != nil {
				return nil, err
			}
			return append(b.copies(ctx, source, true),
				b.firstCopy(source, ours, true, ask{}),
				b.firstCopy(source, uncompressed, true, ask{compression: engine.CompressionOff})), nil
		},
	}}}
}

// fullSparse is a first copy of a volume of which a tenth was ever written; that tenth is in the page cache.
func (b *bench) fullSparse() stage {
	return stage{needs: b.size, peers: true, scenes: []scene{{
		name: "full-sparse", about: "first copy of " + binary(b.size) + " of which 10 % hold anything, in the page cache",
		rows: []row{
			{name: "full-sparse/cp", ours: ours, theirs: "cp", goal: 1.3},
			{name: "full-sparse/rsync", ours: ours, theirs: "rsync"},
		},
		cast: func(ctx context.Context) ([]*contender, error) {
			source := b.path("source.img")
			written := scattered(b.size, 0.1, 64<<10, 1<<20, 1)
			if err := writeSparse(source, b.size, written, 1); err != nil {
				return nil, err
			}
			all := append(b.copies(ctx, source, false), b.firstCopy(source, ours, false, ask{allocated: true}))
			for _, c := range all {
				prepare := c.prepare
				c.prepare = func(ctx context.Context, pair int) error {
					if err := prepare(ctx, pair); err != nil {
						return err
					}
					return warm(source, written)
				}
			}
			return all, nil
		},
	}}}
}

// archives are first copies by tools that are no match in time but in purpose; less data does for them.
func (b *bench) archives() stage {
	size, files := min(b.size, 1<<30), min(b.files, 10_000)
	return stage{needs: int64(b.pairs+8) * size, peers: true, scenes: []scene{{
		name: "archive-random", about: "first copy of " + binary(size) + " that nothing compresses, not in the page cache, by tools that back up",
		rows: []row{
			{name: "archive-random/restic", ours: ours, theirs: "restic"},
			{name: "archive-random/rclone", ours: ours, theirs: "rclone"},
			{name: "archive-random/btrfs-send", ours: ours, theirs: "btrfs-send"},
		},
		cast: func(context.Context) ([]*contender, error) {
			source := b.path("source.img")
			if err := writeFile(source, size, random(1)); err != nil {
				return nil, err
			}
			same := func(copy string) func() error { return func() error { return sameFile(source, copy) } }
			restored, cloned := b.path("restored/source.img"), b.path("rclone.img")
			return []*contender{
				b.firstCopy(source, ours, true, ask{}),
				b.restic(source, restored, true, same(restored)),
				plain("rclone", rcloneFile, source, cloned, true, true, same(cloned)),
				b.btrfsFull(source, size),
			}, nil
		},
	}, {
		name: "archive-small", about: fmt.Sprintf("first copy of a directory of %d small files by tools that back up", files),
		rows: []row{
			{name: "archive-small/restic", ours: ours, theirs: "restic"},
			{name: "archive-small/rclone", ours: ours, theirs: "rclone"},
		},
		cast: func(ctx context.Context) ([]*contender, error) {
			source := tree{root: b.path("tree"), count: files}
			if err := source.make(1); err != nil {
				return nil, err
			}
			same := func(copy string) func() error { return func() error { return treesEqual(ctx, source.root, copy) } }
			m := b.newMovers("small", source.root, b.path("replica"))
			restored, cloned := b.path("restored/tree"), b.path("rclone")
			return []*contender{
				m.fresh(ours, ask{}, func(ctx context.Context) error { return treesEqual(ctx, source.root, m.target) }),
				b.restic(source.root, restored, false, same(restored)),
				plain("rclone", rcloneTree, source.root, cloned, false, true, same(cloned)),
			}, nil
		},
	}}}
}

// copies are the peers that make a copy of a volume, each its own.
func (b *bench) copies(ctx context.Context, source string, cold bool) []*contender {
	same := func(copy string) func() error { return func() error { return sameFile(source, copy) } }
	cp, dd := b.path("cp.img"), b.path("dd.img")
	all := []*contender{
		plain("cp", cpScript, source, cp, cold, true, same(cp)),
		plain("dd-direct", ddScript, source, dd, cold, true, same(dd)),
	}
	stored := b.path("rsync")
	daemon, err := b.rsyncDaemon(ctx, stored)
	if err != nil {
		return append(all, &contender{name: "rsync", err: err})
	}
	flags := "--whole-file"
	if !cold {
		flags += " --sparse"
	}
	return append(all, daemon.file("rsync", flags, source, stored+"/rsync.img", cold, true))
}

// firstCopy is our contender: a target that has never seen the volume gets it.
func (b *bench) firstCopy(source, name string, cold bool, a ask) *contender {
	m := b.newMovers(name, source, b.path(name+".img"))
	c := m.fresh(name, a, func(context.Context) error { return sameFile(source, m.target) })
	prepare := c.prepare
	c.prepare = func(ctx context.Context, pair int) error {
		if err := prepare(ctx, pair); err != nil || !cold {
			return err
		}
		return cool(source)
	}
	return c
}
