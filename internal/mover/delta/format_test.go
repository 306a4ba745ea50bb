package delta_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

var update = flag.Bool("update", false, "write the golden deltas anew")

// pattern is n bytes that do not repeat soon.
func pattern(n int, seed byte) []byte {
	out := make([]byte, 0, n+32)
	for sum := blake3.Sum256([]byte{seed}); len(out) < n; sum = blake3.Sum256(sum[:]) {
		out = append(out, sum[:]...)
	}
	return out[:n]
}

// small are two instants of two volumes with one of everything: a run of grains, two runs in one block, whole blocks,
// a block that became zero, an odd end, a volume that did not change at all.
func small() (was, now instant) {
	was = instant{pattern(5*65536+777, 1), pattern(4096, 2), pattern(8192, 3)}
	now = was.clone()
	copy(now[0][4096:], pattern(4096, 4))
	copy(now[0][16384:], "a word")
	clear(now[0][65536 : 2*65536])
	copy(now[0][3*65536+100:], bytes.Repeat([]byte("text "), 2000))
	now[0][5*65536+776] ^= 1
	now[2][0] ^= 1
	return was, now
}

var golden = map[string]func(t *testing.T) []byte{
	"full": func(t *testing.T) []byte {
		was, _ := small()
		return export(t, nil, was[1:], byContent, delta.ExportOptions{Replication: "shop/pg", Point: "p1", PointTime: when, Uncompressed: true})
	},
	"changes": func(t *testing.T) []byte {
		was, now := small()
		return export(t, was, now, byContent, delta.ExportOptions{Replication: "shop/pg", Base: "p1", Point: "p2", PointTime: when, Uncompressed: true})
	},
	"quick": func(t *testing.T) []byte {
		was, now := small()
		return export(t, was, now, quickly, delta.ExportOptions{Point: "p2", Uncompressed: true})
	},
}

// The bytes of format 1 never change: archives hold them.
func TestDeltasAreTheGoldenOnes(t *testing.T) {
	for name, make := range golden {
		got := make(t)
		path := filepath.Join("testdata", "v1-"+name+".hex")
		if *update {
			must(t, os.WriteFile(path, []byte(hex.Dump(got)), 0o644))
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if hex.Dump(got) != string(want) {
			t.Errorf("%s is written differently than before: see git diff after -update", name)
		}
	}
}

// How zstd packs may change; what it packed once must stay readable.
func TestAPackedDeltaOfBeforeIsRead(t *testing.T) {
	was, now := small()
	path := filepath.Join("testdata", "v1-packed.delta")
	if *update {
		d := export(t, was, now, byContent, delta.ExportOptions{Replication: "shop/pg", Base: "p1", Point: "p2", PointTime: when})
		must(t, os.WriteFile(path, d, 0o644))
	}
	d, err := os.ReadFile(path)
	must(t, err)
	s := verify(t, d)
	if h := s.Head; h.Replication != "shop/pg" || h.Base != "p1" || h.Point != "p2" || !h.PointTime.Equal(when) || s.Packed >= s.End.DataBytes {
		t.Errorf("read %+v", s)
	}
	mustApply(t, d, was, now)
}

// refusedAs says whether an error is what damage must come to.
func refusedAs(err error) bool {
	var corrupt *delta.Corrupt
	return errors.As(err, &corrupt) && delta.Refused(err)
}

func tiny(t testing.TB) (was, now instant, d []byte) {
	was = instant{make([]byte, 65536+9)}
	now = was.clone()
	copy(now[0][70:], "a word")
	now[0][65540] ^= 1
	return was, now, export(t, was, now, byContent, delta.ExportOptions{Base: "p1", Point: "p2"})
}

func TestADeltaCutAnywhereIsRefused(t *testing.T) {
	was, _, d := tiny(t)
	for n := range d {
		if _, err := delta.Verify(ctx, bytes.NewReader(d[:n]), nil); !refusedAs(err) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(d), err)
		}
	}
	ds := was.disks()
	if _, err := apply(ds, d[:len(d)-1], delta.ApplyOptions{}); !refusedAs(err) {
		t.Fatalf("applied: %v", err)
	}
	must(t, was.on(ds))
}

func TestEveryFlippedBitOfADeltaIsNoticed(t *testing.T) {
	_, _, d := tiny(t)
	for i := range d {
		for bit := range 8 {
			d[i] ^= 1 << bit
			if _, err := delta.Verify(ctx, bytes.NewReader(d), nil); !refusedAs(err) {
				t.Fatalf("bit %d of byte %d of %d: %v", bit, i, len(d), err)
			}
			d[i] ^= 1 << bit
		}
	}
	if _, err := delta.Verify(ctx, bytes.NewReader(append(d, 0)), nil); !refusedAs(err) {
		t.Fatalf("a byte behind the end: %v", err)
	}
}

