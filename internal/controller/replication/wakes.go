package replication

import (
	"context"
	"maps"
	"slices"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// What wakes a Replication: news of what it waits for. What only this manager does itself, and what comes to nothing, does not; a
// Replication that is at rest looks by itself every few minutes, should news ever be lost.

// wakeOnNews adds the kinds of which news come.
func (r *Reconciler) wakeOnNews(b *builder.Builder) *builder.Builder {
	if r.Watched == nil {
		return b
	}
	for _, of := range []struct {
		object client.Object
		whom   handler.MapFunc
		when   predicate.Predicate
	}{
		{&snapshotv1.VolumeSnapshot{}, servedOf, changed(snapshotNews)},
		{&groupsnapshotv1.VolumeGroupSnapshot{}, servedOf, changed(groupNews)},
		{&batchv1.Job{}, servedOf, changed(jobNews)},
		{&corev1.Pod{}, servedOf, changed(podNews)},
		{&corev1.PersistentVolumeClaim{}, r.usersOfClaim, changedOrMade(claimNews)},
		{&v1alpha1.PVCGroup{}, r.usersOfGroup, predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, made())},
		{&v1alpha1.Rule{}, r.usersOfRule, predicate.GenerationChangedPredicate{}},
		{&v1alpha1.ClusterPair{}, r.usersOfPair, changedOrMade(pairNews)},
		{&v1alpha1.DisasterRecoveryPlan{}, replicationOfPlan, changed(planNews)},
	} {
		if r.Watched.Watches(of.object) {
			b = b.Watches(of.object, handler.EnqueueRequestsFromMapFunc(of.whom), builder.WithPredicates(of.when))
		}
	}
	return b
}

// changed lets updates through whose news differ.
func changed(news func(client.Object) any) predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		DeleteFunc: func(event.DeleteEvent) bool { return false },
		UpdateFunc: func(e event.UpdateEvent) bool {
			return !equality.Semantic.DeepEqual(news(e.ObjectOld), news(e.ObjectNew))
		},
	}
}

func changedOrMade(news func(client.Object) any) predicate.Predicate {
	return predicate.Or(changed(news), made())
}

func made() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return true },
		DeleteFunc: func(event.DeleteEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
}

func snapshotNews(o client.Object) any { return o.(*snapshotv1.VolumeSnapshot).Status }

func groupNews(o client.Object) any { return o.(*groupsnapshotv1.VolumeGroupSnapshot).Status }

func jobNews(o client.Object) any { return o.(*batchv1.Job).Status.Conditions }

// podNews of a mover is its end, or what holds up its start. That it runs is nothing to act on; a receiver that is ready is.
func podNews(o client.Object) any {
	pod := o.(*corev1.Pod)
	news := []any{pod.DeletionTimestamp.IsZero(), termination(pod)}
	if pod.Labels[v1alpha1.LabelComponent] != v1alpha1.ComponentSourceMover {
		news = append(news, pod.Status.Phase, pod.Status.PodIP, podReady(pod))
	}
	return news
}

// claimNews are what a group's member is, and whether a claim of Lifeboat's is bound.
func claimNews(o client.Object) any {
	claim := o.(*corev1.PersistentVolumeClaim)
	if claim.Labels[v1alpha1.LabelReplication] != "" {
		return claim.Status.Phase
	}
	return []any{claim.DeletionTimestamp.IsZero(), claim.Labels, claim.Spec, claim.Status.Phase, claim.Status.Capacity}
}

// pairNews are what a link rests on, and whether the peer is there. Heartbeats alone are none.
func pairNews(o client.Object) any {
	pair := o.(*v1alpha1.ClusterPair)
	return []any{pair.Generation, pair.Annotations, pair.Status.LinkState}
}

func planNews(o client.Object) any {
	if operation := o.(*v1alpha1.DisasterRecoveryPlan).Status.Operation; operation != nil {
		return operation.Step
	}
	return nil
}

// servedOf is the Replication that something of Lifeboat's serves.
func servedOf(_ context.Context, o client.Object) []reconcile.Request {
	name := o.GetLabels()[v1alpha1.LabelReplication]
	if name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

func replicationOfPlan(_ context.Context, o client.Object) []reconcile.Request {
	plan := o.(*v1alpha1.DisasterRecoveryPlan)
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: plan.Namespace, Name: plan.Spec.DataReplicationPointer}}}
}

// usersOfClaim are the Replication that a claim serves, or those that it is a member of, or shall be from now on.
func (r *Reconciler) usersOfClaim(ctx context.Context, o client.Object) []reconcile.Request {
	if served := servedOf(ctx, o); len(served) > 0 {
		return served
	}
	in := client.InNamespace(o.GetNamespace())
	var groups v1alpha1.PVCGroupList
	if err := r.Watched.List(ctx, &groups, in, client.UnsafeDisableDeepCopy); err != nil {
		return nil // each looks by itself
	}
	joins := map[string]bool{}
	for i := range groups.Items {
		group := &groups.Items[i]
		joins[group.Name] = group.Spec.Selector != nil && snapshot.Covers(group, snapshot.Member{Name: o.GetName(), Claim: o.(*corev1.PersistentVolumeClaim)})
	}
	return r.those(ctx, func(rep *v1alpha1.Replication) bool {
		return joins[rep.Spec.PVCGroupName] || slices.Contains(rep.Status.Claims, o.GetName())
	}, in)
}

func (r *Reconciler) usersOfGroup(ctx context.Context, o client.Object) []reconcile.Request {
	return r.those(ctx, func(rep *v1alpha1.Replication) bool { return rep.Spec.PVCGroupName == o.GetName() }, client.InNamespace(o.GetNamespace()))
}

func (r *Reconciler) usersOfRule(ctx context.Context, o client.Object) []reconcile.Request {
	return r.those(ctx, func(rep *v1alpha1.Replication) bool {
		return rep.Spec.PreCutRule == o.GetName() || rep.Spec.PostCutRule == o.GetName()
	}, client.InNamespace(o.GetNamespace()))
}

func (r *Reconciler) usersOfPair(ctx context.Context, o client.Object) []reconcile.Request {
	return r.those(ctx, func(rep *v1alpha1.Replication) bool {
		return slices.ContainsFunc(rep.Spec.Rlinks, func(l v1alpha1.Rlink) bool { return l.ClusterPair == o.GetName() })
	})
}

// those are the Replications that are meant. A list that cannot be read wakes nobody: each looks by itself.
func (r *Reconciler) those(ctx context.Context, meant func(*v1alpha1.Replication) bool, in ...client.ListOption) []reconcile.Request {
	var all v1alpha1.ReplicationList
	if err := r.Watched.List(ctx, &all, append(in, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil
	}
	found := map[reconcile.Request]bool{}
	for i := range all.Items {
		if meant(&all.Items[i]) {
			found[reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])}] = true
		}
	}
	return slices.Collect(maps.Keys(found))
}
