package schedule

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func at(text string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestParseRefusesWhatWouldSurprise(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"", "empty"},
		{"   ", "empty"},
		{"* * * *", "expected"},
		{"* * * * * *", "expected"},
		{"61 * * * *", "above maximum"},
		{"TZ=Europe/Berlin 0 3 * * *", "UTC"},
		{"TZ=", "UTC"},
		{"CRON_TZ=UTC 0 3 * * *", "UTC"},
		{"@every 5m", "*/5 * * * *"},
		{"@sometimes", "unrecognized descriptor"},
		{"0 0 30 2 *", "never run"},
		{"hello", "expected"},
	} {
		_, err := Parse(c.text)
		var invalid *Invalid
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Parse(%q) = %v, want an Invalid that says %q", c.text, err, c.says)
		}
	}
}

func TestParseTakesWhatCronKnows(t *testing.T) {
	for _, c := range []struct{ text, from, next string }{
		{"*/5 * * * *", "2026-11-21 10:00:00", "2026-11-21 10:05:00"},
		{"*/5 * * * *", "2026-11-21 10:04:59", "2026-11-21 10:05:00"},
		{" 0 3 * * * ", "2026-11-21 10:00:00", "2026-11-22 03:00:00"},
		{"@hourly", "2026-11-21 10:00:01", "2026-11-21 11:00:00"},
		{"0 0 29 2 *", "2026-03-01 00:00:00", "2028-02-29 00:00:00"},
		{"0 0 * * MON", "2026-11-21 00:00:00", "2026-11-23 00:00:00"},
	} {
		s, err := Parse(c.text)
		if err != nil {
			t.Errorf("Parse(%q): %v", c.text, err)
			continue
		}
		if got := s.Next(at(c.from)); !got.Equal(at(c.next)) {
			t.Errorf("%q after %s: %s, want %s", c.text, c.from, got, c.next)
		}
	}
}

func TestTimesAreUTCWhateverZoneTheCallerLivesIn(t *testing.T) {
	s, err := Parse("0 3 * * *")
	if err != nil {
		t.Fatal(err)
	}
	zone := time.FixedZone("ahead", 5*3600)
	if got := s.Next(at("2026-11-21 10:00:00").In(zone)); !got.Equal(at("2026-11-22 03:00:00")) || got.Location() != time.UTC {
		t.Errorf("next = %s", got)
	}
}

func TestLook(t *testing.T) {
	for _, c := range []struct {
		name          string
		cron          string
		promised, now string
		due           bool
		late          time.Duration
		next, after   string
		skipped       int64
	}{
		{"the first look promises the next instant", "*/5 * * * *", "", "2026-11-21 10:02:00", false, 0, "2026-11-21 10:05:00", "2026-11-21 10:05:00", 0},
		{"too early", "*/5 * * * *", "2026-11-21 10:05:00", "2026-11-21 10:04:59", false, 0, "2026-11-21 10:05:00", "2026-11-21 10:05:00", 0},
		{"on the instant", "*/5 * * * *", "2026-11-21 10:05:00", "2026-11-21 10:05:00", true, 0, "2026-11-21 10:05:00", "2026-11-21 10:10:00", 0},
		{"a little late", "*/5 * * * *", "2026-11-21 10:05:00", "2026-11-21 10:05:20", true, 20 * time.Second, "2026-11-21 10:05:00", "2026-11-21 10:10:00", 0},
		{"one run answers all instants that passed while another ran", "*/5 * * * *", "2026-11-21 10:05:00", "2026-11-21 10:21:00", true, time.Minute, "2026-11-21 10:20:00", "2026-11-21 10:25:00", 3},
		{"exactly an hour late still starts", "0 3 * * *", "2026-11-21 03:00:00", "2026-11-21 04:00:00", true, time.Hour, "2026-11-21 03:00:00", "2026-11-22 03:00:00", 0},
		{"more than an hour late is skipped and counted", "0 3 * * *", "2026-11-21 03:00:00", "2026-11-21 04:00:01", false, 0, "2026-11-22 03:00:00", "2026-11-22 03:00:00", 1},
		{"three nights away", "0 3 * * *", "2026-11-18 03:00:00", "2026-11-20 12:00:00", false, 0, "2026-11-21 03:00:00", "2026-11-21 03:00:00", 3},
		{"three nights away, back just in time", "0 3 * * *", "2026-11-18 03:00:00", "2026-11-20 03:30:00", true, 30 * time.Minute, "2026-11-20 03:00:00", "2026-11-21 03:00:00", 2},
		{"the schedule was edited: the old promise is forgotten", "0 * * * *", "2026-11-21 10:05:00", "2026-11-21 10:07:00", false, 0, "2026-11-21 11:00:00", "2026-11-21 11:00:00", 0},
		{"the schedule was edited to be more frequent", "*/5 * * * *", "2026-11-22 03:01:00", "2026-11-21 10:07:00", false, 0, "2026-11-21 10:10:00", "2026-11-21 10:10:00", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Parse(c.cron)
			if err != nil {
				t.Fatal(err)
			}
			var promised time.Time
			if c.promised != "" {
				promised = at(c.promised)
			}
			want := Look{Due: c.due, Late: c.late, Next: at(c.next), After: at(c.after), Skipped: c.skipped}
			if got := s.Look(promised, at(c.now)); got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// Saving Next and adding up Skipped must count every instant exactly once: started or skipped.
func TestEveryInstantIsStartedOrSkippedOnce(t *testing.T) {
	s, err := Parse("*/5 * * * *")
	if err != nil {
		t.Fatal(err)
	}
	for _, stride := range []time.Duration{7 * time.Second, 61 * time.Second, 17 * time.Minute, 61 * time.Minute, 5 * time.Hour} {
		start := at("2026-11-21 00:00:00")
		end := start.Add(48 * time.Hour)
		var started, skipped int64
		var promised time.Time
		now := start
		for ; !now.After(end); now = now.Add(stride) {
			look := s.Look(promised, now)
			skipped += look.Skipped
			promised = look.Next
			if look.Due {
				started++
				promised = look.After
			}
		}
		last := now.Add(-stride)
		var instants int64
		for i := s.Next(start); !i.After(last); i = s.Next(i) {
			instants++
		}
		if started+skipped != instants {
			t.Errorf("stride %s: %d started + %d skipped, want %d instants", stride, started, skipped, instants)
		}
	}
}

func TestALookAfterYearsAwayAnswersAtOnce(t *testing.T) {
	s, err := Parse("* * * * *")
	if err != nil {
		t.Fatal(err)
	}
	now := at("2026-11-21 10:00:30")
	look := s.Look(at("2016-11-21 10:00:00"), now)
	if !look.Due || look.Late != 30*time.Second || look.Skipped == 0 {
		t.Errorf("look = %+v", look)
	}
}

func TestAScheduleThatWasNeverParsedNeverFires(t *testing.T) {
	if look := (Schedule{}).Look(at("2026-11-21 10:00:00"), at("2026-11-21 10:00:00")); look.Due || !look.Next.IsZero() {
		t.Errorf("look = %+v", look)
	}
}
