package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report writes what a scene's contenders took, and its rows.
func (r result) report(out io.Writer) {
	fmt.Fprintf(out, "\n%s: %s\n", r.scene.name, r.scene.about)
	if len(r.contenders) > 0 {
		w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "contender\truns\ttime\tfastest\tslowest\tCPU\twire\tpeak memory\t ")
		for _, c := range r.contenders {
			fmt.Fprintln(w, c.line())
		}
		_ = w.Flush()
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "row\tratio\tlowest\thighest\tgoal\t\t ")
	for _, o := range r.outcomes() {
		fmt.Fprintln(w, o.line())
	}
	_ = w.Flush()
}

// line has cells of medians.
func (c *contender) line() string {
	if len(c.runs) == 0 {
		return fmt.Sprintf("%s\t0\t\t\t\t\t\t\t  not measured: %s", c.name, oneLine(c.err))
	}
	walls := pick(c.runs, func(u usage) float64 { return u.wall.Seconds() })
	note := c.runs[len(c.runs)-1].note
	if c.err != nil {
		note = strings.TrimPrefix(note+"; then it failed: "+oneLine(c.err), "; ")
	}
	return fmt.Sprintf("%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t  %s", c.name, len(c.runs),
		secondsOf(median(walls)), secondsOf(slices.Min(walls)), secondsOf(slices.Max(walls)),
		secondsOf(median(pick(c.runs, func(u usage) float64 { return u.cpu.Seconds() }))),
		wire(median(pick(c.runs, func(u usage) float64 { return float64(u.wire) }))),
		mebibytes(median(pick(c.runs, func(u usage) float64 { return float64(u.peak) }))), note)
}

func (o outcome) line() string {
	if o.err != nil {
		return fmt.Sprintf("%s\t\t\t\t%s\t\t  not measured: %s", o.row.name, goal(o.row.goal), oneLine(o.err))
	}
	verdict := "ok"
	switch {
	case o.row.goal == noGoal:
		verdict = ""
	case !o.met():
		verdict = "missed"
	}
	note := ""
	if f := o.row.figure; f != nil {
		note = fmt.Sprintf("%.1f %s, goal %g %s", o.value()*f.goal, f.unit, f.goal, f.unit)
	}
	return fmt.Sprintf("%s\t%.3f\t%.3f\t%.3f\t%s\t%s\t  %s", o.row.name, o.value(), slices.Min(o.figures), slices.Max(o.figures), goal(o.row.goal), verdict, note)
}

// summary are the lines for scripts, and how many rows could not be measured.
func summary(out io.Writer, all []outcome) (unmeasured int) {
	for _, o := range all {
		if o.err != nil {
			unmeasured++
			continue
		}
		fmt.Fprintf(out, "ratio %s %.4f\n", o.row.name, o.value())
	}
	return unmeasured
}

func pick(runs []usage, of func(usage) float64) []float64 {
	all := make([]float64, len(runs))
	for i, u := range runs {
		all[i] = of(u)
	}
	return all
}

func goal(g float64) string {
	if g == noGoal {
		return "-"
	}
	return fmt.Sprintf("<= %g", g)
}

func seconds(d time.Duration) string { return secondsOf(d.Seconds()) }

func secondsOf(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.3f s", s)
	}
	return fmt.Sprintf("%.2f s", s)
}

func mebibytes(n float64) string { return fmt.Sprintf("%.0f MiB", n/(1<<20)) }

func wire(n float64) string {
	if n < 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f MB", n/1e6)
}

func oneLine(err error) string {
	if err == nil {
		return "no run"
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

func comma(note string) string {
	if note == "" {
		return ""
	}
	return ", " + note
}
