package applicationsnapshot

import (
	"bytes"
	"errors"
	"iter"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/store"
)

func quantity(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}

var here = types.NamespacedName{Namespace: "shop", Name: "one"}

func sample() []store.Blob {
	var blobs []store.Blob
	for _, size := range []int{100, control.MaxChunk, 2*control.MaxChunk + 1, 0} {
		data := bytes.Repeat([]byte{byte(len(blobs) + 1)}, size)
		blobs = append(blobs, store.Blob{Name: appmeta.PackName(digest(data)), Data: data})
	}
	return append(blobs, store.Blob{Name: appmeta.ManifestName(here), Data: []byte("manifest")})
}

func TestBlobsCrossTheLinkInPieces(t *testing.T) {
	pieces := 0
	for piece, err := range chunks(sample()) {
		if err != nil || len(piece.Data) > control.MaxChunk || len(piece.Digest) > 256 {
			t.Fatalf("a piece of %d bytes with a digest of %d: %v", len(piece.Data), len(piece.Digest), err)
		}
		pieces++
	}
	if pieces != 1+1+3+1+1 {
		t.Errorf("%d pieces", pieces)
	}
	got, err := join(here, chunks(sample()))
	if err != nil || len(got) != len(sample()) {
		t.Fatalf("%d blobs, %v", len(got), err)
	}
	for i, want := range sample() {
		if got[i].Name != want.Name || !bytes.Equal(got[i].Data, want.Data) {
			t.Errorf("blob %d is %s with %d bytes, want %s with %d", i, got[i].Name, len(got[i].Data), want.Name, len(want.Data))
		}
	}
}

func TestWhatIsDamagedOnTheWayOrCutIsNotJoined(t *testing.T) {
	cut := errors.New("cut")
	for _, c := range []struct {
		name string
		edit func(control.Chunk) (control.Chunk, error)
		want string
	}{
		{"a flipped bit", func(p control.Chunk) (control.Chunk, error) {
			p.Data = append([]byte{p.Data[0] ^ 1}, p.Data[1:]...)
			return p, nil
		}, "damaged on its way"},
		{"an unknown part", func(p control.Chunk) (control.Chunk, error) {
			p.Digest = "attic" + strings.TrimPrefix(p.Digest, "pack")
			return p, nil
		}, "neither of a manifest nor of a pack"},
		{"a cut", func(control.Chunk) (control.Chunk, error) { return control.Chunk{}, cut }, "cut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			broken := func(yield func(control.Chunk, error) bool) {
				for piece := range chunks(sample()[:1]) {
					if !yield(c.edit(piece)) {
						return
					}
				}
			}
			if _, err := join(here, iter.Seq2[control.Chunk, error](broken)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
