package snapshot

import (
	"context"
	"encoding/base64"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// MetadataServiceKind is how a driver makes known that it lists what changed between two of its snapshots; the object bears
// the driver's name.
var MetadataServiceKind = schema.GroupVersionKind{Group: "cbt.storage.k8s.io", Version: "v1beta1", Kind: "SnapshotMetadataService"}

// MetadataService is where a driver lists what changed between two snapshots, and what was ever written.
type MetadataService struct {
	Driver string
	// Address is host:port, Audience what a token must be made for, CA the certificates the service is checked against, PEM.
	Address, Audience string
	CA                []byte
}

// MetadataServiceOf reads a driver's service. It is nil when the driver has none or the cluster does not know the kind.
func MetadataServiceOf(ctx context.Context, reader client.Reader, driver string) (*MetadataService, error) {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(MetadataServiceKind)
	err := reader.Get(ctx, client.ObjectKey{Name: driver}, object)
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read SnapshotMetadataService %s: %w", driver, err)
	}
	field := func(name string) string {
		text, _, _ := unstructured.NestedString(object.Object, "spec", name) // another type than the kind's own reads as missing
		return text
	}
	s := &MetadataService{Driver: driver, Address: field("address"), Audience: field("audience")}
	if s.CA, err = base64.StdEncoding.DecodeString(field("caCert")); err != nil {
		return nil, fmt.Errorf("read SnapshotMetadataService %s: spec.caCert: %w", driver, err)
	}
	return s, nil
}

// Stored is what the storage knows a snapshot as.
type Stored struct {
	Driver string
	// Handle is the driver's name for the snapshot, Volume its name for the volume that was cut. Either is empty when the
	// object does not say.
	Handle, Volume string
}

// StoredAs reads what stands behind a VolumeSnapshotContent; nil when it is gone.
func StoredAs(ctx context.Context, reader client.Reader, content string) (*Stored, error) {
	var object snapshotv1.VolumeSnapshotContent
	err := reader.Get(ctx, client.ObjectKey{Name: content}, &object)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read VolumeSnapshotContent %s: %w", content, err)
	}
	s := &Stored{Driver: object.Spec.Driver}
	if object.Spec.Source.VolumeHandle != nil {
		s.Volume = *object.Spec.Source.VolumeHandle
	}
	if object.Status != nil && object.Status.SnapshotHandle != nil {
		s.Handle = *object.Status.SnapshotHandle
	}
	return s, nil
}
