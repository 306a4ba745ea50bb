package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// listable are the kinds of a cluster that have lists; they stay the same while tests run.
var listable = sync.OnceValues(func() ([]*metav1.APIResourceList, error) {
	d, err := discovery.NewDiscoveryClientForConfig(east.reach)
	if err != nil {
		return nil, err
	}
	return d.ServerPreferredResources()
})

// everything lists all objects of the test's namespace in one cluster, and all others that name it, with the labels, annotations and
// finalizers they carry: whatever Lifeboat leaves anywhere is seen. Events tell what was and go by themselves.
func (s *side) everything() []string {
	s.w.t.Helper()
	kinds, err := listable()
	s.must(err)
	c, err := dynamic.NewForConfig(s.reach)
	s.must(err)
	var out []string
	for _, list := range kinds {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		s.must(err)
		for _, kind := range list.APIResources {
			if !slices.Contains(kind.Verbs, "list") || kind.Kind == "Event" || kind.Name == "componentstatuses" || kind.Kind == "Namespace" {
				continue
			}
			in := dynamic.ResourceInterface(c.Resource(version.WithResource(kind.Name)))
			if kind.Namespaced {
				in = c.Resource(version.WithResource(kind.Name)).Namespace(s.w.namespace)
			}
			objects, err := in.List(s.w.t.Context(), metav1.ListOptions{})
			s.must(err)
			for _, o := range objects.Items {
				if line := s.line(kind, o.Object, o.GetName()); line != "" {
					out = append(out, line)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// line describes an object; empty when it has nothing to do with the test. Names that a driver makes up differ from cluster to cluster.
func (s *side) line(kind metav1.APIResource, object map[string]any, name string) string {
	raw, err := json.Marshal(object)
	s.must(err)
	if !kind.Namespaced && !strings.Contains(string(raw), s.w.namespace) {
		return ""
	}
	for _, made := range []string{"pv-", "content-"} {
		if strings.HasPrefix(name, made) {
			name = made + "..."
		}
	}
	about, _ := object["metadata"].(map[string]any)
	return fmt.Sprintf("%s %s labels %v annotations %v finalizers %v", kind.Kind, name, about["labels"], about["annotations"], about["finalizers"])
}

// settled turns the world until a cluster holds exactly that.
func (w *world) settled(s *side, want []string) {
	w.t.Helper()
	for range 150 {
		// The long list is asked for when all that is cheap to see is gone.
		if s.get("app") == nil && len(s.made()) == 0 && len(s.snapshots()) == 0 && len(s.claims()) == 1 && slices.Equal(s.everything(), want) {
			return
		}
		w.turn()
		w.skip += 2 * time.Second
	}
	w.t.Errorf("%s holds\n  %s\nwant\n  %s\n%s", s.name, strings.Join(s.everything(), "\n  "), strings.Join(want, "\n  "), w.story())
}

// M-097: whatever is deleted in whatever order, in whatever state, ends, and leaves nothing but the users' claims.
func TestDeletionInEveryOrderLeavesNothing(t *testing.T) {
	remove := func(s *side, kind string) {
		var o client.Object = &v1alpha1.Replication{}
		if kind == "group" {
			o = &v1alpha1.PVCGroup{}
		}
		o.SetNamespace(s.w.namespace)
		o.SetName("app")
		s.must(s.kube.Delete(s.w.t.Context(), o))
	}
	// The ClusterPairs of these clusters are shared by all tests: one that is gone is one that is not found.
	unpair := func(s *side) {
		s.fresh = func() *Reconciler {
			r := s.manager()
			r.Live = unpaired{r.Live}
			return r
		}
	}
	states := map[string]func(w *world){
		"at rest": func(*world) {},
		"with a session running": func(w *world) {
			w.east.trigger("app", "running")
			w.east.holdMovers = true
			w.until("a session runs", func() bool { return slices.Contains(kindsOf(w.east.made()), "Job") })
		},
		"with the peer gone": func(w *world) { w.east.offline, w.west.offline = true, true },
		"while it grows": func(w *world) {
			w.west.holdGrowth = true
			w.east.must(w.east.resize("data", "2Gi"))
			w.until("it grows", func() bool { return w.west.ready("app").Reason == cycle.ReasonGrowing })
		},
	}
	orders := map[string][]func(w *world){
		"source, target":                {func(w *world) { remove(w.east, "replication") }, func(w *world) { remove(w.west, "replication") }},
		"target, source":                {func(w *world) { w.east.paused = true; remove(w.west, "replication") }, func(w *world) { w.east.paused = false; remove(w.east, "replication") }},
		"groups first":                  {func(w *world) { remove(w.east, "group"); remove(w.west, "group") }, func(w *world) { remove(w.east, "replication"); remove(w.west, "replication") }},
		"pairs first":                   {func(w *world) { unpair(w.east); unpair(w.west) }, func(w *world) { remove(w.east, "replication"); remove(w.west, "replication") }},
		"pairs, groups, target, source": {func(w *world) { unpair(w.east); unpair(w.west) }, func(w *world) { remove(w.east, "group"); remove(w.west, "group") }, func(w *world) { remove(w.west, "replication") }, func(w *world) { remove(w.east, "replication") }},
		"all at once, twice": {func(w *world) {
			for _, s := range []*side{w.east, w.west} {
				remove(s, "replication")
				remove(s, "group")
				remove(s, "replication") // T-57: NotFound and "is being deleted" are success
			}
		}},
	}
	// Each order once, and each state with the orders that differ in it.
	for _, c := range [][2]string{
		{"source, target", "at rest"}, {"source, target", "with a session running"}, {"source, target", "with the peer gone"}, {"source, target", "while it grows"},
		{"target, source", "with a session running"}, {"target, source", "while it grows"},
		{"groups first", "with a session running"}, {"groups first", "with the peer gone"},
		{"pairs first", "with a session running"}, {"pairs, groups, target, source", "at rest"},
		{"all at once, twice", "with a session running"}, {"all at once, twice", "while it grows"},
	} {
		steps, begin := orders[c[0]], states[c[1]]
		t.Run(c[0]+", "+c[1], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.east.claim("data", "1Gi", className)
			w.east.play() // the claim has its volume
			before := w.east.everything()
			w.east.group("app", "data")
			w.east.replication("app", v1alpha1.RoleSource)
			w.until("the first point", w.east.committed("app", ""))
			begin(w)
			for _, step := range steps {
				step(w)
				for range 3 {
					w.turn()
					w.skip += 2 * time.Second
				}
			}
			remove(w.east, "group")
			w.settled(w.east, before)
			// On the target the claim stays that was made for the user, as if the user had made it.
			w.settled(w.west, before)
			if got := w.volumes("data"); strings.Contains(got, "none") {
				t.Errorf("a user's volume is gone: %s", got)
			}
		})
	}
}

func kindsOf(made []string) []string {
	var out []string
	for _, m := range made {
		kind, _, _ := strings.Cut(m, " ")
		out = append(out, kind[strings.LastIndex(kind, ".")+1:])
	}
	return out
}

// A snapshot class that keeps what it made is no reason to leave a snapshot of every session in the storage.
func TestNoSnapshotStaysInTheStorage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", keepingClass)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("the first point", w.east.committed("app", ""))
	contents := func(s *side) int {
		var list snapshotv1.VolumeSnapshotContentList
		s.must(s.kube.List(t.Context(), &list))
		n := 0
		for _, c := range list.Items {
			if c.Spec.VolumeSnapshotRef.Namespace == w.namespace {
				n++
			}
		}
		return n
	}
	for _, token := range []string{"a", "b"} {
		w.east.trigger("app", token)
		w.until("point "+token, w.east.committed("app", token))
	}
	w.until("only the base is kept", func() bool { return contents(w.east) == 1 })
	for _, s := range []*side{w.east, w.west} {
		s.must(s.kube.Delete(t.Context(), s.get("app")))
	}
	w.until("none is kept", func() bool {
		return w.east.get("app") == nil && w.west.get("app") == nil && contents(w.east)+contents(w.west) == 0
	})
}

// M-092: recovery points that shall stay keep their snapshots, and their storage, whatever the class says.
func TestRetainedRecoveryPointsStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].RetainSnapshotsOnDeletion = true })
	w.until("the first point", w.east.committed("app", ""))
	kept := w.west.snapshots()
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.west.must(w.west.kube.Delete(t.Context(), w.west.get("app")))
	w.until("both are gone", func() bool { return w.east.get("app") == nil && w.west.get("app") == nil })
	w.turn()
	if got := w.west.snapshots(); len(kept) != 1 || !slices.Equal(got, kept) {
		t.Errorf("recovery points %v, want %v", got, kept)
	}
	var content snapshotv1.VolumeSnapshot
	w.west.must(w.west.kube.Get(t.Context(), w.west.key(kept[0]), &content))
	var stored snapshotv1.VolumeSnapshotContent
	if err := w.west.kube.Get(t.Context(), client.ObjectKey{Name: *content.Status.BoundVolumeSnapshotContentName}, &stored); err != nil {
		t.Errorf("its storage: %v", err)
	}
}

