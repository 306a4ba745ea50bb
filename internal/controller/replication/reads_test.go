package replication

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
)

// current is what is watched when news are never late.
type current struct{ client.Reader }

func (current) Watches(client.Object) bool { return true }

// behind answers each question with what it would have answered a few questions ago.
type behind struct {
	client.Reader
	by int

	mu      sync.Mutex
	answers map[string][]said
}

type said struct {
	content any
	err     error
}

func (l *behind) Watches(client.Object) bool { return true }

func (l *behind) tell(question string, into any, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answers == nil {
		l.answers = map[string][]said{}
	}
	all := append(l.answers[question], said{reflect.ValueOf(into).Elem().Interface(), err})
	all = all[max(0, len(all)-1-l.by):]
	l.answers[question] = all
	reflect.ValueOf(into).Elem().Set(reflect.ValueOf(all[0].content))
	return all[0].err
}

func (l *behind) Get(ctx context.Context, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
	return l.tell(fmt.Sprintf("%T %s", into, key), into, l.Reader.Get(ctx, key, into, opts...))
}

func (l *behind) List(ctx context.Context, into client.ObjectList, opts ...client.ListOption) error {
	asked := (&client.ListOptions{}).ApplyOptions(opts)
	return l.tell(fmt.Sprintf("%T %s %v", into, asked.Namespace, asked.LabelSelector), into, l.Reader.List(ctx, into, opts...))
}

// However late news come, sessions end well, none is started twice, the base is kept and nothing is left.
func TestLateNewsCostTimeAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, by := range []int{1, 4} {
		t.Run(fmt.Sprintf("by %d looks", by), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.east.r.Watched = &behind{Reader: w.east.kube, by: by}
			protect(w, "data", "wal")
			const more = 3
			for i := range more {
				token := fmt.Sprint("again", i)
				w.east.trigger("app", token)
				w.until("point "+token, w.east.committed("app", token))
			}
			w.until("nothing is left", func() bool { return w.east.idle("app")() && len(w.east.claims()) == 2 && len(w.east.snapshots()) == 2 })
			link := w.east.link("app")
			if link.BasePoint != link.LastSession.Point {
				t.Errorf("the base is %q, the newest point %q", link.BasePoint, link.LastSession.Point)
			}
			if len(link.History) != more {
				t.Errorf("%d sessions before the last, want %d", len(link.History), more)
			}
			for _, ended := range append(link.History, *link.LastSession) {
				if ended.Result != resultCommitted {
					t.Errorf("session %s: %s %s", ended.Point, ended.Result, ended.Message)
				}
			}
		})
	}
}

// blind sees no snapshots and no claims of Lifeboat's.
type blind struct{ client.Reader }

func (blind) Watches(client.Object) bool { return true }

func (b blind) List(ctx context.Context, into client.ObjectList, opts ...client.ListOption) error {
	switch into.(type) {
	case *snapshotv1.VolumeSnapshotList, *corev1.PersistentVolumeClaimList, *batchv1.JobList, *corev1.PodList:
		return nil
	}
	return b.Reader.List(ctx, into, opts...)
}

// What the watches do not show is not taken for lost: before a session is given up the API server is asked.
func TestWhatIsNotSeenIsNotTakenForLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.east.holdMovers = true
	w.east.trigger("app", "again")
	w.until("a mover runs", func() bool {
		link := w.east.link("app")
		return link.Session != nil && link.Session.CutAt != nil && len(w.east.jobs()) > 0
	})
	point := w.east.link("app").Session.Point
	w.east.r.Watched = blind{w.east.kube}
	for range 10 {
		w.turn()
	}
	if link := w.east.link("app"); link.Session == nil || link.Session.Point != point {
		t.Fatalf("the session was given up: %+v", link.LastSession)
	}
	w.east.r.Watched, w.east.holdMovers = current{w.east.kube}, false
	w.until("the session's end", w.east.committed("app", "again"))
}

func (s *side) jobs() []string {
	var list batchv1.JobList
	s.list(&list)
	var out []string
	for _, job := range list.Items {
		out = append(out, job.Name)
	}
	return out
}

