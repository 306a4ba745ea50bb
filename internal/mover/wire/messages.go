package wire

import (
	"encoding/binary"
	"fmt"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// In the layouts below a text is its length (u16) and its bytes, a digest is 32 bytes, digests are their count (u16)
// and 32 bytes each, a flag is one byte, an instant is nanoseconds since 1970 UTC (i64).

var names = map[Type]string{
	TypeHello: "Hello", TypeRefused: "Refused", TypePulse: "Pulse", TypeWelcome: "Welcome",
	TypeSegmentDigests: "SegmentDigests", TypeWant: "Want", TypeBlockDigests: "BlockDigests",
	TypeData: "Data", TypeHole: "Hole", TypeSegmentEnd: "SegmentEnd", TypeAck: "Ack",
	TypeClose: "Close", TypeCommitted: "Committed", TypeFailed: "Failed",
}

func (t Type) String() string {
	if name, ok := names[t]; ok {
		return name
	}
	return fmt.Sprintf("type %d", uint8(t))
}

var decoders = map[Type]func(*reader) Message{
	TypeHello:          func(r *reader) Message { return decodeHello(r) },
	TypeRefused:        func(r *reader) Message { return decodeRefused(r) },
	TypePulse:          func(r *reader) Message { return decodePulse(r) },
	TypeWelcome:        func(r *reader) Message { return decodeWelcome(r) },
	TypeSegmentDigests: func(r *reader) Message { return decodeSegmentDigests(r) },
	TypeWant:           func(r *reader) Message { return decodeWant(r) },
	TypeBlockDigests:   func(r *reader) Message { return decodeBlockDigests(r) },
	TypeData:           func(r *reader) Message { return decodeData(r) },
	TypeHole:           func(r *reader) Message { return decodeHole(r) },
	TypeSegmentEnd:     func(r *reader) Message { return decodeSegmentEnd(r) },
	TypeAck:            func(r *reader) Message { return decodeAck(r) },
	TypeClose:          func(r *reader) Message { return decodeClose(r) },
	TypeCommitted:      func(r *reader) Message { return decodeCommitted(r) },
	TypeFailed:         func(r *reader) Message { return decodeFailed(r) },
}

// Member is one volume of a group, by the name both sides know it by. A tree has no size.
type Member struct {
	Name string
	Size int64
	Kind Kind `json:"Kind,omitempty"`
}

// Kind is what a member is.
type Kind uint8

// The kinds of member.
const (
	KindBlocks Kind = 0
	KindTree   Kind = 1
)

func (k Kind) String() string {
	if k == KindTree {
		return "tree"
	}
	return "blocks"
}

// Hello opens a session: the source says which replication it serves, in which epoch, with which instant, and what it
// can do to find what changed.
//
//	+------------------+-------------+-----------+--------------+-----------+----------------------------+
//	| replication text | epoch (u64) | point text| instant      | count u16 | count x (name text, size u64)|
//	+------------------+-------------+-----------+--------------+-----------+----------------------------+
//	| base text | allocated flag | verify flag | note text | count x (kind u8) |   since version 2
//	+-----------+----------------+-------------+-----------+-------------------+
//	| 1 (u8) | cut text |   absent when the source does not say
//	+--------+----------+
type Hello struct {
	Replication string
	Epoch       uint64
	Point       string
	PointTime   time.Time
	Members     []Member

	Base      string // the point since which the source has a complete list of changes; empty: it has none
	Allocated bool   // the source knows what was never written
	Verify    bool   // both sides are to be read and compared, whatever they remember
	Note      string // why the source offers no cheaper way, for people
	Cut       string // how the members were cut, in a word of the source's; empty: it does not say
}

func (Hello) Type() Type { return TypeHello }

func (m Hello) fields(b []byte) ([]byte, []byte) {
	b = appendText(b, m.Replication, MaxName)
	b = binary.LittleEndian.AppendUint64(b, m.Epoch)
	b = appendText(b, m.Point, MaxName)
	b = appendInstant(b, m.PointTime)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.Members)))
	for _, v := range m.Members {
		b = appendText(b, v.Name, MaxName)
		b = binary.LittleEndian.AppendUint64(b, uint64(v.Size))
	}
	return b, nil
}

