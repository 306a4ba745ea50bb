package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

const committed = "Committed"

// nodes play whoever else is in a cluster: the snapshot controller and its driver, the binder, the Job controller, kubelets, the garbage
// collector, and movers that move nothing: each ends well after a while, by the report that a real one leaves. They act on events alone.
type nodes struct {
	c     *cluster
	p     *peer
	o     options
	cache cache.Cache
	queue workqueue.TypedRateLimitingInterface[task]

	mu sync.Mutex
	// looked are the replications that the manager has written the status of.
	looked map[types.NamespacedName]bool
	// late is how long after its due time each session began, took how long it ran; of all since the start.
	late, took []time.Duration
	commits    int
	failures   int
}

// task is one object to look at.
type task struct {
	kind string
	key  types.NamespacedName
}

const players = 32

func playNodes(ctx context.Context, o options, c *cluster, p *peer) (*nodes, error) {
	n := &nodes{c: c, p: p, o: o, looked: map[types.NamespacedName]bool{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[task](5*time.Millisecond, time.Second))}
	var err error
	if n.cache, err = cache.New(c.config, cache.Options{Scheme: c.scheme, DefaultTransform: cache.TransformStripManagedFields()}); err != nil {
		return nil, err
	}
	gone := func(kind string) func(any) {
		return func(object any) {
			if last, is := object.(toolscache.DeletedFinalStateUnknown); is {
				object = last.Obj
			}
			if snap, is := object.(*snapshotv1.VolumeSnapshot); is {
				if snap.Status != nil && snap.Status.BoundVolumeSnapshotContentName != nil {
					n.queue.Add(task{"content", types.NamespacedName{Name: *snap.Status.BoundVolumeSnapshotContentName}})
				}
				return
			}
			n.queue.Add(task{kind, client.ObjectKeyFromObject(object.(client.Object))})
		}
	}
	seen := func(kind string) func(any) {
		return func(object any) { n.queue.Add(task{kind, client.ObjectKeyFromObject(object.(client.Object))}) }
	}
	for _, w := range []struct {
		object client.Object
		handle toolscache.ResourceEventHandlerFuncs
	}{
		{&snapshotv1.VolumeSnapshot{}, toolscache.ResourceEventHandlerFuncs{AddFunc: seen("snapshot"), DeleteFunc: gone("")}},
		{&corev1.PersistentVolumeClaim{}, toolscache.ResourceEventHandlerFuncs{AddFunc: seen("claim"), UpdateFunc: func(_, now any) {
			if !now.(client.Object).GetDeletionTimestamp().IsZero() {
				seen("claim")(now)
			}
		}}},
		{&batchv1.Job{}, toolscache.ResourceEventHandlerFuncs{AddFunc: seen("job"), DeleteFunc: gone("ended")}},
		{&v1alpha1.Replication{}, toolscache.ResourceEventHandlerFuncs{UpdateFunc: n.watch}},
	} {
		informer, err := n.cache.GetInformer(ctx, w.object, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", w.object, err)
		}
		if _, err := informer.AddEventHandler(w.handle); err != nil {
			return nil, err
		}
	}
	go func() { _ = n.cache.Start(ctx) }() // it ends with ctx
	go func() { <-ctx.Done(); n.queue.ShutDown() }()
	if !n.cache.WaitForCacheSync(ctx) {
		return nil, fmt.Errorf("watch the cluster: %w", ctx.Err())
	}
	for range players {
		go func() {
			for n.turn(ctx) {
			}
		}()
	}
	return n, nil
}

func (n *nodes) turn(ctx context.Context) bool {
	t, done := n.queue.Get()
	if done {
		return false
	}
	defer n.queue.Done(t)
	if err := client.IgnoreNotFound(n.play(ctx, t)); err != nil {
		n.queue.AddRateLimited(t)
		return true
	}
	n.queue.Forget(t)
	return true
}

func (n *nodes) play(ctx context.Context, t task) error {
	switch t.kind {
	case "snapshot":
		return n.cut(ctx, t.key)
	case "content":
		return n.c.kube.Delete(ctx, &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: t.key.Name}})
	case "claim":
		return n.bind(ctx, t.key)
	case "job":
		return n.startMover(ctx, t.key)
	case "mover":
		return n.endMover(ctx, t.key)
	case "ended":
		return n.c.kube.Delete(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: t.key.Namespace, Name: podOf(t.key.Name)}}, client.GracePeriodSeconds(0))
	}
	return nil
}

// cut does the snapshot controller's and the driver's part.
func (n *nodes) cut(ctx context.Context, key types.NamespacedName) error {
	var cached snapshotv1.VolumeSnapshot
	if err := n.cache.Get(ctx, key, &cached); err != nil {
		return err
	}
	snap := cached.DeepCopy()
	if snap.Status != nil || !snap.DeletionTimestamp.IsZero() {
		return nil
	}
	handle, mode, content := "snap-"+string(snap.UID), corev1.PersistentVolumeFilesystem, "snapcontent-"+string(snap.UID)
	volume := "vol-" + *snap.Spec.Source.PersistentVolumeClaimName
	stored := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: content}, Spec: snapshotv1.VolumeSnapshotContentSpec{
		Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, SourceVolumeMode: &mode,
		Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume},
		VolumeSnapshotRef: corev1.ObjectReference{Namespace: snap.Namespace, Name: snap.Name, UID: snap.UID}}}
	switch err := n.c.kube.Create(ctx, stored); {
	case apierrors.IsAlreadyExists(err):
		if err := n.c.kube.Get(ctx, client.ObjectKeyFromObject(stored), stored); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	stored.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle}
	if err := n.c.kube.Status().Update(ctx, stored); err != nil {
		return err
	}
	now, yes := metav1.Now(), true
	snap.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, CreationTime: &now, ReadyToUse: &yes}
	return n.c.kube.Status().Update(ctx, snap)
}

