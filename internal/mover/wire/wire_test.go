package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

var update = flag.Bool("update", false, "write the golden frames anew")

func d(b byte) (out digest.Digest) {
	for i := range out {
		out[i] = b
	}
	return out
}

// samples has one of each message, with every field set.
var samples = map[string]wire.Message{
	"hello": wire.Hello{
		Replication: "shop/pg", Epoch: 3, Point: "20260301t120000-0a1b2c", PointTime: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
		Members: []wire.Member{{Name: "data", Size: 1 << 30}, {Name: "log", Size: 777}},
	},
	"refused": wire.Refused{Kind: wire.RefusedSizes, Mismatches: []wire.Mismatch{
		{Object: "volume data", Field: "size", Source: "2 bytes", Target: "1 bytes"},
	}},
	"pulse": wire.Pulse{Phase: wire.PhaseApplying, Done: 5, Total: 9, Text: "the target is applying"},
	"welcome": wire.Welcome{
		Tier: wire.TierDigest, Direct: true, Committed: true, Resumed: true, Start: wire.Position{Volume: 1, Segment: 2, Offset: 3 << 26},
		Window: 64 << 20, Reason: "because", Lookahead: 16,
	},
	"segmentdigests": wire.SegmentDigests{Volume: 1, First: 2, Digests: []digest.Digest{d(1), d(2)}},
	"want":           wire.Want{Volume: 1, Segment: 9},
	"blockdigests":   wire.BlockDigests{Volume: 1, Segment: 9, Digests: []digest.Digest{d(3)}},
	"data": wire.Data{
		Volume: 1, Codec: wire.CodecZstd, Offset: 65536, Length: 65537, Digests: []digest.Digest{d(4), d(5)}, Payload: []byte("packed"),
	},
	"hole":       wire.Hole{Volume: 1, Offset: 65536, Length: 131072},
	"segmentend": wire.SegmentEnd{Volume: 1, Segment: 7, Digest: d(6)},
	"ack":        wire.Ack{Durable: wire.Position{Volume: 1, Segment: 1, Offset: 64<<20 + 65536}},
	"close":      wire.Close{Digest: d(7)},
	"committed":  wire.Committed{Point: "20260301t120000-0a1b2c"},
	"failed":     wire.Failed{Kind: wire.FailedSpace, Text: "no space left"},
}

// fine is what version 2 has and version 1 has not.
var fine = map[string]wire.Message{
	"hello-offers": wire.Hello{
		Replication: "shop/pg", Epoch: 7, Point: "p2", PointTime: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
		Members: []wire.Member{{Name: "data", Size: 3<<30 + 512}, {Name: "files", Kind: wire.KindTree}},
		Base:    "p1", Allocated: true, Verify: true, Note: "the driver has no list",
	},
	"hello-cut": wire.Hello{
		Replication: "shop/pg", Epoch: 7, Point: "p3", PointTime: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
		Members: []wire.Member{{Name: "data", Size: 3 << 30}}, Cut: "Atomic",
	},
	"welcome-cbt": wire.Welcome{Tier: wire.TierCBT, Window: 1 << 20, Reason: "listed", Lookahead: 4, Verify: true},
	"data-more": wire.Data{
		Volume: 1, Codec: wire.CodecZstd, More: true, Offset: 64<<20 + 4096, Length: 65536,
		Digests: []digest.Digest{d(9)}, Payload: []byte("packed"),
	},
	"data-part": wire.Data{Offset: 8192, Length: 4, Digests: []digest.Digest{d(9)}, Payload: []byte("abcd")},
}

