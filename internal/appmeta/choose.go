package appmeta

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// UnknownResource says that a request names a resource this cluster does not serve.
type UnknownResource struct {
	// Field of the ApplicationSnapshot, and what it holds.
	Field, Value string
	// Near are served resources of the same plural in other groups.
	Near []string
}

func (e *UnknownResource) Error() string {
	hint := "write the plural and its group, as in deployments.apps or configmaps"
	if len(e.Near) > 0 {
		hint = "did you mean " + strings.Join(e.Near, " or ") + "?"
	}
	return fmt.Sprintf("%s names %q, which this cluster does not serve in namespaces: %s", e.Field, e.Value, hint)
}

// chooseResources returns what of the served resources a request wants walked. Excludes win over includes. An
// include that nothing serves is refused: it would silently capture nothing. An exclude that nothing serves is fine.
func chooseResources(all []resource, include, exclude []string) ([]resource, error) {
	capturable := slices.DeleteFunc(slices.Clone(all), func(r resource) bool {
		return !r.namespaced || !r.preferred || !r.can("list", "get", "create")
	})
	for i, name := range include {
		if slices.ContainsFunc(capturable, func(r resource) bool { return named(r, name) }) {
			continue
		}
		unknown := &UnknownResource{Field: fmt.Sprintf("spec.includeResources[%d]", i), Value: name}
		for _, r := range capturable {
			if r.Resource == strings.ToLower(name) || strings.EqualFold(r.kind, name) {
				unknown.Near = append(unknown.Near, r.GroupResource().String())
			}
		}
		return nil, unknown
	}
	return slices.DeleteFunc(capturable, func(r resource) bool {
		is := func(name string) bool { return named(r, name) }
		return belongsToCluster(r.GroupResource()) || slices.ContainsFunc(exclude, is) || len(include) > 0 && !slices.ContainsFunc(include, is)
	}), nil
}

func named(r resource, name string) bool { return strings.EqualFold(r.GroupResource().String(), name) }

// sight is a namespace as it was read: what a choice may look at beside the object itself.
type sight struct {
	selector labels.Selector
	// uids of everything that was read, also of what is not chosen.
	uids map[types.UID]bool
	// replicated are the claims whose data a Replication carries. They are the application's, also where Lifeboat made
	// them to receive the data and labelled them as its own.
	replicated []string
	// selecting are the Services that have a selector, by name: the cluster makes their Endpoints.
	selecting map[string]bool
}

func see(selector labels.Selector, replicated []string, objects []*unstructured.Unstructured) sight {
	s := sight{selector: selector, replicated: replicated, uids: map[types.UID]bool{}, selecting: map[string]bool{}}
	for _, o := range objects {
		s.uids[o.GetUID()] = true
		if o.GroupVersionKind().GroupKind() != kindService {
			continue
		}
		if chosen, _, _ := unstructured.NestedMap(o.Object, "spec", "selector"); len(chosen) > 0 {
			s.selecting[o.GetName()] = true
		}
	}
	return s
}

// leave tells why an object is not carried to another cluster; empty means that it is.
func (s sight) leave(o *unstructured.Unstructured) string {
	kind := o.GroupVersionKind().GroupKind()
	switch {
	case o.GetDeletionTimestamp() != nil:
		return "it is being deleted"
	case s.lifeboats(o, kind):
		return "it is Lifeboat's own"
	case s.rebuilt(o, kind):
		return "its owner makes it again"
	case s.perCluster(o, kind):
		return "each cluster makes its own"
	case over(o, kind):
		return "it has run to its end, and would run again"
	case !s.selector.Matches(labels.Set(o.GetLabels())):
		return "the selector does not choose it"
	}
	return ""
}

