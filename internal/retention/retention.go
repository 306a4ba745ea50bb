// Package retention says which recovery points to keep.
//
// It knows points and their times. It deletes nothing and reads no clock. Begin reading at Keep.
package retention

import (
	"slices"
	"strings"
	"time"
)

// Point is a recovery point that is kept somewhere.
type Point struct {
	// ID names it.
	ID string
	// Time is the instant it was cut at.
	Time time.Time
}

// Policy bounds what is kept: by number, and by age.
type Policy struct {
	// Count is how many points are kept at most; 0 or less keeps none at all.
	Count int
	// For is how old a point may become; 0 or less bounds nothing.
	For time.Duration
}

// Keep splits points into those that stay and those that go. Both come back newest first; points of one instant are ordered by
// id, so that every look splits them alike.
//
// Both bounds hold: a point goes once it is not among the newest Count, or is older than For, whichever comes first. The
// newest point is never dropped for its age: while the link is down it is all there is.
func Keep(points []Point, p Policy, now time.Time) (keep, drop []Point) {
	sorted := slices.Clone(points)
	slices.SortFunc(sorted, func(a, b Point) int {
		if order := b.Time.Compare(a.Time); order != 0 {
			return order
		}
		return strings.Compare(b.ID, a.ID)
	})
	n := min(max(p.Count, 0), len(sorted))
	for p.For > 0 && n > 1 && now.Sub(sorted[n-1].Time) > p.For {
		n--
	}
	return sorted[:n:n], sorted[n:]
}
