package appmeta

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/hook"
)

// clusterAnnotations are written by a cluster's own controllers about itself; one that ends in '/' is a prefix.
var clusterAnnotations = []string{
	"control-plane.alpha.kubernetes.io/leader",
	"deployment.kubernetes.io/revision",
	"deprecated.daemonset.template.generation",
	"endpoints.kubernetes.io/last-change-trigger-time",
	"kubernetes.io/service-account.uid",
	"openshift.io/sa.scc.mcs",
	"openshift.io/sa.scc.supplemental-groups",
	"openshift.io/sa.scc.uid-range",
	"pv.kubernetes.io/",
	"volume.beta.kubernetes.io/storage-provisioner",
	"volume.kubernetes.io/selected-node",
	"volume.kubernetes.io/storage-provisioner",
	"volume.kubernetes.io/storage-resizer",
	v1alpha1.AnnotationReplicas,
	v1alpha1.AnnotationSuspended,
	v1alpha1.AnnotationRestoredBy,
}

// controllerUIDLabels tie a Job's pods to its uid; the API server makes them again.
var controllerUIDLabels = []string{"controller-uid", "batch.kubernetes.io/controller-uid"}

// Sanitise returns what of an object any cluster can take: its identity, labels, annotations and wishes,
// without what one cluster gave it. A workload that an operation took offline comes back with the count it
// had before. The object itself is not changed.
//
// What is taken off, by kind: docs of Capturer. Golden examples: testdata/sanitise.
func Sanitise(o *unstructured.Unstructured) *unstructured.Unstructured {
	clean := o.DeepCopy()
	kind := o.GroupVersionKind().GroupKind()
	// Before the annotations go: they hold the counts.
	hook.Undo(clean)
	switch kind {
	case kindNamespace:
		sanitiseNamespace(clean)
	case kindService:
		sanitiseService(o, clean)
	case kindClaim:
		removeFields(clean, "spec.volumeName", "spec.dataSource", "spec.dataSourceRef")
	case kindVolume:
		// Kept by name and namespace: with the uid the volume binds to no claim of another cluster, without
		// the reference any claim may take it.
		removeFields(clean, "spec.claimRef.uid", "spec.claimRef.resourceVersion", "spec.claimRef.fieldPath")
	case kindPod:
		sanitisePod(clean)
	case kindJob:
		sanitiseJob(clean)
	case kindServiceAccount:
		sanitiseServiceAccount(clean)
	case kindSecret:
		if isTokenSecret(clean) {
			removeFields(clean, "data")
		}
	}
	sanitiseMeta(clean)
	delete(clean.Object, "status")
	return clean
}

// sanitiseMeta keeps of metadata only what a user writes. Finalizers are their controllers' to add again: one
// without a controller would make the object impossible to delete.
func sanitiseMeta(o *unstructured.Unstructured) {
	name, namespace, labels, annotations := o.GetName(), o.GetNamespace(), o.GetLabels(), o.GetAnnotations()
	for key := range annotations {
		if isClusterAnnotation(key) {
			delete(annotations, key)
		}
	}
	// On the namespace and the claims that Lifeboat made to receive an application.
	if labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat {
		delete(labels, v1alpha1.LabelManagedBy)
	}
	o.Object["metadata"] = map[string]any{"name": name}
	if namespace != "" {
		o.SetNamespace(namespace)
	}
	if len(labels) > 0 {
		o.SetLabels(labels)
	}
	if len(annotations) > 0 {
		o.SetAnnotations(annotations)
	}
}

func isClusterAnnotation(key string) bool {
	for _, known := range clusterAnnotations {
		if key == known || strings.HasSuffix(known, "/") && strings.HasPrefix(key, known) {
			return true
		}
	}
	return false
}

// sanitiseNamespace leaves nothing but labels and annotations.
func sanitiseNamespace(o *unstructured.Unstructured) {
	labels := o.GetLabels()
	delete(labels, "kubernetes.io/metadata.name")
	o.SetLabels(labels)
	delete(o.Object, "spec")
}

// sanitiseService takes off addresses and ports that the cluster handed out, and keeps those a user wrote:
// the API server notes in managedFields who set a field, and what it allocated itself has no owner there.
func sanitiseService(seen, o *unstructured.Unstructured) {
	if ip, _, _ := unstructured.NestedString(o.Object, "spec", "clusterIP"); ip != "None" {
		removeFields(o, "spec.clusterIP", "spec.clusterIPs")
	}
	removeFields(o, "spec.loadBalancerIP")
	written := writtenFields(seen)
	for _, field := range []string{"healthCheckNodePort", "ipFamilies", "ipFamilyPolicy"} {
		if !written.has("f:spec", "f:"+field) {
			removeFields(o, "spec."+field)
		}
	}
	ports, _, _ := unstructured.NestedSlice(o.Object, "spec", "ports")
	for _, p := range ports {
		port, ok := p.(map[string]any)
		if ok && !written.hasNodePort(port) {
			delete(port, "nodePort")
		}
	}
	if len(ports) > 0 {
		_ = unstructured.SetNestedSlice(o.Object, ports, "spec", "ports")
	}
}

