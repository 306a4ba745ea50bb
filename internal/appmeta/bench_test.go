package appmeta

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// benchObjects is how many objects the benchmarks capture and restore.
const benchObjects = 10000

// BenchmarkCaptureAndRestore tells how many objects a second a capture reads, a keep packs and a restore applies,
// against one API server with etcd on the same machine.
//
//	go test ./internal/appmeta -run - -bench CaptureAndRestore -benchtime 1x
func BenchmarkCaptureAndRestore(b *testing.B) {
	ctx := context.Background()
	east, west := open(b, "east"), open(b, "west")
	east.makeNamespace(b, "bench", nil)
	fill(b, east, "bench")
	for b.Loop() {
		captured := east.capture(b, Request{Namespace: "bench"})
		capture := b.Elapsed()
		kept, err := east.library.Keep(ctx, "bench", "bench", captured.Objects)
		if err != nil {
			b.Fatal(err)
		}
		keep := b.Elapsed()
		snapshot := &v1alpha1.ApplicationSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: "bench"},
			Status:     v1alpha1.ApplicationSnapshotStatus{Phase: v1alpha1.SnapshotCompleted, SourceCluster: "east", Digest: kept.Digest},
		}
		if err := east.send(b, west, snapshot, nil); err != nil {
			b.Fatal(err)
		}
		sent := b.Elapsed()
		result := west.restore(b, snapshot, "op")
		restore := b.Elapsed()
		if len(result.Failed) > 0 {
			b.Fatalf("failed: %v", fails(result.Failed)[:1])
		}
		again := west.restore(b, snapshot, "op")
		if again.Unchanged != again.Total {
			b.Fatalf("%+v", again)
		}
		n := float64(len(captured.Objects))
		b.ReportMetric(capture.Seconds(), "capture-s")
		b.ReportMetric((keep - capture).Seconds(), "keep-s")
		b.ReportMetric(n/(restore-sent).Seconds(), "restored/s")
		b.ReportMetric(n/(b.Elapsed()-restore).Seconds(), "unchanged/s")
		b.ReportMetric(float64(kept.Size)/n, "B/object")
	}
}

func fill(b *testing.B, s *site, namespace string) {
	b.Helper()
	client := s.dynamic(b)
	var work errgroup.Group
	work.SetLimit(parallel)
	for i := range benchObjects {
		resource, o := benchObject(i, namespace)
		work.Go(func() error {
			_, err := client.Resource(resource).Namespace(namespace).Create(context.Background(), o, metav1.CreateOptions{})
			return err
		})
	}
	if err := work.Wait(); err != nil {
		b.Fatal(err)
	}
}

// benchObject is the mix of a large application: mostly ConfigMaps and Secrets, some Services and Deployments.
func benchObject(i int, namespace string) (schema.GroupVersionResource, *unstructured.Unstructured) {
	name := fmt.Sprintf("o-%05d", i)
	meta := map[string]any{"name": name, "namespace": namespace, "labels": map[string]any{"app": name}}
	switch i % 10 {
	case 0:
		return schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
			"spec": map[string]any{
				"selector": map[string]any{"matchLabels": map[string]any{"app": name}},
				"template": map[string]any{
					"metadata": map[string]any{"labels": map[string]any{"app": name}},
					"spec":     map[string]any{"containers": []any{map[string]any{"name": "c", "image": "image:1"}}},
				},
			}}}
	case 1:
		return schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}}
	case 2, 3, 4:
		return schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": map[string]any{"password": blake3Hex([]byte(name))}}}
	}
	return schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": map[string]any{"settings": fmt.Sprintf("index=%d\ncolour=blue\nsize=large\n", i)}}}
}
