// Package control is the conversation between the managers of two paired clusters: a gRPC service over mutual TLS in which a
// peer may observe and put plans, observe and prepare replications, push application snapshots, and say hello.
//
// The Server acts on its own cluster only, and only within what the ClusterPair of the caller allows; who the caller is
// comes from its certificate and from nothing it says. The Client keeps one connection per peer. Neither
// decides when to talk: heartbeats and controllers do. Begin with Peer, then server.go.
package control

import (
	"context"
	"iter"

	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Protocol is the version of the conversation that this software speaks, MinProtocol the oldest it still understands.
const (
	Protocol    int32 = 1
	MinProtocol int32 = 1
)

// Limits on a pushed application snapshot. A chunk fits in a Secret with room to spare.
const (
	MaxChunk        = 1 << 20
	MaxSnapshot     = 256 << 20
	maxMessage      = 4 << 20
	maxDigestLength = 256
)

// Peer is what one cluster can ask of another.
//
// Errors are of three kinds. *Unreachable: no answer came, so nothing is known of the peer's state, nor whether the call was
// carried out. *Refused: the peer (or this side's check of it) answered no, with a reason to branch on. Any other
// error is the peer's own failure; trying again may help.
type Peer interface {
	// Hello returns who answers.
	Hello(ctx context.Context) (Greeting, error)
	// ObservePlan returns the peer's copy of a plan.
	ObservePlan(ctx context.Context, key types.NamespacedName) (PlanView, error)
	// PutPlan makes the peer's copy follow spec. Primary and epoch are what this side holds to be in force.
	PutPlan(ctx context.Context, key types.NamespacedName, spec v1alpha1.DisasterRecoveryPlanSpec, epoch int64, primary string) error
	// ObserveReplication returns the peer's Replication; nil when it has none.
	ObserveReplication(ctx context.Context, key types.NamespacedName) (*v1alpha1.Replication, error)
	// PrepareReplication makes what the peer lacks to be a target. It may be asked any number of times.
	PrepareReplication(ctx context.Context, request PrepareRequest) (Prepared, error)
	// PushApplicationSnapshot hands a snapshot over, whole or not at all. An error from chunks ends the push.
	PushApplicationSnapshot(ctx context.Context, snapshot *v1alpha1.ApplicationSnapshot, chunks iter.Seq2[Chunk, error]) error
	// Nudge asks the peer to look at an object of lifeboat.dev/v1alpha1 now. A lost nudge only costs time.
	Nudge(ctx context.Context, kind string, key types.NamespacedName) error
}

// PlanView is a peer's copy of a plan.
type PlanView struct {
	// Plan is nil when the peer has no such plan.
	Plan        *v1alpha1.DisasterRecoveryPlan
	Application ApplicationState
}

// ApplicationState is what a cluster sees of an application's instances on itself.
type ApplicationState struct {
	// Known is false when the peer does not look; Pods means nothing then.
	Known bool
	// Pods of the application that have not ended.
	Pods int32
}

// PrepareRequest says what a target needs.
type PrepareRequest struct {
	// Key of the Replication, the same on both sides.
	Key types.NamespacedName
	// Spec for the target: role target, the epoch in force. The peer puts its own ClusterPair into every rlink.
	Spec v1alpha1.ReplicationSpec
	// Group is the spec of the PVCGroup that Spec.PVCGroupName names.
	Group v1alpha1.PVCGroupSpec
	// Claims are the members, with the names they have on the peer.
	Claims []Claim
}

// Claim is a PersistentVolumeClaim the target needs.
type Claim struct {
	Name string
	// SizeBytes is the exact size of the source's volume.
	SizeBytes int64
	// VolumeMode is Filesystem or Block.
	VolumeMode string
	// StorageClass is taken when the peer has a class of that name, else its default class is.
	StorageClass string
	AccessModes  []string
	Labels       map[string]string
	Annotations  map[string]string
}

// Prepared is where the preparation stands.
type Prepared struct {
	// Ready: every object exists and every claim is bound.
	Ready bool
	// Message tells what it waits for.
	Message string
}

// Chunk is a piece of an application snapshot's content.
type Chunk struct {
	Digest string
	Data   []byte
}

// SnapshotSink keeps application snapshots that a peer pushes.
type SnapshotSink interface {
	// Put stores a snapshot whole or not at all; it returns once the snapshot is durable, and a snapshot that is there
	// already with the same content is no error. It checks each chunk against its digest. Chunks come in the
	// order they were sent, once; an error in place of a chunk means that the rest will never come: nothing may be kept.
	Put(ctx context.Context, key types.NamespacedName, spec v1alpha1.ApplicationSnapshotSpec,
		status v1alpha1.ApplicationSnapshotStatus, chunks iter.Seq2[Chunk, error]) error
}
