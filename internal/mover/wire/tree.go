package wire

import (
	"encoding/binary"
	"fmt"
	"strings"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// The messages of directory trees. Numbers are never used again for something else.
const (
	TypeTreeStart Type = iota + 32
	TypeTreeWantPages
	TypeTreePage
	TypeTreeWantDigests
	TypeTreeDigests
	TypeTreeFind
	TypeTreeFound
	TypeTreePut
	TypeTreeBlocks
	TypeTreeHole
	TypeTreeFileEnd
	TypeTreeEnd
	TypeTreeAck
)

func init() {
	for t, m := range map[Type]struct {
		name   string
		decode func(*reader) Message
	}{
		TypeTreeStart:       {"TreeStart", decodeTreeStart},
		TypeTreeWantPages:   {"TreeWantPages", decodeTreeWantPages},
		TypeTreePage:        {"TreePage", decodeTreePage},
		TypeTreeWantDigests: {"TreeWantDigests", decodeTreeWantDigests},
		TypeTreeDigests:     {"TreeDigests", decodeTreeDigests},
		TypeTreeFind:        {"TreeFind", decodeTreeFind},
		TypeTreeFound:       {"TreeFound", decodeTreeFound},
		TypeTreePut:         {"TreePut", decodeTreePut},
		TypeTreeBlocks:      {"TreeBlocks", decodeTreeBlocks},
		TypeTreeHole:        {"TreeHole", decodeTreeHole},
		TypeTreeFileEnd:     {"TreeFileEnd", decodeTreeFileEnd},
		TypeTreeEnd:         {"TreeEnd", decodeTreeEnd},
		TypeTreeAck:         {"TreeAck", decodeTreeAck},
	} {
		names[t], decoders[t] = m.name, m.decode
	}
}

// Limits of trees.
const (
	// MaxTreePath bounds a path below the tree's root, in bytes.
	MaxTreePath = 32 << 10
	// MaxTreeName bounds one component of a path, in bytes; it is the kernel's own limit.
	MaxTreeName = 255
	// MaxTreeLink bounds what a symbolic link says, in bytes; it is the kernel's own limit.
	MaxTreeLink = 4096
	// MaxTreeXattrs bounds the extended attributes of one entry, names and values together, in bytes.
	MaxTreeXattrs = 512 << 10
	// MaxTreeXattr bounds one extended attribute's value, in bytes; it is the kernel's own limit.
	MaxTreeXattr = 64 << 10
	// MaxTreeItems bounds the entries in one TreePut or TreePage.
	MaxTreeItems = 4096
	// MaxTreeRanges bounds the ranges in one TreeWantDigests.
	MaxTreeRanges = 1024
	// TreeInline is the largest content, in bytes, that travels inside its entry: one block.
	TreeInline = digest.BlockSize
)

// TreeKind is what an entry of a tree is.
type TreeKind uint8

// The kinds of entries.
const (
	TreeFile TreeKind = iota + 1
	TreeDirectory
	TreeSymlink
	TreeFifo
	TreeSocket
	TreeCharDevice
	TreeBlockDevice
)

// TreeMeta is what a file system says about an entry, as the source's has it. Two entries of one path with equal
// TreeMeta are the same and hold the same: nobody can set Changed back.
//
//	+---------+----------+---------+---------+----------+-------------+--------------+-------------+--------------+
//	| kind u8 | mode u16 | uid u32 | gid u32 | size u64 | mtime (i64) | its ns (u32) | ctime (i64) | its ns (u32) |
//	+---------+----------+---------+---------+----------+-------------+--------------+-------------+--------------+
//	| inode u64 | links u32 | device's major u32 | minor u32 |                                          63 bytes
//	+-----------+-----------+--------------------+-----------+
type TreeMeta struct {
	Kind        TreeKind
	Mode        uint16 // the lower 12 bits: permissions, setuid, setgid, sticky
	UID, GID    uint32
	Size        int64 // of a file; 0 for everything else
	Modified    int64 // seconds since 1970
	ModifiedNs  uint32
	Changed     int64
	ChangedNs   uint32
	Inode       uint64 // 0: not known, of a replica that was read rather than received
	Links       uint32
	DeviceMajor uint32 // of a device node
	DeviceMinor uint32
}

const treeMetaSize = 1 + 2 + 4 + 4 + 8 + 8 + 4 + 8 + 4 + 8 + 4 + 8

// AppendTreeMeta appends the 63 bytes of a TreeMeta; digests over trees are taken over them too.
func AppendTreeMeta(b []byte, m *TreeMeta) []byte {
	b = append(b, byte(m.Kind))
	b = binary.LittleEndian.AppendUint16(b, m.Mode)
	b = binary.LittleEndian.AppendUint32(b, m.UID)
	b = binary.LittleEndian.AppendUint32(b, m.GID)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Size))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Modified))
	b = binary.LittleEndian.AppendUint32(b, m.ModifiedNs)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Changed))
	b = binary.LittleEndian.AppendUint32(b, m.ChangedNs)
	b = binary.LittleEndian.AppendUint64(b, m.Inode)
	b = binary.LittleEndian.AppendUint32(b, m.Links)
	b = binary.LittleEndian.AppendUint32(b, m.DeviceMajor)
	return binary.LittleEndian.AppendUint32(b, m.DeviceMinor)
}

