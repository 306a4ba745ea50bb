package queue

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func in(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }

// due is an entry that waits: since minutes, with its breach in minutes.
func due(name string, since, breach int) Entry {
	return Entry{Name: name, Since: in(since), Breach: in(breach), Seen: noon}
}

func running(name string) Entry { return Entry{Name: name, Running: true, Seen: noon} }

func TestNext(t *testing.T) {
	for _, c := range []struct {
		name    string
		limit   int
		entries []Entry
		want    string
	}{
		{"room for all", 3, []Entry{due("a", -1, 9), due("b", -1, 5)}, "b a"},
		{"the closest to its objective goes first", 1, []Entry{due("a", -9, 9), due("b", -1, 5), due("c", -2, 7)}, "b"},
		{"those past it go in the order they became due", 3, []Entry{due("a", -3, -60), due("b", -9, -10), due("c", -5, -99)}, "b c a"},
		{"a breach long ago does not go before one who has waited longer", 1, []Entry{due("failing", -1, -999), due("healthy", -5, -2)}, "healthy"},
		{"at the same time, by name", 1, []Entry{due("b", -1, 5), due("a", -1, 5)}, "a"},
		{"no room", 2, []Entry{running("a"), running("b"), due("c", -1, 5)}, ""},
		{"more run than may: somebody was asked for by hand", 1, []Entry{running("a"), running("b"), due("c", -1, 5)}, ""},
		{"one seat left", 2, []Entry{running("a"), due("c", -1, 5), due("d", -1, 4)}, "d"},
		{"no limit", 0, []Entry{running("a"), due("c", -1, 5), due("d", -1, 4)}, "d c"},
		{"whoever is not due is not asked", 2, []Entry{{Name: "a", Seen: noon}, due("b", -1, 5)}, "b"},
		{"whoever was not seen for long is not waited for", 1, []Entry{{Name: "gone", Since: in(-9), Breach: in(-9), Seen: noon.Add(-Patience - 1)}, due("b", -1, 5)}, "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := strings.Join(Next(c.entries, c.limit, noon), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestATurnSaysWhatItWaitsFor(t *testing.T) {
	entries := []Entry{running("r1"), running("r2"), due("a", -1, 5), due("b", -1, 6), due("c", -1, 7)}
	for _, c := range []struct {
		name  string
		limit int
		turn  Turn
		says  string
	}{
		{"a", 3, Turn{true, 2, 3, 0}, ""},
		{"b", 3, Turn{false, 2, 3, 1}, "its turn: 2 of at most 3 sessions run, 1 replication is closer to its objective"},
		{"c", 2, Turn{false, 2, 2, 2}, "its turn: 2 of at most 2 sessions run, 2 replications are closer to their objective"},
		{"a", 2, Turn{false, 2, 2, 0}, "its turn: 2 of at most 2 sessions run, 0 replications are closer to their objective"},
		{"c", 0, Turn{true, 2, 0, 2}, ""},
		{"nobody", 9, Turn{Limit: 9}, ""},
	} {
		turn := Judge(entries, c.name, c.limit, noon)
		if turn != c.turn || c.says != "" && turn.String() != c.says {
			t.Errorf("%s of %d: %+v %q", c.name, c.limit, turn, turn)
		}
	}
}

// Judge and Next agree on every set of entries, and never let more run than may.
func TestJudgeAndNextAgree(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var entries []Entry
		busy := 0
		for i := range random.IntN(12) {
			e := due(fmt.Sprint("e", i), -random.IntN(5), random.IntN(10)-5)
			switch random.IntN(5) {
			case 0:
				e.Running = true
				busy++
			case 1:
				e.Since = time.Time{}
			case 2:
				e.Seen = noon.Add(-2 * Patience)
			}
			entries = append(entries, e)
		}
		limit := 1 + random.IntN(6)
		next := Next(entries, limit, noon)
		if len(next) > 0 && busy+len(next) > limit {
			t.Fatalf("%d run, %v may start, limit %d", busy, next, limit)
		}
		for _, e := range entries {
			if !e.waits(noon) {
				continue
			}
			if turn := Judge(entries, e.Name, limit, noon); turn.Go != slices.Contains(next, e.Name) {
				t.Fatalf("%+v of %+v: %+v, next %v of %d", e, entries, turn, next, limit)
			}
		}
	}
}

// However crowded it is, and whatever the others' objectives are, everybody who waits gets a turn: no more go before one than were
// due or breached before it.
func TestNobodyWaitsForEver(t *testing.T) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 3))
		const limit = 2
		now := noon
		entries := map[string]*Entry{}
		ends := map[string]time.Time{}
		for i := range 12 {
			name := fmt.Sprint("e", i)
			entries[name] = &Entry{Name: name, Since: now, Breach: now.Add(time.Duration(random.IntN(240)) * time.Minute)}
		}
		waited := map[string]time.Duration{}
		for range 3000 {
			now = now.Add(time.Minute)
			var all []Entry
			for name, e := range entries {
				e.Seen = now
				switch {
				case e.Running && !ends[name].After(now):
					// Some are always breached: whatever they do, their point stays old.
					e.Running, e.Since = false, now
					if random.IntN(3) > 0 {
						e.Breach = now.Add(time.Duration(random.IntN(240)) * time.Minute)
					}
				case !e.Running:
					waited[name] = max(waited[name], now.Sub(e.Since))
				}
				all = append(all, *e)
			}
			for _, name := range Next(all, limit, now) {
				entries[name].Running = true
				ends[name] = now.Add(time.Duration(1+random.IntN(20)) * time.Minute)
			}
		}
		for name, longest := range waited {
			// 12 in turn, 20 minutes each at worst, two together; and nobody is more urgent than 4 hours from now.
			if longest > 240*time.Minute+2*12*20*time.Minute/limit {
				t.Errorf("seed %d: %s waited for %s", seed, name, longest)
			}
		}
	}
}
