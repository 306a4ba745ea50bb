package replication

import (
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// Values of v1alpha1.LabelComponent for claims; those of pods and Services are in the API.
const (
	componentClone   = "clone"
	componentReplica = "replica"
	componentSpool   = "spool"
	// componentRollback is of claims, Job and pods of a rollback.
	componentRollback = "rollback"
)

const (
	// finalizer keeps a Replication until what it made is gone.
	finalizer = "lifeboat.dev/replication"
	// annotationUsed marks such a claim once a replica was begun on it: from then on it may hold anything.
	annotationUsed = "lifeboat.dev/used"
	// annotationHolds tells what the volumes held when a spool was made: "nothing" or "data".
	annotationHolds = "lifeboat.dev/replica-holds"
	// annotationKept names, on a receiver, the point that a delta may be written over that its spool cannot hold.
	annotationKept = "lifeboat.dev/kept-elsewhere"
	// annotationSealed marks a spool that holds nothing the replica does not.
	annotationSealed = "lifeboat.dev/sealed"
	// labelConfig is the digest of the configuration a receiver runs with.
	labelConfig = "lifeboat.dev/config"
)

// names of everything that serves one link of one Replication.
type names struct {
	namespace, replication, rlink string
}

// job of a session, and its ConfigMap. A ConfigMap per point: a kubelet may mount the content of a moment ago, and
// that must not be another point's.
func (n names) job(point string) string { return snapshot.Name("lb", n.replication, n.rlink, point) }

// rollback is the Job of a rollback, and its ConfigMap.
func (n names) rollback(point string) string {
	return snapshot.Name("lb", n.replication, n.rlink, "rollback", point)
}

func (n names) rollbackClaim(point string, index int) string {
	return snapshot.Name("lb", n.replication, "rollback", point, strconv.Itoa(index))
}

// mover is the Secret with the source mover's identity, and the account whose tokens it shows to drivers' services.
func (n names) mover() string { return snapshot.Name("lb", n.replication, n.rlink, "mover") }

// receiver is the Deployment, Service and identity Secret of the target.
func (n names) receiver() string { return snapshot.Name("lb", n.replication, n.rlink, "receiver") }

// receiverConfig is the ConfigMap of a receiver, one per content for the same reason as job's.
func (n names) receiverConfig(digest string) string {
	return snapshot.Name("lb", n.replication, n.rlink, "receiver", digest)
}

func (n names) spool() string { return snapshot.Name("lb", n.replication, "spool") }

func (n names) replicaClaim(claim string) string { return snapshot.Name("lb", claim, "replica") }

func (n names) replicaVolume(claim string) string {
	return snapshot.Name("lb", n.namespace, n.replication, claim, "replica")
}

// labels of what serves the link; component may be empty.
func (n names) labels(component string) map[string]string {
	labels := map[string]string{
		v1alpha1.LabelManagedBy:   v1alpha1.ManagedByLifeboat,
		v1alpha1.LabelReplication: n.replication,
		v1alpha1.LabelRlink:       n.rlink,
		"app":                     n.replication + n.rlink,
	}
	if component != "" {
		labels[v1alpha1.LabelComponent] = component
	}
	return labels
}

// with adds a label to a copy.
func with(labels map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range labels {
		out[k] = v
	}
	return out
}

// ownedBy makes an object go with its Replication, should the finalizer ever be taken off by hand.
func ownedBy(rep *v1alpha1.Replication) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Replication", Name: rep.Name, UID: rep.UID}
}