// rebuilt reports whether the object's controller, itself part of this namespace, makes it again. Carried all the
// same are claims, whose data is the point, and Secrets of custom resources: an operator that generated a
// password cannot generate the same one again, and the data holds the old one.
func (s sight) rebuilt(o *unstructured.Unstructured, kind schema.GroupKind) bool {
	owner := metav1.GetControllerOf(o)
	if owner == nil {
		return false
	}
	group := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).Group
	switch kind {
	case kindPod:
		return true
	case kindClaim:
		// A generic ephemeral volume lives and dies with its pod.
		return group == "" && owner.Kind == kindPod.Kind
	case kindSecret:
		return builtIn(group) && s.uids[owner.UID]
	}
	return s.uids[owner.UID]
}

// lifeboats reports whether Lifeboat made the object for itself.
func (s sight) lifeboats(o *unstructured.Unstructured, kind schema.GroupKind) bool {
	if kind == kindClaim && slices.Contains(s.replicated, o.GetName()) {
		return false
	}
	return o.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat || ownedByLifeboat(o)
}

func ownedByLifeboat(o *unstructured.Unstructured) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
		return schema.FromAPIVersionAndKind(r.APIVersion, r.Kind).Group == v1alpha1.GroupVersion.Group
	})
}

// perCluster recognises what controllers put into every namespace by themselves.
func (s sight) perCluster(o *unstructured.Unstructured, kind schema.GroupKind) bool {
	name, annotations, marks := o.GetName(), o.GetAnnotations(), o.GetLabels()
	switch kind {
	case kindConfigMap:
		_, election := annotations["control-plane.alpha.kubernetes.io/leader"]
		return election || name == "kube-root-ca.crt" || name == "openshift-service-ca.crt" || name == "istio-ca-root-cert"
	case kindSecret:
		account := annotations["kubernetes.io/service-account.name"]
		return isTokenSecret(o) && (account == "default" || isGeneratedTokenName(account, name))
	case kindService:
		return name == "kubernetes" && o.GetNamespace() == metav1.NamespaceDefault
	case kindEndpoints:
		_, election := annotations["control-plane.alpha.kubernetes.io/leader"]
		return election || s.selecting[name] || marks["endpoints.kubernetes.io/managed-by"] != "" ||
			name == "kubernetes" && o.GetNamespace() == metav1.NamespaceDefault
	case kindEndpointSlice:
		by := marks["endpointslice.kubernetes.io/managed-by"]
		return strings.HasSuffix(by, ".k8s.io") || name == "kubernetes" && o.GetNamespace() == metav1.NamespaceDefault
	case kindPod:
		// The kubelet's own copy of a file on its node.
		_, mirror := annotations["kubernetes.io/config.mirror"]
		return mirror
	case kindResourceQuota:
		return name == "gke-resource-quotas"
	}
	return false
}

// over recognises Jobs and Pods that have ended.
func over(o *unstructured.Unstructured, kind schema.GroupKind) bool {
	switch kind {
	case kindPod:
		phase, _, _ := unstructured.NestedString(o.Object, "status", "phase")
		return phase == "Succeeded" || phase == "Failed"
	case kindJob:
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		return slices.ContainsFunc(conditions, func(c any) bool {
			condition, _ := c.(map[string]any)
			return condition["status"] == "True" && (condition["type"] == "Complete" || condition["type"] == "Failed")
		})
	}
	return false
}

// portableVolume reports whether a claim's volume can be the same volume on another cluster: somebody made it by
// hand, and it is not the disk of one node. What a provisioner made is made anew, or carried by a Replication.
func portableVolume(pv *unstructured.Unstructured) bool {
	_, provisioned := pv.GetAnnotations()["pv.kubernetes.io/provisioned-by"]
	return !provisioned && !onNode(pv) && pv.GetLabels()[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat
}

func onNode(pv *unstructured.Unstructured) bool {
	for _, source := range []string{"hostPath", "local"} {
		if _, found, _ := unstructured.NestedFieldNoCopy(pv.Object, "spec", source); found {
			return true
		}
	}
	return false
}
