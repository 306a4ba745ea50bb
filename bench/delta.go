package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// deltas is a volume that changes a little, and the copies that follow it.
type deltas struct {
	b      *bench
	source string
	list   string          // file with the extents that the last turn changed
	where  []digest.Extent // the same
	turns  int             // how often it has changed
	daemon *rsync          // nil: not started yet
	btrfs  *btrfs          // nil: not mounted yet
	// at tells at which turn each follower's copy is.
	at map[string]int
	// followed are our own targets: one fed with lists, one that compares.
	followed map[string]*movers
}

const (
	withList   = "lifeboat-list"
	withDigest = "lifeboat-digest"
)

// delta is a later session after a part of a volume changed, in pieces of 4 to 64 KiB, with everything cold.
func (b *bench) delta() stage {
	d := &deltas{b: b, at: map[string]int{}, followed: map[string]*movers{}}
	st := stage{needs: 8*b.size + 2<<30, peers: true, setUp: d.setUp}
	for _, part := range []struct {
		name     string
		fraction float64
	}{{"delta0pct", 0}, {"delta0.1pct", 0.001}, {"delta1pct", 0.01}, {"delta10pct", 0.1}} {
		rows := []row{
			{name: part.name + "-list/ideal", ours: withList, theirs: "ideal"},
			{name: part.name + "-list/rsync", ours: withList, theirs: "rsync"},
			{name: part.name + "-list/btrfs-send", ours: withList, theirs: "btrfs-send"},
			{name: part.name + "-digest/read", ours: withDigest, theirs: "read"},
			{name: part.name + "-digest/rsync", ours: withDigest, theirs: "rsync"},
		}
		whole := row{name: part.name + "-digest/rsync-whole", ours: withDigest, theirs: "rsync-whole"}
		switch part.fraction {
		case 0:
			rows = rows[1:] // ideal is to do nothing
		case 0.01:
			rows = append(rows, whole) // it takes the same time whatever changed
			rows[0].goal, rows[1].goal, rows[2].goal, rows[3].goal = 2, 0.03, 0.6, 1.1
		}
		st.scenes = append(st.scenes, scene{
			name: part.name, about: fmt.Sprintf("%g %% of %s changed, in pieces of 4 to 64 KiB, nothing in the page cache", part.fraction*100, binary(b.size)),
			rows: rows,
			cast: func(context.Context) ([]*contender, error) { return d.cast(), nil },
			turn: func(context.Context, int) error { return d.turn(part.fraction) },
		})
	}
	return st
}

func (d *deltas) setUp(context.Context) error {
	d.source, d.list = d.b.path("source.img"), d.b.path("changes")
	return writeFile(d.source, d.b.size, random(1))
}

// seed is of the present turn's content.
func (d *deltas) seed() uint64 { return uint64(1000 + d.turns) }

func (d *deltas) turn(fraction float64) error {
	d.turns++
	d.where = scattered(d.b.size, fraction, 4<<10, 64<<10, d.seed())
	if err := rewrite(d.source, d.where, d.seed()); err != nil {
		return err
	}
	return change.WriteFile(d.list, change.List{Size: d.b.size, Extents: d.where})
}

func (d *deltas) cast() []*contender {
	ideal := d.b.path("ideal.img")
	return []*contender{
		d.ours(withList, ask{changes: d.list, tier: "cbt"}),
		d.ours(withDigest, ask{tier: "digest"}),
		plain("read", readScript, d.source, "", true, false, nil),
		d.follower(&contender{
			name:    "ideal",
			base:    func(ctx context.Context) error { return command(ctx, "cp", "--reflink=never", d.source, ideal) },
			prepare: func(context.Context, int) error { return cool(d.source, ideal) },
			work:    func(context.Context, int) (usage, error) { return pour(d.source, ideal, d.where) },
			check:   func(context.Context) error { return sameFile(d.source, ideal) },
		}),
		d.rsync("rsync", "--inplace --no-whole-file"),
		d.rsync("rsync-whole", "--inplace --whole-file"),
		d.follower(d.send()),
	}
}

// follower keeps account of the turn a contender's copy is at: one that missed a turn begins anew, if it has a way to.
func (d *deltas) follower(c *contender) *contender {
	base, work := c.base, c.work
	if base != nil {
		c.base = func(ctx context.Context) error {
			if at, begun := d.at[c.name]; begun && at == d.turns {
				return nil
			}
			if err := base(ctx); err != nil {
				return fmt.Errorf("make the first copy: %w", err)
			}
			d.at[c.name] = d.turns
			return nil
		}
	}
	c.work = func(ctx context.Context, pair int) (usage, error) {
		u, err := work(ctx, pair)
		if err == nil {
			d.at[c.name] = d.turns
		}
		return u, err
	}
	return c
}

