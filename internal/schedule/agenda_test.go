package schedule

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func interval(t *testing.T, every, start string) Agenda {
	t.Helper()
	a, err := ParseInterval(every, start)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// M-022, T-26: an interval is from start to start, its first run starts at once.
func TestAnIntervalIsFromStartToStart(t *testing.T) {
	for _, c := range []struct {
		name             string
		next, last, now  string
		due              bool
		late             time.Duration
		wantNext, wantAf string
		skipped          int64
	}{
		{"the first run starts at once", "", "", "2026-11-21 10:02:00", true, 0, "2026-11-21 10:02:00", "2026-11-21 10:07:00", 0},
		{"the first run could not start yet", "2026-11-21 10:00:00", "", "2026-11-21 10:12:00", true, 2 * time.Minute, "2026-11-21 10:10:00", "2026-11-21 10:17:00", 2},
		{"too early", "2026-11-21 10:05:00", "2026-11-21 10:00:00", "2026-11-21 10:04:59", false, 0, "2026-11-21 10:05:00", "2026-11-21 10:05:00", 0},
		{"on the instant", "2026-11-21 10:05:00", "2026-11-21 10:00:00", "2026-11-21 10:05:00", true, 0, "2026-11-21 10:05:00", "2026-11-21 10:10:00", 0},
		{"the run before took long: the next starts at its end, and is counted from there", "2026-11-21 10:05:00", "2026-11-21 10:00:00", "2026-11-21 10:12:00", true, 2 * time.Minute, "2026-11-21 10:10:00", "2026-11-21 10:17:00", 1},
		{"nothing ran for a day: nobody asked for certain instants, so it is never too late", "2026-11-21 10:05:00", "2026-11-21 10:00:00", "2026-11-22 10:02:00", true, 2 * time.Minute, "2026-11-22 10:00:00", "2026-11-22 10:07:00", 287},
		{"edited from an hour to five minutes: due at once", "2026-11-21 11:00:00", "2026-11-21 10:00:00", "2026-11-21 10:30:00", true, 0, "2026-11-21 10:30:00", "2026-11-21 10:35:00", 0},
		{"edited from two minutes to five: the promise is counted anew", "2026-11-21 10:02:00", "2026-11-21 10:00:00", "2026-11-21 10:01:00", false, 0, "2026-11-21 10:05:00", "2026-11-21 10:05:00", 0},
		{"the clock was set back a little", "2026-11-21 10:05:00", "2026-11-21 10:00:00", "2026-11-21 09:59:50", false, 0, "2026-11-21 10:05:00", "2026-11-21 10:05:00", 0},
		{"the clock was set back far", "2026-11-21 10:05:00", "2026-11-21 10:00:00", "2026-11-20 10:00:00", true, 0, "2026-11-20 10:00:00", "2026-11-20 10:05:00", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Promise{Kind: Interval}
			if c.next != "" {
				p.Next = at(c.next)
			}
			if c.last != "" {
				p.Last = at(c.last)
			}
			got := interval(t, "5m", "").Look([]Promise{p}, at(c.now))
			want := Look{Due: c.due, Late: c.late, Next: at(c.wantNext), After: at(c.wantAf), Skipped: c.skipped}
			if got.Look != want {
				t.Errorf("got  %+v\nwant %+v", got.Look, want)
			}
		})
	}
}

// An interval with a start time has instants of its own: the first is waited for, one that is an hour past is skipped.
func TestAnIntervalWithAStartTimeWaitsForIt(t *testing.T) {
	a := interval(t, "1d", "16:18:43")
	if look := a.Look(nil, at("2026-11-21 10:00:00")); look.Due || !look.Next.Equal(at("2026-11-21 16:18:43")) {
		t.Errorf("first look: %+v", look)
	}
	promised := []Promise{{Kind: Interval, Next: at("2026-11-21 16:18:43")}}
	if look := a.Look(promised, at("2026-11-21 17:18:44")); look.Due || look.Skipped != 1 || !look.Next.Equal(at("2026-11-22 16:18:43")) {
		t.Errorf("an hour and a second late: %+v", look)
	}
	if look := a.Look(promised, at("2026-11-21 17:18:43")); !look.Due || look.Skipped != 0 {
		t.Errorf("an hour late: %+v", look)
	}
}

func TestAFixedInstantIsPromisedOnce(t *testing.T) {
	a, err := ParseAgenda("*/5 * * * *")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, next, last, now, want string }{
		{"the clock was set back over the instant that ran", "2026-11-21 10:10:00", "2026-11-21 10:05:00", "2026-11-21 10:04:59", "2026-11-21 10:10:00"},
		{"edited to be more frequent, and the old promise is one of the new instants", "2027-01-01 00:00:00", "2026-11-21 10:00:00", "2026-11-21 10:02:00", "2026-11-21 10:05:00"},
		{"the clock was far ahead when it ran", "2028-01-01 00:05:00", "2028-01-01 00:00:00", "2026-11-21 10:02:00", "2026-11-21 10:05:00"},
	} {
		look := a.Look([]Promise{{Kind: Cron, Next: at(c.next), Last: at(c.last)}}, at(c.now))
		if look.Due || look.Skipped != 0 || !look.Next.Equal(at(c.want)) || !look.After.Equal(at(c.want)) {
			t.Errorf("%s: %+v, want %s", c.name, look, c.want)
		}
	}
}

