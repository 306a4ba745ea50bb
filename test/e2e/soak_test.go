//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// A database and an ordered writer over three volumes are replicated every minute while something breaks every minute:
// the link, a mover, a receiver, a manager, a whole cluster. Every recovery point that appears is restored into claims of its
// own and checked: the writer's order (M-082) and progress, the database's start from it and its sums.
//
// LIFEBOAT_SOAK is how long it lasts (a Go duration; make soak takes two hours); without it a few minutes, which keep the soak
// itself working. LIFEBOAT_SOAK_SEED repeats a run's choice of faults.
func TestSoak(t *testing.T) {
	lasts, seed := 4*time.Minute, time.Now().UnixNano()
	if text := os.Getenv("LIFEBOAT_SOAK"); text != "" {
		var err error
		lasts, err = time.ParseDuration(text)
		must(t, err)
	}
	if text := os.Getenv("LIFEBOAT_SOAK_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseInt(text, 10, 64)
		must(t, err)
	}
	t.Logf("LIFEBOAT_SOAK=%s LIFEBOAT_SOAK_SEED=%d", lasts, seed)

	s := tell(t)
	before := leftovers(t, s)
	for _, chapter := range []func(context.Context) error{s.StartDatabase, s.FillDatabase, s.StartLoad, s.Protect, s.FirstSync} {
		must(t, chapter(t.Context()))
	}
	keep := ptr.To[int32](40)
	editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.Rlinks[0].Retain = keep })
	w := startWriter(t, s, "ordered", s.Home, 3)
	w.protect(t, s.Away.Name, "* * * * *", keep)

	c := &checker{story: s, writer: w, checked: map[string]checkedPoint{}}
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var checking sync.WaitGroup
	checking.Go(func() { c.run(ctx) })

	random := rand.New(rand.NewSource(seed))
	faults := map[string]int{}
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		pace(t, time.Duration(30+random.Intn(40))*time.Second)
		faults[c.breakSomething(t, random)]++
	}
	healed := time.Now()
	t.Logf("nothing breaks any more; faults so far: %v", faults)
	for _, replication := range []string{"ordered", "postgres"} {
		until(t, 15*time.Minute, "a point of "+replication+" that was cut after the last fault is checked", func() (bool, string) {
			newest := c.newest(replication)
			return newest.cut.After(healed), fmt.Sprintf("newest checked is of %s; %s", newest.cut.Format(time.TimeOnly), c.doing())
		})
	}
	enough()
	checking.Wait()
	c.judge(t, faults)
	must(t, s.Check(t.Context()))

	// Whatever befell them, nothing of all that is left.
	for _, side := range []demo.Cluster{s.Home, s.Away} {
		must(t, client.IgnoreNotFound(side.Client.Delete(t.Context(), &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: w.name}})))
	}
	must(t, s.MakeRoom(t.Context()))
	until(t, 3*time.Minute, "nothing is left on either cluster", func() (bool, string) {
		after := leftovers(t, s)
		return after == before, "before:\n" + before + "\nnow:\n" + after
	})
}

// pace is the rhythm of faults; nothing is waited for.
func pace(t *testing.T, d time.Duration) {
	select {
	case <-t.Context().Done():
	case <-time.After(d):
	}
}

// leftovers lists what a replication could leave outside of its namespace on either cluster.
func leftovers(t *testing.T, s *demo.Story) string {
	var out []string
	for _, side := range []demo.Cluster{s.Home, s.Away} {
		var volumes corev1.PersistentVolumeList
		var contents snapshotv1.VolumeSnapshotContentList
		must(t, side.Client.List(t.Context(), &volumes))
		must(t, side.Client.List(t.Context(), &contents))
		for _, v := range volumes.Items {
			out = append(out, side.Name+" volume "+v.Name)
		}
		for _, c := range contents.Items {
			out = append(out, side.Name+" snapshot content "+c.Name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// breakSomething does one thing that may happen to two clusters, and mends it where only a person would.
func (c *checker) breakSomething(t *testing.T, random *rand.Rand) string {
	s := c.story
	side := []demo.Cluster{s.Home, s.Away}[random.Intn(2)]
	switch n := random.Intn(10); {
	case n < 3:
		lasts := time.Duration(2+random.Intn(30)) * time.Second
		t.Logf("%s the link is cut for %s", time.Now().Format(time.TimeOnly), lasts)
		clusters(t, "cut")
		pace(t, lasts)
		clusters(t, "heal")
		return "link cut"
	case n < 5:
		t.Logf("%s the movers are killed", time.Now().Format(time.TimeOnly))
		killPods(t, s.Home, s.Namespace, v1alpha1.ComponentSourceMover)
		return "mover killed"
	case n < 7:
		t.Logf("%s the receivers are killed", time.Now().Format(time.TimeOnly))
		killPods(t, s.Away, s.Namespace, v1alpha1.ComponentReceiver)
		return "receiver killed"
	case n < 9:
		t.Logf("%s the manager of %s is killed", time.Now().Format(time.TimeOnly), side.Name)
		killPods(t, side, v1alpha1.SystemNamespace, v1alpha1.ComponentManager)
		return "manager killed"
	}
	t.Logf("%s cluster %s loses power", time.Now().Format(time.TimeOnly), side.Name)
	clusters(t, "kill", side.Name)
	clusters(t, "restart", side.Name)
	return "cluster restarted"
}

// killPods ends pods at once, without a chance to tidy up. An API server that does not answer has had its fault already.
func killPods(t *testing.T, c demo.Cluster, namespace, component string) {
	err := c.Client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace),
		client.MatchingLabels{v1alpha1.LabelComponent: component}, client.GracePeriodSeconds(0))
	if err != nil {
		t.Logf("kill %s on %s: %v", component, c.Name, err)
	}
}

// checker restores every recovery point that appears on the away cluster and looks at what it holds.
type checker struct {
	story  *demo.Story
	writer *writer

	mu      sync.Mutex
	checked map[string]checkedPoint // by replication/point
	busy    string
}

type checkedPoint struct {
	replication, point string
	cut                time.Time
	// number is the writer's; 0 for the database.
	number int64
	// fault is why the point is not one instant of a working application; empty for a good one.
	fault string
}

func (c *checker) newest(replication string) checkedPoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var newest checkedPoint
	for _, p := range c.checked {
		if p.replication == replication && p.cut.After(newest.cut) {
			newest = p
		}
	}
	return newest
}

func (c *checker) doing() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d points checked; %s", len(c.checked), c.busy)
}