func (m Hello) grow(b []byte) []byte {
	b = appendText(b, m.Base, MaxName)
	b = appendFlag(b, m.Allocated)
	b = appendFlag(b, m.Verify)
	b = appendText(b, m.Note, MaxText)
	for _, v := range m.Members {
		b = append(b, byte(v.Kind))
	}
	if m.Cut != "" {
		b = appendText(append(b, 1), m.Cut, MaxName)
	}
	return b
}

func decodeHello(r *reader) Message {
	m := Hello{
		Replication: r.text(MaxName, "replication"),
		Epoch:       r.u64(),
		Point:       r.text(MaxName, "point"),
		PointTime:   r.instant(),
	}
	n := r.count(MaxVolumes, "volumes")
	for range n {
		m.Members = append(m.Members, Member{Name: r.text(MaxName, "volume name"), Size: r.bytesIn("size")})
	}
	if r.version < 2 || r.ended() {
		return m
	}
	m.Base = r.text(MaxName, "base")
	m.Allocated, m.Verify = r.flag(), r.flag()
	m.Note = r.text(MaxText, "note")
	for i := range m.Members {
		m.Members[i].Kind = Kind(r.u8())
	}
	if !r.ended() && r.u8() == 1 {
		m.Cut = r.text(MaxName, "cut")
	}
	return m
}

// RefusalKind says why a target will not serve a source, now or ever.
type RefusalKind uint8

// The reasons for a refusal.
const (
	RefusedReplication RefusalKind = iota + 1 // the target serves another replication
	RefusedEpoch                              // the source's epoch is older than one the target has seen
	RefusedMembers                            // the groups differ
	RefusedSizes                              // volumes of one name differ in size
)

// Mismatch is one thing the two sides disagree on.
type Mismatch struct {
	Object string // what it is about, such as a volume's name
	Field  string
	Source string
	Target string
}

// Refused answers a Hello the target will not serve. It says what each side has.
//
//	+---------+-----------+----------------------------------------------------------+
//	| kind u8 | count u16 | count x (object text, field text, source text, target text)|
//	+---------+-----------+----------------------------------------------------------+
type Refused struct {
	Kind       RefusalKind
	Mismatches []Mismatch
}

func (Refused) Type() Type { return TypeRefused }

func (m Refused) fields(b []byte) ([]byte, []byte) {
	b = append(b, byte(m.Kind))
	list := m.Mismatches[:min(len(m.Mismatches), MaxMismatches)]
	b = binary.LittleEndian.AppendUint16(b, uint16(len(list)))
	for _, x := range list {
		b = appendText(b, x.Object, MaxName)
		b = appendText(b, x.Field, MaxName)
		b = appendText(b, x.Source, MaxText)
		b = appendText(b, x.Target, MaxText)
	}
	return b, nil
}

func decodeRefused(r *reader) Message {
	m := Refused{Kind: RefusalKind(r.u8())}
	n := r.count(MaxMismatches, "mismatches")
	for range n {
		m.Mismatches = append(m.Mismatches, Mismatch{
			Object: r.text(MaxName, "object"), Field: r.text(MaxName, "field"),
			Source: r.text(MaxText, "source"), Target: r.text(MaxText, "target"),
		})
	}
	return m
}

// Phase is what a side is busy with.
type Phase uint8

// The phases a Pulse may name.
const (
	PhaseWaiting Phase = iota + 1
	PhaseReconciling
	PhaseTransferring
	PhaseCommitting
	PhaseApplying
)

