package schedule

import (
	"errors"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const kitchenNoon = "12:00PM"

func policy(edit func(*v1alpha1.SchedulePolicyItem)) v1alpha1.SchedulePolicyItem {
	var p v1alpha1.SchedulePolicyItem
	edit(&p)
	return p
}

func everyMinutes(n int64) func(*v1alpha1.SchedulePolicyItem) {
	return func(p *v1alpha1.SchedulePolicyItem) { p.Interval = &v1alpha1.IntervalPolicy{IntervalMinutes: n} }
}

func dailyAt(text string) func(*v1alpha1.SchedulePolicyItem) {
	return func(p *v1alpha1.SchedulePolicyItem) { p.Daily = &v1alpha1.DailyPolicy{Time: text} }
}

func weeklyOn(day string) func(*v1alpha1.SchedulePolicyItem) {
	return func(p *v1alpha1.SchedulePolicyItem) {
		p.Weekly = &v1alpha1.WeeklyPolicy{Day: day, Time: kitchenNoon}
	}
}

func monthlyOn(date int32) func(*v1alpha1.SchedulePolicyItem) {
	return func(p *v1alpha1.SchedulePolicyItem) {
		p.Monthly = &v1alpha1.MonthlyPolicy{Date: date, Time: kitchenNoon}
	}
}

// M-025, M-026, M-028, M-032: what a policy may say, and what it may not.
func TestParsePolicyTakesWhatStorkTakes(t *testing.T) {
	for _, edit := range []func(*v1alpha1.SchedulePolicyItem){
		everyMinutes(1), dailyAt("1:02PM"), dailyAt("1:02pm"), dailyAt("01:15am"), dailyAt("0:15AM"), dailyAt("00:15am"),
		weeklyOn("Sunday"), weeklyOn("Sun"), weeklyOn("sunday"), weeklyOn("sun"), weeklyOn("Thur"), weeklyOn("thurs"), weeklyOn("Tue"),
		monthlyOn(1), monthlyOn(30), monthlyOn(31),
		func(p *v1alpha1.SchedulePolicyItem) { p.Interval = &v1alpha1.IntervalPolicy{Every: "1d"} },
		func(p *v1alpha1.SchedulePolicyItem) {
			p.Interval, p.StartTime = &v1alpha1.IntervalPolicy{Every: "12m"}, "16:18:43"
		},
		func(p *v1alpha1.SchedulePolicyItem) {
			p.Interval, p.StartTime = &v1alpha1.IntervalPolicy{Every: "2h"}, "T16:18+05:30"
		},
		func(p *v1alpha1.SchedulePolicyItem) { p.Cron, p.TimeZone = "*/2 * * * *", "Europe/Berlin" },
	} {
		if _, err := ParsePolicy(policy(edit)); err != nil {
			t.Error(err)
		}
	}
}

// M-029, T-32: a policy that cannot be used names the field.
func TestParsePolicyNamesTheFieldThatIsWrong(t *testing.T) {
	for _, c := range []struct {
		edit  func(*v1alpha1.SchedulePolicyItem)
		field string
	}{
		{func(*v1alpha1.SchedulePolicyItem) {}, "policy"},
		{everyMinutes(0), "policy.interval.intervalMinutes"},
		{everyMinutes(-5), "policy.interval.intervalMinutes"},
		{everyMinutes(1 << 40), "policy.interval.intervalMinutes"},
		{func(p *v1alpha1.SchedulePolicyItem) {
			p.Interval = &v1alpha1.IntervalPolicy{Every: "1d", IntervalMinutes: 4}
		}, "policy.interval.every"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Interval = &v1alpha1.IntervalPolicy{Every: "12s"} }, "policy.interval.every"},
		{func(p *v1alpha1.SchedulePolicyItem) {
			p.Interval, p.StartTime = &v1alpha1.IntervalPolicy{Every: "1d"}, "25:00"
		}, "policy.startTime"},
		{func(p *v1alpha1.SchedulePolicyItem) {
			p.Daily, p.StartTime = &v1alpha1.DailyPolicy{Time: kitchenNoon}, "10:00"
		}, "policy.startTime"},
		{dailyAt("13:02"), "policy.daily.time"},
		{dailyAt("1:02"), "policy.daily.time"},
		{dailyAt("25:15am"), "policy.daily.time"},
		{dailyAt("13:15pm"), "policy.daily.time"},
		{dailyAt("12:75PM"), "policy.daily.time"},
		{dailyAt("1:02Pm"), "policy.daily.time"},
		{dailyAt("1:2PM"), "policy.daily.time"},
		{dailyAt("1:02 PM"), "policy.daily.time"},
		{dailyAt("1215"), "policy.daily.time"},
		{weeklyOn("Sunnday"), "policy.weekly.day"},
		{weeklyOn("SUN"), "policy.weekly.day"},
		{weeklyOn("Su"), "policy.weekly.day"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Weekly = &v1alpha1.WeeklyPolicy{Day: "Sun"} }, "policy.weekly.time"},
		{monthlyOn(0), "policy.monthly.date"},
		{monthlyOn(-1), "policy.monthly.date"},
		{monthlyOn(32), "policy.monthly.date"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Monthly = &v1alpha1.MonthlyPolicy{Date: 1} }, "policy.monthly.time"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Cron = "61 * * * *" }, "policy.cron"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Cron = "@every 5m" }, "policy.cron"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Cron, p.TimeZone = "@daily", "Mars/Olympus" }, "policy.timeZone"},
		{func(p *v1alpha1.SchedulePolicyItem) { p.Cron, p.TimeZone = "@daily", "Local" }, "policy.timeZone"},
	} {
		_, err := ParsePolicy(policy(c.edit))
		var wrong *FieldError
		if !errors.As(err, &wrong) || wrong.Field != c.field || !strings.HasPrefix(err.Error(), c.field+" is ") {
			t.Errorf("%+v: %v, want one of field %s", policy(c.edit), err, c.field)
		}
	}
}

