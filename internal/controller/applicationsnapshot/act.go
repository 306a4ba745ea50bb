package applicationsnapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/link/control"
)

// captureTries is for how long a capture that fails is tried again before the snapshot is given up.
const captureTries = 2 * time.Minute

func (r *Reconciler) act(ctx context.Context, s seen, next step) (again time.Duration, err error) {
	switch next {
	case capture:
		return r.capture(ctx, s)
	case push:
		return r.push(ctx, s), nil
	}
	return 0, nil
}

// capture reads the objects and keeps them. The status says Completed only once everything is in the library; until
// then whatever was written is swept should nobody come back for it.
func (r *Reconciler) capture(ctx context.Context, s seen) (again time.Duration, err error) {
	snapshot := s.snapshot
	begun := r.Now()
	kept, warnings, err := r.captureOnce(ctx, snapshot)
	switch {
	case err == nil:
		r.showCompleted(snapshot, begun, kept, warnings)
		if len(s.peers) > 0 {
			// At once, and after the status is saved: what is sent shows a completed snapshot.
			return time.Millisecond, nil
		}
		return 0, nil
	case hopeless(err), begun.Sub(snapshot.CreationTimestamp.Time) > captureTries:
		showFailed(snapshot, err)
		return 0, nil
	}
	showWaiting(snapshot, err)
	return backoff(begun.Sub(snapshot.CreationTimestamp.Time)), nil
}

// hopeless reports whether the request itself is at fault; an ApplicationSnapshot's spec cannot be edited.
func hopeless(err error) bool {
	var unknown *appmeta.UnknownResource
	var bad *appmeta.BadRequest
	return errors.As(err, &unknown) || errors.As(err, &bad)
}

func (r *Reconciler) captureOnce(ctx context.Context, snapshot *v1alpha1.ApplicationSnapshot) (appmeta.Kept, []string, error) {
	claims, err := r.replicatedClaims(ctx, snapshot.Namespace)
	if err != nil {
		return appmeta.Kept{}, nil, err
	}
	captured, err := r.Capturer.Capture(ctx, appmeta.Request{
		Namespace:        snapshot.Namespace,
		Selector:         snapshot.Spec.Selector,
		Include:          snapshot.Spec.IncludeResources,
		Exclude:          snapshot.Spec.ExcludeResources,
		ReplicatedClaims: claims,
	})
	if err != nil {
		return appmeta.Kept{}, nil, err
	}
	kept, err := r.Library.Keep(ctx, snapshot.Namespace, snapshot.Name, captured.Objects)
	return kept, captured.Warnings, err
}

// push sends the snapshot to each peer that may lack it and says when to try those that failed again. A peer that does
// not answer is waited for: that is a status, not an error.
func (r *Reconciler) push(ctx context.Context, s seen) (again time.Duration) {
	for _, peer := range lacking(s) {
		err := r.pushTo(ctx, s.snapshot, peer)
		showPushed(s.snapshot, peer, err)
		if err != nil {
			again = backoff(r.Now().Sub(s.snapshot.CreationTimestamp.Time))
		}
	}
	return again
}

// pushTo sends what the peer should lack, and everything if it turns out to lack more: it may have lost what it had.
func (r *Reconciler) pushTo(ctx context.Context, snapshot *v1alpha1.ApplicationSnapshot, peer string) error {
	held, err := r.heldBy(ctx, snapshot, peer)
	if err != nil {
		return err
	}
	lean, err := r.Library.Blobs(ctx, snapshot.Namespace, snapshot.Name, held)
	if err != nil {
		return err
	}
	err = r.Pusher.PushApplicationSnapshot(ctx, peer, snapshot, lean)
	if err == nil || len(held) == 0 || control.IsUnreachable(err) || ctx.Err() != nil {
		return err
	}
	whole, err := r.Library.Blobs(ctx, snapshot.Namespace, snapshot.Name, nil)
	if err != nil || len(whole) == len(lean) {
		return err
	}
	return r.Pusher.PushApplicationSnapshot(ctx, peer, snapshot, whole)
}

// heldBy are the packs that a peer has by what is known here: those of the snapshots it took, and of those it sent.
func (r *Reconciler) heldBy(ctx context.Context, snapshot *v1alpha1.ApplicationSnapshot, peer string) (map[string]bool, error) {
	var all v1alpha1.ApplicationSnapshotList
	if err := r.Reader.List(ctx, &all, client.InNamespace(snapshot.Namespace)); err != nil {
		return nil, fmt.Errorf("list the ApplicationSnapshots of namespace %s: %w", snapshot.Namespace, err)
	}
	held := map[string]bool{}
	for _, other := range all.Items {
		if other.Name == snapshot.Name || !has(&other, peer) {
			continue
		}
		packs, err := r.Library.Packs(ctx, other.Namespace, other.Name)
		if err != nil {
			return nil, err
		}
		for _, pack := range packs {
			held[pack] = true
		}
	}
	return held, nil
}

// has reports whether a peer has a snapshot: it captured it, or took it.
func has(snapshot *v1alpha1.ApplicationSnapshot, peer string) bool {
	if snapshot.Status.SourceCluster == peer {
		return true
	}
	for _, p := range snapshot.Status.Peers {
		if p.Cluster == peer && p.Synced {
			return true
		}
	}
	return false
}

// sweep frees what no ApplicationSnapshot shows any more. No finalizer waits for it: a snapshot, and the namespace it is
// in, can always be deleted, also where Lifeboat is not running any more.
func (r *Reconciler) sweep(ctx context.Context) error {
	_, err := r.Library.Sweep(ctx, func(namespace, name string) (bool, error) {
		err := r.Reader.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &v1alpha1.ApplicationSnapshot{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	return err
}

func (r *Reconciler) sweepForever(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			ctrl.LoggerFrom(ctx).WithName("applicationsnapshot").Error(err, "sweep")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// backoff grows with how long something has been tried: a second at first, half a minute at most.
func backoff(age time.Duration) time.Duration {
	return min(max(age/4, time.Second), 30*time.Second)
}
