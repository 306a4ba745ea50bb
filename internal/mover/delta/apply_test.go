package delta_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// machine has the instant on its disks, durably.
func (i instant) machine(t *testing.T, seed uint64) *crash.Machine {
	m := crash.New(seed)
	for v, content := range i {
		d := m.Volume(name(v), int64(len(content)))
		_, err := d.WriteAt(content, 0)
		must(t, errors.Join(err, d.Sync()))
	}
	return m
}

func machineTargets(m *crash.Machine, shape instant) []delta.Target {
	var out []delta.Target
	for v, content := range shape {
		out = append(out, delta.Target{Name: name(v), Volume: m.Volume(name(v), int64(len(content))), Identity: name(v)})
	}
	return out
}

// A crash at any write, with whatever of it the disks keep, and another one while it is continued: applying again
// gives the point.
func TestAnInterruptedApplyIsContinued(t *testing.T) {
	was := instant{pattern(1<<20+300_777, 1), pattern(200_000, 2)}
	now := was.clone()
	copy(now[0][8192:], pattern(4096, 3))
	copy(now[0][24576:], pattern(9000, 4))
	copy(now[0][100_000:], pattern(300_000, 5))
	clear(now[0][1<<20 : 1<<20+131072])
	now[0][1<<20+300_776] ^= 1
	copy(now[1][65536:], pattern(65536, 6))
	point := now.machine(t, 0)
	for how, d := range map[string][]byte{
		"grains": export(t, was, now, byContent, delta.ExportOptions{Base: "old"}),
		"blocks": export(t, was, now, byMap, delta.ExportOptions{Base: "old"}),
		"quick":  export(t, was, now, quickly, delta.ExportOptions{Base: "old"}),
		"full":   export(t, nil, now, byContent, delta.ExportOptions{}),
	} {
		run := func(m *crash.Machine) (delta.Applied, error) {
			return delta.Apply(ctx, bytes.NewReader(d), machineTargets(m, was), delta.ApplyOptions{Notes: m.FS()})
		}
		torn := 0
		for n := 1; ; n++ {
			for seed := range uint64(3) {
				m := was.machine(t, seed)
				m.CrashAfter(n, nil)
				if _, err := run(m); err == nil && !m.Crashed() {
					if torn == 0 && how != "full" {
						t.Errorf("%s: no crash left anything torn", how)
					}
					t.Logf("%s: %d operations, %d torn", how, n-1, torn)
					goto next
				}
				m = m.Restart()
				if _, err := delta.Apply(ctx, bytes.NewReader(d), machineTargets(m.Clone(1), was), delta.ApplyOptions{}); err != nil {
					var wrong *delta.WrongBase
					if !errors.As(err, &wrong) || !wrong.Torn {
						t.Fatalf("%s, crash at %d, without its note: %v", how, n, err)
					}
					torn++
				}
				m.CrashAfter(1+n/2, nil)
				_, _ = run(m)
				m = m.Restart()
				if _, err := run(m); err != nil {
					t.Fatalf("%s, crash at %d: %v", how, n, err)
				}
				m = m.Restart() // what it did is durable
				for v := range now {
					if at, same := crash.Same(m, point, name(v)); !same {
						t.Fatalf("%s, crash at %d: volume %d differs at %d", how, n, v, at)
					}
				}
				if names, _ := m.FS().Names(); len(names) > 0 {
					t.Fatalf("%s, crash at %d: %v is left", how, n, names)
				}
			}
		}
	next:
	}
}

// What is torn is taken for what an interrupted apply left only when there was one, or when somebody says so.
func TestATornBlockNeedsAReason(t *testing.T) {
	was := instant{pattern(4*65536, 1)}
	now := instant{pattern(4*65536, 2)}
	d := export(t, was, now, byContent, delta.ExportOptions{Base: "old"})
	torn := was.clone()
	copy(torn[0][512:1024], now[0][512:1024])
	ds := torn.disks()
	_, err := apply(ds, d, delta.ApplyOptions{})
	var wrong *delta.WrongBase
	if !errors.As(err, &wrong) || !wrong.Torn || !strings.Contains(err.Error(), "--interrupted") {
		t.Fatalf("got %v", err)
	}
	must(t, torn.on(ds))
	if _, err := apply(ds, d, delta.ApplyOptions{Interrupted: true}); err != nil {
		t.Fatal(err)
	}
	must(t, now.on(ds))
}

