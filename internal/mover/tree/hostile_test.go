package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

func put(items ...wire.TreeItem) wire.TreePut {
	var raw []byte
	before := ""
	for i := range items {
		raw = wire.AppendTreeItem(raw, before, &items[i])
		before = items[i].Path
	}
	return wire.TreePut{Count: len(items), Length: len(raw), Payload: raw}
}

func file(op wire.TreeOp, path, content string) wire.TreeItem {
	it := wire.TreeItem{
		Op: op, Path: path, Content: wire.TreeContentInline, Bytes: []byte(content),
		Meta: wire.TreeMeta{Kind: wire.TreeFile, Mode: 0o644, Size: int64(len(content)), Inode: 99, Links: 1},
	}
	if content != "" {
		it.Digest = digest.Block(it.Bytes)
	}
	return it
}

func dir(op wire.TreeOp, path string) wire.TreeItem {
	return wire.TreeItem{Op: op, Path: path, Meta: wire.TreeMeta{Kind: wire.TreeDirectory, Mode: 0o755, Inode: 98, Links: 2}}
}

func symlink(path, to string) wire.TreeItem {
	return wire.TreeItem{Op: wire.TreeNew, Path: path, Link: to, Meta: wire.TreeMeta{Kind: wire.TreeSymlink, Mode: 0o777, Inode: 97, Links: 1}}
}

