package replication

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// sizesHere are the members' sizes, for the status. A volume that is not there has none.
func sizesHere(v *view) []v1alpha1.ClaimSize {
	var out []v1alpha1.ClaimSize
	for _, m := range v.members {
		if size := m.Size(); size > 0 {
			out = append(out, v1alpha1.ClaimSize{Claim: m.Name, Bytes: size})
		}
	}
	return out
}

// sizesThere are the members that have another size on the peer. What either side does not know differs from nothing.
func sizesThere(v *view, there *v1alpha1.Replication) []cycle.Sizes {
	known := map[string]int64{}
	for _, s := range there.Status.Sizes {
		known[s.Claim] = s.Bytes
	}
	var out []cycle.Sizes
	for _, m := range v.members {
		name := v.peerName(m.Name)
		if here, there := m.Size(), known[name]; here > 0 && there > 0 && here != there {
			out = append(out, cycle.Sizes{Claim: m.Name, PeerClaim: name, Here: here, There: there})
		}
	}
	return out
}

// sourceSizes are what the source last said, by this side's claims. An annotation that somebody has broken says nothing.
func sourceSizes(rep *v1alpha1.Replication) map[string]int64 {
	sizes := map[string]int64{}
	if json.Unmarshal([]byte(rep.Annotations[v1alpha1.AnnotationSourceSizes]), &sizes) != nil {
		return nil
	}
	return sizes
}

// observeGrowth finds the claims that are smaller than their source's, and what no longer fits the volumes. Only then are the
// source and the volumes' nodes asked.
func (r *Reconciler) observeGrowth(ctx context.Context, v *view, s *cycle.Target) error {
	wanted := sourceSizes(v.rep)
	for _, m := range v.members {
		size := m.Size()
		if size == 0 || wanted[m.Name] <= size {
			continue
		}
		g := cycle.Growth{Claim: m.Name, From: size, To: wanted[m.Name], Asked: m.Requested() >= wanted[m.Name]}
		var err error
		switch {
		case g.Asked:
			g.Trouble = r.claimTrouble(ctx, m.Claim, "its driver "+m.Driver()+" has not grown it yet")
		default:
			g.Cannot, err = r.cannotGrow(ctx, v, m, g)
		}
		if err != nil {
			return err
		}
		s.Growth = append(s.Growth, g)
	}
	s.Misfit = misfit(v)
	if len(s.Growth) == 0 && s.Misfit == "" {
		return nil
	}
	peer := r.observePeer(ctx, v)
	s.SourceQuiet, s.SourceTrouble = peer.Asked && peer.Quiet, peer.Trouble
	var err error
	s.Attached, err = r.attached(ctx, v)
	return err
}

// cannotGrow tells why a claim will not grow, as the API server would; empty when it can.
func (r *Reconciler) cannotGrow(ctx context.Context, v *view, m snapshot.Member, g cycle.Growth) (string, error) {
	claim := fmt.Sprintf("claim %s/%s has to grow from %s to %s, as its source has", v.rep.Namespace, m.Name, quantity(g.From), quantity(g.To))
	name := m.StorageClass()
	if name == "" {
		return claim + ", and has no storage class that would let it: delete the claim, and it is made anew with the right size", nil
	}
	class, err := lookFor(ctx, r.Live, client.ObjectKey{Name: name}, &storagev1.StorageClass{})
	switch {
	case err != nil:
		return "", err
	case class == nil:
		return fmt.Sprintf("%s, and its storage class %s does not exist: create it with allowVolumeExpansion", claim, name), nil
	case class.AllowVolumeExpansion == nil || !*class.AllowVolumeExpansion:
		return fmt.Sprintf("%s, but storage class %s of driver %s does not allow it: set allowVolumeExpansion to true there if the driver can; otherwise delete the claim, and it is made anew with the right size",
			claim, name, m.Driver()), nil
	}
	return "", nil
}

func quantity(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }

// misfit tells what of the replica was made for smaller volumes; empty when all of it fits.
func misfit(v *view) string {
	for _, m := range v.members {
		volume := v.replica.volumes[m.Name]
		if volume == nil || m.Volume == nil || !volume.DeletionTimestamp.IsZero() {
			continue
		}
		made, has := volume.Spec.Capacity[corev1.ResourceStorage], m.Volume.Spec.Capacity[corev1.ResourceStorage]
		if made.Cmp(has) != 0 {
			return fmt.Sprintf("claim %s has grown from %s to %s; the replica is set up anew around it", m.Name, made.String(), has.String())
		}
	}
	spool := v.claim(v.names.spool())
	if spool == nil || len(v.members) == 0 || !spool.DeletionTimestamp.IsZero() {
		return ""
	}
	has, wanted := spool.Spec.Resources.Requests[corev1.ResourceStorage], spoolSize(v)
	if has.Cmp(wanted) < 0 {
		return fmt.Sprintf("the spool has %s and must hold %s; it is made anew", has.String(), wanted.String())
	}
	return ""
}

// growClaims asks for the source's sizes. The driver grows the volumes in its own time; their file systems arrive with the blocks.
func (r *Reconciler) growClaims(ctx context.Context, v *view) error {
	for _, g := range v.target.Growth {
		m := v.member(g.Claim)
		if g.Asked || m == nil {
			continue
		}
		patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"resources":{"requests":{"storage":%q}}}}`, quantity(g.To)))
		if err := r.Client.Patch(ctx, m.Claim, patch); err != nil {
			return fmt.Errorf("grow claim %s/%s to %s: %w", v.rep.Namespace, g.Claim, quantity(g.To), err)
		}
	}
	return nil
}