// Pulse says that a side lives and how far it is with something the other waits for.
//
//	+----------+------------+-------------+-----------+
//	| phase u8 | done (u64) | total (u64) | text      |
//	+----------+------------+-------------+-----------+
type Pulse struct {
	Phase Phase
	Done  uint64
	Total uint64
	Text  string
}

func (Pulse) Type() Type { return TypePulse }

func (m Pulse) fields(b []byte) ([]byte, []byte) {
	b = append(b, byte(m.Phase))
	b = binary.LittleEndian.AppendUint64(b, m.Done)
	b = binary.LittleEndian.AppendUint64(b, m.Total)
	return appendText(b, m.Text, MaxText), nil
}

func decodePulse(r *reader) Message {
	return Pulse{Phase: Phase(r.u8()), Done: r.u64(), Total: r.u64(), Text: r.text(MaxText, "text")}
}

// Tier is how a session finds what to send; the higher, the cheaper.
type Tier uint8

// The tiers. Version 1 knows the first two.
const (
	TierFull      Tier = 1 // everything is read and sent
	TierDigest    Tier = 2 // everything is read, and sent where digests differ
	TierAllocated Tier = 3 // everything that was ever written is read and sent
	TierCBT       Tier = 4 // what a list of changed blocks names is read and sent
)

func (t Tier) String() string {
	switch t {
	case TierFull:
		return "full"
	case TierDigest:
		return "digest"
	case TierAllocated:
		return "allocated"
	case TierCBT:
		return "cbt"
	}
	return fmt.Sprintf("tier %d", uint8(t))
}

// Compares reports that the tier builds on what the target holds: full and allocated need nothing of it.
func (t Tier) Compares() bool { return t == TierDigest || t == TierCBT }

// Position is a place in a session's walk through a group: earlier volumes are behind it, earlier segments of this one
// have ended, and this segment's records before Offset were taken. A segment whose last byte was taken has not ended
// before its SegmentEnd: that is why Segment is not simply found from Offset.
//
//	+------------+---------------+--------------+
//	| volume u16 | segment (u32) | offset (u64) |
//	+------------+---------------+--------------+
type Position struct {
	Volume  int
	Segment int
	Offset  int64
}

// Before reports whether p lies before q.
func (p Position) Before(q Position) bool {
	if p.Volume != q.Volume {
		return p.Volume < q.Volume
	}
	if p.Segment != q.Segment {
		return p.Segment < q.Segment
	}
	return p.Offset < q.Offset
}

func appendPosition(b []byte, p Position) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(p.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Segment))
	return binary.LittleEndian.AppendUint64(b, uint64(p.Offset))
}

func (r *reader) position() Position {
	return Position{Volume: r.volume(), Segment: int(r.u32()), Offset: r.bytesIn("offset")}
}

// Welcome answers a Hello the target will serve: by which tier and why, and where to begin. When Committed is set the
// target already holds the point and there is nothing to do. In tier digest, and when Start is not the beginning,
// SegmentDigests follow for every segment the source needs them for.
//
//	+---------+-------------+----------------+--------------+------------+------------+------------+
//	| tier u8 | direct flag | committed flag | resumed flag | start position          | window u64 |
//	+---------+-------------+----------------+--------------+------------+------------+------------+
//	| reason text | lookahead u16 |
//	+-------------+---------------+
//	| verify flag |                     since version 2
//	+-------------+
type Welcome struct {
	Tier      Tier
	Direct    bool // records go straight onto the replica: there is no point to protect
	Committed bool
	Resumed   bool
	Start     Position
	Window    int64 // bytes of records the source may have unacknowledged
	Reason    string
	Lookahead int  // segments the source may have asked the block digests of and not ended
	Verify    bool // what the target says it holds was read from its replica for this session
}

func (Welcome) Type() Type { return TypeWelcome }

func (m Welcome) fields(b []byte) ([]byte, []byte) {
	b = append(b, byte(m.Tier))
	b = appendFlag(b, m.Direct)
	b = appendFlag(b, m.Committed)
	b = appendFlag(b, m.Resumed)
	b = appendPosition(b, m.Start)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Window))
	b = appendText(b, m.Reason, MaxText)
	return binary.LittleEndian.AppendUint16(b, uint16(m.Lookahead)), nil
}

