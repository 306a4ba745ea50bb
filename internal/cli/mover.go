package cli

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/version"
)

// newMoverCommand is `lifeboat mover`: the two ends of a replication session.
func newMoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mover",
		Short: "Move a group of volumes to a peer: the two ends of a session",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newMoverSourceCommand(), newMoverTargetCommand(), newMoverRollbackCommand())
	return cmd
}

func newMoverSourceCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "source --config FILE",
		Short: "Bring one instant of a group to its target, then exit",
		Long: `Bring one instant of a group of volumes to its target, then exit. While the link is down it waits and connects again.
The final report, JSON, goes to the configured termination log.

Exit codes: 0 the target holds the instant; 1 failed, trying again may help; 2 wrong configuration;
3 refused, and trying again cannot help before somebody changes something: the report's errorKind is
StaleEpoch, Conflict, Trust or Version; 4 told to stop (SIGTERM): what the target has acknowledged stays, and the next
start goes on behind it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			cfg, err := engine.LoadSourceConfig(config)
			if err != nil {
				return &exitError{engine.ExitConfiguration, err}
			}
			log := moverLog().With("replication", cfg.Replication, "point", cfg.Point)
			engine.Overlap()
			r := engine.RunSource(ctx, cfg, version.Software, log)
			if !r.Done {
				return &exitError{r.ExitCode(), errors.New(r.Error)}
			}
			log.Info("session done", "tier", r.Tier, "reason", r.TierReason, "bytesRead", r.BytesRead, "bytesChanged", r.BytesChanged,
				"bytesSent", r.BytesSent, "bytesWire", r.BytesWire, "attempts", r.Attempts, "seconds", r.DurationSeconds)
			return nil
		},
	}
	configFlag(cmd, &config)
	return cmd
}

func newMoverTargetCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "target --config FILE",
		Short: "Receive sessions onto the replicas of a group, until stopped",
		Long: `Receive sessions onto the replicas of a group, until SIGTERM. A recovery point that was committed and not yet applied
when the last process ended is applied before the first session is accepted.

Exit codes: 0 stopped; 1 failed; 2 wrong configuration.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			cfg, err := engine.LoadTargetConfig(config)
			if err == nil {
				engine.Overlap()
				err = engine.RunTarget(ctx, cfg, version.Software, moverLog().With("replication", cfg.Replication))
			}
			if engine.KindOf(err) == engine.KindConfiguration {
				return &exitError{engine.ExitConfiguration, err}
			}
			return err
		},
	}
	configFlag(cmd, &config)
	return cmd
}

func newMoverRollbackCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "rollback --config FILE",
		Short: "Make the replicas of a group hold again what a recovery point holds, then exit",
		Long: `Make the replicas of a group hold again what the snapshots of a recovery point hold, then exit. Only what differs is
written; when it is interrupted, doing it again goes on. Until it is done the replicas are no instant of anything.

Exit codes: 0 done; 1 failed, trying again may help; 2 wrong configuration.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			cfg, err := engine.LoadRollbackConfig(config)
			if err != nil {
				return &exitError{engine.ExitConfiguration, err}
			}
			r := engine.RunRollback(ctx, cfg, moverLog().With("replication", cfg.Replication, "point", cfg.Point))
			if !r.Done {
				return &exitError{r.ExitCode(), errors.New(r.Error)}
			}
			return nil
		},
	}
	configFlag(cmd, &config)
	return cmd
}

func configFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVar(into, "config", "", "configuration file (JSON); required")
	_ = cmd.MarkFlagRequired("config")
}

func moverLog() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }
