package hook_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/hook/hooktest"
)

// quiet is an application of some pods, with the commands of Rules run on this machine.
type quiet struct {
	*testing.T
	machine *hooktest.Machine
	rules   *hook.Rules
	owner   hook.Owner
}

func running(name string, edit ...func(*corev1.Pod)) client.Object {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: app("db")},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "db"}, {Name: "side"}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	for _, e := range edit {
		e(p)
	}
	return p
}

func newQuiet(t *testing.T, pods ...client.Object) *quiet {
	m := hooktest.New(t)
	q := &quiet{t, m, hook.NewRules(fake.NewClientBuilder().WithObjects(pods...).Build(), m), owner("p1")}
	q.rules.Pause = time.Millisecond
	return q
}

func owner(point string) hook.Owner {
	return hook.Owner{Replication: types.NamespacedName{Namespace: "shop", Name: "db"}, Rlink: "dr", Point: point}
}

func ruleOf(actions ...v1alpha1.RuleAction) *v1alpha1.Rule {
	return &v1alpha1.Rule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "r"}, Rules: []v1alpha1.RuleItem{{PodSelector: app("db"), Actions: actions}}}
}

func run(value string) v1alpha1.RuleAction { return v1alpha1.RuleAction{Value: value} }

func holding(value string) v1alpha1.RuleAction {
	return v1alpha1.RuleAction{Value: value, Background: true}
}

func within(a v1alpha1.RuleAction, timeout time.Duration) v1alpha1.RuleAction {
	a.Timeout = &metav1.Duration{Duration: timeout}
	return a
}

// eventually waits for what other processes do.
func (q *quiet) eventually(what string, done func() bool) {
	q.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			q.Fatalf("never: %s; %+v; log %v", what, q.rules.Look(q.owner), q.log())
		}
	}
}

func (q *quiet) log() []string { return q.machine.Lines("log") }

func (q *quiet) logged(want ...string) {
	q.Helper()
	if got := q.log(); !slices.Equal(got, want) {
		q.Errorf("the commands wrote %v, want %v", got, want)
	}
}

func (q *quiet) quiesce(rule *v1alpha1.Rule, want hook.RunPhase) hook.Run {
	q.Helper()
	if holder := q.rules.Reserve(q.owner, "r"); holder != "" {
		q.Fatal(holder)
	}
	q.rules.Quiesce(q.Context(), q.owner, rule)
	q.eventually("the first rule is through", func() bool { return q.rules.Look(q.owner).Phase != hook.RunQuiescing })
	got := q.rules.Look(q.owner)
	if got.Phase != want {
		q.Errorf("phase %d, want %d: %+v", got.Phase, want, got)
	}
	return got
}

func (q *quiet) resume(rule *v1alpha1.Rule) hook.Run {
	q.Helper()
	q.rules.Resume(q.Context(), q.owner, rule, "", 0)
	q.eventually("the application is let go", func() bool { return q.rules.Look(q.owner).Phase == hook.RunResumed })
	return q.rules.Look(q.owner)
}

func (q *quiet) says(what, got string, want ...string) {
	q.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			q.Errorf("%s is %q, want %q in it", what, got, w)
		}
	}
}

func TestABackgroundCommandHoldsUntilItIsLetGo(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	got := q.quiesce(ruleOf(run("echo first >> log"), holding(`echo held >> log; ${WAIT_CMD}; echo gone >> log`)), hook.RunQuiesced)
	if got.Holds != 1 || got.Proven || got.Pre.Err != "" || !slices.Equal(got.Pre.Pods, []string{"db-0"}) {
		t.Errorf("%+v", got)
	}
	q.logged("first", "held")
	if err := q.rules.Prove(t.Context(), q.owner); err != nil || !q.rules.Look(q.owner).Proven {
		t.Errorf("it holds: %v", err)
	}
	if got = q.resume(ruleOf(run("echo post >> log"))); got.Post.Err != "" {
		t.Errorf("%+v", got)
	}
	q.logged("first", "held", "gone", "post")
	q.rules.Forget(q.owner)
	if got = q.rules.Look(q.owner); got.Phase != hook.RunUnknown {
		t.Errorf("%+v", got)
	}
}

// What stands in single quotes is expanded by the shell of whoever runs it, as mysql's system does.
func TestWaitCmdWorksInsideOfOtherCommands(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	q.quiesce(ruleOf(holding(`sh -c 'echo held >> log; sh -c "\${WAIT_CMD}"; echo gone >> log'`)), hook.RunQuiesced)
	q.resume(nil)
	q.logged("held", "gone")
}

