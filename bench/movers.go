package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// movers is one replication: a target that keeps running, and a source process for each session, as pods are.
type movers struct {
	b      *bench
	name   string // of the replication, and of its folder
	source string // what is replicated: a file or a directory
	target string // the replica
	link   *link  // nil: loopback

	running *process
	address string
	point   string // the target's newest point; empty: none
	count   int    // of sessions so far, to name points
}

// sourceConfig is a source's configuration with what this bench sets besides. The outer fields take the place of the
// engine's of the same name.
type sourceConfig struct {
	engine.SourceConfig
	Base    string         `json:"base,omitempty"`
	Volumes []sourceVolume `json:"volumes"`
}

type sourceVolume struct {
	engine.SourceVolume
	Changes   *change.Origin `json:"changes,omitempty"`
	Allocated *change.Origin `json:"allocated,omitempty"`
}

// ask is what differs from one session to the next.
type ask struct {
	changes     string // a file that lists what changed since the last session; empty: there is none
	allocated   bool   // let the file say what was never written
	compression engine.Compression
	through     string // connect here instead of to the target
	tier        string // the tier it must use; empty: any
	limit       int64  // bytes per second, by the engine itself; 0: none
}

func (b *bench) newMovers(name, source, target string) *movers {
	m := &movers{b: b, name: name, source: source, target: target}
	b.leave(m.stop)
	return m
}

func (m *movers) spool() string { return m.b.path(m.name + ".spool") }

// forget makes the target one that has never seen a session, with an empty replica of the source's kind, and starts
// it.
func (m *movers) forget(ctx context.Context) error {
	m.stop()
	m.point = ""
	for _, path := range []string{m.spool(), m.target} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove the last replica: %w", err)
		}
	}
	info, err := os.Stat(m.source)
	if err != nil {
		return fmt.Errorf("look at the source: %w", err)
	}
	if info.IsDir() {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make a replica: %w", err)
		}
		return m.start(ctx)
	}
	if err := writeHole(m.target, info.Size()); err != nil {
		return err
	}
	return m.start(ctx)
}

