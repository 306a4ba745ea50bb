package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RuleActionType is what an action does.
// +kubebuilder:validation:Enum=command
type RuleActionType string

// RuleActionCommand runs a command line in a container.
const RuleActionCommand RuleActionType = "command"

// RuleAction is one command.
// +kubebuilder:validation:XValidation:rule="!has(self.background) || !self.background || self.value.contains('WAIT_CMD')",message="a background action says ${WAIT_CMD} in its value where the application is quiesced: without it nobody would know when it is, nor could let it go"
type RuleAction struct {
	// type is command. Empty means command.
	// +kubebuilder:default=command
	// +optional
	Type RuleActionType `json:"type,omitempty"`

	// value is the command line, run by /bin/sh in the container as the container's user. It may be run twice, as after a crash of the
	// manager, and shall be as good then. The container needs /bin/sh and timeout; for a background action also cat.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=8192
	Value string `json:"value"`

	// background is true for a command that holds the application for as long as it runs, such as a database session with a lock. Where the
	// application is quiesced the command runs ${WAIT_CMD}, which returns once the members are cut, when the manager is gone, or after
	// holdLimit, whichever comes first; what undoes the quiescing follows it. Nothing before ${WAIT_CMD} may read the standard input, and
	// its standard output must be the command's. Only a preCutRule may have background actions.
	// Example: mysql -e 'FLUSH TABLES WITH READ LOCK; system ${WAIT_CMD};'
	// +optional
	Background bool `json:"background,omitempty"`

	// runInSinglePod runs the command in one pod alone, the first by name. Otherwise it is run in all pods that match, at the same time.
	// +optional
	RunInSinglePod bool `json:"runInSinglePod,omitempty"`

	// timeout is how long the command may take, of a background action until it runs ${WAIT_CMD} and again after it. Then it is ended, and
	// the rule has failed. Empty means 60s; at most 10m.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('10m')",message="timeout is from 1s to 10m"
	// +optional
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// RuleItem is what is done in the pods of one selector.
type RuleItem struct {
	// podSelector chooses the running pods of this namespace that bear all these labels. When there is none, nothing is run, the rule has
	// succeeded, and a warning says so.
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=16
	PodSelector map[string]string `json:"podSelector"`

	// container is where commands run. Empty means the one that kubectl would take, by annotation, or the pod's first.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Container string `json:"container,omitempty"`

	// actions are taken one after the other. The first that fails ends the rule.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Actions []RuleAction `json:"actions"`
}

// RuleStage tells which of a Replication's two rules a Rule was run as.
type RuleStage string

const (
	// RulePreCut: before the members were cut.
	RulePreCut RuleStage = "PreCut"
	// RulePostCut: after they were.
	RulePostCut RuleStage = "PostCut"
)

// RuleOutcome is what came of a run.
type RuleOutcome string

const (
	// RuleSucceeded: every command ended well, or held as long as it should.
	RuleSucceeded RuleOutcome = "Succeeded"
	// RuleNoPods: nothing was run for one of its selectors, because no running pod matched.
	RuleNoPods RuleOutcome = "NoPods"
	// RuleFailed: a command failed, took too long, or could not be run.
	RuleFailed RuleOutcome = "Failed"
	// RuleInterrupted: the manager ended while it ran; its commands were let go.
	RuleInterrupted RuleOutcome = "Interrupted"
)

// RuleResult is one run of a Rule.
type RuleResult struct {
	// replication and rlink are whom it was run for, and point what was cut then.
	Replication string `json:"replication"`
	Rlink       string `json:"rlink"`
	Point       string `json:"point"`
	// stage is PreCut or PostCut.
	Stage RuleStage `json:"stage"`
	// at is when it was through.
	At metav1.Time `json:"at"`
	// outcome is Succeeded, NoPods, Failed or Interrupted.
	Outcome RuleOutcome `json:"outcome"`
	// pods are those that commands were run in.
	// +optional
	Pods []string `json:"pods,omitempty"`
	// message tells why it failed or what it warns of. Of what commands print it holds the last 200 bytes at most that a failed one wrote to its
	// standard error, and nothing else: what commands print may be secret.
	// +optional
	Message string `json:"message,omitempty"`
}

// RuleStatus shows what came of the Rule.
type RuleStatus struct {
	// results are those of the newest runs, newest first, at most 10.
	// +kubebuilder:validation:MaxItems=10
	// +optional
	Results []RuleResult `json:"results,omitempty"`
}

// Rule says which commands are run in pods before or after a group is cut, for whoever names it. It does nothing by itself.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Last run",type=date,JSONPath=`.status.results[0].at`
// +kubebuilder:printcolumn:name="For",type=string,JSONPath=`.status.results[0].replication`
// +kubebuilder:printcolumn:name="Stage",type=string,JSONPath=`.status.results[0].stage`
// +kubebuilder:printcolumn:name="Outcome",type=string,JSONPath=`.status.results[0].outcome`
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.results[0].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Rule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// rules are taken one after the other.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Rules []RuleItem `json:"rules"`

	// holdLimit is how long the application may stay quiesced, from when all commands of a preCutRule are through or hold. When the members
	// are not cut by then, it is let go and the session ends without a point. Background actions end by themselves a little later also
	// when the manager is gone. Empty means 60s; from 1s to 10m.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('10m')",message="holdLimit is from 1s to 10m"
	// +optional
	HoldLimit *metav1.Duration `json:"holdLimit,omitempty"`

	Status RuleStatus `json:"status,omitempty"`
}

