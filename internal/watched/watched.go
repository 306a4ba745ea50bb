// Package watched is what a manager keeps watching of its cluster, and a reader of that.
//
// What it answers was true a moment ago. It serves whoever asks whether there is something to do, thousands of times a minute, and
// nobody who is about to do what cannot be undone: docs/design/0009-what-is-read-from-caches.md. Begin reading at Reader.
package watched

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// +kubebuilder:rbac:groups=lifeboat.dev,resources=replications;pvcgroups;clusterpairs;disasterrecoveryplans;schedulepolicies;rules,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=persistentvolumeclaims;persistentvolumes;pods,verbs=list;watch
// +kubebuilder:rbac:groups=batch,resources=jobs,verbs=list;watch
// +kubebuilder:rbac:groups=storage.k8s.io,resources=storageclasses,verbs=list;watch
// +kubebuilder:rbac:groups=snapshot.storage.k8s.io,resources=volumesnapshots;volumesnapshotclasses,verbs=list;watch
// +kubebuilder:rbac:groups=groupsnapshot.storage.k8s.io,resources=volumegroupsnapshots;volumegroupsnapshotclasses,verbs=list;watch

// kind is one kind that is watched.
type kind struct {
	object client.Object
	// ours is true when only what bears Lifeboat's label is watched.
	ours bool
	// slim takes off what nobody reads; nil when nothing is.
	slim func(client.Object)
}

func kinds() []kind {
	return []kind{
		{object: &v1alpha1.Replication{}},
		{object: &v1alpha1.PVCGroup{}},
		{object: &v1alpha1.ClusterPair{}},
		{object: &v1alpha1.DisasterRecoveryPlan{}},
		{object: &v1alpha1.SchedulePolicy{}},
		{object: &v1alpha1.Rule{}},
		{object: &storagev1.StorageClass{}},
		{object: &snapshotv1.VolumeSnapshotClass{}},
		{object: &groupsnapshotv1.VolumeGroupSnapshotClass{}},
		{object: &snapshotv1.VolumeSnapshot{}, ours: true},
		{object: &groupsnapshotv1.VolumeGroupSnapshot{}, ours: true},
		{object: &corev1.PersistentVolumeClaim{}, slim: slimClaim},
		{object: &corev1.PersistentVolume{}, slim: slimVolume},
		{object: &batchv1.Job{}, ours: true, slim: slimJob},
		{object: &corev1.Pod{}, ours: true, slim: slimPod},
	}
}

func slimClaim(o client.Object) { withoutApplied(o) }

func slimVolume(o client.Object) {
	o.SetAnnotations(nil)
	o.SetLabels(nil)
}

// slimJob keeps what tells of a mover's end: its pods are made by others.
func slimJob(o client.Object) { o.(*batchv1.Job).Spec = batchv1.JobSpec{} }

// slimPod keeps status and volumes.
func slimPod(o client.Object) {
	pod := o.(*corev1.Pod)
	pod.Spec = corev1.PodSpec{Volumes: pod.Spec.Volumes}
}

// withoutApplied takes off the copy of itself that kubectl leaves on an object.
func withoutApplied(o client.Object) {
	if kept := o.GetAnnotations(); kept[corev1.LastAppliedConfigAnnotation] != "" {
		delete(kept, corev1.LastAppliedConfigAnnotation)
		o.SetAnnotations(kept)
	}
}

// NewCache makes a manager's cache that is limited to what is read from it, so that its memory does not grow with what else is in the
// cluster. It is for manager.Options.
func NewCache(config *rest.Config, o cache.Options) (cache.Cache, error) {
	o.DefaultTransform, o.ByObject = cache.TransformStripManagedFields(), map[client.Object]cache.ByObject{}
	for _, k := range kinds() {
		gvk, err := apiutil.GVKForObject(k.object, o.Scheme)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", k.object, err)
		}
		if is, err := served(o.Mapper, gvk); err != nil || !is {
			if err != nil {
				return nil, err
			}
			continue // a cache refuses options for what the cluster does not serve
		}
		by := cache.ByObject{}
		if k.ours {
			by.Label = labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat})
		}
		if k.slim != nil {
			by.Transform = transform(k.slim)
		}
		o.ByObject[k.object] = by
	}
	return cache.New(config, o)
}

func transform(slim func(client.Object)) toolscache.TransformFunc {
	return func(in any) (any, error) {
		if o, is := in.(client.Object); is {
			o.SetManagedFields(nil)
			slim(o)
		}
		return in, nil
	}
}

