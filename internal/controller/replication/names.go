package replication

import (
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// Values of v1alpha1.LabelComponent for claims; those of pods and Services are in the API.
const (
	componentClone   = "clone"
	componentReplica = "replica"
	componentSpool   = "spool"
	// componentEndpoint is of the Service that localEndpoint asks for, componentBinder of the pod that binds claims.
	componentEndpoint = "endpoint"
	componentBinder   = "binder"
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
	// annotationAddress of a Job is where its mover was told to dial.
	annotationAddress = "lifeboat.dev/address"
)

// names of everything that serves one link of one Replication. No two links share one, nor do two Replications.
type names struct {
	namespace, replication, rlink string
}

// ofLink names what serves the link. A Replication's name may hold dashes: where the link's does too, nobody could tell "a" and "b-c"
// from "a-b" and "c", so such a name ends with a hash of the two.
func (n names) ofLink(what ...string) string {
	parts := append([]string{"lb", n.replication, n.rlink}, what...)
	if strings.Contains(n.rlink, "-") {
		parts = append(parts, apart(n.replication, n.rlink))
	}
	return snapshot.Name(parts...)
}

// apart tells names from others that look the same once they are joined with dashes. None of them holds a slash.
func apart(names ...string) string {
	return snapshot.Digest([]byte(strings.Join(names, "/")))
}

// job of a session, and its ConfigMap. A ConfigMap per point: a kubelet may mount the content of a moment ago, and
// that must not be another point's.
func (n names) job(point string) string { return n.ofLink(point) }

// rollback is the Job of a rollback, and its ConfigMap.
func (n names) rollback(point string) string {
	return n.ofLink("rollback", point)
}

func (n names) rollbackClaim(point string, index int) string {
	return snapshot.Name("lb", n.replication, "rollback", point, strconv.Itoa(index))
}

// mover is the Secret with the source mover's identity, and the account whose tokens it shows to drivers' services.
func (n names) mover() string { return n.ofLink("mover") }

// receiver is the Deployment, Service and identity Secret of the target.
func (n names) receiver() string { return n.ofLink("receiver") }

// receiverConfig is the ConfigMap of a receiver, one per content for the same reason as job's.
func (n names) receiverConfig(digest string) string {
	return n.ofLink("receiver", digest)
}

// endpoint is the Service of localEndpoint when it names none.
func (n names) endpoint() string { return n.ofLink("endpoint") }

// binder is the pod that binds claims which wait for one.
func (n names) binder() string { return n.ofLink("binder") }

func (n names) spool() string { return snapshot.Name("lb", n.replication, "spool") }

func (n names) replicaClaim(claim string) string { return snapshot.Name("lb", claim, "replica") }

// replicaVolume is among those of all namespaces.
func (n names) replicaVolume(claim string) string {
	parts := []string{"lb", n.namespace, n.replication, claim, "replica"}
	if strings.Contains(n.namespace+n.replication, "-") {
		parts = append(parts, apart(n.namespace, n.replication, claim))
	}
	return snapshot.Name(parts...)
}

// app is the label that users' Services select a receiver by. It is what they were promised, the two names without anything between them, so
// others may come to the same: see labelled.
func (n names) app() string { return n.replication + n.rlink }

// labels of what serves the link; component may be empty.
func (n names) labels(component string) map[string]string {
	labels := map[string]string{
		v1alpha1.LabelManagedBy:   v1alpha1.ManagedByLifeboat,
		v1alpha1.LabelReplication: n.replication,
		v1alpha1.LabelRlink:       n.rlink,
		labelApp:                  n.app(),
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
