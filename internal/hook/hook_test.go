package hook_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/hook"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// stage is a namespace on an API server where the test plays the controllers.
type stage struct {
	*testing.T
	client.Client
	hook      *hook.Hook
	namespace string
}

func open(t *testing.T, namespace string) *stage {
	c := servers.Client(t, "east")
	s := &stage{t, c, hook.New(c, c), namespace}
	s.make(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	return s
}

func (s *stage) make(o client.Object) {
	s.Helper()
	if err := s.Create(context.Background(), o); err != nil {
		s.Fatalf("create %s: %v", o.GetName(), err)
	}
}

func (s *stage) meta(name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: labels}
}

func app(name string) map[string]string { return map[string]string{"app": name} }

func template(labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func jobTemplate() corev1.PodTemplateSpec {
	t := template(nil)
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	return t
}

func (s *stage) deployment(name string, replicas int32) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: s.meta(name, app(name)), Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: app(name)}, Template: template(app(name)),
	}}
	s.make(d)
	return d
}

func (s *stage) replicaSet(owner *appsv1.Deployment, replicas int32) *appsv1.ReplicaSet {
	r := &appsv1.ReplicaSet{ObjectMeta: s.meta(owner.Name+"-rs", app(owner.Name)), Spec: appsv1.ReplicaSetSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: app(owner.Name)}, Template: template(app(owner.Name)),
	}}
	r.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(owner, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
	s.make(r)
	return r
}

func (s *stage) pod(name string, labels map[string]string, owner client.Object, kind string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: s.meta(name, labels), Spec: template(nil).Spec}
	if owner != nil {
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(owner, appsv1.SchemeGroupVersion.WithKind(kind))}
	}
	s.make(p)
	return p
}

