package hook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Phase is what an application does, in one word.
type Phase string

const (
	// Running: every workload has all the pods it wants, and nothing is marked as taken offline.
	Running Phase = "Running"
	// Stopped: no workload wants a pod, nothing will start one by the clock, and no pod is left.
	Stopped Phase = "Stopped"
	// Partly: neither; the workloads' counts tell.
	Partly Phase = "Partly"
	// NoWorkloads: nothing here runs or could run.
	NoWorkloads Phase = "NoWorkloads"
)

// Workload is one workload as it was seen.
type Workload struct {
	Kind, Name string
	// Wanted and Ready count pods; both are 0 for CronJobs and Jobs.
	Wanted, Ready int32
	// Offline is true when Offline stopped it and Online has not put it back.
	Offline bool
}

func (w Workload) String() string {
	if w.Offline {
		return fmt.Sprintf("%s %s is offline", w.Kind, w.Name)
	}
	return fmt.Sprintf("%s %s has %d of %d pods ready", w.Kind, w.Name, w.Ready, w.Wanted)
}

// State is what an application does now.
type State struct {
	Phase     Phase
	Workloads []Workload
	// Pods are the application's pods that have not ended, by name.
	Pods []string
}

// Online reports whether everything runs that should: no mark of Offline is left and every wanted pod is ready.
// An application that its users scaled to 0 is Stopped and Online.
func (s State) Online() bool { return len(s.Lacking()) == 0 }

// Lacking names the workloads that are not as they should be, one sentence each.
func (s State) Lacking() []string {
	var found []string
	for _, w := range s.Workloads {
		if w.Offline || w.Ready < w.Wanted {
			found = append(found, w.String())
		}
	}
	return found
}

// seen is one look at an application. The pods were read after everything else: a pod that is not among them
// can only come from a workload that still wanted one when it was read.
type seen struct {
	namespace string
	selector  labels.Selector
	// workloads are those selected that no other controller keeps, in the order of workloadKinds.
	workloads []*unstructured.Unstructured
	// helpers are all ReplicaSets and Jobs of the namespace that a controller made.
	helpers []*unstructured.Unstructured
	pods    []*unstructured.Unstructured
}

// state is what a look means.
func (s seen) state() State {
	var state State
	stopped, marked := true, false
	for _, o := range s.workloads {
		if finished(o) {
			continue
		}
		w := workload(o)
		state.Workloads = append(state.Workloads, w)
		marked = marked || w.Offline
		if mannerOf(o) == bySuspend && !suspended(o) || w.Wanted > 0 {
			stopped = false
		}
	}
	for _, p := range s.appPods() {
		state.Pods = append(state.Pods, p.GetName())
	}
	switch {
	case len(state.Workloads) == 0 && len(state.Pods) == 0:
		state.Phase = NoWorkloads
	case stopped && len(state.Pods) == 0:
		state.Phase = Stopped
	case !stopped && !marked && state.Online():
		state.Phase = Running
	default:
		state.Phase = Partly
	}
	return state
}

// workload reads the counts of one. A status that is older than the spec tells nothing of it: then no pod
// counts as ready, and a DaemonSet counts as wanting one.
func workload(o *unstructured.Unstructured) Workload {
	w := Workload{Kind: o.GetKind(), Name: o.GetName(), Offline: Marked(o)}
	current := observed(o)
	switch mannerOf(o) {
	case byScale:
		w.Wanted = int32(replicas(o))
		if current {
			w.Ready = int32(statusCount(o, "readyReplicas"))
		}
	case byGate:
		switch {
		case gated(o):
		case current:
			w.Wanted = int32(statusCount(o, "desiredNumberScheduled"))
			w.Ready = int32(statusCount(o, "numberReady"))
		default:
			w.Wanted = 1
		}
	}
	return w
}

// left names everything that keeps the application from being stopped; empty means that all of it is gone.
func (s seen) left() []string {
	var waiting []string
	for _, o := range slices.Concat(s.workloads, s.ownHelpers()) {
		if what := unsettled(o); what != "" {
			waiting = append(waiting, fmt.Sprintf("%s %s: %s", o.GetKind(), o.GetName(), what))
		}
	}
	for _, p := range s.appPods() {
		waiting = append(waiting, s.podLeft(p))
	}
	return waiting
}

// unsettled tells why a workload might still make a pod. Its controller acts on what it saw: while the status is
// older than the spec, the controller may be about to start what nobody wants any more.
func unsettled(o *unstructured.Unstructured) string {
	switch mannerOf(o) {
	case byScale:
		switch {
		case replicas(o) > 0 && controller(o) != nil:
			return fmt.Sprintf("wants %d replicas; its owner has not scaled it down yet", replicas(o))
		case replicas(o) > 0:
			return fmt.Sprintf("was scaled to %d again; whatever scales it must be stopped", replicas(o))
		case !observed(o):
			return "its controller has not seen replicas 0 yet"
		case statusCount(o, "replicas") > 0:
			return fmt.Sprintf("still counts %d pods", statusCount(o, "replicas"))
		}
	case byGate:
		switch {
		case !gated(o):
			return "was let back onto the nodes; whatever changes it must be stopped"
		case !observed(o):
			return "its controller has not seen yet that it may run on no node"
		}
	case bySuspend:
		// A Job of a CronJob is suspended through itself: stopping the CronJob leaves it running.
		if !finished(o) && !suspended(o) {
			return "was resumed; whatever resumes it must be stopped"
		}
	}
	return ""
}