func (d *deltas) ours(name string, a ask) *contender {
	m := d.own(name, d.source, name+".img")
	return d.follower(&contender{
		name: name,
		base: func(ctx context.Context) error {
			if err := m.forget(ctx); err != nil {
				return err
			}
			_, _, err := m.session(ctx, ask{})
			return err
		},
		prepare: func(context.Context, int) error { return cool(d.source, m.target) },
		work: func(ctx context.Context, _ int) (usage, error) {
			u, _, err := m.session(ctx, a)
			return u, err
		},
		check: func(context.Context) error { return sameFile(d.source, m.target) },
	})
}

func (d *deltas) rsync(name, flags string) *contender {
	if err := d.serve(); err != nil {
		return &contender{name: name, err: err}
	}
	copy := d.b.path("rsync/copy.img") // both ways keep the same copy
	c := d.daemon.file(name, flags, d.source, copy, true, false)
	c.base = func(ctx context.Context) error { return command(ctx, "cp", "--reflink=never", d.source, copy) }
	return d.follower(c)
}

// serve starts the stage's rsync daemon, once.
func (d *deltas) serve() (err error) {
	if d.daemon == nil {
		d.daemon, err = d.b.rsyncDaemon(context.Background(), d.b.path("rsync"))
	}
	return err
}

// own is our target of that name, made once.
func (d *deltas) own(name, source, replica string) *movers {
	if d.followed[name] == nil {
		d.followed[name] = d.b.newMovers(name, source, d.b.path(replica))
	}
	return d.followed[name]
}

func (d *deltas) send() *contender {
	return &contender{
		name: "btrfs-send",
		base: func(ctx context.Context) (err error) {
			if d.btrfs == nil {
				// The volume and its copy, and what all turns change in both.
				if d.btrfs, err = d.b.mountBtrfs(ctx, 2*d.b.size+int64(d.b.pairs)*d.b.size/3+1<<30); err != nil {
					return err
				}
			}
			if err := d.btrfs.begin(ctx, d.source); err != nil {
				return err
			}
			_, err = d.btrfs.send(ctx)
			return err
		},
		prepare: func(ctx context.Context, _ int) error {
			f := d.btrfs
			return errors.Join(rewrite(f.volume(), d.where, d.seed()), f.cut(ctx),
				cool(f.snapshot(f.newest)+"/source.img", f.received(f.parent)+"/source.img"))
		},
		work:  func(ctx context.Context, _ int) (usage, error) { return d.btrfs.send(ctx) },
		check: func(context.Context) error { return sameFile(d.source, d.btrfs.received(d.btrfs.newest)+"/source.img") },
	}
}

// pour writes what source holds in some places to the same places of a copy and syncs it: the least that can be done.
// Reading it, and starting a process, is not in the time.
func pour(source, copy string, where []digest.Extent) (usage, error) {
	content := make([]byte, total(where))
	from, err := os.Open(source)
	if err != nil {
		return usage{}, fmt.Errorf("read what changed: %w", err)
	}
	defer func() { _ = from.Close() }()
	at := int64(0)
	for _, e := range where {
		if _, err := io.ReadFull(io.NewSectionReader(from, e.Offset, e.Length), content[at:at+e.Length]); err != nil {
			return usage{}, fmt.Errorf("read what changed: %w", err)
		}
		at += e.Length
	}
	to, err := os.OpenFile(copy, os.O_WRONLY, 0)
	if err != nil {
		return usage{}, fmt.Errorf("write what changed: %w", err)
	}
	defer func() { _ = to.Close() }()
	before, began := ownCPU(), time.Now()
	for _, e := range where {
		if _, err := to.WriteAt(content[:e.Length], e.Offset); err != nil {
			return usage{}, fmt.Errorf("write what changed: %w", err)
		}
		content = content[e.Length:]
	}
	if err := to.Sync(); err != nil {
		return usage{}, fmt.Errorf("write what changed: %w", err)
	}
	return usage{wall: time.Since(began), cpu: ownCPU() - before, wire: noWire}, nil
}

// ownCPU is what this process has taken so far.
func ownCPU() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
