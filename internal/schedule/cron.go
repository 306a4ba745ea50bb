package schedule

import (
	"time"

	"github.com/robfig/cron/v3"
)

// everyHour are the hours of a cron expression that names none.
const everyHour = 1<<24 - 1

// cronInstants are those of a cron expression in a zone.
//
// Where the expression runs in every hour it means "every so many minutes": then it runs in each hour that there is, also in one
// that the clock shows twice. Where it names hours it means times of day, which each date has once; see clock.
type cronInstants struct {
	cron  *cron.SpecSchedule
	zone  *time.Location
	daily bool
}

func newCron(text string, zone *time.Location) (cronInstants, error) {
	parsed, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(text)
	if err != nil {
		return cronInstants{}, err
	}
	spec := parsed.(*cron.SpecSchedule) // the parser makes another kind only of @every, which Parse refuses
	return cronInstants{spec, zone, spec.Hour&everyHour != everyHour}, nil
}

func (c cronInstants) Next(t time.Time) time.Time {
	if c.zone == time.UTC {
		return c.cron.Next(t.UTC())
	}
	if c.daily {
		return c.nextTimeOfDay(t)
	}
	return c.nextMinute(t)
}

func (c cronInstants) nextTimeOfDay(t time.Time) time.Time {
	for wall := wallOf(t, c.zone); ; {
		wall = c.cron.Next(wall)
		if wall.IsZero() {
			return time.Time{}
		}
		if at := instantOf(wall, c.zone); at.After(t) {
			return at
		}
	}
}

// nextMinute counts with the offset of t until the clock is set, then with the next one.
func (c cronInstants) nextMinute(t time.Time) time.Time {
	wall, shift := wallOf(t, c.zone), offset(t, c.zone)
	for {
		_, end := t.In(c.zone).ZoneBounds()
		next := c.cron.Next(wall)
		if next.IsZero() {
			return time.Time{}
		}
		if next = next.Add(-shift); end.IsZero() || next.Before(end) {
			return next.UTC()
		}
		t, shift = end, offset(end, c.zone)
		wall = wallOf(end, c.zone).Add(-time.Second)
	}
}