// Frames that are whole one by one, and not a delta together.
func TestMissingRepeatedAndForeignFramesAreRefused(t *testing.T) {
	was, now := small()
	parts := frames(t, export(t, was, now, byContent, delta.ExportOptions{Base: "p1", Point: "p2"}))
	other := frames(t, export(t, was, now, byContent, delta.ExportOptions{Base: "p1", Point: "p3"}))
	whole := sealed(parts...)
	verify(t, whole)
	refuse := func(what string, n int, parts [][]byte) {
		t.Helper()
		if _, err := delta.Verify(ctx, bytes.NewReader(sealed(parts...)), nil); !refusedAs(err) {
			t.Errorf("frame %d %s: %v", n, what, err)
		}
	}
	for n := range parts {
		refuse("left out", n, append(append([][]byte{}, parts[:n]...), parts[n+1:]...))
		refuse("repeated", n, append(append([][]byte{}, parts[:n+1]...), parts[n:]...))
		if n+1 < len(parts) {
			swapped := append([][]byte{}, parts...)
			swapped[n], swapped[n+1] = swapped[n+1], swapped[n]
			refuse("behind the next", n, swapped)
		}
	}
	refuse("of another delta", 0, append([][]byte{other[0]}, parts[1:]...))
	refuse("of another delta", len(parts)-1, append(append([][]byte{}, parts[:len(parts)-1]...), other[len(parts)-1]))
	foreign := wire.Append(nil, wire.Pulse{Phase: wire.PhaseWaiting})
	refuse("of a session", 1, append([][]byte{parts[0], foreign}, parts[1:]...))
	old, body := wire.EncodeAs(nil, wire.SegmentEnd{}, 1)
	refuse("of protocol 1", 1, append([][]byte{parts[0], append(old, body...)}, parts[1:]...))
}

