package engine

import (
	"fmt"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// packer compresses records where the link gains by it, see pilot, and backs off from what does not compress: after
// each record that gains little, the next ones pass as they are, twice as many each time up to maxSkip, before another
// try.
type packer struct {
	zstd  *zstd.Encoder // nil: off
	pilot *pilot

	mu   sync.Mutex
	skip int // records to pass before the next try
	back int // how many to pass after the next disappointment
}

const maxSkip = 64

func newPacker(choice Compression) (*packer, error) {
	if choice == CompressionOff {
		return &packer{pilot: newPilot()}, nil
	}
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(cores),
		zstd.WithWindowSize(wire.MaxRecord), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &packer{zstd: enc, pilot: newPilot(), back: 1}, nil
}

// pack compresses a record into scratch's free capacity. It returns the record to send, and scratch with what of it
// is used.
func (p *packer) pack(m wire.Data, scratch []byte) (wire.Data, []byte) {
	if p.zstd == nil || !p.try() {
		return m, scratch
	}
	began := time.Now()
	out := p.zstd.EncodeAll(m.Payload, scratch[len(scratch):])
	gained := len(out) < len(m.Payload)-len(m.Payload)/8
	if gained {
		p.pilot.packed(len(m.Payload), time.Since(began))
	}
	p.learn(gained)
	if !gained {
		return m, scratch
	}
	m.Codec, m.Payload = wire.CodecZstd, out
	if len(scratch)+len(out) <= cap(scratch) {
		scratch = scratch[:len(scratch)+len(out)]
	}
	return m, scratch
}

func (p *packer) try() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.skip > 0 {
		p.skip--
		return false
	}
	return true
}

func (p *packer) learn(gained bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if gained {
		p.back = 1
		return
	}
	p.skip = p.back
	p.back = min(2*p.back, maxSkip)
}

// unpacker gives a record's bytes back, and proves them.
type unpacker struct{ zstd *zstd.Decoder }

func newUnpacker() (*unpacker, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(cores),
		zstd.WithDecoderMaxMemory(2*wire.MaxRecord), zstd.WithDecoderMaxWindow(2*wire.MaxRecord))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &unpacker{zstd: dec}, nil
}

// unpack gives a record's bytes and checks them against its digests. They lie in into, which has room for a record, or
// in the record's own memory where that can go to a disk as it is.
// size is the volume's.
func (u *unpacker) unpack(m wire.Data, size int64, into []byte) ([]byte, error) {
	switch m.Codec {
	case wire.CodecNone:
		if liesRight(m) {
			return m.Payload, prove(m, size, m.Payload)
		}
		into = into[:m.Length]
		copy(into, m.Payload)
	case wire.CodecZstd:
		out, err := u.zstd.DecodeAll(m.Payload, into[:0])
		if err != nil || len(out) != m.Length {
			return nil, &session.Integrity{What: fmt.Sprintf("record of volume %d at %d: it does not unpack", m.Volume, m.Offset)}
		}
		into = out
	default:
		return nil, &session.Violation{What: fmt.Sprintf("codec %d is not known", m.Codec)}
	}
	return into, prove(m, size, into)
}

// liesRight reports that what a record carries can go to a disk from where it is.
func liesRight(m wire.Data) bool { return m.Codec == wire.CodecNone && volume.Aligned(m.Payload) }

// prove checks the blocks that lie whole in a record.
func prove(m wire.Data, size int64, p []byte) error {
	start := m.Offset &^ (digest.BlockSize - 1)
	for i, want := range m.Digests {
		from := start + int64(i)*digest.BlockSize
		to := min(from+digest.BlockSize, size)
		if from < m.Offset || to > m.Offset+int64(len(p)) {
			continue // the record has only a part of this block; the session refuses others that prove nothing
		}
		if got := digest.Block(p[from-m.Offset : to-m.Offset]); got != want {
			return &session.Integrity{What: fmt.Sprintf("block of volume %d at %d", m.Volume, from), Want: want, Got: got}
		}
	}
	return nil
}