func (r *reader) treeMeta() (m TreeMeta) {
	p := r.take(treeMetaSize)
	if p == nil {
		return m
	}
	m.Kind = TreeKind(p[0])
	m.Mode = binary.LittleEndian.Uint16(p[1:])
	m.UID = binary.LittleEndian.Uint32(p[3:])
	m.GID = binary.LittleEndian.Uint32(p[7:])
	size := binary.LittleEndian.Uint64(p[11:])
	m.Modified = int64(binary.LittleEndian.Uint64(p[19:]))
	m.ModifiedNs = binary.LittleEndian.Uint32(p[27:])
	m.Changed = int64(binary.LittleEndian.Uint64(p[31:]))
	m.ChangedNs = binary.LittleEndian.Uint32(p[39:])
	m.Inode = binary.LittleEndian.Uint64(p[43:])
	m.Links = binary.LittleEndian.Uint32(p[51:])
	m.DeviceMajor = binary.LittleEndian.Uint32(p[55:])
	m.DeviceMinor = binary.LittleEndian.Uint32(p[59:])
	switch {
	case m.Kind < TreeFile || m.Kind > TreeBlockDevice:
		r.err = fmt.Errorf("entry of unknown kind %d", m.Kind)
	case m.Mode > 0o7777:
		r.err = fmt.Errorf("mode %o is beyond 7777", m.Mode)
	case size > MaxVolumeSize || size != 0 && m.Kind != TreeFile:
		r.err = fmt.Errorf("size %d of an entry of kind %d", size, m.Kind)
	case m.ModifiedNs >= 1e9 || m.ChangedNs >= 1e9:
		r.err = fmt.Errorf("nanoseconds %d, %d", m.ModifiedNs, m.ChangedNs)
	}
	m.Size = int64(size)
	return m
}

// Blocks is how many block digests the entry has.
func (m *TreeMeta) Blocks() int64 {
	if m.Kind != TreeFile {
		return 0
	}
	return digest.Geometry{Size: m.Size}.Blocks()
}

// CheckTreePath reports why p cannot be the path of an entry below a root: it must stay below it. Any bytes but NUL
// and the separator may stand in a name; "" is the root itself.
func CheckTreePath(p string) error {
	if len(p) > MaxTreePath {
		return fmt.Errorf("path of %d bytes, at most %d are allowed", len(p), MaxTreePath)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("path %q has a NUL", p)
	}
	for rest := p; rest != ""; {
		name, after, more := strings.Cut(rest, "/")
		if name == "" || name == "." || name == ".." || len(name) > MaxTreeName || more && after == "" {
			return fmt.Errorf("path %q leads elsewhere than below the tree's root", p)
		}
		rest = after
	}
	return nil
}

