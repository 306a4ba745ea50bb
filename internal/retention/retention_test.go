package retention

import (
	"math/rand"
	"strings"
	"testing"
	"time"
)

func points(ids ...string) []Point {
	var all []Point
	for _, id := range ids {
		// The first letter is the minute, so "a1" and "a2" are of one instant.
		all = append(all, Point{id, time.Unix(int64(id[0])*60, 0)})
	}
	return all
}

func ids(points []Point) string {
	var all []string
	for _, p := range points {
		all = append(all, p.ID)
	}
	return strings.Join(all, " ")
}

// late is when all points of these tests are old.
var late = time.Unix(1<<30, 0)

func TestKeep(t *testing.T) {
	for _, c := range []struct {
		name       string
		points     []Point
		n          int
		keep, drop string
	}{
		{"nothing there", nil, 3, "", ""},
		{"fewer than wanted", points("a", "b"), 3, "b a", ""},
		{"exactly as many", points("b", "a", "c"), 3, "c b a", ""},
		{"the oldest goes", points("b", "d", "a", "c"), 3, "d c b", "a"},
		{"none is kept", points("a", "b"), 0, "", "b a"},
		{"a negative count keeps none", points("a"), -1, "", "a"},
		{"one instant is split by id", points("a2", "a1", "a3"), 2, "a3 a2", "a1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			keep, drop := Keep(c.points, Policy{Count: c.n}, late)
			if ids(keep) != c.keep || ids(drop) != c.drop {
				t.Errorf("keep %q drop %q, want %q and %q", ids(keep), ids(drop), c.keep, c.drop)
			}
		})
	}
}

// Whatever order points are listed in, the split is the same, nothing is lost, and asking again about what was kept drops nothing.
func TestKeepIsStable(t *testing.T) {
	all := points("a1", "a2", "b", "c", "d1", "d2", "e")
	random := rand.New(rand.NewSource(1))
	for n := 0; n <= len(all)+1; n++ {
		wantKeep, wantDrop := Keep(all, Policy{Count: n}, late)
		for range 20 {
			random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			keep, drop := Keep(all, Policy{Count: n}, late)
			if ids(keep) != ids(wantKeep) || ids(drop) != ids(wantDrop) || len(keep)+len(drop) != len(all) {
				t.Fatalf("n %d: keep %q drop %q", n, ids(keep), ids(drop))
			}
			if _, again := Keep(keep, Policy{Count: n}, late); len(again) != 0 {
				t.Fatalf("n %d: the second look drops %q", n, ids(again))
			}
		}
	}
}

// M-103, M-105: count and age bound what is kept, the stricter wins, and the newest point outlives every age.
func TestCountAndAgeBoth(t *testing.T) {
	// Points of minutes 'a' (97) to 'e' (101).
	all := points("a", "b", "c", "d", "e")
	at := func(minute byte) time.Time { return time.Unix(int64(minute)*60, 0) }
	for _, c := range []struct {
		name       string
		policy     Policy
		now        time.Time
		keep, drop string
	}{
		{"age alone would keep more", Policy{2, time.Hour}, at('e'), "e d", "c b a"},
		{"count alone would keep more", Policy{5, 2 * time.Minute}, at('e'), "e d c", "b a"},
		{"exactly as old as allowed stays", Policy{5, 4 * time.Minute}, at('e'), "e d c b a", ""},
		{"a second older goes", Policy{5, 4 * time.Minute}, at('e').Add(time.Second), "e d c b", "a"},
		{"no age", Policy{5, 0}, late, "e d c b a", ""},
		{"a negative age bounds nothing", Policy{3, -time.Hour}, late, "e d c", "b a"},
		{"the link is down for long: the newest stays", Policy{5, time.Minute}, late, "e", "d c b a"},
		{"none is wanted at all: nor is the newest", Policy{0, time.Hour}, at('e'), "", "e d c b a"},
		{"a clock that was set back drops nothing", Policy{5, time.Minute}, at('a').Add(-time.Hour), "e d c b a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			keep, drop := Keep(all, c.policy, c.now)
			if ids(keep) != c.keep || ids(drop) != c.drop {
				t.Errorf("keep %q drop %q, want %q and %q", ids(keep), ids(drop), c.keep, c.drop)
			}
		})
	}
}
