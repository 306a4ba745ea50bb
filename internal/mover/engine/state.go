package engine

import (
	"sync"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/session"
)

// Phase is what a mover is busy with.
type Phase string

// The phases of a source.
const (
	PhaseConnecting   Phase = "Connecting"
	PhaseWaiting      Phase = "Waiting" // for the link, or for the target; Message says why
	PhaseReconciling  Phase = "Reconciling"
	PhaseExtracting   Phase = "Extracting"   // comparing, nothing to send at the moment
	PhaseTransferring Phase = "Transferring" // sending what differs
	PhaseCommitting   Phase = "Committing"   // everything is sent, the target commits and applies
	PhaseDone         Phase = "Done"
	PhaseFailed       Phase = "Failed"
)

// The phases of a target, besides Reconciling and Committing.
const (
	PhaseStarting  Phase = "Starting"
	PhaseRedoing   Phase = "Redoing" // applying again what a crash interrupted
	PhaseIdle      Phase = "Idle"
	PhaseReceiving Phase = "Receiving"
	PhaseApplying  Phase = "Applying"
)

// Role is which side a mover is.
type Role string

// The roles.
const (
	RoleSource Role = "source"
	RoleTarget Role = "target"
)

// State is what a mover says of itself at GET /v1/state. Byte counts are of volumes, before compression, unless said
// otherwise.
type State struct {
	Role        Role   `json:"role"`
	Replication string `json:"replication"`
	Epoch       uint64 `json:"epoch"` // of a target: the highest it has seen
	Software    string `json:"software"`
	Phase       Phase  `json:"phase"`
	Message     string `json:"message,omitempty"` // why it waits, or what went wrong last

	// Of the session under way, or the last one.
	Point          string    `json:"point,omitempty"`
	PointTime      time.Time `json:"pointTime,omitzero"`
	Tier           string    `json:"tier,omitempty"`
	TierReason     string    `json:"tierReason,omitempty"`
	Direct         bool      `json:"direct,omitempty"` // straight onto the replica: there is no recovery point to protect
	Attempts       int       `json:"attempts,omitempty"`
	BytesDone      int64     `json:"bytesDone"`
	BytesTotal     int64     `json:"bytesTotal"`
	Percent        float64   `json:"percent"`
	BytesPerSecond int64     `json:"bytesPerSecond"`       // of BytesDone, over the last seconds
	ETASeconds     int64     `json:"etaSeconds,omitempty"` // 0: unknown

	// Of a target.
	Ready         bool           `json:"ready,omitempty"`     // accepts sessions
	Committed     *session.Point `json:"committed,omitempty"` // nil: no recovery point yet
	Applied       bool           `json:"applied,omitempty"`   // the replica holds the committed point, durably
	Verified      *session.Point `json:"verified,omitempty"`  // the last point that was compared with its source, block by block
	SpoolBytes    int64          `json:"spoolBytes,omitempty"`
	TooLarge      string         `json:"tooLarge,omitempty"`      // the point whose delta the spool could not hold, until one is committed
	SpoolPosition int64          `json:"spoolPosition,omitempty"` // bytes of the group that lie before it

	// Of a source that has ended.
	Report *Report `json:"report,omitempty"`
}

// Report is what a source says at the end of a session. Byte counts are of volumes, before compression, unless said
// otherwise.
type Report struct {
	Replication string    `json:"replication"`
	Epoch       uint64    `json:"epoch"`
	Point       string    `json:"point"`
	PointTime   time.Time `json:"pointTime,omitzero"`
	Done        bool      `json:"done"`                       // the target holds the point: applied and durable
	Already     bool      `json:"alreadyCommitted,omitempty"` // it did before this run
	Verified    bool      `json:"verified,omitempty"`         // both sides were read and compared, and now hold the same
	Tier        string    `json:"tier,omitempty"`
	TierReason  string    `json:"tierReason,omitempty"`
	Direct      bool      `json:"direct,omitempty"`
	Attempts    int       `json:"attempts"`
	Resumed     int       `json:"resumed"` // attempts that continued where an earlier one was cut

	BytesTotal   int64 `json:"bytesTotal"`   // size of the group
	BytesRead    int64 `json:"bytesRead"`    // read from the source's volumes
	BytesChanged int64 `json:"bytesChanged"` // found different, or listed; all in tier full, all ever written in tier allocated
	// BytesRepaired is what a verification found different, and made the same.
	BytesRepaired int64 `json:"bytesRepaired,omitempty"`
	ZeroBytes     int64 `json:"zeroBytes"`   // of the changed ones, zeros sent as holes
	BytesData     int64 `json:"bytesData"`   // carried by records, before compression
	BytesSent     int64 `json:"bytesSent"`   // carried by records, after compression
	BytesWire     int64 `json:"bytesWire"`   // all that was sent, frames and digests too
	BytesAcked    int64 `json:"bytesAcked"`  // of BytesData, made durable by the target
	BytesResent   int64 `json:"bytesResent"` // of BytesData, sent although acknowledged before: always 0

	// Of trees.
	Entries        int64 `json:"entries,omitempty"`
	EntriesChanged int64 `json:"entriesChanged,omitempty"`
	EntriesDeleted int64 `json:"entriesDeleted,omitempty"` // each with everything below it

	Started         time.Time `json:"started,omitzero"`
	DurationSeconds float64   `json:"durationSeconds"`

	Error string `json:"error,omitempty"`
	Kind  Kind   `json:"errorKind,omitempty"`
}

// meter holds a State that is written by the session and read by whoever asks.
type meter struct {
	now func() time.Time

	mu      sync.Mutex
	state   State
	samples []sample // of the last rateSpan, oldest first
}

type sample struct {
	at   time.Time
	done int64
}

// rateSpan is over how long the rate is taken.
const rateSpan = 5 * time.Second

func newMeter(now func() time.Time, first State) *meter {
	return &meter{now: now, state: first}
}

// set changes the state.
func (m *meter) set(change func(*State)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.state)
}

// phase sets phase and message.
func (m *meter) phase(p Phase, message string) {
	m.set(func(s *State) { s.Phase, s.Message = p, message })
}

// progress notes how far the session is.
func (m *meter) progress(done, total int64) {
	at := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.BytesDone, m.state.BytesTotal = done, total
	n := len(m.samples)
	if n > 0 && done < m.samples[n-1].done {
		m.samples, n = m.samples[:0], 0
	}
	if n > 0 && at.Sub(m.samples[n-1].at) < rateSpan/50 {
		return
	}
	m.samples = append(m.samples, sample{at, done})
	for len(m.samples) > 2 && at.Sub(m.samples[1].at) > rateSpan {
		m.samples = m.samples[1:]
	}
}

// read is the state with its rates as of now.
func (m *meter) read() State {
	at := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	if s.BytesTotal > 0 {
		s.Percent = 100 * float64(s.BytesDone) / float64(s.BytesTotal)
	}
	s.BytesPerSecond, s.ETASeconds = 0, 0
	if len(m.samples) > 0 {
		first := m.samples[0]
		if span := at.Sub(first.at).Seconds(); span > 0 {
			s.BytesPerSecond = int64(float64(s.BytesDone-first.done) / span)
		}
	}
	if s.BytesPerSecond > 0 && s.BytesTotal > s.BytesDone {
		s.ETASeconds = (s.BytesTotal-s.BytesDone)/s.BytesPerSecond + 1
	}
	return s
}