// CompareTreePaths orders paths as a walk meets them: a directory before what is in it, names by their bytes.
func CompareTreePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// appendTreePath appends a path as what it shares with the one before it, and the rest.
//
//	+------------+-------------+
//	| shared u16 | rest (text) |
//	+------------+-------------+
func appendTreePath(b []byte, before, path string) []byte {
	n := 0
	for n < len(before) && n < len(path) && before[n] == path[n] {
		n++
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(n))
	return appendText(b, path[n:], MaxTreePath)
}

func (r *reader) treePath(before string) string {
	n := int(r.u16())
	rest := r.take(r.count(MaxTreePath, "bytes of a path"))
	if r.err == nil && n > len(before) {
		r.err = fmt.Errorf("a path shares %d bytes with one of %d", n, len(before))
	}
	if r.err != nil {
		return ""
	}
	p := before[:n] + string(rest)
	r.err = CheckTreePath(p)
	return p
}

// TreeOp is what is to be done with an entry.
type TreeOp uint8

// The operations. An object is what an inode number of the source names: one file, under one or more paths.
const (
	// TreeDelete removes the path and everything below it.
	TreeDelete TreeOp = iota + 1
	// TreeSame keeps the object the path has and changes it in place.
	TreeSame
	// TreeNew makes a new object; one with several links is kept for the TreeLinks that follow.
	TreeNew
	// TreeKeep says, before the path that needs it, that the object a path of the base has will live on elsewhere.
	TreeKeep
	// TreeMoved gives the path the object a TreeKeep kept, and changes it.
	TreeMoved
	// TreeLink gives the path an object that a TreeNew or TreeMoved of this delta brought.
	TreeLink
)

// TreeContent says where a file's content is.
type TreeContent uint8

// Where content may be.
const (
	TreeContentKept   TreeContent = iota // the object has it already
	TreeContentInline                    // one block or nothing, in the entry
	TreeContentBlocks                    // in the TreeBlocks and TreeHoles that follow, up to a TreeFileEnd
	TreeContentApart                     // only in a spool: one block, written to the replica; the entry has its digest
)

// TreeXattr is an extended attribute.
type TreeXattr struct {
	Name  string
	Value []byte
}

// TreeItem is one change of one path. Within a delta paths grow, but for those of TreeKeep.
//
//	+-------+------+----------------------- TreeDelete ends here; TreeKeep goes on with inode (u64) and ends
//	| op u8 | path |
//	+-------+------+-------------+-------------+-----------------+-----------+--------------------------------+
//	| meta (63)    | sparse flag | content u8  | link's text     | count u16 | count x (name text, value u32+)|
//	+--------------+-------------+-------------+-----------------+-----------+--------------------------------+
//	| inline: length u32, digest unless 0, bytes; apart: digest |
//	+-----------------------------------------------------------+
type TreeItem struct {
	Op      TreeOp
	Path    string
	Meta    TreeMeta
	Sparse  bool // zero pages stay holes
	Content TreeContent
	Link    string // what a symbolic link says
	Xattrs  []TreeXattr
	Digest  digest.Digest // of an inline or apart block
	Bytes   []byte
}

// AppendTreeItem appends an item of a TreePut; before is the path of the item before it, "" for the first.
func AppendTreeItem(b []byte, before string, it *TreeItem) []byte {
	b = append(b, byte(it.Op))
	b = appendTreePath(b, before, it.Path)
	switch it.Op {
	case TreeDelete:
		return b
	case TreeKeep:
		return binary.LittleEndian.AppendUint64(b, it.Meta.Inode)
	}
	b = AppendTreeMeta(b, &it.Meta)
	b = appendFlag(b, it.Sparse)
	b = append(b, byte(it.Content))
	b = appendText(b, it.Link, MaxTreeLink)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(it.Xattrs)))
	for _, x := range it.Xattrs {
		b = appendText(b, x.Name, MaxTreeName)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.Value)))
		b = append(b, x.Value...)
	}
	switch it.Content {
	case TreeContentInline:
		b = binary.LittleEndian.AppendUint32(b, uint32(len(it.Bytes)))
		if len(it.Bytes) > 0 {
			b = append(b, it.Digest[:]...)
		}
		b = append(b, it.Bytes...)
	case TreeContentApart:
		b = append(b, it.Digest[:]...)
	}
	return b
}