// T-24, M-034: a day is a unit.
func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"12m": 12 * time.Minute, "2h": 2 * time.Hour, "1d": day, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute, "3650d": 3650 * day, "0d5m": 5 * time.Minute,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "12", "12s", "m", "1.5h", "-1h", "0m", "1m1h", "3651d", "999999999d", "999999999999d", " 1d", "1D"} {
		if got, err := ParseDuration(text); err == nil || !strings.Contains(err.Error(), `"12m"`) {
			t.Errorf("ParseDuration(%q) = %s, %v", text, got, err)
		}
	}
}

func mustPolicy(t *testing.T, edits ...func(*v1alpha1.SchedulePolicyItem)) Agenda {
	t.Helper()
	var p v1alpha1.SchedulePolicyItem
	for _, e := range edits {
		e(&p)
	}
	a, err := ParsePolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func next(a Agenda, after string) time.Time {
	return a.entries[0].at.Next(at(after))
}

// M-027, T-28: a date that a month lacks is counted on into the next month, whose own occurrence still comes.
func TestADateTheMonthLacksRollsOver(t *testing.T) {
	for _, c := range []struct {
		date        int32
		after, next string
	}{
		{30, "2027-01-31 00:00:00", "2027-03-02 12:00:00"},
		{30, "2027-03-02 12:00:00", "2027-03-30 12:00:00"},
		{30, "2028-01-31 00:00:00", "2028-03-01 12:00:00"},
		{31, "2027-02-01 00:00:00", "2027-03-03 12:00:00"},
		{31, "2027-03-03 11:59:59", "2027-03-03 12:00:00"},
		{31, "2028-02-01 00:00:00", "2028-03-02 12:00:00"},
		{31, "2028-03-02 12:00:00", "2028-03-31 12:00:00"},
		{31, "2027-04-30 12:00:00", "2027-05-01 12:00:00"},
		{29, "2028-02-01 00:00:00", "2028-02-29 12:00:00"},
		{29, "2027-02-01 00:00:00", "2027-03-01 12:00:00"},
		{31, "2026-12-01 00:00:00", "2026-12-01 12:00:00"}, // November's
		{31, "2026-12-01 12:00:00", "2026-12-31 12:00:00"},
		{31, "2026-12-31 12:00:00", "2027-01-31 12:00:00"},
	} {
		if got := next(mustPolicy(t, monthlyOn(c.date)), c.after); !got.Equal(at(c.next)) {
			t.Errorf("date %d after %s: %s, want %s", c.date, c.after, got, c.next)
		}
	}
}

// Every date of every month over two leap years: twelve occurrences a year, each where time.Date counts it on to.
func TestEveryDateOfEveryMonth(t *testing.T) {
	for date := int32(1); date <= 31; date++ {
		a := mustPolicy(t, monthlyOn(date))
		i := at("2023-12-31 12:00:00")
		if date == 31 {
			i = i.Add(-time.Second) // 31 December itself
		}
		first := time.Date(2024, 1, int(date), 12, 0, 0, 0, time.UTC)
		if date == 31 {
			first = at("2023-12-31 12:00:00")
		}
		for month := 0; month < 12*8; month++ {
			want := time.Date(first.Year(), first.Month()+time.Month(month), int(date), 12, 0, 0, 0, time.UTC)
			if i = a.entries[0].at.Next(i); !i.Equal(want) {
				t.Fatalf("date %d: %s, want %s", date, i, want)
			}
		}
	}
}

func TestAWeekdayIsEverySeventhDay(t *testing.T) {
	for _, name := range []string{"Sunday", "Sun", "Mon", "Tue", "Wed", "Thurs", "Fri", "saturday"} {
		a := mustPolicy(t, weeklyOn(name))
		i := next(a, "2026-11-21 12:00:00")
		for range 60 {
			if !strings.HasPrefix(strings.ToLower(i.Weekday().String()), strings.ToLower(name[:3])) {
				t.Fatalf("%s: %s is a %s", name, i, i.Weekday())
			}
			following := a.entries[0].at.Next(i)
			if following.Sub(i) != 7*day {
				t.Fatalf("%s: %s follows %s", name, following, i)
			}
			i = following
		}
	}
}

// M-035: an interval with a start time has its instants at that time of day.
func TestAnIntervalIsCountedFromItsStartTime(t *testing.T) {
	for _, c := range []struct{ every, start, zone, after, next string }{
		{"1d", "16:18:43", "", "2026-11-21 16:18:43", "2026-11-22 16:18:43"},
		{"2h", "16:18:43", "", "2026-11-21 00:00:00", "2026-11-21 00:18:43"},
		{"2h", "16:18:43+02:00", "", "2026-11-21 00:00:00", "2026-11-21 00:18:43"},
		{"2h", "16:18:43+01:00", "", "2026-11-21 00:00:00", "2026-11-21 01:18:43"},
		{"12m", "00:00", "", "2026-11-21 10:00:00", "2026-11-21 10:12:00"},
		{"1d", "02:30", "Europe/Berlin", "2026-03-28 12:00:00", "2026-03-29 01:00:00"},
		{"12h", "16:18:43", "Europe/Berlin", "2026-10-25 00:00:00", "2026-10-25 02:18:43"},
		// A day of 25 hours has three: the time of day stays, and no interval is longer than asked for.
		{"12h", "16:18:43", "Europe/Berlin", "2026-10-25 02:18:43", "2026-10-25 14:18:43"},
		{"12h", "16:18:43", "Europe/Berlin", "2026-10-25 14:18:43", "2026-10-25 15:18:43"},
		{"2d", "00:00", "", "1970-01-01 00:00:00", "1970-01-03 00:00:00"},
		{"7h", "01:00", "", "1970-01-01 00:00:00", "1970-01-01 01:00:00"},
		{"7h", "01:00", "", "1970-01-01 23:00:00", "1970-01-02 05:00:00"},
	} {
		a := mustPolicy(t, func(p *v1alpha1.SchedulePolicyItem) {
			p.Interval, p.StartTime, p.TimeZone = &v1alpha1.IntervalPolicy{Every: c.every}, c.start, c.zone
		})
		if got := next(a, c.after); !got.Equal(at(c.next)) {
			t.Errorf("every %s from %s %s after %s: %s, want %s", c.every, c.start, c.zone, c.after, got, c.next)
		}
	}
}

// M-031: how a policy is shown.
func TestShow(t *testing.T) {
	stork := v1alpha1.SchedulePolicyItem{
		Interval: &v1alpha1.IntervalPolicy{IntervalMinutes: 1}, Daily: &v1alpha1.DailyPolicy{Time: "10:14PM"},
		Weekly: &v1alpha1.WeeklyPolicy{Day: "Thursday", Time: "10:13PM"}, Monthly: &v1alpha1.MonthlyPolicy{Date: 14, Time: "8:05PM"},
	}
	elsewhere := stork
	elsewhere.TimeZone = "Mars/Olympus"
	for _, c := range []struct {
		policy v1alpha1.SchedulePolicyItem
		want   Columns
	}{
		{stork, Columns{"1", "10:14PM", "Thursday@10:13PM", "14@8:05PM"}},
		{policy(func(p *v1alpha1.SchedulePolicyItem) { p.Interval = &v1alpha1.IntervalPolicy{Every: "1d"} }), Columns{"1440", "N/A", "N/A", "N/A"}},
		{policy(weeklyOn("Sunnday")), Columns{"N/A", "N/A", "Invalid", "N/A"}},
		{policy(dailyAt("13:02")), Columns{"N/A", "Invalid", "N/A", "N/A"}},
		{elsewhere, Columns{"Invalid", "Invalid", "Invalid", "Invalid"}},
		{v1alpha1.SchedulePolicyItem{}, Columns{"N/A", "N/A", "N/A", "N/A"}},
	} {
		if got := Show(c.policy); got != c.want {
			t.Errorf("%+v: got %+v", c.policy, got)
		}
	}
}
