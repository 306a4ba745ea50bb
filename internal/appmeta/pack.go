package appmeta

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// A captured object is kept as its JSON with sorted keys: a chunk, known by its BLAKE3 digest. Chunks are kept
// in packs, and a manifest says which chunk, in which pack, each object is. All three are immutable.
//
//	pack      zstd of:  "LBP1" | { uvarint length | chunk }*       its name is the BLAKE3 of the packed bytes
//	manifest  zstd of:  JSON of manifest
//
// A snapshot writes packs only for chunks that no kept snapshot of the namespace has.
const packMagic = "LBP1"

const (
	manifestVersion = 1
	// packTarget is where a pack is closed, in bytes before compression.
	packTarget = 1 << 20
	// smallPack packs are joined again once more than maxSmallPacks of them are in use, so that many small
	// changes do not end as many small Secrets.
	smallPack     = 64 << 10
	maxSmallPacks = 16
	// maxUnpacked bounds what one pack or manifest may unpack to; what a peer sends is not trusted to be small.
	maxUnpacked = 64 << 20
)

// manifest lists what a snapshot holds.
type manifest struct {
	Version   int        `json:"version"`
	Namespace string     `json:"namespace"`
	Objects   []entry    `json:"objects"`
	Packs     []packInfo `json:"packs"`
}

// entry is one object: who it is, and which chunk of which pack.
type entry struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	// Chunk is the BLAKE3 of the object's JSON, Size its length in bytes, Pack an index into Packs.
	Chunk string `json:"chunk"`
	Size  int    `json:"size"`
	Pack  int    `json:"pack"`
}

func (e entry) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(e.APIVersion, e.Kind)
}

// packInfo is one pack of a manifest.
type packInfo struct {
	Digest string `json:"digest"`
	// Packed and Unpacked are its size in bytes, compressed and not.
	Packed   int `json:"packed"`
	Unpacked int `json:"unpacked"`
}

// digest identifies the content: what is captured, whatever packs it lies in. Two captures of an application
// that did not change have the same.
func (m manifest) digest() string {
	h := blake3.New()
	for _, e := range m.Objects {
		_, _ = fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%s\n", e.APIVersion, e.Kind, e.Namespace, e.Name, e.Chunk)
	}
	return "blake3:" + hex.EncodeToString(h.Sum(nil))
}

// packedSize is what its packs take, in bytes.
func (m manifest) packedSize() int64 {
	var size int64
	for _, p := range m.Packs {
		size += int64(p.Packed)
	}
	return size
}

// pack builds the manifest of objects and the packs that are new, by digest. Chunks that earlier manifests of the
// namespace hold are not packed again, unless their pack is mostly of no use any more. The same objects and the
// same earlier manifests give the same bytes. Present are the digests of the packs that are really there.
func pack(namespace string, objects []*unstructured.Unstructured, earlier []manifest, present map[string]bool) (manifest, map[string][]byte, error) {
	m := manifest{Version: manifestVersion, Namespace: namespace, Objects: make([]entry, 0, len(objects))}
	chunks := map[string][]byte{}
	var order []string
	for _, o := range objects {
		chunk, err := json.Marshal(o.Object)
		if err != nil {
			return manifest{}, nil, fmt.Errorf("pack %s: %w", nameOf(o), err)
		}
		digest := blake3Hex(chunk)
		if _, known := chunks[digest]; !known {
			order = append(order, digest)
		}
		chunks[digest] = chunk
		m.Objects = append(m.Objects, entry{
			APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(),
			Chunk: digest, Size: len(chunk),
		})
	}
	homes := reuse(chunks, earlier, present)
	fresh := map[string][]byte{}
	for _, group := range groups(order, chunks, homes) {
		packed, unpacked := encodePack(group, chunks)
		info := packInfo{Digest: blake3Hex(packed), Packed: len(packed), Unpacked: unpacked}
		fresh[info.Digest] = packed
		for _, digest := range group {
			homes[digest] = info
		}
	}
	index := map[string]int{}
	for i := range m.Objects {
		home := homes[m.Objects[i].Chunk]
		at, known := index[home.Digest]
		if !known {
			at = len(m.Packs)
			index[home.Digest] = at
			m.Packs = append(m.Packs, home)
		}
		m.Objects[i].Pack = at
	}
	return m, fresh, nil
}

