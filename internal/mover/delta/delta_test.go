package delta_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// drawInstant makes a group of odd sizes, some of it zero, some text, some noise.
func drawInstant(t *rapid.T) instant {
	var out instant
	for range rapid.IntRange(1, 3).Draw(t, "volumes") {
		size := rapid.IntRange(1, 3<<20).Draw(t, "size")
		switch rapid.IntRange(0, 29).Draw(t, "shape") {
		case 0, 2, 3, 4:
			size = rapid.SampledFrom([]int{1, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, 1<<20 + 1}).Draw(t, "edge")
		case 1:
			size += digest.SegmentSize - 1<<20
		}
		out = append(out, make([]byte, size))
	}
	return drawChange(t, out)
}

// drawChange writes here and there.
func drawChange(t *rapid.T, was instant) instant {
	now := was.clone()
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	for range rapid.IntRange(0, 12).Draw(t, "writes") {
		v := rapid.IntRange(0, len(now)-1).Draw(t, "volume")
		at := rng.IntN(len(now[v]))
		n := 1 + rng.IntN(rapid.SampledFrom([]int{1, 4096, 100_000, 1 << 20}).Draw(t, "most"))
		p := now[v][at:min(at+n, len(now[v]))]
		switch rapid.IntRange(0, 3).Draw(t, "content") {
		case 0:
			clear(p)
		case 1:
			copy(p, bytes.Repeat([]byte("lifeboat "), len(p)/9+1))
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
	}
	return now
}

// A chain of deltas, each found in any way, leads from instant to instant; folded into one it does the same.
func TestChainsLeadFromInstantToInstant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		instants := []instant{drawInstant(t)}
		points := []string{"p0", "p1", "p2", "p3"}
		var chain []delta.Link
		full := rapid.Bool().Draw(t, "begins full")
		if full {
			d := export(t, nil, instants[0], byContent, delta.ExportOptions{Point: points[0]})
			mustApply(t, d, drawChange(t, instants[0]), instants[0])
			chain = append(chain, delta.Link{Name: "full", In: bytes.NewReader(d)})
		}
		for n := range rapid.IntRange(1, 3).Draw(t, "length") {
			was := instants[n]
			now := drawChange(t, was)
			how := way(rapid.IntRange(0, int(ways)-1).Draw(t, "way"))
			d := export(t, was, now, how, delta.ExportOptions{Base: points[n], Point: points[n+1], Uncompressed: rapid.Bool().Draw(t, "raw")})
			mustApply(t, d, was, now)
			instants = append(instants, now)
			chain = append(chain, delta.Link{Name: points[n+1], In: bytes.NewReader(d)})
		}
		var folded bytes.Buffer
		if _, err := delta.Fold(ctx, &folded, chain, rapid.Bool().Draw(t, "fold raw")); err != nil {
			t.Fatal(err)
		}
		s := verify(t, folded.Bytes())
		if s.Head.Full != full || !full && s.Head.Base != "p0" || s.Head.Point != points[len(instants)-1] {
			t.Fatalf("the fold is about %+v", s.Head)
		}
		was := instants[0]
		if full {
			was = drawChange(t, was)
		}
		mustApply(t, folded.Bytes(), was, instants[len(instants)-1])
	})
}

// However a change is found, the delta is the same change.
func TestEveryWayFindsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was := drawInstant(t)
		now := drawChange(t, was)
		want := verify(t, export(t, was, now, byContent, delta.ExportOptions{Base: "old"}))
		for how := byMap; how < ways; how++ {
			got := verify(t, export(t, was, now, how, delta.ExportOptions{Base: "old"}))
			if how == byMap || how == byMapAndList {
				if got.End.Closing != want.End.Closing {
					t.Fatalf("way %d closes with %s instead of %s", how, got.End.Closing, want.End.Closing)
				}
			}
			if how != byMap && got.End.DataBytes+got.End.HoleBytes != want.End.DataBytes+want.End.HoleBytes {
				t.Fatalf("way %d carries %d+%d bytes instead of %d+%d", how, got.End.DataBytes, got.End.HoleBytes, want.End.DataBytes, want.End.HoleBytes)
			}
		}
	})
}

// Anything else than the base is refused before a byte is written, when it differs where the delta looks.
func TestTheWrongBaseIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was := drawInstant(t)
		now := drawChange(t, was)
		how := way(rapid.IntRange(0, int(ways)-1).Draw(t, "way"))
		d := export(t, was, now, how, delta.ExportOptions{Base: "old"})
		wrong := was.clone()
		v := rapid.IntRange(0, len(was)-1).Draw(t, "volume")
		at := rapid.IntRange(0, len(was[v])-1).Draw(t, "byte")
		wrong[v][at] ^= 1
		end := min(at/digest.BlockSize*digest.BlockSize+digest.BlockSize, len(was[v]))
		block := wrong[v][end-1-(end-1)%digest.BlockSize : end]
		ds := wrong.disks()
		_, err := apply(ds, d, delta.ApplyOptions{})
		var refused *delta.WrongBase
		if err == nil {
			// It was not looked at, or it is as at the point.
			segment := at / digest.SegmentSize * digest.SegmentSize
			to := min(segment+digest.SegmentSize, len(was[v]))
			if how != quickly && !bytes.Equal(was[v][segment:to], now[v][segment:to]) &&
				!bytes.Equal(wrong[v][segment:to], now[v][segment:to]) && !blockIsNew(wrong[v], now[v], at) {
				t.Fatalf("byte %d of volume %d differs and nobody noticed", at, v)
			}
			return
		}
		if !errors.As(err, &refused) || !delta.Refused(err) {
			t.Fatalf("got %v", err)
		}
		if err := wrong.on(ds); err != nil {
			t.Fatalf("it was refused and %v", err)
		}
		if refused.Volume != name(v) || refused.Offset > int64(at) || refused.Offset+refused.Length <= int64(at) {
			t.Fatalf("byte %d of volume %d differs, the refusal says %v", at, v, err)
		}
		if refused.Length <= digest.BlockSize && refused.Found != digest.Block(block) {
			t.Fatalf("found %s instead of %s", refused.Found, digest.Block(block))
		}
	})
}

func blockIsNew(got, now []byte, at int) bool {
	from := at / digest.BlockSize * digest.BlockSize
	to := min(from+digest.BlockSize, len(now))
	return bytes.Equal(got[from:to], now[from:to])
}
