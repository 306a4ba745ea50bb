package engine

import (
	"testing"
	"time"
)

// road is a link and a codec with given speeds, in bytes per second; records pass one after the other.
type road struct {
	link, codec, ratio, disk float64
	now                      time.Time
	busy                     time.Duration
	bytes, compressed        int64
}

// drive sends n records of a megabyte. Reading and packing run beside sending: the slower of them sets the pace.
func (r *road) drive(p *pilot, n int) {
	const record = 1 << 20
	for range n {
		compress, epoch := p.way()
		make, send := record/r.disk, record/r.link
		if compress {
			make, send = max(make, record/r.codec), record/r.ratio/r.link
			r.compressed += record
			p.packed(record, time.Duration(record/r.codec*1e9))
		}
		r.now = r.now.Add(time.Duration(max(make, send) * 1e9))
		r.busy += time.Duration(send * 1e9)
		r.bytes += record
		p.sent(epoch, record, r.now, r.busy)
	}
}

func TestCompressionFollowsTheLink(t *testing.T) {
	const mb = 1e6
	for name, c := range map[string]struct {
		road
		compressed float64 // share, at least or at most
		most       bool
	}{
		"a link slower than the codec": {road{link: 100 * mb, codec: 400 * mb, ratio: 2.4, disk: 2000 * mb}, 0.95, false},
		"a very slow link":             {road{link: 2 * mb, codec: 400 * mb, ratio: 2.4, disk: 2000 * mb}, 0.99, false},
		"a link faster than the codec": {road{link: 2000 * mb, codec: 250 * mb, ratio: 2.4, disk: 3000 * mb}, 0.004, true},
		"a fast link, a slow disk":     {road{link: 2000 * mb, codec: 250 * mb, ratio: 2.4, disk: 500 * mb}, 0.04, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.road
			r.now = time.Unix(0, 0)
			p := newPilot()
			p.procs = 1
			r.drive(p, 4096)
			share := float64(r.compressed) / float64(r.bytes)
			if c.most && share > c.compressed || !c.most && share < c.compressed {
				t.Errorf("%.1f %% was compressed", 100*share)
			}
		})
	}
}

func TestALinkThatBecomesSlowIsNoticed(t *testing.T) {
	r := road{link: 2e9, codec: 250e6, ratio: 2.4, disk: 3e9, now: time.Unix(0, 0)}
	p := newPilot()
	p.procs = 1
	r.drive(p, 4096)
	r.link, r.bytes, r.compressed = 50e6, 0, 0
	r.drive(p, 4096)
	if share := float64(r.compressed) / float64(r.bytes); share < 0.5 {
		t.Errorf("%.1f %% was compressed after the link became slow", 100*share)
	}
}
