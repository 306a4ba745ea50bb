package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const annotationDefaultClass = "snapshot.storage.kubernetes.io/is-default-class"

// Classes reads the cluster's snapshot classes.
func Classes(ctx context.Context, reader client.Reader) ([]snapshotv1.VolumeSnapshotClass, error) {
	var list snapshotv1.VolumeSnapshotClassList
	err := reader.List(ctx, &list)
	if meta.IsNoMatchError(err) {
		return nil, nil // a cluster that does not know the kind has none
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshot classes: %w", err)
	}
	return list.Items, nil
}

// ClassFor picks the class for a driver: the default one first, then one that removes what it made over one that keeps
// it, then the first by name. It is empty when the driver has none.
func ClassFor(classes []snapshotv1.VolumeSnapshotClass, driver string) string {
	var fitting []snapshotv1.VolumeSnapshotClass
	for _, class := range classes {
		if class.Driver == driver {
			fitting = append(fitting, class)
		}
	}
	if len(fitting) == 0 {
		return ""
	}
	return slices.MinFunc(fitting, func(a, b snapshotv1.VolumeSnapshotClass) int {
		if order := rank(a) - rank(b); order != 0 {
			return order
		}
		return strings.Compare(a.Name, b.Name)
	}).Name
}

func rank(class snapshotv1.VolumeSnapshotClass) int {
	switch {
	case class.Annotations[annotationDefaultClass] == "true":
		return 0
	case class.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete:
		return 1
	}
	return 2
}