// start starts the target and returns once it accepts connections.
func (m *movers) start(ctx context.Context) error {
	host := "127.0.0.1"
	var prefix []string
	if m.link != nil {
		host, prefix = m.link.far, m.link.enter
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	m.address = net.JoinHostPort(host, port)
	config := engine.TargetConfig{
		Replication: "bench/" + m.name, Epoch: 1, Volumes: []engine.TargetVolume{{Name: "volume", Device: m.target}},
		Spool: m.spool(), Listen: m.address, IdentityDir: m.b.west, PeerIdentity: identity.ReplicationURI("east", "bench", "volume"),
	}
	if err := os.MkdirAll(config.Spool, 0o700); err != nil {
		return fmt.Errorf("make a spool: %w", err)
	}
	path, err := writeConfig(m.b.path(m.name+".target.json"), config)
	if err != nil {
		return err
	}
	// It outlives the step that starts it; stop ends it.
	if m.running, err = start(context.WithoutCancel(ctx), append(prefix, m.b.mover("target", path, fmt.Sprintf("%s-%d-target", m.name, m.count))...)...); err != nil {
		return err
	}
	return listening(ctx, m.address, m.running)
}

func (m *movers) stop() {
	if m.running != nil {
		m.running.stop()
		m.running = nil
	}
}

// session brings the source's present content to the target.
func (m *movers) session(ctx context.Context, a ask) (usage, engine.Report, error) {
	if m.running == nil {
		return usage{}, engine.Report{}, fmt.Errorf("the target of %s does not run", m.name)
	}
	m.count++
	point := fmt.Sprintf("point-%d", m.count)
	path, err := writeConfig(m.b.path(m.name+".source.json"), m.config(a, point))
	if err != nil {
		return usage{}, engine.Report{}, err
	}
	device := loopback
	if m.link != nil {
		device = m.link.device
	}
	u, err := measured(ctx, device, []*process{m.running}, m.b.mover("source", path, fmt.Sprintf("%s-%d-source", m.name, m.count))...)
	if err != nil {
		return usage{}, engine.Report{}, err
	}
	report, err := m.report()
	if err != nil {
		return usage{}, engine.Report{}, err
	}
	if a.tier != "" && report.Tier != a.tier {
		return usage{}, report, fmt.Errorf("the engine used tier %s instead of %s: %s", report.Tier, a.tier, report.TierReason)
	}
	m.point = point
	u.engine = time.Duration(report.DurationSeconds * float64(time.Second))
	u.note = fmt.Sprintf("tier %s, engine %s", report.Tier, secondsOf(report.DurationSeconds))
	return u, report, nil
}

func (m *movers) config(a ask, point string) sourceConfig {
	address := m.address
	if a.through != "" {
		address = a.through
	}
	volume := sourceVolume{SourceVolume: engine.SourceVolume{Name: "volume", Device: m.source}}
	base := ""
	if a.changes != "" {
		base, volume.Changes = m.point, &change.Origin{File: a.changes}
	}
	if a.allocated {
		volume.Allocated = &change.Origin{}
	}
	return sourceConfig{
		SourceConfig: engine.SourceConfig{
			Replication: "bench/" + m.name, Epoch: 1, Point: point, PointTime: time.Now().UTC(),
			Address: address, ServerName: identity.ReceiverServerName("bench", "volume"), IdentityDir: m.b.east,
			PeerIdentity:   identity.ReplicationURI("west", "bench", "volume"),
			TerminationLog: m.b.path(m.name + ".report.json"), Compression: a.compression, BandwidthLimit: a.limit,
		},
		Base: base, Volumes: []sourceVolume{volume},
	}
}

func (m *movers) report() (engine.Report, error) {
	var r engine.Report
	text, err := os.ReadFile(m.b.path(m.name + ".report.json"))
	if err != nil {
		return r, fmt.Errorf("read the session's report: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("read the session's report: %w", err)
	}
	return r, nil
}

// fresh is a contender that makes a first copy each time.
func (m *movers) fresh(name string, a ask, check func(context.Context) error) *contender {
	return &contender{
		name:    name,
		prepare: func(ctx context.Context, _ int) error { return m.forget(ctx) },
		work: func(ctx context.Context, _ int) (usage, error) {
			u, _, err := m.session(ctx, a)
			return u, err
		},
		check: func(ctx context.Context) error {
			// The next contender has the processors for itself, and the disk.
			defer m.stop()
			return check(ctx)
		},
	}
}

// identities makes what the two sides prove themselves with.
func identities(dir string, now time.Time) (east, west string, err error) {
	cas := map[string]*identity.CA{}
	for _, cluster := range []string{"east", "west"} {
		if cas[cluster], err = identity.NewCA(cluster, now); err != nil {
			return "", "", err
		}
	}
	write := func(cluster, peer string) (string, error) {
		data, _, err := identity.IssueMoverSecretData(cas[cluster], cluster, "bench", "volume", cas[peer].CertPEM(), now)
		if err != nil {
			return "", err
		}
		folder := filepath.Join(dir, "identity-"+cluster)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return "", fmt.Errorf("write identity: %w", err)
		}
		for name, pem := range data {
			if err := os.WriteFile(filepath.Join(folder, name), pem, 0o600); err != nil {
				return "", fmt.Errorf("write identity: %w", err)
			}
		}
		return folder, nil
	}
	if east, err = write("east", "west"); err != nil {
		return "", "", err
	}
	west, err = write("west", "east")
	return east, west, err
}

func writeConfig(path string, c any) (string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return path, nil
}

// freePort is a TCP port that nobody listens on. The namespace is the bench's own: nobody takes it meanwhile.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return port, l.Close()
}
