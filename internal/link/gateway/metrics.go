package gateway

import "github.com/prometheus/client_golang/prometheus"

// Results of a connection that was not passed on.
const (
	resultBusy    = "busy"
	resultClient  = "bad-client"
	resultUnknown = "unknown-name"
	resultBackend = "backend-unreachable"
)

// Metrics count connections. A nil *Metrics counts nothing.
type Metrics struct {
	open     prometheus.Gauge
	passed   prometheus.Counter
	rejected *prometheus.CounterVec
	bytes    *prometheus.CounterVec
}

// NewMetrics registers the gateway's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lifeboat_gateway_connections_open", Help: "Connections that are passed on now."}),
		passed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lifeboat_gateway_connections_total", Help: "Connections that were passed on."}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_gateway_refused_total", Help: "Connections that were not passed on, by the reason."}, []string{"reason"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_gateway_bytes_total", Help: "Bytes of ended connections, into the cluster and out of it."}, []string{"direction"}),
	}
	r.MustRegister(m.open, m.passed, m.rejected, m.bytes)
	return m
}

func (m *Metrics) opened() {
	if m == nil {
		return
	}
	m.open.Inc()
	m.passed.Inc()
}

func (m *Metrics) closed(in, out int64) {
	if m == nil {
		return
	}
	m.open.Dec()
	m.bytes.WithLabelValues("in").Add(float64(in))
	m.bytes.WithLabelValues("out").Add(float64(out))
}

func (m *Metrics) refused(result string) {
	if m == nil {
		return
	}
	m.rejected.WithLabelValues(result).Inc()
}
