package v1alpha1

// Condition types. Every condition's reason is one of the Reason constants beside the code that sets it
// and its message is a sentence for the operator.
const (
	// ConditionConnected (ClusterPair): heartbeats are answered. Unknown before the first.
	ConditionConnected = "Connected"
	// ConditionReady: the object can do its work. A False one names what is missing and what to do.
	ConditionReady = "Ready"
	// ConditionReplicated (Replication): a recovery point exists on the target and the newest session succeeded.
	ConditionReplicated = "Replicated"
	// ConditionPromoted (Replication): the claims belong to the application; False while they hold a replica.
	ConditionPromoted = "Promoted"
	// ConditionScheduled (Replication with a schedule): the schedule can be read. False when sessions start on triggerNow only because
	// it cannot.
	ConditionScheduled = "Scheduled"
	// ConditionWithinObjective (Replication with a recoveryPointObjective): the newest recovery point is young enough.
	ConditionWithinObjective = "WithinObjective"
	// ConditionCutAtomic (PVCGroup, Replication): the members are cut at one instant. A False one says why they are not.
	ConditionCutAtomic = "CutAtomic"
	// ConditionQuiesced (Replication with Rules): the newest session's members were cut while its Rule held the application, which was let
	// go afterwards. A False one says what failed, and whether the application may still stand still.
	ConditionQuiesced = "Quiesced"
	// ConditionProtected (DisasterRecoveryPlan): every peer has a recovery point and an application snapshot.
	ConditionProtected = "Protected"
	// ConditionPeersReachable (DisasterRecoveryPlan): every other cluster of the plan answers.
	ConditionPeersReachable = "PeersReachable"
)
