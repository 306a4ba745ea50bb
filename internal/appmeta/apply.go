package appmeta

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"lifeboat.dev/lifeboat/internal/hook"
)

// resourceClient writes objects of one resource in one namespace.
type resourceClient = dynamic.ResourceInterface

// controllersOfTheCluster write what they work out for this cluster, such as which volume a claim has. Their fields
// are never taken over: a restore would remove what it did not capture.
var controllersOfTheCluster = []string{"kube-controller-manager", "kube-scheduler", "kubelet", "cloud-controller-manager", "csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"}

// apply is one server-side apply, repeated while it fails in a way that passes.
func apply(ctx context.Context, target resourceClient, o *unstructured.Unstructured) error {
	return trying(ctx, func() error {
		_, err := target.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
		return err
	})
}

func patch(ctx context.Context, target resourceClient, name string, change map[string]any) error {
	body, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("write the patch: %w", err)
	}
	return trying(ctx, func() error {
		_, err := target.Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
		return err
	})
}

// same reports whether a live object, less what belongs to its cluster, is the captured one. One that Offline stopped
// is not, though Sanitise would show it as it ran.
func same(live, captured *unstructured.Unstructured) bool {
	if hook.Marked(live) {
		return false
	}
	a, errA := json.Marshal(Sanitise(live).Object)
	b, errB := json.Marshal(captured.Object)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// takeOver makes FieldManager the applier of every field that anybody but the cluster's controllers wrote, so that the
// next apply removes those it does not hold. It conflicts when the object changed since it was read.
func takeOver(ctx context.Context, target resourceClient, live *unstructured.Unstructured) error {
	entries, changed, err := takenOver(live.GetManagedFields(), live.GetAPIVersion())
	if err != nil {
		return fmt.Errorf("read the managed fields: %w", err)
	}
	if !changed {
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": live.GetResourceVersion(),
		"managedFields":   entries,
	}})
	if err != nil {
		return fmt.Errorf("write the managed fields: %w", err)
	}
	_, err = target.Patch(ctx, live.GetName(), types.MergePatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	return err
}

// takenOver joins the entries of all other writers of the object itself into one of FieldManager.
func takenOver(entries []metav1.ManagedFieldsEntry, apiVersion string) (joined []metav1.ManagedFieldsEntry, changed bool, err error) {
	all := fieldpath.NewSet()
	for _, e := range entries {
		mine := e.Manager == FieldManager && e.Operation == metav1.ManagedFieldsOperationApply
		if e.Subresource != "" || e.FieldsV1 == nil || slices.Contains(controllersOfTheCluster, e.Manager) {
			joined = append(joined, e)
			continue
		}
		var set fieldpath.Set
		if err := set.FromJSON(bytes.NewReader(e.FieldsV1.GetRawBytes())); err != nil {
			return nil, false, err
		}
		all = all.Union(&set)
		changed = changed || !mine
	}
	if !changed {
		return entries, false, nil
	}
	raw, err := all.ToJSON()
	if err != nil {
		return nil, false, err
	}
	mine := metav1.ManagedFieldsEntry{
		Manager: FieldManager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: apiVersion, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{},
	}
	mine.FieldsV1.SetRawBytes(raw)
	return append([]metav1.ManagedFieldsEntry{mine}, joined...), true, nil
}
