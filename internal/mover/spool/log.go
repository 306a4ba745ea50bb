package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// The log of a delta is files of at most fileLimit bytes and one record, numbered from 0:
//
//	+-----------------------------+-------+-------+-----
//	| head: JSON line, 4096 bytes | frame | frame | ...
//	+-----------------------------+-------+-------+-----
//
// Frames are those of package wire: Data, Hole and SegmentEnd, as they came. A direct delta keeps its Data without the
// bytes (wire.CodecApart). A file is begun when the one before it is synced whole, so only the last may end torn.
const (
	headSize  = 4096
	fileLimit = 256 << 20
)

// log is a delta's log, open for appending.
type log struct {
	prefix  string
	head    []byte
	number  int
	file    File
	at      int64
	bytes   int64
	records int64
	dirty   bool
	syncing *syncing // begun last; nil: none was
	scratch []byte
}

func (d *Delta) prefix() string { return fmt.Sprintf("delta-%08d-", d.Serial) }

func (d *Delta) head() ([]byte, error) {
	body, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	if len(body) > headSize-1 {
		// A large group does not fit: the serial alone tells the deltas apart.
		body = fmt.Appendf(nil, `{"serial":%d}`, d.Serial)
	}
	return append(body, bytes.Repeat([]byte{'\n'}, headSize-len(body))...), nil
}

func logName(prefix string, number int) string { return fmt.Sprintf("%s%06d", prefix, number) }

// Append adds a record to the log of the delta that is arriving. It is durable after Sync.
func (s *Spool) Append(record wire.Message) error {
	if s.log == nil {
		return errors.New("append to spool: the log is not open")
	}
	l := s.log
	if l.at > fileLimit {
		if err := errors.Join(l.syncing.wait(), s.Sync()); err != nil {
			return err
		}
		if err := s.nextFile(l.number + 1); err != nil {
			return err
		}
	}
	head, body := wire.Encode(l.scratch[:0], record)
	l.scratch = head
	l.dirty = true
	if _, err := l.file.WriteAt(head, l.at); err != nil {
		return fmt.Errorf("append to spool: %w", err)
	}
	if len(body) > 0 {
		if _, err := l.file.WriteAt(body, l.at+int64(len(head))); err != nil {
			return fmt.Errorf("append to spool: %w", err)
		}
	}
	l.at += int64(len(head) + len(body))
	l.bytes += int64(len(head) + len(body))
	l.records++
	return nil
}

// Sync makes everything appended durable.
func (s *Spool) Sync() error {
	if s.log == nil || !s.log.dirty {
		return nil
	}
	if err := s.log.file.Sync(); err != nil {
		return &Unsynced{Err: err}
	}
	s.log.dirty = false
	return nil
}

// Unsynced reports that making the log durable failed: what is on the disk is unknown from then on, and reading it
// back does not tell.
type Unsynced struct{ Err error }

func (u *Unsynced) Error() string { return "sync spool: " + u.Err.Error() }

// Unwrap is what the disk said.
func (u *Unsynced) Unwrap() error { return u.Err }

// BeginSync begins to make everything appended so far durable; the function it returns waits for that. More may be
// appended meanwhile, which is not covered. The file stays open until it is done: a log that goes on in the next file,
// or is closed, waits first.
func (s *Spool) BeginSync() (wait func() error) {
	if s.log == nil || !s.log.dirty {
		return func() error { return nil }
	}
	s.log.dirty = false
	f, under := s.log.file, &syncing{done: make(chan struct{})}
	s.log.syncing = under
	go func() {
		defer close(under.done)
		if err := f.Sync(); err != nil {
			under.err = &Unsynced{Err: err}
		}
	}()
	return under.wait
}

// syncing is a sync that was begun.
type syncing struct {
	done chan struct{}
	err  error
}

func (u *syncing) wait() error {
	if u == nil {
		return nil
	}
	<-u.done
	return u.err
}

