package replication

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/queue"
	"lifeboat.dev/lifeboat/internal/schedule"
)

// turns knows which links have a session and which wait for one, of all Replications here. One manager acts at a time and it alone
// starts sessions, so what it saw last of each is how they are; a new manager reads them all before it lets the first one go.
type turns struct {
	// limit is how many sessions may run together; 0 is any number.
	limit int
	// wakes takes the Replications that shall be looked at because it is their turn. A full one loses them: they look by themselves.
	wakes chan event.GenericEvent

	mu      sync.Mutex
	known   bool
	entries map[string]queue.Entry
}

// entryName is what package queue knows a link by.
func (k linkKey) entryName() string { return k.replication.String() + "/" + k.rlink }

func linkOf(entryName string) linkKey {
	parts := strings.SplitN(entryName, "/", 3)
	return linkKey{types.NamespacedName{Namespace: parts[0], Name: parts[1]}, parts[2]}
}

// ask says whether a link that is due may start. One that may has its place from now on: if the start does not come about, the next
// look at it gives the place back.
func (t *turns) ask(ctx context.Context, live client.Reader, e queue.Entry) (queue.Turn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.learn(ctx, live, e.Seen); err != nil {
		return queue.Turn{}, err
	}
	// It has waited since it was first seen to, though a later run may be what it is due for by now.
	if former := t.entries[e.Name]; !former.Running && !former.Since.IsZero() {
		e.Since, e.Breach = sooner(e.Since, former.Since), sooner(e.Breach, former.Breach)
	}
	t.entries[e.Name] = e
	turn := queue.Judge(slices.Collect(maps.Values(t.entries)), e.Name, t.limit, e.Seen)
	if turn.Go {
		e.Running = true
		t.entries[e.Name] = e
	}
	return turn, nil
}

func sooner(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// giveBack takes back the place of a link whose session could not be saved. It waits again.
func (t *turns) giveBack(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, is := t.entries[name]; is {
		e.Running = false
		t.entries[name] = e
	}
}

// note keeps how a link is after a look, and wakes whoever may start because of it.
func (t *turns) note(e queue.Entry, waiting bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	former, was := t.entries[e.Name]
	switch {
	case t.entries == nil:
		return // nobody was asked for yet
	case waiting && was:
		former.Running, former.Seen = false, e.Seen
		t.entries[e.Name] = former
		return
	}
	e.Since = time.Time{}
	t.entries[e.Name] = e
	if was && (former.Running && !e.Running || !former.Running && !former.Since.IsZero()) {
		t.wake(e.Seen)
	}
}

// forget lets links go that are there no more.
func (t *turns) forget(now time.Time, gone func(linkKey) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := len(t.entries)
	maps.DeleteFunc(t.entries, func(name string, _ queue.Entry) bool { return gone(linkOf(name)) })
	if len(t.entries) < before {
		t.wake(now)
	}
}

func (t *turns) wake(now time.Time) {
	if t.limit == 0 || t.wakes == nil {
		return
	}
	for _, name := range queue.Next(slices.Collect(maps.Values(t.entries)), t.limit, now) {
		key := linkOf(name).replication
		rep := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
		select {
		case t.wakes <- event.GenericEvent{Object: rep}:
		default:
		}
	}
}

// counts tells how many run and how many wait.
func (t *turns) counts(now time.Time) (running, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		switch {
		case e.Running:
			running++
		case !e.Since.IsZero() && now.Sub(e.Seen) <= queue.Patience:
			waiting++
		}
	}
	return running, waiting
}

