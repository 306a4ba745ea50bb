package pvcgroup

import (
	"context"
	"errors"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// seen is a group's claims as they were read, and what is wrong with them.
type seen struct {
	members []snapshot.Member
	fault   *snapshot.Fault
	access  v1alpha1.VolumeAccess // empty when it cannot be told
}

func (r *Reconciler) observe(ctx context.Context, group *v1alpha1.PVCGroup) (seen, error) {
	members, err := snapshot.Members(ctx, r.Live, group)
	var selector *snapshot.SelectorError
	switch {
	case errors.As(err, &selector):
		return seen{fault: &snapshot.Fault{Reason: snapshot.FaultSelector, Message: err.Error()}}, nil
	case err != nil:
		return seen{}, err
	}
	access, _ := snapshot.Access(group, members) // its fault is one of Check's
	return seen{members: members, fault: snapshot.Check(group, members, true), access: access}, nil
}
