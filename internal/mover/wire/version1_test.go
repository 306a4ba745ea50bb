package wire_test

import (
	"encoding/hex"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// version1 is what the frames in testdata/v1 say, by the name of their file. They were recorded from the software that
// spoke version 1 and are never written anew: peers and spools of that time hold such bytes.
var version1 = map[string]wire.Message{
	"hello": wire.Hello{
		Replication: "shop/pg", Epoch: 3, Point: "20260301t120000-0a1b2c", PointTime: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
		Members: []wire.Member{{Name: "data", Size: 1 << 30}, {Name: "log", Size: 777}},
	},
	"hello-bare": wire.Hello{},
	"hello-most": wire.Hello{
		Replication: strings.Repeat("r", wire.MaxName), Epoch: math.MaxUint64, Point: strings.Repeat("p", wire.MaxName),
		PointTime: time.Unix(0, math.MaxInt64).UTC(), Members: []wire.Member{{Name: "größte", Size: wire.MaxVolumeSize}},
	},
	"hello-before-1970": wire.Hello{Replication: "a/b", PointTime: time.Unix(0, -1).UTC(), Members: []wire.Member{{Name: "x", Size: 1}}},

	"refused-replication": wire.Refused{Kind: wire.RefusedReplication, Mismatches: []wire.Mismatch{
		{Object: "replication", Field: "name", Source: "a/b", Target: "c/d"},
	}},
	"refused-epoch": wire.Refused{Kind: wire.RefusedEpoch, Mismatches: []wire.Mismatch{
		{Object: "replication a/b", Field: "epoch", Source: "1", Target: "2"},
	}},
	"refused-members": wire.Refused{Kind: wire.RefusedMembers},
	"refused-sizes": wire.Refused{Kind: wire.RefusedSizes, Mismatches: []wire.Mismatch{
		{Object: "volume data", Field: "size", Source: "2 bytes", Target: "1 bytes"}, {Object: "volume log"},
	}},

	"pulse":      wire.Pulse{Phase: wire.PhaseApplying, Done: 5, Total: math.MaxUint64, Text: "the target is applying"},
	"pulse-bare": wire.Pulse{Phase: wire.PhaseWaiting},

	"welcome-full": wire.Welcome{
		Tier: wire.TierFull, Direct: true, Window: 256 << 20, Reason: "everything is sent", Lookahead: 16,
	},
	"welcome-resumed": wire.Welcome{
		Tier: wire.TierDigest, Resumed: true, Start: wire.Position{Volume: 1, Segment: 2, Offset: 2<<26 + 65536},
		Window: 1 << 20, Reason: "digests are compared", Lookahead: 1,
	},
	"welcome-committed": wire.Welcome{Tier: wire.TierDigest, Committed: true},

	"segmentdigests":      wire.SegmentDigests{Volume: 1, First: 2, Digests: []digest.Digest{d(1), digest.Zero, digest.Unknown}},
	"segmentdigests-none": wire.SegmentDigests{Volume: 65535, First: math.MaxUint32, Digests: []digest.Digest{}},
	"want":                wire.Want{Volume: 1, Segment: 9},
	"blockdigests":        wire.BlockDigests{Volume: 1, Segment: 9, Digests: []digest.Digest{d(3)}},

	"data": wire.Data{
		Volume: 1, Codec: wire.CodecZstd, Offset: 65536, Length: 65537, Digests: []digest.Digest{d(4), d(5)}, Payload: []byte("packed"),
	},
	"data-plain": wire.Data{
		Offset: 64 << 20, Length: 5, Digests: []digest.Digest{d(4)}, Payload: []byte("plain"),
	},
	"data-longest": wire.Data{
		Codec: wire.CodecZstd, Offset: wire.MaxVolumeSize - wire.MaxRecord, Length: wire.MaxRecord,
		Digests: manyDigests(16), Payload: []byte("x"),
	},
	"data-apart": wire.Data{
		Volume: 255, Codec: wire.CodecApart, Offset: 131072, Length: 65536, Digests: []digest.Digest{d(7)}, Payload: []byte{},
	},
	"hole":         wire.Hole{Volume: 1, Offset: 65536, Length: 131072},
	"hole-longest": wire.Hole{Offset: 64 << 20, Length: 64 << 20},
	"hole-odd-end": wire.Hole{Volume: 2, Length: 777},
	"segmentend":   wire.SegmentEnd{Volume: 1, Segment: 7, Digest: d(6)},

	"ack":       wire.Ack{Durable: wire.Position{Volume: 1, Segment: 1, Offset: 64<<20 + 65536}},
	"close":     wire.Close{Digest: d(7)},
	"committed": wire.Committed{Point: "20260301t120000-0a1b2c"},

	"failed-internal":  wire.Failed{Kind: wire.FailedInternal, Text: "a mistake"},
	"failed-io":        wire.Failed{Kind: wire.FailedIO, Text: "input/output error"},
	"failed-space":     wire.Failed{Kind: wire.FailedSpace, Text: "no space left"},
	"failed-integrity": wire.Failed{Kind: wire.FailedIntegrity, Text: "a digest differs"},
	"failed-protocol":  wire.Failed{Kind: wire.FailedProtocol, Text: "out of place"},
	"failed-replaced":  wire.Failed{Kind: wire.FailedReplaced, Text: "a newer connection"},
	"failed-stopping":  wire.Failed{Kind: wire.FailedStopping},
}

func manyDigests(n int) []digest.Digest {
	out := make([]digest.Digest, n)
	for i := range out {
		out[i] = d(byte(i + 1))
	}
	return out
}

func goldenFrame(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := hex.DecodeString(strings.Join(strings.Fields(string(raw)), ""))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return frame
}

// A frame of version 1 is understood as it always was, and a message for a peer of version 1 is encoded to the same
// bytes.
func TestVersion1IsWhatItWas(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "v1", "*.hex"))
	if err != nil || len(files) != len(version1) {
		t.Fatalf("%d files for %d messages, %v", len(files), len(version1), err)
	}
	for name, m := range version1 {
		frame := goldenFrame(t, filepath.Join("testdata", "v1", name+".hex"))
		if frame[4] != 1 {
			t.Errorf("%s is of version %d", name, frame[4])
		}
		got, n, err := wire.Decode(frame)
		if err != nil || n != len(frame) || !reflect.DeepEqual(got, m) {
			t.Errorf("%s is %+v (%d of %d bytes), %v", name, got, n, len(frame), err)
		}
		head, body := wire.EncodeAs(nil, m, 1)
		if again := append(head, body...); hex.EncodeToString(again) != hex.EncodeToString(frame) {
			t.Errorf("%s is encoded as\n%sinstead of\n%s", name, hex.Dump(again), hex.Dump(frame))
		}
	}
}

