// Package engine runs movers: a Source brings one instant of a group of volumes to a Target, which keeps its replicas
// at the newest recovery point. It carries out what internal/mover/session decides, with several goroutines for
// reading, digesting, packing and storing, and with a spool and volumes that survive crashes. It knows nothing of
// Kubernetes: paths, addresses and identities come in a configuration.
//
// Begin with RunSource and RunTarget, which wire the parts together; then Source.drive and receiver.drive, the two
// ends of a session; then Target.apply, which must be repeatable. State and Report are what others see.
package engine

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// The exit codes of a source mover.
const (
	ExitDone          = 0
	ExitFailed        = 1
	ExitConfiguration = 2
	ExitRefused       = 3 // trying again cannot help until somebody changes something
	ExitInterrupted   = 4 // told to stop: whoever starts it again goes on where it was
)

// ExitCode is how a process says this report in one number.
func (r Report) ExitCode() int {
	switch {
	case r.Done:
		return ExitDone
	case r.Kind == KindConfiguration:
		return ExitConfiguration
	case r.Kind.ForGood():
		return ExitRefused
	case r.Kind == KindCancelled:
		return ExitInterrupted
	}
	return ExitFailed
}

// MaxReport bounds a report as JSON in bytes: what a container may leave as its termination message.
const MaxReport = 4096

// Encode is the report as JSON, shorter than MaxReport; only texts are cut to fit.
func (r Report) Encode() []byte {
	for limit := 1500; ; limit /= 2 {
		r.Error, r.TierReason = cut(r.Error, limit), cut(r.TierReason, limit)
		raw, err := json.Marshal(r)
		if err != nil || len(raw) < MaxReport || limit == 0 {
			return raw
		}
	}
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return s[:limit]
}

// dialTimeout bounds connecting and the TLS handshake.
const dialTimeout = 20 * time.Second

// RunSource opens the volumes, serves the status and runs the session. The report says how it ended; it is also
// written to the termination log.
func RunSource(ctx context.Context, cfg SourceConfig, software string, log *slog.Logger) Report {
	began := time.Now()
	report, err := runSource(ctx, cfg, software, log)
	if err != nil {
		report = Report{
			Replication: cfg.Replication, Epoch: cfg.Epoch, Point: cfg.Point, PointTime: cfg.PointTime,
			Started: began, DurationSeconds: time.Since(began).Seconds(), Error: err.Error(), Kind: KindOf(err),
		}
	}
	if cfg.TerminationLog != "" {
		if err := os.WriteFile(cfg.TerminationLog, report.Encode(), 0o644); err != nil {
			log.Warn("final report not written", "path", cfg.TerminationLog, "error", err.Error())
		}
	}
	return report
}

func runSource(ctx context.Context, cfg SourceConfig, software string, log *slog.Logger) (Report, error) {
	if _, err := transport.LoadMaterial(cfg.IdentityDir); err != nil {
		return Report{}, &ConfigError{Field: "identityDir", Found: cfg.IdentityDir, Want: err.Error()}
	}
	volumes, err := cfg.open()
	if err != nil {
		return Report{}, err
	}
	defer func() {
		for _, v := range volumes {
			_ = v.Close()
		}
	}()
	s, err := NewSource(cfg, SourceParts{
		Dial: cfg.dialer(), Volumes: volumes, Offer: cfg.gather(ctx, volumes, log),
		Software: software, Log: log, Now: time.Now, Wait: wait,
	})
	if err != nil {
		return Report{}, err
	}
	if cfg.StatusListen != "" {
		stop, err := serveStatus(cfg.StatusListen, transport.FromDir(cfg.IdentityDir), cfg.ManagerIdentity, s.State, log)
		if err != nil {
			return Report{}, err
		}
		defer stop()
	}
	return s.Run(ctx), nil
}

// open opens the volumes; trees have none.
func (c SourceConfig) open() (volumes []volume.Reader, err error) {
	paths := make([]string, 0, len(c.Volumes))
	for _, v := range c.Volumes {
		paths = append(paths, v.Device)
	}
	if kind, err := kindOfGroup(paths); err != nil || kind == wire.KindTree {
		return nil, err
	}
	for _, v := range c.Volumes {
		f, err := volume.OpenReader(v.Device)
		if err != nil {
			for _, open := range volumes {
				_ = open.Close()
			}
			return nil, &ConfigError{Field: "volumes[" + v.Name + "].device", Found: v.Device, Want: err.Error()}
		}
		volumes = append(volumes, f)
	}
	return volumes, nil
}

