package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
)

// goals of a fleet, whatever its size: a manager's memory, and that every replication has its session.
const goalMemory = 500 << 20

// sample is everything that counts, at one instant.
type sample struct {
	at        time.Time
	cpu       time.Duration // of the manager's process
	peak, now int64         // its resident bytes: the most there ever were, and at present
	calls     map[string]float64
	looks     series // the manager's own metrics
	waits     series
	peerCalls int64
	commits   int
	failures  int
	late      int // how many of nodes.late there were
	took      int
}

// series is a histogram of seconds, by upper bound.
type series map[float64]float64

func read(ctx context.Context, c *cluster, m *manager, n *nodes) (sample, error) {
	s := sample{at: time.Now(), peerCalls: n.p.calls.Load()}
	var err error
	if s.cpu, err = cpuOf(m.pid); err != nil {
		return s, err
	}
	if s.peak, err = memoryOf(m.pid, "VmHWM:"); err != nil {
		return s, err
	}
	if s.now, err = memoryOf(m.pid, "VmRSS:"); err != nil {
		return s, err
	}
	if s.calls, err = callsOf(ctx, c); err != nil {
		return s, err
	}
	if s.looks, s.waits, err = metricsOf(ctx, c, m); err != nil {
		return s, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s.commits, s.failures, s.late, s.took = n.commits, n.failures, len(n.late), len(n.took)
	return s, nil
}

// cpuOf is the user and system time of a process.
func cpuOf(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}

func memoryOf(pid int, what string) (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(raw), what)
	fields := strings.Fields(rest)
	if !found || len(fields) == 0 {
		return 0, fmt.Errorf("/proc/%d/status says nothing of %s", pid, what)
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	return kib << 10, err
}

// callsOf is what the API server counted, without the bench's own calls: the manager's. What the API server asks itself is left out.
func callsOf(ctx context.Context, c *cluster) (map[string]float64, error) {
	kube, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return nil, err
	}
	own := c.ownCalls()
	raw, err := kube.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	calls := map[string]float64{}
	err = eachMetric(bytes.NewReader(raw), func(name string, labels map[string]string, value float64) {
		if name != "apiserver_request_total" || selfish[labels["resource"]] || labels["resource"] == "" {
			return
		}
		resource := labels["resource"]
		if sub := labels["subresource"]; sub != "" {
			resource += "/" + sub
		}
		verb := labels["verb"]
		switch verb {
		case "APPLY":
			verb = "PATCH"
		case "CONNECT":
			return
		}
		calls[verb+" "+resource] += value
	})
	for call, n := range own {
		if calls[call] -= n; calls[call] <= 0 {
			delete(calls, call)
		}
	}
	return calls, err
}

// selfish are resources that the API server tends by itself.
var selfish = map[string]bool{"leases": true, "endpoints": true, "endpointslices": true, "apiservices": true, "flowschemas": true, "prioritylevelconfigurations": true,
	"clusterroles": true, "clusterrolebindings": true, "roles": true, "rolebindings": true, "priorityclasses": true, "customresourcedefinitions/status": true,
	"resourcequotas": true, "limitranges": true, "mutatingwebhookconfigurations": true, "validatingwebhookconfigurations": true, "validatingadmissionpolicies": true,
	"validatingadmissionpolicybindings": true, "ingressclasses": true, "runtimeclasses": true, "servicecidrs": true, "ipaddresses": true, "services": true}

// metricsOf reads how long the manager's looks at replications took, and how long they waited for a worker.
func metricsOf(ctx context.Context, c *cluster, m *manager) (looks, waits series, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.metrics, nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	// Its certificate is one that it made itself.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(request)
	if err != nil {
		return nil, nil, fmt.Errorf("read the manager's metrics: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("read the manager's metrics: %s", response.Status)
	}
	looks, waits = series{}, series{}
	err = eachMetric(response.Body, func(name string, labels map[string]string, value float64) {
		bound, err := strconv.ParseFloat(labels["le"], 64)
		switch {
		case err != nil:
		case name == "controller_runtime_reconcile_time_seconds_bucket" && labels["controller"] == "replication":
			looks[bound] += value
		case name == "workqueue_queue_duration_seconds_bucket" && labels["name"] == "replication":
			waits[bound] += value
		}
	})
	return looks, waits, err
}

// eachMetric reads the text format of Prometheus as far as it is used here: no label's value has a comma or a brace in it.
func eachMetric(from io.Reader, tell func(name string, labels map[string]string, value float64)) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		name, rest, has := strings.Cut(line, "{")
		if !has || strings.HasPrefix(line, "#") {
			continue
		}
		inside, after, has := strings.Cut(rest, "} ")
		if !has {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(after), 64)
		if err != nil {
			continue
		}
		labels := map[string]string{}
		for pair := range strings.SplitSeq(inside, ",") {
			key, v, _ := strings.Cut(pair, "=")
			labels[key] = strings.Trim(v, `"`)
		}
		tell(name, labels, value)
	}
	return lines.Err()
}