func (c *checker) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = fmt.Sprintf(format, args...)
}

// run checks points until the context ends, the newest first: an old one may be dropped while it waits.
func (c *checker) run(ctx context.Context) {
	for ctx.Err() == nil {
		points, err := c.points(ctx)
		if err != nil {
			c.say("listing points: %v", err)
		}
		for _, p := range points {
			c.say("checking point %s of %s", p.point, p.replication)
			if done, err := c.check(ctx, p); err != nil {
				c.say("checking point %s of %s: %v", p.point, p.replication, err)
			} else {
				c.mu.Lock()
				c.checked[p.replication+"/"+p.point] = done
				c.mu.Unlock()
			}
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

type pointOnTarget struct {
	replication, point string
	cut                time.Time
	snapshots          []*snapshotv1.VolumeSnapshot // by the member's index
}

// points lists those that are whole and were not checked yet, newest first.
func (c *checker) points(ctx context.Context) ([]pointOnTarget, error) {
	byPoint := map[string]*pointOnTarget{}
	for _, replication := range []string{"ordered", "postgres"} {
		var r v1alpha1.Replication
		if err := c.story.Away.Client.Get(ctx, client.ObjectKey{Namespace: c.story.Namespace, Name: replication}, &r); err != nil {
			if apierrors.IsNotFound(err) {
				continue
			}
			return nil, err
		}
		for _, l := range r.Status.Rlinks {
			for _, p := range l.RecoveryPoints {
				byPoint[replication+"/"+p.Point] = &pointOnTarget{replication: replication, point: p.Point, cut: p.Time.Time}
			}
		}
	}
	var list snapshotv1.VolumeSnapshotList
	err := c.story.Away.Client.List(ctx, &list, client.InNamespace(c.story.Namespace), client.MatchingLabels{snapshot.LabelPurpose: string(snapshot.ForRecovery)})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		o := &list.Items[i]
		p := byPoint[o.Labels[v1alpha1.LabelReplication]+"/"+o.Labels[v1alpha1.LabelPoint]]
		if p != nil && o.DeletionTimestamp.IsZero() && o.Status != nil && ptr.Deref(o.Status.ReadyToUse, false) {
			p.snapshots = append(p.snapshots, o)
		}
	}
	var out []pointOnTarget
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range byPoint {
		if _, done := c.checked[key]; done || len(p.snapshots) < c.members(p.replication) {
			continue
		}
		slices.SortFunc(p.snapshots, func(a, b *snapshotv1.VolumeSnapshot) int {
			return strings.Compare(a.Annotations[v1alpha1.AnnotationVolume], b.Annotations[v1alpha1.AnnotationVolume])
		})
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b pointOnTarget) int { return b.cut.Compare(a.cut) })
	return out, nil
}

func (c *checker) members(replication string) int {
	if replication == c.writer.name {
		return c.writer.volumes
	}
	return 1
}

// startFromPoint starts the database from a restored volume, as a failover would, and prints its sums.
const startFromPoint = `set -eu
export PGDATA=/volumes/0/pgdata PATH=/usr/lib/postgresql/15/bin:$PATH
say() { tail -c 2000 > /dev/termination-log; }
pg_ctl -D "$PGDATA" -w -t 120 -s -l /tmp/log -o "-c listen_addresses='' -c unix_socket_directories=/tmp" start || { (echo FAILED; tail -5 /tmp/log) | say; exit 0; }
psql -h /tmp -U postgres -AtX -v ON_ERROR_STOP=1 -c "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
  (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)" 2>&1 | say
pg_ctl -D "$PGDATA" -s -m immediate stop
`

// check restores one point. An error says that it could not be looked at now: it is tried again.
func (c *checker) check(ctx context.Context, p pointOnTarget) (checkedPoint, error) {
	done := checkedPoint{replication: p.replication, point: p.point, cut: p.cut}
	away, ns := c.story.Away.Client, c.story.Namespace
	name := "check-" + p.replication + "-" + p.point
	var claims []string
	var made []client.Object
	for i, o := range p.snapshots {
		claims = append(claims, fmt.Sprintf("%s-%d", name, i))
		made = append(made, restoredClaim(ns, claims[i], o))
	}
	script, args := readScript, []string{strconv.Itoa(len(claims))}
	if p.replication != c.writer.name {
		script = startFromPoint
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: podWith(c.story.Image, claims, "/volumes", script, args...)}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	made = append(made, pod)
	defer func() {
		for i := len(made) - 1; i >= 0; i-- {
			_ = away.Delete(context.WithoutCancel(ctx), made[i], client.GracePeriodSeconds(0)) // the namespace's end removes what an unreachable server keeps
		}
	}()
	for _, o := range made {
		if err := away.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
			return done, err
		}
	}
	for deadline := time.Now().Add(4 * time.Minute); ; {
		var seen corev1.Pod
		err := away.Get(ctx, client.ObjectKeyFromObject(pod), &seen)
		ended := err == nil && len(seen.Status.ContainerStatuses) == 1 && seen.Status.ContainerStatuses[0].State.Terminated != nil
		switch {
		case ended && seen.Status.ContainerStatuses[0].State.Terminated.Message != "":
			done.number, done.fault = c.read(p.replication, seen.Status.ContainerStatuses[0].State.Terminated.Message)
			return done, nil
		case ended:
			// Killed with its cluster, most likely: the point is restored again.
			return done, fmt.Errorf("the checking pod said nothing: %s", seen.Status.ContainerStatuses[0].State.Terminated.Reason)
		case time.Now().After(deadline):
			return done, fmt.Errorf("the checking pod is %s: %v", seen.Status.Phase, err)
		}
		select {
		case <-ctx.Done():
			return done, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (c *checker) read(replication, printed string) (number int64, fault string) {
	if replication == c.writer.name {
		return outOfOrder(printed)
	}
	sums := strings.Split(strings.TrimSpace(printed), "|")
	if len(sums) != 4 {
		return 0, "the database did not start from it: " + printed
	}
	for _, sum := range sums[1:] {
		if sum != sums[0] {
			return 0, "pgbench's sums differ: " + printed
		}
	}
	return 0, ""
}

func restoredClaim(namespace, name string, from *snapshotv1.VolumeSnapshot) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			DataSource:  &corev1.TypedLocalObjectReference{APIGroup: ptr.To(snapshotv1.GroupName), Kind: "VolumeSnapshot", Name: from.Name},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: *from.Status.RestoreSize}},
		},
	}
}