func (m Welcome) grow(b []byte) []byte { return appendFlag(b, m.Verify) }

func decodeWelcome(r *reader) Message {
	m := Welcome{
		Tier: Tier(r.u8()), Direct: r.flag(), Committed: r.flag(), Resumed: r.flag(),
		Start:  r.position(),
		Window: r.bytesIn("window"), Reason: r.text(MaxText, "reason"), Lookahead: int(r.u16()),
	}
	if r.version >= 2 && !r.ended() {
		m.Verify = r.flag()
	}
	return m
}

// SegmentDigests says what the target expects to hold, segment by segment, once all it has stored is applied.
//
//	+------------+-------------+---------+
//	| volume u16 | first (u32) | digests |
//	+------------+-------------+---------+
type SegmentDigests struct {
	Volume  int
	First   int
	Digests []digest.Digest
}

func (SegmentDigests) Type() Type { return TypeSegmentDigests }

func (m SegmentDigests) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.First))
	return appendDigests(b, m.Digests), nil
}

func decodeSegmentDigests(r *reader) Message {
	return SegmentDigests{Volume: r.volume(), First: int(r.u32()), Digests: r.digests()}
}

// Want asks for the block digests of a segment.
//
//	+------------+---------------+
//	| volume u16 | segment (u32) |
//	+------------+---------------+
type Want struct {
	Volume  int
	Segment int
}

func (Want) Type() Type { return TypeWant }

func (m Want) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	return binary.LittleEndian.AppendUint32(b, uint32(m.Segment)), nil
}

func decodeWant(r *reader) Message { return Want{Volume: r.volume(), Segment: int(r.u32())} }

// BlockDigests answers a Want.
//
//	+------------+---------------+---------+
//	| volume u16 | segment (u32) | digests |
//	+------------+---------------+---------+
type BlockDigests struct {
	Volume  int
	Segment int
	Digests []digest.Digest
}

func (BlockDigests) Type() Type { return TypeBlockDigests }

func (m BlockDigests) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Segment))
	return appendDigests(b, m.Digests), nil
}

func decodeBlockDigests(r *reader) Message {
	return BlockDigests{Volume: r.volume(), Segment: int(r.u32()), Digests: r.digests()}
}

// Codec says how a Data's payload is packed.
type Codec uint8

// The codecs.
const (
	CodecNone Codec = 0
	CodecZstd Codec = 1
	// CodecApart is only found in a spool: the bytes were written to the replica, the record keeps their digests.
	CodecApart Codec = 255
)

// Data carries bytes of a volume, aligned to Grain except at the volume's end. Digests are those of the blocks it
// touches, each of the block's whole content once the delta is applied, before compression: a block that lies wholly
// in the record is proven by its digest from the source's read to the target's disk; the bytes of one that lies partly
// in it are protected by the frame's checksum, and its digest may be Unknown. More says that the next record goes on in this one's last block, whose
// digest comes with the last record of that block. In version 1 a Data has whole blocks only.
//
//	+------------+----------+---------+------------+------------+---------+---------------+---------+
//	| volume u16 | codec u8 | more u8 | length u32 | offset u64 | digests | packed (u32)  | payload |
//	+------------+----------+---------+------------+------------+---------+---------------+---------+
type Data struct {
	Volume  int
	Codec   Codec
	More    bool
	Offset  int64
	Length  int
	Digests []digest.Digest
	Payload []byte
}

// WholeBlocks reports that the record begins and ends at block boundaries of a volume of this size.
func (m Data) WholeBlocks(size int64) bool {
	end := m.Offset + int64(m.Length)
	return !m.More && m.Offset%digest.BlockSize == 0 && (end%digest.BlockSize == 0 || end == size)
}