// Size is how many bytes of records the open log holds.
func (s *Spool) Size() int64 {
	if s.log == nil {
		return 0
	}
	return s.log.bytes
}

// OpenLog opens the log of the delta that is arriving, gives every record it holds to visit, in order, and makes it
// ready for Append. A torn end, which was never acknowledged, is cut off.
func (s *Spool) OpenLog(visit func(wire.Message) error) error {
	if s.state.Delta == nil || !s.receiving() {
		return errors.New("open spool log: no delta is arriving")
	}
	if err := s.closeLog(); err != nil {
		return err
	}
	d := s.state.Delta
	head, err := d.head()
	if err != nil {
		return err
	}
	s.log = &log{prefix: d.prefix(), head: head}
	for number := 0; ; number++ {
		f, err := s.fs.Open(logName(s.log.prefix, number), false)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("open spool log: %w", err)
		}
		end, whole, err := s.scan(f, visit)
		if err != nil {
			return errors.Join(err, f.Close())
		}
		if s.log.file != nil {
			_ = s.log.file.Close()
		}
		s.log.file, s.log.number, s.log.at = f, number, end
		if !whole {
			return s.cutTail(f, number, end)
		}
	}
	if s.log.file == nil {
		return s.nextFile(0)
	}
	return nil
}

// cutTail removes what lies behind the last whole record, durably, before anything is appended: else records of
// before and after the cut could be read as one sequence.
func (s *Spool) cutTail(f File, number int, end int64) error {
	for later := number + 1; ; later++ {
		name := logName(s.log.prefix, later)
		g, err := s.fs.Open(name, false)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("cut spool log: %w", err)
		}
		if err := errors.Join(g.Close(), s.fs.Remove(name)); err != nil {
			return fmt.Errorf("cut spool log: %w", err)
		}
	}
	if err := s.fs.SyncDir(); err != nil {
		return fmt.Errorf("cut spool log: %w", err)
	}
	if end < headSize {
		return s.nextFile(number)
	}
	if err := errors.Join(f.Truncate(end), f.Sync()); err != nil {
		return fmt.Errorf("cut spool log: %w", err)
	}
	return nil
}

// scan gives the records of one file to visit. It returns where the last whole record ends, and whether the file ends
// there too.
func (s *Spool) scan(f File, visit func(wire.Message) error) (end int64, whole bool, err error) {
	size, err := f.Size()
	if err != nil {
		return 0, false, fmt.Errorf("read spool log: %w", err)
	}
	head := make([]byte, headSize)
	if n, _ := f.ReadAt(head, 0); n != headSize || !bytes.Equal(head, s.log.head) {
		return 0, false, nil
	}
	r := &frames{file: f, at: headSize, size: size}
	for {
		m, n, err := r.next()
		if errors.Is(err, io.EOF) {
			return r.at, true, nil
		}
		if errors.Is(err, wire.ErrShort) || errors.Is(err, wire.ErrCorrupt) {
			return r.at, false, nil
		}
		if err != nil {
			return 0, false, fmt.Errorf("read spool log: %w", err)
		}
		if err := visit(m); err != nil {
			return 0, false, err
		}
		r.at += int64(n)
		s.log.bytes += int64(n)
		s.log.records++
	}
}

// Replay gives every record of the committed delta to visit, in order. Everything was durable before the commit, so
// anything missing or damaged is Damaged.
func (s *Spool) Replay(visit func(wire.Message) error) error {
	if !s.Pending() {
		return errors.New("replay spool: no committed delta waits")
	}
	d := s.state.Delta
	var records int64
	for number := 0; records < d.Records; number++ {
		f, err := s.fs.Open(logName(d.prefix(), number), false)
		if errors.Is(err, os.ErrNotExist) {
			return &Damaged{What: fmt.Sprintf("the log ends after %d of %d records", records, d.Records)}
		}
		if err != nil {
			return fmt.Errorf("replay spool: %w", err)
		}
		n, err := replayFile(f, visit)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		records += n
	}
	if records != d.Records {
		return &Damaged{What: fmt.Sprintf("the log holds %d records instead of %d", records, d.Records)}
	}
	return nil
}

