package pace

import (
	"fmt"
	"strings"
	"time"
)

// Clock is a time of day, in minutes since midnight as the clock shows them; 24:00 is the end of the day.
type Clock int

const endOfDay Clock = 24 * 60

// ParseClock reads "08:00", "8:00" or "24:00".
func ParseClock(text string) (Clock, error) {
	var h, m int
	var rest string
	n, _ := fmt.Sscanf(text+" .", "%d:%d %s", &h, &m, &rest)
	hours, minutes, colon := strings.Cut(text, ":")
	wellFormed := n == 3 && colon && len(hours) <= 2 && len(minutes) == 2
	c := Clock(60*h + m)
	if !wellFormed || h < 0 || m < 0 || m > 59 || c > endOfDay {
		return 0, fmt.Errorf("time of day %q: give hours and minutes from 00:00 to 24:00", text)
	}
	return c, nil
}

func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// MarshalText writes "08:00".
func (c Clock) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads it.
func (c *Clock) UnmarshalText(raw []byte) error {
	got, err := ParseClock(string(raw))
	if err != nil {
		return err
	}
	*c = got
	return nil
}

// Days is a set of days of the week; the empty set is every day.
type Days uint8

const everyDay Days = 1<<7 - 1

// On is the set of these days.
func On(days ...time.Weekday) Days {
	var d Days
	for _, day := range days {
		d |= 1 << day
	}
	return d
}

// Has reports whether a day is in the set.
func (d Days) Has(day time.Weekday) bool { return d == 0 || d&(1<<day) != 0 }

// week is in the order in which people write it.
var week = []time.Weekday{
	time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday, time.Saturday, time.Sunday,
}

func short(day time.Weekday) string { return day.String()[:3] }

// ParseDays reads days and ranges of days: "Mon-Fri", "Sat,Sun", "Fri-Mon,Wed"; full names too.
func ParseDays(text string) (Days, error) {
	var d Days
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, ok := weekday(first)
		to := from
		if ok && isRange {
			to, ok = weekday(last)
		}
		if !ok {
			return 0, fmt.Errorf("days %q: give days such as Mon, Mon-Fri or Sat,Sun", text)
		}
		for day := from; ; day = (day + 1) % 7 {
			d |= On(day)
			if day == to {
				break
			}
		}
	}
	return d, nil
}

func weekday(text string) (time.Weekday, bool) {
	for _, day := range week {
		if strings.EqualFold(text, short(day)) || strings.EqualFold(text, day.String()) {
			return day, true
		}
	}
	return 0, false
}

// String is the text form; it is empty for every day.
func (d Days) String() string {
	if d == 0 || d == everyDay {
		return ""
	}
	var parts []string
	for i := 0; i < len(week); i++ {
		if !d.Has(week[i]) {
			continue
		}
		last := i
		for last+1 < len(week) && d.Has(week[last+1]) {
			last++
		}
		if last-i < 2 { // two days in a row are no range
			parts = append(parts, short(week[i]))
			continue
		}
		parts = append(parts, short(week[i])+"-"+short(week[last]))
		i = last
	}
	return strings.Join(parts, ",")
}

// MarshalText writes the text form.
func (d Days) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads it.
func (d *Days) UnmarshalText(raw []byte) error {
	if len(raw) == 0 {
		*d = 0
		return nil
	}
	got, err := ParseDays(string(raw))
	if err != nil {
		return err
	}
	*d = got
	return nil
}
