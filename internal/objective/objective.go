// Package objective says how a replication stands to its recovery point objective, and how it will.
//
// It knows how old the newest recovery point is, may be, and will be at the present rate. It reads no clock and keeps nothing.
// Begin reading at Judge.
package objective

import (
	"fmt"
	"time"
)

// State is how a link stands to its objective.
type State string

const (
	// Met: the newest point is young enough, and the next one is expected in time.
	Met State = "Met"
	// AtRisk: it is young enough now, and will not be before the next one comes.
	AtRisk State = "AtRisk"
	// Breached: it is older than the objective allows.
	Breached State = "Breached"
)

// Seen is what is known of a link.
type Seen struct {
	Now       time.Time
	Objective time.Duration
	// Point is the instant of the newest point that the target has; zero when it has none.
	Point time.Time
	// Since is when replication was asked for. Until there is a point the objective counts from here.
	Since time.Time

	// Running is true while a session runs; Left is how long it will at its present rate, 0 when that is not known.
	Running bool
	Left    time.Duration
	// Next is when the next session starts, Usual how long the last one took; zero when not known.
	Next  time.Time
	Usual time.Duration
	// Suspended is true when no session will start.
	Suspended bool
}

// Verdict is how it stands and will.
type Verdict struct {
	State State
	// Until is when the newest point is as old as the objective allows: from then on it is breached.
	Until time.Time
	// Message says how it stands, Forecast how it will; the latter is empty when nothing is known. Neither changes by the mere
	// passing of time.
	Message, Forecast string
}

// Judge says how a link stands to its objective.
func Judge(s Seen) Verdict {
	from := s.Point
	if from.IsZero() {
		from = s.Since
	}
	v := Verdict{State: Met, Until: from.Add(s.Objective)}
	past, forecast := ahead(s, v.Until)
	v.Forecast = forecast
	if past > 0 {
		v.State = AtRisk
	}
	if s.Now.After(v.Until) {
		v.State = Breached
	}
	v.Message = message(s, v)
	return v
}

func message(s Seen, v Verdict) string {
	point := "the newest recovery point is of " + clock(s.Point)
	if s.Point.IsZero() {
		point = "there is no recovery point yet"
	}
	allowed := fmt.Sprintf("the objective of %s", Text(s.Objective))
	if v.State == Breached {
		return fmt.Sprintf("%s, and %s is breached since %s", point, allowed, clock(v.Until))
	}
	return fmt.Sprintf("%s, which keeps %s until %s", point, allowed, clock(v.Until))
}

// ahead says how far past the objective the next point will come at the present rate, and tells so.
func ahead(s Seen, until time.Time) (past time.Duration, forecast string) {
	switch {
	case s.Running && s.Left > 0:
		past = s.Now.Add(s.Left).Sub(until)
		return past, "at the present rate the running session ends " + relative(past)
	case s.Running:
		return 0, ""
	case s.Suspended:
		return 0, "no session starts while replication is suspended"
	case s.Next.IsZero():
		return 0, ""
	}
	past = s.Next.Add(s.Usual).Sub(until)
	if s.Usual == 0 {
		return past, fmt.Sprintf("the next session starts at %s, %s", clock(s.Next), relative(past))
	}
	return past, fmt.Sprintf("the next session starts at %s and ends %s if it takes %s as the last one did", clock(s.Next), relative(past), Text(s.Usual))
}

func relative(past time.Duration) string {
	if past > 0 {
		return Text(past) + " past the objective"
	}
	return Text(-past) + " before the objective is breached"
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Text writes a duration as people do, with its two largest units: 45s, 2m, 1h30m, 2d3h.
func Text(d time.Duration) string {
	units := []struct {
		name string
		of   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
	for i, unit := range units {
		if d < unit.of {
			continue
		}
		text := fmt.Sprintf("%d%s", d/unit.of, unit.name)
		if i+1 < len(units) && d%unit.of >= units[i+1].of {
			text += fmt.Sprintf("%d%s", d%unit.of/units[i+1].of, units[i+1].name)
		}
		return text
	}
	return "0s"
}
