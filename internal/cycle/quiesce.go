package cycle

import (
	"fmt"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Steps of a source whose Replication names Rules.
const (
	// BeginQuiesce saves that commands may run from now on: whoever finds that knows that the application has to be let go.
	BeginQuiesce Step = "BeginQuiesce"
	// Quiesce starts the commands of the preCutRule.
	Quiesce Step = "Quiesce"
	// RecordQuiesced saves that they are through.
	RecordQuiesced Step = "RecordQuiesced"
	// Resume lets the application go: what holds it ends, and the postCutRule's commands start.
	Resume Step = "Resume"
	// RecordResumed saves that this is through, and what came of it.
	RecordResumed Step = "RecordResumed"
)

// Reasons around Rules.
const (
	ReasonRuleBusy           = "WaitingForRule"
	ReasonQuiescing          = "Quiescing"
	ReasonQuiesced           = "Quiesced"
	ReasonResuming           = "Resuming"
	ReasonPreCutRuleFailed   = "PreCutRuleFailed"
	ReasonQuiesceLost        = "QuiesceLost"
	ReasonQuiescedTooLong    = "QuiescedTooLong"
	ReasonQuiesceInterrupted = "QuiesceInterrupted"
)

// RunState is what this manager's own run of a session's Rules is at. Another manager's, from before a restart, is not known.
type RunState int

// States of a run, in their order.
const (
	RunUnknown RunState = iota
	RunReserved
	RunQuiescing
	RunQuiesced
	RunFailed
	RunResuming
	RunResumed
)

// Quiescence is how far a session's Rules are, as saved and as seen.
type Quiescence struct {
	Pre, Post string
	State     v1alpha1.QuiesceState
	// QuiescedAt is when the preCutRule was through, HoldLimit how long the application may stand still from then on.
	QuiescedAt time.Time
	HoldLimit  time.Duration
	// Holds is how many commands hold the application, each for as long as this manager keeps it.
	Holds int
	// Fault is why the session can make no point, as saved.
	Fault *Problem

	// Unusable is why the Rules cannot be run; it is seen before they are begun.
	Unusable *Problem
	// Busy tells whose Rules they are at present; empty when they are nobody's.
	Busy string
	Run  RunState
	// Proven is true once every hold has answered after all members were cut.
	Proven bool
	// Trouble is why this manager's run of the preCutRule failed, or what it held was lost; empty when neither.
	Trouble string
}

// open reports that commands may have run whose effects are not undone.
func (q *Quiescence) open() bool {
	if q == nil {
		return false
	}
	switch q.State {
	case v1alpha1.QuiesceQuiescing, v1alpha1.QuiesceQuiesced, v1alpha1.QuiesceResuming:
		return true
	}
	return false
}

// mayCut reports that snapshots may be asked for: the application stands still now, or nobody asked that it should.
func (q *Quiescence) mayCut() bool {
	return q == nil || q.State == v1alpha1.QuiesceQuiesced
}

// quiesce decides what Rules have to do with a session that is not cut yet; ok is false when the session goes its own way.
//
// Order is safety. The begin is saved before the first command, so that after any crash somebody knows to let the application go. Nothing is cut before the
// application is quiesced, nor after it may have been let go: what held it must answer once all members are cut. Whatever
// becomes of the cut, the application is let go before the session ends.
func quiesce(q *Quiescence, now time.Time, snapshots []Snapshot) (d Decision, ok bool) {
	if q == nil {
		return Decision{}, false
	}
	running := func(step Step, reason, message string) (Decision, bool) {
		d := Decision{Step: step, Phase: Running, Reason: reason, Message: message, Ready: true}
		if step == Wait {
			d.Poll = Hasty
		}
		return d, true
	}
	switch q.State {
	case v1alpha1.QuiesceWaiting:
		switch {
		case q.Unusable != nil:
			return running(FailSession, q.Unusable.Reason, q.Unusable.Message)
		case q.Busy != "":
			return running(Wait, ReasonRuleBusy, "waiting to quiesce the application: "+q.Busy)
		}
		return running(BeginQuiesce, ReasonQuiescing, "the application is about to be quiesced"+q.by(q.Pre))
	case v1alpha1.QuiesceQuiescing:
		switch {
		case q.Trouble != "":
			return letGo(q, Problem{ReasonPreCutRuleFailed, "nothing was cut, because the application could not be quiesced: " + q.Trouble}), true
		case q.Run == RunReserved:
			return running(Quiesce, ReasonQuiescing, "quiescing the application"+q.by(q.Pre))
		case q.Run == RunQuiescing:
			return running(Wait, ReasonQuiescing, "quiescing the application"+q.by(q.Pre))
		case q.Run == RunQuiesced:
			return running(RecordQuiesced, ReasonQuiesced, "the application is quiesced"+q.by(q.Pre))
		}
		return letGo(q, Problem{ReasonQuiesceInterrupted, "nothing was cut, because the manager ended while it quiesced the application" + q.by(q.Pre)}), true
	case v1alpha1.QuiesceQuiesced:
		held := q.Holds == 0 || q.Run == RunQuiesced
		switch {
		case allCut(snapshots) && (q.Proven || q.Holds == 0):
			return letGo(q, Problem{}), true
		case q.Trouble != "":
			return letGo(q, Problem{ReasonQuiesceLost, "the members cannot all have been cut while the application was quiesced: " + q.Trouble}), true
		case !held:
			return letGo(q, Problem{ReasonQuiesceLost, "the members cannot all have been cut while the application was quiesced: the manager that held it has ended"}), true
		case now.Sub(q.QuiescedAt) > q.HoldLimit:
			return letGo(q, Problem{ReasonQuiescedTooLong, fmt.Sprintf("the members were not all cut within %s, which is as long as Rule %s lets the application stand still (holdLimit)", q.HoldLimit, q.Pre)}), true
		}
		return Decision{}, false
	case v1alpha1.QuiesceResuming:
		return letGo(q, Problem{}), true
	}
	missing, _, _, _ := count(snapshots)
	switch {
	case q.Fault != nil:
		return running(FailSession, q.Fault.Reason, q.Fault.Message)
	case len(missing) > 0:
		return running(FailSession, ReasonSnapshotsVanished, "the snapshots of "+join(missing)+", taken while the application was quiesced, are gone; one that is taken now would be of another time")
	}
	return Decision{}, false
}

func (q *Quiescence) by(rule string) string {
	if rule == "" {
		return ""
	}
	return " by Rule " + rule
}

// letGo is the next step of letting the application go. A fault is why the session makes no point.
func letGo(q *Quiescence, fault Problem) Decision {
	d := Decision{Phase: Running, Reason: ReasonResuming, Ready: true, Message: "the application is let go" + q.by(q.Post)}
	if q.State != v1alpha1.QuiesceResuming {
		d.Step = Resume
		if fault.Reason != "" {
			d.Fault = &fault
		}
		return d
	}
	switch q.Run {
	case RunResuming:
		d.Step, d.Poll = Wait, Hasty
	case RunResumed:
		d.Step = RecordResumed
	default: // it was another manager that began to
		d.Step = Resume
	}
	return d
}

// resumeFirst puts letting the application go before the end of its session, and before anything that makes way for that.
func resumeFirst(session *Session, d Decision) Decision {
	if session == nil || !session.Quiescence.open() {
		return d
	}
	switch d.Step {
	case FailSession, CommitSession, RemoveMover:
		out := letGo(session.Quiescence, Problem{d.Reason, d.Message})
		out.Phase = d.Phase
		return out
	case Wait:
		d.Poll = min(d.Poll, Hasty) // an application stands still
	}
	return d
}

// allCut reports that there is a snapshot of every member and the driver has said of each when it cut.
func allCut(snapshots []Snapshot) bool {
	for _, s := range snapshots {
		if !s.Exists || !s.Cut {
			return false
		}
	}
	return len(snapshots) > 0
}
