package delta

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// packer compresses records and backs off from what does not compress: after each one that gains little, the next
// ones pass as they are, twice as many each time up to maxSkip, before another try. nil packs nothing.
type packer struct {
	zstd *zstd.Encoder

	mu   sync.Mutex
	skip int // records to pass before the next try
	back int // how many to pass after the next disappointment
}

const (
	maxSkip = 64
	// minPack is what is worth packing, in bytes.
	minPack = 512
)

func newPacker() (*packer, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithWindowSize(wire.MaxRecord), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	return &packer{zstd: enc, back: 1}, nil
}

// pack compresses a record behind what scratch holds and returns both.
func (p *packer) pack(m wire.Data, scratch []byte) (wire.Data, []byte) {
	if p == nil || m.Length < minPack || !p.try() {
		return m, scratch
	}
	if scratch == nil {
		scratch = make([]byte, 0, windowSize+windowSize/8)
	}
	out := p.zstd.EncodeAll(m.Payload, scratch[len(scratch):])
	gained := len(out) < m.Length-m.Length/8
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

// packAll cuts a window into records and packs them, in the window's memory.
func (p *packer) packAll(w *window) []wire.Message {
	records := w.records()
	packed := w.packed[:0]
	for i, m := range records {
		if d, ok := m.(wire.Data); ok {
			records[i], packed = p.pack(d, packed)
		}
	}
	w.packed = packed
	return records
}

// decoder is shared by all: it works on one record at a time, from several goroutines.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(2*wire.MaxRecord), zstd.WithDecoderMaxWindow(2*wire.MaxRecord))
})

// unpack is a record's bytes: its own, or unpacked into the memory of into, which has room for a record.
func unpack(m wire.Data, into []byte) ([]byte, error) {
	if m.Codec == wire.CodecNone {
		return m.Payload, nil
	}
	dec, err := decoder()
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	p, err := dec.DecodeAll(m.Payload, into[:0])
	if err != nil || len(p) != m.Length {
		return nil, fmt.Errorf("record of volume %d at %d does not unpack to %d bytes", m.Volume, m.Offset, m.Length)
	}
	return p, nil
}
