package engine

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// packer compresses records and backs off from what does not compress: after each record that gains little, the next
// ones pass as they are, twice as many each time up to maxSkip, before another try.
type packer struct {
	zstd *zstd.Encoder // nil: off

	mu   sync.Mutex
	skip int // records to pass before the next try
	back int // how many to pass after the next disappointment
}

const maxSkip = 64

func newPacker(choice Compression) (*packer, error) {
	if choice == CompressionOff {
		return &packer{}, nil
	}
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithWindowSize(wire.MaxRecord), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &packer{zstd: enc, back: 1}, nil
}

// pack compresses a record into scratch's free capacity. It returns the record to send, and scratch with what of it
// is used.
func (p *packer) pack(m wire.Data, scratch []byte) (wire.Data, []byte) {
	if p.zstd == nil || !p.try() {
		return m, scratch
	}
	out := p.zstd.EncodeAll(m.Payload, scratch[len(scratch):])
	gained := len(out) < len(m.Payload)-len(m.Payload)/8
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
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(2*wire.MaxRecord), zstd.WithDecoderMaxWindow(2*wire.MaxRecord))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &unpacker{zstd: dec}, nil
}

// unpack fills into with the record's bytes and checks them against its digests. into has room for a record.
func (u *unpacker) unpack(m wire.Data, into []byte) ([]byte, error) {
	switch m.Codec {
	case wire.CodecNone:
		into = into[:m.Length]
		copy(into, m.Payload)
	case wire.CodecZstd:
		out, err := u.zstd.DecodeAll(m.Payload, into[:0])
		if err != nil || len(out) != m.Length {
			return nil, &session.Integrity{What: fmt.Sprintf("record of volume %d at %d: it does not unpack", m.Volume, m.Offset), Want: m.Digests[0]}
		}
		into = out
	default:
		return nil, &session.Violation{What: fmt.Sprintf("codec %d is not known", m.Codec)}
	}
	return into, prove(m, into)
}

func prove(m wire.Data, p []byte) error {
	for i, want := range m.Digests {
		at := i * digest.BlockSize
		if got := digest.Block(p[at:min(at+digest.BlockSize, len(p))]); got != want {
			return &session.Integrity{
				What: fmt.Sprintf("block of volume %d at %d", m.Volume, m.Offset+int64(at)), Want: want, Got: got,
			}
		}
	}
	return nil
}
