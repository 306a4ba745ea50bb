// Package heartbeat decides what a row of answered, missed and refused heartbeats says about a link.
//
// It sends nothing and has no clock: the time comes with each beat. Begin with Next.
package heartbeat

import (
	"fmt"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Timing of heartbeats. A beat that takes longer than Timeout is missed, so that beats never overlap.
const (
	Interval = 5 * time.Second
	Timeout  = 4 * time.Second
)

// Reasons of the condition Connected.
const (
	ReasonNotTried = "NotTriedYet"
	ReasonAnswered = "HeartbeatsAnswered"
	ReasonMissed   = "HeartbeatsMissed"
	ReasonLost     = "PeerLost"
	ReasonRefused  = "Refused"
)

// Beat is what became of one heartbeat.
type Beat struct {
	// At is when the beat ended.
	At time.Time
	// Refused is set when peer or trust said no: the reason in one word, for Message's reader. Empty otherwise.
	Refused string
	// Missed is set when no answer came.
	Missed bool
	// Message tells why a beat was refused or missed.
	Message string
	// The rest comes with an answer.
	RoundTrip time.Duration
	Version   string
	Protocol  int32
	// Skew is how far the peer's clock is ahead, to within half the round trip.
	Skew time.Duration
}

// State is what is known of a link.
type State struct {
	Link v1alpha1.LinkState
	// LastHeartbeat is when the peer last answered; zero if it never did.
	LastHeartbeat time.Time
	// Missed beats in a row since then.
	Missed    int32
	RoundTrip time.Duration
	Version   string
	Protocol  int32
	Skew      time.Duration
	// Reason and Message explain Link.
	Reason, Message string
}

// Initial is the state before the first beat.
func Initial() State {
	return State{Link: v1alpha1.LinkUnknown, Reason: ReasonNotTried, Message: "no heartbeat has been answered or missed yet"}
}

// Next is the state after one more beat.
//
// A missed beat never makes a link Lost before more than tolerance beats in a row are missing: until then the link keeps
// its name, also Unknown, because not knowing is not knowing that the peer is gone. A refusal counts at once: it
// does not go away by waiting.
func Next(s State, b Beat, tolerance int32) State {
	switch {
	case b.Refused != "":
		s.Link, s.Reason, s.Message = v1alpha1.LinkRefused, b.Refused, b.Message
		s.Missed++
	case b.Missed:
		s.Missed++
		if s.Missed > tolerance {
			s.Link, s.Reason = v1alpha1.LinkLost, ReasonLost
			s.Message = lostMessage(s, b)
		}
		if s.Link == v1alpha1.LinkUnknown {
			s.Reason, s.Message = ReasonMissed, fmt.Sprintf("the first heartbeats were not answered: %s", b.Message)
		}
	default:
		return State{
			Link: v1alpha1.LinkConnected, LastHeartbeat: b.At,
			RoundTrip: b.RoundTrip, Version: b.Version, Protocol: b.Protocol, Skew: b.Skew,
			Reason: ReasonAnswered, Message: "the peer answers heartbeats",
		}
	}
	return s
}

func lostMessage(s State, b Beat) string {
	if s.LastHeartbeat.IsZero() {
		return fmt.Sprintf("%d heartbeats in a row were not answered and none ever was: %s", s.Missed, b.Message)
	}
	return fmt.Sprintf("%d heartbeats in a row were not answered, the last answer came at %s: %s",
		s.Missed, s.LastHeartbeat.UTC().Format(time.RFC3339), b.Message)
}
