package schedule

import (
	"cmp"
	"slices"
	"time"
)

// Kind is what sort of instants a promise is about.
type Kind string

// Kinds, as a SchedulePolicy names them.
const (
	Cron     Kind = "Cron"
	Interval Kind = "Interval"
	Daily    Kind = "Daily"
	Weekly   Kind = "Weekly"
	Monthly  Kind = "Monthly"
)

// rarity orders kinds: of two that are due since the same instant, the one that comes back later goes first.
var rarity = []Kind{Monthly, Weekly, Daily, Cron, Interval}

// Agenda is everything one schedule or one SchedulePolicy wants. Each kind in it has a promise of its own. The zero value wants
// nothing.
type Agenda struct {
	entries []entry
}

// entry is one kind of an agenda: a row of instants, or an interval that begins where its first run does.
type entry struct {
	kind Kind
	at   Schedule
	// every is set for an interval without a start time: nobody asked for certain instants, so its next run is wanted one
	// interval after the start of the last, and is never too late.
	every time.Duration
}

// Promise is what was promised of one kind, as the owner of the runs saves it.
type Promise struct {
	Kind Kind
	// Next is the instant the next run is wanted at; zero before the first look.
	Next time.Time
	// Last is when the newest run of this kind started; zero when none did.
	Last time.Time
}

// Outlook is what an agenda says at one instant.
type Outlook struct {
	// Look is that of all kinds together: one of them is due, or the first of them will be.
	Look
	// Kinds are those that are due, the one that should run first before the others.
	Kinds []Kind
	// Resting is what to save when no run starts now.
	Resting []Promise

	after map[Kind]time.Time
}

// Started is what to save when a run starts at now that keeps the promises of some kinds. One run may keep all that are due, if
// it does not matter which kind a run is of; what comes due while it runs is for another run.
func (o Outlook) Started(now time.Time, kinds ...Kind) []Promise {
	promises := slices.Clone(o.Resting)
	for i, p := range promises {
		if slices.Contains(kinds, p.Kind) {
			promises[i] = Promise{Kind: p.Kind, Next: o.after[p.Kind], Last: now.UTC().Truncate(time.Second)}
		}
	}
	return promises
}

// Empty reports that nothing is ever wanted.
func (a Agenda) Empty() bool { return len(a.entries) == 0 }

// ParseAgenda reads a cron expression in UTC. The error is an *Invalid.
func ParseAgenda(text string) (Agenda, error) {
	s, err := Parse(text)
	if err != nil {
		return Agenda{}, err
	}
	return Agenda{[]entry{{kind: Cron, at: s}}}, nil
}

// Look tells at now what is due of each kind, given what was promised. Promises of kinds that the agenda does not have (any more)
// are forgotten.
func (a Agenda) Look(promises []Promise, now time.Time) Outlook {
	now = now.UTC()
	out := Outlook{after: map[Kind]time.Time{}}
	type due struct {
		kind  Kind
		since time.Time
	}
	var dues []due
	for _, e := range a.entries {
		p := Promise{Kind: e.kind}
		if i := slices.IndexFunc(promises, func(p Promise) bool { return p.Kind == e.kind }); i >= 0 {
			p = promises[i]
		}
		look := e.look(p, now)
		out.Skipped += look.Skipped
		out.Next = earlier(out.Next, look.Next)
		out.After = earlier(out.After, look.After)
		out.after[e.kind] = look.After
		out.Resting = append(out.Resting, Promise{Kind: e.kind, Next: look.Next, Last: p.Last})
		if look.Due {
			out.Due, out.Late = true, max(out.Late, look.Late)
			dues = append(dues, due{e.kind, look.Next})
		}
	}
	slices.SortFunc(dues, func(a, b due) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(slices.Index(rarity, a.kind), slices.Index(rarity, b.kind)))
	})
	for _, d := range dues {
		out.Kinds = append(out.Kinds, d.kind)
	}
	return out
}

// earlier is the earlier of two instants, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (e entry) look(p Promise, now time.Time) Look {
	if e.every != 0 {
		return lookInterval(e.every, p, now)
	}
	look := e.at.Look(p.Next, now)
	if behind := p.Last.Sub(now); !look.Due && behind > 0 && behind < MaxLate {
		// The clock was set back a little. What ran is not run again.
		look.Next = e.at.Next(p.Last)
		look.After = look.Next
	}
	return look
}

// lookInterval is Look for an interval that is counted from the start of its last run. What became due while no run could start
// is answered by one run, however late; the instants before the newest are skipped.
func lookInterval(every time.Duration, p Promise, now time.Time) Look {
	now = now.Truncate(time.Second)
	next, edited := p.Last.UTC().Add(every), false
	switch {
	case p.Last.IsZero() && (p.Next.IsZero() || p.Next.After(now)):
		next = now // the first run starts at once
	case p.Last.IsZero():
		next = p.Next.UTC()
	case p.Last.After(now.Add(every)):
		next = now // the clock was set back: nobody knows when the last run was
	case p.Next.After(next) && !p.Next.After(now) && p.Next.Sub(next)%every == 0:
		next = p.Next.UTC()
	default:
		// What was promised is not of this interval: it is forgotten without being counted.
		edited = !p.Next.Equal(next)
	}
	if next.After(now) {
		return Look{Next: next, After: next}
	}
	passed := now.Sub(next) / every
	newest := next.Add(passed * every)
	if edited {
		passed = 0
	}
	return Look{Due: true, Late: now.Sub(newest), Next: newest, After: now.Add(every), Skipped: int64(passed)}
}
