package pace_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/pace"
)

const mb = 1_000_000

func parse(t *testing.T, text string) pace.Calendar {
	t.Helper()
	c, err := pace.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(t *testing.T, zone, text string) time.Time {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	when, err := time.ParseInLocation("Mon 2006-01-02 15:04:05", text, loc)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func TestTheCalendarSaysTheRateAndHowLongItHolds(t *testing.T) {
	const forEver = ""
	for _, c := range []struct {
		name, calendar, zone, now string
		rate                      int64
		until                     string
	}{
		{"one rate", "100MB", "UTC", "Mon 2026-03-02 10:00:00", 100 * mb, forEver},
		{"nothing but no limit", "unlimited", "UTC", "Mon 2026-03-02 10:00:00", 0, forEver},
		{"by day", "20MB 08:00-18:00 Mon-Fri, 200MB otherwise", "UTC", "Mon 2026-03-02 10:00:00", 20 * mb, "Mon 2026-03-02 18:00:00"},
		{"at the border the next rate holds", "20MB 08:00-18:00 Mon-Fri, 200MB otherwise", "UTC", "Mon 2026-03-02 18:00:00", 200 * mb, "Tue 2026-03-03 08:00:00"},
		{"over the weekend", "20MB 08:00-18:00 Mon-Fri, 200MB otherwise", "UTC", "Fri 2026-03-06 23:00:00", 200 * mb, "Mon 2026-03-09 08:00:00"},
		{"over midnight", "1MB 22:00-06:00 Fri, 9MB", "UTC", "Sat 2026-03-07 05:59:59", 1 * mb, "Sat 2026-03-07 06:00:00"},
		{"over midnight belongs to the day it begins", "1MB 22:00-06:00 Fri, 9MB", "UTC", "Fri 2026-03-06 05:00:00", 9 * mb, "Fri 2026-03-06 22:00:00"},
		{"until midnight", "1MB 22:00-24:00, 9MB", "UTC", "Fri 2026-03-06 23:00:00", 1 * mb, "Sat 2026-03-07 00:00:00"},
		{"a week ahead", "1MB 10:00-11:00 Mon, 9MB", "UTC", "Mon 2026-03-02 11:00:00", 9 * mb, "Mon 2026-03-09 10:00:00"},
		{"days alone are whole days", "unlimited Sat,Sun, 9MB otherwise", "UTC", "Sat 2026-03-07 00:00:00", 0, "Mon 2026-03-09 00:00:00"},
		{"the first rule counts", "1MB 10:00-12:00, 2MB 08:00-18:00, 9MB", "UTC", "Mon 2026-03-02 09:00:00", 2 * mb, "Mon 2026-03-02 10:00:00"},
		{"no otherwise is no limit otherwise", "1MB 10:00-12:00", "UTC", "Mon 2026-03-02 09:00:00", 0, "Mon 2026-03-02 10:00:00"},
		{"windows that meet at one rate are one", "1MB 10:00-12:00, 1MB 12:00-14:00, 9MB", "UTC", "Mon 2026-03-02 10:00:00", 1 * mb, "Mon 2026-03-02 14:00:00"},
		{"in another zone", "1MB 08:00-18:00 Mon, 9MB, in Asia/Tokyo", "UTC", "Sun 2026-03-01 23:30:00", 1 * mb, "Mon 2026-03-02 09:00:00"},
		{"the night clocks go forward is an hour short", "1MB 22:00-06:00, 9MB, in Europe/Berlin", "UTC", "Sun 2026-03-29 00:30:00", 1 * mb, "Sun 2026-03-29 04:00:00"},
		{"the night clocks go back is an hour longer", "1MB 22:00-06:00, 9MB, in Europe/Berlin", "UTC", "Sat 2026-10-24 20:00:00", 1 * mb, "Sun 2026-10-25 05:00:00"},
	} {
		rate, until := parse(t, c.calendar).At(at(t, c.zone, c.now))
		want := time.Time{}
		if c.until != forEver {
			want = at(t, c.zone, c.until)
		}
		if rate != c.rate || !until.Equal(want) {
			t.Errorf("%s: %q at %s is %d until %s, expected %d until %s", c.name, c.calendar, c.now, rate, until, c.rate, want)
		}
	}
}

// What At says must be what somebody with a clock and the rules would read off, minute by minute.
func TestAtAgreesWithTheClock(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := calendars().Draw(rt, "calendar")
		start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 400*24*60).Draw(rt, "minute")) * time.Minute)
		loc, err := time.LoadLocation(c.Zone)
		if err != nil {
			rt.Fatal(err)
		}
		rate, until := c.At(start)
		for m := range 9 * 24 * 60 {
			now := start.Add(time.Duration(m) * time.Minute)
			if !until.IsZero() && !now.Before(until) {
				if byClock(c, now.In(loc)) == rate {
					rt.Fatalf("at %s the rate is still %d, but At(%s) said until then", now, rate, start)
				}
				return
			}
			if got := byClock(c, now.In(loc)); got != rate {
				rt.Fatalf("at %s the clock says %d, At(%s) said %d until %s", now, got, start, rate, until)
			}
		}
		if !until.IsZero() {
			rt.Fatalf("At(%s) said until %s, which is more than a week ahead", start, until)
		}
	})
}

