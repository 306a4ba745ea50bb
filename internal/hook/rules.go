package hook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const (
	// defaultTimeout and defaultHold are those of actions and Rules that name none.
	defaultTimeout = 60 * time.Second
	defaultHold    = 60 * time.Second
	// resumeTries is how often each command of a rule that lets an application go is tried, resumePause how long is waited between.
	resumeTries = 3
	resumePause = 2 * time.Second
	// annotationContainer names the container that kubectl takes when none is given.
	annotationContainer = "kubectl.kubernetes.io/default-container"
)

func timeoutOf(action v1alpha1.RuleAction) time.Duration {
	if action.Timeout == nil {
		return defaultTimeout
	}
	return action.Timeout.Duration
}

// HoldLimit is how long an application may stay quiesced by a Rule, which may be nil.
func HoldLimit(rule *v1alpha1.Rule) time.Duration {
	if rule == nil || rule.HoldLimit == nil {
		return defaultHold
	}
	return rule.HoldLimit.Duration
}

// CommandsEnd is how long after its begin every command of a Rule that holds nothing has ended, also when the manager that began it is gone.
func CommandsEnd(rule *v1alpha1.Rule) time.Duration {
	var all time.Duration
	if rule == nil {
		return 0
	}
	for _, item := range rule.Rules {
		for _, action := range item.Actions {
			all += timeoutOf(action) + grace
		}
	}
	return all
}

// Unusable says why a Rule cannot be run at a stage; empty when it can.
func Unusable(rule *v1alpha1.Rule, stage v1alpha1.RuleStage) string {
	for i, item := range rule.Rules {
		for j, action := range item.Actions {
			switch {
			case action.Type != "" && action.Type != v1alpha1.RuleActionCommand:
				return fmt.Sprintf("Rule %s/%s: rules[%d].actions[%d] has type %s, which is not known: the one type is command", rule.Namespace, rule.Name, i, j, action.Type)
			case action.Background && stage == v1alpha1.RulePostCut:
				return fmt.Sprintf("Rule %s/%s: rules[%d].actions[%d] is a background action, which a postCutRule may not have: nothing would end it", rule.Namespace, rule.Name, i, j)
			}
		}
	}
	return ""
}

// Owner is whom Rules are run for: one session of one link.
type Owner struct {
	Replication  types.NamespacedName
	Rlink, Point string
}

// Uses tells that a Rule is the owner's at present.
func (o Owner) Uses(rule string) string {
	return fmt.Sprintf("Rule %s is being run for session %s of Replication %s, link %s", rule, o.Point, o.Replication.Name, o.Rlink)
}

// RunPhase is how far a run is.
type RunPhase int

const (
	// RunUnknown: this manager runs nothing for the owner.
	RunUnknown RunPhase = iota
	// RunReserved: its Rules are nobody else's until Forget.
	RunReserved
	// RunQuiescing: the commands of the first rule run.
	RunQuiescing
	// RunQuiesced: they are through, or hold.
	RunQuiesced
	// RunFailed: one of them failed, or a hold was lost; what held is let go.
	RunFailed
	// RunResuming: what holds is let go, and the commands of the second rule run.
	RunResuming
	// RunResumed: that is through.
	RunResumed
)

// Outcome is what came of one of the two rules.
type Outcome struct {
	// Pods are those that commands were run in.
	Pods []string
	// Warning tells that no pod matched, Err why it failed; empty otherwise.
	Warning, Err string
}

// Run is what Rules know of an owner's run.
type Run struct {
	Phase RunPhase
	// Holds is how many commands hold the application.
	Holds int
	// Proven is true once Prove has found all of them holding.
	Proven    bool
	Pre, Post Outcome
}

// Rules run the commands of Rules: first those that quiesce an application, later those that let it go. Their calls return at once, but for
// Prove; Look tells how far a run is. What is not held by this process is not known to it: after a restart it knows no run.
type Rules struct {
	pods client.Reader
	exec Exec
	// Pause is how long is waited before a command that lets an application go is tried again.
	Pause time.Duration

	mu   sync.Mutex
	runs map[Owner]*run
	asks int // lines that commands were told
}

// NewRules returns Rules that find pods by reader. It asks the API server itself: what runs decides.
func NewRules(reader client.Reader, exec Exec) *Rules {
	return &Rules{pods: reader, exec: exec, Pause: resumePause, runs: map[Owner]*run{}}
}

// run is one owner's; Rules.mu guards it.
type run struct {
	rules []string
	phase RunPhase
	holds []*hold
	// stop is closed when the application shall be let go, quiet when no command of the first rule is started any more, and none runs that
	// does not hold.
	stop, quiet chan struct{}
	proven      bool
	pre, post   Outcome
}