// Every message of version 1 has a frame among the golden ones.
func TestVersion1HasAFrameOfEveryType(t *testing.T) {
	seen := map[wire.Type]bool{}
	for _, m := range version1 {
		seen[m.Type()] = true
	}
	for kind := wire.TypeHello; kind <= wire.TypeFailed; kind++ {
		if !seen[kind] {
			t.Errorf("%s has none", kind)
		}
	}
}

// The banner of the software that spoke version 1, and what comes of it: this side speaks version 1 too.
func TestABannerOfVersion1IsAgreedOn(t *testing.T) {
	for _, role := range []string{"source", "target"} {
		old, err := wire.ParseBanner("lifeboat-mover protocol=1 oldest=1 software=v0.1.0 role=" + role)
		if err != nil || old != (wire.Banner{Protocol: 1, Oldest: 1, Software: "v0.1.0", Role: role}) {
			t.Fatalf("%+v, %v", old, err)
		}
		for _, own := range []string{"source", "target"} {
			if v, err := wire.Agree(wire.OwnBanner("test", own), old); v != 1 || err != nil {
				t.Errorf("agreed on %d, %v", v, err)
			}
		}
	}
}

// A version nobody has spoken yet is no frame.
func TestAFrameOfALaterVersionIsRefused(t *testing.T) {
	frame := goldenFrame(t, filepath.Join("testdata", "v1", "ack.hex"))
	for _, version := range []byte{0, wire.Version + 1, 255} {
		frame[4] = version
		if _, _, err := wire.Decode(frame); !errors.Is(err, wire.ErrCorrupt) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}
