package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// link is a cable between this namespace and another, as fast in each direction as it is told to be.
type link struct {
	device string   // this side's
	far    string   // the other side's address
	enter  []string // what runs a program on the other side
}

const (
	nearAddress = "198.18.0.1" // of the range for benchmarks (RFC 2544); both namespaces are the bench's own
	farAddress  = "198.18.0.2"
	linkSpeed   = 100_000_000 // bytes per second
)

// newLink makes one that ends with the stage. bytesPerSecond is what tc's token bucket lets through, headers included.
func (b *bench) newLink(ctx context.Context, bytesPerSecond int64) (*link, error) {
	name := fmt.Sprintf("lifeboat-bench-%d", os.Getpid())
	if err := command(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	b.leave(func() {
		if err := command(context.WithoutCancel(ctx), "ip", "netns", "delete", name); err != nil {
			b.say("remove the namespace: %v", err)
		}
	})
	l := &link{device: "near", far: farAddress, enter: []string{"ip", "netns", "exec", name}}
	rate := fmt.Sprintf("%dbps", bytesPerSecond) // tc's bps are bytes
	shape := []string{"root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"}
	return l, errors.Join(
		command(ctx, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", name),
		command(ctx, "ip", "address", "add", nearAddress+"/30", "dev", "near"),
		command(ctx, "ip", "-n", name, "address", "add", farAddress+"/30", "dev", "far"),
		command(ctx, "ip", "link", "set", "near", "up"),
		command(ctx, "ip", "-n", name, "link", "set", "far", "up"),
		command(ctx, append([]string{"tc", "qdisc", "add", "dev", "near"}, shape...)...),
		command(ctx, append([]string{"tc", "-n", name, "qdisc", "add", "dev", "far"}, shape...)...),
	)
}

// slowLink is a first copy of text over a link where compression pays.
func (b *bench) slowLink() stage {
	size := min(b.size, 1<<30) // 11 s a run without compression
	var cable *link
	limit, how := int64(0), "by tc"
	source := ""
	s := scene{
		name: "full-text-100MBps",
		rows: []row{{name: "full-text-100MBps/uncompressed", ours: ours, theirs: uncompressed, goal: 0.5}},
		cast: func(context.Context) ([]*contender, error) {
			all := []*contender{
				b.firstCopyOver(cable, source, ours, ask{limit: limit}, how),
				b.firstCopyOver(cable, source, uncompressed, ask{limit: limit, compression: engine.CompressionOff}, how),
			}
			return all, nil
		},
	}
	s.about = "first copy of " + binary(size) + " that compresses 2.4 to 1, over a link of 100 MB/s"
	return stage{
		needs: 3 * size, scenes: []scene{s},
		setUp: func(ctx context.Context) (err error) {
			source = b.path("source.img")
			if cable, err = b.newLink(ctx, linkSpeed); err != nil {
				b.say("no link can be made: %v", err)
				cable, limit, how = nil, linkSpeed, "by the engine's own limiter: "+oneLine(err)
			}
			return writeFile(source, size, newText(1))
		},
	}
}

// firstCopyOver is firstCopy over a link, and says in its note what limits it.
func (b *bench) firstCopyOver(l *link, source, name string, a ask, how string) *contender {
	m := b.newMovers(name, source, b.path(name+".img"))
	m.link = l
	c := m.fresh(name, a, func(context.Context) error { return sameFile(source, m.target) })
	prepare, work := c.prepare, c.work
	c.prepare = func(ctx context.Context, pair int) error {
		return errors.Join(prepare(ctx, pair), cool(source))
	}
	c.work = func(ctx context.Context, pair int) (usage, error) {
		u, err := work(ctx, pair)
		u.note += ", link limited " + how
		return u, err
	}
	return c
}
