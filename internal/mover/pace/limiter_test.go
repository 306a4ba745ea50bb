package pace_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"lifeboat.dev/lifeboat/internal/mover/pace"
)

// Clocks are those of the bubble a test runs in: they move when everybody waits.

// passed is something a limiter let through.
type passed struct {
	at    time.Time
	user  int
	bytes int
}

// load lets users ask for as much as they get, in portions of their size, for a while. It returns what got through, in
// order of time.
func load(t *testing.T, c pace.Calendar, start time.Time, span time.Duration, portions ...int) []passed {
	t.Helper()
	var out []passed
	synctest.Test(t, func(t *testing.T) {
		offset := start.Sub(time.Now())
		now := func() time.Time { return time.Now().Add(offset) }
		l := pace.New(now, c)
		ctx, cancel := context.WithTimeout(t.Context(), span)
		defer cancel()
		results := make(chan passed)
		for user, portion := range portions {
			go func() {
				for l.Wait(ctx, portion) == nil {
					select {
					case results <- passed{now(), user, portion}:
					case <-ctx.Done():
						return
					}
				}
			}()
		}
		for {
			select {
			case p := <-results:
				out = append(out, p)
			case <-ctx.Done():
				synctest.Wait()
				return
			}
		}
	})
	slices.SortStableFunc(out, func(a, b passed) int { return a.at.Compare(b.at) })
	return out
}

// gives is what a calendar gives between two times.
func gives(c pace.Calendar, from, to time.Time) float64 {
	var sum float64
	for from.Before(to) {
		rate, until := c.At(from)
		if until.IsZero() || until.After(to) {
			until = to
		}
		sum += until.Sub(from).Seconds() * float64(rate)
		from = until
	}
	return sum
}

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) // a Monday

// Over any span, at most what the calendar gives in it and one burst gets through. Portions fit in one turn, so that
// each passes whole at the time it is seen to pass.
func TestNoSpanGetsMoreThanItsRateAndABurst(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rates := rapid.Int64Range(int64(pace.MinRate), 300_000)
		low, high := pace.Rate(rates.Draw(rt, "in the window")), pace.Rate(rates.Draw(rt, "otherwise"))
		c := pace.Calendar{Rate: high, Windows: []pace.Window{{From: 12 * 60, To: 12*60 + 1, Rate: low}}}
		border := noon.Add(rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(rt, "border"))
		start := border.Add(-time.Duration(rapid.IntRange(0, 3000).Draw(rt, "milliseconds before")) * time.Millisecond)
		portions := rapid.SliceOfN(rapid.IntRange(200, pace.Step(0)/256), 1, 4).Draw(rt, "portions")
		burst := max(pace.Burst(low), pace.Burst(high))

		// A span from event i to event j is too full if sum[j]-sum[i] > given[j]-given[i]+burst: what counts of all
		// that came before is the least of sum-given.
		var sum, given, least float64
		last := start
		for _, p := range load(t, c, start, 4*time.Second, portions...) {
			given += gives(c, last, p.at)
			least = min(least, sum-given)
			sum += float64(p.bytes)
			last = p.at
			if over := sum - given - least - burst; over > 1 {
				rt.Fatalf("%.0f bytes too many in a span that ends at %s", over, p.at)
			}
		}
	})
}

// One user alone gets everything there is.
func TestALoneUserReachesTheRate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate := pace.Rate(rapid.Int64Range(1000, 10<<30).Draw(rt, "rate"))
		portion := max(1, int(float64(rate)*rapid.Float64Range(0.001, 0.2).Draw(rt, "portion in seconds")))
		const span = 10 * time.Second
		got := load(t, pace.Always(rate), noon, span, portion)
		sum := 0
		for _, p := range got {
			sum += p.bytes
		}
		if least := gives(pace.Always(rate), noon, noon.Add(span)) - float64(portion) - 1; float64(sum) < least {
			rt.Fatalf("%d bytes in %s, expected at least %.0f", sum, span, least)
		}
	})
}

