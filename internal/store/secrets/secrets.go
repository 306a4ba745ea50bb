// Package secrets keeps the blobs of package store in Kubernetes Secrets of one namespace: nothing to
// install, encrypted at rest where the cluster does that, readable by whom the cluster lets read Secrets.
//
// A blob is one head and, when it is larger than a Secret holds, further parts:
//
//	Secret lb-store-<hash of name>              type lifeboat.dev/application-snapshot, the head
//	  labels      app.kubernetes.io/managed-by: lifeboat, lifeboat.dev/store: <shelf>
//	  annotations lifeboat.dev/store-name: <name>, -size: <bytes>, -digest: <blake3>, -parts: <n>
//	  data.part   the first 768 KiB
//	Secret lb-store-<hash of name>-<version>-<i>  label lifeboat.dev/store: part
//	  data.part   the i-th 768 KiB, i = 1 … n-1
//
// Parts are written before their head and a head is written in one request, so a blob is there whole or
// not at all. It never looks inside a blob and never puts content into an error.
package secrets

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/store"
)

// Type marks the Secrets of this store.
const Type corev1.SecretType = "lifeboat.dev/application-snapshot"

const (
	// partSize keeps a Secret under 900 KiB; the API takes at most 1 MiB of data in one.
	partSize = 768 << 10

	labelShelf       = "lifeboat.dev/store"
	shelfOfParts     = "part"
	annotationName   = "lifeboat.dev/store-name"
	annotationSize   = "lifeboat.dev/store-size"
	annotationDigest = "lifeboat.dev/store-digest"
	annotationParts  = "lifeboat.dev/store-parts"
	labelHead        = "lifeboat.dev/store-head"
	dataKey          = "part"

	pageSize = 500
	// readTries is how often a read begins again when the blob was replaced under it.
	readTries = 20
)

// Store keeps blobs in the Secrets of one namespace.
type Store struct {
	writer    client.Client
	reader    client.Reader
	namespace string
}

var _ store.Store = (*Store)(nil)

// New returns the store in namespace. Reader reads from the API server itself: a cache would hold every
// snapshot in memory and might show an old head.
func New(writer client.Client, reader client.Reader, namespace string) *Store {
	return &Store{writer: writer, reader: reader, namespace: namespace}
}

// Location says where a blob is, for people: "secrets/<namespace>/<name of the head>".
func (s *Store) Location(name string) string {
	return "secrets/" + s.namespace + "/" + headName(name)
}

// Put writes the parts, then the head, then removes the parts of the version it replaced.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	digest := digestOf(data)
	parts := split(data)
	for i, part := range parts[1:] {
		if err := s.write(ctx, s.partSecret(name, digest, i+1, part)); err != nil {
			return fmt.Errorf("put %s: part %d of %d: %w", name, i+2, len(parts), err)
		}
	}
	if err := s.write(ctx, s.headSecret(name, digest, len(data), parts)); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := s.sweepParts(ctx, name, version(digest)); err != nil {
		return fmt.Errorf("put %s: remove the version it replaces: %w", name, err)
	}
	return nil
}

// Get reads the head, the parts it names, and checks the digest.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	for range readTries {
		data, err := s.read(ctx, name)
		var torn *replaced
		if !errors.As(err, &torn) {
			return data, err
		}
	}
	return nil, &store.Damaged{Name: name, Found: "the head names parts that are not there"}
}

// replaced says that a part named by the head was gone when it was read: the blob was replaced or deleted
// between the two reads, or it is damaged. Reading again tells.
type replaced struct{ part string }

func (e *replaced) Error() string { return e.part + " is gone" }

func (s *Store) read(ctx context.Context, name string) ([]byte, error) {
	var head corev1.Secret
	err := s.reader.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: headName(name)}, &head)
	if apierrors.IsNotFound(err) {
		return nil, &store.NotFound{Name: name}
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	if found := head.Annotations[annotationName]; found != name {
		return nil, &store.Damaged{Name: name, Found: fmt.Sprintf("Secret %s belongs to %q", head.Name, found)}
	}
	count, err := strconv.Atoi(head.Annotations[annotationParts])
	if err != nil || count < 1 {
		return nil, &store.Damaged{Name: name, Found: fmt.Sprintf("annotation %s of Secret %s is %q", annotationParts, head.Name, head.Annotations[annotationParts])}
	}
	digest := head.Annotations[annotationDigest]
	data := head.Data[dataKey]
	for i := 1; i < count; i++ {
		var part corev1.Secret
		key := client.ObjectKey{Namespace: s.namespace, Name: partName(name, digest, i)}
		err := s.reader.Get(ctx, key, &part)
		if apierrors.IsNotFound(err) {
			return nil, &replaced{key.Name}
		}
		if err != nil {
			return nil, fmt.Errorf("get %s: part %d of %d: %w", name, i+1, count, err)
		}
		data = append(data, part.Data[dataKey]...)
	}
	if found := digestOf(data); found != digest {
		return nil, &store.Damaged{Name: name, Found: fmt.Sprintf("its %d bytes have the digest %s, put were %s", len(data), found, digest)}
	}
	return data, nil
}

