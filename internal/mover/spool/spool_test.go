package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"lifeboat.dev/lifeboat/internal/mover/crash"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

func open(t *testing.T, fs spool.FS) *spool.Spool {
	t.Helper()
	s, err := spool.Open(fs, "shop/pg")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ignore(wire.Message) error { return nil }

func record(i int) wire.Message {
	return wire.Hole{Offset: int64(i) * digest.BlockSize, Length: digest.BlockSize}
}

// collect keeps what is visited.
func collect(to *[]wire.Message) func(wire.Message) error {
	return func(m wire.Message) error {
		*to = append(*to, m)
		return nil
	}
}

func TestADeltaGoesInAndComesOut(t *testing.T) {
	for name, fs := range map[string]func(t *testing.T) spool.FS{
		"crash machine": func(*testing.T) spool.FS { return crash.New(1).FS() },
		"folder": func(t *testing.T) spool.FS {
			d, err := spool.OpenDir(filepath.Join(t.TempDir(), "spool"))
			must(t, err)
			t.Cleanup(func() { _ = d.Close() })
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := fs(t)
			s := open(t, fs)
			must(t, s.Raise(3))
			must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p1", Epoch: 3}, Tier: wire.TierDigest}))
			must(t, s.OpenLog(ignore))
			must(t, s.Append(record(1)))
			must(t, s.Append(record(2)))
			must(t, s.Sync())
			must(t, s.Close())

			s = open(t, fs)
			var seen []wire.Message
			must(t, s.OpenLog(collect(&seen)))
			if len(seen) != 2 || seen[1] != record(2) {
				t.Fatalf("the log holds %v", seen)
			}
			must(t, s.Append(record(3)))
			if err := s.Commit(); err == nil {
				t.Fatal("committed what was not synced")
			}
			must(t, s.Sync())
			must(t, s.Commit())
			if st := s.State(); st.Committed.ID != "p1" || st.Applied || !s.Pending() {
				t.Fatalf("after the commit: %+v", st)
			}

			s = open(t, fs)
			seen = nil
			must(t, s.Replay(collect(&seen)))
			if len(seen) != 3 || seen[2] != record(3) {
				t.Fatalf("replayed %v", seen)
			}
			if err := s.Raise(9); err == nil {
				t.Fatal("raised the epoch over a delta that waits to be applied")
			}
			must(t, s.Drop()) // changes nothing: it is committed
			must(t, s.Finish(nil))
			names, err := fs.Names()
			must(t, err)
			if strings.Join(names, " ") != "state" {
				t.Errorf("left behind: %v", names)
			}
			if st := open(t, fs).State(); !st.Applied || st.Epoch != 3 || st.Delta != nil {
				t.Errorf("in the end: %+v", st)
			}
		})
	}
}

func TestDroppingADirectDeltaLeavesAMixture(t *testing.T) {
	for _, direct := range []bool{true, false} {
		s := open(t, crash.New(1).FS())
		must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p1"}, Direct: direct}))
		must(t, s.Drop())
		if s.State().Mixed != direct {
			t.Errorf("direct %v: mixed %v", direct, s.State().Mixed)
		}
		must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p2"}, Direct: direct}))
		must(t, s.Raise(7))
		if s.State().Mixed != direct || s.State().Delta != nil {
			t.Errorf("direct %v: after a higher epoch %+v", direct, s.State())
		}
	}
}

func TestAnEpochNeverShrinks(t *testing.T) {
	fs := crash.New(1).FS()
	s := open(t, fs)
	must(t, s.Raise(5))
	must(t, s.SetMaps(map[string]spool.MapRef{"data": {File: "map-1"}}))
	must(t, s.Raise(4))
	if st := s.State(); st.Epoch != 5 || len(st.Maps) != 1 {
		t.Errorf("after a lower epoch: %+v", st)
	}
	must(t, s.Raise(6))
	if st := open(t, fs).State(); st.Epoch != 6 || st.Maps != nil {
		t.Errorf("after a higher epoch: %+v", st)
	}
}

func TestADamagedStateIsNotANewSpool(t *testing.T) {
	fs := crash.New(1).FS()
	must(t, open(t, fs).Raise(5))
	f, err := fs.Open("state", false)
	must(t, err)
	_, err = f.WriteAt([]byte("9"), 70)
	must(t, err)
	_, err = spool.Open(fs, "shop/pg")
	var damaged *spool.Damaged
	if !errors.As(err, &damaged) {
		t.Errorf("got %v", err)
	}
}

func TestASpoolBelongsToOneReplication(t *testing.T) {
	fs := crash.New(1).FS()
	open(t, fs)
	_, err := spool.Open(fs, "shop/other")
	var foreign *spool.Foreign
	if !errors.As(err, &foreign) || !strings.Contains(err.Error(), "shop/other") || !strings.Contains(err.Error(), "shop/pg") {
		t.Errorf("got %v", err)
	}
}

