package wire_test

import (
	"maps"
	"reflect"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// The messages of trees are golden too; version 1 has none of them.
func init() { maps.Copy(fine, treeSamples) }

var treeMeta = wire.TreeMeta{
	Kind: wire.TreeFile, Mode: 0o640, UID: 1000, GID: 100, Size: 70000, Modified: 1772366400, ModifiedNs: 5,
	Changed: 1772366401, ChangedNs: 6, Inode: 77, Links: 2, DeviceMajor: 8, DeviceMinor: 1,
}

var treeSamples = map[string]wire.Message{
	"tree-start":       wire.TreeStart{Volume: 1, Pages: 3, Known: true, Resumed: true, Inside: true, Offset: 65536, Path: "a/b"},
	"tree-wantpages":   wire.TreeWantPages{Volume: 1, First: 2, Count: 3},
	"tree-page":        wire.TreePage{Volume: 1, Number: 2, Count: 1, Length: 4, Payload: []byte("page")},
	"tree-wantdigests": wire.TreeWantDigests{Volume: 1, ID: 9, Ranges: []wire.TreeRange{{Ref: 4096, Count: 2}}},
	"tree-digests":     wire.TreeDigests{Volume: 1, ID: 9, Digests: []digest.Digest{d(1), d(2)}},
	"tree-find":        wire.TreeFind{Volume: 1, ID: 10, Inode: 77},
	"tree-found":       wire.TreeFound{Volume: 1, ID: 10, Found: true, Entry: wire.TreeListed{Path: "a/b", Meta: treeMeta, Ref: 4096}},
	"tree-put":         wire.TreePut{Volume: 1, Codec: wire.CodecZstd, Count: 2, Length: 300, Payload: []byte("items")},
	"tree-blocks":      wire.TreeBlocks{Volume: 1, Offset: 65536, Length: 4, Digests: []digest.Digest{d(3)}, Payload: []byte("abcd")},
	"tree-hole":        wire.TreeHole{Volume: 1, Offset: 65536, Length: 131072},
	"tree-fileend":     wire.TreeFileEnd{Volume: 1, Digest: d(4)},
	"tree-end":         wire.TreeEnd{Volume: 1, Entries: 12, Digest: d(5)},
	"tree-ack":         wire.TreeAck{Volume: 1, Records: 8},
}

func TestATreesEntryComesBackWhole(t *testing.T) {
	e := wire.TreeListed{Path: "dir/file", Meta: treeMeta, Ref: 8192}
	raw := wire.AppendTreeListed(nil, "", &e)
	back, err := wire.TreeListing(raw, 1)
	if err != nil || !reflect.DeepEqual(back, []wire.TreeListed{e}) {
		t.Errorf("%+v comes back as %+v, %v", e, back, err)
	}
	for n := range raw {
		if _, err := wire.TreeListing(raw[:n], 1); err == nil {
			t.Fatalf("an entry cut to %d bytes is taken", n)
		}
	}
}