func replayFile(f File, visit func(wire.Message) error) (records int64, err error) {
	size, err := f.Size()
	if err != nil {
		return 0, fmt.Errorf("replay spool: %w", err)
	}
	r := &frames{file: f, at: headSize, size: size}
	for {
		m, n, err := r.next()
		if errors.Is(err, io.EOF) {
			return records, nil
		}
		if errors.Is(err, wire.ErrShort) || errors.Is(err, wire.ErrCorrupt) {
			return records, &Damaged{What: fmt.Sprintf("a record of the log at %d: %v", r.at, err)}
		}
		if err != nil {
			return records, fmt.Errorf("replay spool: %w", err)
		}
		if err := visit(m); err != nil {
			return records, err
		}
		r.at += int64(n)
		records++
	}
}

func (s *Spool) nextFile(number int) error {
	l := s.log
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			return fmt.Errorf("close spool log: %w", err)
		}
		l.file = nil
	}
	f, err := s.fs.Open(logName(l.prefix, number), true)
	if err != nil {
		return fmt.Errorf("make spool log: %w", err)
	}
	l.file, l.number, l.at = f, number, headSize
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(l.head, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.fs.SyncDir()
	}
	if err != nil {
		return fmt.Errorf("make spool log: %w", err)
	}
	return nil
}

func (s *Spool) closeLog() error {
	if s.log == nil {
		return nil
	}
	f := s.log.file
	_ = s.log.syncing.wait() // who began it is told how it ended
	s.log = nil
	if f == nil {
		return nil
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close spool log: %w", err)
	}
	return nil
}

// frames reads frame after frame of a log file. The payload of a Data is valid until the next call.
type frames struct {
	file File
	at   int64
	size int64
	buf  []byte
	from int64 // where in the file buf begins
}

// readAhead is how much of a log is read at a time: records may be small, and many.
const readAhead = 256 << 10

// next reads the frame at r.at and says how long it is; io.EOF means that the file ends here.
func (r *frames) next() (wire.Message, int, error) {
	if r.at >= r.size {
		return nil, 0, io.EOF
	}
	head, err := r.peek(wire.HeaderSize)
	if err != nil {
		return nil, 0, err
	}
	h, err := wire.ParseHeader(head)
	if err != nil {
		return nil, 0, err
	}
	frame, err := r.peek(wire.HeaderSize + h.Length)
	if err != nil {
		return nil, 0, err
	}
	m, err := wire.Parse(h, frame[wire.HeaderSize:])
	return m, len(frame), err
}

// peek gives the n bytes at r.at. They are valid until the next call.
func (r *frames) peek(n int) ([]byte, error) {
	if r.at+int64(n) > r.size {
		return nil, wire.ErrShort
	}
	var have []byte
	if skip := r.at - r.from; skip >= 0 && skip < int64(len(r.buf)) {
		have = r.buf[skip:]
	}
	if len(have) >= n {
		return have[:n], nil
	}
	want := int(min(int64(max(n, readAhead)), r.size-r.at))
	if cap(r.buf) < want {
		r.buf = append(make([]byte, 0, want), have...)
	} else {
		r.buf = r.buf[:copy(r.buf[:cap(r.buf)], have)]
	}
	r.from = r.at
	got, err := r.file.ReadAt(r.buf[len(r.buf):want], r.at+int64(len(r.buf)))
	r.buf = r.buf[:len(r.buf)+got]
	switch {
	case len(r.buf) >= n:
		return r.buf[:n], nil
	case errors.Is(err, io.EOF):
		return nil, wire.ErrShort
	}
	return nil, err
}