func (r *reader) treeItem(before string) (it TreeItem) {
	it.Op = TreeOp(r.u8())
	it.Path = r.treePath(before)
	switch it.Op {
	case TreeDelete:
		if r.err == nil && it.Path == "" {
			r.err = fmt.Errorf("the tree's root cannot be deleted")
		}
		return it
	case TreeKeep:
		it.Meta.Inode = r.u64()
		return it
	}
	it.Meta = r.treeMeta()
	it.Sparse = r.flag()
	it.Content = TreeContent(r.u8())
	it.Link = r.text(MaxTreeLink, "a link")
	room := MaxTreeXattrs
	for range r.count(MaxTreeXattrs, "extended attributes") {
		x := TreeXattr{Name: r.text(MaxTreeName, "an attribute's name")}
		n := r.u32()
		room -= len(x.Name) + int(min(n, MaxTreeXattr))
		if r.err == nil && (n > MaxTreeXattr || room < 0) {
			r.err = fmt.Errorf("extended attribute of %d bytes, %d are left", n, room)
		}
		if x.Value = r.take(int(n)); r.err != nil {
			return it
		}
		it.Xattrs = append(it.Xattrs, x)
	}
	switch it.Content {
	case TreeContentInline:
		n := r.u32()
		if r.err == nil && n > TreeInline {
			r.err = fmt.Errorf("%d bytes in an entry, at most %d are allowed", n, TreeInline)
		}
		if n > 0 {
			it.Digest = r.digest()
		}
		it.Bytes = r.take(int(n))
	case TreeContentApart:
		it.Digest = r.digest()
	}
	if r.err == nil {
		r.err = it.check()
	}
	return it
}

// check holds what must be true of an item wherever it comes from.
func (it *TreeItem) check() error {
	file := it.Meta.Kind == TreeFile
	switch {
	case it.Op < TreeSame || it.Op > TreeLink:
		return fmt.Errorf("unknown operation %d", it.Op)
	case it.Path == "" && (it.Meta.Kind != TreeDirectory || it.Op != TreeSame):
		return fmt.Errorf("the tree's root is a directory and stays it")
	case it.Meta.Kind == TreeDirectory && it.Op > TreeNew:
		return fmt.Errorf("directory %q as a link", it.Path)
	case it.Meta.Kind == TreeSymlink && it.Op != TreeSame && (it.Link == "" || strings.IndexByte(it.Link, 0) >= 0):
		return fmt.Errorf("symbolic link %q leads to %q", it.Path, it.Link)
	case it.Content > TreeContentApart || it.Content != TreeContentKept && (!file || it.Op == TreeLink):
		return fmt.Errorf("content %d for %q of kind %d", it.Content, it.Path, it.Meta.Kind)
	case it.Content == TreeContentInline && int64(len(it.Bytes)) != it.Meta.Size:
		return fmt.Errorf("%d bytes for %q of %d", len(it.Bytes), it.Path, it.Meta.Size)
	case it.Content == TreeContentApart && (it.Meta.Size == 0 || it.Meta.Size > TreeInline):
		return fmt.Errorf("one digest for %q of %d bytes", it.Path, it.Meta.Size)
	case it.Content == TreeContentKept && file && it.Op == TreeNew:
		return fmt.Errorf("new file %q without content", it.Path)
	}
	return nil
}

// TreeItems decodes the items of an unpacked TreePut and gives them to visit, one at a time. What they hold aliases raw.
func TreeItems(raw []byte, count int, visit func(*TreeItem) error) error {
	r := reader{b: raw}
	before := ""
	for range count {
		it := r.treeItem(before)
		if r.err != nil {
			return fmt.Errorf("%w: item of a TreePut: %w", ErrCorrupt, r.err)
		}
		before = it.Path
		if err := visit(&it); err != nil {
			return err
		}
	}
	return nil
}