// Deltas whose frames are whole and in order, and which say what cannot be.
func TestWhatContradictsItselfIsRefused(t *testing.T) {
	zero := make([]byte, 65536)
	block, word := pattern(65536, 1), append([]byte("word"), make([]byte, 4092)...)
	of := digest.Block(block)
	data := func(offset int64, p []byte, digests ...digest.Digest) wire.Data {
		return wire.Data{Offset: offset, Length: len(p), Digests: digests, Payload: p}
	}
	whole := data(0, block, of)
	second := wire.Data{Volume: 1, Length: 65536, Digests: []digest.Digest{of}, Payload: block}
	for what, c := range map[string]struct {
		full    bool
		end     digest.Digest
		records []wire.Message
	}{
		"a digest of other bytes":     {false, digest.Unknown, []wire.Message{data(0, zero, of)}},
		"a segment of other blocks":   {true, of, []wire.Message{whole, wire.Hole{Offset: 65536, Length: 5000}}},
		"half a volume in full":       {true, digest.Unknown, []wire.Message{whole}},
		"a volume missing in full":    {true, digest.Unknown, []wire.Message{whole, wire.Hole{Offset: 65536, Length: 5000}}},
		"part of a block in full":     {true, digest.Unknown, []wire.Message{whole, data(65536, word, of)}},
		"a record behind the end":     {false, digest.Unknown, []wire.Message{data(65536, zero, digest.Zero)}},
		"a record that ends anywhere": {false, digest.Unknown, []wire.Message{data(65536, word[:100], of)}},
		"a hole that ends anywhere":   {false, digest.Unknown, []wire.Message{wire.Hole{Length: 4096}}},
		"a volume too many":           {false, digest.Unknown, []wire.Message{wire.Data{Volume: 2, Length: 65536, Digests: []digest.Digest{of}, Payload: block}}},
		"two volumes in a segment":    {false, digest.Unknown, []wire.Message{whole, second}},
		"records that overlap":        {false, digest.Unknown, []wire.Message{data(4096, word, of), data(4096, word, of)}},
		"a block twice":               {false, digest.Unknown, []wire.Message{data(0, word, of), data(8192, word, of)}},
		"a block that should go on":   {false, digest.Unknown, []wire.Message{wire.Data{More: true, Length: 4096, Payload: word}, data(65536, word, of)}},
		"a block that never ends":     {false, digest.Unknown, []wire.Message{wire.Data{More: true, Length: 4096, Payload: word}}},
		"a packed record of noise":    {false, digest.Unknown, []wire.Message{wire.Data{Codec: wire.CodecZstd, Length: 65536, Digests: []digest.Digest{of}, Payload: block}}},
		"bytes that are elsewhere":    {false, digest.Unknown, []wire.Message{wire.Data{Codec: wire.CodecApart, Length: 65536, Digests: []digest.Digest{of}}}},
	} {
		var out bytes.Buffer
		members := []wire.Member{{Name: "a", Size: 70_536}, {Name: "b", Size: 65536}}
		w, err := delta.NewWriter(&out, delta.Head{Full: c.full, Point: "p", Members: members})
		must(t, err)
		var blocks []digest.Digest
		for _, m := range c.records {
			must(t, w.Record(m))
			if d, ok := m.(wire.Data); ok {
				blocks = append(blocks, d.Digests...)
			} else {
				blocks = append(blocks, digest.Zero)
			}
		}
		must(t, w.EndSegment(0, 0, digest.Unknown, c.end, blocks))
		unknown := []digest.Digest{digest.Unknown, digest.Unknown}
		_, err = w.Close(unknown, unknown)
		must(t, err)
		if _, err := delta.Verify(ctx, &out, nil); !refusedAs(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A segment's base has a digest for each block that is touched.
func TestABaseWithADigestTooFewIsRefused(t *testing.T) {
	was, now := small()
	parts := frames(t, export(t, was, now, byContent, delta.ExportOptions{Base: "p1"}))
	for n, p := range parts {
		if string(p[:4]) != "LBdf" || p[5] != 2 {
			continue
		}
		short := bytes.Clone(p[:len(p)-32])
		binary.LittleEndian.PutUint32(short[8:], uint32(len(short)-16))
		binary.LittleEndian.PutUint16(short[16+38:], binary.LittleEndian.Uint16(short[16+38:])-1)
		seal(short)
		spoiled := append([][]byte{}, parts...)
		spoiled[n] = short
		if _, err := delta.Verify(ctx, bytes.NewReader(sealed(spoiled...)), nil); !refusedAs(err) {
			t.Errorf("frame %d: %v", n, err)
		}
	}
}

func TestALaterFormatIsNamed(t *testing.T) {
	_, _, d := tiny(t)
	d[4] = 2
	seal(d)
	var tooNew *delta.TooNew
	if _, err := delta.Verify(ctx, bytes.NewReader(d), nil); !errors.As(err, &tooNew) || tooNew.Version != 2 || !delta.Refused(err) {
		t.Errorf("got %v", err)
	}
}

// frames cuts a delta into its frames, without the sum.
func frames(t testing.TB, d []byte) (out [][]byte) {
	t.Helper()
	for d = d[:len(d)-32]; len(d) > 0; {
		n := 16 + int(binary.LittleEndian.Uint32(d[8:]))
		out, d = append(out, d[:n]), d[n:]
	}
	return out
}

// seal makes a frame's checksum right.
func seal(frame []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	n := 16 + int(binary.LittleEndian.Uint32(frame[8:]))
	sum := crc32.Update(crc32.Checksum(frame[:12], table), table, frame[16:n])
	binary.LittleEndian.PutUint32(frame[12:], sum)
}

// sealed is frames as a delta, with the sum.
func sealed(parts ...[]byte) []byte {
	d := bytes.Join(parts, nil)
	sum := blake3.Sum256(d)
	return append(d, sum[:]...)
}

// Whatever the bytes, reading ends with a proof or a refusal. Checksums are made right first: a fuzzer would never
// guess them. What a Reader takes, everything else takes or refuses for its content.
func FuzzReader(f *testing.F) {
	_, _, d := tiny(f)
	f.Add(d)
	was, now := small()
	f.Add(export(f, was, now, byContent, delta.ExportOptions{Base: "p1"}))
	f.Add(export(f, nil, was[1:], byContent, delta.ExportOptions{}))
	f.Fuzz(func(t *testing.T, d []byte) {
		readsWhole(t, d)
		d = bytes.Clone(d)
		at := 0
		for len(d)-at >= 16+32 {
			n := 16 + uint64(binary.LittleEndian.Uint32(d[at+8:]))
			if n > uint64(len(d)-at-32) {
				break
			}
			if d[at+5] == 3 && n >= 16+32 { // an End
				closeAs(d, at, int(n))
			}
			seal(d[at:])
			at += int(n)
		}
		d = sealed(d[:at])
		if !readsWhole(t, d) {
			return
		}
		s, err := delta.Verify(ctx, bytes.NewReader(d), nil)
		if err != nil {
			if !delta.Refused(err) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if s.End.DataBytes+s.End.HoleBytes > sizes(s) {
			t.Fatalf("%d bytes in volumes of %d", s.End.DataBytes+s.End.HoleBytes, sizes(s))
		}
		var folded bytes.Buffer
		if _, err := delta.Fold(ctx, &folded, []delta.Link{{In: bytes.NewReader(d)}}, true); err != nil {
			t.Fatalf("a fold of one: %v", err)
		}
		if again := verify(t, folded.Bytes()); again.End.Closing != s.End.Closing {
			t.Fatal("a fold of one is about something else")
		}
	})
}

// closeAs makes the closing digest of the End at a place right.
func closeAs(d []byte, at, n int) {
	head := d[16:min(16+uint64(binary.LittleEndian.Uint32(d[8:])), uint64(len(d)))]
	about := append([]byte("lifeboat delta file 1"), head...)
	if roots := d[at+16 : at+n-32]; len(roots) > 26 {
		about = append(about, roots[26:]...)
	}
	sum := blake3.Sum256(about)
	copy(d[at+n-32:at+n], sum[:])
}

// readsWhole reports whether a Reader takes a delta.
func readsWhole(t *testing.T, d []byte) bool {
	r, err := delta.NewReader(bytes.NewReader(d))
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) && !delta.Refused(err) {
		t.Fatalf("an error of another kind: %v", err)
	}
	return errors.Is(err, io.EOF)
}

func sizes(s delta.Summary) (sum int64) {
	for _, m := range s.Head.Members {
		sum += m.Size
	}
	return sum
}
