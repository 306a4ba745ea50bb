package replication

import (
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// only fails unless exactly one object of the kind carries these labels in the Replication's namespace, those of link "dr" of "app" and
// the two glued together, and it has that name.
func (s *side) only(list client.ObjectList, name string, labels map[string]string) {
	s.w.t.Helper()
	wanted := client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, v1alpha1.LabelReplication: "app", v1alpha1.LabelRlink: "dr", "app": "appdr"}
	maps.Copy(wanted, labels)
	s.must(s.kube.List(s.w.t.Context(), list, client.InNamespace(s.w.namespace), wanted))
	items, err := meta.ExtractList(list)
	s.must(err)
	var found []string
	for _, item := range items {
		found = append(found, item.(client.Object).GetName())
	}
	if !slices.Equal(found, []string{name}) {
		s.w.t.Errorf("%s: with labels %v there are %v, want %s", s.name, wanted, found, name)
	}
}

// M-095, M-096: a new Replication gets its movers by itself: a Job for each session of a source, one lasting Deployment of a target.
// M-106: their names say whose they are, their labels find them and nothing else, and they live beside their Replication.
// M-097: they follow its edits. M-098: what somebody deletes is made again, without an edit.
func TestMoversComeFollowAndComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.holdMovers = true
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("a Job", func() bool {
		var jobs batchv1.JobList
		w.east.list(&jobs)
		return len(jobs.Items) == 1 && jobs.Items[0].Labels["app"] == "appdr"
	})
	point := w.east.link("app").Session.Point
	w.east.only(&batchv1.JobList{}, "lb-app-dr-"+point, map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentSourceMover, v1alpha1.LabelPoint: point})
	w.east.only(&corev1.PodList{}, "lb-app-dr-"+point+"-x", map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentSourceMover, v1alpha1.LabelPoint: point})
	w.west.only(&appsv1.DeploymentList{}, "lb-app-dr-receiver", map[string]string{v1alpha1.LabelComponent: v1alpha1.ComponentReceiver})
	w.east.holdMovers = false
	w.until("the first point", w.east.committed("app", ""))
	w.until("no Job between sessions", func() bool {
		var jobs batchv1.JobList
		w.east.list(&jobs)
		return len(jobs.Items) == 0
	})
	receiver := func() (d appsv1.Deployment) {
		w.west.must(w.west.kube.Get(t.Context(), w.west.key("lb-app-dr-receiver"), &d))
		return d
	}
	lasting := receiver()
	if lasting.Name == "" || *lasting.Spec.Replicas != 1 {
		t.Fatalf("the target's receiver: %+v", lasting.Spec)
	}

	// M-097: an edit of the schedule is the next session's.
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].Schedule = "0 3 * * *" })
	w.until("the schedule", func() bool {
		next := w.east.link("app").NextRun
		return next != nil && next.UTC().Hour() == 3 && next.UTC().Minute() == 0
	})
	next := w.east.link("app").NextRun
	w.skip = time.Until(next.Add(time.Second))
	w.until("its session", func() bool {
		l := w.east.link("app").LastSession
		return l.Trigger == "Schedule" && l.Result == resultCommitted
	})
	w.until("the point is recorded", func() bool {
		p := w.west.link("app").RecoveryPoint
		return p != nil && p.Point == w.east.link("app").LastSession.Point
	})
	if now := receiver(); now.UID != lasting.UID {
		t.Error("the receiver was made again for a session")
	}

	// M-098: each of these is deleted, and nothing else is done.
	about := metav1.ObjectMeta{Namespace: w.namespace, Name: "lb-app-dr-receiver"}
	for _, o := range []client.Object{&appsv1.Deployment{ObjectMeta: about}, &corev1.Service{ObjectMeta: about}} {
		w.west.must(w.west.kube.Delete(t.Context(), o, client.PropagationPolicy(metav1.DeletePropagationBackground)))
		w.until("it is back", func() bool {
			return w.west.kube.Get(t.Context(), client.ObjectKeyFromObject(o), o) == nil && w.west.link("app").ReceiverReady
		})
	}
	w.east.trigger("app", "after")
	w.until("sessions go on", w.east.committed("app", "after"))
}