// sanitisePod takes off the node and what admission computes again; a computed value that does not fit the
// other cluster's classes would be refused there.
func sanitisePod(o *unstructured.Unstructured) {
	removeFields(o, "spec.nodeName", "spec.priority", "spec.preemptionPolicy", "spec.ephemeralContainers")
	volumes, _, _ := unstructured.NestedSlice(o.Object, "spec", "volumes")
	volumes = without(volumes, isTokenVolume)
	setOrRemove(o, volumes, "spec", "volumes")
	for _, list := range []string{"containers", "initContainers"} {
		containers, found, _ := unstructured.NestedSlice(o.Object, "spec", list)
		if !found {
			continue
		}
		for _, c := range containers {
			container, ok := c.(map[string]any)
			if !ok {
				continue
			}
			mounts, _, _ := unstructured.NestedSlice(container, "volumeMounts")
			mounts = without(mounts, isTokenVolume)
			if len(mounts) == 0 {
				delete(container, "volumeMounts")
				continue
			}
			container["volumeMounts"] = mounts
		}
		_ = unstructured.SetNestedSlice(o.Object, containers, "spec", list)
	}
}

// isTokenVolume recognises the volume, and its mounts, that admission adds for the pod's token.
func isTokenVolume(item map[string]any) bool {
	name, _ := item["name"].(string)
	return strings.HasPrefix(name, "kube-api-access-")
}

// sanitiseJob lets the API server choose the selector again, which is the Job's uid unless the user chose it.
func sanitiseJob(o *unstructured.Unstructured) {
	if manual, _, _ := unstructured.NestedBool(o.Object, "spec", "manualSelector"); manual {
		return
	}
	removeFields(o, "spec.selector")
	for _, path := range [][]string{{"metadata", "labels"}, {"spec", "template", "metadata", "labels"}} {
		labels, found, _ := unstructured.NestedStringMap(o.Object, path...)
		if !found {
			continue
		}
		for _, key := range controllerUIDLabels {
			delete(labels, key)
		}
		if len(labels) == 0 {
			unstructured.RemoveNestedField(o.Object, path...)
			continue
		}
		_ = unstructured.SetNestedStringMap(o.Object, labels, path...)
	}
}

// sanitiseServiceAccount drops references to token Secrets that the cluster made.
func sanitiseServiceAccount(o *unstructured.Unstructured) {
	secrets, _, _ := unstructured.NestedSlice(o.Object, "secrets")
	secrets = without(secrets, func(ref map[string]any) bool {
		name, _ := ref["name"].(string)
		return isGeneratedTokenName(o.GetName(), name)
	})
	setOrRemove(o, secrets, "secrets")
}

func isTokenSecret(o *unstructured.Unstructured) bool {
	kind, _, _ := unstructured.NestedString(o.Object, "type")
	return kind == "kubernetes.io/service-account-token"
}

var generatedToken = regexp.MustCompile(`^-(token|dockercfg)-[a-z0-9]{5}$`)

// isGeneratedTokenName recognises the names that controllers give the token Secrets they make.
func isGeneratedTokenName(account, secret string) bool {
	rest, ok := strings.CutPrefix(secret, account)
	return ok && generatedToken.MatchString(rest)
}

// fields is one or more managedFields trees laid over each other: the fields that somebody wrote.
type fields []map[string]any

// writtenFields collects the fields of an object that a client set, leaving out those of subresources.
func writtenFields(o *unstructured.Unstructured) fields {
	var all fields
	for _, entry := range o.GetManagedFields() {
		if entry.Subresource != "" || entry.FieldsV1 == nil {
			continue
		}
		var tree map[string]any
		if json.Unmarshal(entry.FieldsV1.GetRawBytes(), &tree) == nil {
			all = append(all, tree)
		}
	}
	return all
}

func (f fields) has(path ...string) bool {
	for _, tree := range f {
		if _, found, _ := unstructured.NestedFieldNoCopy(tree, path...); found {
			return true
		}
	}
	return false
}

// hasNodePort reports whether somebody wrote the nodePort of a port, which managedFields knows by port and protocol.
func (f fields) hasNodePort(port map[string]any) bool {
	for _, tree := range f {
		ports, _, _ := unstructured.NestedMap(tree, "f:spec", "f:ports")
		for key, owned := range ports {
			var id map[string]any
			if json.Unmarshal([]byte(strings.TrimPrefix(key, "k:")), &id) != nil || !samePort(id, port) {
				continue
			}
			set, ok := owned.(map[string]any)
			if !ok {
				continue
			}
			if _, found := set["f:nodePort"]; found {
				return true
			}
		}
	}
	return false
}

func samePort(a, b map[string]any) bool {
	return number(a["port"]) == number(b["port"]) && protocol(a) == protocol(b)
}

// number reads a JSON number of either decoder.
func number(v any) string {
	switch n := v.(type) {
	case int64:
		return strconv.FormatInt(n, 10)
	case float64:
		return strconv.FormatInt(int64(n), 10)
	}
	return ""
}

func protocol(port map[string]any) string {
	if p, ok := port["protocol"].(string); ok && p != "" {
		return p
	}
	return "TCP"
}

// removeFields deletes dotted paths.
func removeFields(o *unstructured.Unstructured, paths ...string) {
	for _, path := range paths {
		unstructured.RemoveNestedField(o.Object, strings.Split(path, ".")...)
	}
}

func setOrRemove(o *unstructured.Unstructured, items []any, path ...string) {
	if len(items) == 0 {
		unstructured.RemoveNestedField(o.Object, path...)
		return
	}
	_ = unstructured.SetNestedSlice(o.Object, items, path...)
}

// without returns the items that drop does not choose; items that are no objects stay.
func without(items []any, drop func(map[string]any) bool) []any {
	var kept []any
	for _, item := range items {
		if m, ok := item.(map[string]any); ok && drop(m) {
			continue
		}
		kept = append(kept, item)
	}
	return kept
}