// M-024, T-27: each kind of a policy keeps its own promise.
func TestEachKindKeepsItsOwnPromise(t *testing.T) {
	a := mustPolicy(t, everyMinutes(5), dailyAt("10:15PM"), weeklyOn("Sat"), monthlyOn(21))
	first := a.Look(nil, at("2026-11-21 10:00:00"))
	if !first.Due || !slices.Equal(first.Kinds, []Kind{Interval}) {
		t.Fatalf("first look: %+v", first)
	}
	promises := first.Started(at("2026-11-21 10:00:00"), first.Kinds...)
	want := map[Kind]string{Interval: "2026-11-21 10:05:00", Daily: "2026-11-21 22:15:00", Weekly: "2026-11-21 12:00:00", Monthly: "2026-11-21 12:00:00"}
	for _, p := range promises {
		if !p.Next.Equal(at(want[p.Kind])) || p.Last.IsZero() != (p.Kind != Interval) {
			t.Errorf("promised %+v, want %s", p, want[p.Kind])
		}
	}
	// All of them at once: the one that comes back last goes first.
	noon := a.Look(promises, at("2026-11-21 12:00:00"))
	if !slices.Equal(noon.Kinds, []Kind{Monthly, Weekly, Interval}) || noon.Skipped != 23 {
		t.Errorf("at noon: %+v", noon)
	}
	// One of them runs, the others stay due.
	promises = noon.Started(at("2026-11-21 12:00:00"), Monthly)
	later := a.Look(promises, at("2026-11-21 12:01:00"))
	if !slices.Equal(later.Kinds, []Kind{Weekly, Interval}) || later.Late != time.Minute {
		t.Errorf("while the monthly one ran: %+v", later)
	}
	// The weekly one waited for more than an hour for a run to end.
	tooLate := a.Look(later.Resting, at("2026-11-21 13:00:01"))
	if !slices.Equal(tooLate.Kinds, []Kind{Interval}) {
		t.Errorf("an hour later: %+v", tooLate)
	}
	if look := a.Look([]Promise{{Kind: Cron, Next: at("2026-11-21 10:05:00")}}, at("2026-11-21 10:05:00")); slices.Contains(look.Kinds, Cron) {
		t.Errorf("a kind the policy does not have: %+v", look)
	}
}

// Over a month, with runs of every length and a manager that is away at times, each instant of each kind is started or skipped
// once, no two runs are in flight together, no kind is forgotten, and no interval is shorter than asked for.
func TestOverAMonthEveryInstantOfEachKindIsStartedOrSkippedOnce(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		a := mustPolicy(t, everyMinutes(30), dailyAt("3:00AM"), weeklyOn("Sun"), monthlyOn(14))
		start := at("2026-11-01 00:00:30")
		var promises []Promise
		started, skipped := map[Kind]int64{}, map[Kind]int64{}
		var lastInterval time.Time
		now := start
		for end := start.Add(30 * day); now.Before(end); {
			before := map[Kind]Look{}
			for _, e := range a.entries {
				p := Promise{Kind: e.kind}
				for _, have := range promises {
					if have.Kind == e.kind {
						p = have
					}
				}
				before[e.kind] = e.look(p, now)
			}
			look := a.Look(promises, now)
			for kind, l := range before {
				skipped[kind] += l.Skipped
			}
			promises = look.Resting
			if look.Due {
				kind := look.Kinds[0]
				promises = look.Started(now, kind)
				started[kind]++
				if kind == Interval {
					if since := now.Sub(lastInterval); !lastInterval.IsZero() && since < 29*time.Minute+59*time.Second {
						t.Fatalf("seed %d: two intervals start %s apart", seed, since)
					}
					lastInterval = now
				}
				now = now.Add(time.Duration(random.Int64N(int64(40 * time.Minute)))) // in flight
			}
			now = now.Add(time.Duration(random.Int64N(int64(2 * time.Minute))))
			if random.IntN(500) == 0 {
				now = now.Add(time.Duration(random.Int64N(int64(7 * time.Hour)))) // away
			}
		}
		for _, e := range a.entries {
			if e.every != 0 {
				continue
			}
			var instants int64
			for i := e.at.Next(start); !i.After(now); i = e.at.Next(i) {
				instants++
			}
			// What came due at the very end is neither yet.
			if got := started[e.kind] + skipped[e.kind]; got != instants && got != instants-1 {
				t.Errorf("seed %d: %s: %d started, %d skipped of %d", seed, e.kind, started[e.kind], skipped[e.kind], instants)
			}
		}
		if started[Daily] < 20 || started[Interval] < 500 || started[Weekly] < 2 {
			t.Errorf("seed %d: started %v, skipped %v", seed, started, skipped)
		}
	}
}

func TestAnEmptyAgendaWantsNothing(t *testing.T) {
	look := Agenda{}.Look([]Promise{{Kind: Cron, Next: at("2026-11-21 10:00:00")}}, at("2026-11-21 10:00:00"))
	if look.Due || !look.Next.IsZero() || len(look.Resting) != 0 || !(Agenda{}).Empty() {
		t.Errorf("look: %+v", look)
	}
}