// Reserve makes the Rules the owner's until Forget: two sessions that quiesced the same pods would let them go under each other. Whoever has
// one of them is returned, and then nothing is reserved.
func (r *Rules) Reserve(owner Owner, rules ...string) (holder string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs[owner] != nil {
		return ""
	}
	if holder = r.holder(owner, rules); holder == "" {
		quiet := make(chan struct{})
		close(quiet)
		r.runs[owner] = &run{rules: rules, phase: RunReserved, stop: make(chan struct{}), quiet: quiet}
	}
	return holder
}

// Holder is who has one of the Rules now; empty for nobody.
func (r *Rules) Holder(owner Owner, rules ...string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holder(owner, rules)
}

func (r *Rules) holder(owner Owner, rules []string) string {
	for other, run := range r.runs {
		if other == owner || other.Replication.Namespace != owner.Replication.Namespace {
			continue
		}
		for _, rule := range rules {
			if rule != "" && slices.Contains(run.rules, rule) {
				return other.Uses(rule)
			}
		}
	}
	return ""
}

// Look tells how far the owner's run is.
func (r *Rules) Look(owner Owner) Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	run := r.runs[owner]
	if run == nil {
		return Run{}
	}
	if run.phase == RunQuiesced {
		for _, h := range run.holds {
			if err := h.lost(); err != nil {
				run.phase, run.pre.Err = RunFailed, err.Error()
				run.release()
				break
			}
		}
	}
	return Run{Phase: run.phase, Holds: len(run.holds), Proven: run.proven, Pre: run.pre, Post: run.post}
}

// Forget ends a reservation. A run that is under way goes on to its end.
func (r *Rules) Forget(owner Owner) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, owner)
}

// Quiesce begins the commands of a Rule, nil for none, for an owner that has reserved it. A second call does nothing.
func (r *Rules) Quiesce(ctx context.Context, owner Owner, rule *v1alpha1.Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()
	run := r.runs[owner]
	switch {
	case run == nil || run.phase != RunReserved:
		return
	case rule == nil:
		run.phase = RunQuiesced
		return
	}
	run.phase, run.quiet = RunQuiescing, make(chan struct{})
	go r.quiesce(context.WithoutCancel(ctx), run, rule.DeepCopy())
}