// seen says as a controller does that it has seen the present spec, with that many pods there and ready.
func (s *stage) seen(o client.Object, pods int32) {
	s.Helper()
	s.reread(o)
	switch o := o.(type) {
	case *appsv1.Deployment:
		o.Status = appsv1.DeploymentStatus{ObservedGeneration: o.Generation, Replicas: pods, ReadyReplicas: pods}
	case *appsv1.ReplicaSet:
		o.Status = appsv1.ReplicaSetStatus{ObservedGeneration: o.Generation, Replicas: pods, ReadyReplicas: pods}
	case *appsv1.StatefulSet:
		o.Status = appsv1.StatefulSetStatus{ObservedGeneration: o.Generation, Replicas: pods, ReadyReplicas: pods}
	case *appsv1.DaemonSet:
		o.Status = appsv1.DaemonSetStatus{ObservedGeneration: o.Generation, DesiredNumberScheduled: pods, NumberReady: pods}
	default:
		s.Fatalf("a %T has no status to play", o)
	}
	if err := s.Status().Update(context.Background(), o); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) reread(o client.Object) {
	s.Helper()
	if err := s.Get(context.Background(), client.ObjectKeyFromObject(o), o); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) end(pods ...*corev1.Pod) {
	s.Helper()
	for _, p := range pods {
		if err := s.Delete(context.Background(), p, client.GracePeriodSeconds(0)); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *stage) offline(selector *metav1.LabelSelector) hook.Progress {
	s.Helper()
	p, err := s.hook.Offline(context.Background(), s.namespace, selector, "op-1")
	if err != nil {
		s.Fatal(err)
	}
	return p
}

func (s *stage) online() hook.Progress {
	s.Helper()
	p, err := s.hook.Online(context.Background(), s.namespace, nil)
	if err != nil {
		s.Fatal(err)
	}
	return p
}

func (s *stage) phase(want hook.Phase, online bool) hook.State {
	s.Helper()
	state, err := s.hook.Observe(context.Background(), s.namespace, nil)
	if err != nil {
		s.Fatal(err)
	}
	if state.Phase != want || state.Online() != online {
		s.Errorf("the application is %s (online %v), want %s (%v); lacking: %v; pods: %v", state.Phase, state.Online(), want, online, state.Lacking(), state.Pods)
	}
	return state
}

func (s *stage) waits(p hook.Progress, want ...string) {
	s.Helper()
	if len(p.Waiting) != len(want) || p.Done != (len(want) == 0) {
		s.Errorf("done %v, waits for:\n%s\nwant %d:\n%s", p.Done, strings.Join(p.Waiting, "\n"), len(want), strings.Join(want, "\n"))
		return
	}
	for _, w := range want {
		if !slices.ContainsFunc(p.Waiting, func(is string) bool { return strings.HasPrefix(is, w) }) {
			s.Errorf("nothing waited for begins with %q:\n%s", w, strings.Join(p.Waiting, "\n"))
		}
	}
}

func TestOfflineIsDoneOnlyWhenEveryPodIsGone(t *testing.T) {
	s := open(t, "gone")
	s.phase(hook.NoWorkloads, true)
	web := s.deployment("web", 2)
	rs := s.replicaSet(web, 2)
	one, two := s.pod("web-1", app("web"), rs, "ReplicaSet"), s.pod("web-2", app("web"), rs, "ReplicaSet")
	mover := s.pod("lb-repl-west-receiver", map[string]string{"app.kubernetes.io/managed-by": "lifeboat"}, nil, "")
	s.phase(hook.Partly, false)
	s.seen(web, 2)
	s.seen(rs, 2)
	s.phase(hook.Running, true)

	p := s.offline(nil)
	if p.Changed != 1 {
		t.Errorf("%d changed, want the Deployment alone: its ReplicaSet is its own", p.Changed)
	}
	s.waits(p, "Deployment web: its controller has not seen replicas 0 yet", "ReplicaSet web-rs: wants 2 replicas", "Pod web-1 is Pending", "Pod web-2 is Pending")

	none := int32(0)
	s.reread(rs)
	rs.Spec.Replicas = &none
	if err := s.Update(context.Background(), rs); err != nil {
		t.Fatal(err)
	}
	s.seen(web, 0)
	s.seen(rs, 0)
	// A pod that is being deleted still runs: a finalizer keeps this one, as its node would.
	s.reread(one)
	one.Finalizers = []string{"test/running"}
	if err := s.Update(context.Background(), one); err != nil {
		t.Fatal(err)
	}
	s.end(one, two)
	s.waits(s.offline(nil), "Pod web-1 is ending, to be gone by ")
	s.phase(hook.Partly, false)

	s.reread(one)
	one.Finalizers = nil
	if err := s.Update(context.Background(), one); err != nil {
		t.Fatal(err)
	}
	s.waits(s.offline(nil))
	s.phase(hook.Stopped, false)
	s.reread(mover)

	if p := s.online(); !p.Done || p.Changed != 1 {
		t.Errorf("online: %+v", p)
	}
	s.reread(web)
	if *web.Spec.Replicas != 2 || len(web.Annotations) != 0 {
		t.Errorf("the Deployment has %d replicas and the annotations %v", *web.Spec.Replicas, web.Annotations)
	}
	s.phase(hook.Partly, false)
	s.seen(web, 2)
	s.phase(hook.Running, true)
	if p := s.online(); p.Changed != 0 {
		t.Errorf("online twice changes %d", p.Changed)
	}
}

func TestEveryKindOfWorkloadIsStoppedAndPutBack(t *testing.T) {
	s := open(t, "kinds")
	two := int32(2)
	db := &appsv1.StatefulSet{ObjectMeta: s.meta("db", nil), Spec: appsv1.StatefulSetSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: app("db")}, Template: template(app("db"))}}
	bare := &appsv1.ReplicaSet{ObjectMeta: s.meta("bare", nil), Spec: appsv1.ReplicaSetSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: app("bare")}, Template: template(app("bare"))}}
	agent := &appsv1.DaemonSet{ObjectMeta: s.meta("agent", nil), Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: app("agent")}, Template: template(app("agent"))}}
	report := &batchv1.CronJob{ObjectMeta: s.meta("report", nil), Spec: batchv1.CronJobSpec{Schedule: "0 3 * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: jobTemplate()}}}}
	alone := &batchv1.Job{ObjectMeta: s.meta("import", nil), Spec: batchv1.JobSpec{Template: jobTemplate()}}
	for _, o := range []client.Object{db, bare, agent, report, alone} {
		s.make(o)
	}
	run := &batchv1.Job{ObjectMeta: s.meta("report-29", nil), Spec: batchv1.JobSpec{Template: jobTemplate()}}
	run.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(report, batchv1.SchemeGroupVersion.WithKind("CronJob"))}
	s.make(run)
	ended := &batchv1.Job{ObjectMeta: s.meta("ended", nil), Spec: batchv1.JobSpec{Template: jobTemplate()}}
	s.make(ended)
	now := metav1.Now()
	ended.Status = batchv1.JobStatus{StartTime: &now, CompletionTime: &now, Succeeded: 1, Conditions: []batchv1.JobCondition{
		{Type: batchv1.JobSuccessCriteriaMet, Status: corev1.ConditionTrue}, {Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}}
	if err := s.Status().Update(context.Background(), ended); err != nil {
		t.Fatal(err)
	}

	p := s.offline(nil)
	if p.Changed != 6 {
		t.Errorf("%d changed, want all but the Job that ended; %v", p.Changed, p.Waiting)
	}
	for _, o := range []client.Object{db, bare, agent} {
		s.seen(o, 0)
	}
	s.waits(s.offline(nil))
	s.phase(hook.Stopped, false)
	for _, o := range []client.Object{report, alone, run, ended} {
		s.reread(o)
	}
	if !*report.Spec.Suspend || !*alone.Spec.Suspend || !*run.Spec.Suspend || *ended.Spec.Suspend {
		t.Errorf("suspended: report %v, import %v, report-29 %v, ended %v", *report.Spec.Suspend, *alone.Spec.Suspend, *run.Spec.Suspend, *ended.Spec.Suspend)
	}
	if by := report.Annotations[hook.AnnotationOfflineBy]; by != "op-1" {
		t.Errorf("offline by %q", by)
	}

	if p := s.online(); p.Changed != 6 {
		t.Errorf("%d put back, want 6", p.Changed)
	}
	for _, o := range []client.Object{db, bare, agent, report, alone, run} {
		s.reread(o)
		if len(o.GetAnnotations()) > 1 || o.GetAnnotations()[hook.AnnotationOfflineBy] != "" {
			t.Errorf("%s has the annotations %v", o.GetName(), o.GetAnnotations())
		}
	}
	if *db.Spec.Replicas != 2 || *bare.Spec.Replicas != 2 || agent.Spec.Template.Spec.NodeSelector != nil || *report.Spec.Suspend || *alone.Spec.Suspend || *run.Spec.Suspend {
		t.Error("not everything is as it was")
	}
}

func TestPodsThatNothingStopsAreNamedWithWhatToDo(t *testing.T) {
	s := open(t, "named")
	s.pod("tool", nil, nil, "")
	operator := &corev1.ConfigMap{ObjectMeta: s.meta("cluster", nil)}
	s.make(operator)
	s.pod("pg-1", nil, operator, "Cluster")
	over := s.pod("over", nil, nil, "")
	over.Status.Phase = corev1.PodSucceeded
	if err := s.Status().Update(context.Background(), over); err != nil {
		t.Fatal(err)
	}
	// It has ended, but its node has not let go of its volumes until it is gone.
	leaving := s.pod("leaving", nil, nil, "")
	leaving.Finalizers = []string{"test/mounted"}
	if err := s.Update(context.Background(), leaving); err != nil {
		t.Fatal(err)
	}
	leaving.Status.Phase = corev1.PodFailed
	if err := s.Status().Update(context.Background(), leaving); err != nil {
		t.Fatal(err)
	}
	s.end(leaving)
	s.waits(s.offline(nil),
		"Pod leaving is ending, to be gone by ",
		"Pod pg-1 is Pending and belongs to Cluster cluster (apps/v1), which Lifeboat cannot stop",
		"Pod tool is Pending and has no controller, so nothing would start it again if the operation were undone: end it yourself with kubectl -n named delete pod tool")
}

func TestWhateverScalesAWorkloadAgainIsNoticed(t *testing.T) {
	s := open(t, "again")
	web := s.deployment("web", 2)
	s.offline(nil)
	s.seen(web, 0)
	s.waits(s.offline(nil))
	three := int32(3)
	s.reread(web)
	web.Spec.Replicas = &three
	if err := s.Update(context.Background(), web); err != nil {
		t.Fatal(err)
	}
	p := s.offline(nil)
	if p.Changed != 1 {
		t.Error("it was not stopped again")
	}
	s.online()
	s.reread(web)
	if *web.Spec.Replicas != 3 {
		t.Errorf("it came back with %d replicas, want the 3 somebody asked for last", *web.Spec.Replicas)
	}
}

func TestASelectorKeepsOtherApplicationsRunning(t *testing.T) {
	s := open(t, "chosen")
	web, other := s.deployment("web", 1), s.deployment("other", 1)
	webSet, otherSet := s.replicaSet(web, 0), s.replicaSet(other, 1)
	s.seen(webSet, 0)
	s.seen(otherSet, 1)
	s.pod("other-1", app("other"), otherSet, "ReplicaSet")
	// Its ReplicaSet is gone already, but it runs on and its labels tell whose it is.
	orphan := s.pod("web-orphan", app("web"), &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "gone", UID: "gone"}}, "ReplicaSet")
	chosen := &metav1.LabelSelector{MatchLabels: app("web")}
	s.offline(chosen)
	s.seen(web, 0)
	s.waits(s.offline(chosen), "Pod web-orphan")
	s.end(orphan)
	s.waits(s.offline(chosen))
	s.reread(other)
	if *other.Spec.Replicas != 1 {
		t.Error("an application the selector does not choose was stopped")
	}
}

