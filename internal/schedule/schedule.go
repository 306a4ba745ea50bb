// Package schedule says when the next run is due and how late we are.
//
// It knows cron expressions, intervals, and days, weeks and months as a SchedulePolicy has them, and one rule: runs start to
// start, one in flight, a run that is more than an hour late is skipped and counted. It reads no clock and keeps nothing: the
// caller hands in the present instant and what was promised last, and saves what it gets back. Begin reading at
// Agenda.Look; what one kind of instants says is Schedule.Look.
package schedule

import (
	"fmt"
	"strings"
	"time"
)

// MaxLate is how late a run may start. A later one is skipped and counted: nobody wants last night's run at noon.
const MaxLate = time.Hour

// maxCounted bounds how many skipped runs one look counts, so that a manager that was away for years still
// answers at once. The count is then a lower bound.
const maxCounted = 100_000

// Invalid says why a text is no schedule. It is meant for the operator.
type Invalid struct {
	Text  string
	Cause string
}

func (e *Invalid) Error() string {
	return fmt.Sprintf("schedule %q is not a cron expression of five fields in UTC (minute hour day month weekday, as \"*/5 * * * *\"): %s", e.Text, e.Cause)
}

// instants is an endless row of instants in whole seconds.
type instants interface {
	// Next is the first of them after t; zero when there is none.
	Next(t time.Time) time.Time
}

// Schedule is a row of instants at which runs are wanted. The zero value never fires; Parse makes one from a cron expression.
type Schedule struct {
	instants instants
}

// Parse reads five cron fields, or one of @hourly, @daily, @weekly, @monthly, @yearly, in UTC. A text that can never
// fire, as "0 0 30 2 *", is refused as well as one that cannot be read. The error is an *Invalid.
func Parse(text string) (Schedule, error) {
	return parseCron(text, time.UTC)
}

func parseCron(text string, zone *time.Location) (Schedule, error) {
	trimmed := strings.TrimSpace(text)
	switch {
	case trimmed == "":
		return Schedule{}, &Invalid{text, "it is empty"}
	case strings.HasPrefix(trimmed, "TZ="), strings.HasPrefix(trimmed, "CRON_TZ="):
		return Schedule{}, &Invalid{text, "a time zone cannot be given here; convert the times to UTC, or use a SchedulePolicy with a timeZone"}
	case strings.HasPrefix(trimmed, "@every"):
		// Its instants depend on when it was first looked at, so it has no instants to be late for.
		return Schedule{}, &Invalid{text, "@every has no fixed instants; write the interval as \"*/5 * * * *\", or set interval instead"}
	}
	parsed, err := newCron(trimmed, zone)
	if err != nil {
		return Schedule{}, &Invalid{text, err.Error()}
	}
	s := Schedule{parsed}
	if s.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Schedule{}, &Invalid{text, "no such date exists, it would never run"}
	}
	return s, nil
}

// Next is the first instant after t, in UTC. It is zero when there is none.
func (s Schedule) Next(t time.Time) time.Time {
	if s.instants == nil {
		return time.Time{}
	}
	return s.instants.Next(t.UTC())
}

// has reports whether t is one of the schedule's instants.
func (s Schedule) has(t time.Time) bool {
	return !t.IsZero() && s.Next(t.Add(-time.Second)).Equal(t)
}

// Look is what the schedule says at one instant.
type Look struct {
	// Due is true when a run should start now.
	Due bool
	// Late is how long ago the run that is due should have started; 0 when none is due.
	Late time.Duration
	// Next is the next instant a run is wanted at: the instant that is due if one is, a later one otherwise.
	Next time.Time
	// After is the first instant after now: what Next becomes once the run that is due was started.
	After time.Time
	// Skipped is how many runs since promised will never start: those whose instant was followed by another
	// before they could start, and those more than MaxLate late. The caller adds it to its count when it saves Next.
	Skipped int64
}

// Look tells at now what is due, given the instant promised by the look before (zero at the first look, which
// promises the first instant after now). A promised instant that is not the schedule's, or not its first, because the
// schedule was edited since, is forgotten without being counted.
//
// Several instants that passed while a run was in flight are answered by one run, the newest of them; the others are skipped.
func (s Schedule) Look(promised, now time.Time) Look {
	promised, now = promised.UTC(), now.UTC()
	after := s.Next(now)
	if !s.has(promised) {
		return Look{Next: after, After: after}
	}
	if promised.After(now) {
		return Look{Next: after, After: after}
	}
	newest, skipped := s.newest(promised, now)
	late := now.Sub(newest)
	if late > MaxLate {
		return Look{Next: after, After: after, Skipped: skipped + 1}
	}
	return Look{Due: true, Late: late, Next: newest, After: after, Skipped: skipped}
}

// newest is the schedule's last instant in [promised, now], and how many of its instants lie before it.
func (s Schedule) newest(promised, now time.Time) (time.Time, int64) {
	var passed int64
	for passed < maxCounted {
		next := s.Next(promised)
		if next.IsZero() || next.After(now) {
			return promised, passed
		}
		promised = next
		passed++
	}
	// Too many to count: what is left of the way is skipped in one stride that ends within the last MaxLate.
	if recent := s.Next(now.Add(-MaxLate)); !recent.IsZero() && !recent.After(now) && recent.After(promised) {
		return s.newest(recent, now)
	}
	return promised, passed
}
