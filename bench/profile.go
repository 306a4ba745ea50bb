package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/version"
)

// moverVerb makes this program a mover that profiles itself: mover source|target CONFIG PROFILE.
const moverVerb = "mover"

// mover is the command of one side of a session: the real program, or this one when profiles are wanted.
func (b *bench) mover(role, config, name string) []string {
	if b.profile == "" {
		return []string{b.lifeboat, "mover", role, "--config", config}
	}
	return []string{b.self, moverVerb, role, config, filepath.Join(b.profile, name+".pprof")}
}

// runMover does what `lifeboat mover` does.
func runMover(args []string) (err error) {
	if len(args) != 3 {
		return errors.New("mover: give source or target, a configuration and where the profile goes")
	}
	f, err := os.Create(args[2])
	if err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	defer pprof.StopCPUProfile()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	engine.Overlap()
	if args[0] == "target" {
		c, err := engine.LoadTargetConfig(args[1])
		if err != nil {
			return err
		}
		return engine.RunTarget(ctx, c, version.Software, log)
	}
	c, err := engine.LoadSourceConfig(args[1])
	if err != nil {
		return err
	}
	if r := engine.RunSource(ctx, c, version.Software, log); !r.Done {
		return errors.New(r.Error)
	}
	return nil
}
