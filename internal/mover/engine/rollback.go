package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// RollbackConfig is the file a rollback is started with: replicas are made to hold again what snapshots of theirs hold. Nobody else
// writes or reads the replicas meanwhile.
type RollbackConfig struct {
	Replication string           `json:"replication"`
	Point       string           `json:"point"` // that the snapshots keep
	Volumes     []RollbackVolume `json:"volumes"`

	TerminationLog string `json:"terminationLog,omitempty"` // where the final report goes; empty: nowhere
}

// RollbackVolume is one member of the group.
type RollbackVolume struct {
	Name   string `json:"name"`
	From   string `json:"from"`   // device or file with what the point holds
	Device string `json:"device"` // the replica
}

// LoadRollbackConfig reads and checks a file. Errors are *ConfigError where a field is wrong.
func LoadRollbackConfig(path string) (RollbackConfig, error) {
	var c RollbackConfig
	if err := load(path, &c); err != nil {
		return c, err
	}
	return c, c.Validate()
}

// Validate checks what can be known from the file alone.
func (c RollbackConfig) Validate() error {
	names := make([]string, 0, len(c.Volumes))
	for i, v := range c.Volumes {
		switch {
		case v.From == "":
			return missing(fmt.Sprintf("volumes[%d].from", i), "name the device or file with what the point holds")
		case v.Device == "":
			return missing(fmt.Sprintf("volumes[%d].device", i), "name the device or file of the replica")
		}
		names = append(names, v.Name)
	}
	switch {
	case c.Replication == "":
		return missing("replication", "name it as namespace/name")
	case c.Point == "":
		return missing("point", "give the recovery point's id")
	}
	return checkNames(names)
}

// RunRollback brings every replica to its snapshot's content and makes it durable. Only what differs is written, so doing it again after a
// crash goes on from there. Until it is done the replicas are no instant of anything.
func RunRollback(ctx context.Context, cfg RollbackConfig, log *slog.Logger) Report {
	report := Report{Replication: cfg.Replication, Point: cfg.Point, Started: time.Now(), Attempts: 1}
	var errs []error
	for _, v := range cfg.Volumes {
		done, err := rollBack(ctx, v)
		report.BytesRead += done.read
		report.BytesChanged += done.written
		if err != nil {
			errs = append(errs, err)
			break
		}
		log.Info("volume rolled back", "volume", v.Name, "bytesRead", done.read, "bytesChanged", done.written)
	}
	report.DurationSeconds = time.Since(report.Started).Seconds()
	if err := errors.Join(errs...); err != nil {
		report.Error, report.Kind = err.Error(), KindOf(err)
	} else {
		report.Done = true
	}
	if cfg.TerminationLog != "" {
		if err := os.WriteFile(cfg.TerminationLog, report.Encode(), 0o644); err != nil {
			log.Warn("final report not written", "path", cfg.TerminationLog, "error", err.Error())
		}
	}
	return report
}

type rolledBack struct{ read, written int64 }

func rollBack(ctx context.Context, v RollbackVolume) (done rolledBack, err error) {
	from, err := volume.OpenReader(v.From)
	if err != nil {
		return done, &ConfigError{Field: "volumes[" + v.Name + "].from", Found: v.From, Want: err.Error()}
	}
	defer func() { _ = from.Close() }()
	to, err := volume.Open(v.Device)
	if err != nil {
		return done, &ConfigError{Field: "volumes[" + v.Name + "].device", Found: v.Device, Want: err.Error()}
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if from.Size() > to.Size() {
		return done, &ConfigError{Field: "volumes[" + v.Name + "].device", Found: fmt.Sprintf("%d bytes", to.Size()),
			Want: fmt.Sprintf("the point holds %d bytes: give a device of at least that size", from.Size())}
	}
	if done, err = makeAlike(ctx, from, to); err != nil {
		return done, &VolumeError{Object: "volume " + v.Name, Err: err}
	}
	return done, nil
}

const (
	// rollbackPiece is read at once from both sides, rollbackGrain is what is written of it when it differs.
	rollbackPiece = 4 << 20
	rollbackGrain = 64 << 10
)

// makeAlike writes what differs. What a replica has beyond the snapshot, which was taken before it grew, becomes zeros.
func makeAlike(ctx context.Context, from volume.Reader, to volume.Volume) (rolledBack, error) {
	var done rolledBack
	wanted, present := volume.Buffer(rollbackPiece), volume.Buffer(rollbackPiece)
	for at := int64(0); at < to.Size(); at += rollbackPiece {
		if err := ctx.Err(); err != nil {
			return done, context.Cause(ctx)
		}
		n := min(rollbackPiece, to.Size()-at)
		held := max(min(n, from.Size()-at), 0)
		if _, err := from.ReadAt(wanted[:held], at); err != nil && !errors.Is(err, io.EOF) {
			return done, err
		}
		clear(wanted[held:n])
		if _, err := to.ReadAt(present[:n], at); err != nil && !errors.Is(err, io.EOF) {
			return done, err
		}
		done.read += held + n
		for off := int64(0); off < n; off += rollbackGrain {
			end := min(off+rollbackGrain, n)
			if bytes.Equal(wanted[off:end], present[off:end]) {
				continue
			}
			if err := put(to, wanted[off:end], at+off); err != nil {
				return done, err
			}
			done.written += end - off
		}
	}
	return done, to.Sync()
}

var noBytes [rollbackGrain]byte

// put writes a block, as a hole where it is zeros.
func put(to volume.Volume, block []byte, at int64) error {
	if bytes.Equal(block, noBytes[:len(block)]) {
		return to.Zero(at, int64(len(block)))
	}
	_, err := to.WriteAt(block, at)
	return err
}
