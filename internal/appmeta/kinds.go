package appmeta

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Group-kinds that are treated by name somewhere in this package.
var (
	kindNamespace             = schema.GroupKind{Kind: "Namespace"}
	kindServiceAccount        = schema.GroupKind{Kind: "ServiceAccount"}
	kindSecret                = schema.GroupKind{Kind: "Secret"}
	kindConfigMap             = schema.GroupKind{Kind: "ConfigMap"}
	kindService               = schema.GroupKind{Kind: "Service"}
	kindEndpoints             = schema.GroupKind{Kind: "Endpoints"}
	kindPod                   = schema.GroupKind{Kind: "Pod"}
	kindClaim                 = schema.GroupKind{Kind: "PersistentVolumeClaim"}
	kindVolume                = schema.GroupKind{Kind: "PersistentVolume"}
	kindReplicationController = schema.GroupKind{Kind: "ReplicationController"}
	kindResourceQuota         = schema.GroupKind{Kind: "ResourceQuota"}
	kindLimitRange            = schema.GroupKind{Kind: "LimitRange"}
	kindDeployment            = schema.GroupKind{Group: "apps", Kind: "Deployment"}
	kindStatefulSet           = schema.GroupKind{Group: "apps", Kind: "StatefulSet"}
	kindReplicaSet            = schema.GroupKind{Group: "apps", Kind: "ReplicaSet"}
	kindDaemonSet             = schema.GroupKind{Group: "apps", Kind: "DaemonSet"}
	kindJob                   = schema.GroupKind{Group: "batch", Kind: "Job"}
	kindCronJob               = schema.GroupKind{Group: "batch", Kind: "CronJob"}
	kindAutoscaler            = schema.GroupKind{Group: "autoscaling", Kind: "HorizontalPodAutoscaler"}
	kindDisruptionBudget      = schema.GroupKind{Group: "policy", Kind: "PodDisruptionBudget"}
	kindIngress               = schema.GroupKind{Group: "networking.k8s.io", Kind: "Ingress"}
	kindNetworkPolicy         = schema.GroupKind{Group: "networking.k8s.io", Kind: "NetworkPolicy"}
	kindEndpointSlice         = schema.GroupKind{Group: "discovery.k8s.io", Kind: "EndpointSlice"}
	kindRole                  = schema.GroupKind{Group: "rbac.authorization.k8s.io", Kind: "Role"}
	kindRoleBinding           = schema.GroupKind{Group: "rbac.authorization.k8s.io", Kind: "RoleBinding"}
)

// clusterOwned are resources, as "plural.group", whose objects describe one cluster and mean nothing, or
// something false, on another. Resources of whole groups are in clusterOwnedGroups.
var clusterOwned = []string{
	"events",
	"events.events.k8s.io",
	"leases.coordination.k8s.io",
	"controllerrevisions.apps",
	"csistoragecapacities.storage.k8s.io",
	"podcertificaterequests.certificates.k8s.io",
}

// clusterOwnedGroups: Lifeboat's own kinds, which reach the peer by their own ways, and snapshots, which are
// instants of this cluster's storage: made again elsewhere they would show another instant under the same name.
var clusterOwnedGroups = []string{
	v1alpha1.GroupVersion.Group,
	"snapshot.storage.k8s.io",
	"groupsnapshot.storage.k8s.io",
	"cbt.storage.k8s.io",
	"metrics.k8s.io",
}

func belongsToCluster(r schema.GroupResource) bool {
	return slices.Contains(clusterOwnedGroups, r.Group) || slices.Contains(clusterOwned, r.String())
}

// waves is the order of a restore: an object is applied after everything its creation or its first start
// looks at. Kinds in no wave (custom resources, among others) come in waveOther, before the workloads, because
// their operators answer for what they need and workloads may wait for what operators make.
var waves = [][]schema.GroupKind{
	{kindNamespace},
	{kindServiceAccount, kindRole, kindNetworkPolicy, kindResourceQuota, kindLimitRange},
	{kindRoleBinding, kindSecret, kindConfigMap},
	// A volume before its claim: a claim that finds none gets a new, empty one from the provisioner.
	{kindVolume},
	{kindClaim},
	{kindService, kindEndpoints, kindEndpointSlice},
	{ /* waveOther */ },
	{kindReplicationController, kindReplicaSet, kindDeployment, kindStatefulSet, kindDaemonSet, kindJob, kindPod},
	{kindAutoscaler, kindDisruptionBudget, kindIngress, kindCronJob},
}

const waveOther = 6

// wave is the index of a kind's wave.
func wave(kind schema.GroupKind) int {
	for i, kinds := range waves {
		if slices.Contains(kinds, kind) {
			return i
		}
	}
	return waveOther
}

// builtIn reports whether a group is the API server's own: its controllers run in every cluster.
func builtIn(group string) bool {
	return group == "" || !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io") && !strings.HasSuffix(group, ".x-k8s.io")
}
