package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// stage is a place for scenes that share data: set up once, and put away behind them.
type stage struct {
	needs int64 // bytes of disk at most in use
	peers bool  // it needs tools that may have to be installed
	// setUp makes what the scenes share; may be nil. What it starts and mounts it leaves with the bench's cleanup.
	setUp  func(ctx context.Context) error
	scenes []scene
}

// scene is one piece of work that several contenders do by turns. Its rows compare two of them each.
type scene struct {
	name  string // for people
	about string
	rows  []row
	// cast makes the contenders.
	cast func(ctx context.Context) ([]*contender, error)
	// turn changes the data before each pair; may be nil.
	turn  func(ctx context.Context, pair int) error
	pairs int // 0: as many as asked for
}

// row is one comparison: our contender's time over theirs, or a figure of ours over its goal.
type row struct {
	name         string
	ours, theirs string // names of contenders; theirs empty: a figure
	goal         float64
	figure       *figure
}

// noGoal marks a row that only informs.
const noGoal = 0

// figure is what a row without a peer looks at.
type figure struct {
	unit string
	of   func(usage) float64
	goal float64 // in the unit
}

// contender does a scene's work its own way.
type contender struct {
	name string
	// base brings its copy to where the scene begins; not measured, may be nil.
	base func(ctx context.Context) error
	// prepare comes before each run; not measured, may be nil.
	prepare func(ctx context.Context, pair int) error
	work    func(ctx context.Context, pair int) (usage, error)
	// check proves, once per scene, that the work was done; may be nil.
	check func(ctx context.Context) error

	runs []usage
	err  error // why it takes no further part
}

// wanted are the stages and scenes with at least one row that matches, with only those rows.
func wanted(all []stage, rows *regexp.Regexp) []stage {
	var chosen []stage
	for _, st := range all {
		var scenes []scene
		for _, s := range st.scenes {
			s.rows = slices.DeleteFunc(slices.Clone(s.rows), func(r row) bool { return !rows.MatchString(r.name) })
			if len(s.rows) > 0 {
				scenes = append(scenes, s)
			}
		}
		if st.scenes = scenes; len(scenes) > 0 {
			chosen = append(chosen, st)
		}
	}
	return chosen
}

// takesPart says whether any row needs the contender.
func (s scene) takesPart(name string) bool {
	return slices.ContainsFunc(s.rows, func(r row) bool { return r.ours == name || r.theirs == name })
}

// perform plays a stage's scenes and tells each result.
func (b *bench) perform(ctx context.Context, st stage, tell func(result)) {
	leave := b.enter()
	defer leave()
	err := b.room(st.needs)
	if err == nil && st.setUp != nil {
		err = st.setUp(ctx)
	}
	for _, s := range st.scenes {
		began := time.Now()
		r := result{scene: s, err: err}
		if err == nil {
			r = b.play(ctx, s)
		}
		r.took = time.Since(began)
		tell(r)
		if ctx.Err() != nil {
			return
		}
	}
}

// play lets the contenders do the work by turns. One that fails takes no further part; the others go on.
func (b *bench) play(ctx context.Context, s scene) result {
	r := result{scene: s}
	all, err := s.cast(ctx)
	if err != nil {
		r.err = err
		return r
	}
	r.contenders = slices.DeleteFunc(all, func(c *contender) bool { return !s.takesPart(c.name) })
	for _, c := range r.contenders {
		if c.err == nil && c.base != nil {
			c.err = b.patiently(ctx, c.base)
		}
	}
	pairs := s.pairs
	if pairs == 0 {
		pairs = b.pairs
	}
	for pair := range pairs {
		if s.turn != nil {
			if err := s.turn(ctx, pair); err != nil {
				r.err = err
				return r
			}
		}
		for _, c := range order(r.contenders, pair) {
			if c.err == nil {
				c.err = b.patiently(ctx, func(ctx context.Context) error { return b.round(ctx, s, c, pair) })
			}
			if c.err == nil && pair == pairs-1 {
				c.err = b.patiently(ctx, c.proof)
			}
			if ctx.Err() != nil {
				r.err = context.Cause(ctx)
				return r
			}
		}
	}
	return r
}

