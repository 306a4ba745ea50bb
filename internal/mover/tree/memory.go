package tree

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// buffer is memory for one record, given back when everybody who holds it is done with it.
type buffer struct {
	b    []byte
	refs atomic.Int32
}

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, wire.MaxRecord+wire.TreeInline)} }}

// newBuffer is an empty buffer with room for a record, held once.
func newBuffer() *buffer {
	b := buffers.Get().(*buffer)
	b.refs.Store(1)
	return b
}

func (b *buffer) hold() { b.refs.Add(1) }

func (b *buffer) release() {
	if b != nil && b.refs.Add(-1) == 0 {
		buffers.Put(b)
	}
}

var encoders = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(wire.MaxRecord),
		zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
})

var decoders = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(2*wire.MaxRecord), zstd.WithDecoderMaxWindow(2*wire.MaxRecord))
})

// compress packs raw into the room of into when that gains an eighth.
func compress(raw, into []byte) (wire.Codec, []byte, error) {
	enc, err := encoders()
	if err != nil {
		return 0, nil, fmt.Errorf("start zstd: %w", err)
	}
	out := enc.EncodeAll(raw, into[:0])
	if len(out) >= len(raw)-len(raw)/8 {
		return wire.CodecNone, raw, nil
	}
	return wire.CodecZstd, out, nil
}

// unpack copies or unpacks a payload of length bytes into the room of into.
func unpack(codec wire.Codec, length int, payload, into []byte) ([]byte, error) {
	if codec == wire.CodecNone {
		if len(payload) != length {
			return nil, fmt.Errorf("%w: %d bytes instead of %d", wire.ErrCorrupt, len(payload), length)
		}
		return append(into[:0], payload...), nil
	}
	dec, err := decoders()
	if err != nil {
		return nil, fmt.Errorf("start zstd: %w", err)
	}
	out, err := dec.DecodeAll(payload, into[:0])
	if err != nil || len(out) != length {
		return nil, fmt.Errorf("%w: a payload does not unpack to %d bytes", wire.ErrCorrupt, length)
	}
	return out, nil
}
