package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// layer is a tar in a folder, compressed because every cluster that loads it writes it to disk and waits for the disk,
// beside a note of its hashes, so that using a layer again does not mean reading it again.
//
//	DIR/layer.tar.zst
//	DIR/layer.json      {"digest", "diffID", "size"}
type layer struct {
	dir string
	Of  struct {
		Digest v1.Hash `json:"digest"` // of the compressed file
		DiffID v1.Hash `json:"diffID"` // of the tar
		Size   int64   `json:"size"`   // of the compressed file, in bytes
	}
}

const (
	layerFile = "layer.tar.zst"
	layerNote = "layer.json"
)

// makeLayer keeps in dir, which it makes, the tar that write writes.
func makeLayer(dir string, write func(io.Writer) error) (v1.Layer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, layerFile))
	if err != nil {
		return nil, err
	}
	l := &layer{dir: dir}
	err = l.compress(f, write)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	note, err := json.Marshal(l.Of)
	if err != nil {
		return nil, err
	}
	return l, os.WriteFile(filepath.Join(dir, layerNote), note, 0o644)
}

func (l *layer) compress(f *os.File, write func(io.Writer) error) error {
	outer, inner := sha256.New(), sha256.New()
	// One at a time: the bytes must not depend on how many processors there are.
	z, err := zstd.NewWriter(io.MultiWriter(f, outer), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if err := errors.Join(write(io.MultiWriter(z, inner)), z.Close()); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	l.Of.Digest, l.Of.DiffID, l.Of.Size = sum(outer), sum(inner), info.Size()
	return nil
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// openLayer finds a layer that makeLayer made.
func openLayer(dir string) (v1.Layer, error) {
	note, err := os.ReadFile(filepath.Join(dir, layerNote))
	if err != nil {
		return nil, err
	}
	l := &layer{dir: dir}
	if err := json.Unmarshal(note, &l.Of); err != nil {
		return nil, fmt.Errorf("%s: %w", layerNote, err)
	}
	return l, nil
}

func (l *layer) Digest() (v1.Hash, error) { return l.Of.Digest, nil }
func (l *layer) DiffID() (v1.Hash, error) { return l.Of.DiffID, nil }
func (l *layer) Size() (int64, error)     { return l.Of.Size, nil }

func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayerZStd, nil }

func (l *layer) Compressed() (io.ReadCloser, error) {
	return os.Open(filepath.Join(l.dir, layerFile))
}

func (l *layer) Uncompressed() (io.ReadCloser, error) {
	f, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}