// A group snapshot that is being made is waited for: deleted under its storage's hands it leaves members behind.
func TestADeletionWaitsForAGroupSnapshotThatIsBeingMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protectTogether(w, groupingClass, nil, "data", "wal")
	w.east.holdSnapshots = true
	w.east.trigger("app", "now")
	w.until("it is being made", func() bool { return len(w.east.groups(snapshot.ForSession)) == 2 })
	w.skip = 0 // objects bear the API server's time
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	for range 5 {
		w.turn()
	}
	if groups, marked := w.east.groups(snapshot.ForSession), w.east.marked(); len(groups) != 1 || len(marked) != 2 {
		t.Errorf("while one is being made: group snapshots %v, labelled claims %v", groups, marked)
	}
	making := "group snapshot " + w.east.groups(snapshot.ForSession)[0]
	if c, l := w.east.ready("app"), w.east.link("app"); c.Status != metav1.ConditionFalse || c.Reason != cycle.ReasonSnapshotsPending ||
		!strings.Contains(c.Message, making) || l.WaitingFor != c.Message || w.east.get("app").Status.Phase != cycle.Waiting {
		t.Errorf("what it waits for is %s: %s; the link says %q", c.Reason, c.Message, l.WaitingFor)
	}
	w.east.holdSnapshots = false
	w.until("all is gone", func() bool {
		return w.east.get("app") == nil && len(w.east.groups(snapshot.ForSession)) == 0 && len(w.east.snapshots()) == 0 && len(w.east.marked()) == 0
	})
	// One that is never made is not waited for.
	w.skip, w.west.stuck = 0, "lb-app-spool"
	w.west.must(w.west.kube.Delete(t.Context(), w.west.get("app")))
	w.until("the target says what is still there", func() bool {
		c := w.west.ready("app")
		return c.Reason == reasonBeingDeleted && strings.Contains(c.Message, "PersistentVolumeClaim lb-app-spool")
	})
	w.west.stuck = ""
	w.until("the target is gone", func() bool { return w.west.get("app") == nil })
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("a first point", w.east.committed("app", ""))
	w.east.holdSnapshots = true
	w.east.trigger("app", "then")
	w.until("another one is being made", func() bool { return len(w.east.groups(snapshot.ForSession)) == 2 })
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.skip += 40 * time.Second
	w.until("all is gone again", func() bool { return w.east.get("app") == nil && len(w.east.groups(snapshot.ForSession)) == 0 })
}