// order turns the contenders' order round with every pair: who runs after whom must not decide.
func order(all []*contender, pair int) []*contender {
	if len(all) == 0 {
		return nil
	}
	n := pair % len(all)
	turned := append(slices.Clone(all[n:]), all[:n]...)
	if pair%2 == 1 {
		slices.Reverse(turned)
	}
	return turned
}

// round is one run of one contender.
func (b *bench) round(ctx context.Context, s scene, c *contender, pair int) error {
	if c.prepare != nil {
		if err := c.prepare(ctx, pair); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	// Every run begins with nothing left to be written back, its own or another's.
	b.settle()
	u, err := c.work(ctx, pair)
	if err != nil {
		b.say("%s: %s: %v", s.name, c.name, err)
		return err
	}
	c.runs = append(c.runs, u)
	b.say("%s: pair %d: %s %s%s", s.name, pair+1, c.name, seconds(u.wall), comma(u.note))
	return nil
}

// proof checks the contender's last result.
func (c *contender) proof(ctx context.Context) error {
	if c.check == nil {
		return nil
	}
	if err := c.check(ctx); err != nil {
		c.runs = nil // whatever it did, it was not the work
		return fmt.Errorf("its result is wrong: %w", err)
	}
	return nil
}

// patiently gives a step its time and no more.
func (b *bench) patiently(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.patience, fmt.Errorf("it took longer than %v", b.patience))
	defer cancel()
	err := step(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return errors.Join(cause, err)
	}
	return err
}

// result is what became of a scene.
type result struct {
	scene      scene
	contenders []*contender
	err        error // nothing or not everything could be measured
	took       time.Duration
}

// contender finds by name; nil: it did not come to take part.
func (r result) contender(name string) *contender {
	for _, c := range r.contenders {
		if c.name == name {
			return c
		}
	}
	return nil
}

// outcome is a row's line in the table.
type outcome struct {
	row     row
	figures []float64 // one a pair: ratios, or the figure over its goal
	err     error     // it was not measured, and why
}

// value is the median.
func (o outcome) value() float64 { return median(o.figures) }

// met says whether the goal is met; a row without one has nothing to meet.
func (o outcome) met() bool { return o.row.goal == noGoal || o.value() <= o.row.goal }

// outcomes are the scene's rows as measured.
func (r result) outcomes() []outcome {
	var all []outcome
	for _, row := range r.scene.rows {
		all = append(all, r.outcome(row))
	}
	return all
}

func (r result) outcome(row row) outcome {
	o := outcome{row: row}
	names := []string{row.ours}
	if row.theirs != "" {
		names = append(names, row.theirs)
	}
	runs := make([][]usage, len(names))
	for i, name := range names {
		c := r.contender(name)
		switch {
		case c != nil && c.err != nil:
			o.err = errors.Join(o.err, fmt.Errorf("%s: %w", name, c.err))
		case r.err != nil:
			o.err = r.err
		case c == nil || len(c.runs) == 0:
			o.err = errors.Join(o.err, fmt.Errorf("%s was not run", name))
		default:
			runs[i] = c.runs
		}
	}
	if o.err != nil {
		return o
	}
	if row.figure != nil {
		for _, u := range runs[0] {
			o.figures = append(o.figures, row.figure.of(u)/row.figure.goal)
		}
		return o
	}
	o.figures = ratios(runs[0], runs[1])
	return o
}

// ratios are of the pairs, each for itself: noise that slows a whole pair cancels.
func ratios(ours, theirs []usage) []float64 {
	n := min(len(ours), len(theirs))
	all := make([]float64, n)
	for i := range n {
		all[i] = ours[i].wall.Seconds() / theirs[i].wall.Seconds()
	}
	return all
}

// median is the middle one, or the mean of the two in the middle.
func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
