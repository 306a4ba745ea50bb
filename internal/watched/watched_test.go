package watched

import (
	"context"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// asked counts what a reader was asked.
type asked struct {
	client.Reader
	times int
	err   error
}

func (a *asked) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	a.times++
	return a.err
}

func (a *asked) List(context.Context, client.ObjectList, ...client.ListOption) error {
	a.times++
	return a.err
}

func reader(t *testing.T) (r *Reader, watches, server *asked, clock *time.Time) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, snapshotv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Unix(1000, 0)
	watches, server = &asked{}, &asked{}
	return &Reader{cache: watches, live: server, scheme: scheme, now: func() time.Time { return now }, known: map[client.ObjectKey]answer{}, watched: map[schema.GroupVersionKind]bool{
		corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"): true, corev1.SchemeGroupVersion.WithKind("Pod"): false,
	}}, watches, server, &now
}

// What is watched in part never answers for the whole.
func TestWhoAnswers(t *testing.T) {
	ours := client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, v1alpha1.LabelReplication: "app"}
	for name, c := range map[string]struct {
		ask     func(*Reader) error
		watches bool
	}{
		"a claim": {func(r *Reader) error {
			return r.Get(t.Context(), client.ObjectKey{Name: "data"}, &corev1.PersistentVolumeClaim{})
		}, true},
		"all claims": {func(r *Reader) error { return r.List(t.Context(), &corev1.PersistentVolumeClaimList{}) }, true},
		"our pods":   {func(r *Reader) error { return r.List(t.Context(), &corev1.PodList{}, ours) }, true},
		"all pods":   {func(r *Reader) error { return r.List(t.Context(), &corev1.PodList{}) }, false},
		"one pod":    {func(r *Reader) error { return r.Get(t.Context(), client.ObjectKey{Name: "a"}, &corev1.Pod{}) }, false},
		"pods of app": {func(r *Reader) error {
			return r.List(t.Context(), &corev1.PodList{}, client.MatchingLabels{"app": "shop"})
		}, false},
		"not ours": {func(r *Reader) error {
			return r.List(t.Context(), &corev1.PodList{}, client.MatchingLabels{v1alpha1.LabelManagedBy: "helm"})
		}, false},
		"a kind that nobody watches": {func(r *Reader) error { return r.List(t.Context(), &snapshotv1.VolumeSnapshotList{}, ours) }, false},
	} {
		r, watches, server, _ := reader(t)
		if err := c.ask(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := watches.times == 1 && server.times == 0; got != c.watches || watches.times+server.times != 1 {
			t.Errorf("%s: the watches were asked %d times, the API server %d times", name, watches.times, server.times)
		}
	}
}

func TestWhetherAKindIsKnownIsRememberedForAMinute(t *testing.T) {
	r, _, server, now := reader(t)
	definition := func() error {
		crd := &unstructured.Unstructured{}
		crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		return r.Get(t.Context(), client.ObjectKey{Name: "groups"}, crd)
	}
	server.err = apierrors.NewNotFound(schema.GroupResource{}, "groups")
	for range 3 {
		if err := definition(); !apierrors.IsNotFound(err) {
			t.Errorf("unknown: %v", err)
		}
	}
	if server.times != 1 {
		t.Errorf("the API server was asked %d times", server.times)
	}
	*now, server.err = now.Add(knownFor), nil
	if err := definition(); err != nil || server.times != 2 {
		t.Errorf("a minute later: %v, asked %d times", err, server.times)
	}
	// What went wrong is not an answer.
	*now, server.err = now.Add(knownFor), apierrors.NewTimeoutError("busy", 1)
	if err := definition(); !apierrors.IsTimeout(err) {
		t.Errorf("a failure: %v", err)
	}
	if server.err = nil; definition() != nil || server.times != 4 {
		t.Errorf("after a failure: asked %d times", server.times)
	}
}

// What is taken off costs memory and is read by nobody; what is read stays.
func TestWhatIsTakenOff(t *testing.T) {
	about := metav1.ObjectMeta{Name: "a", Labels: map[string]string{"app": "shop"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: "all of it", v1alpha1.AnnotationCreatedFor: "app"}}
	pod := &corev1.Pod{ObjectMeta: *about.DeepCopy(), Spec: corev1.PodSpec{NodeName: "n", Volumes: []corev1.Volume{{Name: "data"}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	job := &batchv1.Job{ObjectMeta: *about.DeepCopy(), Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{NodeName: "n"}}}, Status: batchv1.JobStatus{Failed: 2}}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: *about.DeepCopy(), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}
	volume := &corev1.PersistentVolume{ObjectMeta: *about.DeepCopy(), Spec: corev1.PersistentVolumeSpec{StorageClassName: "disk"}}
	for _, k := range kinds() {
		for _, o := range []client.Object{pod, job, claim, volume} {
			if k.slim == nil || gvkOf(t, o) != gvkOf(t, k.object) {
				continue
			}
			if _, err := transform(k.slim)(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, o := range []client.Object{pod, job, claim, volume} {
		if len(o.GetManagedFields()) > 0 {
			t.Errorf("%T keeps managed fields", o)
		}
	}
	switch {
	case pod.Spec.NodeName != "" || len(pod.Spec.Volumes) != 1 || pod.Status.Phase != corev1.PodRunning || pod.Labels["app"] != "shop":
		t.Errorf("pod: %+v", pod)
	case job.Spec.Template.Spec.NodeName != "" || job.Status.Failed != 2 || job.Annotations[v1alpha1.AnnotationCreatedFor] != "app":
		t.Errorf("job: %+v", job)
	case claim.Annotations[corev1.LastAppliedConfigAnnotation] != "" || claim.Annotations[v1alpha1.AnnotationCreatedFor] != "app" || claim.Spec.VolumeName != "pv":
		t.Errorf("claim: %+v", claim)
	case len(volume.Annotations) > 0 || volume.Spec.StorageClassName != "disk":
		t.Errorf("volume: %+v", volume)
	}
}

func gvkOf(t *testing.T, o client.Object) schema.GroupVersionKind {
	t.Helper()
	all, _, err := clientgoscheme.Scheme.ObjectKinds(o)
	if err != nil {
		return schema.GroupVersionKind{} // not of Kubernetes itself
	}
	return all[0]
}
