package schedule

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// FieldError says what is wrong with one field of a schedule. It is meant for the operator.
type FieldError struct {
	// Field as "policy.weekly.day".
	Field string
	// Found is what stands there, Want what could.
	Found, Want string
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("%s is %q: %s", e.Field, e.Found, e.Want)
}

// ParseInterval reads an interval and when it is counted from: a time of day as "16:18:43", in UTC or with a zone as
// "16:18:43+02:00". Without one it is counted from the start of each run. The error is a *FieldError.
func ParseInterval(interval, startTime string) (Agenda, error) {
	every, err := ParseDuration(interval)
	if err != nil {
		return Agenda{}, &FieldError{"interval", interval, "give days, hours and minutes, at least a minute, as \"12m\", \"2h\" or \"1d\""}
	}
	e, err := newInterval(every, "startTime", startTime, time.UTC)
	if err != nil {
		return Agenda{}, err
	}
	return Agenda{[]entry{e}}, nil
}

// ParsePolicy reads a SchedulePolicy. The error names the first field that is wrong: a *FieldError.
func ParsePolicy(p v1alpha1.SchedulePolicyItem) (Agenda, error) {
	zone, err := time.LoadLocation(p.TimeZone)
	if err != nil || p.TimeZone == "Local" {
		return Agenda{}, &FieldError{"policy.timeZone", p.TimeZone, "give a name of the IANA time zone database, as \"Europe/Berlin\", or leave it out for UTC"}
	}
	var a Agenda
	for _, read := range []func(v1alpha1.SchedulePolicyItem, *time.Location) (*entry, error){readInterval, readDaily, readWeekly, readMonthly, readCron} {
		e, err := read(p, zone)
		if err != nil {
			return Agenda{}, err
		}
		if e != nil {
			a.entries = append(a.entries, *e)
		}
	}
	switch {
	case a.Empty():
		return Agenda{}, &FieldError{"policy", "", "give one of interval, daily, weekly, monthly and cron, or several"}
	case p.StartTime != "" && p.Interval == nil:
		return Agenda{}, &FieldError{"policy.startTime", p.StartTime, "it is when policy.interval is counted from, and there is none"}
	}
	return a, nil
}

func readInterval(p v1alpha1.SchedulePolicyItem, zone *time.Location) (*entry, error) {
	i := p.Interval
	if i == nil {
		return nil, nil
	}
	every := time.Duration(i.IntervalMinutes) * time.Minute
	switch {
	case i.Every != "" && i.IntervalMinutes != 0:
		return nil, &FieldError{"policy.interval.every", i.Every, "give either every or intervalMinutes"}
	case i.Every != "":
		var err error
		if every, err = ParseDuration(i.Every); err != nil {
			return nil, &FieldError{"policy.interval.every", i.Every, "give days, hours and minutes, at least a minute, as \"12m\", \"2h\" or \"1d\""}
		}
	case i.IntervalMinutes < 1:
		return nil, &FieldError{"policy.interval.intervalMinutes", fmt.Sprint(i.IntervalMinutes), "give a number of minutes, at least 1"}
	}
	if every > maxDuration {
		return nil, &FieldError{"policy.interval.intervalMinutes", fmt.Sprint(i.IntervalMinutes), "give at most ten years"}
	}
	e, err := newInterval(every, "policy.startTime", p.StartTime, zone)
	if err != nil {
		return nil, err
	}
	return &e, nil
}

func newInterval(every time.Duration, field, startTime string, zone *time.Location) (entry, error) {
	if startTime == "" {
		return entry{kind: Interval, every: every}, nil
	}
	for _, layout := range []string{"15:04:05", "15:04", "15:04:05Z07:00", "15:04Z07:00"} {
		t, err := time.Parse(layout, strings.TrimPrefix(startTime, "T"))
		if err != nil {
			continue
		}
		if strings.HasSuffix(layout, "Z07:00") {
			_, seconds := t.Zone()
			zone = time.FixedZone("", seconds)
		}
		at := clock{t.Hour(), t.Minute(), t.Second(), zone}
		return entry{kind: Interval, at: Schedule{anchored{at, every}}}, nil
	}
	return entry{}, &FieldError{field, startTime, "give a time of day in ISO 8601, as \"16:18:43\" or \"16:18:43+02:00\""}
}

func readDaily(p v1alpha1.SchedulePolicyItem, zone *time.Location) (*entry, error) {
	if p.Daily == nil {
		return nil, nil
	}
	at, err := kitchen("policy.daily.time", p.Daily.Time, zone)
	if err != nil {
		return nil, err
	}
	return &entry{kind: Daily, at: Schedule{daily{at}}}, nil
}

