package appmeta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"lifeboat.dev/lifeboat/internal/store"
)

const (
	shelfManifests = "manifests/"
	shelfPacks     = "packs/"
)

func manifestName(namespace, name string) string { return shelfManifests + namespace + "/" + name }
func packName(digest string) string              { return shelfPacks + digest }

// Library keeps the snapshots of one cluster in a store: a manifest each, and packs that they share.
//
// Packs are written before the manifest that names them, so a manifest never names a pack that is not there;
// while a snapshot is being written no sweep runs.
type Library struct {
	store store.Store
	// writing is held for reading by whoever writes a snapshot and for writing by a sweep. One process writes
	// to a library: the manager that leads.
	writing sync.RWMutex
}

// NewLibrary returns the library in a store.
func NewLibrary(s store.Store) *Library { return &Library{store: s} }

// Kept is what keeping a snapshot came to.
type Kept struct {
	Digest  string
	Objects int
	// Size is what the snapshot's packs take, New how much of it was not kept before; in bytes.
	Size, New int64
	// Name of the manifest in the store.
	Name string
}

// Keep writes a snapshot of the namespace under a name. An existing one of that name is replaced.
func (l *Library) Keep(ctx context.Context, namespace, name string, objects []*unstructured.Unstructured) (Kept, error) {
	l.writing.RLock()
	defer l.writing.RUnlock()
	earlier, _, err := l.manifests(ctx, shelfManifests+namespace+"/")
	if err != nil {
		return Kept{}, fmt.Errorf("keep snapshot %s/%s: %w", namespace, name, err)
	}
	present, err := l.present(ctx)
	if err != nil {
		return Kept{}, fmt.Errorf("keep snapshot %s/%s: %w", namespace, name, err)
	}
	m, fresh, err := pack(namespace, objects, slices.Collect(maps.Values(earlier)), present)
	if err != nil {
		return Kept{}, fmt.Errorf("keep snapshot %s/%s: %w", namespace, name, err)
	}
	kept := Kept{Digest: m.digest(), Objects: len(m.Objects), Size: m.packedSize(), Name: manifestName(namespace, name)}
	for _, packed := range fresh {
		kept.New += int64(len(packed))
	}
	if err := l.write(ctx, m, manifestName(namespace, name), fresh); err != nil {
		return Kept{}, fmt.Errorf("keep snapshot %s/%s: %w", namespace, name, err)
	}
	return kept, nil
}

func (l *Library) write(ctx context.Context, m manifest, name string, packs map[string][]byte) error {
	encoded, err := encodeManifest(m)
	if err != nil {
		return err
	}
	work, workCtx := errgroup.WithContext(ctx)
	work.SetLimit(parallel)
	for digest, packed := range packs {
		work.Go(func() error { return l.store.Put(workCtx, packName(digest), packed) })
	}
	if err := work.Wait(); err != nil {
		return err
	}
	return l.store.Put(ctx, name, encoded)
}

