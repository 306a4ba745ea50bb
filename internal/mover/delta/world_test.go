package delta_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

var ctx = context.Background()

// instants are the contents of a group's volumes at one moment, by volume.
type instant [][]byte

func (i instant) clone() instant {
	out := make(instant, len(i))
	for v := range i {
		out[v] = bytes.Clone(i[v])
	}
	return out
}

func name(v int) string { return fmt.Sprintf("v%d", v) }

// disks are volumes of a machine that never crashes.
type disks []*disk

// disk is a volume in memory.
type disk struct{ b []byte }

func (d *disk) Size() int64  { return int64(len(d.b)) }
func (d *disk) Close() error { return nil }
func (d *disk) Sync() error  { return nil }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if n := copy(p, d.b[min(off, d.Size()):]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.Size() {
		return 0, fmt.Errorf("%d bytes at %d are beyond the end", len(p), off)
	}
	return copy(d.b[off:], p), nil
}

func (d *disk) Zero(off, length int64) error {
	clear(d.b[off : off+length])
	return nil
}

// disks have a copy of the instant on them.
func (i instant) disks() disks {
	var out disks
	for _, content := range i {
		out = append(out, &disk{bytes.Clone(content)})
	}
	return out
}

func (ds disks) targets() []delta.Target {
	var out []delta.Target
	for v, d := range ds {
		out = append(out, delta.Target{Name: name(v), Volume: d, Identity: name(v)})
	}
	slices.Reverse(out) // the order is the delta's
	return out
}

// on reports where disks differ from the instant.
func (i instant) on(ds disks) error {
	for v, content := range i {
		if !bytes.Equal(ds[v].b, content) {
			return fmt.Errorf("volume %d differs at %v", v, changes(ds[v].b, content)[0])
		}
	}
	return nil
}

// memory is the storage of a digest map.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(n int64) error { m.b = append(m.b[:0], make([]byte, n)...); return nil }
func (m *memory) Sync() error            { return nil }

func newMap(t fatal, size int) *digest.Map {
	m, err := digest.CreateMap(&memory{}, digest.Geometry{Size: int64(size)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mapOf(t fatal, content []byte) *digest.Map {
	m := newMap(t, len(content))
	blocks := digest.Blocks(content)
	for s := range (digest.Geometry{Size: int64(len(content))}).Segments() {
		n := min(len(blocks), digest.BlocksPerSegment)
		if err := m.SetSegment(s, blocks[:n]); err != nil {
			t.Fatal(err)
		}
		blocks = blocks[n:]
	}
	return m
}

type fatal interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// way is how changes are found.
type way int

const (
	byContent way = iota
	byMap
	byContentAndList
	byMapAndList
	quickly
	ways
)

// changes lists the grains that differ.
func changes(was, now []byte) []digest.Extent {
	var out []digest.Extent
	for at := 0; at < len(now); at += 4096 {
		end := min(at+4096, len(now))
		if bytes.Equal(was[at:end], now[at:end]) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length == int64(at) {
			out[n-1].Length += int64(end - at)
			continue
		}
		out = append(out, digest.Extent{Offset: int64(at), Length: int64(end - at)})
	}
	return out
}

func sources(t fatal, was, now instant, how way) []delta.Source {
	var out []delta.Source
	for v := range now {
		s := delta.Source{Name: name(v), Volume: &disk{now[v]}}
		if was != nil {
			if how == byMap || how == byMapAndList {
				s.Map = mapOf(t, was[v])
			} else {
				s.Base = &disk{was[v]}
			}
			if how >= byContentAndList {
				s.Listed, s.Extents = true, changes(was[v], now[v])
			}
		}
		out = append(out, s)
	}
	return out
}

var when = time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)

// export is the delta from was, or from nothing, to now.
func export(t fatal, was, now instant, how way, o delta.ExportOptions) []byte {
	t.Helper()
	var out bytes.Buffer
	o.Quick = how == quickly
	if o.Point == "" {
		o.Point = "new"
	}
	end, err := delta.Export(ctx, &out, sources(t, was, now, how), o)
	if err != nil {
		t.Fatal(err)
	}
	s := verify(t, out.Bytes())
	if s.End.Sum != end.Sum || s.Bytes != int64(out.Len()) {
		t.Fatalf("the export says %+v, the delta %+v", end, s.End)
	}
	return out.Bytes()
}

func verify(t fatal, d []byte) delta.Summary {
	t.Helper()
	s, err := delta.Verify(ctx, bytes.NewReader(d), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func apply(ds disks, d []byte, o delta.ApplyOptions) (delta.Applied, error) {
	return delta.Apply(ctx, bytes.NewReader(d), ds.targets(), o)
}

// mustApply applies, looks, and applies again.
func mustApply(t fatal, d []byte, was, now instant) {
	t.Helper()
	ds := was.disks()
	for n := range 2 {
		a, err := apply(ds, d, delta.ApplyOptions{})
		if err != nil {
			t.Fatal(n, err)
		}
		if err := now.on(ds); err != nil {
			t.Fatal(n, err)
		}
		if n == 1 && !a.Already && !a.Summary.Head.Full {
			t.Fatal("the second time wrote again")
		}
	}
}

func must(t fatal, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
