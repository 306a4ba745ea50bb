package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/standalone"
)

const (
	// lookEvery is how often sessions are asked how far they are.
	lookEvery = 200 * time.Millisecond
	// lineEvery is how often that is printed where there is no terminal, and for machines.
	lineEvery     = 10 * time.Second
	jsonLineEvery = time.Second
)

// screen shows what a Sender does: on a terminal one line for each target that is drawn again and again, else plain
// lines, or JSON objects. Results go to out, progress to err, JSON to out alone.
type screen struct {
	out, err io.Writer
	json     bool
	width    func() int // of the terminal; 0: there is none

	mu    sync.Mutex
	drawn int // lines of the terminal that are progress
}

func newScreen(out, err io.Writer, json bool, targets int) *screen {
	return &screen{out: out, err: err, json: json, width: terminalWidth(err)}
}

// terminalWidth asks each time: windows change.
func terminalWidth(w io.Writer) func() int {
	return func() int {
		f, ok := w.(*os.File)
		if !ok {
			return 0
		}
		size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return 0
		}
		if size.Col == 0 {
			return 80
		}
		return int(size.Col)
	}
}

// follow runs the sender and shows its progress until it ends.
func (s *screen) follow(ctx context.Context, sender *standalone.Sender) []standalone.Result {
	done := make(chan []standalone.Result, 1)
	go func() { done <- sender.Run(ctx) }()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var printed time.Time
	began := time.Now()
	for {
		select {
		case results := <-done:
			s.clear()
			return results
		case now := <-tick.C:
			every := lineEvery
			if s.json {
				every = jsonLineEvery
			}
			switch {
			case !s.json && s.width() > 0:
				s.draw(sender.Progress(), s.width())
			case now.Sub(printed) >= every && now.Sub(began) >= min(every, time.Second):
				printed = now
				s.print(sender.Progress())
			}
		}
	}
}

// print says how far each target is.
func (s *screen) print(all []standalone.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range all {
		switch {
		case !p.Next.IsZero() || p.State.Phase == "":
		case s.json:
			printJSON(s.out, struct {
				Event string    `json:"event"`
				Time  time.Time `json:"time"`
				standalone.Progress
			}{"progress", time.Now(), p})
		default:
			_, _ = fmt.Fprintln(s.err, progressLine(p, false))
		}
	}
}

// draw replaces the lines that were drawn before.
func (s *screen) draw(all []standalone.Progress, width int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	b.WriteString(up(s.drawn))
	for _, p := range all {
		b.WriteString(clip(progressLine(p, true), width-1) + "\n")
	}
	s.drawn = len(all)
	_, _ = io.WriteString(s.err, b.String())
}

// clear takes the progress away, so that what follows stands alone.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearLocked()
}

func (s *screen) clearLocked() {
	if s.drawn > 0 {
		_, _ = io.WriteString(s.err, up(s.drawn))
		s.drawn = 0
	}
}

// up goes to the first of the last lines and clears from there.
func up(lines int) string {
	if lines == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\x1b[J", lines)
}

func clip(line string, width int) string {
	runes := []rune(line)
	if len(runes) <= width {
		return line
	}
	return string(runes[:max(width-1, 0)]) + "…"
}

// bar is a picture of a percentage.
func bar(percent float64) string {
	const width = 20
	full := min(max(int(percent*width/100), 0), width)
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// progressLine is one target's session in one line.
func progressLine(p standalone.Progress, picture bool) string {
	st := p.State
	if !p.Next.IsZero() {
		return fmt.Sprintf("%s  next session at %s", p.Target, p.Next.Format(time.TimeOnly))
	}
	if st.Phase == "" {
		return p.Target + "  begins"
	}
	line := p.Target + "  "
	if picture {
		line += bar(st.Percent) + " "
	}
	line += fmt.Sprintf("%5.1f%%  %s of %s", st.Percent, humanBytes(st.BytesDone), humanBytes(st.BytesTotal))
	if st.BytesPerSecond > 0 {
		line += fmt.Sprintf("  %s/s", humanBytes(st.BytesPerSecond))
	}
	if st.ETASeconds > 0 {
		line += "  " + (time.Duration(st.ETASeconds) * time.Second).String() + " left"
	}
	line += "  " + string(st.Phase)
	if st.Tier != "" {
		line += "  " + st.Tier + " (" + st.TierReason + ")"
	}
	if st.Message != "" {
		line += "  " + st.Message
	}
	return line
}

// event prints what happened.
func (s *screen) event(e standalone.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.json {
		printJSON(s.out, e)
		return
	}
	s.clearLocked()
	switch e.Kind {
	case standalone.EventNote:
		_, _ = fmt.Fprintf(s.err, "%s  %s\n", e.Target, e.Text)
	case standalone.EventBegin:
		what := "begins"
		if e.Resumed {
			what = "goes on"
		}
		if e.Live {
			what += "; nobody may write the source until it has ended"
		}
		_, _ = fmt.Fprintf(s.err, "%s  session %s %s\n", e.Target, e.Point, what)
	case standalone.EventSession:
		_, _ = fmt.Fprintln(s.out, reportLine(e.Target, *e.Report))
	}
}

// reportLine is a session's end in one line.
func reportLine(target string, r engine.Report) string {
	if !r.Done {
		return fmt.Sprintf("%s  %s failed after %s: %s", target, r.Point, seconds(r.DurationSeconds), r.Error)
	}
	line := fmt.Sprintf("%s  %s done in %s: %s, %s sent, tier %s (%s)", target, r.Point, seconds(r.DurationSeconds),
		changed(r), humanBytes(r.BytesWire), r.Tier, r.TierReason)
	if r.Verified {
		line += fmt.Sprintf("; verified, %s repaired", humanBytes(r.BytesRepaired))
	}
	return line
}

// changed is what a session brought: of trees, entries count.
func changed(r engine.Report) string {
	text := fmt.Sprintf("%s of %s changed", humanBytes(r.BytesChanged), humanBytes(r.BytesTotal))
	if r.Entries > 0 {
		text = fmt.Sprintf("%d of %d entries changed, %d deleted, ", r.EntriesChanged, r.Entries, r.EntriesDeleted) + text
	}
	return text
}

// end sums up, for machines and where there are several targets.
func (s *screen) end(results []standalone.Result, code int) {
	failed := 0
	for _, r := range results {
		if !r.Report.Done {
			failed++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.json:
		printJSON(s.out, struct {
			Event    string    `json:"event"`
			Time     time.Time `json:"time"`
			Targets  int       `json:"targets"`
			Failed   int       `json:"failed"`
			ExitCode int       `json:"exitCode"`
		}{"end", time.Now(), len(results), failed, code})
	case len(results) > 1:
		_, _ = fmt.Fprintf(s.out, "%d of %d targets hold the instant\n", len(results)-failed, len(results))
	}
}