func readWeekly(p v1alpha1.SchedulePolicyItem, zone *time.Location) (*entry, error) {
	if p.Weekly == nil {
		return nil, nil
	}
	day, ok := weekday(p.Weekly.Day)
	if !ok {
		return nil, &FieldError{"policy.weekly.day", p.Weekly.Day, "give a day of the week, as \"Sunday\" or \"Sun\""}
	}
	at, err := kitchen("policy.weekly.time", p.Weekly.Time, zone)
	if err != nil {
		return nil, err
	}
	return &entry{kind: Weekly, at: Schedule{weekly{at, day}}}, nil
}

func readMonthly(p v1alpha1.SchedulePolicyItem, zone *time.Location) (*entry, error) {
	if p.Monthly == nil {
		return nil, nil
	}
	if p.Monthly.Date < 1 || p.Monthly.Date > 31 {
		return nil, &FieldError{"policy.monthly.date", fmt.Sprint(p.Monthly.Date), "give a day of the month, 1 to 31; one that a month lacks is counted on into the next"}
	}
	at, err := kitchen("policy.monthly.time", p.Monthly.Time, zone)
	if err != nil {
		return nil, err
	}
	return &entry{kind: Monthly, at: Schedule{monthly{at, int(p.Monthly.Date)}}}, nil
}

func readCron(p v1alpha1.SchedulePolicyItem, zone *time.Location) (*entry, error) {
	if p.Cron == "" {
		return nil, nil
	}
	s, err := parseCron(p.Cron, zone)
	if err != nil {
		return nil, &FieldError{"policy.cron", p.Cron, fmt.Sprintf("give a cron expression of five fields, as \"*/5 * * * *\" (%s)", err.(*Invalid).Cause)}
	}
	return &entry{kind: Cron, at: s}, nil
}

// kitchen reads a time of day as Stork writes it.
func kitchen(field, text string, zone *time.Location) (clock, error) {
	for _, layout := range []string{time.Kitchen, "3:04pm"} {
		if t, err := time.Parse(layout, text); err == nil {
			return clock{t.Hour(), t.Minute(), 0, zone}, nil
		}
	}
	return clock{}, &FieldError{field, text, "give a time of day as \"1:02PM\" or \"1:02pm\""}
}

// weekday knows the long and the short names, with a capital letter or without one.
func weekday(text string) (time.Weekday, bool) {
	for day := time.Sunday; day <= time.Saturday; day++ {
		long := day.String()
		names := []string{long, long[:3]}
		if day == time.Thursday {
			names = append(names, "Thur", "Thurs")
		}
		for _, name := range names {
			if slices.Contains([]string{name, strings.ToLower(name)}, text) {
				return day, true
			}
		}
	}
	return 0, false
}

// Columns are a policy as printers show it.
type Columns struct {
	IntervalMinutes, Daily, Weekly, Monthly string
}

const (
	absent  = "N/A"
	invalid = "Invalid"
)

// Show writes a policy as printers do: N/A for a kind it does not have, Invalid for one that cannot be used.
func Show(p v1alpha1.SchedulePolicyItem) Columns {
	show := func(only v1alpha1.SchedulePolicyItem, text func() string) string {
		only.TimeZone = p.TimeZone
		if _, err := ParsePolicy(only); err != nil {
			return invalid
		}
		return text()
	}
	c := Columns{absent, absent, absent, absent}
	if p.Interval != nil {
		c.IntervalMinutes = show(v1alpha1.SchedulePolicyItem{Interval: p.Interval, StartTime: p.StartTime}, func() string {
			if p.Interval.Every == "" {
				return fmt.Sprint(p.Interval.IntervalMinutes)
			}
			every, _ := ParseDuration(p.Interval.Every)
			return fmt.Sprint(int64(every / time.Minute))
		})
	}
	if p.Daily != nil {
		c.Daily = show(v1alpha1.SchedulePolicyItem{Daily: p.Daily}, func() string { return p.Daily.Time })
	}
	if p.Weekly != nil {
		c.Weekly = show(v1alpha1.SchedulePolicyItem{Weekly: p.Weekly}, func() string { return p.Weekly.Day + "@" + p.Weekly.Time })
	}
	if p.Monthly != nil {
		c.Monthly = show(v1alpha1.SchedulePolicyItem{Monthly: p.Monthly}, func() string { return fmt.Sprintf("%d@%s", p.Monthly.Date, p.Monthly.Time) })
	}
	return c
}
