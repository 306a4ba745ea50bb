package replication

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// watched is a client of an API server that reads from watches, as a manager's client does, so that reads cost the server nothing.
// A write returns once the watches show it: whoever reads through the client that wrote sees what a server that is asked would say. All
// of a site's writes go through its one client.
//
// Only what is structured is watched; anything else is asked for.
type watched struct {
	client.Client
	live   client.Client
	scheme *runtime.Scheme
	cache  cache.Cache

	mu      sync.Mutex
	kinds   map[schema.GroupVersionKind]bool
	changed chan struct{} // closed at the next event
}

// ofNamespace is the index of cluster-wide objects by the namespace of what they belong to.
const ofNamespace = "ofNamespace"

// newWatched returns the client and the one that asks the server each time. The watches end with the context.
func newWatched(ctx context.Context, config *rest.Config, scheme *runtime.Scheme) (*watched, client.Client, error) {
	live, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, nil, err
	}
	all, err := cache.New(config, cache.Options{Scheme: scheme})
	if err != nil {
		return nil, nil, err
	}
	for object, of := range map[client.Object]client.IndexerFunc{
		&corev1.PersistentVolume{}: func(o client.Object) []string {
			if ref := o.(*corev1.PersistentVolume).Spec.ClaimRef; ref != nil {
				return []string{ref.Namespace}
			}
			return nil
		},
		&snapshotv1.VolumeSnapshotContent{}: func(o client.Object) []string {
			return []string{o.(*snapshotv1.VolumeSnapshotContent).Spec.VolumeSnapshotRef.Namespace}
		},
	} {
		if err := all.IndexField(ctx, object, ofNamespace, of); err != nil {
			return nil, nil, err
		}
	}
	reading, err := client.New(config, client.Options{Scheme: scheme, Cache: &client.CacheOptions{Reader: all}})
	if err != nil {
		return nil, nil, err
	}
	go func() { _ = all.Start(ctx) }()
	if !all.WaitForCacheSync(ctx) {
		return nil, nil, fmt.Errorf("watch %s: not begun", config.Host)
	}
	return &watched{Client: reading, live: live, scheme: scheme, cache: all, kinds: map[schema.GroupVersionKind]bool{}, changed: make(chan struct{})}, live, nil
}

// begin watches the object's kind; it returns false for what is not structured.
func (w *watched) begin(ctx context.Context, o client.Object) (bool, error) {
	if _, not := o.(runtime.Unstructured); not {
		return false, nil
	}
	kind, err := apiutil.GVKForObject(o, w.scheme)
	if err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kinds[kind] {
		return true, nil
	}
	informer, err := w.cache.GetInformer(ctx, o)
	if err != nil {
		return false, err
	}
	tell := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(w.changed)
		w.changed = make(chan struct{})
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() },
	})
	w.kinds[kind] = err == nil
	return err == nil, err
}

// shown waits until the watches show what was written.
func (w *watched) shown(ctx context.Context, written client.Object) error {
	key, now := client.ObjectKeyFromObject(written), written.DeepCopyObject().(client.Object)
	gone := false
	// What is being deleted may have gone with this very write, which no answer to a write tells.
	if !written.GetDeletionTimestamp().IsZero() && len(written.GetFinalizers()) == 0 {
		err := w.live.Get(ctx, key, now)
		if gone = apierrors.IsNotFound(err); err != nil && !gone {
			return err
		}
		written = now.DeepCopyObject().(client.Object)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		err := w.cache.Get(ctx, key, now)
		switch {
		case apierrors.IsNotFound(err):
			if gone {
				return nil
			}
		case err != nil:
			return err
		case !gone && version(now) >= version(written):
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the watches do not show what became of %T %s: %w", now, key, ctx.Err())
		}
	}
}

// version is an object's resource version: a number that grows with every write to the server.
func version(o client.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		panic(err) // no API server of ours has others
	}
	return n
}

// write makes a write and waits for the watches.
func (w *watched) write(ctx context.Context, o client.Object, write func() error) error {
	follow, err := w.begin(ctx, o)
	if err != nil {
		return err
	}
	if err := write(); err != nil || !follow {
		return err
	}
	return w.shown(ctx, o)
}

// List has the server's order. What the watches have no index for is asked for.
func (w *watched) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	asked := (&client.ListOptions{}).ApplyOptions(opts)
	if asked.FieldSelector != nil && !strings.HasPrefix(asked.FieldSelector.String(), ofNamespace+"=") {
		return w.live.List(ctx, list, opts...)
	}
	if err := w.Client.List(ctx, list, opts...); err != nil {
		return err
	}
	items := reflect.ValueOf(list).Elem().FieldByName("Items")
	key := func(i int) string {
		o := items.Index(i).Addr().Interface().(client.Object)
		return o.GetNamespace() + "/" + o.GetName()
	}
	sort.Slice(items.Interface(), func(i, j int) bool { return key(i) < key(j) })
	return nil
}

func (w *watched) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	return w.write(ctx, o, func() error { return w.live.Create(ctx, o, opts...) })
}

func (w *watched) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	return w.write(ctx, o, func() error { return w.live.Update(ctx, o, opts...) })
}

func (w *watched) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	return w.write(ctx, o, func() error { return w.live.Patch(ctx, o, p, opts...) })
}

func (w *watched) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	follow, err := w.begin(ctx, o)
	if err != nil {
		return err
	}
	if err := w.live.Delete(ctx, o, opts...); err != nil || !follow {
		return err
	}
	deleted, now := o.DeepCopyObject().(client.Object), metav1.Now()
	deleted.SetDeletionTimestamp(&now)
	deleted.SetFinalizers(nil)
	return w.shown(ctx, deleted)
}

// DeleteAllOf is not for tests: no watch shows when it is done.
func (w *watched) DeleteAllOf(ctx context.Context, o client.Object, opts ...client.DeleteAllOfOption) error {
	return fmt.Errorf("delete all of %T: not in tests", o)
}

func (w *watched) Status() client.SubResourceWriter { return watchedStatus{w.live.Status(), w} }

type watchedStatus struct {
	client.SubResourceWriter
	w *watched
}

func (s watchedStatus) Update(ctx context.Context, o client.Object, opts ...client.SubResourceUpdateOption) error {
	return s.w.write(ctx, o, func() error { return s.SubResourceWriter.Update(ctx, o, opts...) })
}

func (s watchedStatus) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
	return s.w.write(ctx, o, func() error { return s.SubResourceWriter.Patch(ctx, o, p, opts...) })
}
