package schedule

import "time"

// daily is a time of every day.
type daily struct{ clock }

func (d daily) Next(t time.Time) time.Time {
	year, month, day := t.In(d.zone).Date()
	// Yesterday's may still be to come where the clock jumped over midnight.
	for i := -1; ; i++ {
		if at := d.on(year, month, day+i); at.After(t) {
			return at
		}
	}
}

// weekly is a time of one day of every week.
type weekly struct {
	clock
	day time.Weekday
}

func (w weekly) Next(t time.Time) time.Time {
	year, month, day := t.In(w.zone).Date()
	for i := -1; ; i++ {
		if time.Date(year, month, day+i, 0, 0, 0, 0, time.UTC).Weekday() != w.day {
			continue
		}
		if at := w.on(year, month, day+i); at.After(t) {
			return at
		}
	}
}

// monthly is a time of one date of every month. A date that the month lacks is counted on into the next: 31 in February is
// 3 March, or 2 March in a leap year, and the occurrence of March itself still comes.
type monthly struct {
	clock
	date int
}

func (m monthly) Next(t time.Time) time.Time {
	year, month, _ := t.In(m.zone).Date()
	// The month before may have rolled over into this one.
	for i := time.Month(-1); ; i++ {
		if at := m.on(year, month+i, m.date); at.After(t) {
			return at
		}
	}
}

// anchored is an interval that is counted from a time of day. What divides a day is counted from that time anew each day, so that
// the time stays whatever clocks do; whole days are counted from 1 January 1970; anything else from that date's time on.
type anchored struct {
	clock
	every time.Duration
}

const day = 24 * time.Hour

func (a anchored) Next(t time.Time) time.Time {
	switch {
	case a.every%day == 0:
		return a.nextDay(t, int(a.every/day))
	case day%a.every == 0:
		return a.nextWithin(t)
	}
	return after(a.on(1970, time.January, 1), a.every, t)
}

func (a anchored) nextDay(t time.Time, every int) time.Time {
	number := int(wallOf(t, a.zone).Unix() / int64(day/time.Second))
	for i := number - 1; ; i++ {
		if i%every != 0 {
			continue
		}
		if at := a.on(1970, time.January, 1+i); at.After(t) {
			return at
		}
	}
}

func (a anchored) nextWithin(t time.Time) time.Time {
	year, month, date := t.In(a.zone).Date()
	i := 1
	for a.on(year, month, date+i-1).After(t) {
		i--
	}
	next, tomorrow := after(a.on(year, month, date+i-1), a.every, t), a.on(year, month, date+i)
	if tomorrow.After(t) && tomorrow.Before(next) {
		return tomorrow
	}
	return next
}

// after is the first of start, start+every, start+2*every ... that comes after t.
func after(start time.Time, every time.Duration, t time.Time) time.Time {
	if start.After(t) {
		return start.Add(-(start.Sub(t) - 1) / every * every)
	}
	return start.Add((t.Sub(start)/every + 1) * every)
}
