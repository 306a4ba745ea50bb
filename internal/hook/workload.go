package hook

import (
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// GateLabel is a node label that no node has. A DaemonSet that selects it runs nowhere.
const GateLabel = "lifeboat.dev/offline"

// AnnotationOfflineBy names the operation that took a workload offline, for whoever wonders.
const AnnotationOfflineBy = "lifeboat.dev/offline-by"

// manner is how a kind is stopped.
type manner int

const (
	notAWorkload manner = iota
	byScale
	bySuspend
	byGate
)

// workloadKind is a kind Offline stops.
type workloadKind struct {
	schema.GroupVersionKind
	manner manner
}

// workloadKinds are the kinds Offline stops, in the order it stops them: what makes new pods or Jobs by the
// clock comes first, so that nothing is started behind its back. Online takes the reverse order.
var workloadKinds = []workloadKind{
	{schema.GroupVersionKind{Group: "batch", Version: "v1", Kind: "CronJob"}, bySuspend},
	{schema.GroupVersionKind{Group: "batch", Version: "v1", Kind: "Job"}, bySuspend},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, byScale},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"}, byScale},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "ReplicaSet"}, byScale},
	{schema.GroupVersionKind{Version: "v1", Kind: "ReplicationController"}, byScale},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DaemonSet"}, byGate},
}

func mannerOf(o *unstructured.Unstructured) manner {
	for _, k := range workloadKinds {
		if k.GroupKind() == o.GroupVersionKind().GroupKind() {
			return k.manner
		}
	}
	return notAWorkload
}

// stop changes a workload so that it runs nothing and says how it ran, and reports whether it had to. One that
// ran nothing before is left as it is, with or without a kept count: a count is never overwritten by 0.
func stop(o *unstructured.Unstructured, operation string) bool {
	switch mannerOf(o) {
	case byScale:
		count := replicas(o)
		if count == 0 {
			return false
		}
		setReplicas(o, 0)
		annotate(o, v1alpha1.AnnotationReplicas, strconv.FormatInt(count, 10))
	case bySuspend:
		if suspended(o) || finished(o) {
			return false
		}
		setNested(o, true, "spec", "suspend")
		annotate(o, v1alpha1.AnnotationSuspended, "false")
	case byGate:
		if gated(o) {
			return false
		}
		setNested(o, "true", "spec", "template", "spec", "nodeSelector", GateLabel)
	default:
		return false
	}
	annotate(o, AnnotationOfflineBy, operation)
	return true
}

// Undo puts back into an object what Offline took, takes off its marks, and reports whether there was
// anything to do. A workload that somebody started again meanwhile keeps the count it has.
func Undo(o *unstructured.Unstructured) bool {
	if !Marked(o) {
		return false
	}
	annotations := o.GetAnnotations()
	switch mannerOf(o) {
	case byScale:
		kept, err := strconv.ParseInt(annotations[v1alpha1.AnnotationReplicas], 10, 32)
		if err == nil && kept > 0 && replicas(o) == 0 {
			setReplicas(o, kept)
		}
	case bySuspend:
		if annotations[v1alpha1.AnnotationSuspended] == "false" {
			setNested(o, false, "spec", "suspend")
		}
	case byGate:
		removeGate(o)
	}
	for _, mark := range []string{v1alpha1.AnnotationReplicas, v1alpha1.AnnotationSuspended, AnnotationOfflineBy} {
		delete(annotations, mark)
	}
	if len(annotations) == 0 {
		annotations = nil
	}
	o.SetAnnotations(annotations)
	return true
}

// Marked reports whether an object carries anything that Offline leaves on what it stops.
func Marked(o *unstructured.Unstructured) bool {
	annotations := o.GetAnnotations()
	for _, mark := range []string{v1alpha1.AnnotationReplicas, v1alpha1.AnnotationSuspended, AnnotationOfflineBy} {
		if _, found := annotations[mark]; found {
			return true
		}
	}
	return mannerOf(o) == byGate && gated(o)
}

// replicas is the wanted count; absent means 1 to every controller.
func replicas(o *unstructured.Unstructured) int64 {
	count, found, err := unstructured.NestedInt64(o.Object, "spec", "replicas")
	if err != nil || !found {
		return 1
	}
	return count
}

func setReplicas(o *unstructured.Unstructured, count int64) { setNested(o, count, "spec", "replicas") }

func suspended(o *unstructured.Unstructured) bool {
	is, _, _ := unstructured.NestedBool(o.Object, "spec", "suspend")
	return is
}

// finished reports whether a Job has ended for good; it will start no pod again.
func finished(o *unstructured.Unstructured) bool {
	if o.GetKind() != "Job" {
		return false
	}
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		condition, ok := c.(map[string]any)
		if !ok || condition["status"] != "True" {
			continue
		}
		if condition["type"] == "Complete" || condition["type"] == "Failed" {
			return true
		}
	}
	return false
}

func gated(o *unstructured.Unstructured) bool {
	_, found, _ := unstructured.NestedString(o.Object, "spec", "template", "spec", "nodeSelector", GateLabel)
	return found
}

func removeGate(o *unstructured.Unstructured) {
	path := []string{"spec", "template", "spec", "nodeSelector"}
	unstructured.RemoveNestedField(o.Object, append(path, GateLabel)...)
	if left, found, _ := unstructured.NestedMap(o.Object, path...); found && len(left) == 0 {
		unstructured.RemoveNestedField(o.Object, path...)
	}
}

func annotate(o *unstructured.Unstructured, key, value string) {
	annotations := o.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	o.SetAnnotations(annotations)
}

// setNested sets a field under maps that the API server's schema guarantees.
func setNested(o *unstructured.Unstructured, value any, path ...string) {
	_ = unstructured.SetNestedField(o.Object, value, path...)
}

// controller is the owner that keeps an object as it is, or nil.
func controller(o *unstructured.Unstructured) *metav1.OwnerReference {
	return metav1.GetControllerOf(o)
}