// Members whose group snapshot is gone, bound to their content or not yet, go with the Replication. The snapshot controller leaves
// them with its finalizer. Members of somebody else's are not touched.
func TestStrandedMembersOfAGroupSnapshotAreFreed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protectTogether(w, groupingClass, nil, "data", "wal")
	strand := func(group, name string) {
		member := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "snapshot-" + w.namespace + name,
			Finalizers:      []string{"snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "groupsnapshot.storage.k8s.io/v1", Kind: "VolumeGroupSnapshot", Name: group, UID: types.UID("gone-" + group)}}},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: new(string)}}}
		w.east.must(w.east.kube.Create(t.Context(), member))
		handle := "volume"
		w.east.must(w.east.kube.Create(t.Context(), &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "snapcontent-" + w.namespace + name},
			Spec: snapshotv1.VolumeSnapshotContentSpec{Driver: groupingDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
				Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: w.namespace, Name: member.Name}}}))
	}
	left := func(name string) bool {
		member := w.east.kube.Get(t.Context(), w.east.key("snapshot-"+w.namespace+name), &snapshotv1.VolumeSnapshot{})
		content := w.east.kube.Get(t.Context(), client.ObjectKey{Name: "snapcontent-" + w.namespace + name}, &snapshotv1.VolumeSnapshotContent{})
		w.east.must(client.IgnoreNotFound(member))
		w.east.must(client.IgnoreNotFound(content))
		return member == nil || content == nil
	}
	strand("nightly", "theirs")
	strand("lb-app-20261128t050354-eb5b98", "earlier")
	w.east.trigger("app", "now")
	w.until("a further point", w.east.committed("app", "now"))
	if left("earlier") {
		t.Error("a stranded member of ours is still there after the next group snapshot")
	}
	strand("lb-app-20261128t050454-5b98eb", "ours")
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("the source is gone", func() bool { return w.east.get("app") == nil })
	if left("ours") {
		t.Error("a stranded member of ours, or its content, is still there")
	}
	if !left("theirs") {
		t.Error("a member of a group snapshot that is none of ours is gone")
	}
}