// TreeListed is one entry of an index: what the source had under a path, and where its digests are.
//
//	+------+-----------+-----------+
//	| path | meta (63) | ref (u64) |
//	+------+-----------+-----------+
type TreeListed struct {
	Path string
	Meta TreeMeta
	Ref  int64 // where its block digests begin in the index, in bytes
}

// AppendTreeListed appends an entry of a TreePage; before is the path of the entry before it, "" for the first.
func AppendTreeListed(b []byte, before string, e *TreeListed) []byte {
	b = appendTreePath(b, before, e.Path)
	b = AppendTreeMeta(b, &e.Meta)
	return binary.LittleEndian.AppendUint64(b, uint64(e.Ref))
}

// TreeListing decodes the entries of an unpacked TreePage.
func TreeListing(raw []byte, count int) ([]TreeListed, error) {
	r := reader{b: raw}
	out := make([]TreeListed, 0, min(count, len(raw)/treeMetaSize+1))
	before := ""
	for range count {
		e := TreeListed{Path: r.treePath(before), Meta: r.treeMeta(), Ref: r.bytesIn("reference")}
		if r.err == nil && len(out) > 0 && CompareTreePaths(before, e.Path) >= 0 {
			r.err = fmt.Errorf("%q comes after %q", e.Path, before)
		}
		if r.err != nil {
			return nil, fmt.Errorf("%w: entry of a TreePage: %w", ErrCorrupt, r.err)
		}
		before = e.Path
		out = append(out, e)
	}
	return out, nil
}

// TreeStart is the target's first word about a tree: how many pages its index of what it holds has, and how far an
// earlier connection of the same delta came. Items up to Path are durable; when Inside is set, Path is a file whose
// blocks are durable up to Offset and whose end is not.
//
//	+------------+-----------+--------------+-------------+--------------+-------------+------------+-----------+
//	| volume u16 | pages u32 | known flag   | direct flag | resumed flag | inside flag | offset u64 | path text |
//	+------------+-----------+--------------+-------------+--------------+-------------+------------+-----------+
//	| ended flag |
//	+------------+
type TreeStart struct {
	Volume  int
	Pages   int
	Known   bool // the index has the source's inode numbers: it was received, not read from the replica
	Direct  bool
	Resumed bool
	Inside  bool
	Offset  int64
	Path    string
	Ended   bool // everything of the tree is durable, its end included: there is nothing to do
}

// Type implements Message.
func (TreeStart) Type() Type { return TypeTreeStart }

func (m TreeStart) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Pages))
	b = appendFlag(b, m.Known)
	b = appendFlag(b, m.Direct)
	b = appendFlag(b, m.Resumed)
	b = appendFlag(b, m.Inside)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Offset))
	b = appendText(b, m.Path, MaxTreePath)
	return appendFlag(b, m.Ended), nil
}

func decodeTreeStart(r *reader) Message {
	m := TreeStart{
		Volume: r.volume(), Pages: int(r.u32()), Known: r.flag(), Direct: r.flag(), Resumed: r.flag(), Inside: r.flag(),
		Offset: r.bytesIn("offset"), Path: r.text(MaxTreePath, "a path"), Ended: r.flag(),
	}
	if r.err == nil {
		r.err = CheckTreePath(m.Path)
	}
	return m
}

// TreeWantPages asks for pages of the index. The source has room for what it asks for.
//
//	+------------+-------------+-----------+
//	| volume u16 | first (u32) | count u16 |
//	+------------+-------------+-----------+
type TreeWantPages struct {
	Volume int
	First  int
	Count  int
}

// Type implements Message.
func (TreeWantPages) Type() Type { return TypeTreeWantPages }

func (m TreeWantPages) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.First))
	return binary.LittleEndian.AppendUint16(b, uint16(m.Count)), nil
}

func decodeTreeWantPages(r *reader) Message {
	return TreeWantPages{Volume: r.volume(), First: int(r.u32()), Count: int(r.u16())}
}

