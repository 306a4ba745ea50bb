package engine

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Kind sorts errors for whoever decides what to do about them.
type Kind string

// The kinds of error.
const (
	KindConfiguration Kind = "Configuration" // the configuration file or a device it names
	KindStaleEpoch    Kind = "StaleEpoch"    // another cluster has become primary since
	KindConflict      Kind = "Conflict"      // the two sides differ in replication, members or sizes
	KindTrust         Kind = "Trust"         // one side is not who the other expects
	KindVersion       Kind = "Version"       // no protocol in common
	KindLink          Kind = "Link"          // the connection failed
	KindVolume        Kind = "Volume"        // a volume or the spool could not be read or written
	KindSpace         Kind = "Space"         // no space left for the spool
	KindIntegrity     Kind = "Integrity"     // content was not what its digest says
	KindTarget        Kind = "Target"        // the target failed in another way
	KindCancelled     Kind = "Cancelled"     // asked to stop
	KindInternal      Kind = "Internal"
)

// ForGood reports that trying again cannot help until somebody changes something.
func (k Kind) ForGood() bool {
	switch k {
	case KindStaleEpoch, KindConflict, KindTrust, KindVersion:
		return true
	}
	return false
}

// ConfigError says which field of a configuration is wrong, what was found, and what to do.
type ConfigError struct{ Field, Found, Want string }

func (c *ConfigError) Error() string {
	return fmt.Sprintf("configuration: %s is %s: %s", c.Field, c.Found, c.Want)
}

// VolumeError says what could not be done with a volume or a spool.
type VolumeError struct {
	Object string
	Err    error
}

func (v *VolumeError) Error() string { return v.Object + ": " + v.Err.Error() }

// Unwrap is what the operating system said.
func (v *VolumeError) Unwrap() error { return v.Err }

// KindOf sorts an error. The order matters where errors wrap others: what is for good is looked for first.
func KindOf(err error) Kind {
	var (
		refusal   *session.Refusal
		version   *wire.VersionConflict
		untrusted *transport.Untrusted
		config    *ConfigError
		busy      *volume.Busy
		inUse     *spool.InUse
		foreign   *spool.Foreign
		integrity *session.Integrity
		changed   *session.SourceChanged
		remote    *session.Remote
		vol       *VolumeError
		lost      *transport.Lost
		full      *SpoolFull
		origin    *change.BadOrigin
	)
	switch {
	case err == nil:
		return ""
	case treeKind(err) != "" && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT):
		return treeKind(err)
	case errors.As(err, &refusal):
		if refusal.Kind == wire.RefusedEpoch {
			return KindStaleEpoch
		}
		return KindConflict
	case errors.As(err, &version):
		return KindVersion
	case errors.As(err, &untrusted):
		return KindTrust
	case errors.As(err, &config), errors.As(err, &busy), errors.As(err, &inUse), errors.As(err, &foreign), errors.As(err, &origin):
		return KindConfiguration
	case errors.As(err, &full), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return KindSpace
	case errors.As(err, &integrity), errors.As(err, &changed), errors.Is(err, digest.ErrDamaged):
		return KindIntegrity
	case errors.As(err, &vol):
		return KindVolume
	case errors.As(err, &remote):
		return kindOfRemote(remote.Kind)
	case errors.As(err, &lost):
		return KindLink
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return KindCancelled
	}
	return KindInternal
}

func kindOfRemote(k wire.FailureKind) Kind {
	switch k {
	case wire.FailedIO:
		return KindVolume
	case wire.FailedSpace:
		return KindSpace
	case wire.FailedIntegrity:
		return KindIntegrity
	case wire.FailedReplaced, wire.FailedStopping:
		return KindLink
	}
	return KindTarget
}

// failure is an error as the other side is told of it.
func failure(err error) wire.Failed {
	kind := wire.FailedInternal
	var broke *session.Violation
	switch KindOf(err) {
	case KindVolume:
		kind = wire.FailedIO
	case KindSpace:
		kind = wire.FailedSpace
	case KindIntegrity:
		kind = wire.FailedIntegrity
	case KindCancelled:
		kind = wire.FailedStopping
	default:
		if errors.As(err, &broke) {
			kind = wire.FailedProtocol
		}
	}
	return wire.Failed{Kind: kind, Text: err.Error()}
}