// knownFor is how long it is remembered whether the cluster knows a kind. A kind that was just added counts a little later.
const knownFor = time.Minute

// Reader answers from watches where it watches, and from the API server where it does not.
type Reader struct {
	cache, live client.Reader
	scheme      *runtime.Scheme
	now         func() time.Time
	// watched is true for kinds of which everything is watched, false for those of which only what is Lifeboat's is.
	watched map[schema.GroupVersionKind]bool

	mu    sync.Mutex
	known map[client.ObjectKey]answer
}

// answer is what was said of one CustomResourceDefinition.
type answer struct {
	object *unstructured.Unstructured
	err    error
	until  time.Time
}

func served(mapper meta.RESTMapper, of schema.GroupVersionKind) (bool, error) {
	_, err := mapper.RESTMapping(of.GroupKind(), of.Version)
	switch {
	case meta.IsNoMatchError(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask whether the cluster serves %s: %w", of, err)
	}
	return true, nil
}

// New starts watching in a cache of NewCache's. Kinds that the cluster does not serve are not watched, and read from the API server
// should they ever be served.
func New(ctx context.Context, from cache.Cache, live client.Reader, mapper meta.RESTMapper, scheme *runtime.Scheme, now func() time.Time) (*Reader, error) {
	r := &Reader{cache: from, live: live, scheme: scheme, now: now, watched: map[schema.GroupVersionKind]bool{}, known: map[client.ObjectKey]answer{}}
	for _, k := range kinds() {
		gvk, err := apiutil.GVKForObject(k.object, scheme)
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", k.object, err)
		}
		is, err := served(mapper, gvk)
		if err != nil {
			return nil, err
		}
		if !is {
			continue
		}
		if _, err := from.GetInformer(ctx, k.object, cache.BlockUntilSynced(false)); err != nil {
			return nil, fmt.Errorf("watch %T: %w", k.object, err)
		}
		r.watched[gvk] = !k.ours
	}
	return r, nil
}

// Watches reports that news of a kind come.
func (r *Reader) Watches(object client.Object) bool {
	gvk, err := apiutil.GVKForObject(object, r.scheme)
	if err != nil {
		return false
	}
	_, is := r.watched[gvk]
	return is
}

// Get implements client.Reader. Of what is watched in part the API server is asked: that the part lacks it says nothing.
func (r *Reader) Get(ctx context.Context, key client.ObjectKey, object client.Object, opts ...client.GetOption) error {
	if crd, is := object.(*unstructured.Unstructured); is && crd.GetKind() == "CustomResourceDefinition" {
		return r.definition(ctx, key, crd, opts...)
	}
	gvk, err := apiutil.GVKForObject(object, r.scheme)
	if err != nil {
		return err
	}
	if whole := r.watched[gvk]; whole {
		return r.cache.Get(ctx, key, object, opts...)
	}
	return r.live.Get(ctx, key, object, opts...)
}

// List implements client.Reader. Of what is watched in part only what is asked for by Lifeboat's label comes from there.
func (r *Reader) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	gvk, err := apiutil.GVKForObject(list, r.scheme)
	if err != nil {
		return err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	if whole, is := r.watched[gvk]; is && (whole || asksForOurs(opts)) {
		return r.cache.List(ctx, list, opts...)
	}
	return r.live.List(ctx, list, opts...)
}

func asksForOurs(opts []client.ListOption) bool {
	all := client.ListOptions{}
	all.ApplyOptions(opts)
	if all.LabelSelector == nil {
		return false
	}
	value, exact := all.LabelSelector.RequiresExactMatch(v1alpha1.LabelManagedBy)
	return exact && value == v1alpha1.ManagedByLifeboat
}

func (r *Reader) definition(ctx context.Context, key client.ObjectKey, into *unstructured.Unstructured, opts ...client.GetOption) error {
	r.mu.Lock()
	said, is := r.known[key]
	r.mu.Unlock()
	if !is || !r.now().Before(said.until) {
		said = answer{object: into.DeepCopy(), until: r.now().Add(knownFor)}
		said.err = r.live.Get(ctx, key, said.object, opts...)
		if said.err != nil && !apierrors.IsNotFound(said.err) {
			return said.err
		}
		r.mu.Lock()
		r.known[key] = said
		r.mu.Unlock()
	}
	if said.err != nil {
		return said.err
	}
	said.object.DeepCopyInto(into)
	return nil
}
