package appmeta

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1 "k8s.io/api/core/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/store"
)

// AnnotationReceivedFrom names the cluster an ApplicationSnapshot came from. It is there from the object's first
// instant, before its status is: what carries it is never captured here.
const AnnotationReceivedFrom = "lifeboat.dev/received-from"

// Inbox takes in the snapshots that peers send: first the content, then the ApplicationSnapshot that shows it.
type Inbox struct {
	writer  client.Client
	reader  client.Reader
	library *Library
	cluster string
	// locate tells where a manifest is kept, for the status.
	locate func(manifest string) string
}

// NewInbox returns the inbox of a cluster. Reader asks the API server itself. Locate tells people where the library
// keeps a manifest, by its name in the store.
func NewInbox(writer client.Client, reader client.Reader, library *Library, cluster string, locate func(string) string) *Inbox {
	return &Inbox{writer: writer, reader: reader, library: library, cluster: cluster, locate: locate}
}

// Refused says that a snapshot cannot be taken in however often it is sent.
type Refused struct {
	Snapshot types.NamespacedName
	Why      string
}

func (e *Refused) Error() string {
	return fmt.Sprintf("application snapshot %s: %s", e.Snapshot, e.Why)
}

// ManifestName is the name in a store of a snapshot's manifest, the one blob every sending holds.
func ManifestName(key types.NamespacedName) string { return manifestName(key.Namespace, key.Name) }

// PackName is the name in a store of the pack of that BLAKE3.
func PackName(digest string) string { return packName(digest) }

// Put keeps a completed snapshot of another cluster whole, or not at all. What is kept already with the same content
// is kept again without harm. *Missing: it was sent without packs that are not here. *Refused: it never can be kept.
func (in *Inbox) Put(ctx context.Context, key types.NamespacedName, spec v1alpha1.ApplicationSnapshotSpec, status v1alpha1.ApplicationSnapshotStatus, blobs []store.Blob) error {
	switch {
	case status.Phase != v1alpha1.SnapshotCompleted:
		return &Refused{key, fmt.Sprintf("its phase is %q; only Completed ones are sent", status.Phase)}
	case status.SourceCluster == "" || status.SourceCluster == in.cluster:
		return &Refused{key, fmt.Sprintf("its status.sourceCluster is %q, and this cluster is %s: only what another cluster captured is taken in", status.SourceCluster, in.cluster)}
	}
	existing, err := in.existing(ctx, key, status)
	if err != nil {
		return err
	}
	return in.library.accept(ctx, key.Namespace, key.Name, status.Digest, blobs, func() error {
		return in.show(ctx, existing, key, spec, status)
	})
}

// existing reads the object of that name and refuses when it is another snapshot.
func (in *Inbox) existing(ctx context.Context, key types.NamespacedName, status v1alpha1.ApplicationSnapshotStatus) (*v1alpha1.ApplicationSnapshot, error) {
	found := &v1alpha1.ApplicationSnapshot{}
	err := in.reader.Get(ctx, key, found)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read application snapshot %s: %w", key, err)
	}
	from := found.Annotations[AnnotationReceivedFrom]
	switch {
	case found.DeletionTimestamp != nil:
		return nil, fmt.Errorf("application snapshot %s is being deleted here", key)
	case from != status.SourceCluster:
		return nil, &Refused{key, fmt.Sprintf("cluster %s has one of that name that did not come from %s: give snapshots of different clusters different names", in.cluster, status.SourceCluster)}
	case found.Status.Phase == v1alpha1.SnapshotCompleted && found.Status.Digest != status.Digest:
		return nil, &Refused{key, fmt.Sprintf("cluster %s has one of that name and source with the content %s, sent was %s: delete it there, or send under a new name", in.cluster, found.Status.Digest, status.Digest)}
	}
	return found, nil
}

// show makes the ApplicationSnapshot, then its status: the object tells by its annotation that it was received even
// if this ends between the two, and the next sending completes it.
func (in *Inbox) show(ctx context.Context, object *v1alpha1.ApplicationSnapshot, key types.NamespacedName, spec v1alpha1.ApplicationSnapshotSpec, status v1alpha1.ApplicationSnapshotStatus) error {
	if object == nil {
		if err := in.makeNamespace(ctx, key.Namespace); err != nil {
			return err
		}
		object = &v1alpha1.ApplicationSnapshot{
			ObjectMeta: metav1.ObjectMeta{
				Namespace:   key.Namespace,
				Name:        key.Name,
				Labels:      snapshotLabels(spec),
				Annotations: map[string]string{AnnotationReceivedFrom: status.SourceCluster},
			},
			Spec: spec,
		}
		if err := in.writer.Create(ctx, object); err != nil {
			return fmt.Errorf("make application snapshot %s: %w", key, err)
		}
	}
	before := object.DeepCopy()
	object.Status = status
	object.Status.Peers = nil
	object.Status.Location = in.locate(ManifestName(key))
	object.Status.ObservedGeneration = object.Generation
	object.Status.Message = "received from " + status.SourceCluster
	if err := in.writer.Status().Patch(ctx, object, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("write the status of application snapshot %s: %w", key, err)
	}
	return nil
}

// makeNamespace makes the application's namespace where it has never run; a restore gives it its labels.
func (in *Inbox) makeNamespace(ctx context.Context, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	err := in.reader.Get(ctx, client.ObjectKeyFromObject(namespace), namespace)
	if apierrors.IsNotFound(err) {
		err = in.writer.Create(ctx, namespace)
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	return nil
}

func snapshotLabels(spec v1alpha1.ApplicationSnapshotSpec) map[string]string {
	// A longer name fits no label; the spec has it in any case.
	if spec.PlanName == "" || len(spec.PlanName) > validation.LabelValueMaxLength {
		return nil
	}
	return map[string]string{v1alpha1.LabelPlan: spec.PlanName}
}
