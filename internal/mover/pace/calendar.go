package pace

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
	_ "time/tzdata" // the image the movers run in has no zone files of its own
)

// Calendar is a rate, and windows in which another one holds. The zero Calendar is no limit at all.
//
// As JSON it is an object of these fields, or its text form in a string.
type Calendar struct {
	// Rate holds outside of all windows.
	Rate Rate `json:"rate,omitempty"`
	// Windows are looked at in order: the first one that is open says the rate.
	Windows []Window `json:"windows,omitempty"`
	// Zone is the IANA name of the time zone in which the windows' times are meant; empty is UTC.
	Zone string `json:"zone,omitempty"`
}

// Window is a span of time that returns on some days of the week. One whose end is not after its beginning goes on over
// midnight and belongs to the day on which it begins: 22:00-06:00 on Fri ends on Saturday morning.
type Window struct {
	From Clock `json:"from"`
	To   Clock `json:"to"`
	Days Days  `json:"days,omitempty"` // empty: every day
	Rate Rate  `json:"rate"`
}

// Always is the calendar of one rate.
func Always(r Rate) Calendar { return Calendar{Rate: r} }

// IsZero reports that there is no limit at any time and none was asked for.
func (c Calendar) IsZero() bool { return c.Rate == 0 && len(c.Windows) == 0 && c.Zone == "" }

// Unlimited reports that there is no limit at any time.
func (c Calendar) Unlimited() bool {
	return c.Rate == 0 && !slices.ContainsFunc(c.Windows, func(w Window) bool { return w.Rate != 0 })
}

// Validate says what is wrong with a calendar that was not made by Parse or from JSON: these check for themselves.
func (c Calendar) Validate() error {
	if err := c.Rate.check(fmt.Sprint(int64(c.Rate))); err != nil {
		return err
	}
	for i, w := range c.Windows {
		if err := w.validate(); err != nil {
			return fmt.Errorf("window %d: %w", i+1, err)
		}
	}
	_, err := zone(c.Zone)
	return err
}

func (w Window) validate() error {
	switch {
	case w.From < 0 || w.From >= endOfDay || w.To < 0 || w.To > endOfDay:
		return fmt.Errorf("%s-%s: give times of day from 00:00 to 24:00", w.From, w.To)
	case w.From == w.To:
		return fmt.Errorf("%s-%s begins and ends at the same time: for the whole day give 00:00-24:00", w.From, w.To)
	case w.Days > everyDay:
		return fmt.Errorf("days %d: there are seven", w.Days)
	}
	return w.Rate.check(fmt.Sprint(int64(w.Rate)))
}

// At is the rate at t, in bytes per second (0: no limit), and until when it holds. The zero time is: for ever. Where
// clocks are put forward or back a window's times are those that the clock shows; a time that is shown twice is the
// first one.
func (c Calendar) At(t time.Time) (bytesPerSecond int64, until time.Time) {
	now := c.rateAt(t)
	for _, border := range c.borders(t) {
		if c.rateAt(border) != now {
			return int64(now), border
		}
	}
	return int64(now), time.Time{}
}

func (c Calendar) rateAt(t time.Time) Rate {
	loc := c.location()
	y, m, d := t.In(loc).Date()
	for _, w := range c.Windows {
		// A window that is open now began today or yesterday.
		for _, day := range []int{d, d - 1} {
			if from, to, ok := w.on(y, m, day, loc); ok && !t.Before(from) && t.Before(to) {
				return w.Rate
			}
		}
	}
	return c.Rate
}

// borders are the times after t at which a window opens or closes, sorted, for as long as it takes until everything
// has come once: a week, and a window that began on its last day.
func (c Calendar) borders(t time.Time) []time.Time {
	loc := c.location()
	y, m, d := t.In(loc).Date()
	var out []time.Time
	for _, w := range c.Windows {
		for day := d - 1; day <= d+8; day++ {
			from, to, ok := w.on(y, m, day, loc)
			if !ok {
				continue
			}
			for _, at := range []time.Time{from, to} {
				if at.After(t) {
					out = append(out, at)
				}
			}
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}

// on is the window that begins on a day, if it does. The day may lie outside of its month, as for time.Date.
func (w Window) on(y int, m time.Month, day int, loc *time.Location) (from, to time.Time, ok bool) {
	// Noon is on the same day in every zone, whatever the clocks do.
	if !w.Days.Has(time.Date(y, m, day, 12, 0, 0, 0, loc).Weekday()) {
		return from, to, false
	}
	end := day
	if w.To <= w.From {
		end++
	}
	from = time.Date(y, m, day, 0, int(w.From), 0, 0, loc)
	to = time.Date(y, m, end, 0, int(w.To), 0, 0, loc)
	return from, to, true
}

// location is never nil: a zone that does not exist, which Validate refuses, is UTC.
func (c Calendar) location() *time.Location {
	loc, err := zone(c.Zone)
	if err != nil {
		return time.UTC
	}
	return loc
}

// zones has those that were asked for: loading one reads a file.
var zones sync.Map

func zone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if loc, found := zones.Load(name); found {
		return loc.(*time.Location), nil
	}
	loc, err := time.LoadLocation(name)
	// "Local" is what the machine is set to: two machines would read one calendar in two ways.
	if err != nil || name == "Local" {
		return nil, fmt.Errorf("time zone %q is not known: give UTC or an IANA name such as Europe/Berlin", name)
	}
	zones.Store(name, loc)
	return loc, nil
}

// UnmarshalJSON reads an object of the fields or the text form, and validates it.
func (c *Calendar) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		got, err := Parse(text)
		if err != nil {
			return err
		}
		*c = got
		return nil
	}
	type fields Calendar
	var got fields
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		return fmt.Errorf("calendar: %w", err)
	}
	if err := Calendar(got).Validate(); err != nil {
		return fmt.Errorf("calendar: %w", err)
	}
	*c = Calendar(got)
	return nil
}