// Load returns the objects of a snapshot, in the order of their restore. Every byte is checked: digest is the one
// the ApplicationSnapshot shows.
func (l *Library) Load(ctx context.Context, namespace, name, digest string) ([]*unstructured.Unstructured, error) {
	m, err := l.manifest(ctx, manifestName(namespace, name))
	if err != nil {
		return nil, fmt.Errorf("load snapshot %s/%s: %w", namespace, name, err)
	}
	if m.digest() != digest {
		return nil, fmt.Errorf("load snapshot %s/%s: the store holds %s, the ApplicationSnapshot shows %s: use another snapshot", namespace, name, m.digest(), digest)
	}
	chunks, err := l.chunks(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("load snapshot %s/%s: %w", namespace, name, err)
	}
	objects := make([]*unstructured.Unstructured, 0, len(m.Objects))
	for _, e := range m.Objects {
		o, err := e.object(chunks[e.Chunk])
		if err != nil {
			return nil, fmt.Errorf("load snapshot %s/%s: %w", namespace, name, err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// chunks unpacks what a manifest needs; a chunk that its pack does not hold is damage.
func (l *Library) chunks(ctx context.Context, m manifest) (map[string][]byte, error) {
	unpacked := make([]map[string][]byte, len(m.Packs))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(parallel)
	for i, p := range m.Packs {
		work.Go(func() (err error) {
			packed, err := l.store.Get(ctx, packName(p.Digest))
			if err != nil {
				return err
			}
			unpacked[i], err = openPack(p.Digest, packed)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for _, chunks := range unpacked {
		maps.Copy(all, chunks)
	}
	return all, complete(m, all)
}

// openPack checks that bytes are the pack of that digest and unpacks them.
func openPack(digest string, packed []byte) (map[string][]byte, error) {
	if found := blake3Hex(packed); found != digest {
		return nil, &store.Damaged{Name: packName(digest), Found: "its digest is " + found}
	}
	chunks, err := decodePack(packed)
	if err != nil {
		return nil, &store.Damaged{Name: packName(digest), Found: err.Error()}
	}
	return chunks, nil
}

// complete checks that every object of a manifest is among the chunks.
func complete(m manifest, chunks map[string][]byte) error {
	for _, e := range m.Objects {
		if _, found := chunks[e.Chunk]; !found {
			return &store.Damaged{Name: packName(m.Packs[e.Pack].Digest), Found: fmt.Sprintf("%s %s is not in it", e.Kind, e.Name)}
		}
	}
	return nil
}

// Blobs returns a snapshot's manifest and its packs except those that held names, ready to send.
func (l *Library) Blobs(ctx context.Context, namespace, name string, held map[string]bool) ([]store.Blob, error) {
	encoded, err := l.store.Get(ctx, manifestName(namespace, name))
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s/%s: %w", namespace, name, err)
	}
	m, err := decodeManifest(encoded)
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s/%s: %w", namespace, name, err)
	}
	blobs := []store.Blob{{Name: manifestName(namespace, name), Data: encoded}}
	for _, pack := range m.packNames() {
		if held[pack] {
			continue
		}
		packed, err := l.store.Get(ctx, pack)
		if err != nil {
			return nil, fmt.Errorf("read snapshot %s/%s: %w", namespace, name, err)
		}
		blobs = append(blobs, store.Blob{Name: pack, Data: packed})
	}
	return blobs, nil
}

// Packs names the packs of a snapshot in the store, or none when there is no such snapshot.
func (l *Library) Packs(ctx context.Context, namespace, name string) ([]string, error) {
	m, err := l.manifest(ctx, manifestName(namespace, name))
	var gone *store.NotFound
	if errors.As(err, &gone) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s/%s: %w", namespace, name, err)
	}
	return m.packNames(), nil
}

// accept keeps a snapshot that came from elsewhere, and then runs then, before any sweep could take the snapshot
// for one that nobody knows. *Missing: packs are neither among blobs nor here; nothing was kept.
func (l *Library) accept(ctx context.Context, namespace, name, digest string, blobs []store.Blob, then func() error) error {
	l.writing.RLock()
	defer l.writing.RUnlock()
	m, err := arrived(namespace, name, digest, blobs)
	if err != nil {
		return err
	}
	packs, err := l.gather(ctx, m, blobs)
	if err != nil {
		return err
	}
	if err := l.write(ctx, m, manifestName(namespace, name), packs); err != nil {
		return err
	}
	return then()
}

// Missing says that a snapshot was sent without packs that this cluster does not have either.
type Missing struct{ Packs []string }

func (e *Missing) Error() string {
	return fmt.Sprintf("%d of its packs were neither sent nor are they here: send the snapshot whole", len(e.Packs))
}

// arrived finds and checks the manifest among blobs.
func arrived(namespace, name, digest string, blobs []store.Blob) (manifest, error) {
	i := slices.IndexFunc(blobs, func(b store.Blob) bool { return b.Name == manifestName(namespace, name) })
	if i < 0 {
		return manifest{}, fmt.Errorf("its manifest %s was not sent", manifestName(namespace, name))
	}
	m, err := decodeManifest(blobs[i].Data)
	if err != nil {
		return manifest{}, err
	}
	if m.digest() != digest {
		return manifest{}, fmt.Errorf("its content has the digest %s, its status.digest says %s", m.digest(), digest)
	}
	return m, m.confined(namespace)
}

// gather checks that all of a manifest's packs are either among blobs, and then returns those, or in the store.
func (l *Library) gather(ctx context.Context, m manifest, blobs []store.Blob) (packs map[string][]byte, err error) {
	present, err := l.present(ctx)
	if err != nil {
		return nil, err
	}
	sent := map[string][]byte{}
	for _, b := range blobs {
		sent[b.Name] = b.Data
	}
	packs = map[string][]byte{}
	chunks := map[string][]byte{}
	var missing []string
	for _, p := range m.Packs {
		packed, came := sent[packName(p.Digest)]
		if !came && !present[p.Digest] {
			missing = append(missing, packName(p.Digest))
		}
		if !came {
			continue
		}
		found, err := openPack(p.Digest, packed)
		if err != nil {
			return nil, err
		}
		maps.Copy(chunks, found)
		packs[p.Digest] = packed
	}
	if len(missing) > 0 {
		return nil, &Missing{missing}
	}
	for _, e := range m.Objects {
		_, came := packs[m.Packs[e.Pack].Digest]
		if _, found := chunks[e.Chunk]; came && !found {
			return nil, &store.Damaged{Name: packName(m.Packs[e.Pack].Digest), Found: fmt.Sprintf("%s %s is not in it", e.Kind, e.Name)}
		}
	}
	return packs, nil
}

// confined refuses a manifest that reaches out of its namespace.
func (m manifest) confined(namespace string) error {
	if m.Namespace != namespace {
		return fmt.Errorf("its manifest is of namespace %q, the ApplicationSnapshot is in %q", m.Namespace, namespace)
	}
	for _, e := range m.Objects {
		kind := e.gvk().GroupKind()
		switch {
		case e.Namespace == namespace:
		case e.Namespace == "" && kind == kindNamespace && e.Name == namespace:
		case e.Namespace == "" && kind == kindVolume:
		default:
			return fmt.Errorf("it holds %s %s/%s, which is not of namespace %s", kind, e.Namespace, e.Name, namespace)
		}
	}
	return nil
}

// Sweep deletes the snapshots that alive does not know any more and the packs that no snapshot uses, and returns
// how many blobs it deleted.
func (l *Library) Sweep(ctx context.Context, alive func(namespace, name string) (bool, error)) (int, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	manifests, damaged, err := l.manifests(ctx, shelfManifests)
	if err != nil {
		return 0, fmt.Errorf("sweep the library: %w", err)
	}
	var unused []string
	used, unsure := map[string]bool{}, false
	for _, blob := range append(slices.Collect(maps.Keys(manifests)), damaged...) {
		namespace, name, _ := strings.Cut(strings.TrimPrefix(blob, shelfManifests), "/")
		lives, err := alive(namespace, name)
		if err != nil {
			return 0, fmt.Errorf("sweep the library: is snapshot %s/%s in use: %w", namespace, name, err)
		}
		if !lives {
			unused = append(unused, blob)
			continue
		}
		for _, pack := range manifests[blob].packNames() {
			used[pack] = true
		}
		unsure = unsure || slices.Contains(damaged, blob)
	}
	packs, err := l.present(ctx)
	if err != nil {
		return 0, fmt.Errorf("sweep the library: %w", err)
	}
	for digest := range packs {
		// What a damaged manifest uses is not known, and a later repair may want it.
		if !used[packName(digest)] && !unsure {
			unused = append(unused, packName(digest))
		}
	}
	// Manifests come before the packs they name, so that at no instant one names a pack that is gone.
	for i, blob := range unused {
		if err := l.store.Delete(ctx, blob); err != nil {
			return i, fmt.Errorf("sweep the library: %w", err)
		}
	}
	return len(unused), nil
}

// present are the digests of the packs in the store.
func (l *Library) present(ctx context.Context) (map[string]bool, error) {
	infos, err := l.store.List(ctx, shelfPacks)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, info := range infos {
		found[strings.TrimPrefix(info.Name, shelfPacks)] = true
	}
	return found, nil
}

// manifests reads every manifest under a prefix, by name in the store, and names those that cannot be read any more.
func (l *Library) manifests(ctx context.Context, prefix string) (found map[string]manifest, damaged []string, err error) {
	infos, err := l.store.List(ctx, prefix)
	if err != nil {
		return nil, nil, err
	}
	found = map[string]manifest{}
	for _, info := range infos {
		m, err := l.manifest(ctx, info.Name)
		var gone *store.NotFound
		var broken *store.Damaged
		switch {
		case errors.As(err, &gone):
		case errors.As(err, &broken):
			damaged = append(damaged, info.Name)
		case err != nil:
			return nil, nil, err
		default:
			found[info.Name] = m
		}
	}
	return found, damaged, nil
}

func (l *Library) manifest(ctx context.Context, name string) (manifest, error) {
	encoded, err := l.store.Get(ctx, name)
	if err != nil {
		return manifest{}, err
	}
	m, err := decodeManifest(encoded)
	if err != nil {
		return manifest{}, &store.Damaged{Name: name, Found: err.Error()}
	}
	return m, nil
}
