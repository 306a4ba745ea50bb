package cycle

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Sizes are those of one member on both sides, in bytes.
type Sizes struct {
	// Claim and PeerClaim are what the two sides call it.
	Claim, PeerClaim string
	Here, There      int64
}

// Growth is a claim of a target that is smaller than its source's.
type Growth struct {
	Claim string
	// From and To are bytes.
	From, To int64
	// Asked is true once the claim asks for To.
	Asked bool
	// Cannot tells why it will not grow and what to do; empty when it can.
	Cannot string
	// Trouble is what its driver said last.
	Trouble string
}

func bytes(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }

// sameSizes holds sessions while a member has another size on the peer; ok when none has. Claims grow and never shrink, so what is
// smaller there is grown there, and what is larger there needs a person.
func sameSizes(s Source) (d Decision, ok bool) {
	var larger, smaller []string
	for _, m := range s.Peer.Sizes {
		switch {
		case m.There > m.Here:
			larger = append(larger, fmt.Sprintf("claim %s has %s on cluster %s and claim %s has %s here", m.PeerClaim, bytes(m.There), s.Peer.Name, m.Claim, bytes(m.Here)))
		case m.There < m.Here:
			smaller = append(smaller, fmt.Sprintf("claim %s from %s to %s", m.PeerClaim, bytes(m.There), bytes(m.Here)))
		}
	}
	switch {
	case len(larger) > 0:
		return wait(Failed, ReasonSizesDiffer, strings.Join(larger, "; ")+
			": a replica has exactly its source's size and no claim can shrink; grow the claim here to that size, or delete the one there and it is made anew", Patient), false
	case len(smaller) == 0:
		return Decision{}, true
	case s.Peer.Declined != nil:
		return declined(s.Peer), false
	case s.Peer.PrepareDue:
		return Decision{Step: GrowPeer, Phase: Waiting, Reason: ReasonGrowing, Ready: true, Poll: Quick,
			Message: fmt.Sprintf("asking cluster %s to grow %s, as here", s.Peer.Name, strings.Join(smaller, ", "))}, false
	}
	return Decision{Step: Wait, Phase: Waiting, Reason: ReasonGrowing, Ready: !s.Peer.Stuck, Poll: Steady,
		Message: fmt.Sprintf("no session starts until cluster %s has grown %s%s", s.Peer.Name, strings.Join(smaller, ", "), because(s.Peer.WaitingFor))}, false
}

// resizing reports that claims must grow, or that they have and what serves the replica does not fit them any more.
func (s Target) resizing() bool { return len(s.Growth) > 0 || s.Misfit != "" }

func (s Target) resizeMessage() string {
	var out []string
	for _, g := range s.Growth {
		out = append(out, fmt.Sprintf("claim %s from %s to %s", g.Claim, bytes(g.From), bytes(g.To)))
	}
	if len(out) == 0 {
		return s.Misfit
	}
	return "growing " + strings.Join(out, ", ") + ", as its source has"
}

// resize takes away what serves the replica, lets the claims grow, and leaves the rest to keepReplica.
//
// Order is safety. A claim is grown only when no pod has its volume. The spool may go only once the replica holds everything it does, and
// then no session may bring more: the source starts none while sizes differ, and says that it runs none. That is saved (SealSpool)
// before anything is removed, so that a crash anywhere on the way goes on from there. The volumes keep the point they hold.
func resize(s Target) Decision {
	r, why := s.Replica, s.resizeMessage()
	step := func(step Step, message string) Decision {
		return Decision{Step: step, Phase: Waiting, Reason: ReasonGrowing, Message: message, Ready: true, Poll: Quick}
	}
	if d, stuck := cannotGrow(s); stuck {
		return d
	}
	switch {
	case len(r.Strays) > 0:
		return keepReplica(s)
	case !r.Exists():
		return grow(s)
	case r.Spool == Absent:
		return resized(dismantle(r, false, why))
	case r.State == nil:
		return keepReplica(s) // nobody else can tell what the spool holds
	case r.State.Applied.Point != "" && r.State.Applied.Point != s.Recorded.Point:
		return record(s, r.State.Applied)
	case r.Door:
		return step(CloseReceiver, why)
	case !s.SourceQuiet:
		return step(Wait, why+"; waiting for the source to say that it runs no session"+because(s.SourceTrouble))
	case !r.State.settled():
		return step(Wait, why+"; waiting for the receiver to apply what it has")
	}
	return step(SealSpool, why)
}

func resized(d Decision) Decision {
	d.Reason, d.Ready = ReasonGrowing, true
	return d
}

// grow is taken when nothing is left that serves the replica.
func grow(s Target) Decision {
	waiting := Decision{Step: Wait, Phase: Waiting, Reason: ReasonGrowing, Ready: true, Poll: Quick, Message: s.resizeMessage()}
	if len(s.Attached) > 0 {
		waiting.Message += "; waiting for the volumes to be detached from " + strings.Join(s.Attached, ", ")
		return waiting
	}
	for _, g := range s.Growth {
		if !g.Asked {
			waiting.Step, waiting.Poll = GrowClaims, 0
			return waiting
		}
		waiting.Message += because(g.Trouble)
	}
	return waiting
}

// cannotGrow reports what a person must do, and keeps the replica as it is until then: it can still be promoted.
func cannotGrow(s Target) (Decision, bool) {
	for _, g := range s.Growth {
		if g.Cannot == "" || g.Asked {
			continue
		}
		if !s.Replica.Exists() {
			return wait(Failed, ReasonCannotGrow, g.Cannot, Patient), true
		}
		d := keepReplica(s)
		if d.Step == Rest {
			d = wait(Failed, ReasonCannotGrow, g.Cannot, Patient)
		}
		return d, true
	}
	return Decision{}, false
}