// List reads the heads' metadata only.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Info, error) {
	shelves := client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat}
	if shelf, _, whole := strings.Cut(prefix, "/"); whole {
		shelves[labelShelf] = shelf
	}
	var found []store.Info
	err := s.each(ctx, shelves, func(m *metav1.PartialObjectMetadata) {
		name := m.Annotations[annotationName]
		if name == "" || !strings.HasPrefix(name, prefix) {
			return
		}
		size, _ := strconv.ParseInt(m.Annotations[annotationSize], 10, 64)
		found = append(found, store.Info{Name: name, Size: size})
	})
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	slices.SortFunc(found, func(a, b store.Info) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// Delete removes the head first: from then on no reader finds the blob, whatever happens to its parts.
func (s *Store) Delete(ctx context.Context, name string) error {
	head := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: headName(name)}}
	if err := client.IgnoreNotFound(s.writer.Delete(ctx, head)); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if err := s.sweepParts(ctx, name, ""); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// write creates the Secret or makes the existing one so.
func (s *Store) write(ctx context.Context, want *corev1.Secret) error {
	err := s.writer.Create(ctx, want.DeepCopy())
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	// No resource version: the last writer wins, and each version is whole.
	want.ResourceVersion = ""
	err = s.writer.Update(ctx, want)
	if apierrors.IsNotFound(err) {
		return s.writer.Create(ctx, want)
	}
	return err
}

// sweepParts deletes the parts of a blob except those of the version to keep.
func (s *Store) sweepParts(ctx context.Context, name, keep string) error {
	var old []string
	labels := client.MatchingLabels{labelShelf: shelfOfParts, labelHead: headName(name)}
	err := s.each(ctx, labels, func(m *metav1.PartialObjectMetadata) {
		if keep == "" || !strings.HasPrefix(m.Name, headName(name)+"-"+keep+"-") {
			old = append(old, m.Name)
		}
	})
	if err != nil {
		return err
	}
	for _, part := range old {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: part}}
		if err := client.IgnoreNotFound(s.writer.Delete(ctx, secret)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) each(ctx context.Context, labels client.MatchingLabels, visit func(*metav1.PartialObjectMetadata)) error {
	next := ""
	for {
		page := &metav1.PartialObjectMetadataList{}
		page.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("SecretList"))
		if err := s.reader.List(ctx, page, client.InNamespace(s.namespace), labels, client.Limit(pageSize), client.Continue(next)); err != nil {
			return err
		}
		for i := range page.Items {
			visit(&page.Items[i])
		}
		next = page.Continue
		if next == "" {
			return nil
		}
	}
}

func (s *Store) headSecret(name, digest string, size int, parts [][]byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace,
			Name:      headName(name),
			Labels:    map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, labelShelf: store.Shelf(name)},
			Annotations: map[string]string{
				annotationName:   name,
				annotationSize:   strconv.Itoa(size),
				annotationDigest: digest,
				annotationParts:  strconv.Itoa(len(parts)),
			},
		},
		Type: Type,
		Data: map[string][]byte{dataKey: parts[0]},
	}
}

func (s *Store) partSecret(name, digest string, index int, part []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace,
			Name:      partName(name, digest, index),
			Labels: map[string]string{
				v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat,
				labelShelf:              shelfOfParts,
				labelHead:               headName(name),
			},
		},
		Type: Type,
		Data: map[string][]byte{dataKey: part},
	}
}

// split cuts data into parts of at most partSize; there is always one, maybe empty.
func split(data []byte) [][]byte {
	var parts [][]byte
	for len(data) > partSize {
		parts = append(parts, data[:partSize])
		data = data[partSize:]
	}
	return append(parts, data)
}

func headName(name string) string {
	sum := blake3.Sum256([]byte(name))
	return "lb-store-" + hex.EncodeToString(sum[:16])
}

func partName(name, digest string, index int) string {
	return headName(name) + "-" + version(digest) + "-" + strconv.Itoa(index)
}

// version tells the parts of one content of a blob from those of another.
func version(digest string) string { return digest[:min(len(digest), 12)] }

func digestOf(data []byte) string {
	sum := blake3.Sum256(data)
	return hex.EncodeToString(sum[:])
}