// Only a source in force goes by what is watched, and only to steps that may be taken by it.
func TestWhoGoesByWhatIsWatched(t *testing.T) {
	in := func(edit func(*v1alpha1.Replication)) *v1alpha1.Replication {
		rep := &v1alpha1.Replication{Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, Epoch: 3}}
		rep.Generation, rep.Status.ObservedGeneration, rep.Status.Role, rep.Status.Epoch = 2, 2, v1alpha1.RoleSource, 3
		edit(rep)
		return rep
	}
	for name, c := range map[string]struct {
		rep  *v1alpha1.Replication
		want bool
	}{
		"a source in force":          {in(func(*v1alpha1.Replication) {}), true},
		"its spec was edited":        {in(func(r *v1alpha1.Replication) { r.Generation = 3 }), false},
		"it has no role yet":         {in(func(r *v1alpha1.Replication) { r.Status.Role = "" }), false},
		"it is a target still":       {in(func(r *v1alpha1.Replication) { r.Status.Role = v1alpha1.RoleTarget }), false},
		"a newer epoch is wanted":    {in(func(r *v1alpha1.Replication) { r.Spec.Epoch = 4 }), false},
		"it shall become a target":   {in(func(r *v1alpha1.Replication) { r.Spec.Role = v1alpha1.RoleTarget }), false},
		"it has claimed a new epoch": {in(func(r *v1alpha1.Replication) { r.Status.ClaimedEpoch = &v1alpha1.ClaimedEpoch{Epoch: 4, Generation: 2} }), false},
		"a target in force":          {in(func(r *v1alpha1.Replication) { r.Spec.Role, r.Status.Role = v1alpha1.RoleTarget, v1alpha1.RoleTarget }), false},
	} {
		if got := settled(c.rep); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	enough := []cycle.Step{cycle.Wait, cycle.Rest, cycle.FollowMover, cycle.StartSession, cycle.TakeSnapshots, cycle.RecordCut, cycle.MakeClones, cycle.StartMover,
		cycle.CommitSession, cycle.Tidy}
	for _, step := range append([]cycle.Step{cycle.FailSession, cycle.RemoveMover, cycle.TakeRole, cycle.TakeEpoch, cycle.PreparePeer, cycle.GrowPeer, cycle.CutApart,
		cycle.SealSpool, cycle.RemoveSpool, cycle.RemovePair, cycle.RemoveReceiver, cycle.BeginRollback}, enough...) {
		s := &sight{links: []*view{{status: &v1alpha1.RlinkStatus{}}}}
		if got := suffices(s, []cycle.Decision{{Step: step}}); got != slices.Contains(enough, step) {
			t.Errorf("%s by what is watched: %t", step, got)
		}
	}
	together := &sight{links: []*view{{status: &v1alpha1.RlinkStatus{Session: &v1alpha1.SessionStatus{Cut: v1alpha1.CutAtomic}}}}}
	if suffices(together, []cycle.Decision{{Step: cycle.Tidy}}) {
		t.Error("group snapshots are removed by what is watched")
	}
}

