package cycle

import (
	"fmt"
	"strings"
	"time"
)

// Rollback is how far a replica is on its way back to an older point, which its promotion asks for.
type Rollback struct {
	// Point is what the replica shall hold; empty for what it holds.
	Point string
	// Problem tells why it cannot be rolled back; empty when it can.
	Problem string
	// Begun is true once BeginRollback was saved.
	Begun bool
	// Clones are the block claims made from the point's snapshots; Trouble tells why they are not there yet.
	Clones  Presence
	Trouble string
	// Others names Jobs and pods of a rollback to another point: two must not write at a time.
	Others []string
	// Mover is who writes.
	Mover Mover
}

// rollBack makes the replica the point that was asked for. It comes after the receiver is gone, which holds the devices, and before the
// pair goes, through which it writes.
//
// Order is safety. That the replica holds no point any more is saved before anything is written to it, and that it holds the
// older one only once all of it is durable: a promotion that is taken back half-way leaves no point that is none.
func rollBack(b Rollback) Decision {
	rolling := func(step Step, message string, poll time.Duration) Decision {
		return Decision{Step: step, Phase: Promoting, Reason: ReasonRollingBack, Message: message, Poll: poll}
	}
	what := "the replica is rolled back to point " + b.Point
	switch {
	case !b.Begun:
		return rolling(BeginRollback, what, 0)
	case b.Mover.State == MoverCommitted:
		return rolling(RecordRollback, "the replica holds point "+b.Point, 0)
	case b.Mover.State == MoverRefused, b.Mover.State == MoverFailed:
		return wait(Failed, ReasonRollbackFailed, fmt.Sprintf("%s, which failed: %s; delete its Job to try again", what, b.Mover.Message), Steady)
	case b.Mover.State == MoverEnding:
		return rolling(Wait, what+"; waiting for a former pod to end", Quick)
	case b.Clones == Absent:
		return rolling(MakeRollback, what+"; making block claims from its snapshots", Quick)
	case b.Clones != Present:
		return rolling(Wait, what+"; waiting for the block claims"+because(b.Trouble), Quick)
	case b.Mover.State == MoverAbsent:
		return rolling(StartRollback, what, Quick)
	}
	return rolling(Wait, what+"; "+b.Mover.Message, Quick)
}

func removeRollback(phase string, left []string) Decision {
	return Decision{Step: RemoveRollback, Phase: phase, Reason: ReasonRollingBack, Poll: Quick, Message: "removing what a rollback left: " + strings.Join(left, ", ")}
}