// dialer connects to the target and keeps to the configuration's limits, over all connections together.
func (c SourceConfig) dialer() func(context.Context) (net.Conn, error) {
	limits := []*pace.Limiter{
		pace.New(time.Now, pace.Always(pace.Rate(c.BandwidthLimit))), pace.New(time.Now, c.Bandwidth),
	}
	return func(ctx context.Context) (net.Conn, error) { return c.dial(ctx, limits) }
}

// dial connects through the gateway. Its errors say whether waiting helps.
func (c SourceConfig) dial(ctx context.Context, limits []*pace.Limiter) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	m, err := transport.LoadMaterial(c.IdentityDir)
	if err != nil {
		return nil, &ConfigError{Field: "identityDir", Found: c.IdentityDir, Want: err.Error()}
	}
	conf, err := transport.ClientConfig(m, transport.PeerCluster, c.ServerName, c.PeerIdentity)
	if err != nil {
		return nil, &ConfigError{Field: "identityDir", Found: c.IdentityDir, Want: err.Error()}
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return nil, &transport.Lost{During: "connect to the peer's gateway " + c.Address, Err: err}
	}
	link := transport.Patient(raw, 0)
	for _, l := range limits {
		link = l.Conn(link)
	}
	conn := tls.Client(transport.Gather(link), conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		err = transport.Distrusted(err, c.PeerIdentity)
		if KindOf(err) == KindTrust {
			return nil, err
		}
		return nil, &transport.Lost{During: "greet the target " + c.ServerName + " at " + c.Address, Err: err}
	}
	return conn, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// RunTarget opens spool and volumes, applies what a crash interrupted, and serves sources until ctx ends, which is no
// error.
func RunTarget(ctx context.Context, cfg TargetConfig, software string, log *slog.Logger) error {
	identity := transport.FromDir(cfg.IdentityDir)
	if _, err := identity(); err != nil {
		return &ConfigError{Field: "identityDir", Found: cfg.IdentityDir, Want: err.Error()}
	}
	dir, err := spool.OpenDir(cfg.Spool)
	if err != nil {
		return err
	}
	defer dir.Close()
	volumes, err := cfg.open()
	if err != nil {
		return err
	}
	defer func() {
		for _, v := range volumes {
			_ = v.Close()
		}
	}()
	t, err := NewTarget(cfg, TargetParts{FS: dir, Volumes: volumes, Software: software, Log: log, Now: time.Now})
	if err != nil {
		return err
	}
	if cfg.StatusListen != "" {
		stop, err := serveStatus(cfg.StatusListen, identity, cfg.ManagerIdentity, t.State, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := t.Recover(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return &ConfigError{Field: "listen", Found: cfg.Listen, Want: err.Error()}
	}
	log.Info("target is ready", "replication", cfg.Replication, "address", l.Addr().String())
	t.Serve(ctx, l, transport.ServerConfig(identity, transport.PeerCluster, cfg.PeerIdentity))
	return t.Close()
}

// open opens the replicas; trees have none.
func (c TargetConfig) open() (volumes []volume.Volume, err error) {
	paths := make([]string, 0, len(c.Volumes))
	for _, v := range c.Volumes {
		paths = append(paths, v.Device)
	}
	if kind, err := kindOfGroup(paths); err != nil || kind == wire.KindTree {
		return nil, err
	}
	for _, v := range c.Volumes {
		f, err := volume.Open(v.Device)
		if err != nil {
			for _, open := range volumes {
				_ = open.Close()
			}
			return nil, &ConfigError{Field: "volumes[" + v.Name + "].device", Found: v.Device, Want: err.Error()}
		}
		volumes = append(volumes, f)
	}
	return volumes, nil
}

func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Serve accepts sources until ctx ends; then it closes l and returns when the last session has stopped.
func (t *Target) Serve(ctx context.Context, l net.Listener, conf *tls.Config) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		raw, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = raw.Close()
			}
			return
		}
		if err != nil {
			t.parts.Log.Warn("accept", "error", err.Error())
			if wait(ctx, firstBackoff) != nil {
				return
			}
			continue
		}
		wg.Go(func() {
			err := t.greet(ctx, raw, conf)
			switch {
			case err == nil, errors.Is(err, errProbe):
			default:
				t.parts.Log.Warn("session ended", "peer", raw.RemoteAddr().String(), "kind", string(KindOf(err)), "error", err.Error())
			}
		})
	}
}

func (t *Target) greet(ctx context.Context, raw net.Conn, conf *tls.Config) error {
	conn := tls.Server(transport.Gather(transport.Patient(raw, 0)), conf)
	hs, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	err := conn.HandshakeContext(hs)
	if err != nil {
		_ = raw.Close()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return errProbe
	}
	if err != nil {
		return fmt.Errorf("greet a source: %w", err)
	}
	return t.Handle(ctx, conn)
}

// errProbe is a connection that ended without a word, as health checks do.
var errProbe = errors.New("probed")
