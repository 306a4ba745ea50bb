package v1alpha1

// SystemNamespace is where Lifeboat's manager, gateway, identities and application snapshots live.
const SystemNamespace = "lifeboat-system"

// Labels and annotations. Every object Lifeboat makes carries LabelManagedBy with ManagedByLifeboat;
// purge and cleanup touch nothing without it.
// AnnotationSourceEpoch is the epoch that the source of a Replication brought when it prepared this side. It is that source's: a side
// that becomes the source itself takes another.
const AnnotationSourceEpoch = "lifeboat.dev/source-epoch"

const (
	LabelManagedBy    = "app.kubernetes.io/managed-by"
	ManagedByLifeboat = "lifeboat"

	// LabelReplication names the Replication that an object in the same namespace serves.
	LabelReplication = "lifeboat.dev/replication"
	// LabelRlink names the rlink of that Replication.
	LabelRlink = "lifeboat.dev/rlink"
	// LabelPoint is the id of the instant a snapshot, claim or Job belongs to.
	LabelPoint = "lifeboat.dev/point"
	// LabelComponent tells what a pod or Service is for: source-mover, receiver, manager, gateway.
	LabelComponent = "lifeboat.dev/component"
	// LabelCutPrefix begins the label that a group's claims bear while the storage cuts them at one instant: group snapshots
	// select claims by label. It goes once they are cut.
	LabelCutPrefix = "cut.lifeboat.dev/"
	// LabelPlan names the DisasterRecoveryPlan that an object serves.
	LabelPlan = "lifeboat.dev/plan"

	// AnnotationVolume names the user's claim that a snapshot, clone or replica claim stands for.
	AnnotationVolume = "lifeboat.dev/volume"
	// AnnotationCreatedFor names the Replication that a source asked a claim to be made for.
	AnnotationCreatedFor = "lifeboat.dev/created-for"
	// AnnotationSourceSizes on a target's Replication tells how large the source's volumes are, as it said last: a JSON object of
	// this side's claims and bytes. Claims grow to it.
	AnnotationSourceSizes = "lifeboat.dev/source-sizes"
	// AnnotationReplicas keeps the replica count of a workload that an operation scaled to zero.
	AnnotationReplicas = "lifeboat.dev/replicas"
	// AnnotationSuspended keeps the former spec.suspend of a CronJob that an operation suspended.
	AnnotationSuspended = "lifeboat.dev/suspended"
	// AnnotationRestoredFrom tells which recovery point a claim was made from: "<replication>@<point>".
	AnnotationRestoredFrom = "lifeboat.dev/restored-from"
	// AnnotationRestoredBy tells which operation restored an object: "<plan namespace>/<plan>@<operation id>".
	AnnotationRestoredBy = "lifeboat.dev/restored-by"
)

// Values of LabelComponent.
const (
	ComponentSourceMover = "source-mover"
	ComponentReceiver    = "receiver"
	ComponentManager     = "manager"
	ComponentGateway     = "gateway"
)