// provable reports that the digests cover every byte the record carries, as it carries them.
func (m Data) provable() bool {
	return m.Codec == CodecNone && !m.More && m.Offset%digest.BlockSize == 0 && m.Length%digest.BlockSize == 0
}

// Touched is how many blocks the record lies in.
func (m Data) Touched() int {
	return int((m.Offset+int64(m.Length)-1)/digest.BlockSize-m.Offset/digest.BlockSize) + 1
}

func (Data) Type() Type { return TypeData }

func (m Data) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = append(b, byte(m.Codec))
	b = appendFlag(b, m.More)
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Length))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Offset))
	b = appendDigests(b, m.Digests)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Payload)))
	return b, m.Payload
}

// DataFront is how many bytes of a Data's payload tell where the bytes it carries begin, see CarriedAt.
const DataFront = 18

// CarriedAt is where, in the payload of a Data that begins with front, the bytes it carries begin. It trusts nothing:
// any front gives a number, which is bounded by what a count of digests can be.
func CarriedAt(front []byte) int {
	return DataFront + int(binary.LittleEndian.Uint16(front[16:]))*digest.Size + 4
}

func decodeData(r *reader) Message {
	m := Data{Volume: r.volume(), Codec: Codec(r.u8()), More: r.flag() && r.version >= 2}
	length := r.u32()
	m.Offset = r.bytesIn("offset")
	m.Digests = r.digests()
	packed := r.u32()
	m.Payload = r.take(int(min(packed, MaxPayload+1)))
	if r.err != nil {
		return m
	}
	m.Length = int(min(length, MaxRecord+1))
	r.err = m.check(r.version)
	return m
}

// check holds what must be true of a Data wherever it comes from.
func (m Data) check(version int) error {
	grain := int64(Grain)
	if version < 2 {
		grain = digest.BlockSize
	}
	switch {
	case m.Length == 0 || m.Length > MaxRecord:
		return fmt.Errorf("record of %d bytes, 1 to %d are allowed", m.Length, MaxRecord)
	case m.Offset%grain != 0:
		return fmt.Errorf("offset %d is no multiple of %d", m.Offset, grain)
	case m.Offset+int64(m.Length) > MaxVolumeSize:
		return fmt.Errorf("offset %d is beyond the largest volume", m.Offset)
	case m.Offset/digest.SegmentSize != (m.Offset+int64(m.Length)-1)/digest.SegmentSize:
		return fmt.Errorf("a record from %d of %d bytes lies in two segments", m.Offset, m.Length)
	case len(m.Digests) != m.Touched()-more(m.More):
		return fmt.Errorf("%d digests for %d blocks", len(m.Digests), m.Touched()-more(m.More))
	case m.Codec == CodecNone && len(m.Payload) != m.Length:
		return fmt.Errorf("%d bytes carried for a record of %d", len(m.Payload), m.Length)
	case m.Codec == CodecApart && len(m.Payload) != 0:
		return fmt.Errorf("%d bytes carried by a record whose bytes are elsewhere", len(m.Payload))
	}
	return nil
}

func more(m bool) int {
	if m {
		return 1
	}
	return 0
}

// End is the position behind the record.
func (m Data) End() Position {
	return Position{Volume: m.Volume, Segment: int(m.Offset / digest.SegmentSize), Offset: m.Offset + int64(m.Length)}
}

// Hole says that bytes of a volume are zero: whole blocks, except at the volume's end, all in one segment.
//
//	+------------+------------+------------+
//	| volume u16 | offset u64 | length u64 |
//	+------------+------------+------------+
type Hole struct {
	Volume int
	Offset int64
	Length int64
}

func (Hole) Type() Type { return TypeHole }

func (m Hole) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Offset))
	return binary.LittleEndian.AppendUint64(b, uint64(m.Length)), nil
}

func decodeHole(r *reader) Message {
	m := Hole{Volume: r.volume(), Offset: r.bytesIn("offset"), Length: r.bytesIn("length")}
	if r.err == nil {
		r.err = m.check()
	}
	return m
}

