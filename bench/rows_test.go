package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{
		{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{1, 100, 1, 100, 2}, 2},
	} {
		if got := median(c.of); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.of, got, c.want)
		}
	}
}

func runs(seconds ...float64) []usage {
	all := make([]usage, len(seconds))
	for i, s := range seconds {
		all[i].wall = time.Duration(s * float64(time.Second))
	}
	return all
}

func TestRatiosAreOfPairs(t *testing.T) {
	// The second pair was slow for both: that says nothing of either.
	if got := ratios(runs(1, 10, 1), runs(2, 20, 2)); !slices.Equal(got, []float64{0.5, 0.5, 0.5}) {
		t.Errorf("got %v", got)
	}
}

func TestAGoalIsMetUpToItsValue(t *testing.T) {
	for _, c := range []struct {
		goal float64
		runs []usage
		met  bool
	}{
		{0.5, runs(1, 1, 1), true}, {0.4, runs(1, 1, 1), false}, {noGoal, runs(100), true},
	} {
		r := result{contenders: []*contender{{name: "a", runs: c.runs}, {name: "b", runs: runs(2, 2, 2)}}}
		if o := r.outcome(row{ours: "a", theirs: "b", goal: c.goal}); o.met() != c.met {
			t.Errorf("goal %v: met is %v with %v", c.goal, o.met(), o.figures)
		}
	}
}

func TestAFigureIsComparedWithItsGoal(t *testing.T) {
	f := &figure{unit: "ms", goal: 50, of: func(u usage) float64 { return u.engine.Seconds() * 1000 }}
	r := result{contenders: []*contender{{name: "a", runs: []usage{{engine: 25 * time.Millisecond}}}}}
	o := r.outcome(row{name: "empty", ours: "a", goal: 1, figure: f})
	if o.err != nil || o.value() != 0.5 || !strings.Contains(o.line(), "25.0 ms, goal 50 ms") {
		t.Errorf("got %v, %v: %s", o.figures, o.err, o.line())
	}
}

func TestWhatWasNotMeasuredHasNoRatio(t *testing.T) {
	broken := errors.New("unknown field")
	r := result{scene: scene{rows: []row{{name: "a/b", ours: "a", theirs: "b"}, {name: "c/b", ours: "c", theirs: "b"}}}, contenders: []*contender{
		{name: "a", err: broken, runs: runs(1)}, {name: "b", runs: runs(2, 2)}, {name: "c", runs: runs(1, 1)},
	}}
	var text strings.Builder
	if unmeasured := summary(&text, r.outcomes()); unmeasured != 1 || text.String() != "ratio c/b 0.5000\n" {
		t.Errorf("%d not measured:\n%s", unmeasured, text.String())
	}
	text.Reset()
	r.report(&text)
	if !strings.Contains(text.String(), "not measured: a: unknown field") {
		t.Errorf("the table does not say why:\n%s", text.String())
	}
}

// stand is a bench that needs no machine.
func stand() *bench { return &bench{options: options{pairs: 3, patience: time.Minute}} }

// does is a contender that keeps a diary.
func does(name string, diary *[]string, fail error) *contender {
	return &contender{name: name, work: func(_ context.Context, pair int) (usage, error) {
		*diary = append(*diary, fmt.Sprint(name, pair))
		return usage{wall: time.Second}, fail
	}}
}

func TestOneThatFailsDoesNotStopTheOthers(t *testing.T) {
	var diary []string
	s := scene{
		rows: []row{{name: "a/b", ours: "a", theirs: "b"}, {name: "a/c", ours: "a", theirs: "c"}},
		cast: func(context.Context) ([]*contender, error) {
			return []*contender{does("a", &diary, nil), does("b", &diary, errors.New("broken")), does("c", &diary, nil), does("d", &diary, nil)}, nil
		},
	}
	r := stand().play(t.Context(), s)
	if want := "a0 b0 c0 a1 c1 c2 a2"; strings.Join(diary, " ") != want {
		t.Errorf("the order was %v, want %s", diary, want)
	}
	all := r.outcomes()
	if all[0].err == nil || all[1].err != nil || all[1].value() != 1 {
		t.Errorf("got %+v", all)
	}
}

func TestWrongResultsAreNoMeasurement(t *testing.T) {
	var diary []string
	liar := does("a", &diary, nil)
	liar.check = func(context.Context) error { return errors.New("it differs") }
	s := scene{rows: []row{{name: "a/b", ours: "a", theirs: "b"}}, cast: func(context.Context) ([]*contender, error) {
		return []*contender{liar, does("b", &diary, nil)}, nil
	}}
	r := stand().play(t.Context(), s)
	if o := r.outcomes()[0]; o.err == nil || !strings.Contains(o.err.Error(), "its result is wrong: it differs") {
		t.Errorf("got %+v", o)
	}
	if line := r.contender("a").line(); !strings.Contains(line, "not measured: its result is wrong") {
		t.Errorf("its times are shown as if it had done the work: %s", line)
	}
}

