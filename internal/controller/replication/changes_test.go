package replication

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// run is what a session's mover was given.
type run struct {
	engine.SourceConfig
	// snapshots were there while it ran.
	snapshots []string
	files     map[string]string
	pod       corev1.PodSpec
}

// sessions notes what movers are given; how, when not nil, tells how they end.
func (s *side) sessions(how func(engine.SourceConfig) *ending) *[]run {
	var all []run
	s.ends = func(c engine.SourceConfig) *ending {
		if len(all) == 0 || all[len(all)-1].Point != c.Point {
			all = append(all, s.given(c))
		}
		if how == nil {
			return nil
		}
		return how(c)
	}
	return &all
}

func (s *side) given(c engine.SourceConfig) run {
	var jobs batchv1.JobList
	s.list(&jobs)
	i := slices.IndexFunc(jobs.Items, func(j batchv1.Job) bool { return j.Labels[v1alpha1.LabelPoint] == c.Point })
	var config corev1.ConfigMap
	s.must(s.kube.Get(s.w.t.Context(), s.key(jobs.Items[i].Name), &config))
	return run{c, s.snapshots(), config.Data, jobs.Items[i].Spec.Template.Spec}
}

func (s *side) accounts() int {
	var accounts corev1.ServiceAccountList
	var bindings rbacv1.RoleBindingList
	s.list(&accounts)
	s.list(&bindings)
	return len(accounts.Items) + len(bindings.Items)
}

func listed(w *world) *[]run {
	w.t.Helper()
	w.east.claim("data", "1Gi", listingClass)
	w.east.claim("wal", "1Gi", listingClass)
	w.east.group("app", "data", "wal")
	w.east.replication("app", v1alpha1.RoleSource)
	runs := w.east.sessions(nil)
	w.until("the first point", w.east.committed("app", ""))
	return runs
}

func TestTheNextMoverIsToldWhoListsWhatChangedSinceTheLastPoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	runs := listed(w)
	w.east.trigger("app", "again")
	w.until("a second point", w.east.committed("app", "again"))
	w.until("rest", w.east.idle("app"))
	first, second := (*runs)[0], (*runs)[1]

	if first.Base != "" || first.ChangeNote != "nothing was committed from here yet" {
		t.Errorf("the first session has base %q, note %q", first.Base, first.ChangeNote)
	}
	for i, v := range first.Volumes {
		if v.Changes != nil || v.Allocated == nil || v.Allocated.CSI.BaseSnapshot != "" || v.Allocated.CSI.Snapshot != snapshot.MemberName("app", first.Point, i) {
			t.Errorf("the first session's volume %d: %+v %+v", i, v.Changes, v.Allocated)
		}
	}
	if second.Base != first.Point || second.ChangeNote != "" {
		t.Errorf("the second session has base %q, note %q, want base %s", second.Base, second.ChangeNote, first.Point)
	}
	for i, v := range second.Volumes {
		was, is := snapshot.MemberName("app", first.Point, i), snapshot.MemberName("app", second.Point, i)
		if v.Changes == nil {
			t.Fatalf("volume %s is given no list", v.Name)
		}
		asked := v.Changes.CSI
		if asked.BaseSnapshot != handleOf(was) || asked.Snapshot != is || asked.Namespace != w.namespace || asked.Address != "10.3.0.9:6443" {
			t.Errorf("volume %s is asked about with %+v", v.Name, asked)
		}
		if !slices.Contains(second.snapshots, was) {
			t.Errorf("the base %s was gone while the session ran: %v", was, second.snapshots)
		}
		if file := strings.TrimPrefix(asked.CAFile, configDir+"/"); second.files[file] != "the driver's CA" {
			t.Errorf("%s holds %q", asked.CAFile, second.files[file])
		}
		checkToken(t, second.pod, asked.TokenFile)
	}
	// What the next session needs is kept, and no more.
	for _, name := range w.east.snapshots() {
		if !strings.Contains(name, second.Point) {
			t.Errorf("snapshot %s stayed", name)
		}
	}
	if n := len(w.east.snapshots()); n != 2 {
		t.Errorf("%d snapshots are kept, want the two of %s", n, second.Point)
	}
}