// TreePage is one page of an index: entries in the order of CompareTreePaths, packed.
//
//	+------------+---------------+----------+-----------+--------------+--------------+---------+
//	| volume u16 | number (u32)  | codec u8 | count u16 | length (u32) | packed (u32) | payload |
//	+------------+---------------+----------+-----------+--------------+--------------+---------+
type TreePage struct {
	Volume  int
	Number  int
	Codec   Codec
	Count   int
	Length  int // unpacked
	Payload []byte
}

// Type implements Message.
func (TreePage) Type() Type { return TypeTreePage }

func (m TreePage) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Number))
	b = append(b, byte(m.Codec))
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Count))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Length))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Payload)))
	return b, m.Payload
}

func decodeTreePage(r *reader) Message {
	m := TreePage{Volume: r.volume(), Number: int(r.u32()), Codec: Codec(r.u8()), Count: r.count(MaxTreeItems, "entries")}
	m.Length, m.Payload = r.packed(m.Codec)
	return m
}

// packed reads the length of some bytes before packing, and the packed bytes.
func (r *reader) packed(codec Codec) (length int, payload []byte) {
	raw, packed := r.u32(), r.u32()
	payload = r.take(int(min(packed, MaxPayload+1)))
	switch {
	case r.err != nil:
	case raw > MaxRecord:
		r.err = fmt.Errorf("%d bytes packed, at most %d are allowed", raw, MaxRecord)
	case codec != CodecNone && codec != CodecZstd:
		r.err = fmt.Errorf("codec %d is not known", codec)
	case codec == CodecNone && raw != packed:
		r.err = fmt.Errorf("%d bytes carried instead of %d", packed, raw)
	}
	if r.err != nil {
		return 0, nil
	}
	return int(raw), payload
}

// TreeRange is a run of block digests of the index.
type TreeRange struct {
	Ref   int64
	Count int
}

// TreeWantDigests asks for runs of block digests, at most MaxDigests in all.
//
//	+------------+----------+-----------+-------------------------------+
//	| volume u16 | id (u32) | count u16 | count x (ref u64, digests u16)|
//	+------------+----------+-----------+-------------------------------+
type TreeWantDigests struct {
	Volume int
	ID     uint32
	Ranges []TreeRange
}

// Type implements Message.
func (TreeWantDigests) Type() Type { return TypeTreeWantDigests }

func (m TreeWantDigests) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.Ranges)))
	for _, x := range m.Ranges {
		b = binary.LittleEndian.AppendUint64(b, uint64(x.Ref))
		b = binary.LittleEndian.AppendUint16(b, uint16(x.Count))
	}
	return b, nil
}

func decodeTreeWantDigests(r *reader) Message {
	m := TreeWantDigests{Volume: r.volume(), ID: r.u32()}
	total := 0
	for range r.count(MaxTreeRanges, "ranges") {
		x := TreeRange{Ref: r.bytesIn("reference"), Count: int(r.u16())}
		total += x.Count
		if r.err == nil && total > MaxDigests {
			r.err = fmt.Errorf("more than %d digests wanted", MaxDigests)
		}
		if r.err != nil {
			return m
		}
		m.Ranges = append(m.Ranges, x)
	}
	return m
}

// TreeDigests answers a TreeWantDigests: the digests of all its ranges, in order.
//
//	+------------+----------+---------+
//	| volume u16 | id (u32) | digests |
//	+------------+----------+---------+
type TreeDigests struct {
	Volume  int
	ID      uint32
	Digests []digest.Digest
}

// Type implements Message.
func (TreeDigests) Type() Type { return TypeTreeDigests }

func (m TreeDigests) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	return appendDigests(b, m.Digests), nil
}

func decodeTreeDigests(r *reader) Message {
	return TreeDigests{Volume: r.volume(), ID: r.u32(), Digests: r.digests()}
}

