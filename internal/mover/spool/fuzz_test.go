package spool_test

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// logFile is the first file of the first delta's log, and headEnd where its records begin.
const (
	logFile = "delta-00000001-000000"
	headEnd = 4096
)

// goldenRecords are the records of every version that are on record, as a log holds them.
func goldenRecords(f *testing.F) []byte {
	f.Helper()
	var out []byte
	for _, pattern := range []string{"v1/data*.hex", "v1/hole*.hex", "v1/segmentend.hex"} {
		files, err := filepath.Glob(filepath.Join("..", "wire", "testdata", filepath.FromSlash(pattern)))
		if err != nil || len(files) == 0 {
			f.Fatalf("no golden frames, %v", err)
		}
		for _, path := range files {
			raw, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			frame, err := hex.DecodeString(strings.Join(strings.Fields(string(raw)), ""))
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, frame...)
		}
	}
	return append(out, wire.Append(nil, wire.Data{Offset: 8192, Length: 4, More: true, Payload: []byte("abcd")})...)
}

// spoolWithLog is a spool whose delta has these bytes for records.
func spoolWithLog(t *testing.T, records []byte) *spool.Spool {
	t.Helper()
	fs := crash.New(1).FS()
	s := open(t, fs)
	must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p1"}, Tier: wire.TierDigest}))
	must(t, s.OpenLog(ignore))
	must(t, s.Close())
	f, err := fs.Open(logFile, false)
	must(t, err)
	_, err = f.WriteAt(records, headEnd)
	must(t, err)
	return open(t, fs)
}

// FuzzLog opens a log that holds any bytes. What is visited is the messages the bytes begin with; the rest is cut off
// for good: what is appended stands right behind them when the log is opened again. Once it is committed, replaying
// gives the same, and one bit less is Damaged.
func FuzzLog(f *testing.F) {
	records := goldenRecords(f)
	f.Add(records)
	f.Add(records[:len(records)-3])
	f.Add(append(records[:len(records):len(records)], 0, 0, 0, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, records []byte) {
		var want []wire.Message
		whole := 0
		for {
			m, n, err := wire.Decode(records[whole:])
			if err != nil {
				break
			}
			want = append(want, m)
			whole += n
		}
		s := spoolWithLog(t, records)
		var seen []wire.Message
		must(t, s.OpenLog(keepAll(&seen)))
		if !reflect.DeepEqual(seen, want) {
			t.Fatalf("visited %d records of %d", len(seen), len(want))
		}
		must(t, s.Append(record(7)))
		must(t, s.Sync())
		must(t, s.Close())
		want = append(want, record(7))
		seen = nil
		must(t, s.OpenLog(keepAll(&seen)))
		if !reflect.DeepEqual(seen, want) {
			t.Fatalf("with one more there are %d records instead of %d", len(seen), len(want))
		}
		must(t, s.Commit())
		seen = nil
		must(t, s.Replay(keepAll(&seen)))
		if !reflect.DeepEqual(seen, want) {
			t.Fatalf("replayed %d records of %d", len(seen), len(want))
		}
	})
}

// keepAll keeps what is visited, with its own memory.
func keepAll(to *[]wire.Message) func(wire.Message) error {
	return func(m wire.Message) error {
		if d, ok := m.(wire.Data); ok {
			d.Payload = append([]byte{}, d.Payload...)
			m = d
		}
		*to = append(*to, m)
		return nil
	}
}

// FuzzReplay replays a committed log in which bytes were changed behind its back: all of it is visited as it was, or
// it is Damaged; never something else without a word.
func FuzzReplay(f *testing.F) {
	f.Add(uint16(0), byte(1), uint16(0))
	f.Add(uint16(20), byte(0x80), uint16(5))
	f.Add(uint16(200), byte(0), uint16(100))
	f.Fuzz(func(t *testing.T, at uint16, flip byte, cut uint16) {
		fs := crash.New(1).FS()
		s := open(t, fs)
		must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p1"}, Tier: wire.TierDigest}))
		must(t, s.OpenLog(ignore))
		for i := range 6 {
			must(t, s.Append(record(i)))
		}
		must(t, s.Sync())
		must(t, s.Commit())
		g, err := fs.Open(logFile, false)
		must(t, err)
		size, err := g.Size()
		must(t, err)
		where := headEnd + int64(at)%(size-headEnd)
		b := make([]byte, 1)
		_, err = g.ReadAt(b, where)
		must(t, err)
		b[0] ^= flip
		_, err = g.WriteAt(b, where)
		must(t, err)
		must(t, g.Truncate(size-int64(cut)%(size-headEnd)))
		var seen []wire.Message
		err = s.Replay(keepAll(&seen))
		var damaged *spool.Damaged
		unchanged := flip == 0 && int64(cut)%(size-headEnd) == 0
		switch {
		case err != nil && !errors.As(err, &damaged):
			t.Fatalf("an error of another kind: %v", err)
		case (err == nil) != unchanged:
			t.Fatalf("byte %d flipped by %x, %d cut: %v", where, flip, cut, err)
		}
		for i, m := range seen {
			if m != record(i) {
				t.Fatalf("record %d is %+v", i, m)
			}
		}
	})
}

// FuzzState opens a spool whose state file says anything, under a digest that is right: it is a state that can be
// worked with, or an error, and never a state of another replication.
func FuzzState(f *testing.F) {
	for _, body := range []string{
		`{"version":1,"replication":"shop/pg","epoch":3,"applied":false,"serial":0}`,
		`{"version":1,"replication":"shop/pg","epoch":3,"committed":{"id":"p1","time":"2026-03-01T12:00:00Z","epoch":3},"applied":true,"serial":7,"maps":{"data":{"file":"map-00000007","size":1,"root":"00"}}}`,
		`{"version":1,"replication":"shop/pg","epoch":3,"committed":{"id":"p1"},"applied":false,"serial":7,"delta":{"serial":6,"point":{"id":"p1"},"tier":2,"members":[{"Name":"data","Size":1}],"records":3}}`,
		`{"version":2}`, `{}`, `[]`, ``, `{"version":1,"replication":"shop/other"}`, `{"version":1,"replication":"shop/pg","applied":false,"committed":{}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fs := crash.New(1).FS()
		g, err := fs.Open("state", true)
		must(t, err)
		sum := blake3.Sum256(body)
		_, err = g.WriteAt(append([]byte(hex.EncodeToString(sum[:])+"\n"), body...), 0)
		must(t, err)
		s, err := spool.Open(fs, "shop/pg")
		if err != nil {
			return
		}
		st := s.State()
		if st.Replication != "shop/pg" {
			t.Fatalf("opened the spool of %q", st.Replication)
		}
		before := st.Epoch
		// It may be odd, but nothing done with it makes it panic or the epoch shrink.
		_ = s.Replay(ignore)
		_ = s.OpenLog(ignore)
		_ = s.Raise(before / 2)
		_ = s.Drop()
		_ = s.Close()
		if again := open(t, fs).State(); again.Epoch != before {
			t.Fatalf("epoch %d became %d", before, again.Epoch)
		}
	})
}