func TestWhatHoldsIsLetGoWhenTheManagerIsGone(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	q.quiesce(ruleOf(holding(`${WAIT_CMD}; echo gone >> log`)), hook.RunQuiesced)
	q.machine.Crash()
	q.eventually("the command ends", func() bool { return slices.Equal(q.log(), []string{"gone"}) })
	q.eventually("it is known", func() bool { return q.rules.Look(q.owner).Phase == hook.RunFailed })
	q.says("the reason", q.rules.Look(q.owner).Pre.Err, "container db of pod db-0", "connection")
	if err := q.rules.Prove(t.Context(), q.owner); err == nil {
		t.Error("what holds no more was proven to hold")
	}
}

func TestACommandThatDoesNotHoldFails(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	got := q.quiesce(ruleOf(holding(`true # ${WAIT_CMD}`)), hook.RunFailed)
	q.says("the reason", got.Pre.Err, "ended before it was told to")

	q.owner = owner("p2")
	q.rules.Forget(owner("p1"))
	got = q.quiesce(ruleOf(within(holding(`sleep 2; ${WAIT_CMD}`), time.Second)), hook.RunFailed)
	q.says("the reason", got.Pre.Err, "not at ${WAIT_CMD}")
}

// The command is still there, but the application is not held any more: only an answer is a proof.
func TestACommandThatIsThereAndHoldsNoMoreIsFoundOut(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	q.quiesce(ruleOf(holding(`sh -c 'echo $$ > pid; exec ${WAIT_CMD}'; sleep 3`)), hook.RunQuiesced)
	pid, err := strconv.Atoi(q.machine.Lines("pid")[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Until it has ended it may answer once more.
	q.eventually("it ends", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := q.rules.Prove(ctx, q.owner); err == nil {
		t.Error("it was proven to hold")
	}
	if got := q.rules.Look(q.owner); got.Phase != hook.RunFailed || got.Proven {
		t.Errorf("%+v", got)
	}
}

func TestAFailureEndsTheRuleAndLetsGoWhatHolds(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	got := q.quiesce(ruleOf(holding(`${WAIT_CMD}; echo gone >> log`), run(`echo in public; echo "`+strings.Repeat("x", 500)+` no lock" >&2; exit 7`), run("echo never >> log")), hook.RunFailed)
	q.says("the reason", got.Pre.Err, "Rule r: rules[0].actions[1]", "code 7", "no lock")
	if strings.Contains(got.Pre.Err, "public") || strings.Contains(got.Pre.Err, "echo") || len(got.Pre.Err) > 400 {
		t.Errorf("too much is told: %s", got.Pre.Err)
	}
	q.eventually("the hold ends", func() bool { return slices.Equal(q.log(), []string{"gone"}) })
}

func TestACommandThatTakesTooLongIsEndedInItsContainer(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	got := q.quiesce(ruleOf(within(run("echo $$ > pid; sleep 60"), time.Second)), hook.RunFailed)
	q.says("the reason", got.Pre.Err, "took longer than 1s")
	pid, err := strconv.Atoi(q.machine.Lines("pid")[0])
	if err != nil {
		t.Fatal(err)
	}
	q.eventually("its process is gone", func() bool {
		return errors.Is(syscall.Kill(pid, 0), os.ErrProcessDone) || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func TestCommandsRunInThePodsThatRun(t *testing.T) {
	in := func(pod, container string) string { return pod + "/" + container }
	pods := []client.Object{
		running("db-1"), running("db-0", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"kubectl.kubernetes.io/default-container": "side"}
		}),
		running("over", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		running("other", func(p *corev1.Pod) { p.Labels = app("web") }),
		running("mover", func(p *corev1.Pod) { p.Labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedByLifeboat }),
		running("elsewhere", func(p *corev1.Pod) { p.Namespace = "bank" }),
	}
	say := run("echo $POD/$CONTAINER >> log")
	single, named := say, ruleOf(say)
	single.RunInSinglePod = true
	named.Rules[0].Container = "side"
	for _, c := range []struct {
		name string
		rule *v1alpha1.Rule
		want []string
	}{
		{"all", ruleOf(say), []string{in("db-0", "side"), in("db-1", "db")}},
		{"the first by name", ruleOf(single), []string{in("db-0", "side")}},
		{"a container by name", named, []string{in("db-0", "side"), in("db-1", "side")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newQuiet(t, pods...)
			q.quiesce(c.rule, hook.RunQuiesced)
			got := q.log()
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("they ran in %v, want %v", got, c.want)
			}
		})
	}
	q := newQuiet(t, pods...)
	named.Rules[0].Container = "lost"
	q.says("the reason", q.quiesce(named, hook.RunFailed).Pre.Err, "pod db-0 has no container lost")
}

func TestWithoutAPodTheRuleSucceedsWithAWarning(t *testing.T) {
	q := newQuiet(t)
	got := q.quiesce(ruleOf(holding("${WAIT_CMD}")), hook.RunQuiesced)
	if got.Holds != 0 || got.Pre.Err != "" {
		t.Errorf("%+v", got)
	}
	q.says("the warning", got.Pre.Warning, "no running pod of namespace shop")
}

// Two sessions that quiesced the same pods would let them go under each other.
func TestARuleIsOneOwnersAtATime(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	if holder := q.rules.Reserve(owner("p1"), "freeze", "thaw"); holder != "" {
		t.Fatal(holder)
	}
	q.says("the holder", q.rules.Reserve(owner("p2"), "other", "thaw"), "Rule thaw", "session p1 of Replication db, link dr")
	if holder := q.rules.Reserve(owner("p3"), "other", ""); holder != "" {
		t.Error(holder)
	}
	elsewhere := owner("p4")
	elsewhere.Replication.Namespace = "bank"
	if holder := q.rules.Reserve(elsewhere, "thaw"); holder != "" {
		t.Errorf("a Rule of another namespace: %s", holder)
	}
	q.rules.Forget(owner("p1"))
	if holder := q.rules.Reserve(owner("p2"), "other2", "thaw"); holder != "" {
		t.Error(holder)
	}
}

func TestLettingGoIsTriedAgainAndLeavesNothingOut(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	q.quiesce(nil, hook.RunQuiesced)
	got := q.resume(ruleOf(run(`echo one >> log; [ $(grep -c one log) = 3 ]`), run(`echo two >> log; false`), run("echo three >> log")))
	q.logged("one", "one", "one", "two", "two", "two", "three")
	q.says("the failure", got.Post.Err, "rules[0].actions[1]", "tried 3 times")
	if strings.Contains(got.Post.Err, "actions[0]") {
		t.Errorf("what went well in the end is told: %s", got.Post.Err)
	}
}

// A command that runs when the application is let go must not quiesce it afterwards.
func TestLettingGoWaitsForTheCommandThatRuns(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	if holder := q.rules.Reserve(q.owner, "r"); holder != "" {
		t.Fatal(holder)
	}
	q.rules.Quiesce(t.Context(), q.owner, ruleOf(run("echo begun >> log; sleep 0.3; echo pre >> log"), run("echo never >> log")))
	q.eventually("it runs", func() bool { return len(q.log()) == 1 })
	q.resume(ruleOf(run("echo post >> log")))
	q.logged("begun", "pre", "post")
}

func TestAfterACrashTheApplicationIsLetGoAlsoForCommandsThatEndLate(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	q.rules.Resume(t.Context(), q.owner, ruleOf(run("echo post >> log")), "", 300*time.Millisecond)
	q.eventually("it is let go at once", func() bool { return len(q.log()) == 1 })
	q.eventually("and again", func() bool { return q.rules.Look(q.owner).Phase == hook.RunResumed })
	q.logged("post", "post")
}

func TestAConnectionThatDoesNotComeAboutFails(t *testing.T) {
	q := newQuiet(t, running("db-0"))
	q.machine.Refuse(errors.New("the kubelet does not answer"))
	q.says("the reason", q.quiesce(ruleOf(holding("${WAIT_CMD}")), hook.RunFailed).Pre.Err, "the kubelet does not answer")
	q.says("the failure", q.resume(ruleOf(run("true"))).Post.Err, "the kubelet does not answer")
}

func TestWhatARuleMayNotHave(t *testing.T) {
	q := &quiet{T: t}
	if why := hook.Unusable(ruleOf(holding("${WAIT_CMD}")), v1alpha1.RulePreCut); why != "" {
		t.Error(why)
	}
	q.says("the reason", hook.Unusable(ruleOf(run("true"), holding("${WAIT_CMD}")), v1alpha1.RulePostCut), "Rule shop/r", "actions[1]", "background")
	unknown := run("true")
	unknown.Type = "script"
	q.says("the reason", hook.Unusable(ruleOf(unknown), v1alpha1.RulePreCut), "Rule shop/r", "type script")
}