// TreeFind asks where the index has an object: one with more than one block or more than one link.
//
//	+------------+----------+-------------+
//	| volume u16 | id (u32) | inode (u64) |
//	+------------+----------+-------------+
type TreeFind struct {
	Volume int
	ID     uint32
	Inode  uint64
}

// Type implements Message.
func (TreeFind) Type() Type { return TypeTreeFind }

func (m TreeFind) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	return binary.LittleEndian.AppendUint64(b, m.Inode), nil
}

func decodeTreeFind(r *reader) Message {
	return TreeFind{Volume: r.volume(), ID: r.u32(), Inode: r.u64()}
}

// TreeFound answers a TreeFind.
//
//	+------------+----------+------------+-----------------------+
//	| volume u16 | id (u32) | found flag | entry, as in TreePage |
//	+------------+----------+------------+-----------------------+
type TreeFound struct {
	Volume int
	ID     uint32
	Found  bool
	Entry  TreeListed
}

// Type implements Message.
func (TreeFound) Type() Type { return TypeTreeFound }

func (m TreeFound) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = appendFlag(b, m.Found)
	if !m.Found {
		return b, nil
	}
	return AppendTreeListed(b, "", &m.Entry), nil
}

func decodeTreeFound(r *reader) Message {
	m := TreeFound{Volume: r.volume(), ID: r.u32(), Found: r.flag()}
	if m.Found {
		m.Entry = TreeListed{Path: r.treePath(""), Meta: r.treeMeta(), Ref: r.bytesIn("reference")}
	}
	return m
}

// TreePut carries items: what is to be done with paths, in the order of CompareTreePaths, packed together. A file
// whose content is too large to stand in an item is the last item of its TreePut; its blocks follow.
//
//	+------------+----------+-----------+--------------+--------------+---------+
//	| volume u16 | codec u8 | count u16 | length (u32) | packed (u32) | payload |
//	+------------+----------+-----------+--------------+--------------+---------+
type TreePut struct {
	Volume  int
	Codec   Codec
	Count   int
	Length  int // unpacked
	Payload []byte
}

// Type implements Message.
func (TreePut) Type() Type { return TypeTreePut }

func (m TreePut) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = append(b, byte(m.Codec))
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Count))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Length))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Payload)))
	return b, m.Payload
}

func decodeTreePut(r *reader) Message {
	m := TreePut{Volume: r.volume(), Codec: Codec(r.u8()), Count: r.count(MaxTreeItems, "items")}
	m.Length, m.Payload = r.packed(m.Codec)
	if r.err == nil && m.Count == 0 {
		r.err = fmt.Errorf("no items")
	}
	return m
}

// TreeBlocks carries whole blocks of the file at hand, except at its end, as a Data does of a volume.
//
//	+------------+----------+------------+------------+---------+---------------+---------+
//	| volume u16 | codec u8 | length u32 | offset u64 | digests | packed (u32)  | payload |
//	+------------+----------+------------+------------+---------+---------------+---------+
type TreeBlocks struct {
	Volume  int
	Codec   Codec
	Offset  int64
	Length  int
	Digests []digest.Digest
	Payload []byte
}

// Type implements Message.
func (TreeBlocks) Type() Type { return TypeTreeBlocks }

func (m TreeBlocks) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = append(b, byte(m.Codec))
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Length))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Offset))
	b = appendDigests(b, m.Digests)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Payload)))
	return b, m.Payload
}

func decodeTreeBlocks(r *reader) Message {
	m := TreeBlocks{Volume: r.volume(), Codec: Codec(r.u8())}
	length := r.u32()
	m.Offset = r.bytesIn("offset")
	m.Digests = r.digests()
	packed := r.u32()
	m.Payload = r.take(int(min(packed, MaxPayload+1)))
	if r.err != nil {
		return m
	}
	m.Length = int(min(length, MaxRecord+1))
	r.err = m.check()
	return m
}