// bind binds claims, and lets those go that were deleted.
func (n *nodes) bind(ctx context.Context, key types.NamespacedName) error {
	var cached corev1.PersistentVolumeClaim
	if err := n.cache.Get(ctx, key, &cached); err != nil {
		return err
	}
	claim := cached.DeepCopy()
	switch {
	case !claim.DeletionTimestamp.IsZero():
		if len(claim.Finalizers) == 0 {
			return nil
		}
		return n.c.kube.Patch(ctx, claim, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))
	case claim.Status.Phase == corev1.ClaimBound || claim.Labels[v1alpha1.LabelManagedBy] == "":
		return nil
	}
	claim.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: claim.Spec.Resources.Requests, AccessModes: claim.Spec.AccessModes}
	return n.c.kube.Status().Update(ctx, claim)
}

func podOf(job string) string { return job + "-x" }

func (n *nodes) startMover(ctx context.Context, key types.NamespacedName) error {
	var job batchv1.Job
	if err := n.cache.Get(ctx, key, &job); err != nil {
		return err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: podOf(key.Name), Labels: job.Spec.Template.Labels}, Spec: *job.Spec.Template.Spec.DeepCopy()}
	if err := client.IgnoreAlreadyExists(n.c.kube.Create(ctx, pod)); err != nil {
		return err
	}
	// No address: nobody asks it how far it is.
	running := client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Running","containerStatuses":[{"name":"mover","image":"lifeboat:fleet","imageID":"","ready":true,"restartCount":0,"state":{"running":{}}}]}}`))
	if err := n.c.kube.Status().Patch(ctx, pod, running); err != nil {
		return err
	}
	n.queue.AddAfter(task{"mover", key}, n.o.mover)
	return nil
}

// endMover lets the target have the point before the mover says so, as in a real session.
func (n *nodes) endMover(ctx context.Context, key types.NamespacedName) error {
	var job batchv1.Job
	if err := n.cache.Get(ctx, key, &job); err != nil {
		return err
	}
	replication := types.NamespacedName{Namespace: key.Namespace, Name: job.Labels[v1alpha1.LabelReplication]}
	point := job.Labels[v1alpha1.LabelPoint]
	n.p.commit(replication, point)
	words := (&engine.Report{Replication: replication.String(), Point: point, Done: true, Tier: "digest", TierReason: "nothing is moved", Attempts: 1}).Encode()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: podOf(key.Name)}}
	ended := fmt.Sprintf(`{"status":{"phase":"Succeeded","containerStatuses":[{"name":"mover","image":"lifeboat:fleet","imageID":"","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":0,"reason":"Completed","message":%q}}}]}}`, words)
	return n.c.kube.Status().Patch(ctx, pod, client.RawPatch(types.MergePatchType, []byte(ended)))
}

// watch notes what the manager writes of its sessions.
func (n *nodes) watch(before, now any) {
	was, is := before.(*v1alpha1.Replication), now.(*v1alpha1.Replication)
	n.mu.Lock()
	defer n.mu.Unlock()
	if is.Status.ObservedGeneration == is.Generation {
		n.looked[client.ObjectKeyFromObject(is)] = true
	}
	if len(was.Status.Rlinks) == 0 || len(is.Status.Rlinks) == 0 {
		return
	}
	former, link := was.Status.Rlinks[0], is.Status.Rlinks[0]
	if s := link.Session; s != nil && (former.Session == nil || former.Session.Point != s.Point) && former.NextRun != nil {
		n.late = append(n.late, s.StartedAt.Sub(former.NextRun.Time))
	}
	if ended := link.LastSession; ended != nil && (former.LastSession == nil || former.LastSession.Point != ended.Point) {
		if ended.Result != committed {
			n.failures++
			return
		}
		n.commits++
		n.took = append(n.took, ended.FinishedAt.Sub(ended.StartedAt.Time))
	}
}

func (n *nodes) untilAllWereSeen(ctx context.Context, o options, m *manager) error {
	ctx, cancel := context.WithTimeout(ctx, o.patience)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		n.mu.Lock()
		looked := len(n.looked)
		n.mu.Unlock()
		if looked == o.replications {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the manager has looked at %d of %d replications: %w", looked, o.replications, ctx.Err())
		case err := <-m.ended:
			return fmt.Errorf("the manager has ended: %w", err)
		case <-tick.C:
		}
	}
}

// each does something for 0 to count-1, several at a time, until one fails.
func each(count int, do func(int) error) error {
	var all sync.WaitGroup
	work, failed := make(chan int), make(chan error, players)
	for range players {
		all.Go(func() {
			for i := range work {
				if err := do(i); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	var first error
	for i := 0; i < count && first == nil; i++ {
		select {
		case work <- i:
		case first = <-failed:
		}
	}
	close(work)
	all.Wait()
	select {
	case err := <-failed:
		if first == nil {
			first = err
		}
	default:
	}
	return first
}

func quantile(of []time.Duration, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