func (m Hole) check() error {
	switch {
	case m.Length == 0 || m.Length > digest.SegmentSize:
		return fmt.Errorf("hole of %d bytes, 1 to %d are allowed", m.Length, digest.SegmentSize)
	case m.Offset%digest.BlockSize != 0:
		return fmt.Errorf("offset %d is no block's beginning", m.Offset)
	case m.Offset+m.Length > MaxVolumeSize:
		return fmt.Errorf("offset %d is beyond the largest volume", m.Offset)
	}
	return nil
}

// End is the position behind the hole.
func (m Hole) End() Position {
	return Position{Volume: m.Volume, Segment: int(m.Offset / digest.SegmentSize), Offset: m.Offset + m.Length}
}

// SegmentEnd says that everything of a segment has been sent, and what the segment must then hold.
//
//	+------------+---------------+--------+
//	| volume u16 | segment (u32) | digest |
//	+------------+---------------+--------+
type SegmentEnd struct {
	Volume  int
	Segment int
	Digest  digest.Digest
}

func (SegmentEnd) Type() Type { return TypeSegmentEnd }

func (m SegmentEnd) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Segment))
	return append(b, m.Digest[:]...), nil
}

func decodeSegmentEnd(r *reader) Message {
	return SegmentEnd{Volume: r.volume(), Segment: int(r.u32()), Digest: r.digest()}
}

// Ack says that everything before a position is durable at the target.
//
//	+----------+
//	| position |
//	+----------+
type Ack struct{ Durable Position }

func (Ack) Type() Type { return TypeAck }

func (m Ack) fields(b []byte) ([]byte, []byte) {
	return appendPosition(b, m.Durable), nil
}

func decodeAck(r *reader) Message {
	return Ack{Durable: r.position()}
}

// Close says that the delta is whole, and what the group must hold once it is applied.
//
//	+--------+
//	| digest |
//	+--------+
type Close struct{ Digest digest.Digest }

func (Close) Type() Type { return TypeClose }

func (m Close) fields(b []byte) ([]byte, []byte) { return append(b, m.Digest[:]...), nil }

func decodeClose(r *reader) Message { return Close{Digest: r.digest()} }

// Committed says that the point is recorded, applied to the replica and durable.
//
//	+------------+
//	| point text |
//	+------------+
type Committed struct{ Point string }

func (Committed) Type() Type { return TypeCommitted }

func (m Committed) fields(b []byte) ([]byte, []byte) { return appendText(b, m.Point, MaxName), nil }

func decodeCommitted(r *reader) Message { return Committed{Point: r.text(MaxName, "point")} }

// FailureKind says what went wrong at the side that sends a Failed.
type FailureKind uint8

// The kinds of failure.
const (
	FailedInternal  FailureKind = iota + 1
	FailedIO                    // a volume or the spool could not be read or written
	FailedSpace                 // the spool is full
	FailedIntegrity             // a digest was not what it must be
	FailedProtocol              // the other side did what it must not
	FailedReplaced              // a newer connection took the session over
	FailedStopping              // the side is shutting down
)

// Failed ends a session that was under way. The next one may go on.
//
//	+---------+------+
//	| kind u8 | text |
//	+---------+------+
type Failed struct {
	Kind FailureKind
	Text string
}

func (Failed) Type() Type { return TypeFailed }

func (m Failed) fields(b []byte) ([]byte, []byte) {
	b = append(b, byte(m.Kind))
	return appendText(b, m.Text, MaxText), nil
}

func decodeFailed(r *reader) Message {
	return Failed{Kind: FailureKind(r.u8()), Text: r.text(MaxText, "text")}
}

// appendInstant appends an instant; the zero time is 0.
func appendInstant(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.LittleEndian.AppendUint64(b, 0)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(t.UnixNano()))
}

func (r *reader) instant() time.Time {
	ns := int64(r.u64())
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