// A user that asks for little at a time gets its share beside one that asks for a lot.
func TestNobodyIsStarved(t *testing.T) {
	got := load(t, pace.Always(10*mb), noon, 5*time.Second, 4*mb, 4096, 100_000)
	sums := make([]float64, 3)
	for _, p := range got {
		sums[p.user] += float64(p.bytes)
	}
	// Turns are of a step or the portion, whichever is less: 4 KB turns beside 100 KB turns get 1 in 50.
	if perTurn := 4096.0 / 204_096 * 50 * mb; sums[1] < 0.8*perTurn {
		t.Errorf("the user of small portions got %.0f bytes, its turns are worth %.0f", sums[1], perTurn)
	}
	if sums[2] < 0.4*50*mb {
		t.Errorf("of two users that ask for enough one got %.0f of %d bytes", sums[2], 50*mb)
	}
}

// At a border the new rate holds within a second, also for who waits already: 64 KiB at 1 kB/s would take a minute.
func TestTheRateChangesAtTheBorder(t *testing.T) {
	c := parse(t, "1kB 11:00-12:00, 1MB otherwise")
	got := load(t, c, noon.Add(-2500*time.Millisecond), 4*time.Second, 64<<10)
	if len(got) == 0 || got[0].at.After(noon.Add(100*time.Millisecond)) {
		t.Fatalf("64 KiB that began to wait before noon passed at %v", got)
	}
	if got[0].at.Before(noon) {
		t.Fatalf("64 KiB passed at %s, at the old rate", got[0].at)
	}
	down := load(t, parse(t, "1MB 11:00-12:00, 1kB otherwise"), noon.Add(-time.Second), 10*time.Second, 1000)
	var after int
	for _, p := range down {
		if p.at.After(noon) {
			after += p.bytes
		}
	}
	if after > 10_000+2000 {
		t.Fatalf("%d bytes in 9 seconds after the rate went down to 1000 per second", after)
	}
}

// A rest is worth one burst, however long it was.
func TestARestIsWorthOneBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100_000
		offset := noon.Sub(time.Now())
		// The calendar has borders in the rest: each is gone through.
		l := pace.New(func() time.Time { return time.Now().Add(offset) }, parse(t, "100kB 00:00-12:00, 100000 12:00-13:00, 100kB otherwise"))
		for range 3 {
			time.Sleep(20 * time.Hour)
			before := time.Now()
			if err := l.Wait(t.Context(), rate); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(before); took < 890*time.Millisecond || took > 910*time.Millisecond {
				t.Errorf("100 kB after a rest took %s at 100 kB/s with a burst of a tenth", took)
			}
		}
	})
}

// A machine whose clock is set is believed within a second, and a clock that goes back costs nobody anything.
func TestAClockThatIsSetCounts(t *testing.T) {
	for calendar, by := range map[string]time.Duration{
		"1kB 10:00-12:00, 1MB otherwise": 2 * time.Hour,
		"1kB 10:30-12:00, 1MB otherwise": -time.Hour,
		"64KiB":                          -time.Hour,
	} {
		synctest.Test(t, func(t *testing.T) {
			var offset atomic.Int64
			offset.Store(int64(noon.Sub(time.Now()) - time.Hour)) // 11:00
			l := pace.New(func() time.Time { return time.Now().Add(time.Duration(offset.Load())).Round(0) }, parse(t, calendar))
			done := make(chan time.Time)
			began := time.Now()
			go func() {
				_ = l.Wait(t.Context(), 64<<10)
				done <- time.Now()
			}()
			synctest.Wait()
			offset.Add(int64(by))
			if took := (<-done).Sub(began); took > 2*time.Second {
				t.Errorf("%s: took %s", calendar, took)
			}
		})
	}
}

func TestAWaitEndsAtOnceWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := pace.New(time.Now, pace.Always(1000))
		reason := errors.New("enough")
		errs := make(chan error, 2)
		ctx, cancel := context.WithCancelCause(t.Context())
		for range 2 { // one waits for bytes, one for its turn
			go func() { errs <- l.Wait(ctx, 1<<20) }()
		}
		synctest.Wait()
		before := time.Now()
		cancel(reason)
		for range 2 {
			if err := <-errs; !errors.Is(err, reason) {
				t.Errorf("ended with %v", err)
			}
		}
		if took := time.Since(before); took != 0 {
			t.Errorf("ended after %s", took)
		}
		if err := l.Wait(ctx, 1); !errors.Is(err, reason) {
			t.Errorf("a wait that begins after the end ended with %v", err)
		}
	})
}

func TestNoLimitIsNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := time.Now()
		for _, l := range []*pace.Limiter{nil, pace.New(time.Now, pace.Calendar{})} {
			if err := l.Wait(t.Context(), 1<<40); err != nil {
				t.Fatal(err)
			}
			conn, other := net.Pipe()
			if l.Conn(conn) != conn {
				t.Error("a connection without limit is wrapped all the same")
			}
			_, _ = conn.Close(), other.Close()
		}
		if took := time.Since(before); took != 0 {
			t.Fatalf("waited for %s", took)
		}
	})
}

// drain reads a connection to its end and counts.
func drain(conn net.Conn) <-chan int64 {
	n := make(chan int64, 1)
	go func() {
		got, _ := io.Copy(io.Discard, conn)
		n <- got
	}()
	return n
}

// Two sessions with limits of their own share one of the process: each keeps to its own, both to the common one.
func TestStackedLimitersAllHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const span = 10 * time.Second
		process := pace.New(time.Now, pace.Always(100_000))
		var counts []<-chan int64
		for _, own := range []pace.Rate{20_000, 1_000_000} {
			near, far := net.Pipe()
			conn := pace.New(time.Now, pace.Always(own)).Conn(process.Conn(near))
			counts = append(counts, drain(far))
			go func() {
				_, err := conn.Write(make([]byte, 10*mb))
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("the write ended with %v", err)
				}
			}()
			time.AfterFunc(span, func() { _ = conn.Close() })
		}
		slow, fast := <-counts[0], <-counts[1]
		if slow > 200_000+2_000 || slow < 190_000 {
			t.Errorf("the session of 20 kB/s sent %d bytes in %s", slow, span)
		}
		if sum := slow + fast; sum > 1_000_000+10_000 || sum < 980_000 {
			t.Errorf("both sent %d bytes in %s through 100 kB/s", sum, span)
		}
	})
}

func TestClosingAConnectionEndsItsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		drain(far)
		conn := pace.New(time.Now, pace.Always(1000)).Conn(near)
		type result struct {
			n   int
			err error
		}
		done := make(chan result)
		go func() {
			n, err := conn.Write(make([]byte, 1<<20))
			done <- result{n, err}
		}()
		synctest.Wait()
		before := time.Now()
		_ = conn.Close()
		r := <-done
		if !errors.Is(r.err, net.ErrClosed) || r.n != 1<<10 || time.Since(before) != 0 {
			t.Fatalf("wrote %d bytes, %v, after %s; expected the first burst, and the end at once", r.n, r.err, time.Since(before))
		}
	})
}

func TestAWriteKeepsToItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		drain(far)
		conn := pace.New(time.Now, pace.Always(1000)).Conn(near)
		defer conn.Close()
		before := time.Now()
		_ = conn.SetWriteDeadline(before.Add(5 * time.Second))
		n, err := conn.Write(make([]byte, 1<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(before) != 5*time.Second {
			t.Fatalf("wrote %d bytes, %v, after %s", n, err, time.Since(before))
		}
		_ = conn.SetDeadline(time.Time{})
		if _, err := conn.Write(make([]byte, 2000)); err != nil {
			t.Fatalf("without a deadline: %v", err)
		}
	})
}
