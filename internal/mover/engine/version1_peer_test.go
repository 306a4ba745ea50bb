package engine_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// v1Target is a target of version 1: it answers with recorded frames, acknowledges each segment, and keeps what it is
// sent in memory. It refuses everything version 1 did not allow.
type v1Target struct {
	t       *testing.T
	members []member
	images  [][]byte
	wg      sync.WaitGroup
}

// position is a place in the walk, as version 1 sends it.
type position struct {
	volume, segment int
	offset          int64
}

func (f v1Frame) position(at int) position { return position{f.u16(at), f.u32(at + 2), f.u64(at + 6)} }

func (p position) before(q position) bool {
	if p.volume != q.volume {
		return p.volume < q.volume
	}
	if p.segment != q.segment {
		return p.segment < q.segment
	}
	return p.offset < q.offset
}

func (p position) ack() []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(p.volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.segment))
	return makeV1(v1Ack, binary.LittleEndian.AppendUint64(b, uint64(p.offset)))
}

// serve answers one connection as name.target did. With resume, it ends the connection as soon as it has what the
// recorded next one says it has.
func (p *v1Target) serve(conn net.Conn, name, resume string) {
	if err := p.talk(conn, name, resume); err != nil {
		p.t.Errorf("%s: %v", name, err)
	}
	_ = conn.Close()
}

func (p *v1Target) talk(conn net.Conn, name, resume string) error {
	_, theirs := recorded(p.t, name+".source")
	banner, answers := recorded(p.t, name+".target")
	until := position{volume: -1}
	if resume != "" {
		_, next := recorded(p.t, resume+".target")
		until = only(next, v1Welcome)[0].position(4)
	}
	// Both sides speak first.
	spoke := make(chan error, 1)
	go func() {
		_, err := conn.Write([]byte(banner + "\n"))
		spoke <- err
	}()
	if _, err := readBanner(conn); err != nil {
		return err
	}
	if err := <-spoke; err != nil {
		return err
	}
	// What is sent must not wait for what is read.
	out := make(chan []byte, 1024)
	defer close(out)
	p.wg.Go(func() {
		for b := range out {
			_, _ = conn.Write(b)
		}
	})
	hello, err := readV1(conn)
	if err != nil {
		return err
	}
	if !bytes.Equal(hello.raw, theirs[0].raw) {
		return fmt.Errorf("it began with\n%sinstead of\n%s", dumpV1([]v1Frame{hello}), dumpV1(theirs[:1]))
	}
	for _, f := range only(answers, v1Welcome, v1SegmentDigests) {
		out <- f.raw
	}
	if len(only(answers, v1Committed)) == 0 && resume == "" {
		_, _ = conn.Read(make([]byte, 1)) // there is nothing to do, and the source ends the connection
		return nil
	}
	at := only(answers, v1Welcome)[0].position(4)
	for {
		f, err := readV1(conn)
		if err != nil {
			return err
		}
		switch f.kind {
		case v1Want:
			i := slices.IndexFunc(answers, func(a v1Frame) bool { return a.kind == v1BlockDigests && a.segment() == f.segment() })
			if i < 0 || len(f.payload()) != 6 {
				return fmt.Errorf("it asked for segment %v", f.segment())
			}
			out <- answers[i].raw
		case v1Data, v1Hole:
			if at, err = p.keep(f, at, until); err != nil {
				return err
			}
			if until.volume >= 0 && !at.before(until) {
				out <- until.ack()
				return nil
			}
		case v1SegmentEnd:
			if len(f.payload()) != 38 || f.segment() != [2]int{at.volume, at.segment} {
				return fmt.Errorf("segment %v ended at %+v", f.segment(), at)
			}
			same := func(x v1Frame) bool { return bytes.Equal(x.raw, f.raw) }
			if !slices.ContainsFunc(theirs, same) && resume == "" {
				return fmt.Errorf("the end of segment %v is not the recorded one", f.segment())
			}
			at = p.after(at)
			out <- at.ack()
		case v1Close:
			recordedClose := only(theirs, v1Close)
			if len(recordedClose) != 1 || !bytes.Equal(f.raw, recordedClose[0].raw) {
				return errors.New("the delta was not closed as it was recorded")
			}
			if at != (position{volume: len(p.members)}) {
				return fmt.Errorf("closed at %+v", at)
			}
			out <- only(answers, v1Committed)[0].raw
			_, _ = conn.Read(make([]byte, 1)) // the source ends the connection
			return nil
		case 3: // Pulse
		default:
			return fmt.Errorf("a frame of type %d", f.kind)
		}
	}
}

