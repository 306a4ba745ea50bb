package delta

import (
	"context"
	"fmt"
	"io"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Link is one delta of a chain.
type Link struct {
	Name string // for errors, such as its path
	In   io.Reader
}

// Fold writes one delta that does what a chain does, applied in order. The deltas are read side by side, front to
// back, and proven on the way: what was written is a delta only when there is no error.
func Fold(ctx context.Context, out io.Writer, chain []Link, uncompressed bool) (End, error) {
	if len(chain) == 0 {
		return End{}, &Broken{What: "a chain of no deltas"}
	}
	var merged stream
	for i := range chain {
		r, err := NewReader(chain[i].In)
		if err != nil {
			return End{}, fmt.Errorf("%s: %w", chain[i].Name, err)
		}
		next := &link{name: chain[i].Name, assembler: newAssembler(r, false), head: r.Head()}
		if merged == nil {
			merged = next
			continue
		}
		if merged, err = join(merged, next, chain[i-1].Name); err != nil {
			return End{}, err
		}
	}
	f := &folding{}
	if !uncompressed {
		var err error
		if f.pack, err = newPacker(); err != nil {
			return End{}, err
		}
	}
	var err error
	if f.out, err = NewWriter(out, merged.about()); err != nil {
		return End{}, err
	}
	if err := inOrder(ctx, 2*workers(), merged.next, f.prepare, f.take); err != nil {
		return End{}, err
	}
	return f.out.Close(merged.roots())
}

// stream is a delta as steps: one that is read, or several merged into one.
type stream interface {
	about() Head
	next() (step, error)
	// roots are known once next has returned io.EOF.
	roots() (base, after []digest.Digest)
}

// link is a delta that is read.
type link struct {
	*assembler
	name string
	head Head
}

func (l *link) about() Head { return l.head }

func (l *link) next() (step, error) {
	s, err := l.assembler.next()
	if err != nil && err != io.EOF {
		return s, fmt.Errorf("%s: %w", l.name, err)
	}
	if err == nil {
		if s, err = s.prove(); err != nil {
			return s, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return s, err
}

func (l *link) roots() (base, after []digest.Digest) {
	end := l.in.End()
	return end.Base, end.After
}

// joint is an earlier delta and the one that follows it, as one.
type joint struct {
	head         Head
	first        stream
	second       *link
	before       string // the name of the first's last delta
	a, b         step
	aDone, bDone bool
	hasA, hasB   bool
}

// join checks that two deltas follow one another, as far as their heads say.
func join(first stream, second *link, before string) (*joint, error) {
	a, b := first.about(), second.head
	differ := func(what, end, begin string) error {
		return &Broken{First: before, Second: second.name, What: what, End: end, Begin: begin}
	}
	switch {
	case b.Full:
		return nil, differ("the point", a.Point, "nothing: it is a full delta")
	case a.Replication != b.Replication:
		return nil, differ("the replication", a.Replication, b.Replication)
	case len(a.Members) != len(b.Members):
		return nil, differ("the number of volumes", fmt.Sprint(len(a.Members)), fmt.Sprint(len(b.Members)))
	case b.Base != "" && a.Point != b.Base:
		return nil, differ("the point", a.Point, b.Base)
	}
	for v := range a.Members {
		if a.Members[v] != b.Members[v] {
			return nil, differ(fmt.Sprintf("volume %d", v), fmt.Sprint(a.Members[v]), fmt.Sprint(b.Members[v]))
		}
	}
	head := b
	head.Full, head.Base = a.Full, a.Base
	return &joint{head: head, first: first, second: second, before: before}, nil
}

func (j *joint) about() Head { return j.head }

func (j *joint) roots() (base, after []digest.Digest) {
	base, _ = j.first.roots()
	_, after = j.second.roots()
	return base, after
}

// fill takes the next step of each side where none waits.
func (j *joint) fill() (err error) {
	if !j.hasA && !j.aDone {
		if j.a, err = j.first.next(); err == io.EOF {
			j.aDone, err = true, nil
		}
		j.hasA = !j.aDone
	}
	if err == nil && !j.hasB && !j.bDone {
		if j.b, err = j.second.next(); err == io.EOF {
			j.bDone, err = true, nil
		}
		j.hasB = !j.bDone
	}
	return err
}

func (j *joint) next() (step, error) {
	if err := j.fill(); err != nil {
		return step{}, err
	}
	switch {
	case !j.hasA && !j.hasB:
		if err := j.meet(); err != nil {
			return step{}, err
		}
		return step{}, io.EOF
	case !j.hasB || j.hasA && j.a.before(j.b):
		j.hasA = false
		return j.a, nil
	case !j.hasA || j.b.before(j.a):
		j.hasB = false
		return j.b, nil
	}
	j.hasA, j.hasB = false, false
	if j.a.window != nil {
		j.a.window.over(j.b.window)
		j.b.window.release()
		return j.a, nil
	}
	return j.ends(j.a, j.b)
}

// ends merges the end of a segment that both changed: the base of the first, the point of the second.
func (j *joint) ends(a, b step) (step, error) {
	first, second := a.segment, b.segment
	if known(first.After, second.Base) && first.After != second.Base {
		return step{}, j.differ(fmt.Sprintf("segment %d of volume %s", first.Number, j.head.Members[first.Volume].Name), first.After, second.Base)
	}
	out := &segmentStep{Segment: second.Segment}
	out.Base, out.Blocks = first.Base, nil
	x, y := 0, 0
	for n := range out.touched {
		inFirst, inSecond := first.touched[n], second.touched[n]
		if inFirst && inSecond && known(first.next[n], second.Blocks[y]) && first.next[n] != second.Blocks[y] {
			at, _ := blockExtent(j.head.geo(first.Volume), first.Number, n)
			return step{}, j.differ(fmt.Sprintf("the block of volume %s at %d", j.head.Members[first.Volume].Name, at), first.next[n], second.Blocks[y])
		}
		out.touched[n] = inFirst || inSecond
		if inSecond {
			out.next[n] = second.next[n]
		} else {
			out.next[n] = first.next[n]
		}
		if out.touched[n] && !j.head.Full {
			if inFirst {
				out.Blocks = append(out.Blocks, first.Blocks[x])
			} else {
				out.Blocks = append(out.Blocks, second.Blocks[y])
			}
		}
		x, y = x+count(inFirst), y+count(inSecond)
	}
	return step{segment: out, of: out, at: b.at}, nil
}

// meet checks, once both were read whole, that the second starts where the first ends.
func (j *joint) meet() error {
	_, end := j.first.roots()
	begin, _ := j.second.roots()
	for v := range end {
		if !known(end[v], begin[v]) {
			if j.second.head.Base == "" {
				return &Broken{First: j.before, Second: j.second.name, What: "the point", End: j.first.about().Point, Begin: "neither named nor known by digests"}
			}
			continue
		}
		if end[v] != begin[v] {
			return j.differ("volume "+j.head.Members[v].Name, end[v], begin[v])
		}
	}
	return nil
}

func (j *joint) differ(what string, end, begin digest.Digest) error {
	return &Broken{First: j.before, Second: j.second.name, What: what, End: end.String(), Begin: begin.String()}
}

func known(a, b digest.Digest) bool { return a != digest.Unknown && b != digest.Unknown }

func count(v bool) int {
	if v {
		return 1
	}
	return 0
}

// folding writes the merged steps.
type folding struct {
	pack *packer
	out  *Writer
}

// prepare cuts and packs a window's records.
func (f *folding) prepare(s step) (prepared, error) {
	p := prepared{step: s}
	if s.window != nil {
		p.records = f.pack.packAll(s.window)
	}
	return p, nil
}

type prepared struct {
	step
	records []wire.Message
}

func (f *folding) take(p prepared) error {
	if s := p.segment; s != nil {
		return f.out.EndSegment(s.Volume, s.Number, s.Base, s.After, s.Blocks)
	}
	defer p.window.release()
	for _, m := range p.records {
		if err := f.out.Record(m); err != nil {
			return err
		}
	}
	return nil
}
