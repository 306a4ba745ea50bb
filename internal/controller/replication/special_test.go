package replication

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-094: movers run the manager's image unless their Replication names another, from the next mover on.
func TestMoversOfAnotherImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	receiver := func() corev1.PodTemplateSpec {
		var d appsv1.Deployment
		w.west.must(w.west.kube.Get(t.Context(), w.west.key("lb-app-dr-receiver"), &d))
		return d.Spec.Template
	}
	if c := receiver().Spec.Containers[0]; c.Image != "lifeboat:test" || c.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("by itself a receiver runs %s, %s", c.Image, c.ImagePullPolicy)
	}
	special := func(image string) func(*v1alpha1.Replication) {
		return func(r *v1alpha1.Replication) {
			r.Spec.Mover = &v1alpha1.Mover{Image: image, ImagePullPolicy: corev1.PullAlways, PodAnnotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "storage"}}
		}
	}
	fits := func(template corev1.PodTemplateSpec, image string) bool {
		c := template.Spec.Containers[0]
		return c.Image == image && c.ImagePullPolicy == corev1.PullAlways && template.Annotations["k8s.v1.cni.cncf.io/networks"] == "storage"
	}
	w.east.edit("app", special("east.example.com/lifeboat:2"))
	w.west.edit("app", special("west.example.com/lifeboat:2"))
	w.until("the receiver is another", func() bool { return fits(receiver(), "west.example.com/lifeboat:2") })
	w.east.holdMovers = true
	w.east.trigger("app", "now")
	w.until("the next mover", func() bool {
		var jobs batchv1.JobList
		w.east.list(&jobs)
		return len(jobs.Items) == 1 && fits(jobs.Items[0].Spec.Template, "east.example.com/lifeboat:2")
	})
	w.east.holdMovers = false
	w.until("its point", w.east.committed("app", "now"))
	// The source prepares its peer again and again; what is the peer's own stays.
	if m := w.west.get("app").Spec.Mover; m == nil || m.Image != "west.example.com/lifeboat:2" {
		t.Errorf("the peer's movers: %+v", m)
	}
}
