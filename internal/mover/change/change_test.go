package change

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/localcsi/localcsitest"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

func TestGrainIsThatOfTheWire(t *testing.T) {
	if Grain != wire.Grain {
		t.Errorf("lists are in units of %d bytes, records in units of %d", Grain, wire.Grain)
	}
}

func TestMain(m *testing.M) { os.Exit(localcsitest.Main(m)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wellFormed fails unless the extents keep the invariant of List.
func wellFormed(t interface{ Fatalf(string, ...any) }, size, grain int64, extents []digest.Extent) {
	behind := int64(-1)
	for _, e := range extents {
		end := e.Offset + e.Length
		switch {
		case e.Length <= 0 || e.Offset < 0 || end > size:
			t.Fatalf("%v is empty or leaves the volume of %d bytes", e, size)
		case e.Offset <= behind:
			t.Fatalf("%v touches the extent before it, which ends at %d", e, behind)
		case e.Offset%grain != 0 || end%grain != 0 && end != size:
			t.Fatalf("%v is not aligned to %d", e, grain)
		}
		behind = end
	}
}

// covered tells whether the run lies in one of the extents.
func covered(extents []digest.Extent, offset, length int64) bool {
	i, _ := slices.BinarySearchFunc(extents, offset, func(e digest.Extent, at int64) int {
		if e.Offset+e.Length <= at {
			return -1
		}
		return 1
	})
	return i < len(extents) && extents[i].Offset <= offset && offset+length <= extents[i].Offset+extents[i].Length
}

func anExtent(size int64) *rapid.Generator[digest.Extent] {
	return rapid.Custom(func(t *rapid.T) digest.Extent {
		offset := rapid.Int64Range(0, size).Draw(t, "offset")
		return digest.Extent{Offset: offset, Length: rapid.Int64Range(0, min(size-offset, 1<<20)).Draw(t, "length")}
	})
}

func TestNormalizeLosesNothingAndAddsLessThanAGrain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 1<<30).Draw(t, "size")
		grain := int64(1) << rapid.IntRange(0, 22).Draw(t, "grain")
		in := rapid.SliceOfN(anExtent(size), 0, 50).Draw(t, "extents")
		before := slices.Clone(in)
		out, err := Normalize(size, in, grain)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(in, before) {
			t.Fatalf("the argument was changed")
		}
		wellFormed(t, size, grain, out)
		for _, e := range in {
			if e.Length > 0 && !covered(out, e.Offset, e.Length) {
				t.Fatalf("%v is lost in %v", e, out)
			}
		}
		for _, e := range out {
			for _, edge := range []int64{e.Offset, e.Offset + e.Length - 1} {
				if !slices.ContainsFunc(in, func(i digest.Extent) bool {
					return i.Length > 0 && edge > i.Offset-grain && edge < i.Offset+i.Length+grain
				}) {
					t.Fatalf("%v lists byte %d that nothing given is near", e, edge)
				}
			}
		}
	})
}

func TestNormalizeRefusesWhatLeavesTheVolume(t *testing.T) {
	for _, e := range []digest.Extent{{Offset: -1, Length: 1}, {Offset: 0, Length: 101}, {Offset: 101, Length: 0}, {Offset: 5, Length: -1}, {Offset: 99, Length: 1<<63 - 1}} {
		if out, err := Normalize(100, []digest.Extent{e}, Grain); err == nil {
			t.Errorf("%v is taken: %v", e, out)
		}
	}
}

func TestLongListGetsCoarserAndLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1<<20, 1<<34).Draw(t, "size")
		in := rapid.SliceOfN(anExtent(size), 0, 300).Draw(t, "extents")
		slices.SortFunc(in, func(a, b digest.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
		b := newBuilder(size)
		b.limit = rapid.IntRange(1, 20).Draw(t, "limit")
		for _, e := range in {
			b.add(e.Offset, e.Length)
			if len(b.extents) > b.limit {
				t.Fatalf("%d extents, the limit is %d", len(b.extents), b.limit)
			}
		}
		wellFormed(t, size, b.grain, b.extents)
		for _, e := range in {
			if e.Length > 0 && !covered(b.extents, e.Offset, e.Length) {
				t.Fatalf("%v is lost", e)
			}
		}
	})
}

