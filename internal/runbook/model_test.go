package runbook

import (
	"flag"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// explore visits every world within reach of a start, breadth first, and returns the shortest history that breaks
// something. limit bounds the worlds; the result tells whether all were seen. With calm, every world must also
// come to rest once nothing goes wrong any more.
func (m model) explore(start world, limit int, calm bool) (history []string, broken string, seen int, whole bool) {
	index := map[world]struct{}{start: {}}
	worlds, parents := []world{start}, []int32{-1}
	tell := func(at int32, last string) []string {
		lines := []string{last}
		for ; at > 0; at = parents[at] {
			for _, step := range m.moves(worlds[parents[at]], true) {
				if step.to == worlds[at] {
					lines = append([]string{step.what}, lines...)
					break
				}
			}
		}
		return lines
	}
	known := settled{} // worlds seen to come to rest
	for i := int32(0); int(i) < len(worlds); i++ {
		w := worlds[i]
		if problem := m.settlesIf(calm, w, known); problem != "" {
			return tell(i, "then all is calm"), problem, len(worlds), false
		}
		for _, next := range m.moves(w, false) {
			if next.broken == "" {
				next.broken = m.broken(next.to)
			}
			if next.broken != "" {
				return tell(i, "and what follows breaks it"), next.broken, len(worlds), false
			}
			if _, ok := index[next.to]; ok {
				continue
			}
			if len(worlds) >= limit {
				return nil, "", len(worlds), false
			}
			index[next.to] = struct{}{}
			worlds, parents = append(worlds, next.to), append(parents, i)
		}
	}
	return nil, "", len(worlds), true
}

func TestEveryHistoryOfTwoClustersKeepsThePromises(t *testing.T) {
	for _, c := range []struct {
		name  string
		m     model
		start func(model) world
	}{
		{"a plan without data, three edits", model{2, false, Next}, func(m model) world { return m.protected(3, 0, 0) }},
		{"a new plan without data, three edits", model{2, false, Next}, func(m model) world { return m.unclaimed(3) }},
		{"a new plan with data, one edit", model{2, true, Next}, func(m model) world { return m.unclaimed(1) }},
		{"a move with data under load", model{2, true, Next}, func(m model) world { return m.protected(1, 1, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) { everyHistory(t, c.m, c.start(c.m)) })
	}
}

func TestEveryHistoryOfThreeClustersKeepsThePromises(t *testing.T) {
	m := model{3, false, Next}
	everyHistory(t, m, m.protected(1, 0, 0))
}

// Some minutes and gigabytes: two edits with data, and a scheduled session in between.
func TestEveryLongHistoryKeepsThePromises(t *testing.T) {
	if os.Getenv("RUNBOOK_LONG") == "" {
		t.Skip("takes minutes: set RUNBOOK_LONG=1")
	}
	m := model{2, true, Next}
	everyHistory(t, m, m.protected(1, 1, 1))
	everyHistory(t, m, m.protected(2, 0, 0))
}

func everyHistory(t *testing.T, m model, start world) {
	t.Helper()
	history, broken, seen, whole := m.explore(start, 5_000_000, true)
	if broken != "" {
		t.Fatalf("%s, after\n  %s", broken, strings.Join(history, "\n  "))
	}
	if !whole {
		t.Fatalf("gave up after %d worlds", seen)
	}
	t.Logf("%d worlds", seen)
}

// Three clusters with data, three edits, scheduled sessions and writes are more than can be listed: many random histories.
func TestLongRandomHistoriesKeepThePromises(t *testing.T) {
	done := map[string]int{}
	if err := flag.Set("rapid.checks", "1000"); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		m := model{n: rapid.IntRange(2, 3).Draw(t, "clusters"), hasData: rapid.Bool().Draw(t, "data"), next: Next}
		w := m.protected(3, 4, 3)
		if rapid.Bool().Draw(t, "new") {
			w = m.unclaimed(3)
		}
		known := settled{}
		for range rapid.IntRange(20, 400).Draw(t, "length") {
			// Left to chance alone hardly any move would ever complete.
			next := move{to: m.calm(w)}
			if rapid.Bool().Draw(t, "chance") {
				moves := m.moves(w, false)
				next = moves[rapid.IntRange(0, len(moves)-1).Draw(t, "move")]
			}
			if next.broken == "" {
				next.broken = m.broken(next.to)
			}
			if next.broken != "" {
				t.Fatal(next.broken)
			}
			w = next.to
			for c := range m.n {
				done[w.clusters[c].plan.result.String()]++
			}
		}
		if problem := m.settles(w, known); problem != "" {
			t.Fatal(problem)
		}
	})
	for _, result := range []Result{Completed, Aborted, RolledBack} {
		if done[string(result)] == 0 {
			t.Errorf("no history has an operation that ends %s: the histories are too poor", result)
		}
	}
	t.Logf("worlds by the result of the last operation: %v", done)
}

