// Package wire turns the messages of a session into bytes and back. It opens no socket, keeps no state and trusts
// nothing it reads: every length is bounded before it is used, every frame carries its checksum.
//
// A connection begins with one Banner line each way; then frames follow in both directions. Begin reading with the
// frame drawn below, then messages.go, where each message's layout stands above its type. Frames are also the records
// of the spool: what a target wrote to disk is what came over the wire.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// Version is the protocol this package speaks. Version 2 has records finer than a block, change lists and
	// verification; see Hello and Data.
	Version = 2
	// Oldest is the lowest protocol of a peer it still understands.
	Oldest = 1

	// HeaderSize is the length of a frame's header in bytes.
	HeaderSize = 16
	// Grain is the alignment of records in bytes, except for a volume's end. In version 1 it is a whole block.
	Grain = 4096
	// MaxPayload bounds a frame's payload in bytes: a whole record that would not compress, its digests and fields.
	MaxPayload = MaxRecord + 64<<10
	// MaxRecord bounds the volume bytes one Data record carries, before compression.
	MaxRecord = 1 << 20
	// MaxVolumes bounds the members of a group.
	MaxVolumes = 256
	// MaxName bounds names and identifiers, in bytes.
	MaxName = 512
	// MaxText bounds explanations for people, in bytes.
	MaxText = 2048
	// MaxMismatches bounds the list in a Refused.
	MaxMismatches = 64
	// MaxDigests bounds the digests in one message.
	MaxDigests = 16384
	// MaxVolumeSize bounds a volume, in bytes: 1 PiB.
	MaxVolumeSize = 1 << 50
)

// A frame, all integers little endian:
//
//	 0      4    5    6      8        12        16
//	+------+----+----+------+--------+---------+----------------+
//	| LBmv | ver| typ| flags| length | crc32c  | payload        |
//	+------+----+----+------+--------+---------+----------------+
//
// length is the payload's. crc32c (Castagnoli) covers the first 12 bytes and the payload; with flag 1 (Bare, since
// version 2, of a Data of whole blocks, uncompressed) not the bytes it carries, which its digests prove. A message's fields stand at
// the front of the payload; bytes after the last known field are ignored, so that a later version may add fields.
const frameMagic = "LBmv"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt is the root of every error about bytes that are no message of this protocol.
var ErrCorrupt = errors.New("not a valid frame")

// ErrShort reports that the bytes end before the frame does.
var ErrShort = errors.New("frame is cut short")

// Type names a message.
type Type uint8

// The messages. Numbers are never used again for something else.
const (
	TypeHello Type = iota + 1
	TypeRefused
	TypePulse
	TypeWelcome
	TypeSegmentDigests
	TypeWant
	TypeBlockDigests
	TypeData
	TypeHole
	TypeSegmentEnd
	TypeAck
	TypeClose
	TypeCommitted
	TypeFailed
)

// Message is one of the message types of this package.
type Message interface {
	// Type says which.
	Type() Type
	// fields appends the message's fields; what Data carries last is returned apart, uncopied.
	fields(b []byte) (head, body []byte)
}

// Header is a frame's first 16 bytes, understood and bounded.
type Header struct {
	Version uint8
	Type    Type
	Bare    bool // the checksum leaves out what the Data carries: whoever takes it checks its digests
	Length  int
	crc     uint32
	first12 [12]byte
}

// ParseHeader reads the first HeaderSize bytes of b.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, ErrShort
	}
	if string(b[:4]) != frameMagic {
		return Header{}, fmt.Errorf("%w: it begins with % x", ErrCorrupt, b[:4])
	}
	h := Header{
		Version: b[4],
		Type:    Type(b[5]),
		Bare:    b[6]&flagBare != 0,
		crc:     binary.LittleEndian.Uint32(b[12:]),
		first12: [12]byte(b[:12]),
	}
	length := binary.LittleEndian.Uint32(b[8:])
	if h.Version < Oldest || h.Version > Version {
		return Header{}, fmt.Errorf("%w: version %d", ErrCorrupt, h.Version)
	}
	if length > MaxPayload {
		return Header{}, fmt.Errorf("%w: payload of %d bytes, at most %d are allowed", ErrCorrupt, length, MaxPayload)
	}
	h.Length = int(length)
	return h, nil
}

