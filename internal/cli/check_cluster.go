package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// checkCluster looks at what a cluster must have: Lifeboat's pods, the snapshot kinds, and for every driver in use a class of snapshots.
func checkCluster(ctx context.Context, s checked) []finding {
	var out []finding
	say := func(name, about string, outcome v1alpha1.CheckOutcome, format string, args ...any) {
		out = append(out, finding{Cluster: s.name, Name: name, About: about, Outcome: outcome, Message: fmt.Sprintf(format, args...)})
	}
	for _, name := range []string{"lifeboat-manager", gatewayService} {
		var d appsv1.Deployment
		err := s.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &d)
		switch {
		case err != nil:
			say("installed", name, v1alpha1.CheckFailed, "%v: run lifeboat install", err)
		case d.Status.ReadyReplicas == 0:
			say("installed", name, v1alpha1.CheckFailed, "none of its pods is ready: see kubectl -n %s describe pods -l lifeboat.dev/component", v1alpha1.SystemNamespace)
		default:
			say("installed", name, v1alpha1.CheckPassed, "%d pod ready", d.Status.ReadyReplicas)
		}
	}
	var classes snapshotv1.VolumeSnapshotClassList
	if err := s.client.List(ctx, &classes); err != nil {
		if meta.IsNoMatchError(err) {
			say("storage", "snapshot kinds", v1alpha1.CheckFailed, "this cluster does not know VolumeSnapshots: install the snapshot kinds and their controller (kubernetes-csi/external-snapshotter)")
			return out
		}
		say("storage", "snapshot kinds", v1alpha1.CheckFailed, "VolumeSnapshotClasses cannot be read: %v", err)
		return out
	}
	say("storage", "snapshot kinds", v1alpha1.CheckPassed, "are served")
	drivers, err := driversInUse(ctx, s.client)
	if err != nil {
		say("storage", "drivers", v1alpha1.CheckFailed, "%v", err)
		return out
	}
	for _, driver := range slices.Sorted(maps.Keys(drivers)) {
		class := snapshot.ClassFor(classes.Items, driver)
		var registered storagev1.CSIDriver
		switch err := s.client.Get(ctx, client.ObjectKey{Name: driver}, &registered); {
		case err != nil:
			say("storage", driver, v1alpha1.CheckFailed, "used by %s, but not a CSI driver of this cluster (%v): only CSI drivers take snapshots", drivers[driver], err)
		case class == "":
			say("storage", driver, v1alpha1.CheckFailed, "used by %s, but no VolumeSnapshotClass has it as driver: create one", drivers[driver])
		default:
			say("storage", driver, v1alpha1.CheckPassed, "used by %s, takes snapshots with class %s", drivers[driver], class)
		}
	}
	return out
}

// driversInUse are the drivers of claims that are replicated, and while there are none those of all storage classes, each with who uses it.
func driversInUse(ctx context.Context, c client.Client) (map[string]string, error) {
	out := map[string]string{}
	var replications v1alpha1.ReplicationList
	if err := c.List(ctx, &replications); err != nil {
		return nil, fmt.Errorf("the Replications cannot be read: %w", err)
	}
	for _, r := range replications.Items {
		members, err := membersOf(ctx, c, &r)
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			if m.Driver() != "" {
				out[m.Driver()] = "claim " + r.Namespace + "/" + m.Name
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	var classes storagev1.StorageClassList
	if err := c.List(ctx, &classes); err != nil {
		return nil, fmt.Errorf("the storage classes cannot be read: %w", err)
	}
	for _, class := range classes.Items {
		out[class.Provisioner] = "storage class " + class.Name
	}
	return out, nil
}

// membersOf are the claims of a Replication's group; none when there is no group.
func membersOf(ctx context.Context, c client.Client, r *v1alpha1.Replication) ([]snapshot.Member, error) {
	var group v1alpha1.PVCGroup
	err := c.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: r.Spec.PVCGroupName}, &group)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("PVCGroup %s/%s cannot be read: %w", r.Namespace, r.Spec.PVCGroupName, err)
	}
	if err != nil {
		return nil, nil
	}
	return snapshot.Members(ctx, c, &group)
}

// half is one side of a replication, as it is compared.
type half struct {
	cluster string
	role    v1alpha1.Role
	// sizes of the members by name; 0: not known yet.
	sizes map[string]int64
	// there is what each member is called on the other side.
	there map[string]string
}

