//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cli"
	"lifeboat.dev/lifeboat/internal/demo"
)

// What a session costs when nothing has changed: from the edit of triggerNow to the recovery point on the
// target, and where that time goes. It tells, and judges nothing but that each session ends well.
func TestEmptySession(t *testing.T) {
	s := tell(t, func(o *demo.Options) { o.ScheduledSessions = 0 })
	for _, chapter := range []func(context.Context) error{s.StartDatabase, s.FillDatabase, s.Protect, s.FirstSync} {
		must(t, chapter(t.Context()))
	}
	// Only what is triggered here runs.
	editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.Rlinks[0].Schedule = "" })
	const rounds = 7
	took := map[string][]time.Duration{}
	var order []string
	for round := range rounds {
		var before *v1alpha1.RecoveryPoint
		until(t, time.Minute, "both sides are through with the session before", func() (bool, string) {
			here, there := rlink(t, s, s.Home), rlink(t, s, s.Away)
			before = there.RecoveryPoint
			return here.Session == nil && here.LastSession != nil && before != nil && before.Point == here.LastSession.Point, fmt.Sprint(here.LastSession, before)
		})
		trigger := fmt.Sprint("round ", round)
		watching := look(t, s, trigger, before)
		began := time.Now()
		editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.TriggerNow = trigger })
		until(t, time.Minute, "the target has the session's recovery point", func() (bool, string) {
			here, there := rlink(t, s, s.Home), rlink(t, s, s.Away)
			ended := here.Session == nil && here.LastSession.TriggerNow == trigger && here.LastSession.Result == "Committed"
			return ended && there.RecoveryPoint.Point == here.LastSession.Point, fmt.Sprint(here.Session, here.LastSession, there.RecoveryPoint)
		})
		for _, m := range watching() {
			if took[m.what] == nil {
				order = append(order, m.what)
			}
			took[m.what] = append(took[m.what], m.at.Sub(began))
		}
	}
	median := func(what string) time.Duration {
		all := took[what]
		slices.Sort(all)
		return all[len(all)/2]
	}
	slices.SortStableFunc(order, func(a, b string) int { return int(median(a) - median(b)) })
	last := time.Duration(0)
	for _, what := range order {
		at := median(what)
		t.Logf("%6.2f s  +%.2f s  %s (%d of %d rounds)", at.Seconds(), (at - last).Seconds(), what, len(took[what]), rounds)
		last = at
	}
	t.Logf("figure empty_session_s %.2f", median(stationPoint).Seconds())
}

// stationPoint is when the target shows the new point.
const stationPoint = "west: recovery point recorded"

type station struct {
	what string
	at   time.Time
}

// look watches both clusters until the function it returns is called, and notes when the session of a trigger, which
// follows the point before, came past which station first.
func look(t *testing.T, s *demo.Story, trigger string, before *v1alpha1.RecoveryPoint) (end func() []station) {
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var all sync.WaitGroup
	seen := map[string]bool{}
	var stations []station
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		what := fmt.Sprintf(format, args...)
		if !seen[what] {
			seen[what] = true
			stations = append(stations, station{what, time.Now()})
		}
	}
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		for _, list := range []client.ObjectList{&v1alpha1.ReplicationList{}, &snapshotv1.VolumeSnapshotList{}, &corev1.PersistentVolumeClaimList{}, &batchv1.JobList{}, &corev1.PodList{}} {
			// What was there before the session began says nothing of it.
			old := map[string]bool{}
			must(t, c.Client.List(ctx, list, client.InNamespace(s.Namespace)))
			must(t, meta.EachListItem(list, func(o runtime.Object) error {
				old[o.(client.Object).GetName()] = true
				return nil
			}))
			w, err := watcher(t, c.Name).Watch(ctx, list, client.InNamespace(s.Namespace))
			must(t, err)
			all.Go(func() {
				for e := range w.ResultChan() {
					object, is := e.Object.(client.Object)
					switch replication, shows := object.(*v1alpha1.Replication); {
					case !is, e.Type == watch.Deleted: // the end of the watch, or of an object
					case shows:
						noteReplication(c.Name, replication, trigger, before, note)
					case !old[object.GetName()]:
						noteMade(c.Name, object, note)
					}
				}
			})
		}
	}
	return func() []station {
		cancel()
		all.Wait()
		return stations
	}
}

func noteReplication(cluster string, r *v1alpha1.Replication, trigger string, before *v1alpha1.RecoveryPoint, note func(format string, args ...any)) {
	for _, l := range r.Status.Rlinks {
		switch {
		case l.Session != nil && l.Session.TriggerNow == trigger && l.Session.CutAt != nil:
			note("%s: session's instant saved", cluster)
		case l.Session != nil && l.Session.TriggerNow == trigger:
			note("%s: session saved", cluster)
		case l.LastSession != nil && l.LastSession.TriggerNow == trigger:
			note("%s: session's end saved", cluster)
		}
		if cluster == "west" && l.RecoveryPoint != nil && (before == nil || l.RecoveryPoint.Point != before.Point) {
			note(stationPoint)
		}
	}
}

// noteMade notes what was made for the session.
func noteMade(cluster string, object client.Object, note func(format string, args ...any)) {
	switch o := object.(type) {
	case *snapshotv1.VolumeSnapshot:
		note("%s: snapshot made", cluster)
		if o.Status != nil && o.Status.ReadyToUse != nil && *o.Status.ReadyToUse {
			note("%s: snapshot ready", cluster)
		}
	case *corev1.PersistentVolumeClaim:
		note("%s: clone claim made", cluster)
		if o.Status.Phase == corev1.ClaimBound {
			note("%s: clone claim bound", cluster)
		}
	case *batchv1.Job:
		note("%s: job made", cluster)
	case *corev1.Pod:
		if !strings.Contains(o.Labels[v1alpha1.LabelComponent], "mover") {
			return
		}
		note("%s: mover's pod made", cluster)
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionTrue {
				note("%s: mover's pod scheduled", cluster)
			}
		}
		switch o.Status.Phase {
		case corev1.PodRunning:
			note("%s: mover seen running", cluster)
		case corev1.PodSucceeded:
			note("%s: mover seen ended", cluster)
		}
	}
}

func watcher(t *testing.T, name string) client.WithWatch {
	t.Helper()
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(),
		&clientcmd.ConfigOverrides{CurrentContext: name}).ClientConfig()
	must(t, err)
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: cli.Scheme})
	must(t, err)
	return c
}