// A check that cannot fail proves nothing. Each of these rules breaks one promise, and the exploration must name it.
func TestBrokenRulesAreCaught(t *testing.T) {
	for _, c := range []struct {
		name   string
		broken string
		rules  func(Seen) Decision
	}{
		{"promotes before the grant", "never two primaries", func(s Seen) Decision {
			for _, p := range s.Peers {
				if p.Copy != nil && p.Copy.Operation != nil && p.Copy.Operation.To == s.Self && p.Copy.Operation.Step == v1alpha1.StepHandover && s.Own.Epoch == p.Copy.Epoch {
					return Decision{Action: Accept, Peer: p.Name, Epoch: s.Own.Epoch + 1, Step: v1alpha1.StepPromote}
				}
			}
			return Next(s)
		}},
		{"goes on writing after the grant", "never two primaries", func(s Seen) Decision {
			if StandingOf(s.Self, s.Own) == HandedOver {
				return Decision{Action: Claim, Peer: s.Self, Epoch: s.Own.Grant.Epoch}
			}
			return Next(s)
		}},
		{"claims without reading its peer", "never two primaries", func(s Seen) Decision {
			if StandingOf(s.Self, s.Own) == Unclaimed && s.Own.Wanted == s.Self {
				return Decision{Action: Claim, Peer: s.Self, Epoch: 1}
			}
			return Next(s)
		}},
		{"takes unknown for not there when claiming", "never two primaries", func(s Seen) Decision {
			for i := range s.Peers {
				if s.Peers[i].Copy == nil {
					s.Peers[i].Copy = &Copy{}
				}
			}
			return Next(s)
		}},
		{"believes the application stopped", "a writable primary holds every acknowledged write", func(s Seen) Decision {
			s.App.Stopped = true
			if d := Next(s); d.Action != Stop {
				return d
			}
			return enter(v1alpha1.StepFinalSync, "")
		}},
		{"hands over the point of the session before", "a writable primary holds every acknowledged write", func(s Seen) Decision {
			if o := s.Own.Operation; o != nil && o.Step == v1alpha1.StepFinalSync {
				return enter(v1alpha1.StepHandover, "")
			}
			if o := s.Own.Operation; o != nil && o.Step == v1alpha1.StepHandover && StandingOf(s.Self, s.Own) == Primary && s.App.Stopped && s.Peers[0].Data != nil {
				return Decision{Action: GrantEpoch, Peer: o.To, Epoch: s.Own.Epoch + 1, Point: s.Peers[0].Data.newest()}
			}
			return Next(s)
		}},
		{"takes an earlier answer for this session's", "a writable primary holds every acknowledged write", func(s Seen) Decision {
			if o := s.Own.Operation; o != nil && o.Step == v1alpha1.StepFinalSync && len(s.Data.Sessions) > 0 {
				s.Data.Sessions[0].Trigger = Token(*o)
			}
			return Next(s)
		}},
		{"undoes a move after the grant", "the application never runs on two sides", func(s Seen) Decision {
			if StandingOf(s.Self, s.Own) == HandedOver && s.Own.Wanted == s.Self {
				return Decision{Action: Start, Step: v1alpha1.StepComplete}
			}
			return Next(s)
		}},
		{"ends an undone move without the application", "an undone move leaves the application running where it was", func(s Seen) Decision {
			d := Next(s)
			if d.Action == Start {
				return Decision{Action: Close, Result: Aborted}
			}
			return d
		}},
		{"does not undo what failed", "does not settle", func(s Seen) Decision {
			d := Next(s)
			if d.Action == Undo {
				return rest(d.Reason, "")
			}
			return d
		}},
		{"forgets to demote", "does not settle", func(s Seen) Decision {
			d := Next(s)
			if d.Action == Demote {
				return rest(d.Reason, "")
			}
			return d
		}},
		{"forgets to align the wish", "does not settle", func(s Seen) Decision {
			d := Next(s)
			if d.Action == Align {
				return Decision{Action: Close, Result: Completed}
			}
			return d
		}},
		{"restores before the volumes belong to the application", "does not settle", func(s Seen) Decision {
			d := Next(s)
			if d.Action == Promote {
				return enter(v1alpha1.StepRestore, "")
			}
			return d
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var found []string
			for _, try := range []struct {
				data  bool
				start func(model) world
			}{
				{true, func(m model) world { return m.protected(1, 1, 0) }}, {true, func(m model) world { return m.protected(2, 1, 0) }},
				{false, func(m model) world { return m.protected(2, 0, 0) }}, {false, func(m model) world { return m.unclaimed(2) }},
			} {
				m := model{2, try.data, c.rules}
				_, broken, _, _ := m.explore(try.start(m), 60_000, strings.HasPrefix(c.broken, "does not settle"))
				if found = append(found, broken); strings.HasPrefix(broken, c.broken) {
					return
				}
			}
			t.Fatalf("not caught as %q; found %q", c.broken, found)
		})
	}
}
