package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// goldenFrames are all frames on record, of every version, sorted by name.
func goldenFrames(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "v1", "*.hex"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden frames, %v", err)
	}
	var out [][]byte
	for _, path := range files {
		out = append(out, goldenFrame(t, path))
	}
	for version := wire.Oldest; version <= wire.Version; version++ {
		named := samplesOf(version)
		for _, name := range slices.Sorted(maps.Keys(named)) {
			head, body := wire.EncodeAs(nil, named[name], version)
			out = append(out, append(head, body...))
		}
	}
	return out
}

// seal makes a frame around a payload as the drawing in wire.go says, right in everything but what it carries. With
// flag 1 the checksum leaves out as many bytes at the end as the payload says it carries.
func seal(version, kind, flags byte, payload []byte) []byte {
	frame := append([]byte("LBmv"), version, kind, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(frame[8:], uint32(len(payload)))
	frame = append(frame, payload...)
	covered := payload
	if flags&1 != 0 && len(payload) >= 8 {
		covered = payload[:len(payload)-int(min(binary.LittleEndian.Uint32(payload[4:]), uint32(len(payload))))]
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(frame[:12], table), table, covered)
	binary.LittleEndian.PutUint32(frame[12:], sum)
	return frame
}

// FuzzFrame decodes any payload of any type and version. It ends with a message within the limits or with ErrCorrupt,
// and a message that was accepted is encoded to one that is accepted and the same, in its version.
func FuzzFrame(f *testing.F) {
	for _, frame := range goldenFrames(f) {
		f.Add(frame[4], frame[5], frame[6], frame[wire.HeaderSize:])
	}
	f.Add(byte(2), byte(wire.TypeData), byte(1), wire.Append(nil, samples["data"])[wire.HeaderSize:])
	f.Add(byte(2), byte(wire.TypeData), byte(1), wire.Append(nil, wire.Data{
		Length: digest.BlockSize, Digests: manyDigests(1), Payload: make([]byte, digest.BlockSize),
	})[wire.HeaderSize:])
	f.Fuzz(func(t *testing.T, version, kind, flags byte, payload []byte) {
		if len(payload) > wire.MaxPayload {
			return
		}
		frame := seal(version, kind, flags, payload)
		m, n, err := wire.Decode(frame)
		if err != nil {
			if !errors.Is(err, wire.ErrCorrupt) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if n != len(frame) || m.Type() != wire.Type(kind) || version < wire.Oldest || version > wire.Version {
			t.Fatalf("a frame of type %d and version %d was taken for a %s of %d of %d bytes", kind, version, m.Type(), n, len(frame))
		}
		checkLimits(t, m, version)
		if flags&1 != 0 {
			d, ok := m.(wire.Data)
			if !ok || version < 2 || d.Codec != wire.CodecNone || d.More || len(d.Digests) != d.Touched() || d.Offset%digest.BlockSize != 0 {
				t.Fatalf("bytes that nothing proves came without a checksum: %+v", m)
			}
		}
		head, body := wire.EncodeAs(nil, m, int(version))
		again, _, err := wire.Decode(append(head, body...))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v comes back as %+v, %v", m, again, err)
		}
	})
}

// checkLimits holds what the rest of the engine relies on without looking again.
func checkLimits(t *testing.T, m wire.Message, version byte) {
	t.Helper()
	inVolume := func(at, length int64) {
		t.Helper()
		if at < 0 || length < 0 || at > wire.MaxVolumeSize || length > wire.MaxVolumeSize-at {
			t.Fatalf("%+v lies beyond any volume", m)
		}
	}
	grain := int64(wire.Grain)
	if version == 1 {
		grain = digest.BlockSize
	}
	switch m := m.(type) {
	case wire.Hello:
		if len(m.Members) > wire.MaxVolumes || len(m.Replication) > wire.MaxName || len(m.Point) > wire.MaxName {
			t.Fatalf("a Hello beyond the limits")
		}
		for _, v := range m.Members {
			inVolume(0, v.Size)
		}
		if version == 1 && (m.Base != "" || m.Allocated || m.Verify || m.Note != "") {
			t.Fatalf("a Hello of version 1 says %+v", m)
		}
	case wire.Data:
		inVolume(m.Offset, int64(m.Length))
		last := m.Offset + int64(m.Length) - 1
		switch {
		case m.Length < 1 || m.Length > wire.MaxRecord || m.Offset%grain != 0:
			t.Fatalf("a record of %d bytes at %d", m.Length, m.Offset)
		case last/digest.SegmentSize != m.Offset/digest.SegmentSize:
			t.Fatalf("a record of %d bytes at %d lies in two segments", m.Length, m.Offset)
		case m.Codec == wire.CodecNone && len(m.Payload) != m.Length:
			t.Fatalf("%d bytes in a record of %d", len(m.Payload), m.Length)
		case version == 1 && m.More:
			t.Fatal("a record of version 1 has more to come")
		}
	case wire.Hole:
		inVolume(m.Offset, m.Length)
		if m.Length < 1 || m.Length > digest.SegmentSize || m.Offset%digest.BlockSize != 0 {
			t.Fatalf("a hole of %d bytes at %d", m.Length, m.Offset)
		}
	case wire.Welcome:
		inVolume(m.Start.Offset, 0)
		inVolume(m.Window, 0)
	case wire.Ack:
		inVolume(m.Durable.Offset, 0)
	case wire.SegmentDigests:
		if len(m.Digests) > wire.MaxDigests {
			t.Fatalf("%d digests", len(m.Digests))
		}
	}
}

// FuzzBytes decodes any bytes as they may lie in a spool or come from a stranger: frame after frame, until something
// is no frame. Nothing is taken beyond the end, and no byte is read twice.
func FuzzBytes(f *testing.F) {
	var all []byte
	for _, frame := range goldenFrames(f) {
		f.Add(frame)
		all = append(all, frame...)
	}
	f.Add(all[:4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, n, err := wire.Decode(b)
			if err != nil {
				if !errors.Is(err, wire.ErrCorrupt) && !errors.Is(err, wire.ErrShort) {
					t.Fatalf("an error of another kind: %v", err)
				}
				return
			}
			if m == nil || n < wire.HeaderSize || n > len(b) {
				t.Fatalf("took %d of %d bytes", n, len(b))
			}
			// What stands in front decides what it costs to read on: a Data's carried bytes begin inside its payload.
			if d, ok := m.(wire.Data); ok {
				at := wire.CarriedAt(b[wire.HeaderSize:])
				if at > n-wire.HeaderSize || !bytes.HasPrefix(b[wire.HeaderSize+at:n], d.Payload) {
					t.Fatalf("the carried bytes do not begin at %d", at)
				}
			}
			b = b[n:]
		}
	})
}

