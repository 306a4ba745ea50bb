package heartbeat_test

import (
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
)

var noon = time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)

// play sends a row of beats: + answered, - missed, x refused; one every Interval.
func play(beats string, tolerance int32) heartbeat.State {
	s := heartbeat.Initial()
	for i, c := range beats {
		b := heartbeat.Beat{At: noon.Add(time.Duration(i) * heartbeat.Interval), Version: "v1", Protocol: 1, RoundTrip: time.Millisecond}
		switch c {
		case '-':
			b = heartbeat.Beat{At: b.At, Missed: true, Message: "no route"}
		case 'x':
			b = heartbeat.Beat{At: b.At, Refused: "TrustMismatch", Message: "wrong CA"}
		}
		s = heartbeat.Next(s, b, tolerance)
	}
	return s
}

func TestLinkFollowsTheBeats(t *testing.T) {
	cases := []struct {
		name, beats string
		tolerance   int32
		link        v1alpha1.LinkState
		missed      int32
	}{
		{"nothing tried", "", 5, v1alpha1.LinkUnknown, 0},
		{"answered", "+", 5, v1alpha1.LinkConnected, 0},
		{"not answered yet is not lost", "-----", 5, v1alpha1.LinkUnknown, 5},
		{"never answered", "------", 5, v1alpha1.LinkLost, 6},
		{"as many misses as tolerated", "+-----", 5, v1alpha1.LinkConnected, 5},
		{"one more than tolerated", "+------", 5, v1alpha1.LinkLost, 6},
		{"misses count in a row only", "+---+---", 5, v1alpha1.LinkConnected, 3},
		{"back again", "+-------+", 5, v1alpha1.LinkConnected, 0},
		{"a smaller tolerance", "+----", 3, v1alpha1.LinkLost, 4},
		{"refused at once", "x", 5, v1alpha1.LinkRefused, 1},
		{"refused after answers", "++x", 5, v1alpha1.LinkRefused, 1},
		{"silence after a refusal is still refused", "x---", 5, v1alpha1.LinkRefused, 4},
		{"long silence after a refusal", "x------", 5, v1alpha1.LinkLost, 7},
		{"a refusal that was cured", "xx+", 5, v1alpha1.LinkConnected, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if s := play(c.beats, c.tolerance); s.Link != c.link || s.Missed != c.missed {
				t.Errorf("%s: %s with %d missed, want %s with %d", c.beats, s.Link, s.Missed, c.link, c.missed)
			}
		})
	}
}

func TestLostSaysWhenThePeerWasLastHeard(t *testing.T) {
	s := play("++------", 5)
	if want := noon.Add(heartbeat.Interval); !s.LastHeartbeat.Equal(want) || !strings.Contains(s.Message, want.Format(time.RFC3339)) || !strings.Contains(s.Message, "no route") {
		t.Errorf("%s %q", s.LastHeartbeat, s.Message)
	}
	if s.Version != "v1" || s.Protocol != 1 {
		t.Error("what was known of the peer is forgotten")
	}
	if s := play("------", 5); !strings.Contains(s.Message, "none ever was") {
		t.Errorf("%q", s.Message)
	}
}
