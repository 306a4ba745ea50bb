package replication

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
)

// resize asks for another size of a claim, as a user does.
func (s *side) resize(claim, size string) error {
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"resources":{"requests":{"storage":"`+size+`"}}}}`))
	var object corev1.PersistentVolumeClaim
	object.Namespace, object.Name = s.w.namespace, claim
	return s.kube.Patch(s.w.t.Context(), &object, patch)
}

// sizes of the claims' volumes, as the Replication shows them.
func (s *side) sizes() string {
	var out []string
	for _, size := range s.get("app").Status.Sizes {
		out = append(out, size.Claim+"="+quantity(size.Bytes))
	}
	return strings.Join(out, " ")
}

func (s *side) capacity(claim string) string {
	var object corev1.PersistentVolumeClaim
	s.must(s.kube.Get(s.w.t.Context(), s.key(claim), &object))
	var volume corev1.PersistentVolume
	s.must(s.kube.Get(s.w.t.Context(), client.ObjectKey{Name: object.Spec.VolumeName}, &volume))
	has := volume.Spec.Capacity[corev1.ResourceStorage]
	return has.String()
}

// grown reports that the replica on west, its block claim and its spool have the new size.
func (w *world) grown(claim, size string) func() bool {
	return func() bool {
		claims := w.west.claims()
		return slices.Contains(claims, "lb-"+claim+"-replica") && w.west.capacity(claim) == size && w.west.capacity("lb-"+claim+"-replica") == size
	}
}

// M-153, M-154: growing the source's claim is all there is to do.
func TestAReplicaGrowsWithItsSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data", "wal")
	before, spool := w.volumes("data"), w.west.capacity("lb-app-spool")
	point := w.west.link("app").RecoveryPoint.Point
	w.west.holdGrowth = true
	w.east.must(w.east.resize("data", "2Gi"))
	w.until("sessions are held", func() bool {
		c := w.east.ready("app")
		return c.Reason == cycle.ReasonGrowing && strings.Contains(c.Message, "claim data from 1Gi to 2Gi")
	})
	w.east.trigger("app", "grown")
	w.until("the target waits for its driver", func() bool {
		c := w.west.ready("app")
		return c.Reason == cycle.ReasonGrowing && strings.Contains(c.Message, "its driver "+driver+" has not grown it yet")
	})
	w.until("the source says so", func() bool { return strings.Contains(w.east.ready("app").Message, "has not grown it yet") })
	if w.east.link("app").Session != nil {
		t.Error("a session runs while sizes differ")
	}
	if l := w.west.link("app"); l.RecoveryPoint == nil || l.RecoveryPoint.Point != point {
		t.Errorf("the replica's recovery point while it grows: %+v, want %s", l.RecoveryPoint, point)
	}
	w.west.holdGrowth = false
	w.until("the next point", w.east.committed("app", "grown"))
	if !w.grown("data", "2Gi")() || w.west.sizes() != "data=2Gi wal=1Gi" || w.east.sizes() != "data=2Gi wal=1Gi" {
		t.Errorf("sizes: east %s, west %s, pair %s", w.east.sizes(), w.west.sizes(), w.west.capacity("lb-data-replica"))
	}
	if now := w.west.capacity("lb-app-spool"); now == spool {
		t.Errorf("the spool still has %s: it does not hold a whole delta", now)
	}
	if after := w.volumes("data"); after != before {
		t.Errorf("the claims' volumes were %s, are %s", before, after)
	}
	if len(w.east.unequal) > 0 {
		t.Errorf("sessions with unequal sizes: %v", w.east.unequal)
	}
	for _, report := range w.east.link("app").History {
		if report.Result != resultCommitted {
			t.Errorf("a session failed: %+v", report)
		}
	}
}

// M-153: after every step another manager takes over that remembers nothing, and every write fails once.
func TestAManagerThatDiesAtEveryWriteGrowsAReplica(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	for _, s := range []*side{w.east, w.west} {
		flaky := &flakyClient{Client: s.kube, tried: map[string]bool{}}
		s.fresh = func() *Reconciler {
			r := s.manager()
			r.Client = flaky
			return r
		}
	}
	w.east.must(w.east.resize("data", "2Gi"))
	w.until("grown", w.grown("data", "2Gi"))
	w.east.trigger("app", "grown")
	w.until("the next point", w.east.committed("app", "grown"))
	if len(w.east.unequal) > 0 {
		t.Errorf("sessions with unequal sizes: %v", w.east.unequal)
	}
}

// M-154: a session that runs when the claim grows ends with the sizes it began with, or without a point, and never with unequal ones.
func TestAClaimThatGrowsDuringASession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.east.holdMovers = true
	w.east.trigger("app", "running")
	w.until("clones", func() bool { return len(w.east.claims()) == 2 })
	w.east.must(w.east.resize("data", "2Gi"))
	w.until("it has grown", func() bool { return w.east.capacity("data") == "2Gi" })
	w.east.holdMovers = false
	w.until("the session ends well", w.east.committed("app", "running"))
	w.until("grown", w.grown("data", "2Gi"))
	w.east.trigger("app", "grown")
	w.until("the next point", w.east.committed("app", "grown"))
	if len(w.east.unequal) > 0 {
		t.Errorf("sessions with unequal sizes: %v", w.east.unequal)
	}
}

// M-152, T-19: sizes are compared exactly, claims never shrink, and a larger replica is reported with both sizes.
func TestAReplicaThatIsLargerThanItsSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	if err := w.east.resize("data", "512Mi"); err == nil {
		t.Error("a claim shrank")
	}
	w.west.paused = true // the user's resize by hand comes before anybody has closed the receiver, so play does not grow it yet
	w.west.holdGrowth = true
	w.west.must(w.west.resize("data", "3Gi"))
	var volume corev1.PersistentVolume
	var claim corev1.PersistentVolumeClaim
	w.west.must(w.west.kube.Get(t.Context(), w.west.key("data"), &claim))
	w.west.must(w.west.kube.Get(t.Context(), client.ObjectKey{Name: claim.Spec.VolumeName}, &volume))
	volume.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("3Gi")}
	w.west.must(w.west.kube.Update(t.Context(), &volume))
	w.west.paused, w.west.holdGrowth = false, false
	w.until("it is reported with both sizes", func() bool {
		c := w.east.ready("app")
		return c.Status == "False" && c.Reason == cycle.ReasonSizesDiffer && strings.Contains(c.Message, "claim data has 3Gi on cluster west and claim data has 1Gi here")
	})
	w.until("the replica fits its volume", w.grown("data", "3Gi"))
	w.east.must(w.east.resize("data", "3Gi"))
	w.east.trigger("app", "grown")
	w.until("the next point", w.east.committed("app", "grown"))
	if len(w.east.unequal) > 0 {
		t.Errorf("sessions with unequal sizes: %v", w.east.unequal)
	}
}

// M-153: a class without expansion is reported by name, on the side that lacks it, and the replica stays.
func TestAClassThatDoesNotLetClaimsGrow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.west.claim("data", "1Gi", "rigid")
	protect(w, "data")
	w.east.must(w.east.resize("data", "2Gi"))
	w.until("west names the class", func() bool {
		c := w.west.ready("app")
		return c.Status == "False" && c.Reason == cycle.ReasonCannotGrow && strings.Contains(c.Message, "storage class rigid of driver "+driver)
	})
	w.until("east says so too", func() bool {
		c := w.east.ready("app")
		return c.Status == "False" && c.Reason == cycle.ReasonGrowing && strings.Contains(c.Message, "storage class rigid")
	})
	if !slices.Contains(w.west.claims(), "lb-data-replica") || w.west.link("app").RecoveryPoint == nil {
		t.Error("the replica was given up though it cannot grow")
	}
	yes := true
	var class storagev1.StorageClass
	w.west.must(w.west.kube.Get(t.Context(), client.ObjectKey{Name: "rigid"}, &class))
	class.AllowVolumeExpansion = &yes
	w.west.must(w.west.kube.Update(t.Context(), &class))
	w.east.trigger("app", "grown")
	w.until("the next point", w.east.committed("app", "grown"))
}

// A replica can be promoted wherever its growth is, with the point it holds.
func TestPromotionInTheMiddleOfAGrowth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	point := w.west.link("app").RecoveryPoint.Point
	w.west.holdGrowth = true
	w.east.must(w.east.resize("data", "2Gi"))
	w.until("only the claim is left", func() bool { return slices.Equal(w.west.claims(), []string{"data"}) })
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("promoted", w.west.inForce("app", v1alpha1.RoleSource, 2))
	if got := w.west.link("app").RecoveryPoint; got == nil || got.Point != point {
		t.Errorf("promoted with %+v, want %s", got, point)
	}
}