// Parse checks a payload against its header and decodes it. A Data's Payload aliases the given bytes.
func Parse(h Header, payload []byte) (Message, error) {
	if len(payload) != h.Length {
		return nil, ErrShort
	}
	covered := payload
	if h.Bare {
		carried, err := bareLength(h, payload)
		if err != nil {
			return nil, err
		}
		covered = payload[:len(payload)-carried]
	}
	sum := crc32.Update(crc32.Checksum(h.first12[:], castagnoli), castagnoli, covered)
	if sum != h.crc {
		return nil, fmt.Errorf("%w: checksum of a %s differs", ErrCorrupt, h.Type)
	}
	decode, known := decoders[h.Type]
	if !known {
		return nil, fmt.Errorf("%w: unknown type %d", ErrCorrupt, h.Type)
	}
	r := reader{b: payload, version: int(h.Version)}
	m := decode(&r)
	if r.err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, h.Type, r.err)
	}
	if d, ok := m.(Data); h.Bare && (!ok || !d.provable()) {
		return nil, fmt.Errorf("%w: a %s whose digests do not prove its bytes comes without their checksum", ErrCorrupt, h.Type)
	}
	return m, nil
}

const flagBare = 1

// bareLength is how many bytes at a bare Data's end the checksum leaves out.
func bareLength(h Header, payload []byte) (int, error) {
	if h.Version < 2 || h.Type != TypeData || len(payload) < DataFront {
		return 0, fmt.Errorf("%w: a %s of version %d comes without a checksum of its bytes", ErrCorrupt, h.Type, h.Version)
	}
	carried := binary.LittleEndian.Uint32(payload[4:])
	if int64(carried) > int64(len(payload)-DataFront) {
		return 0, fmt.Errorf("%w: %w", ErrCorrupt, errCut)
	}
	return int(carried), nil
}

// Decode reads one frame from the front of b and says how many bytes it took.
func Decode(b []byte) (Message, int, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return nil, 0, err
	}
	if len(b) < HeaderSize+h.Length {
		return nil, 0, ErrShort
	}
	m, err := Parse(h, b[HeaderSize:HeaderSize+h.Length])
	return m, HeaderSize + h.Length, err
}

// grown is a message that has more fields since version 2; they stand behind those of version 1.
type grown interface {
	grow(b []byte) []byte
}

// Encode appends a frame of this package's Version to dst; see EncodeAs.
func Encode(dst []byte, m Message) (head, body []byte) { return EncodeAs(dst, m, Version) }

// EncodeAs appends a frame of a version both sides understand to dst, except for the bytes a Data carries, which are
// returned as body, uncopied: the frame is head followed by body. It panics on a message beyond the limits or the
// version, which is a mistake of the caller.
func EncodeAs(dst []byte, m Message, version int) (head, body []byte) {
	return encode(dst, m, version, false)
}

// EncodeBare is EncodeAs for a connection that protects what it carries: of a Data whose digests prove its bytes, the
// checksum leaves these out. Reading them once more would cost as much as proving them.
func EncodeBare(dst []byte, m Message, version int) (head, body []byte) {
	d, ok := m.(Data)
	return encode(dst, m, version, ok && version >= 2 && d.provable())
}

func encode(dst []byte, m Message, version int, bare bool) (head, body []byte) {
	flags := byte(0)
	if bare {
		flags = flagBare
	}
	start := len(dst)
	dst = append(dst, frameMagic...)
	dst = append(dst, byte(version), byte(m.Type()), flags, 0)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst, body = m.fields(dst)
	if g, ok := m.(grown); ok && version >= 2 {
		dst = g.grow(dst)
	}
	length := len(dst) - start - HeaderSize + len(body)
	if length > MaxPayload {
		panic(fmt.Sprintf("wire: %s of %d bytes", m.Type(), length))
	}
	frame := dst[start:]
	binary.LittleEndian.PutUint32(frame[8:], uint32(length))
	sum := crc32.Checksum(frame[:12], castagnoli)
	sum = crc32.Update(sum, castagnoli, frame[HeaderSize:])
	if !bare {
		sum = crc32.Update(sum, castagnoli, body)
	}
	binary.LittleEndian.PutUint32(frame[12:], sum)
	return dst, body
}

// Append appends a whole frame to dst.
func Append(dst []byte, m Message) []byte {
	head, body := Encode(dst, m)
	return append(head, body...)
}
