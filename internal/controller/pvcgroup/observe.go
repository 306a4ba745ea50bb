package pvcgroup

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// seen is a group's claims as they were read, how they are cut, and what is wrong with them.
type seen struct {
	members []snapshot.Member
	way     snapshot.Way
	fault   *snapshot.Fault
	access  v1alpha1.VolumeAccess // empty when it cannot be told
}

func (r *Reconciler) observe(ctx context.Context, group *v1alpha1.PVCGroup) (seen, error) {
	members, err := snapshot.Members(ctx, r.Reader, group)
	var selector *snapshot.SelectorError
	switch {
	case errors.As(err, &selector):
		return seen{fault: &snapshot.Fault{Reason: snapshot.FaultSelector, Message: err.Error()}}, nil
	case err != nil:
		return seen{}, err
	}
	s := seen{members: members, fault: snapshot.Check(group, members, true)}
	s.access, _ = snapshot.Access(group, members) // its fault is one of Check's
	if s.way, err = snapshot.WayOf(ctx, r.Reader, group.Spec.CutPolicy, members); err != nil {
		return seen{}, err
	}
	if s.fault == nil {
		if s.fault, err = r.shared(ctx, group, members); err != nil {
			return seen{}, err
		}
	}
	if s.fault == nil && group.Spec.CutPolicy == v1alpha1.CutRequireAtomic && s.way.Cut == v1alpha1.CutNotAtomic {
		s.fault = &snapshot.Fault{Reason: s.way.Reason, Message: fmt.Sprintf("spec.cutPolicy is RequireAtomic, but %s", s.way.Message)}
	}
	return s, nil
}

// shared finds a claim that an older group of the namespace has too: that one keeps it.
func (r *Reconciler) shared(ctx context.Context, group *v1alpha1.PVCGroup, members []snapshot.Member) (*snapshot.Fault, error) {
	var all v1alpha1.PVCGroupList
	if err := r.Reader.List(ctx, &all, client.InNamespace(group.Namespace)); err != nil {
		return nil, fmt.Errorf("list PVCGroups of namespace %s: %w", group.Namespace, err)
	}
	for i := range all.Items {
		other := &all.Items[i]
		if other.Name == group.Name || !older(other, group) {
			continue
		}
		for _, m := range members {
			if snapshot.Covers(other, m) {
				return &snapshot.Fault{Reason: snapshot.FaultShared, Message: fmt.Sprintf("claim %s/%s is a member of PVCGroup %s already: take it out of one of the groups", group.Namespace, m.Name, other.Name)}, nil
			}
		}
	}
	return nil, nil
}

func older(a, b *v1alpha1.PVCGroup) bool {
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.Name < b.Name
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}
