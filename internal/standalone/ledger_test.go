package standalone

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// scene is a source host with one file and two targets that are never connected to: what is tested is what it
// remembers.
type scene struct {
	t      *testing.T
	clock  *clock
	host   *Host
	path   string
	notes  []string
	o      SenderOptions
	sender *Sender
}

func newScene(t *testing.T) *scene {
	c := newClock()
	s := &scene{t: t, clock: c, host: newHost(t, "east", c), path: filepath.Join(t.TempDir(), "db.img")}
	_, err := s.host.Trust(newHost(t, "west", c).Certificate(), false)
	must(t, err)
	s.o = SenderOptions{
		Host: s.host, Group: "default", Epoch: 1, Members: []Member{{"volume1", s.path}},
		Targets: []Destination{{"west", "a:1"}, {"west", "b:1"}}, Log: slog.New(slog.DiscardHandler), Now: c.now,
		Observe: func(e Event) {
			if e.Kind == EventNote {
				s.notes = append(s.notes, e.Text)
			}
		},
	}
	s.write("one")
	s.restart(s.o)
	t.Cleanup(func() { _ = s.sender.Close() })
	return s
}

// restart is what a new process does.
func (s *scene) restart(o SenderOptions) {
	s.t.Helper()
	if s.sender != nil {
		must(s.t, s.sender.Close())
	}
	var err error
	s.sender, err = NewSender(o)
	must(s.t, err)
}

// write changes the source, at a time of its own.
func (s *scene) write(content string) {
	s.t.Helper()
	s.clock.at = s.clock.at.Add(time.Minute)
	must(s.t, os.WriteFile(s.path, []byte(content), 0o600))
	must(s.t, os.Chtimes(s.path, s.clock.at, s.clock.at))
}

// take is the instant that target n's next session would bring.
func (s *scene) take(n int) string {
	s.t.Helper()
	s.clock.at = s.clock.at.Add(time.Second)
	point, _, err := s.sender.lanes[n].take(s.clock.at)
	must(s.t, err)
	return point
}

func (s *scene) settle(n int, point string) {
	s.t.Helper()
	must(s.t, s.sender.lanes[n].settle(point, false))
}

func (s *scene) remembered() []string {
	var points []string
	for p := range s.sender.ledger.data.Instants {
		points = append(points, p)
	}
	slices.Sort(points)
	return points
}

func TestAnUnfinishedPointIsTheNextOne(t *testing.T) {
	s := newScene(t)
	point := s.take(0)
	s.restart(s.o)
	if again := s.take(0); again != point || s.notes != nil {
		t.Errorf("after %s came %s, with notes %q", point, again, s.notes)
	}
	if other := s.take(1); other == point {
		t.Error("another target was given an old instant of a source that is read in place")
	}
	s.settle(0, point)
	if next := s.take(0); next == point {
		t.Error("a point that is done comes again")
	}
}

func TestWhatCannotGoOnIsToldAndReplaced(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*scene)
	}{
		{"the source was written", "was written at", func(s *scene) { s.write("two") }},
		{"the source has another size", "has 5 bytes now, 3 when", func(s *scene) { s.write("three") }},
		{"a new instant was asked for", "was asked for", func(s *scene) { o := s.o; o.Fresh = true; s.restart(o) }},
		{"another name was asked for", "point monday was asked for", func(s *scene) { o := s.o; o.Point = "monday"; s.restart(o) }},
	} {
		s := newScene(t)
		point := s.take(0)
		c.change(s)
		if next := s.take(0); next == point {
			t.Errorf("%s: point %s goes on", c.name, point)
		}
		if len(s.notes) != 1 || !strings.Contains(s.notes[0], c.want) {
			t.Errorf("%s: told %q", c.name, s.notes)
		}
		if points := s.remembered(); slices.Contains(points, point) {
			t.Errorf("%s: %s is still remembered in %q", c.name, point, points)
		}
	}
}

// One round of several targets is one instant, and each forgets it when it is done.
func TestARoundIsOneInstant(t *testing.T) {
	s := newScene(t)
	began := s.clock.at
	s.clock.at = s.clock.at.Add(time.Millisecond)
	first, _, err := s.sender.lanes[0].take(began)
	must(t, err)
	s.clock.at = s.clock.at.Add(time.Millisecond)
	second, _, err := s.sender.lanes[1].take(began)
	must(t, err)
	if first != second {
		t.Errorf("points %s and %s", first, second)
	}
	s.settle(0, first)
	if len(s.remembered()) != 1 {
		t.Errorf("remembered is %q although the second target has not got it", s.remembered())
	}
	s.settle(1, first)
	if len(s.remembered()) != 0 {
		t.Errorf("remembered is %q", s.remembered())
	}
}

// A process that ended between its word and its deed leaves an instant on record that was never cut.
func TestAnInstantThatWasNeverCutIsNotBelieved(t *testing.T) {
	s := newScene(t)
	led := s.sender.ledger
	i, err := plan(s.o.Members, "p", s.clock.at)
	must(t, err)
	led.data.Instants["p"] = i
	led.of(s.sender.lanes[0].to.String()).Unfinished = "p"
	must(t, led.save())
	s.restart(s.o)
	if point := s.take(0); point == "p" || len(s.notes) != 1 {
		t.Errorf("point %s, told %q", point, s.notes)
	}
}

func TestADamagedLedgerIsSaid(t *testing.T) {
	s := newScene(t)
	s.take(0)
	must(t, s.sender.Close())
	must(t, os.WriteFile(s.sender.ledger.path, []byte(`{"version":1,`), 0o600))
	_, err := NewSender(s.o)
	if engine.KindOf(err) != engine.KindConfiguration || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("opened with %v", err)
	}
}