// checkReplications compares both sides of every replication between the two clusters.
func checkReplications(ctx context.Context, sides [2]checked) []finding {
	var out []finding
	done := map[client.ObjectKey]bool{}
	for i, s := range sides {
		peer := sides[1-i]
		say := func(about string, outcome v1alpha1.CheckOutcome, message string) {
			out = append(out, finding{Cluster: s.name, Peer: peer.name, Name: "claims", About: about, Outcome: outcome, Message: message})
		}
		var all v1alpha1.ReplicationList
		if err := s.client.List(ctx, &all); err != nil {
			say("", v1alpha1.CheckFailed, fmt.Sprintf("the Replications cannot be read: %v", err))
			continue
		}
		for _, r := range all.Items {
			key := client.ObjectKeyFromObject(&r)
			here, err := halfOf(ctx, s, &r, peer.name)
			if err == nil && here == nil || done[key] {
				continue // of another pair, or compared already
			}
			done[key] = true
			var other v1alpha1.Replication
			there := (*half)(nil)
			if err == nil {
				if err = peer.client.Get(ctx, key, &other); err == nil {
					there, err = halfOf(ctx, peer, &other, s.name)
				}
			}
			switch {
			case client.IgnoreNotFound(err) != nil:
				say(key.String(), v1alpha1.CheckFailed, err.Error())
			case err != nil:
				say(key.String(), v1alpha1.CheckFailed, fmt.Sprintf("there is no Replication of this name on cluster %s: create it, or set peerObjects to Create on the source", peer.name))
			case there == nil:
				say(key.String(), v1alpha1.CheckFailed, fmt.Sprintf("the Replication on cluster %s has no link to cluster %s: add one to its spec.rlinks", peer.name, s.name))
			default:
				if difference := firstDifference(*here, *there); difference != "" {
					say(key.String(), v1alpha1.CheckFailed, difference)
					continue
				}
				say(key.String(), v1alpha1.CheckPassed, fmt.Sprintf("%d claims fit: names, map and sizes", len(here.sizes)))
			}
		}
	}
	return out
}

// halfOf reads one side; nil when the Replication has no link to that peer.
func halfOf(ctx context.Context, s checked, r *v1alpha1.Replication, peer string) (*half, error) {
	for _, link := range r.Spec.Rlinks {
		var pair v1alpha1.ClusterPair
		if err := s.client.Get(ctx, client.ObjectKey{Name: link.ClusterPair}, &pair); err != nil || pair.Spec.PeerCluster != peer {
			continue
		}
		members, err := membersOf(ctx, s.client, r)
		if err != nil {
			return nil, err
		}
		h := &half{cluster: s.name, role: r.Spec.Role, sizes: map[string]int64{}, there: map[string]string{}}
		for _, m := range members {
			h.sizes[m.Name], h.there[m.Name] = sizeOf(m), m.Name
		}
		// Also entries that name no member: they are what is wrong.
		maps.Copy(h.there, link.PVCMap)
		return h, nil
	}
	return nil, nil
}

// sizeOf is the volume's size, or what is asked for as long as there is no volume; 0 without a claim.
func sizeOf(m snapshot.Member) int64 {
	if m.Bound() || m.Claim == nil {
		return m.Size()
	}
	request := m.Claim.Spec.Resources.Requests[corev1.ResourceStorage]
	return request.Value()
}

// firstDifference names the first pair of claims, in the order of here's names, that does not fit; empty when all do.
func firstDifference(here, there half) string {
	if here.role == there.role {
		return fmt.Sprintf("both sides have role %s: one must be source and the other target", here.role)
	}
	for _, name := range slices.Sorted(maps.Keys(here.there)) {
		other := here.there[name]
		size, member := here.sizes[name]
		back, mapped := there.there[other]
		otherSize, otherMember := there.sizes[other]
		switch {
		case !member:
			return fmt.Sprintf("%s (cluster %s) -> %s: pvcMap names %s, which is no member of the group on cluster %s: each entry is \"local claim: the peer's claim\"", name, here.cluster, other, name, here.cluster)
		case !otherMember:
			return fmt.Sprintf("%s (cluster %s) -> %s: cluster %s has no member %s in its group: correct pvcMap or the group", name, here.cluster, other, there.cluster, other)
		case !mapped || back != name:
			return fmt.Sprintf("%s (cluster %s) -> %s, but there %s -> %s: the two pvcMaps must be each other's inverse", name, here.cluster, other, other, back)
		case size != otherSize:
			return fmt.Sprintf("%s (cluster %s) has %s, %s (cluster %s) has %s: both must have exactly the same size", name, here.cluster, bytesOf(size), other, there.cluster, bytesOf(otherSize))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there.there)) {
		if _, ok := here.there[there.there[name]]; !ok {
			return fmt.Sprintf("%s (cluster %s) -> %s: cluster %s has no such member in its group: correct pvcMap or the group", name, there.cluster, there.there[name], here.cluster)
		}
	}
	return ""
}

func bytesOf(n int64) string {
	return fmt.Sprintf("%s (%d bytes)", resource.NewQuantity(n, resource.BinarySI), n)
}
