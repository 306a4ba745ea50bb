package applicationsnapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/zeebo/blake3"
	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/store"
)

// On the link a snapshot is a sequence of chunks. Each blob is cut into chunks of at most control.MaxChunk; the digest
// of a chunk says which blob it is a piece of and proves the piece:
//
//	manifest ":" BLAKE3 of the manifest ":" BLAKE3 of the piece
//	pack     ":" BLAKE3 of the pack     ":" BLAKE3 of the piece

const (
	roleManifest = "manifest"
	rolePack     = "pack"
)

// Link sends snapshots over the links to the peers.
type Link struct {
	// Client returns the peer's control service; (*link.Peers).Client.
	Client func(cluster string) (control.Peer, error)
}

var _ Pusher = Link{}

// PushApplicationSnapshot sends the snapshot and its blobs to a peer.
func (l Link) PushApplicationSnapshot(ctx context.Context, peer string, snapshot *v1alpha1.ApplicationSnapshot, blobs []store.Blob) error {
	client, err := l.Client(peer)
	if err != nil {
		return err
	}
	return client.PushApplicationSnapshot(ctx, snapshot, chunks(blobs))
}

// Sink takes in what peers push.
type Sink struct{ Inbox *appmeta.Inbox }

var _ control.SnapshotSink = Sink{}

// Put keeps the snapshot whole or not at all.
func (s Sink) Put(ctx context.Context, key types.NamespacedName, spec v1alpha1.ApplicationSnapshotSpec, status v1alpha1.ApplicationSnapshotStatus, parts iter.Seq2[control.Chunk, error]) error {
	blobs, err := join(key, parts)
	if err != nil {
		return err
	}
	err = s.Inbox.Put(ctx, key, spec, status, blobs)
	var refused *appmeta.Refused
	if errors.As(err, &refused) {
		return &control.Refused{Reason: control.ReasonConflict, Message: refused.Error()}
	}
	return err
}

// chunks cuts blobs into what the link carries. A blob without content is one empty chunk.
func chunks(blobs []store.Blob) iter.Seq2[control.Chunk, error] {
	return func(yield func(control.Chunk, error) bool) {
		for _, b := range blobs {
			blob := role(b.Name) + ":" + digest(b.Data) + ":"
			for rest := b.Data; ; {
				piece := rest[:min(len(rest), control.MaxChunk)]
				rest = rest[len(piece):]
				if !yield(control.Chunk{Digest: blob + digest(piece), Data: piece}, nil) {
					return
				}
				if len(rest) == 0 {
					break
				}
			}
		}
	}
}

// join puts the blobs together again and checks every piece.
func join(key types.NamespacedName, parts iter.Seq2[control.Chunk, error]) ([]store.Blob, error) {
	var blobs []store.Blob
	var last string
	for part, err := range parts {
		if err != nil {
			return nil, err
		}
		fields := strings.Split(part.Digest, ":")
		if len(fields) != 3 || fields[0] != roleManifest && fields[0] != rolePack {
			return nil, fmt.Errorf("chunk %q is neither of a manifest nor of a pack", part.Digest)
		}
		if found := digest(part.Data); found != fields[2] {
			return nil, fmt.Errorf("chunk %q has the digest %s: it was damaged on its way", part.Digest, found)
		}
		blob := fields[0] + ":" + fields[1]
		if blob != last {
			blobs = append(blobs, store.Blob{Name: name(key, fields[0], fields[1])})
			last = blob
		}
		at := &blobs[len(blobs)-1]
		at.Data = append(at.Data, part.Data...)
	}
	return blobs, nil
}

func role(name string) string {
	if store.Shelf(name) == rolePack+"s" {
		return rolePack
	}
	return roleManifest
}

func name(key types.NamespacedName, role, digest string) string {
	if role == rolePack {
		return appmeta.PackName(digest)
	}
	return appmeta.ManifestName(key)
}

func digest(data []byte) string {
	sum := blake3.Sum256(data)
	return hex.EncodeToString(sum[:])
}