// News wake a Replication; what is none does not.
func TestWhatIsNews(t *testing.T) {
	yes := true
	ready := &snapshotv1.VolumeSnapshot{Status: &snapshotv1.VolumeSnapshotStatus{ReadyToUse: &yes}}
	pod := func(component string, phase corev1.PodPhase, end *corev1.ContainerStateTerminated) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelComponent: component}}}
		p.Status.Phase = phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{Terminated: end}}}
		return p
	}
	ended := &corev1.ContainerStateTerminated{Message: "done"}
	pair := func(link v1alpha1.LinkState, beat time.Time) *v1alpha1.ClusterPair {
		at := metav1.NewTime(beat)
		return &v1alpha1.ClusterPair{Status: v1alpha1.ClusterPairStatus{LinkState: link, LastHeartbeat: &at}}
	}
	claim := func(phase corev1.PersistentVolumeClaimPhase, labels map[string]string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
	}
	ours := map[string]string{v1alpha1.LabelReplication: "app"}
	leaving := claim(corev1.ClaimBound, ours)
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	mover, receiver := v1alpha1.ComponentSourceMover, v1alpha1.ComponentReceiver
	for name, c := range map[string]struct {
		of       predicate.Predicate
		was, now client.Object
		want     bool
	}{
		"a snapshot can be used":       {changed(snapshotNews), &snapshotv1.VolumeSnapshot{}, ready, true},
		"a snapshot's labels":          {changed(snapshotNews), ready, &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Labels: ours}, Status: ready.Status}, false},
		"a mover runs":                 {changed(podNews), pod(mover, corev1.PodPending, nil), pod(mover, corev1.PodRunning, nil), false},
		"a mover has ended":            {changed(podNews), pod(mover, corev1.PodRunning, nil), pod(mover, corev1.PodRunning, ended), true},
		"a receiver runs":              {changed(podNews), pod(receiver, corev1.PodPending, nil), pod(receiver, corev1.PodRunning, nil), true},
		"a clone is bound":             {changedOrMade(claimNews), claim(corev1.ClaimPending, ours), claim(corev1.ClaimBound, ours), true},
		"a clone that is removed goes": {changedOrMade(claimNews), claim(corev1.ClaimBound, ours), leaving, false},
		"a member is bound":            {changedOrMade(claimNews), claim(corev1.ClaimPending, nil), claim(corev1.ClaimBound, nil), true},
		"a heartbeat":                  {changedOrMade(pairNews), pair(v1alpha1.LinkConnected, time.Unix(1, 0)), pair(v1alpha1.LinkConnected, time.Unix(6, 0)), false},
		"the link is back":             {changedOrMade(pairNews), pair(v1alpha1.LinkLost, time.Unix(1, 0)), pair(v1alpha1.LinkConnected, time.Unix(6, 0)), true},
	} {
		if got := c.of.Update(event.UpdateEvent{ObjectOld: c.was, ObjectNew: c.now}); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if changed(jobNews).Create(event.CreateEvent{Object: &batchv1.Job{}}) || !changedOrMade(claimNews).Create(event.CreateEvent{Object: claim("", nil)}) {
		t.Error("made: a Job that only a manager makes wakes, or a claim does not")
	}
}

// A claim wakes whom it serves, whose member it is, and whose member its labels make it.
func TestWhomAClaimWakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.east
	s.create(&v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "labelled"},
		Spec: v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "shop"}}}})
	s.group("app", "data")
	s.replication("app", v1alpha1.RoleSource)
	s.replication("by-label", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.PVCGroupName = "labelled" })
	s.claim("data", "1Gi", className)
	w.until("the member is known", func() bool { return len(s.get("app").Status.Claims) == 1 })
	claim := func(name string, labels map[string]string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name, Labels: labels}}
	}
	for _, c := range []struct {
		claim *corev1.PersistentVolumeClaim
		want  string
	}{
		{claim("data", nil), "app"},
		{claim("new", map[string]string{"app": "shop"}), "by-label"},
		{claim("other", nil), ""},
		{claim("clone", map[string]string{"app": "shop", v1alpha1.LabelReplication: "app"}), "app"},
	} {
		woken := ""
		for _, one := range s.r.usersOfClaim(t.Context(), c.claim) {
			woken += one.Name
		}
		if woken != c.want {
			t.Errorf("%s wakes %q, want %q", c.claim.Name, woken, c.want)
		}
	}
}

// What is under way goes before what waits.
func TestWhatIsUnderWayGoesFirst(t *testing.T) {
	for name, c := range map[string]struct {
		step    cycle.Step
		session bool
		epoch   int64
		want    int
	}{
		"at rest":                 {cycle.Rest, false, 3, atRest},
		"waits for its turn":      {cycle.Wait, false, 3, atRest},
		"begins a session":        {cycle.StartSession, false, 3, underWay},
		"waits for its snapshots": {cycle.Wait, true, 3, underWay},
		"tidies up":               {cycle.Tidy, false, 3, underWay},
		"is being promoted":       {cycle.Wait, false, 4, underWay},
	} {
		rep := &v1alpha1.Replication{Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, Epoch: c.epoch}}
		rep.Status.Role, rep.Status.Epoch = v1alpha1.RoleSource, 3
		v := &view{rep: rep, status: &v1alpha1.RlinkStatus{}}
		if c.session {
			v.status.Session = &v1alpha1.SessionStatus{}
		}
		if got := urgency(&sight{rep: rep, links: []*view{v}}, []cycle.Decision{{Step: c.step}}); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
