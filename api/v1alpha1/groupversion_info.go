package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "lifeboat.dev", Version: "v1alpha1"}

var (
	// SchemeBuilder collects the kinds of this package.
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)
	// AddToScheme registers the kinds of this package with a scheme.
	AddToScheme = SchemeBuilder.AddToScheme
)

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&ClusterPair{}, &ClusterPairList{},
		&PVCGroup{}, &PVCGroupList{},
		&Replication{}, &ReplicationList{},
		&ApplicationSnapshot{}, &ApplicationSnapshotList{},
		&DisasterRecoveryPlan{}, &DisasterRecoveryPlanList{},
		&SchedulePolicy{}, &SchedulePolicyList{},
		&Rule{}, &RuleList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
