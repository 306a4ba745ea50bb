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

// Keep splits points into the newest n, which stay, and the others, which go. Both come back newest first; points
// of one instant are ordered by id, so that every look splits them alike. A negative n keeps none.
func Keep(points []Point, n int) (keep, drop []Point) {
	sorted := slices.Clone(points)
	slices.SortFunc(sorted, func(a, b Point) int {
		if order := b.Time.Compare(a.Time); order != 0 {
			return order
		}
		return strings.Compare(b.ID, a.ID)
	})
	n = min(max(n, 0), len(sorted))
	return sorted[:n:n], sorted[n:]
}