// FuzzBanner parses any line. What is accepted names versions that two sides can talk about, and an own banner made
// of its words is accepted again.
func FuzzBanner(f *testing.F) {
	for _, line := range []string{
		"lifeboat-mover protocol=1 oldest=1 software=v0.1.0 role=source",
		wire.OwnBanner("v2.0.0", "target").String(),
		"lifeboat-mover protocol=9 oldest=7 software=v7.0.0 role=target colour=green",
		"lifeboat-mover protocol=-1 oldest=x", "lifeboat-mover", "SSH-2.0-OpenSSH_9", "",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		b, err := wire.ParseBanner(line)
		if err != nil {
			if !errors.Is(err, wire.ErrCorrupt) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if b.Protocol < 1 || b.Oldest < 1 || len(line) > wire.MaxBanner {
			t.Fatalf("%q is %+v", line, b)
		}
		own := wire.OwnBanner(b.Software, "source")
		again, err := wire.ParseBanner(own.String())
		if err != nil || strings.ContainsAny(own.String(), "\r\n") || again.Protocol != wire.Version {
			t.Fatalf("%q as an own banner: %+v, %v", own, again, err)
		}
		v, err := wire.Agree(own, b)
		var conflict *wire.VersionConflict
		switch {
		case err == nil && (v < own.Oldest || v > own.Protocol || v < b.Oldest || v > b.Protocol):
			t.Fatalf("%+v and %+v agree on %d", own, b, v)
		case err != nil && !errors.As(err, &conflict):
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}