// The bytes a delta leaves alone inside a block it changes must be those of the base, whatever anybody says.
func TestANoteDoesNotExcuseForeignBytes(t *testing.T) {
	was := instant{pattern(4*65536, 1)}
	now := was.clone()
	now[0][5000] ^= 1
	d := export(t, was, now, byContent, delta.ExportOptions{Base: "old"})
	for _, at := range []int{100, 2 * 65536} { // in the block, in the segment
		foreign := was.clone()
		foreign[0][at] ^= 1
		ds := foreign.disks()
		var wrong *delta.WrongBase
		if _, err := apply(ds, d, delta.ApplyOptions{Interrupted: true}); !errors.As(err, &wrong) || wrong.Torn {
			t.Fatalf("byte %d: %v", at, err)
		}
		must(t, foreign.on(ds))
	}
}

// --check=full finds a difference where the delta changes nothing.
func TestAFullCheckLooksEverywhere(t *testing.T) {
	was := instant{make([]byte, 2*digest.SegmentSize+5)}
	copy(was[0], pattern(100_000, 1))
	now := was.clone()
	now[0][5] ^= 1
	d := export(t, was, now, byContent, delta.ExportOptions{Base: "old"})
	foreign := was.clone()
	foreign[0][2*digest.SegmentSize+1] ^= 1
	ds := foreign.disks()
	var wrong *delta.WrongBase
	_, err := apply(ds, d, delta.ApplyOptions{Full: true})
	if !errors.As(err, &wrong) || wrong.Length != int64(len(was[0])) {
		t.Fatalf("got %v", err)
	}
	must(t, foreign.on(ds))
	if _, err := apply(ds, d, delta.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	ds = was.disks()
	for range 2 {
		if _, err := apply(ds, d, delta.ApplyOptions{Full: true}); err != nil {
			t.Fatal(err)
		}
	}
	must(t, now.on(ds))

	var unknown *delta.NotKnown
	d = export(t, was, now, quickly, delta.ExportOptions{Base: "old"})
	if _, err := apply(was.disks(), d, delta.ApplyOptions{Full: true}); !errors.As(err, &unknown) {
		t.Errorf("a delta that does not know its base whole: %v", err)
	}
}

func TestVolumesThatAreNotTheDeltasAreRefused(t *testing.T) {
	was, now := small()
	d := export(t, was, now, byContent, delta.ExportOptions{Base: "old"})
	ds := was.disks()
	var members *delta.MembersDiffer
	for what, targets := range map[string][]delta.Target{
		"one missing": ds.targets()[:2],
		"one more":    append(ds.targets(), delta.Target{Name: "v9", Volume: ds[0]}),
		"one twice":   append(ds.targets()[:2], ds.targets()[1]),
	} {
		if _, err := delta.Apply(ctx, bytes.NewReader(d), targets, delta.ApplyOptions{}); !errors.As(err, &members) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, by := range []int{-1, 1} {
		other := was.disks()
		other[1].b = make([]byte, len(was[1])+by)
		var size *delta.SizeDiffers
		if _, err := apply(other, d, delta.ApplyOptions{}); !errors.As(err, &size) || size.Volume != "v1" || !delta.Refused(err) {
			t.Errorf("%+d bytes: %v", by, err)
		}
	}
	must(t, was.on(ds))
}

// A delta is never half applied because a volume fails: the next try completes it.
func TestAVolumeThatFailsIsNamed(t *testing.T) {
	was := instant{pattern(3<<20, 1)}
	now := instant{pattern(3<<20, 2)}
	d := export(t, was, now, byContent, delta.ExportOptions{Base: "old"})
	for _, op := range []string{"read", "write", "sync"} {
		m := was.machine(t, 1)
		n := 0
		m.FailWith(func(o, name string) error {
			if o == op && name == "v0" {
				if n++; n > 2 || op == "sync" {
					return os.ErrPermission
				}
			}
			return nil
		})
		var failed *delta.VolumeError
		run := func() error {
			_, err := delta.Apply(ctx, bytes.NewReader(d), machineTargets(m, was), delta.ApplyOptions{Notes: m.FS()})
			return err
		}
		if err := run(); !errors.As(err, &failed) || failed.Volume != "v0" || !errors.Is(err, os.ErrPermission) || delta.Refused(err) {
			t.Fatalf("%s: %v", op, err)
		}
		m.FailWith(nil)
		must(t, run())
		if at, same := crash.Same(m, now.machine(t, 1), "v0"); !same {
			t.Fatalf("%s: differs at %d", op, at)
		}
	}
}

// A list that leaves a change out makes a delta that is right all the same, or one that is refused. Only a block that
// nobody read, because the list left the whole of it out and the base's map was taken for it, cannot be noticed.
func TestAnIncompleteListIsNoticed(t *testing.T) {
	was := instant{pattern(4*65536, 1)}
	now := was.clone()
	now[0][0], now[0][9000], now[0][65536*2] = 1, 1, 1
	list := changes(was[0], now[0])
	for n := range list {
		for _, how := range []way{byContentAndList, byMapAndList} {
			s := sources(t, was, now, how)
			s[0].Extents = slices.Delete(slices.Clone(list), n, n+1)
			var out bytes.Buffer
			_, err := delta.Export(ctx, &out, s, delta.ExportOptions{Base: "old", Point: "new"})
			must(t, err)
			ds := was.disks()
			_, err = apply(ds, out.Bytes(), delta.ApplyOptions{})
			unread := how == byMapAndList && n == 2
			switch {
			case err == nil && !unread:
				must(t, now.on(ds))
			case err != nil && !delta.Refused(err):
				t.Errorf("way %d without extent %d: %v", how, n, err)
			case err != nil:
				must(t, was.on(ds))
			}
		}
	}
}

func TestChainsThatAreNoneAreRefused(t *testing.T) {
	a := instant{pattern(100_000, 1), pattern(5000, 2)}
	b, c := a.clone(), a.clone()
	copy(b[0], "b")
	copy(c[0], "c")
	copy(c[1], "c")
	ab := export(t, a, b, byContent, delta.ExportOptions{Base: "a", Point: "b"})
	bc := export(t, b, c, byContent, delta.ExportOptions{Base: "b", Point: "c"})
	small := instant{a[0]}
	for what, chain := range map[string][][]byte{
		"none":                  {},
		"the wrong order":       {bc, ab},
		"another point":         {ab, export(t, b, c, byContent, delta.ExportOptions{Base: "x", Point: "c"})},
		"the point's name only": {ab, export(t, a, c, byContent, delta.ExportOptions{Base: "b", Point: "c"})},
		"the same, quick":       {export(t, a, b, quickly, delta.ExportOptions{Base: "a", Point: "b"}), export(t, a, c, quickly, delta.ExportOptions{Base: "b", Point: "c"})},
		"a full one behind":     {ab, export(t, nil, c, byContent, delta.ExportOptions{})},
		"other volumes":         {ab, export(t, small, small, byContent, delta.ExportOptions{Base: "b"})},
		"another replication":   {ab, export(t, b, c, byContent, delta.ExportOptions{Base: "b", Replication: "x"})},
		"nothing known":         {export(t, a, b, quickly, delta.ExportOptions{Point: "b"}), export(t, b, c, quickly, delta.ExportOptions{})},
	} {
		var broken *delta.Broken
		if _, err := delta.Fold(ctx, &bytes.Buffer{}, links(chain), false); !errors.As(err, &broken) || !delta.Refused(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ab[len(ab)-1] ^= 1
	var corrupt *delta.Corrupt
	if _, err := delta.Fold(ctx, &bytes.Buffer{}, links([][]byte{ab, bc}), false); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "d0") {
		t.Errorf("a damaged one: %v", err)
	}
}

// A base of the right name that is another instant is found where neither delta changes anything: by the digest of the
// segment, and by the root of the volume.
func TestAChainIsCheckedWhereNothingChanges(t *testing.T) {
	a := instant{make([]byte, digest.SegmentSize+5000)}
	b := a.clone()
	b[0][0] = 1
	for at, how := range map[int]way{10 * 65536: byContentAndList, digest.SegmentSize + 1: byContent} {
		foreign := b.clone()
		foreign[0][at] = 1
		next := foreign.clone()
		next[0][0] = 2
		chain := links([][]byte{export(t, a, b, how, delta.ExportOptions{Point: "b"}), export(t, foreign, next, how, delta.ExportOptions{Base: "b"})})
		var broken *delta.Broken
		if _, err := delta.Fold(ctx, &bytes.Buffer{}, chain, false); !errors.As(err, &broken) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

// Deltas whose base has no name are a chain by what they hold.
func TestAChainWithoutNamesIsFoundByDigests(t *testing.T) {
	a := instant{pattern(100_000, 1)}
	b, c := a.clone(), a.clone()
	copy(b[0], "b")
	copy(c[0][90_000:], "c")
	var folded bytes.Buffer
	chain := [][]byte{export(t, a, b, byMap, delta.ExportOptions{}), export(t, b, c, byContent, delta.ExportOptions{})}
	if _, err := delta.Fold(ctx, &folded, links(chain), false); err != nil {
		t.Fatal(err)
	}
	mustApply(t, folded.Bytes(), a, c)
}

func links(chain [][]byte) (out []delta.Link) {
	for n, d := range chain {
		out = append(out, delta.Link{Name: fmt.Sprintf("d%d", n), In: bytes.NewReader(d)})
	}
	return out
}

// The map that an export writes is that of the volume, whatever way the changes were found.
func TestAnExportWritesTheNewMap(t *testing.T) {
	was := instant{pattern(digest.SegmentSize+200_000, 1)}
	now := was.clone()
	copy(now[0][70_000:], "changed")
	for _, how := range []way{byContent, byMap, byMapAndList} {
		s := sources(t, was, now, how)
		s[0].NewMap = newMap(t, len(now[0]))
		_, err := delta.Export(ctx, &bytes.Buffer{}, s, delta.ExportOptions{Base: "old", Point: "new"})
		must(t, err)
		got, err := s[0].NewMap.Root()
		must(t, err)
		want, err := mapOf(t, now[0]).Root()
		must(t, err)
		if got != want {
			t.Errorf("way %d: root %s instead of %s", how, got, want)
		}
	}
	s := sources(t, was, now, byContentAndList)
	s[0].NewMap = newMap(t, len(now[0]))
	var unknown *delta.NotKnown
	if _, err := delta.Export(ctx, &bytes.Buffer{}, s, delta.ExportOptions{Point: "new"}); !errors.As(err, &unknown) {
		t.Errorf("a map of what was not read: %v", err)
	}
}

// What cannot be compressed is soon left alone, what can be is.
func TestCompressionBacksOff(t *testing.T) {
	noise := instant{pattern(8<<20, 1)}
	s := verify(t, export(t, nil, noise, byContent, delta.ExportOptions{}))
	if s.Packed != s.End.DataBytes {
		t.Errorf("noise: %d bytes take %d", s.End.DataBytes, s.Packed)
	}
	text := instant{bytes.Repeat([]byte("lifeboat "), 1<<19)}
	s = verify(t, export(t, nil, text, byContent, delta.ExportOptions{}))
	if s.Packed*10 > s.End.DataBytes {
		t.Errorf("text: %d bytes take %d", s.End.DataBytes, s.Packed)
	}
}

// A sparse volume's delta is small, and what was never written is not read.
func TestASparseVolumeCostsLittle(t *testing.T) {
	size := int64(2<<30 + 1000)
	v := &sparse{size: size, at: 1<<30 + 4096, data: []byte("here")}
	var out bytes.Buffer
	m := newMap(t, int(size))
	source := delta.Source{Name: "v0", Volume: v, NewMap: m, Listed: true, Extents: []digest.Extent{{Offset: v.at, Length: 4096}}}
	end, err := delta.Export(ctx, &out, []delta.Source{source}, delta.ExportOptions{Point: "p"})
	must(t, err)
	root, err := m.Root()
	must(t, err)
	if root != end.After[0] {
		t.Errorf("the map's root is %s, the delta's %s", root, end.After[0])
	}
	s := verify(t, out.Bytes())
	if s.End.HoleBytes+s.End.DataBytes != size || s.End.DataBytes != digest.BlockSize || out.Len() > 100_000 || v.read > 1<<20 {
		t.Errorf("%d bytes, %d read: %+v", out.Len(), v.read, s.End)
	}
	if m := s.Head.Members[0]; m != (wire.Member{Name: "v0", Size: size}) {
		t.Errorf("member %+v", m)
	}
	// The same, all of it read.
	source = delta.Source{Name: "v0", Volume: &sparse{size: size, at: v.at, data: v.data}}
	if all, err := delta.Export(ctx, io.Discard, []delta.Source{source}, delta.ExportOptions{Point: "p"}); err != nil || all.After[0] != root {
		t.Errorf("read whole, the root is %s (%v)", all.After[0], err)
	}
}

// sparse is a large volume with a few bytes in it.
type sparse struct {
	size, at int64
	data     []byte
	read     int64
}

func (s *sparse) Size() int64  { return s.size }
func (s *sparse) Close() error { return nil }
func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	s.read += int64(len(p))
	clear(p)
	if s.at >= off && s.at < off+int64(len(p)) {
		copy(p[s.at-off:], s.data)
	}
	return len(p), nil
}