// byClock reads the rate off a clock's face.
func byClock(c pace.Calendar, now time.Time) int64 {
	minute := pace.Clock(now.Hour()*60 + now.Minute())
	yesterday := (now.Weekday() + 6) % 7
	for _, w := range c.Windows {
		over := w.To <= w.From
		switch {
		case !over && w.Days.Has(now.Weekday()) && minute >= w.From && minute < w.To,
			over && w.Days.Has(now.Weekday()) && minute >= w.From,
			over && w.Days.Has(yesterday) && minute < w.To:
			return int64(w.Rate)
		}
	}
	return int64(c.Rate)
}

// calendars are valid ones in zones without daylight saving, where a clock's face is enough.
func calendars() *rapid.Generator[pace.Calendar] {
	rates := rapid.SampledFrom([]pace.Rate{0, 1000, 64 << 10, 20 * mb, 1<<30 + 1})
	return rapid.Custom(func(rt *rapid.T) pace.Calendar {
		c := pace.Calendar{Rate: rates.Draw(rt, "rate"), Zone: rapid.SampledFrom([]string{"", "UTC", "Asia/Tokyo", "America/Phoenix"}).Draw(rt, "zone")}
		for range rapid.IntRange(0, 4).Draw(rt, "windows") {
			w := pace.Window{
				From: pace.Clock(rapid.IntRange(0, 24*60-1).Draw(rt, "from")), To: pace.Clock(rapid.IntRange(0, 24*60).Draw(rt, "to")),
				Days: pace.Days(rapid.IntRange(0, 127).Draw(rt, "days")), Rate: rates.Draw(rt, "window's rate"),
			}
			if w.From != w.To {
				c.Windows = append(c.Windows, w)
			}
		}
		return c
	})
}

func TestBothFormsAreReadBackAsWritten(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := calendars().Draw(rt, "calendar")
		for i, w := range c.Windows {
			if w.Days == 127 {
				c.Windows[i].Days = 0 // both are every day
			}
		}
		text, err := pace.Parse(c.String())
		if err != nil || !reflect.DeepEqual(text, c) {
			rt.Fatalf("%q became %+v, %v", c, text, err)
		}
		raw, err := json.Marshal(c)
		if err != nil {
			rt.Fatal(err)
		}
		var object pace.Calendar
		if err := json.Unmarshal(raw, &object); err != nil || !reflect.DeepEqual(object, c) {
			rt.Fatalf("%s became %+v, %v", raw, object, err)
		}
	})
}

func TestJSONIsAnObjectOrTheText(t *testing.T) {
	want := parse(t, "20MB 08:00-18:00 Mon-Fri, 200MB otherwise, in Europe/Berlin")
	for _, raw := range []string{
		`"20MB 08:00-18:00 Mon-Fri in Europe/Berlin, 200MB"`,
		`{"rate":"200MB","windows":[{"from":"08:00","to":"18:00","days":"Mon-Fri","rate":20000000}],"zone":"Europe/Berlin"}`,
	} {
		var got pace.Calendar
		if err := json.Unmarshal([]byte(raw), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s became %+v, %v", raw, got, err)
		}
	}
	for raw, want := range map[string]string{
		`{"rates":"1MB"}`: "rates",
		`{"windows":[{"from":"08:00","to":"08:00","rate":"1MB"}]}`: "window 1: 08:00-08:00 begins and ends at the same time",
		`{"zone":"Berlin"}`: `time zone "Berlin" is not known`,
		`{"rate":-1}`:       `rate "-1"`,
		`7`:                 "calendar",
	} {
		var got pace.Calendar
		if err := json.Unmarshal([]byte(raw), &got); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, expected one about %q", raw, err, want)
		}
	}
}

func TestBadCalendarsAreExplained(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "a rule is empty",
		"20MB,":                                "a rule is empty",
		"fast":                                 `rate "fast": give bytes per second such as 20MB`,
		"100":                                  `rate "100": the least is 1kB per second`,
		"-5MB":                                 `rate "-5MB"`,
		"NaN":                                  `rate "NaN"`,
		"9999999GB":                            "more than is possible",
		"20MB 08:00":                           `time of day ""`,
		"20MB 8-18":                            `days "8-18"`,
		"20MB 08:00-25:00":                     `time of day "25:00"`,
		"20MB 08:60-09:00":                     `time of day "08:60"`,
		"20MB 24:00-06:00":                     "give times of day from 00:00 to 24:00",
		"20MB 08:00-08:00":                     "for the whole day give 00:00-24:00",
		"20MB 08:00-18:00 Mon-Fry":             `days "Mon-Fry"`,
		"20MB, 10MB otherwise":                 "a rate for all other times already",
		"20MB in Mars/Olympus":                 `time zone "Mars/Olympus" is not known`,
		"20MB in Local":                        `time zone "Local" is not known`,
		"in UTC":                               "no rate is given",
		"2MB Mon in UTC, 1MB in Europe/Berlin": "two time zones",
	} {
		if _, err := pace.Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, expected one about %q", text, err, want)
		}
	}
}

func TestUnitsOfRates(t *testing.T) {
	for text, want := range map[string]pace.Rate{
		"20MB": 20 * mb, "20mb": 20 * mb, "20M": 20 * mb, "20MB/s": 20 * mb, "1.5GB": 1500 * mb, "20MiB": 20 << 20, "20Mi": 20 << 20, "512KiB": 512 << 10,
		"100Mbit": 12_500_000, "1Gbit/s": 125 * mb, "1000": 1000, "2000B": 2000, "0": 0, "unlimited": 0,
	} {
		got, err := pace.ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%q is %d, %v; expected %d", text, got, err, want)
		}
		if back, err := pace.ParseRate(got.String()); err != nil || back != got {
			t.Errorf("%q became %q became %d, %v", text, got, back, err)
		}
	}
}