func (r *Rules) quiesce(ctx context.Context, run *run, rule *v1alpha1.Rule) {
	var out Outcome
	err := r.each(ctx, rule, &out, func(where string, action v1alpha1.RuleAction, in []Container) error {
		select {
		case <-run.stop:
			return errors.New("the application was let go before all commands had run")
		default:
		}
		if action.Background {
			return r.begin(ctx, run, in, action, HoldLimit(rule))
		}
		return together(in, func(c Container) error { return runForeground(ctx, r.exec, c, action) })
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	close(run.quiet)
	run.pre = out
	if err != nil {
		run.pre.Err = err.Error()
		run.release()
	}
	switch {
	case run.phase != RunQuiescing: // it is let go already
	case err != nil:
		run.phase = RunFailed
	default:
		run.phase = RunQuiesced
	}
}

// begin starts a background action in all pods and returns once each of them holds.
func (r *Rules) begin(ctx context.Context, run *run, in []Container, action v1alpha1.RuleAction, holdFor time.Duration) error {
	begun := make([]*hold, len(in))
	for i, c := range in {
		begun[i] = start(ctx, r.exec, c, action, holdFor)
	}
	r.mu.Lock()
	run.holds = append(run.holds, begun...)
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, timeoutOf(action))
	defer cancel()
	go func() {
		select {
		case <-run.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.ask(ctx, begun)
}

// ask asks all holds at once.
func (r *Rules) ask(ctx context.Context, holds []*hold) error {
	r.mu.Lock()
	r.asks++
	line := fmt.Sprintf("lifeboat asks %d: is the application quiesced?", r.asks)
	r.mu.Unlock()
	return together(holds, func(h *hold) error { return h.ask(ctx, line) })
}

// Prove asks every command that holds the owner's application to answer, and fails when one does not before ctx ends. What was done before
// the call was done while the application was held.
func (r *Rules) Prove(ctx context.Context, owner Owner) error {
	r.mu.Lock()
	run := r.runs[owner]
	if run == nil || run.phase != RunQuiesced {
		r.mu.Unlock()
		return fmt.Errorf("nothing holds the application for session %s", owner.Point)
	}
	holds := slices.Clone(run.holds)
	r.mu.Unlock()
	err := r.ask(ctx, holds)
	r.mu.Lock()
	defer r.mu.Unlock()
	if run.phase != RunQuiesced {
		return fmt.Errorf("nothing holds the application for session %s any more", owner.Point)
	}
	if err != nil {
		run.phase, run.pre.Err = RunFailed, err.Error()
		run.release()
		return err
	}
	run.proven = true
	return nil
}

// release tells what holds to end.
func (run *run) release() {
	for _, h := range run.holds {
		h.release()
	}
}

// Resume lets the application go: what holds it ends at once, then the commands of a Rule run, nil for none, each tried several times. Trouble
// is why there is no Rule though one is named. It may be called for an owner whose run another process began: when commands of
// that one may still end for as long as late, the Rule is run again then, for what they did last. A second call does nothing.
func (r *Rules) Resume(ctx context.Context, owner Owner, rule *v1alpha1.Rule, trouble string, late time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.runs[owner]
	switch {
	case found == nil:
		quiet := make(chan struct{})
		close(quiet)
		found = &run{stop: make(chan struct{}), quiet: quiet}
		if rule != nil {
			found.rules = []string{rule.Name}
		}
		r.runs[owner] = found
	case found.phase == RunResuming, found.phase == RunResumed:
		return
	default:
		late = 0 // its commands are this process's own, and waited for
	}
	found.phase = RunResuming
	close(found.stop)
	found.release()
	go r.resume(context.WithoutCancel(ctx), found, rule.DeepCopy(), trouble, late)
}

func (r *Rules) resume(ctx context.Context, run *run, rule *v1alpha1.Rule, trouble string, late time.Duration) {
	<-run.quiet
	r.mu.Lock()
	run.release() // also what was begun when it was told to stop
	holds := run.holds
	r.mu.Unlock()
	err := together(holds, (*hold).end)
	var out Outcome
	switch {
	case trouble != "":
		err = errors.Join(err, errors.New(trouble))
	case rule != nil:
		failed := r.letGo(ctx, rule, &out)
		if late > 0 {
			<-time.After(late)
			out = Outcome{}
			failed = r.letGo(ctx, rule, &out)
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		out.Err = sentence(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	run.phase, run.post = RunResumed, out
}

// letGo runs all actions of a rule, whichever of them fail: what can be let go is.
func (r *Rules) letGo(ctx context.Context, rule *v1alpha1.Rule, out *Outcome) error {
	var failed []error
	err := r.each(ctx, rule, out, func(where string, action v1alpha1.RuleAction, in []Container) error {
		err := together(in, func(c Container) error {
			var err error
			for try := range resumeTries {
				if try > 0 {
					<-time.After(r.Pause)
				}
				if err = runForeground(ctx, r.exec, c, action); err == nil {
					return nil
				}
			}
			return fmt.Errorf("%w (tried %d times)", err, resumeTries)
		})
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", where, err))
		}
		return nil
	})
	return errors.Join(append(failed, err)...)
}

// each gives every action of a rule its containers, in order, until one fails.
func (r *Rules) each(ctx context.Context, rule *v1alpha1.Rule, out *Outcome, do func(where string, action v1alpha1.RuleAction, in []Container) error) error {
	for i, item := range rule.Rules {
		for j, action := range item.Actions {
			where := fmt.Sprintf("Rule %s: rules[%d].actions[%d]", rule.Name, i, j)
			in, err := r.containers(ctx, rule.Namespace, item)
			if err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
			if len(in) == 0 {
				out.Warning = fmt.Sprintf("Rule %s: no running pod of namespace %s has the labels of rules[%d].podSelector", rule.Name, rule.Namespace, i)
				continue
			}
			if action.RunInSinglePod {
				in = in[:1]
			}
			for _, c := range in {
				if !slices.Contains(out.Pods, c.Pod) {
					out.Pods = append(out.Pods, c.Pod)
				}
			}
			if err := do(where, action, in); err != nil {
				return fmt.Errorf("%s: %s", where, sentence(err))
			}
		}
	}
	return nil
}

// containers are those of the running pods that an item chooses, by the pods' names. Lifeboat's own are none of them.
func (r *Rules) containers(ctx context.Context, namespace string, item v1alpha1.RuleItem) ([]Container, error) {
	var list corev1.PodList
	if err := r.pods.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels(item.PodSelector)); err != nil {
		return nil, fmt.Errorf("list the pods of namespace %s: %w", namespace, err)
	}
	var out []Container
	for i := range list.Items {
		pod := &list.Items[i]
		if pod.Status.Phase != corev1.PodRunning || pod.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat {
			continue
		}
		name, err := containerOf(pod, item.Container)
		if err != nil {
			return nil, err
		}
		out = append(out, Container{namespace, pod.Name, name})
	}
	slices.SortFunc(out, func(a, b Container) int { return strings.Compare(a.Pod, b.Pod) })
	return out, nil
}

func containerOf(pod *corev1.Pod, wanted string) (string, error) {
	if wanted == "" {
		wanted = pod.Annotations[annotationContainer]
	}
	if wanted == "" {
		return pod.Spec.Containers[0].Name, nil
	}
	if !slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == wanted }) {
		return "", fmt.Errorf("pod %s has no container %s", pod.Name, wanted)
	}
	return wanted, nil
}

// together does the same to all at the same time, and joins what went wrong.
func together[T any](all []T, do func(T) error) error {
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, one := range all {
		wait.Go(func() { errs[i] = do(one) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// sentence puts joined errors into one line.
func sentence(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
