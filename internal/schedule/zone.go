package schedule

import (
	"time"
	_ "time/tzdata" // A policy's zone means the same on every node, also where no zones are installed.
)

// Times of day are wall clock times, and wall clocks are set twice a year. Every date has each time of day exactly once here:
//
//   - a time that the clock jumps over counts as the instant of the jump (2:30 when 2:00 becomes 3:00 is 3:00);
//   - a time that the clock shows twice is the first of the two.

// clock is a time of day in a zone.
type clock struct {
	hour, minute, second int
	zone                 *time.Location
}

// on is the instant of this time of day on a date. A day beyond the month's end is one of the next month, as in time.Date.
func (c clock) on(year int, month time.Month, day int) time.Time {
	return instantOf(time.Date(year, month, day, c.hour, c.minute, c.second, 0, time.UTC), c.zone)
}

// instantOf is when clocks in the zone first show what wall shows in UTC, or first show more when they jump over it.
func instantOf(wall time.Time, zone *time.Location) time.Time {
	guess := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), 0, zone)
	start, end := guess.ZoneBounds()
	// The clocks that may show it: that of the guess, the one before and the one after.
	var first time.Time
	for _, at := range []time.Time{start.Add(-time.Second), guess, end} {
		if at.IsZero() || start.IsZero() && at.Before(guess) {
			continue
		}
		candidate := wall.Add(-offset(at, zone))
		if wallOf(candidate, zone).Equal(wall) && (first.IsZero() || candidate.Before(first)) {
			first = candidate
		}
	}
	switch {
	case !first.IsZero():
		return first.UTC()
	case !start.IsZero() && wallOf(start, zone).After(wall) && wallOf(start.Add(-time.Second), zone).Before(wall):
		return start.UTC()
	}
	return end.UTC()
}

// wallOf is what clocks in the zone show at t, written as if it were UTC: with it one can count without zones.
func wallOf(t time.Time, zone *time.Location) time.Time {
	return t.UTC().Add(offset(t, zone))
}

func offset(t time.Time, zone *time.Location) time.Duration {
	_, seconds := t.In(zone).Zone()
	return time.Duration(seconds) * time.Second
}