func (p *v1Target) after(at position) position {
	if start := int64(at.segment+1) * v1Segment; start < p.members[at.volume].size {
		return position{at.volume, at.segment + 1, start}
	}
	return position{volume: at.volume + 1}
}

// keep checks a record and takes it, up to until.
func (p *v1Target) keep(f v1Frame, at, until position) (position, error) {
	body := f.payload()
	var offset, length int64
	var content []byte
	switch f.kind {
	case v1Hole:
		offset, length = f.u64(2), f.u64(10)
		if len(body) != 18 {
			return at, errors.New("a hole is of 18 bytes")
		}
		content = make([]byte, length)
	case v1Data:
		var err error
		if offset, content, err = unpackV1(f); err != nil {
			return at, err
		}
		length = int64(len(content))
	}
	volume, end := f.u16(0), offset+length
	if volume >= len(p.members) {
		return at, fmt.Errorf("a record of volume %d", volume)
	}
	next := position{volume, int(offset / v1Segment), end}
	size := p.members[volume].size
	switch {
	case length == 0 || offset%v1Block != 0 || end%v1Block != 0 && end != size || end > size:
		return at, fmt.Errorf("a record from %d to %d", offset, end)
	case volume != at.volume || next.segment != at.segment || offset < at.offset || (end-1)/v1Segment != offset/v1Segment:
		return at, fmt.Errorf("a record of volume %d from %d to %d at %+v", volume, offset, end, at)
	}
	if until.volume == volume && until.segment == next.segment && end > until.offset {
		content = content[:until.offset-offset]
	}
	copy(p.images[volume][offset:], content)
	return next, nil
}

// unpackV1 gives a Data's bytes, proven by its digests.
func unpackV1(f v1Frame) (offset int64, content []byte, err error) {
	body := f.payload()
	if len(body) < 22 {
		return 0, nil, errors.New("a record without its fields")
	}
	codec, length, count := body[2], f.u32(4), f.u16(16)
	offset = f.u64(8)
	digests := body[18 : 18+32*count]
	packed := body[18+32*count:]
	if body[3] != 0 || count != (length+v1Block-1)/v1Block || int(binary.LittleEndian.Uint32(packed)) != len(packed)-4 {
		return 0, nil, fmt.Errorf("a record of %d bytes with %d digests and %d bytes of payload", length, count, len(packed)-4)
	}
	content = packed[4:]
	switch codec {
	case 0:
	case 1:
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(2<<20))
		if err != nil {
			return 0, nil, err
		}
		defer dec.Close()
		if content, err = dec.DecodeAll(content, nil); err != nil {
			return 0, nil, err
		}
	default:
		return 0, nil, fmt.Errorf("codec %d", codec)
	}
	if len(content) != length || length > 1<<20 {
		return 0, nil, fmt.Errorf("%d bytes in a record of %d", len(content), length)
	}
	for i := range count {
		sum := blake3.Sum256(content[i*v1Block : min((i+1)*v1Block, length)])
		if !bytes.Equal(sum[:], digests[32*i:32*i+32]) {
			return 0, nil, fmt.Errorf("the block at %d is not what its digest says", offset+int64(i)*v1Block)
		}
	}
	return offset, content, nil
}
