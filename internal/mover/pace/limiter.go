package pace

import (
	"context"
	"time"
)

// Limiter shares a calendar's rate between all its users, which may be many and come and go. Over any span of time it
// lets through at most what the rate gives in that span and one Burst.
//
// Users take turns, in the order in which they came, for a Step at a time: one that asks for much, or often, does not
// starve another. Several limiters are stacked by waiting for one after the other, or by Conn on top of Conn. A nil
// Limiter limits nothing.
type Limiter struct {
	now      func() time.Time
	calendar Calendar

	// turn is held by the one user that waits for bytes; the others wait for the turn, which channels hand out in order.
	turn chan struct{}

	// What follows belongs to the holder of turn.
	at       time.Time // until when level is worked out
	level    float64   // bytes that may pass now; never more than one burst
	rate     Rate      // as of at
	from, to time.Time // the rate is known to hold between; a zero to is for ever
}

// New makes a limiter whose first burst is ready. now may be stopped or wound by tests; where it jumps in use, the
// limiter errs by at most a burst.
func New(now func() time.Time, c Calendar) *Limiter {
	l := &Limiter{now: now, calendar: c, turn: make(chan struct{}, 1)}
	l.at = now()
	l.look(l.at)
	l.level = Burst(l.rate)
	return l
}

// Burst is how many bytes may pass at once after a rest, at a rate: what it gives in a tenth of a second, so that a
// timer that is late loses nothing, but at least one Step.
func Burst(r Rate) float64 { return max(float64(r)/10, float64(Step(r))) }

// Step is how many bytes a user is given in one turn: a hundredth of a second's, within bounds that keep a slow link
// flowing and a fast one from being cut into slivers.
func Step(r Rate) int {
	const least, most = 1 << 10, 256 << 10
	if r == 0 {
		return most
	}
	return int(min(max(r/100, least), most))
}

// Wait returns when n more bytes may pass, or with the context's error as soon as that ends; what it had taken until
// then is spent.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	for n > 0 {
		took, err := l.take(ctx, n)
		if err != nil {
			return err
		}
		n -= took
	}
	return nil
}

// take waits for a turn and takes at most a step of n bytes.
func (l *Limiter) take(ctx context.Context, n int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	defer func() { <-l.turn }()
	for {
		now := l.now()
		l.advance(now)
		if l.rate == 0 {
			return n, nil
		}
		// The rate may have changed while this turn was waited for.
		step := min(n, Step(l.rate))
		missing := float64(step) - l.level
		if missing <= 0 {
			l.level -= float64(step)
			return step, nil
		}
		if err := sleep(ctx, l.nap(now, missing)); err != nil {
			return 0, err
		}
	}
}

// nap is how long to sleep for missing bytes: no longer than the present rate holds, nor than the least rate takes for
// a step, about a second. So long may a new rate, or a clock that was set, go unseen.
func (l *Limiter) nap(now time.Time, missing float64) time.Duration {
	d := time.Duration(missing/float64(l.rate)*float64(time.Second)) + 1
	if !l.to.IsZero() {
		d = min(d, l.to.Sub(now))
	}
	return max(d, time.Microsecond)
}

// advance adds what the calendar gave since the last time.
func (l *Limiter) advance(now time.Time) {
	if now.Before(l.at) {
		l.at = now // the clock went back; nothing is given for that
	}
	for {
		l.look(l.at)
		end := now
		if !l.to.IsZero() && l.to.Before(now) {
			end = l.to
		}
		l.level += end.Sub(l.at).Seconds() * float64(l.rate)
		if l.rate == 0 {
			l.level = 0 // it is not kept account of; a limit that begins then begins without a burst
		}
		l.at = end
		if end.Equal(now) {
			l.look(now)
			l.level = min(l.level, Burst(l.rate))
			return
		}
	}
}

// look asks the calendar for the rate at t, unless that is known.
func (l *Limiter) look(t time.Time) {
	wall := t.Round(0)
	if known := !l.from.IsZero() && !wall.Before(l.from) && (l.to.IsZero() || wall.Before(l.to)); known {
		return
	}
	r, until := l.calendar.At(wall)
	l.rate, l.from, l.to = Rate(r), wall, until
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