// RuleList is a list of Rules.
// +kubebuilder:object:root=true
type RuleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Rule `json:"items"`
}

// QuiesceState is how far a session's quiescing is.
// +kubebuilder:validation:Enum=Waiting;Quiescing;Quiesced;Resuming;Resumed
type QuiesceState string

const (
	// QuiesceWaiting: no command was run yet.
	QuiesceWaiting QuiesceState = "Waiting"
	// QuiesceQuiescing: the preCutRule's commands may run, or have run. Saved before the first does.
	QuiesceQuiescing QuiesceState = "Quiescing"
	// QuiesceQuiesced: the preCutRule is through; what it holds stands still.
	QuiesceQuiesced QuiesceState = "Quiesced"
	// QuiesceResuming: the application is let go: what holds it ends, and the postCutRule's commands run.
	QuiesceResuming QuiesceState = "Resuming"
	// QuiesceResumed: that is through.
	QuiesceResumed QuiesceState = "Resumed"
)

// QuiesceStatus is how the rules around a session's cut went.
type QuiesceStatus struct {
	// preCutRule and postCutRule are the Rules, as the Replication named them when the session began.
	// +optional
	PreCutRule string `json:"preCutRule,omitempty"`
	// +optional
	PostCutRule string `json:"postCutRule,omitempty"`
	// state is how far it is.
	State QuiesceState `json:"state"`
	// begunAt is saved before the first command runs, quiescedAt once the preCutRule is through, resumedAt when the application was let go. What
	// lies between begunAt and resumedAt is how long it may have stood still.
	// +optional
	BegunAt *metav1.MicroTime `json:"begunAt,omitempty"`
	// +optional
	QuiescedAt *metav1.MicroTime `json:"quiescedAt,omitempty"`
	// +optional
	ResumedAt *metav1.MicroTime `json:"resumedAt,omitempty"`
	// commandsEndBy is when every command of the preCutRule that holds nothing has ended, even when nobody waits for it.
	// +optional
	CommandsEndBy *metav1.MicroTime `json:"commandsEndBy,omitempty"`
	// holdLimit is the preCutRule's.
	// +optional
	HoldLimit *metav1.Duration `json:"holdLimit,omitempty"`
	// holds is how many background commands hold the application.
	// +optional
	Holds int32 `json:"holds,omitempty"`
	// failedReason and failed tell why the session makes no point; empty when it does.
	// +optional
	FailedReason string `json:"failedReason,omitempty"`
	// +optional
	Failed string `json:"failed,omitempty"`
	// warning tells that no pod matched, so that the point was cut without being quiesced; empty otherwise.
	// +optional
	Warning string `json:"warning,omitempty"`
	// resumeFailed tells that the postCutRule failed, or that what held the application did not end well. The point stays, but the
	// application may still be quiesced.
	// +optional
	ResumeFailed string `json:"resumeFailed,omitempty"`
}