func TestAStageThatCannotBeSetUpIsSaidInAllItsRows(t *testing.T) {
	b := stand()
	b.dir = t.TempDir()
	st := stage{
		setUp:  func(context.Context) error { return errors.New("no room") },
		scenes: []scene{{rows: []row{{name: "a/b"}}}, {rows: []row{{name: "c/d"}}}},
	}
	told := 0
	b.perform(t.Context(), st, func(r result) {
		told++
		if err := r.outcomes()[0].err; err == nil || err.Error() != "no room" {
			t.Errorf("got %v", err)
		}
	})
	if told != 2 {
		t.Errorf("%d scenes were told of", told)
	}
}

func TestWhatAStageLeavesIsUndoneNewestFirst(t *testing.T) {
	b := stand()
	b.dir = t.TempDir()
	outer := b.dir
	var undone []string
	b.perform(t.Context(), stage{setUp: func(context.Context) error {
		b.leave(func() { undone = append(undone, "first") })
		b.leave(func() { undone = append(undone, "second") })
		return errors.New("broken")
	}}, nil)
	if !slices.Equal(undone, []string{"second", "first"}) || b.dir != outer {
		t.Errorf("undone: %v, folder %s", undone, b.dir)
	}
}

func TestRowsAreChosenByName(t *testing.T) {
	b := &bench{options: options{size: 4 << 30, files: 100_000, pairs: 5, memorySize: 1 << 40}}
	count := func(pattern string) (rows, scenes, stages int) {
		chosen := wanted(b.stages(), regexp.MustCompile(pattern))
		for _, st := range chosen {
			scenes += len(st.scenes)
			for _, s := range st.scenes {
				rows += len(s.rows)
			}
		}
		return rows, scenes, len(chosen)
	}
	for pattern, want := range map[string][3]int{
		"^full-random-cold/cp$": {1, 1, 1}, "delta1pct-list": {3, 1, 1}, "^memory-1TiB/goal$": {1, 1, 1}, "^nothing$": {0, 0, 0},
		"^small-": {4, 3, 1},
	} {
		rows, scenes, stages := count(pattern)
		if got := [3]int{rows, scenes, stages}; got != want {
			t.Errorf("%s: rows, scenes, stages are %v, want %v", pattern, got, want)
		}
	}
}

// Everything a release is judged by has a row, with the goal that was set.
func TestTheGoalsAreThere(t *testing.T) {
	b := &bench{options: options{size: 4 << 30, files: 100_000, pairs: 5, memorySize: 1 << 40}}
	goals, seen := map[string]float64{}, map[string]bool{}
	for _, st := range b.stages() {
		for _, s := range st.scenes {
			for _, r := range s.rows {
				if seen[r.name] {
					t.Errorf("%s is there twice", r.name)
				}
				seen[r.name] = true
				if goals[r.name] = r.goal; r.figure != nil {
					goals[r.name] = r.figure.goal
				}
			}
		}
	}
	for name, want := range map[string]float64{
		"full-random-cold/cp": 0.6, "full-random-cold/rsync": 0.65, "full-random-cold/dd-direct": 1.15, "full-sparse/cp": 1.3,
		"delta1pct-list/ideal": 2, "delta1pct-list/rsync": 0.03, "delta1pct-list/btrfs-send": 0.6, "delta1pct-digest/read": 1.1,
		"small-fresh/rsync": 0.8, "small-1pct/rsync": 1, "full-text/uncompressed": 1.05, "full-text-100MBps/uncompressed": 0.5,
		"empty-session/goal": 50, "memory-1TiB/goal": 256, "resume-50pct/goal": 64,
	} {
		if goals[name] != want {
			t.Errorf("%s: the goal is %v, want %v", name, goals[name], want)
		}
	}
}

func TestOrderTurns(t *testing.T) {
	a, b, c := &contender{name: "a"}, &contender{name: "b"}, &contender{name: "c"}
	firsts := map[string]bool{}
	for pair := range 6 {
		turned := order([]*contender{a, b, c}, pair)
		if len(turned) != 3 || turned[0] == turned[1] || turned[1] == turned[2] || turned[0] == turned[2] {
			t.Fatalf("pair %d: somebody is missing", pair)
		}
		firsts[turned[0].name] = true
	}
	if len(firsts) != 3 {
		t.Errorf("only %v ever begin", firsts)
	}
}