// reuse finds the kept pack of each chunk that may stay where it is. A pack less than half of which is in use is
// left to be swept, and too many small packs are joined: what a snapshot keeps is at most about twice its content.
func reuse(chunks map[string][]byte, earlier []manifest, present map[string]bool) map[string]packInfo {
	homes := map[string]packInfo{}
	for _, m := range earlier {
		for _, e := range m.Objects {
			if _, wanted := chunks[e.Chunk]; !wanted || !present[m.Packs[e.Pack].Digest] {
				continue
			}
			// Among several the same one is chosen whatever the order of the manifests.
			if home, known := homes[e.Chunk]; !known || m.Packs[e.Pack].Digest < home.Digest {
				homes[e.Chunk] = m.Packs[e.Pack]
			}
		}
	}
	used := map[packInfo]int{}
	for digest, home := range homes {
		used[home] += len(chunks[digest])
	}
	small := 0
	for home := range used {
		if home.Unpacked < smallPack {
			small++
		}
	}
	maps.DeleteFunc(homes, func(_ string, home packInfo) bool {
		return used[home]*2 < home.Unpacked || small > maxSmallPacks && home.Unpacked < smallPack
	})
	return homes
}

// groups cuts the chunks that have no home into packs, in the order of the objects.
func groups(order []string, chunks map[string][]byte, homes map[string]packInfo) [][]string {
	var all [][]string
	size := packTarget
	for _, digest := range order {
		if _, kept := homes[digest]; kept {
			continue
		}
		if size+len(chunks[digest]) > packTarget {
			all = append(all, nil)
			size = 0
		}
		size += len(chunks[digest])
		all[len(all)-1] = append(all[len(all)-1], digest)
	}
	return all
}

var (
	encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxUnpacked))
)

func encodePack(digests []string, chunks map[string][]byte) (packed []byte, unpacked int) {
	raw := []byte(packMagic)
	for _, digest := range digests {
		raw = binary.AppendUvarint(raw, uint64(len(chunks[digest])))
		raw = append(raw, chunks[digest]...)
	}
	return encoder.EncodeAll(raw, nil), len(raw)
}

// decodePack returns the chunks of a pack by digest.
func decodePack(packed []byte) (map[string][]byte, error) {
	raw, err := decoder.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	rest, ok := bytes.CutPrefix(raw, []byte(packMagic))
	if !ok {
		return nil, fmt.Errorf("unpack: begins with %q, not %q", raw[:min(len(raw), len(packMagic))], packMagic)
	}
	chunks := map[string][]byte{}
	for len(rest) > 0 {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return nil, fmt.Errorf("unpack: ends in the middle of a chunk, %d bytes before the end", len(rest))
		}
		chunk := rest[n : n+int(size)]
		chunks[blake3Hex(chunk)] = chunk
		rest = rest[n+int(size):]
	}
	return chunks, nil
}

func encodeManifest(m manifest) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the manifest: %w", err)
	}
	return encoder.EncodeAll(raw, nil), nil
}

// decodeManifest reads a manifest and refuses one that does not hold together.
func decodeManifest(data []byte) (manifest, error) {
	var m manifest
	raw, err := decoder.DecodeAll(data, nil)
	if err != nil {
		return m, fmt.Errorf("read the manifest: %w", err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("read the manifest: %w", err)
	}
	if m.Version != manifestVersion {
		return m, fmt.Errorf("read the manifest: it is of version %d, this Lifeboat reads %d: bring both clusters to the same version", m.Version, manifestVersion)
	}
	for _, p := range m.Packs {
		if !isDigest(p.Digest) {
			return m, fmt.Errorf("read the manifest: %q is no digest of a pack", p.Digest)
		}
	}
	for _, e := range m.Objects {
		if e.Pack < 0 || e.Pack >= len(m.Packs) {
			return m, fmt.Errorf("read the manifest: %s %s lies in pack %d of %d", e.Kind, e.Name, e.Pack, len(m.Packs))
		}
	}
	return m, nil
}

// object turns a chunk back into the object the entry names, and refuses any other.
func (e entry) object(chunk []byte) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(chunk, &o.Object); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", e.Kind, e.Name, err)
	}
	if o.GetAPIVersion() != e.APIVersion || o.GetKind() != e.Kind || o.GetNamespace() != e.Namespace || o.GetName() != e.Name {
		return nil, fmt.Errorf("read %s %s: its chunk holds %s", e.Kind, e.Name, nameOf(o))
	}
	return o, nil
}

// nameOf names an object for people: "Deployment.apps shop/web".
func nameOf(o *unstructured.Unstructured) string {
	kind := o.GroupVersionKind().GroupKind().String()
	if o.GetNamespace() == "" {
		return kind + " " + o.GetName()
	}
	return kind + " " + o.GetNamespace() + "/" + o.GetName()
}

func blake3Hex(data []byte) string {
	sum := blake3.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// packNames are the names of a manifest's packs in a store.
func (m manifest) packNames() []string {
	var names []string
	for _, p := range m.Packs {
		names = append(names, packName(p.Digest))
	}
	slices.Sort(names)
	return names
}