// since is what came to a histogram after an earlier reading.
func (s series) since(before series) series {
	out := series{}
	for bound, n := range s {
		out[bound] = n - before[bound]
	}
	return out
}

func (s series) count() float64 { return s[math.Inf(1)] }

// quantile is the upper bound of the bucket that the quantile is in.
func (s series) quantile(q float64) float64 {
	for _, bound := range slices.Sorted(maps.Keys(s)) {
		if s.count() > 0 && s[bound] >= q*s.count() {
			return bound
		}
	}
	return 0
}

func report(out io.Writer, o options, before, after sample, n *nodes) {
	minutes := after.at.Sub(before.at).Minutes()
	seconds := minutes * 60
	looks, waits := after.looks.since(before.looks), after.waits.since(before.waits)
	n.mu.Lock()
	late, took := slices.Clone(n.late[before.late:after.late]), slices.Clone(n.took[before.took:after.took])
	n.mu.Unlock()
	calls, total := map[string]float64{}, 0.0
	for call, count := range after.calls {
		if more := (count - before.calls[call]) / seconds; more > 0.01 {
			calls[call] = more
			total += more
		}
	}
	fmt.Fprintf(out, "\n%d replications, %g minutes, mover %s, at most %d sessions together\n\n", o.replications, math.Round(minutes*10)/10, o.mover, o.maxSessions)
	fmt.Fprintln(out, "API calls a second, watches by how many were begun:")
	for _, call := range slices.SortedFunc(maps.Keys(calls), func(a, b string) int { return int(1e6 * (calls[b] - calls[a])) }) {
		fmt.Fprintf(out, "  %8.2f  %s\n", calls[call], call)
	}
	done := after.commits - before.commits
	fmt.Fprintf(out, "\nsessions: %d committed, %d failed; each took %s (median), %s (longest)\n", done, after.failures-before.failures,
		quantile(took, 0.5).Round(time.Millisecond), quantile(took, 1).Round(time.Millisecond))
	fmt.Fprintf(out, "looks: %.0f, half of them within %gs, 99 %% within %gs; waiting for a worker: half at most %gs, 99 %% at most %gs\n\n",
		looks.count(), looks.quantile(0.5), looks.quantile(0.99), waits.quantile(0.5), waits.quantile(0.99))
	tardy := 0
	for _, by := range late {
		if by > 10*time.Second {
			tardy++
		}
	}
	figure := func(name string, value float64) { fmt.Fprintf(out, "figure fleet-%s %.4g\n", name, value) }
	figure("replications", float64(o.replications))
	figure("cpu-seconds-per-minute", (after.cpu-before.cpu).Seconds()/minutes)
	figure("peak-memory-MiB", float64(after.peak)/(1<<20))
	figure("memory-MiB", float64(after.now)/(1<<20))
	figure("api-calls-per-second", total)
	figure("peer-calls-per-second", float64(after.peerCalls-before.peerCalls)/seconds)
	figure("looks-per-second", looks.count()/seconds)
	figure("look-p50-seconds", looks.quantile(0.5))
	figure("look-p99-seconds", looks.quantile(0.99))
	figure("sessions-per-minute", float64(done)/minutes)
	figure("session-median-seconds", quantile(took, 0.5).Seconds())
	figure("sessions-late", float64(tardy))
	figure("late-median-seconds", quantile(late, 0.5).Seconds())
	figure("late-max-seconds", quantile(late, 1).Seconds())
	fmt.Fprintf(out, "ratio fleet-memory/goal %.3f\n", float64(after.peak)/goalMemory)
	if wanted := float64(o.replications) / float64(o.every); !o.rest && done > 0 {
		fmt.Fprintf(out, "ratio fleet-sessions/goal %.3f\n", wanted/(float64(done)/minutes))
	}
}