func TestAMillionExtentsAreAllTheMemoryThereIs(t *testing.T) {
	const size = int64(1) << 40
	b := newBuilder(size)
	for at := int64(0); at < 3*MaxExtents*2*Grain; at += 2 * Grain {
		b.add(at, 1)
	}
	if b.grain != digest.BlockSize {
		t.Errorf("the grain became %d; the first coarser one is %d", b.grain, digest.BlockSize)
	}
	if cap(b.extents) > 2*MaxExtents {
		t.Errorf("room for %d extents is held", cap(b.extents))
	}
	wellFormed(t, size, b.grain, b.extents)
}

func TestOriginIsExactlyOne(t *testing.T) {
	csi := &CSI{Address: "metadata:50051", CAFile: "ca", TokenFile: "token", Namespace: "shop", Snapshot: "s2"}
	withBase := *csi
	withBase.BaseSnapshot = "handle-1"
	noPort := withBase
	noPort.Address = "metadata"
	for _, c := range []struct {
		name  string
		o     Origin
		delta bool
		field string // of the refusal; empty: taken
	}{
		{"nothing to compare with", Origin{}, true, "origin"},
		{"the volume itself knows what is allocated", Origin{}, false, ""},
		{"two at once", Origin{File: "f", BaseFile: "b"}, true, "file and baseFile"},
		{"three at once", Origin{File: "f", BaseFile: "b", CSI: csi}, true, "file and baseFile and csi"},
		{"a base says nothing about what was ever written", Origin{BaseFile: "b"}, false, "baseFile"},
		{"a delta from CSI needs a base", Origin{CSI: csi}, true, "csi.baseSnapshot"},
		{"allocated from CSI needs none", Origin{CSI: csi}, false, ""},
		{"delta from CSI", Origin{CSI: &withBase}, true, ""},
		{"an address has a port", Origin{CSI: &noPort}, true, "csi.address"},
		{"an empty CSI", Origin{CSI: &CSI{}}, false, "csi.address"},
	} {
		err := c.o.check(c.delta)
		var bad *BadOrigin
		switch {
		case c.field == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.field != "" && (!errors.As(err, &bad) || bad.Field != c.field):
			t.Errorf("%s: %v, want a refusal of %s", c.name, err, c.field)
		}
	}
}

func TestExtentsFileComesBackAsWritten(t *testing.T) {
	for _, l := range []List{
		{Size: 0},
		{Size: 1 << 30},
		{Size: 1 << 30, Extents: []digest.Extent{{Offset: 0, Length: 1 << 30}}},
		{Size: 10_000, Extents: []digest.Extent{{Offset: 0, Length: 4096}, {Offset: 8192, Length: 10_000 - 8192}}},
	} {
		path := filepath.Join(t.TempDir(), "extents")
		must(t, WriteFile(path, l))
		got, err := ReadFile(path, l.Size)
		must(t, err)
		if !slices.Equal(got.Extents, l.Extents) || got.Size != l.Size {
			t.Errorf("got %v, want %v", got, l)
		}
		left, err := os.ReadDir(filepath.Dir(path))
		must(t, err)
		if len(left) != 1 {
			t.Errorf("%v is left beside the file", left)
		}
	}
}

const goodFile = "lifeboat-extents 1\nsize 1048576\n0 4096\n8192 4096\n12288 100\n65536 65536\nend 4\n"

func TestExtentsFileIsWidenedToTheGrain(t *testing.T) {
	l, err := Read(strings.NewReader(goodFile), "f", 1<<20)
	must(t, err)
	want := []digest.Extent{{Offset: 0, Length: 4096}, {Offset: 8192, Length: 8192}, {Offset: 65536, Length: 65536}}
	if !slices.Equal(l.Extents, want) {
		t.Errorf("got %v, want %v", l.Extents, want)
	}
	if l.Bytes() != 4096+8192+65536 {
		t.Errorf("%d bytes", l.Bytes())
	}
}