// A target that a source made outlives it: whoever deletes the source, by mistake or in malice, has not deleted the copy.
func TestATargetWhoseSourceIsDeletedSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	point := w.west.link("app").RecoveryPoint.Point
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("the source is gone", func() bool { return w.east.get("app") == nil })
	w.until("the target says so", func() bool {
		c := w.west.ready("app")
		return c.Status == "False" && c.Reason == cycle.ReasonSourceMissing && strings.Contains(c.Message, "cluster east has no Replication "+w.namespace+"/app") && strings.Contains(c.Message, point)
	})
	l := w.west.link("app")
	if l.RecoveryPoint == nil || l.RecoveryPoint.Point != point || len(w.west.snapshots()) != 1 || !l.ReceiverReady {
		t.Errorf("the replica: %+v, snapshots %v", l, w.west.snapshots())
	}
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("a source that comes back goes on", w.east.committed("app", ""))
	w.until("the target is content", func() bool { return w.west.ready("app").Status == "True" })

	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("the source is gone again", func() bool { return w.east.get("app") == nil })
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("an orphan can be promoted", w.west.inForce("app", v1alpha1.RoleSource, 2))
}

// A deletion that the API server does not allow is tried for a while, then the Replication goes all the same.
func TestNoFinalizerHangsForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.fresh = func() *Reconciler {
		r := w.west.manager()
		r.Client = forbidding{w.west.kube}
		return r
	}
	asked := time.Now() // the API server's clock is the real one
	w.west.must(w.west.kube.Delete(t.Context(), w.west.get("app")))
	w.until("it says what is in the way", func() bool {
		c := w.west.ready("app")
		return c.Reason == reasonActFailed && strings.Contains(c.Message, errKilled.Error())
	})
	w.until("it is gone", func() bool { return w.west.get("app") == nil })
	if waited := w.now().Sub(asked); waited < refusalPatience {
		t.Errorf("it was given up after %s", waited)
	}
	if !slices.Contains(w.west.claims(), "data") {
		t.Error("the user's claim is gone")
	}
}

// unpaired finds no ClusterPair.
type unpaired struct{ client.Reader }

func (u unpaired) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if _, pair := o.(*v1alpha1.ClusterPair); pair {
		return apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("clusterpairs").GroupResource(), key.Name)
	}
	return u.Reader.Get(ctx, key, o, opts...)
}

// forbidding refuses every deletion of a claim.
type forbidding struct{ client.Client }

func (f forbidding) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	if _, claim := o.(*corev1.PersistentVolumeClaim); claim {
		return errKilled
	}
	return f.Client.Delete(ctx, o, opts...)
}