// learn reads all Replications once. Those that are due are taken to wait until they have been looked at, so that whoever happens to
// be looked at first after a restart goes before nobody who is closer to its objective.
func (t *turns) learn(ctx context.Context, live client.Reader, now time.Time) error {
	if t.known {
		return nil
	}
	var all v1alpha1.ReplicationList
	if err := live.List(ctx, &all); err != nil {
		return fmt.Errorf("list all replications to see whose turn it is: %w", err)
	}
	if t.entries == nil {
		t.entries = map[string]queue.Entry{}
	}
	for i := range all.Items {
		rep := &all.Items[i]
		for j := range rep.Spec.Rlinks {
			e := entryOf(rep, rep.Spec.Rlinks[j], now)
			if _, seen := t.entries[e.Name]; !seen {
				t.entries[e.Name] = e
			}
		}
	}
	t.known = true
	return nil
}

// entryOf is a link as its Replication shows it.
func entryOf(rep *v1alpha1.Replication, link v1alpha1.Rlink, now time.Time) queue.Entry {
	e := queue.Entry{Name: linkKey{client.ObjectKeyFromObject(rep), link.RlinkName}.entryName(), Seen: now}
	status := statusOf(rep, link.RlinkName)
	if status == nil {
		status = &v1alpha1.RlinkStatus{}
	}
	e.Running = status.Session != nil && rep.Status.Role == v1alpha1.RoleSource
	e.Breach = breach(rep, link, status, now)
	if rep.Status.Role == v1alpha1.RoleSource && status.NextRun != nil && !status.NextRun.After(now) && now.Sub(status.NextRun.Time) <= schedule.MaxLate {
		e.Since = status.NextRun.Time
	}
	return e
}

// breach is when the link's objective is or was breached. Without an objective it is when the run that is due would be missed: its
// schedule is its objective.
func breach(rep *v1alpha1.Replication, link v1alpha1.Rlink, status *v1alpha1.RlinkStatus, due time.Time) time.Time {
	allowed, err := schedule.ParseDuration(link.RecoveryPointObjective)
	if err != nil {
		return due.Add(schedule.MaxLate)
	}
	if status.RecoveryPoint == nil {
		return rep.CreationTimestamp.Add(allowed)
	}
	return status.RecoveryPoint.Time.Add(allowed)
}

// decide asks for the next steps, and whose turn it is where they are sessions that nobody asked for.
func (r *Reconciler) decide(ctx context.Context, s *sight) ([]cycle.Decision, error) {
	next := s.next()
	asked := false
	for i, v := range s.links {
		if next[i].Step != cycle.StartSession || next[i].Trigger == cycle.TriggerNow {
			continue
		}
		turn, err := r.turns.ask(ctx, r.Live, asking(v))
		if err != nil {
			return nil, err
		}
		v.source.Turn, asked = &turn, true
	}
	if asked {
		next = s.next()
	}
	return next, nil
}

// asking is a link whose session is due.
func asking(v *view) queue.Entry {
	e := entryOf(v.rep, v.rlink, v.now)
	e.Running, e.Since = false, v.now
	if v.outlook.Due {
		e.Since = v.outlook.Next
	}
	if v.rlink.RecoveryPointObjective != "" {
		return e
	}
	e.Breach = e.Since.Add(schedule.MaxLate)
	if after := v.outlook.After; !after.IsZero() && after.Before(e.Breach) {
		e.Breach = after
	}
	return e
}

// noteTurns keeps how the links are now that their steps were taken and saved.
func (r *Reconciler) noteTurns(s *sight, next []cycle.Decision) {
	for i, v := range s.links {
		r.turns.note(entryOf(v.rep, v.rlink, v.now), next[i].Reason == cycle.ReasonItsTurn)
	}
	if len(s.gone) == 0 {
		return
	}
	gone := func(name linkKey) bool {
		return slices.ContainsFunc(s.gone, func(v *view) bool { return v.linkKey() == name })
	}
	r.turns.forget(s.lead().now, gone)
	r.figures.forget(gone)
}

// giveTurnsBack is for when nothing could be saved.
func (r *Reconciler) giveTurnsBack(s *sight) {
	for _, v := range s.links {
		if v.source != nil && v.source.Turn != nil {
			r.turns.giveBack(v.linkKey().entryName())
		}
	}
}
