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
			keep, drop := Keep(c.points, c.n)
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
		wantKeep, wantDrop := Keep(all, n)
		for range 20 {
			random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			keep, drop := Keep(all, n)
			if ids(keep) != ids(wantKeep) || ids(drop) != ids(wantDrop) || len(keep)+len(drop) != len(all) {
				t.Fatalf("n %d: keep %q drop %q", n, ids(keep), ids(drop))
			}
			if _, again := Keep(keep, n); len(again) != 0 {
				t.Fatalf("n %d: the second look drops %q", n, ids(again))
			}
		}
	}
}