func TestExtentsFileThatEndsEarlyIsNoList(t *testing.T) {
	for n := range len(goodFile) - 1 { // without its last newline it is still whole
		_, err := Read(strings.NewReader(goodFile[:n]), "f", 1<<20)
		var bad *BadFile
		var differs *SizeDiffers // cut inside the size
		if errors.As(err, &differs) {
			continue
		}
		if !errors.As(err, &bad) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		// The line that was cut, or the one missing behind it.
		if line := strings.Count(goodFile[:n], "\n") + 1; bad.Line != line && bad.Line != line+1 {
			t.Errorf("cut at %d, in line %d: the error names line %d", n, line, bad.Line)
		}
	}
}

func TestBadExtentsFileNamesFileAndLine(t *testing.T) {
	const head = "lifeboat-extents 1\nsize 1048576\n"
	for name, c := range map[string]struct {
		text string
		line int
	}{
		"empty file":            {"", 1},
		"another kind of file":  {"#!/bin/sh\n", 1},
		"a later version":       {"lifeboat-extents 2\nsize 1\nend 0\n", 1},
		"no size":               {"lifeboat-extents 1\n0 4096\nend 1\n", 2},
		"a size with a sign":    {"lifeboat-extents 1\nsize +5\nend 0\n", 2},
		"out of order":          {head + "8192 4096\n0 4096\nend 2\n", 4},
		"overlapping":           {head + "0 8192\n4096 8192\nend 2\n", 4},
		"outside the volume":    {head + "0 4096\n1044480 8192\nend 2\n", 4},
		"behind the volume":     {head + "1048576 4096\nend 1\n", 3},
		"an overflow":           {head + "4096 9223372036854775807\nend 1\n", 3},
		"beyond 63 bits":        {head + "9223372036854775808 1\nend 1\n", 3},
		"negative":              {head + "-4096 4096\nend 1\n", 3},
		"no length":             {head + "4096\nend 1\n", 3},
		"an empty extent":       {head + "4096 0\nend 1\n", 3},
		"three numbers":         {head + "0 4096 4096\nend 1\n", 3},
		"two spaces":            {head + "0  4096\nend 1\n", 3},
		"words":                 {head + "start 4096\nend 1\n", 3},
		"a blank line":          {head + "\n0 4096\nend 1\n", 3},
		"fewer than it counts":  {head + "0 4096\nend 2\n", 4},
		"more than it counts":   {head + "0 4096\n8192 1\nend 1\n", 5},
		"something after it":    {head + "0 4096\nend 1\n8192 4096\n", 5},
		"no count":              {head + "0 4096\nend \n", 4},
		"a line without an end": {head + strings.Repeat("9", 1<<17), 3},
	} {
		_, err := Read(strings.NewReader(c.text), "list.txt", 1<<20)
		var bad *BadFile
		if !errors.As(err, &bad) || bad.Line != c.line || bad.Path != "list.txt" || !strings.Contains(err.Error(), "list.txt, line ") {
			t.Errorf("%s: %v, want a refusal of line %d", name, err, c.line)
		}
	}
	_, err := Read(strings.NewReader(head+"end 0\n"), "list.txt", 2<<20)
	var differs *SizeDiffers
	if !errors.As(err, &differs) || differs.Listed != 1<<20 || differs.Size != 2<<20 {
		t.Errorf("a list of another volume: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(goodFile)
	f.Add("lifeboat-extents 1\nsize 1048576\n0 1\nend 1")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Read(strings.NewReader(text), "f", 1<<20)
		if err != nil {
			return
		}
		wellFormed(t, 1<<20, Grain, l.Extents)
		if !strings.Contains(text, "\n"+fileEnd) {
			t.Fatalf("a file without an end line is taken: %q", text)
		}
	})
}