// A source that sends what no source sends is refused, and nothing outside the tree or of it changes.
func TestHostileMessages(t *testing.T) {
	blocks := wire.TreeItem{
		Op: wire.TreeNew, Path: "big", Content: wire.TreeContentBlocks,
		Meta: wire.TreeMeta{Kind: wire.TreeFile, Size: 3 * digest.BlockSize, Inode: 5, Links: 1},
	}
	one := noise(1, digest.BlockSize)
	oneBlock := wire.TreeBlocks{Length: len(one), Digests: digest.Blocks(one), Payload: one}
	wrongDigest := file(wire.TreeNew, "x", "content")
	wrongDigest.Digest[0] ^= 1
	apart := file(wire.TreeNew, "x", "content")
	apart.Content, apart.Bytes = wire.TreeContentApart, nil
	linked := file(wire.TreeLink, "x", "")
	linked.Content, linked.Meta.Links = wire.TreeContentKept, 2
	moved := linked
	moved.Op = wire.TreeMoved
	keep := wire.TreeItem{Op: wire.TreeKeep, Path: "d/f", Meta: wire.TreeMeta{Inode: 4711}}
	grown := file(wire.TreeSame, "d/f", "")
	grown.Content, grown.Meta.Size = wire.TreeContentKept, 10*digest.BlockSize
	cases := map[string][]wire.Message{
		"out of the tree":            {put(file(wire.TreeNew, "../x", "x"))},
		"out of the tree, inside":    {put(file(wire.TreeNew, "d/../../x", "x"))},
		"an absolute path":           {put(file(wire.TreeNew, "/tmp/x", "x"))},
		"an empty name":              {put(file(wire.TreeNew, "d//x", "x"))},
		"a dot":                      {put(file(wire.TreeNew, "./x", "x"))},
		"a NUL":                      {put(file(wire.TreeNew, "x\x00y", "x"))},
		"below a link of the tree":   {put(file(wire.TreeNew, "out/x", "x"))},
		"below a link it brings":     {put(symlink("e", "/tmp"), file(wire.TreeNew, "e/x", "x"))},
		"below a file":               {put(file(wire.TreeNew, "d/f/x", "x"))},
		"below a file it brings":     {put(file(wire.TreeNew, "e", "x"), file(wire.TreeNew, "e/x", "x"))},
		"below nothing":              {put(file(wire.TreeNew, "no/x", "x"))},
		"below what it deletes":      {put(wire.TreeItem{Op: wire.TreeDelete, Path: "d"}, file(wire.TreeNew, "d/x", "x"))},
		"twice":                      {put(file(wire.TreeNew, "x", "x"), file(wire.TreeNew, "x", "x"))},
		"out of order":               {put(file(wire.TreeNew, "y", "x"), file(wire.TreeNew, "x", "x"))},
		"out of order between":       {put(file(wire.TreeNew, "y", "x")), put(file(wire.TreeNew, "x", "x"))},
		"the root goes":              {put(wire.TreeItem{Op: wire.TreeDelete, Path: ""})},
		"the root becomes a file":    {put(file(wire.TreeSame, "", "x"))},
		"a deletion of nothing":      {put(wire.TreeItem{Op: wire.TreeDelete, Path: "no"})},
		"the place for what is kept": {put(dir(wire.TreeNew, stageName))},
		"below that place":           {put(dir(wire.TreeNew, stageName), file(wire.TreeNew, stageName+"/x", "x"))},
		"a wrong digest":             {put(wrongDigest)},
		"content elsewhere":          {put(apart)},
		"a link to nothing":          {put(linked)},
		"a move of nothing":          {put(moved)},
		"keeps what is not there":    {put(keep)},
		"stays and is not there":     {put(file(wire.TreeSame, "no", "x"))},
		"stays and is a directory":   {put(file(wire.TreeSame, "d", "x"))},
		"grows from nothing":         {put(grown)},
		"blocks of no file":          {oneBlock},
		"a hole of no file":          {wire.TreeHole{Length: digest.BlockSize}},
		"the end of no file":         {wire.TreeFileEnd{}},
		"blocks twice":               {put(blocks), oneBlock, oneBlock},
		"blocks beyond the end":      {put(blocks), wire.TreeBlocks{Offset: 3 * digest.BlockSize, Length: len(one), Digests: digest.Blocks(one), Payload: one}},
		"blocks without bytes":       {put(blocks), wire.TreeBlocks{Codec: wire.CodecApart, Length: len(one), Digests: digest.Blocks(one)}},
		"blocks with other bytes":    {put(blocks), wire.TreeBlocks{Length: len(one), Digests: make([]digest.Digest, 1), Payload: one}},
		"a wrong file digest":        {put(blocks), oneBlock, wire.TreeFileEnd{}},
		"an entry inside a file":     {put(blocks), put(file(wire.TreeNew, "x", "x"))},
		"the end inside a file":      {put(blocks), wire.TreeEnd{}},
		"a wrong tree digest":        {wire.TreeEnd{Entries: 5}},
		"another volume":             {wire.TreeEnd{Volume: 1}},
		"what a block volume sends":  {wire.Close{}},
		"digests out of the index":   {wire.TreeWantDigests{Ranges: []wire.TreeRange{{Ref: 1 << 40, Count: 1}}}},
		"a page out of the index":    {wire.TreeWantPages{First: 7, Count: 1}},
		"a payload that is none":     {wire.TreePut{Codec: wire.CodecZstd, Count: 1, Length: 10, Payload: []byte("not zstd")}},
	}
	w := newWorld(t)
	w.write("d/f", []byte("f"))
	w.write("g", []byte("g"))
	must(t, os.Symlink(t.TempDir(), w.path("out")))
	w.replicate()
	before := look1(t, w.target)
	for name, messages := range cases {
		t.Run(name, func(t *testing.T) {
			w.t = t
			w.begin()
			r, err := NewReceiver(w.sp, 0, w.target, ReceiveOptions{})
			must(t, err)
			defer r.Close()
			must(t, w.sp.OpenLog(r.Restore))
			a, b := pair(t)
			result := make(chan error, 1)
			go func() {
				s, err := transport.NewStream(b, wire.OwnBanner("test", "target"))
				if err == nil {
					_, err = r.Run(context.Background(), s)
				}
				result <- err
			}()
			s, err := transport.NewStream(a, wire.OwnBanner("test", "source"))
			must(t, err)
			for _, m := range messages {
				_, err := s.Send(m)
				must(t, err)
			}
			must(t, s.Flush())
			// A target that takes it all would wait for more.
			defer time.AfterFunc(5*time.Second, func() { _ = s.Close() }).Stop()
			told := false
			for {
				f, err := s.Receive()
				if err != nil {
					break
				}
				if m, ok := f.Message.(wire.Failed); ok {
					told = m.Text != ""
					break
				}
			}
			must(t, s.Close())
			err = <-result
			var broke *session.Violation
			var integrity *session.Integrity
			if !errors.As(err, &broke) && !errors.As(err, &integrity) && !errors.Is(err, wire.ErrCorrupt) && !errors.Is(err, ErrIndex) {
				t.Errorf("the target says %v", err)
			}
			if !told {
				t.Error("the source was not told")
			}
			must(t, w.sp.Drop())
			if diff := differences(before, look1(t, w.target)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Whoever can write into a replica cannot lead the target out of it: a directory that became a link is not entered.
func TestALinkInTheReplicaIsNotFollowed(t *testing.T) {
	w := newWorld(t)
	w.write("d/f", []byte("f"))
	w.write("d/g", []byte("g"))
	w.replicate()
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "f"), []byte("precious"), 0o600))
	must(t, os.WriteFile(filepath.Join(outside, "g"), []byte("precious"), 0o600))
	must(t, os.RemoveAll(w.target+"/d"))
	must(t, os.Symlink(outside, w.target+"/d"))
	w.write("d/f", []byte("changed"))
	must(t, os.Remove(w.path("d/g")))
	w.write("d/new", []byte("new"))
	_, _, sendErr, receiveErr := w.transfer()
	if sendErr != nil || receiveErr != nil {
		t.Fatal(sendErr, receiveErr)
	}
	var diverged *Diverged
	if err := w.commit(); !errors.As(err, &diverged) {
		t.Errorf("applying says %v", err)
	}
	for _, name := range []string{"f", "g"} {
		if b, err := os.ReadFile(filepath.Join(outside, name)); err != nil || string(b) != "precious" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "new")); err == nil {
		t.Error("a file was made outside the tree")
	}
}

// FuzzTreeMessages looks for messages that break the decoder, or that it takes and cannot give back.
func FuzzTreeMessages(f *testing.F) {
	items := put(dir(wire.TreeNew, "d"), file(wire.TreeNew, "d/f", "content"), symlink("e", "to"))
	for _, m := range []wire.Message{
		items, wire.TreeStart{Path: "a/b", Pages: 3}, wire.TreeWantPages{Count: 2}, wire.TreeFind{Inode: 7},
		wire.TreeFound{Found: true, Entry: wire.TreeListed{Path: "a", Meta: wire.TreeMeta{Kind: wire.TreeFile}}},
		wire.TreeWantDigests{Ranges: []wire.TreeRange{{Ref: 4096, Count: 2}}}, wire.TreeDigests{Digests: make([]digest.Digest, 2)},
		wire.TreeBlocks{Length: 1, Digests: make([]digest.Digest, 1), Payload: []byte("x")}, wire.TreeHole{Length: 1},
		wire.TreeFileEnd{}, wire.TreeEnd{}, wire.TreeAck{}, wire.TreePage{Count: 1, Payload: []byte("x"), Length: 1},
	} {
		f.Add(wire.Append(nil, m)[wire.HeaderSize:], byte(m.Type()))
	}
	f.Fuzz(func(t *testing.T, payload []byte, kind byte) {
		if len(payload) > wire.MaxPayload {
			return
		}
		m, _, err := wire.Decode(frame(kind, payload))
		if err != nil {
			return
		}
		back, _, err := wire.Decode(wire.Append(nil, m))
		if err != nil {
			t.Fatalf("%+v comes back as %v", m, err)
		}
		_ = back
		if p, ok := m.(wire.TreePut); ok && p.Codec == wire.CodecNone {
			var out []wire.TreeItem
			err := wire.TreeItems(p.Payload, p.Count, func(it *wire.TreeItem) error {
				out = append(out, *it)
				return wire.CheckTreePath(it.Path)
			})
			if err == nil {
				again := put(out...)
				if err := wire.TreeItems(again.Payload, again.Count, func(*wire.TreeItem) error { return nil }); err != nil {
					t.Fatalf("items come back as %v", err)
				}
			}
		}
		if p, ok := m.(wire.TreePage); ok && p.Codec == wire.CodecNone {
			_, _ = wire.TreeListing(p.Payload, p.Count)
		}
	})
}

// frame is a frame of any type around any payload.
func frame(kind byte, payload []byte) []byte {
	b := append([]byte("LBmv"), 1, kind, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(b, table), table, payload)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, payload...)
}