func (s seen) podLeft(p *unstructured.Unstructured) string {
	doing, _, _ := unstructured.NestedString(p.Object, "status", "phase")
	if doing == "" {
		doing = "Pending"
	}
	node, _, _ := unstructured.NestedString(p.Object, "spec", "nodeName")
	if at := p.GetDeletionTimestamp(); at != nil {
		doing = fmt.Sprintf("ending, to be gone by %s", at.UTC().Format(time.TimeOnly+"Z"))
	}
	if node != "" {
		doing += " on node " + node
	}
	owner := controller(p)
	switch {
	case p.GetDeletionTimestamp() != nil:
		return fmt.Sprintf("Pod %s is %s", p.GetName(), doing)
	case owner == nil:
		return fmt.Sprintf("Pod %s is %s and has no controller, so nothing would start it again if the operation were undone: "+
			"end it yourself with kubectl -n %s delete pod %s", p.GetName(), doing, s.namespace, p.GetName())
	case !s.known(owner.UID):
		return fmt.Sprintf("Pod %s is %s and belongs to %s %s (%s), which Lifeboat cannot stop: stop it through its operator",
			p.GetName(), doing, owner.Kind, owner.Name, owner.APIVersion)
	}
	return fmt.Sprintf("Pod %s is %s", p.GetName(), doing)
}

// appPods are the pods that can write the application's data. With a selector these are the pods of the selected
// workloads and those that match it themselves, without one all of the namespace; never Lifeboat's own.
// A pod that has ended and is not being deleted runs nothing.
func (s seen) appPods() []*unstructured.Unstructured {
	own := s.ownUIDs()
	var found []*unstructured.Unstructured
	for _, p := range s.pods {
		if p.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat || ended(p) {
			continue
		}
		if s.selector.Empty() || s.selector.Matches(labels.Set(p.GetLabels())) || own[controllerUID(p)] || s.matchesWorkload(p) {
			found = append(found, p)
		}
	}
	return found
}

func ended(p *unstructured.Unstructured) bool {
	phase, _, _ := unstructured.NestedString(p.Object, "status", "phase")
	return p.GetDeletionTimestamp() == nil && (phase == "Succeeded" || phase == "Failed")
}

// matchesWorkload finds the pods whose ReplicaSet is gone already, and which no owner leads to any more.
func (s seen) matchesWorkload(p *unstructured.Unstructured) bool {
	for _, o := range s.workloads {
		if podSelector(o).Matches(labels.Set(p.GetLabels())) {
			return true
		}
	}
	return false
}

func podSelector(o *unstructured.Unstructured) labels.Selector {
	if o.GetKind() == "ReplicationController" {
		set, found, _ := unstructured.NestedStringMap(o.Object, "spec", "selector")
		if !found {
			return labels.Nothing()
		}
		return labels.SelectorFromSet(set)
	}
	raw, found, _ := unstructured.NestedMap(o.Object, "spec", "selector")
	if !found {
		return labels.Nothing()
	}
	var parsed metav1.LabelSelector
	if err := fromUnstructured(raw, &parsed); err != nil {
		return labels.Nothing()
	}
	selector, err := metav1.LabelSelectorAsSelector(&parsed)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// ownUIDs are the uids of the selected workloads and of the helpers they made.
func (s seen) ownUIDs() map[types.UID]bool {
	own := map[types.UID]bool{}
	for _, o := range s.workloads {
		own[o.GetUID()] = true
	}
	for _, h := range s.helpers {
		if own[controllerUID(h)] {
			own[h.GetUID()] = true
		}
	}
	return own
}

// ownHelpers are the ReplicaSets and Jobs that the selected workloads made.
func (s seen) ownHelpers() []*unstructured.Unstructured {
	own := s.ownUIDs()
	return slices.DeleteFunc(slices.Clone(s.helpers), func(h *unstructured.Unstructured) bool { return !own[h.GetUID()] })
}

func (s seen) known(uid types.UID) bool {
	return slices.ContainsFunc(slices.Concat(s.workloads, s.helpers), func(o *unstructured.Unstructured) bool { return o.GetUID() == uid })
}

func controllerUID(o *unstructured.Unstructured) types.UID {
	if owner := controller(o); owner != nil {
		return owner.UID
	}
	return ""
}

// observed reports whether the status belongs to the present spec.
func observed(o *unstructured.Unstructured) bool {
	return statusCount(o, "observedGeneration") >= o.GetGeneration()
}

func statusCount(o *unstructured.Unstructured, field string) int64 {
	n, _, _ := unstructured.NestedInt64(o.Object, "status", field)
	return n
}

// sortByName gives messages the same order at every look.
func sortByName(objects []*unstructured.Unstructured) {
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return strings.Compare(a.GetName(), b.GetName()) })
}