// Two managers, or a manager and a user, write at once: no count is lost.
func TestACountThatChangesWhileItIsReadIsNotLost(t *testing.T) {
	s := open(t, "race")
	for i := range 5 {
		d := s.deployment(fmt.Sprintf("web-%d", i), 2)
		scaled := hook.New(s, &scalingBehind{Client: s, stage: s, name: d.Name})
		if _, err := scaled.Offline(context.Background(), s.namespace, &metav1.LabelSelector{MatchLabels: app(d.Name)}, "op"); err != nil {
			t.Fatal(err)
		}
		s.reread(d)
		if *d.Spec.Replicas != 0 || d.Annotations["lifeboat.dev/replicas"] != "7" {
			t.Errorf("%d replicas, kept %q: want 0 and the 7 that were asked for in between", *d.Spec.Replicas, d.Annotations["lifeboat.dev/replicas"])
		}
	}
}

// scalingBehind scales a Deployment to 7 just before the first patch arrives.
type scalingBehind struct {
	client.Client
	stage *stage
	name  string
	done  bool
}

func (c *scalingBehind) Patch(ctx context.Context, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
	if !c.done {
		c.done = true
		d := &appsv1.Deployment{ObjectMeta: c.stage.meta(c.name, nil)}
		c.stage.reread(d)
		seven := int32(7)
		d.Spec.Replicas = &seven
		if err := c.stage.Update(ctx, d); err != nil {
			return err
		}
	}
	return c.Client.Patch(ctx, o, patch, opts...)
}
