// Package v1alpha1 holds Lifeboat's kinds: what users ask for and what Lifeboat shows them.
//
// It knows fields, defaults, validation and the names of conditions and reasons. It never holds logic
// and imports nothing else of Lifeboat. Begin with DisasterRecoveryPlan (the promise for one
// application), then Replication (one group of volumes kept in step), then ClusterPair (who may talk).
//
// +kubebuilder:object:generate=true
// +groupName=lifeboat.dev
package v1alpha1