func (m TreeBlocks) check() error {
	blocks := (m.Length + digest.BlockSize - 1) / digest.BlockSize
	switch {
	case m.Length == 0 || m.Length > MaxRecord:
		return fmt.Errorf("record of %d bytes, 1 to %d are allowed", m.Length, MaxRecord)
	case m.Offset%digest.BlockSize != 0:
		return fmt.Errorf("offset %d is no block's beginning", m.Offset)
	case m.Offset+int64(m.Length) > MaxVolumeSize:
		return fmt.Errorf("offset %d is beyond the largest file", m.Offset)
	case len(m.Digests) != blocks:
		return fmt.Errorf("%d digests for %d blocks", len(m.Digests), blocks)
	case m.Codec == CodecNone && len(m.Payload) != m.Length:
		return fmt.Errorf("%d bytes carried for a record of %d", len(m.Payload), m.Length)
	case m.Codec == CodecApart && len(m.Payload) != 0:
		return fmt.Errorf("%d bytes carried by a record whose bytes are elsewhere", len(m.Payload))
	}
	return nil
}

// TreeHole says that bytes of the file at hand are zero: whole blocks, except at its end.
//
//	+------------+------------+------------+
//	| volume u16 | offset u64 | length u64 |
//	+------------+------------+------------+
type TreeHole struct {
	Volume int
	Offset int64
	Length int64
}

// Type implements Message.
func (TreeHole) Type() Type { return TypeTreeHole }

func (m TreeHole) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.Offset))
	return binary.LittleEndian.AppendUint64(b, uint64(m.Length)), nil
}

func decodeTreeHole(r *reader) Message {
	m := TreeHole{Volume: r.volume(), Offset: r.bytesIn("offset"), Length: r.bytesIn("length")}
	switch {
	case r.err != nil:
	case m.Length == 0:
		r.err = fmt.Errorf("hole of 0 bytes")
	case m.Offset%digest.BlockSize != 0:
		r.err = fmt.Errorf("offset %d is no block's beginning", m.Offset)
	case m.Offset+m.Length > MaxVolumeSize:
		r.err = fmt.Errorf("offset %d is beyond the largest file", m.Offset)
	}
	return m
}

// TreeFileEnd says that everything of the file at hand has been sent, and the digest over all its block digests.
//
//	+------------+--------+
//	| volume u16 | digest |
//	+------------+--------+
type TreeFileEnd struct {
	Volume int
	Digest digest.Digest
}

// Type implements Message.
func (TreeFileEnd) Type() Type { return TypeTreeFileEnd }

func (m TreeFileEnd) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	return append(b, m.Digest[:]...), nil
}

func decodeTreeFileEnd(r *reader) Message {
	return TreeFileEnd{Volume: r.volume(), Digest: r.digest()}
}

// TreeEnd says that everything of the tree has been sent: how many entries the source has, and a digest over the path
// and TreeMeta of each, in order, which the target must come to as well.
//
//	+------------+---------------+--------+
//	| volume u16 | entries (u64) | digest |
//	+------------+---------------+--------+
type TreeEnd struct {
	Volume  int
	Entries uint64
	Digest  digest.Digest
}

// Type implements Message.
func (TreeEnd) Type() Type { return TypeTreeEnd }

func (m TreeEnd) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	b = binary.LittleEndian.AppendUint64(b, m.Entries)
	return append(b, m.Digest[:]...), nil
}

func decodeTreeEnd(r *reader) Message {
	return TreeEnd{Volume: r.volume(), Entries: r.u64(), Digest: r.digest()}
}

// TreeAck says that the first so many records of this connection (TreePut, TreeBlocks, TreeHole, TreeFileEnd, TreeEnd)
// are durable.
//
//	+------------+---------------+
//	| volume u16 | records (u64) |
//	+------------+---------------+
type TreeAck struct {
	Volume  int
	Records uint64
}

// Type implements Message.
func (TreeAck) Type() Type { return TypeTreeAck }

func (m TreeAck) fields(b []byte) ([]byte, []byte) {
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Volume))
	return binary.LittleEndian.AppendUint64(b, m.Records), nil
}

func decodeTreeAck(r *reader) Message { return TreeAck{Volume: r.volume(), Records: r.u64()} }
