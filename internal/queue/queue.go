// Package queue says whose session starts next when more are due than may run together.
//
// It knows how urgent each is, and one rule: the one that is closest to breaching its objective goes first. Those that are past it
// go in the order in which they became due, so that nobody is passed by for ever: who comes later is never more urgent than who has
// waited since before. It keeps nothing and reads no clock. Begin reading at Judge.
package queue

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Patience is how long one whose turn it is may go unseen before it is not waited for any more. One that waits looks more often.
const Patience = 5 * time.Minute

// Entry is one link of a replication, as it was seen last.
type Entry struct {
	// Name tells it from the others.
	Name string
	// Running is true while it has a session.
	Running bool
	// Since is when its next session became due. Zero when none is, or when more than its turn is missing.
	Since time.Time
	// Breach is when its newest point will be, or became, older than its objective allows.
	Breach time.Time
	// Seen is when it was looked at.
	Seen time.Time
}

// waits reports that nothing but its turn keeps a session from starting.
func (e Entry) waits(now time.Time) bool {
	return !e.Running && !e.Since.IsZero() && now.Sub(e.Seen) <= Patience
}

// deadline is what entries are ordered by. It does not change while an entry waits, and is never before the instant it began to:
// so only finitely many others can go before it.
func (e Entry) deadline() time.Time {
	if e.Breach.Before(e.Since) {
		return e.Since
	}
	return e.Breach
}

func closer(a, b Entry) int {
	return cmp.Or(a.deadline().Compare(b.deadline()), a.Since.Compare(b.Since), a.Breach.Compare(b.Breach), cmp.Compare(a.Name, b.Name))
}

// Turn says whether a session may start now.
type Turn struct {
	// Go is true when it may.
	Go bool
	// Running of at most Limit sessions run. Ahead are due too and closer to their objective.
	Running, Limit, Ahead int
}

func (t Turn) String() string {
	return fmt.Sprintf("its turn: %d of at most %d sessions run, %s closer to %s objective", t.Running, t.Limit, count(t.Ahead), their(t.Ahead))
}

func count(n int) string {
	if n == 1 {
		return "1 replication is"
	}
	return fmt.Sprintf("%d replications are", n)
}

func their(n int) string {
	if n == 1 {
		return "its"
	}
	return "their"
}

// Judge says whether the named entry may start a session. A limit of 0 lets everybody.
func Judge(entries []Entry, name string, limit int, now time.Time) Turn {
	t := Turn{Limit: limit}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		return t
	}
	for _, e := range entries {
		switch {
		case e.Running:
			t.Running++
		case e.Name != name && e.waits(now) && closer(e, entries[i]) < 0:
			t.Ahead++
		}
	}
	t.Go = limit <= 0 || t.Running+t.Ahead < limit
	return t
}

// Next names those who may start now, the most urgent first.
func Next(entries []Entry, limit int, now time.Time) []string {
	var waiting []Entry
	free := limit
	for _, e := range entries {
		switch {
		case e.Running:
			free--
		case e.waits(now):
			waiting = append(waiting, e)
		}
	}
	slices.SortFunc(waiting, closer)
	if limit > 0 {
		waiting = waiting[:min(len(waiting), max(free, 0))]
	}
	names := make([]string, len(waiting))
	for i, e := range waiting {
		names[i] = e.Name
	}
	return names
}
