package replication

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

// counting counts what a manager asks its API server for.
type counting struct {
	client.Client
	mu    sync.Mutex
	calls []string
}

func (c *counting) note(verb string, o any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, verb+" "+strings.TrimPrefix(fmt.Sprintf("%T", o), "*"))
}

func (c *counting) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	c.note("get", o)
	return c.Client.Get(ctx, key, o, opts...)
}

func (c *counting) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	c.note("list", list)
	return c.Client.List(ctx, list, opts...)
}

func (c *counting) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	c.note("create", o)
	return c.Client.Create(ctx, o, opts...)
}

func (c *counting) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	c.note("update", o)
	return c.Client.Update(ctx, o, opts...)
}

func (c *counting) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	c.note("patch", o)
	return c.Client.Patch(ctx, o, p, opts...)
}

func (c *counting) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	c.note("delete", o)
	return c.Client.Delete(ctx, o, opts...)
}

func (c *counting) Status() client.SubResourceWriter {
	return countingStatus{c.Client.Status(), c}
}

type countingStatus struct {
	client.SubResourceWriter
	c *counting
}

func (s countingStatus) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
	s.c.note("status", o)
	return s.SubResourceWriter.Patch(ctx, o, p, opts...)
}

// A look at rest writes nothing and, on a source, asks the API server for hardly anything: thousands of replications at rest must not keep
// it busy. What is watched costs it nothing.
func TestALookAtRestWritesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Interval, l.RecoveryPointObjective = "1d", "2d" })
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", func() bool { return w.east.idle("app")() && w.west.idle("app")() })
	for range 3 {
		w.turn()
	}
	for _, s := range []*side{w.east, w.west} {
		c := &counting{Client: s.live}
		s.r.Client, s.r.Live = c, c
		s.r.Trust = trust.Reader{Reader: c}
		const looks = 5
		for range looks {
			s.reconcile()
		}
		t.Logf("%s: %d calls a look: %v", s.name, len(c.calls)/looks, c.calls[:len(c.calls)/looks])
		for _, call := range c.calls {
			if verb, _, _ := strings.Cut(call, " "); verb != "get" && verb != "list" {
				t.Errorf("%s: a look at rest makes %s", s.name, call)
			}
		}
		// A target's claims, pods and receiver are asked for each time. There is one claim; each further member costs a claim, a volume and a class.
		most := map[*side]int{w.east: 2, w.west: 25}[s]
		if per := len(c.calls) / looks; per > most {
			t.Errorf("%s: a look at rest makes %d calls", s.name, per)
		}
	}
}

// Rules are watched: that new sessions run them costs a look at rest nothing, and one that goes or comes is told all the same.
func TestALookAtRestAsksForNoRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ruled(w, holdIt, true, tellIt)
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", w.east.idle("app"))
	c := &counting{Client: w.east.live}
	w.east.r.Client, w.east.r.Live = c, c
	w.east.reconcile()
	for _, call := range c.calls {
		if strings.Contains(call, "Rule") {
			t.Errorf("a look at rest makes %s", call)
		}
	}
	if len(c.calls) == 0 {
		t.Error("nothing was counted")
	}
	rule := w.east.ruleNow("pre")
	w.east.must(w.east.kube.Delete(t.Context(), rule))
	w.until("it is missing", func() bool { return w.east.ready("app").Reason == reasonRuleMissing })
	w.east.rule("pre", holdIt, true)
	w.until("it is there again", func() bool { return w.east.ready("app").Status == metav1.ConditionTrue })
	for rule, want := range map[string]int{"pre": 1, "post": 1, "other": 0} {
		o := &v1alpha1.Rule{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: rule}}
		if got := w.east.r.usersOfRule(t.Context(), o); len(got) != want {
			t.Errorf("Rule %s wakes %v", rule, got)
		}
	}
}