// judge fails the soak for every point that was not one good instant, and prints its figures.
func (c *checker) judge(t *testing.T, faults map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var points []checkedPoint
	for _, p := range c.checked {
		points = append(points, p)
	}
	slices.SortFunc(points, func(a, b checkedPoint) int { return a.cut.Compare(b.cut) })
	count, longest := map[string]int{}, map[string]time.Duration{}
	last := map[string]checkedPoint{}
	inconsistent := 0
	for _, p := range points {
		before, had := last[p.replication]
		if p.fault == "" && had && p.number < before.number {
			p.fault = fmt.Sprintf("it holds number %d, and an earlier point held %d", p.number, before.number)
		}
		if p.fault != "" {
			inconsistent++
			t.Errorf("point %s of %s: %s", p.point, p.replication, p.fault)
		}
		if had {
			longest[p.replication] = max(longest[p.replication], p.cut.Sub(before.cut))
		}
		count[p.replication]++
		last[p.replication] = p
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		t.Logf("figure soak_faults{%s} %d", strings.ReplaceAll(name, " ", "_"), faults[name])
		total += faults[name]
	}
	t.Logf("figure soak_faults %d", total)
	for _, name := range slices.Sorted(maps.Keys(count)) {
		t.Logf("figure soak_points_checked{%s} %d", name, count[name])
		t.Logf("figure soak_longest_between_points_s{%s} %.0f", name, longest[name].Seconds())
	}
	t.Logf("figure soak_inconsistent_points %d", inconsistent)
	t.Logf("figure soak_last_number %d", last[c.writer.name].number)
	for _, pod := range []struct{ cluster, component string }{{"east", "manager"}, {"west", "manager"}} {
		var out bytes.Buffer
		cmd := exec.Command(clustersProgram, "kubectl", pod.cluster, "-n", v1alpha1.SystemNamespace, "get", "pods", "-l", v1alpha1.LabelComponent+"="+pod.component)
		cmd.Stdout, cmd.Stderr = &out, &out
		_ = cmd.Run() // it only shows
		t.Logf("%s\n%s", pod.cluster, out.String())
	}
}
