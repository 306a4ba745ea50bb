package objective

import (
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name     string
		edit     func(*Seen)
		state    State
		message  string
		forecast string
	}{
		{"young", func(*Seen) {}, Met,
			"the newest recovery point is of 2026-11-21T11:57:00Z, which keeps the objective of 5m until 2026-11-21T12:02:00Z", ""},
		{"exactly as old as allowed", func(s *Seen) { s.Point = noon.Add(-5 * time.Minute) }, Met, "", ""},
		{"older", func(s *Seen) { s.Point = noon.Add(-5*time.Minute - time.Second) }, Breached,
			"the newest recovery point is of 2026-11-21T11:54:59Z, and the objective of 5m is breached since 2026-11-21T11:59:59Z", ""},
		{"none yet", func(s *Seen) { s.Point = time.Time{} }, Met,
			"there is no recovery point yet, which keeps the objective of 5m until 2026-11-21T12:04:00Z", ""},
		{"none for too long", func(s *Seen) { s.Point, s.Since = time.Time{}, noon.Add(-time.Hour) }, Breached,
			"there is no recovery point yet, and the objective of 5m is breached since 2026-11-21T11:05:00Z", ""},
		{"a session ends in time", func(s *Seen) { s.Running, s.Left = true, time.Minute }, Met, "",
			"at the present rate the running session ends 1m before the objective is breached"},
		{"a session ends too late", func(s *Seen) { s.Running, s.Left = true, 4*time.Minute }, AtRisk, "",
			"at the present rate the running session ends 2m past the objective"},
		{"a session whose rate is not known", func(s *Seen) { s.Running = true }, Met, "", ""},
		{"the next session is in time", func(s *Seen) { s.Next, s.Usual = noon.Add(time.Minute), 40*time.Second }, Met, "",
			"the next session starts at 2026-11-21T12:01:00Z and ends 20s before the objective is breached if it takes 40s as the last one did"},
		{"the schedule cannot keep it", func(s *Seen) { s.Next, s.Usual = noon.Add(time.Hour), 40*time.Second }, AtRisk, "",
			"the next session starts at 2026-11-21T13:00:00Z and ends 58m40s past the objective if it takes 40s as the last one did"},
		{"no session ended yet", func(s *Seen) { s.Next = noon.Add(3 * time.Minute) }, AtRisk, "",
			"the next session starts at 2026-11-21T12:03:00Z, 1m past the objective"},
		{"suspended", func(s *Seen) { s.Suspended, s.Next = true, noon.Add(time.Hour) }, Met, "", "no session starts while replication is suspended"},
		{"breached, and a session runs", func(s *Seen) {
			s.Point, s.Running, s.Left = noon.Add(-time.Hour), true, time.Minute
		}, Breached, "", "at the present rate the running session ends 56m past the objective"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Seen{Now: noon, Objective: 5 * time.Minute, Point: noon.Add(-3 * time.Minute), Since: noon.Add(-time.Minute)}
			c.edit(&s)
			v := Judge(s)
			if v.State != c.state || v.Forecast != c.forecast || c.message != "" && v.Message != c.message {
				t.Errorf("got %+v", v)
			}
		})
	}
}

// A verdict that changed every second would be written every second.
func TestAVerdictDoesNotChangeByTheMerePassingOfTime(t *testing.T) {
	s := Seen{Now: noon, Objective: 5 * time.Minute, Point: noon.Add(-time.Minute), Next: noon.Add(time.Minute), Usual: time.Minute}
	first := Judge(s)
	for range 200 {
		s.Now = s.Now.Add(time.Second)
		if v := Judge(s); v != first {
			t.Fatalf("%s: %+v", s.Now, v)
		}
	}
}

func TestText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 900 * time.Millisecond: "0s", 45 * time.Second: "45s", 2 * time.Minute: "2m", 90 * time.Second: "1m30s",
		90 * time.Minute: "1h30m", time.Hour + time.Second: "1h", 51*time.Hour + time.Minute: "2d3h", 24 * time.Hour: "1d",
	} {
		if got := Text(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}
