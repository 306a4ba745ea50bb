package schedule

import (
	"testing"
	"time"
)

// Zones whose clocks are set in every way there is: by an hour, by half an hour, by two, at midnight, over a whole day, never,
// and with an offset that is no whole hour.
var zones = map[string][]string{
	"Europe/Berlin":       {"2026-03-29", "2026-10-25"},
	"America/New_York":    {"2026-03-08", "2026-11-01"},
	"America/St_Johns":    {"2026-03-08", "2026-11-01"},
	"Australia/Lord_Howe": {"2026-04-05", "2026-10-04"},
	"America/Sao_Paulo":   {"2018-02-18", "2018-11-04"},
	"Antarctica/Troll":    {"2026-03-29", "2026-10-25"},
	"Pacific/Apia":        {"2011-04-02", "2011-12-30"},
	"Africa/Casablanca":   {"2025-02-23", "2025-04-06"},
	"Asia/Kathmandu":      {"2026-06-01"},
	"UTC":                 {"2026-06-01"},
}

func eachZone(t *testing.T, do func(t *testing.T, zone *time.Location, around time.Time)) {
	for name, dates := range zones {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, date := range dates {
			t.Run(name+" "+date, func(t *testing.T) { do(t, zone, at(date+" 12:00:00")) })
		}
	}
}

// Every minute that a wall clock could show is compared with what walking through all minutes finds.
func TestAWallClockTimeIsOneInstantWhateverClocksDo(t *testing.T) {
	eachZone(t, func(t *testing.T, zone *time.Location, around time.Time) {
		from, to := around.Add(-3*day), around.Add(3*day)
		first := map[time.Time]time.Time{}
		var jumps []time.Time // walls before which the clock jumped, and their instants
		var landed []time.Time
		for i := from; i.Before(to); i = i.Add(time.Minute) {
			wall := wallOf(i, zone)
			if _, twice := first[wall]; !twice {
				first[wall] = i
			}
			if wall.Sub(wallOf(i.Add(-time.Minute), zone)) > time.Minute {
				jumps, landed = append(jumps, wall), append(landed, i)
			}
		}
		for wall := wallOf(from.Add(day), zone); wall.Before(wallOf(to.Add(-day), zone)); wall = wall.Add(time.Minute) {
			want, shown := first[wall]
			for j := 0; !shown && j < len(jumps); j++ {
				if wall.Before(jumps[j]) {
					want, shown = landed[j], true
				}
			}
			if got := instantOf(wall, zone); !got.Equal(want) {
				t.Fatalf("%s on the wall: %s, want %s", wall.Format(time.DateTime), got, want)
			}
		}
	})
}

// M-023: exactly one start a day at that time of day, on every date there is, whatever clocks do.
func TestEveryDateHasEachTimeOnce(t *testing.T) {
	eachZone(t, func(t *testing.T, zone *time.Location, around time.Time) {
		for minute := 0; minute < 24*60; minute += 15 {
			d := daily{clock{minute / 60, minute % 60, 0, zone}}
			i := d.Next(around.Add(-5 * day))
			for i.Before(around.Add(5 * day)) {
				next := d.Next(i)
				// Apia left out a whole date: its times all fell on the instant at which the next one began.
				if gap := next.Sub(i); gap > 27*time.Hour || gap < 20*time.Hour && zone.String() != "Pacific/Apia" {
					t.Fatalf("%02d:%02d: %s follows %s", minute/60, minute%60, next, i)
				}
				year, month, date := i.In(zone).Date()
				tomorrow := time.Date(year, month, date+1, 0, 0, 0, 0, time.UTC)
				if got := wallOf(next, zone).Truncate(day); !got.Equal(tomorrow) && zone.String() != "Pacific/Apia" {
					t.Fatalf("%02d:%02d: after %s comes %s, want one on %s", minute/60, minute%60, i.In(zone), next.In(zone), tomorrow.Format(time.DateOnly))
				}
				i = next
			}
		}
	})
}

// Whatever a schedule is asked from, its answers are the same row of instants: Next skips none and repeats none.
func TestNextIsTheSameRowFromWhereverOneAsks(t *testing.T) {
	eachZone(t, func(t *testing.T, zone *time.Location, around time.Time) {
		at := func(text string) clock {
			c, err := kitchen("time", text, zone)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		rows := map[string]instants{
			"daily in the gap": daily{at("2:30AM")}, "daily at midnight": daily{at("12:00AM")},
			"weekly":   weekly{at("2:15AM"), around.Weekday()},
			"monthly":  monthly{at("12:10AM"), around.Day()},
			"every 5m": anchored{at("4:18PM"), 5 * time.Minute}, "every 8h": anchored{at("2:30AM"), 8 * time.Hour},
			"every day": anchored{at("2:30AM"), day}, "every 2 days": anchored{at("2:30AM"), 2 * day}, "every 7h": anchored{at("2:30AM"), 7 * time.Hour},
		}
		for _, text := range []string{"*/5 * * * *", "30 2 * * *", "0 */2 * * *", "15 1,2,3 * * *", "@hourly", "17 * * * *", "*/5 * * * SUN"} {
			s, err := newCron(text, zone)
			if err != nil {
				t.Fatal(err)
			}
			rows[text] = s
		}
		for name, row := range rows {
			from, to := around.Add(-50*time.Hour), around.Add(50*time.Hour)
			next := row.Next(from)
			for i := from; i.Before(to); i = i.Add(time.Minute) {
				if !next.After(i) {
					next = row.Next(next)
				}
				if got := row.Next(i); !got.Equal(next) {
					t.Fatalf("%s after %s: %s, want %s", name, i.In(zone), got.In(zone), next.In(zone))
				}
			}
		}
	})
}

// An expression that runs in every hour leaves no hole when clocks are set back, and names no minute twice when set forward.
func TestCronByTheMinuteGoesOnWhileClocksAreSet(t *testing.T) {
	eachZone(t, func(t *testing.T, zone *time.Location, around time.Time) {
		s, err := newCron("*/5 * * * *", zone)
		if err != nil {
			t.Fatal(err)
		}
		for i := s.Next(around.Add(-3 * day)); i.Before(around.Add(3 * day)); {
			next := s.Next(i)
			if next.Sub(i) != 5*time.Minute {
				t.Fatalf("%s follows %s", next, i)
			}
			i = next
		}
	})
}

func TestCronInAZone(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, from, next string }{
		{"30 2 * * *", "2026-07-01 00:00:00", "2026-07-01 00:30:00"}, // 2:30 in summer
		{"30 2 * * *", "2026-12-01 00:00:00", "2026-12-01 01:30:00"}, // and in winter
		{"30 2 * * *", "2026-03-28 12:00:00", "2026-03-29 01:00:00"}, // there is no 2:30: when 2:00 becomes 3:00
		{"30 2 * * *", "2026-10-24 12:00:00", "2026-10-25 00:30:00"}, // the first 2:30
		{"30 2 * * *", "2026-10-25 00:30:00", "2026-10-26 01:30:00"}, // not the second
		{"*/20 * * * *", "2026-10-25 00:40:00", "2026-10-25 01:00:00"},
	} {
		s, err := parseCron(c.text, zone)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Next(at(c.from)); !got.Equal(at(c.next)) {
			t.Errorf("%q after %s: %s, want %s", c.text, c.from, got, c.next)
		}
	}
}