// checkToken looks for one token, for the service alone, where the mover is told to find it.
func checkToken(t *testing.T, pod corev1.PodSpec, file string) {
	t.Helper()
	for _, volume := range pod.Volumes {
		if volume.Projected == nil {
			continue
		}
		sources := volume.Projected.Sources
		if len(sources) != 1 || sources[0].ServiceAccountToken == nil || sources[0].ServiceAccountToken.Audience != "lists" {
			t.Errorf("tokens: %+v", sources)
			return
		}
		for _, mount := range pod.Containers[0].VolumeMounts {
			if mount.Name == volume.Name && mount.MountPath+"/"+sources[0].ServiceAccountToken.Path == file && mount.ReadOnly {
				return
			}
		}
	}
	t.Errorf("no token is mounted at %s", file)
	if *pod.AutomountServiceAccountToken {
		t.Error("a token for the API server is mounted")
	}
}

func TestABaseStaysUntilTheNextPointIsCommitted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := (*listed(w))[0].Point
	refuse := true
	runs := w.east.sessions(func(c engine.SourceConfig) *ending {
		if refuse {
			return &ending{exitRefused, &engine.Report{Point: c.Point, Error: "no room", Kind: engine.KindConflict}}
		}
		return nil
	})
	w.east.trigger("app", "refused")
	w.until("it fails", func() bool { return w.east.link("app").LastSession.Result == "Failed" })
	failed := w.east.link("app").LastSession.Point
	w.until("what it took is gone", func() bool {
		return !slices.ContainsFunc(w.east.snapshots(), func(name string) bool { return strings.Contains(name, failed) })
	})
	refuse = false
	w.east.trigger("app", "again")
	w.until("a point", w.east.committed("app", "again"))
	for _, run := range *runs {
		if run.Base != first {
			t.Errorf("session %s has base %q (%s), want %s", run.Point, run.Base, run.ChangeNote, first)
		}
	}
}

func TestADeletedBaseIsNoBase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	runs := listed(w)
	first := (*runs)[0].Point
	w.until("rest", w.east.idle("app"))
	gone := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: snapshot.MemberName("app", first, 1)}}
	w.east.must(w.east.kube.Delete(t.Context(), gone))
	w.east.trigger("app", "again")
	w.until("a point", w.east.committed("app", "again"))
	second := (*runs)[1]
	if second.Base != "" || second.ChangeNote != "the snapshot of claim wal at point "+first+" is gone" {
		t.Errorf("base %q, note %q", second.Base, second.ChangeNote)
	}
	for _, v := range second.Volumes {
		if v.Changes != nil || v.Allocated == nil {
			t.Errorf("volume %s: changes %+v, allocated %+v", v.Name, v.Changes, v.Allocated)
		}
	}
}

func TestWithoutAServiceTheMoverIsToldWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	runs := w.east.sessions(nil)
	protect(w, "data")
	first := (*runs)[0]
	if first.Base != "" || first.Volumes[0].Changes != nil || first.Volumes[0].Allocated != nil {
		t.Errorf("lists are offered that nobody makes: %+v", first.SourceConfig)
	}
	if want := "driver disk.example.com of claim data has no SnapshotMetadataService, so nobody lists what changed"; first.ChangeNote != want {
		t.Errorf("note %q, want %q", first.ChangeNote, want)
	}
	if first.pod.ServiceAccountName != "" || w.east.accounts() != 0 {
		t.Errorf("an account that nobody needs: %q", first.pod.ServiceAccountName)
	}
}

// After a change of roles the new source holds no snapshot of the point that the former one held: it must not claim a base.
func TestAfterAChangeOfRolesThereIsNoBase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	listed(w)
	if w.east.accounts() != 2 {
		t.Fatalf("%d accounts and bindings, want one of each", w.east.accounts())
	}
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	if w.east.accounts() != 0 || len(w.east.snapshots()) != 0 {
		t.Errorf("a target keeps %d accounts and bindings, and snapshots %v", w.east.accounts(), w.east.snapshots())
	}
	last := w.west.link("app").RecoveryPoint.Point
	runs := w.west.sessions(nil)
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("the way back", w.west.committed("app", ""))
	w.west.trigger("app", "again")
	w.until("once more", w.west.committed("app", "again"))
	back, next := (*runs)[0], (*runs)[1]
	if back.Base != "" || back.ChangeNote != "point "+last+", the newest on the target, is not kept as snapshots here" {
		t.Errorf("the way back has base %q, note %q", back.Base, back.ChangeNote)
	}
	if next.Base != back.Point {
		t.Errorf("the session after it has base %q, want %s", next.Base, back.Point)
	}
	for _, s := range []*side{w.east, w.west} {
		s.must(s.kube.Delete(t.Context(), s.get("app")))
	}
	w.until("both are gone", func() bool { return w.east.get("app") == nil && w.west.get("app") == nil })
	for _, s := range []*side{w.east, w.west} {
		if left := append(s.made(), s.snapshots()...); len(left) != 0 {
			t.Errorf("%s: left behind: %v", s.name, left)
		}
	}
}