// The bytes of a version never change: a peer and a spool of an older software hold them.
func TestFramesAreTheGoldenOnes(t *testing.T) {
	for version := wire.Oldest; version <= wire.Version; version++ {
		for name, m := range samplesOf(version) {
			path := filepath.Join("testdata", fmt.Sprintf("v%d-%s.hex", version, name))
			head, body := wire.EncodeAs(nil, m, version)
			frame := append(head, body...)
			if *update && version == wire.Version {
				if err := os.WriteFile(path, []byte(hex.Dump(frame)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.Dump(frame); got != string(want) {
				t.Errorf("%s of version %d is encoded as\n%sinstead of\n%s", name, version, got, want)
			}
			back, n, err := wire.Decode(frame)
			if err != nil || n != len(frame) || !reflect.DeepEqual(back, m) {
				t.Errorf("%s of version %d comes back as %+v (%d of %d bytes), %v", name, version, back, n, len(frame), err)
			}
		}
	}
}

func samplesOf(version int) map[string]wire.Message {
	out := maps.Clone(samples)
	if version >= 2 {
		maps.Copy(out, fine)
	}
	return out
}

// A record whose digests prove it may come without a checksum of its bytes, in version 2; everything else of the frame
// is covered, and no other message may.
func TestABareFrameCoversAllButWhatDigestsProve(t *testing.T) {
	data := wire.Data{Volume: 1, Offset: 65536, Length: 65536, Payload: bytes.Repeat([]byte{5}, 65536)}
	data.Digests = digest.Blocks(data.Payload)
	head, body := wire.EncodeBare(nil, data, 2)
	frame := append(slices.Clip(head), body...)
	if back, _, err := wire.Decode(frame); err != nil || !reflect.DeepEqual(back, data) {
		t.Fatalf("comes back with %v", err)
	}
	for i := range head {
		spoiled := bytes.Clone(frame)
		spoiled[i] ^= 1
		if _, _, err := wire.Decode(spoiled); !errors.Is(err, wire.ErrCorrupt) && !errors.Is(err, wire.ErrShort) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	if full := wire.Append(nil, data); bytes.Equal(full, frame) {
		t.Error("a bare frame is a full one: this tests nothing")
	}
	for name, m := range samplesOf(2) {
		bare, body := wire.EncodeBare(nil, m, 2)
		if !bytes.Equal(append(bare, body...), wire.Append(nil, m)) {
			t.Errorf("%s, which digests do not prove, is sent without a checksum", name)
		}
	}
	if old, _ := wire.EncodeBare(nil, data, 1); old[6] != 0 {
		t.Error("version 1 has no flags")
	}
}

// What version 1 does not know never reaches a peer or comes from one that speaks it.
func TestVersion1HasWholeBlocksOnly(t *testing.T) {
	for _, name := range []string{"data-more", "data-part"} {
		head, body := wire.EncodeAs(nil, fine[name], 1)
		if _, _, err := wire.Decode(append(head, body...)); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%s in a frame of version 1: %v", name, err)
		}
	}
	head, _ := wire.EncodeAs(nil, fine["hello-offers"], 1)
	back, _, err := wire.Decode(head)
	if hello := back.(wire.Hello); err != nil || hello.Base != "" || hello.Verify || hello.Allocated {
		t.Errorf("a Hello of version 1 offers %+v, %v", back, err)
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	for name, m := range samplesOf(wire.Version) {
		frame := wire.Append(nil, m)
		for i := range frame {
			for bit := range 8 {
				spoiled := bytes.Clone(frame)
				spoiled[i] ^= 1 << bit
				_, _, err := wire.Decode(spoiled)
				if !errors.Is(err, wire.ErrCorrupt) && !errors.Is(err, wire.ErrShort) {
					t.Fatalf("%s: bit %d of byte %d flipped: %v", name, bit, i, err)
				}
			}
		}
	}
}

func TestAFrameCutShortIsNoFrame(t *testing.T) {
	for name, m := range samplesOf(wire.Version) {
		frame := wire.Append(nil, m)
		for n := range frame {
			if _, _, err := wire.Decode(frame[:n]); !errors.Is(err, wire.ErrShort) {
				t.Fatalf("%s cut to %d bytes: %v", name, n, err)
			}
		}
	}
}

// A later version may add fields behind the known ones.
func TestUnknownTrailingBytesAreIgnored(t *testing.T) {
	for name, m := range samplesOf(wire.Version) {
		frame := wire.Append(nil, wire.Extended{Message: m})
		back, _, err := wire.Decode(frame)
		if err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%s with a later version's field: %+v, %v", name, back, err)
		}
	}
}

func TestLimitsHold(t *testing.T) {
	blocks := func(n int) []digest.Digest { return make([]digest.Digest, n) }
	for name, m := range map[string]wire.Message{
		"record too long":       wire.Data{Length: wire.MaxRecord + 1, Digests: blocks(17), Codec: wire.CodecZstd},
		"record empty":          wire.Data{},
		"offset inside a grain": wire.Data{Offset: 1, Length: 1, Digests: blocks(1), Payload: []byte("x")},
		"in two segments":       wire.Data{Offset: digest.SegmentSize - 4096, Length: 8192, Digests: blocks(2), Codec: wire.CodecZstd},
		"digests missing":       wire.Data{Length: 65537, Digests: blocks(1), Codec: wire.CodecZstd},
		"bytes missing":         wire.Data{Length: 2, Digests: blocks(1), Payload: []byte("x")},
		"beyond any volume":     wire.Hole{Offset: wire.MaxVolumeSize, Length: 65536},
		"hole too long":         wire.Hole{Length: digest.SegmentSize + 1},
		"volume too large":      wire.Hello{Members: []wire.Member{{Size: wire.MaxVolumeSize + 1}}},
		"too many volumes":      wire.Hello{Members: make([]wire.Member, wire.MaxVolumes+1)},
		"too many digests":      wire.BlockDigests{Digests: blocks(wire.MaxDigests + 1)},
	} {
		if _, _, err := wire.Decode(wire.Append(nil, m)); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTextsAreCutToTheirLimit(t *testing.T) {
	m, _, err := wire.Decode(wire.Append(nil, wire.Failed{Kind: wire.FailedIO, Text: strings.Repeat("x", 1<<20)}))
	if err != nil || len(m.(wire.Failed).Text) != wire.MaxText {
		t.Errorf("got %v", err)
	}
}

func TestBanners(t *testing.T) {
	own := wire.OwnBanner("v1.2.3", "source")
	if got := own.String(); got != "lifeboat-mover protocol=2 oldest=1 software=v1.2.3 role=source" {
		t.Errorf("banner is %q", got)
	}
	back, err := wire.ParseBanner(own.String() + " colour=green")
	if err != nil || back != own {
		t.Errorf("banner comes back as %+v, %v", back, err)
	}
	for _, line := range []string{"", "SSH-2.0-x", "lifeboat-mover", "lifeboat-mover protocol=x oldest=1", strings.Repeat("x", 300)} {
		if _, err := wire.ParseBanner(line); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("%q: %v", line, err)
		}
	}
	newer := wire.Banner{Protocol: 9, Oldest: 8, Software: "v9.0.0", Role: "target"}
	_, err = wire.Agree(own, newer)
	var conflict *wire.VersionConflict
	if !errors.As(err, &conflict) || !strings.Contains(err.Error(), "v9.0.0") || !strings.Contains(err.Error(), "upgrade the source") {
		t.Errorf("got %v", err)
	}
	if v, err := wire.Agree(wire.Banner{Protocol: 3, Oldest: 1}, wire.Banner{Protocol: 2, Oldest: 1}); v != 2 || err != nil {
		t.Errorf("agreed on %d, %v", v, err)
	}
}

// Whatever the payload, decoding ends with a message or an error, and a message it accepts encodes to what it decodes
// from. The frame around it is whole: a fuzzer would never guess a checksum.
func FuzzParse(f *testing.F) {
	for _, m := range samples {
		f.Add(uint8(m.Type()), wire.Append(nil, m)[wire.HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		if len(payload) > wire.MaxPayload {
			return
		}
		frame := wire.Sealed(wire.Type(kind), payload)
		m, n, err := wire.Decode(frame)
		if err != nil {
			if !errors.Is(err, wire.ErrCorrupt) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if n != len(frame) {
			t.Fatalf("took %d of %d bytes", n, len(frame))
		}
		again, _, err := wire.Decode(wire.Append(nil, m))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v comes back as %+v, %v", m, again, err)
		}
	})
}

// Whatever the bytes, a header is refused or bounded.
func FuzzHeader(f *testing.F) {
	f.Add(wire.Append(nil, samples["data"]))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := wire.ParseHeader(b)
		if err == nil && (h.Length < 0 || h.Length > wire.MaxPayload) {
			t.Fatalf("payload of %d bytes accepted", h.Length)
		}
	})
}