func TestASpoolBelongsToOneProcess(t *testing.T) {
	dir := t.TempDir()
	first, err := spool.OpenDir(dir)
	must(t, err)
	_, err = spool.OpenDir(dir)
	var inUse *spool.InUse
	if !errors.As(err, &inUse) {
		t.Errorf("got %v", err)
	}
	must(t, first.Close())
	second, err := spool.OpenDir(dir)
	must(t, err)
	must(t, second.Close())
}

// Damage in the middle of a committed log is never passed over.
func TestADamagedCommittedLogIsReported(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, fs spool.FS, f spool.File){
		"a flipped bit": func(t *testing.T, _ spool.FS, f spool.File) {
			_, err := f.WriteAt([]byte{0xff}, 4096+20)
			must(t, err)
		},
		"cut short": func(t *testing.T, _ spool.FS, f spool.File) { must(t, f.Truncate(4096+40)) },
		"cut clean": func(t *testing.T, _ spool.FS, f spool.File) { must(t, f.Truncate(4096+16+18)) },
		"one is gone": func(t *testing.T, fs spool.FS, _ spool.File) {
			must(t, fs.Remove("delta-00000001-000000"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := crash.New(1).FS()
			s := open(t, fs)
			must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p1"}}))
			must(t, s.OpenLog(ignore))
			must(t, s.Append(record(1)))
			must(t, s.Append(record(2)))
			must(t, s.Sync())
			must(t, s.Commit())
			f, err := fs.Open("delta-00000001-000000", false)
			must(t, err)
			spoil(t, fs, f)
			var damaged *spool.Damaged
			if err := s.Replay(ignore); !errors.As(err, &damaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A log longer than one file goes on in the next, and a tear is cut off wherever it is.
func TestALongLog(t *testing.T) {
	fs := crash.New(1).FS()
	s := open(t, fs)
	must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p1"}}))
	must(t, s.OpenLog(ignore))
	payload := make([]byte, wire.MaxRecord)
	data := wire.Data{Length: wire.MaxRecord, Payload: payload, Digests: make([]digest.Digest, wire.MaxRecord/digest.BlockSize)}
	const records = 300
	for range records {
		must(t, s.Append(data))
	}
	must(t, s.Sync())
	if s.Size() < records*wire.MaxRecord {
		t.Errorf("the log has %d bytes", s.Size())
	}
	names, err := fs.Names()
	must(t, err)
	if len(names) != 3 {
		t.Fatalf("files: %v", names)
	}
	f, err := fs.Open(names[1], false)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	_, err = f.WriteAt([]byte("torn"), size-100)
	must(t, err)
	n := 0
	count := func(wire.Message) error { n++; return nil }
	s = open(t, fs)
	must(t, s.OpenLog(count))
	must(t, s.Append(record(7)))
	must(t, s.Sync())
	before := n
	s = open(t, fs)
	n = 0
	must(t, s.OpenLog(count))
	if n != before+1 || before >= records {
		t.Errorf("%d records before the tear, %d in the end", before, n)
	}
}

func TestAFolderThatCannotBeMadeIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	if _, err := spool.OpenDir(filepath.Join(path, "spool")); err == nil {
		t.Error("it was made")
	}
}

// held is a file system whose files sync only when they are let, and notice being closed before.
type held struct {
	spool.FS
	hold    chan struct{} // nil: nothing is held
	early   bool          // a file was closed while it synced
	waiting chan struct{}
}

type heldFile struct {
	spool.File
	fs      *held
	syncing atomic.Bool
}

func (h *held) Open(name string, create bool) (spool.File, error) {
	f, err := h.FS.Open(name, create)
	return &heldFile{File: f, fs: h}, err
}

func (f *heldFile) Sync() error {
	if hold := f.fs.hold; hold != nil {
		f.syncing.Store(true)
		f.fs.waiting <- struct{}{}
		<-hold
		defer f.syncing.Store(false)
	}
	return f.File.Sync()
}

func (f *heldFile) Close() error {
	f.fs.early = f.fs.early || f.syncing.Load()
	return f.File.Close()
}

// A log is not closed under a sync that was begun: the sync would fail, and with it a session that did nothing wrong.
func TestALogStaysOpenUntilItsSyncIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &held{FS: crash.New(1).FS(), waiting: make(chan struct{}, 1)}
		s := open(t, fs)
		must(t, s.Begin(spool.Delta{Point: session.Point{ID: "p"}}))
		must(t, s.OpenLog(ignore))
		must(t, s.Append(record(0)))
		hold := make(chan struct{})
		fs.hold = hold
		wait := s.BeginSync()
		<-fs.waiting
		fs.hold = nil
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		synctest.Wait() // until the closing can go no further
		select {
		case err := <-closed:
			t.Errorf("closed while the log was synced, %v", err)
			close(hold)
		default:
			close(hold)
			must(t, <-closed)
		}
		must(t, wait())
		if fs.early {
			t.Error("the file was closed under its sync")
		}
	})
}