func TestOffer(t *testing.T) {
	service := map[string]*snapshot.MetadataService{"disk": {Driver: "disk", Address: "a:1"}, "other": {Driver: "other", Address: "b:1"}}
	cuts := func(point string) []cut {
		return []cut{
			{"data", &snapshot.Seen{Name: "data-" + point, RestoreSize: 1 << 30}, &snapshot.Stored{Driver: "disk", Handle: "h-data-" + point, Volume: "v1"}},
			{"wal", &snapshot.Seen{Name: "wal-" + point, RestoreSize: 1 << 30}, &snapshot.Stored{Driver: "other", Handle: "h-wal-" + point, Volume: "v2"}},
		}
	}
	for _, c := range []struct {
		name string
		edit func(v *view, now, base []cut)
		note string
	}{
		{"all is there", func(*view, []cut, []cut) {}, ""},
		{"nothing was committed", func(v *view, _, _ []cut) { v.status.RecoveryPoint = nil }, "nothing was committed"},
		{"the target has another point", func(v *view, _, _ []cut) { v.status.RecoveryPoint.Point = "p3" }, "point p3"},
		{"no base is kept", func(v *view, _, _ []cut) { v.status.BasePoint = "" }, "point p1"},
		{"one member's base is gone", func(_ *view, _, base []cut) { base[1].snapshot, base[1].stored = nil, nil }, "claim wal at point p1 is gone"},
		{"one is being deleted", func(_ *view, _, base []cut) { base[0].snapshot.Deleting = true }, "claim data at point p1 is gone"},
		{"the claim was made anew", func(_ *view, now, _ []cut) { now[0].stored.Volume = "v9" }, "claim data has another volume"},
		{"the storage does not tell volumes", func(_ *view, now, base []cut) { now[0].stored.Volume, base[0].stored.Volume = "", "" }, "claim data has another volume"},
		{"it moved to another driver", func(_ *view, now, _ []cut) { now[0].stored.Driver = "other" }, "claim data has another volume"},
		{"it has grown", func(_ *view, now, _ []cut) { now[1].snapshot.RestoreSize = 2 << 30 }, "claim wal has another size"},
		{"one driver does not list", func(_ *view, now, base []cut) { now[1].stored.Driver, base[1].stored.Driver = "mute", "mute" }, "driver mute of claim wal"},
		{"the storage does not say", func(_ *view, now, _ []cut) { now[1].stored.Handle = "" }, "the snapshot of claim wal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewOf()
			v.status.BasePoint, v.status.RecoveryPoint = "p1", &v1alpha1.RecoveryPoint{Point: "p1"}
			now, base := cuts("p2"), cuts("p1")
			c.edit(v, now, base)
			l := offer(v, now, base, service)
			if !strings.Contains(l.note, c.note) || (l.note == "") != (c.note == "") {
				t.Errorf("note %q, want %q", l.note, c.note)
			}
			if (l.base == "p1" && len(l.changes) == 2) != (c.note == "") || (l.base == "") != (len(l.changes) == 0) {
				t.Errorf("base %q with %d lists", l.base, len(l.changes))
			}
		})
	}
	// Two drivers: each mover's file and token is that of the member's own.
	v := viewOf()
	v.status.BasePoint, v.status.RecoveryPoint = "p1", &v1alpha1.RecoveryPoint{Point: "p1"}
	l := offer(v, cuts("p2"), cuts("p1"), service)
	raw, err := json.Marshal(l.changes[1])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"csi":{"address":"b:1","caFile":"/etc/lifeboat/config/service-1.crt","tokenFile":"/var/run/lifeboat/tokens/1","namespace":"shop","baseSnapshot":"h-wal-p1","snapshot":"wal-p2"}}`
	if string(raw) != want {
		t.Errorf("the second driver is asked with\n%s, want\n%s", raw, want)
	}
	if len(l.services) != 2 || len(l.files()) != 2 {
		t.Errorf("services %+v", l.services)
	}
}
