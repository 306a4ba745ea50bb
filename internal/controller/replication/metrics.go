package replication

import (
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/objective"
	"lifeboat.dev/lifeboat/internal/schedule"
)

// figures are what metrics tell of each link, as the newest look saw it. Ages are counted when somebody asks.
type figures struct {
	now   func() time.Time
	turns *turns

	mu    sync.Mutex
	links map[linkKey]figure
	// ended counts since this manager started; what the status counts by itself is taken from there.
	ended map[linkKey]map[string]float64
}

type figure struct {
	role      v1alpha1.Role
	peer      string
	point     time.Time
	objective time.Duration
	breached  bool
	running   bool
	waiting   bool
	suspended bool
	missed    int64
	spool     *int64
	last      *v1alpha1.SessionReport
}

const (
	sessionStarted   = "started"
	sessionCommitted = "committed"
	sessionFailed    = "failed"
)

// note keeps what a look saw, and counts what it did.
func (f *figures) note(v *view, d cycle.Decision) {
	key := v.linkKey()
	allowed, err := schedule.ParseDuration(v.rlink.RecoveryPointObjective)
	if err != nil {
		allowed = 0
	}
	seen := figure{
		role: v.rep.Status.Role, peer: v.peerCluster(), objective: allowed,
		breached: v.status.Objective != nil && v.status.Objective.State == string(objective.Breached),
		running:  v.status.Session != nil, waiting: d.Reason == cycle.ReasonItsTurn, suspended: v.rlink.SuspendReplication,
		missed: v.status.MissedRuns, last: v.status.LastSession,
	}
	if v.status.RecoveryPoint != nil {
		seen.point = v.status.RecoveryPoint.Time.Time
	}
	if v.target != nil && v.state != nil {
		seen.spool = &v.state.SpoolBytes
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.links == nil {
		f.links, f.ended = map[linkKey]figure{}, map[linkKey]map[string]float64{}
	}
	f.links[key] = seen
	if f.ended[key] == nil {
		f.ended[key] = map[string]float64{sessionStarted: 0, sessionCommitted: 0, sessionFailed: 0}
	}
	switch d.Step {
	case cycle.StartSession:
		f.ended[key][sessionStarted]++
	case cycle.CommitSession:
		f.ended[key][sessionCommitted]++
	case cycle.FailSession:
		f.ended[key][sessionFailed]++
	}
}

func (f *figures) forget(gone func(linkKey) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.links, func(key linkKey, _ figure) bool { return gone(key) })
	maps.DeleteFunc(f.ended, func(key linkKey, _ map[string]float64) bool { return gone(key) })
}

var ofLink = []string{"namespace", "replication", "rlink", "peer"}

func linkMetric(name, help string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc("lifeboat_replication_"+name, help, append(ofLink[:len(ofLink):len(ofLink)], more...), nil)
}

// Each is described for users in docs/guide/metrics.md.
var (
	metricLag       = linkMetric("lag_seconds", "Age of the newest recovery point on the target.")
	metricObjective = linkMetric("objective_seconds", "How old the newest recovery point may become.")
	metricBreached  = linkMetric("objective_breached", "1 while the newest recovery point is older than the objective allows.")
	metricRole      = linkMetric("role", "1 for the role in force.", "role")
	metricRunning   = linkMetric("session_running", "1 while a session runs.")
	metricWaiting   = linkMetric("waiting_for_turn", "1 while a session is due and those of others come first.")
	metricSuspended = linkMetric("suspended", "1 while new sessions are suspended.")
	metricMissed    = linkMetric("missed_runs_total", "Scheduled runs that were skipped.")
	metricSessions  = linkMetric("sessions_total", "Sessions since the manager started, by what became of them: started, committed, failed.", "result")
	metricDuration  = linkMetric("last_session_duration_seconds", "How long the newest ended session took.")
	metricBytes     = linkMetric("last_session_sent_bytes", "Bytes that the newest ended session sent, after compression.")
	metricTier      = linkMetric("last_session_tier", "1 for the tier by which the newest ended session found changes.", "tier")
	metricSuccess   = linkMetric("last_session_success", "1 when the newest ended session was committed, 0 when it failed.")
	metricEnd       = linkMetric("last_session_end_timestamp_seconds", "When the newest ended session ended, in seconds since 1970.")
	metricSpool     = linkMetric("spool_bytes", "Bytes in the target's spool, as its receiver tells.")

	metricAllRunning = prometheus.NewDesc("lifeboat_sessions_running", "Sessions that run.", nil, nil)
	metricAllWaiting = prometheus.NewDesc("lifeboat_sessions_waiting_for_turn", "Sessions that are due and wait for their turn.", nil, nil)
	metricAllLimit   = prometheus.NewDesc("lifeboat_sessions_limit", "How many sessions may run together; 0 is any number.", nil, nil)
)

// Describe implements prometheus.Collector.
func (f *figures) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricLag, metricObjective, metricBreached, metricRole, metricRunning, metricWaiting, metricSuspended, metricMissed, metricSessions,
		metricDuration, metricBytes, metricTier, metricSuccess, metricEnd, metricSpool, metricAllRunning, metricAllWaiting, metricAllLimit} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (f *figures) Collect(out chan<- prometheus.Metric) {
	now := f.now()
	running, waiting := f.turns.counts(now)
	for desc, value := range map[*prometheus.Desc]int{metricAllRunning: running, metricAllWaiting: waiting, metricAllLimit: f.turns.limit} {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, link := range f.links {
		link.collect(out, now, key.replication.Namespace, key.replication.Name, key.rlink, link.peer)
		for result, n := range f.ended[key] {
			out <- prometheus.MustNewConstMetric(metricSessions, prometheus.CounterValue, n, key.replication.Namespace, key.replication.Name, key.rlink, link.peer, result)
		}
	}
}

func (l figure) collect(out chan<- prometheus.Metric, now time.Time, labels ...string) {
	gauge := func(desc *prometheus.Desc, value float64, more ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append(labels[:len(labels):len(labels)], more...)...)
	}
	flag := func(desc *prometheus.Desc, is bool) {
		value := 0.0
		if is {
			value = 1
		}
		gauge(desc, value)
	}
	if l.role != "" {
		gauge(metricRole, 1, string(l.role))
	}
	if !l.point.IsZero() {
		gauge(metricLag, now.Sub(l.point).Seconds())
	}
	if l.objective > 0 {
		gauge(metricObjective, l.objective.Seconds())
		flag(metricBreached, l.breached)
	}
	flag(metricRunning, l.running)
	flag(metricWaiting, l.waiting)
	flag(metricSuspended, l.suspended)
	out <- prometheus.MustNewConstMetric(metricMissed, prometheus.CounterValue, float64(l.missed), labels...)
	if l.spool != nil {
		gauge(metricSpool, float64(*l.spool))
	}
	if l.last == nil {
		return
	}
	gauge(metricDuration, l.last.FinishedAt.Sub(l.last.StartedAt.Time).Seconds())
	gauge(metricBytes, float64(l.last.BytesSent))
	gauge(metricEnd, float64(l.last.FinishedAt.UnixMilli())/1000)
	flag(metricSuccess, l.last.Result == resultCommitted)
	if l.last.Tier != "" {
		gauge(metricTier, 1, string(l.last.Tier))
	}
}
