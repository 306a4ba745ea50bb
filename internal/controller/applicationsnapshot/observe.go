package applicationsnapshot

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
)

// seen is one look at a snapshot and what decides about it.
type seen struct {
	// snapshot is nil when it is gone.
	snapshot *v1alpha1.ApplicationSnapshot
	cluster  string
	// peers are the other clusters of its plan, most preferred first.
	peers []string
}

func (r *Reconciler) observe(ctx context.Context, key types.NamespacedName) (seen, error) {
	s := seen{cluster: r.Cluster}
	var snapshot v1alpha1.ApplicationSnapshot
	err := r.Reader.Get(ctx, key, &snapshot)
	if apierrors.IsNotFound(err) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read ApplicationSnapshot %s: %w", key, err)
	}
	s.snapshot = &snapshot
	if snapshot.Spec.PlanName == "" {
		return s, nil
	}
	var plan v1alpha1.DisasterRecoveryPlan
	err = r.Reader.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: snapshot.Spec.PlanName}, &plan)
	if apierrors.IsNotFound(err) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the plan %s of ApplicationSnapshot %s: %w", snapshot.Spec.PlanName, key, err)
	}
	s.peers = slices.DeleteFunc(slices.Clone(plan.Spec.PreferredClusterList), func(c string) bool { return c == r.Cluster })
	return s, nil
}

// replicatedClaims are the claims of the namespace that some Replication carries. Claims without labels to select by
// are found by name, selected ones in the group's status and by the selector itself: a claim may be newer than either.
func (r *Reconciler) replicatedClaims(ctx context.Context, namespace string) ([]string, error) {
	var replications v1alpha1.ReplicationList
	if err := r.Reader.List(ctx, &replications, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list the Replications of namespace %s: %w", namespace, err)
	}
	var names []string
	for _, replication := range replications.Items {
		claims, err := r.groupClaims(ctx, types.NamespacedName{Namespace: namespace, Name: replication.Spec.PVCGroupName})
		if err != nil {
			return nil, err
		}
		names = append(names, claims...)
	}
	return names, nil
}

func (r *Reconciler) groupClaims(ctx context.Context, key types.NamespacedName) ([]string, error) {
	var group v1alpha1.PVCGroup
	if err := r.Reader.Get(ctx, key, &group); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("read PVCGroup %s: %w", key, err)
	}
	var names []string
	for _, ref := range group.Spec.PVCList {
		names = append(names, ref.PVCName)
	}
	for _, member := range group.Status.Members {
		names = append(names, member.PVCName)
	}
	if group.Spec.Selector == nil {
		return names, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(group.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("PVCGroup %s: spec.selector: %w", key, err)
	}
	var claims corev1.PersistentVolumeClaimList
	if err := r.Reader.List(ctx, &claims, client.InNamespace(key.Namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, fmt.Errorf("list the claims of PVCGroup %s: %w", key, err)
	}
	for _, claim := range claims.Items {
		names = append(names, claim.Name)
	}
	return names, nil
}

// step is what to do with a snapshot.
type step string

const (
	// nothing: it is shown, or it failed, or it is on its way out.
	nothing step = "nothing"
	// capture: it is new here, or a capture was interrupted, of which only packs can be left.
	capture step = "capture"
	// push: it is complete and some peer may lack it.
	push step = "push"
)

// decide says what a look calls for. What came from a peer is never captured here: its name would then stand for
// another cluster's objects.
func decide(s seen) step {
	status := s.snapshot.Status
	switch {
	case s.snapshot.DeletionTimestamp != nil:
		return nothing
	case s.snapshot.Annotations[appmeta.AnnotationReceivedFrom] != "":
		return nothing
	case status.SourceCluster != "" && status.SourceCluster != s.cluster:
		return nothing
	case status.Phase == v1alpha1.SnapshotFailed:
		return nothing
	case status.Phase != v1alpha1.SnapshotCompleted:
		return capture
	case len(lacking(s)) > 0:
		return push
	}
	return nothing
}

// lacking are the peers that are not known to have the snapshot.
func lacking(s seen) []string {
	return slices.DeleteFunc(slices.Clone(s.peers), func(peer string) bool {
		return slices.ContainsFunc(s.snapshot.Status.Peers, func(p v1alpha1.PeerSync) bool { return p.Cluster == peer && p.Synced })
	})
}
