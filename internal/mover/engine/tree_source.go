package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/tree"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// A group of trees is replicated by package tree, member after member; the engine does everything around it. A group
// has either trees or blocks: one instant of both would have to come from two kinds of storage.

// TooOld reports that the peer's software cannot do what the session needs.
type TooOld struct{ Peer, Needs string }

func (o *TooOld) Error() string {
	return fmt.Sprintf("the %s's software is too old to %s: upgrade it", o.Peer, o.Needs)
}

// isTree reports whether a configured path is a directory.
func isTree(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// kindOfGroup is what the members are; mixing them is an error.
func kindOfGroup(paths []string) (wire.Kind, error) {
	trees := 0
	for _, p := range paths {
		if isTree(p) {
			trees++
		}
	}
	switch trees {
	case 0:
		return wire.KindBlocks, nil
	case len(paths):
		return wire.KindTree, nil
	}
	return wire.KindBlocks, &ConfigError{
		Field: "volumes", Found: "a mixture of directories and devices or image files",
		Want: "make a group of its own for each kind",
	}
}

// treeClosing ends a delta of trees: each tree's own end has proven its content.
func treeClosing(hello wire.Hello) digest.Digest {
	return session.Closing(hello.Point, hello.Members, make([][]digest.Digest, len(hello.Members)))
}

// attemptTrees runs the session over one connection.
func (s *Source) attemptTrees(ctx context.Context, stream *transport.Stream) (err error) {
	defer func() { _ = stream.Close() }()
	if stream.Version() < 2 {
		return &TooOld{Peer: "target", Needs: "replicate directories"}
	}
	s.meter.phase(PhaseReconciling, "")
	if err := sendNow(stream, s.hello); err != nil {
		return err
	}
	w, err := s.awaitWelcome(stream)
	if err != nil || w.Committed {
		return err
	}
	for v := range s.cfg.Volumes {
		err := s.sendTree(ctx, stream, v)
		if err != nil {
			return err
		}
	}
	s.meter.phase(PhaseCommitting, "")
	if err := sendNow(stream, wire.Close{Digest: treeClosing(s.hello)}); err != nil {
		return err
	}
	return s.awaitCommitted(stream)
}

func sendNow(stream *transport.Stream, m wire.Message) error {
	if _, err := stream.Send(m); err != nil {
		return err
	}
	return stream.Flush()
}

// receiveSmall receives a message that carries no memory.
func receiveSmall(stream *transport.Stream) (wire.Message, error) {
	f, err := stream.Receive()
	f.Release()
	return f.Message, err
}

func (s *Source) awaitWelcome(stream *transport.Stream) (wire.Welcome, error) {
	for {
		m, err := receiveSmall(stream)
		if err != nil {
			return wire.Welcome{}, err
		}
		switch m := m.(type) {
		case wire.Pulse:
			s.meter.phase(PhaseReconciling, m.Text)
		case wire.Refused:
			return wire.Welcome{}, &session.Refusal{Kind: m.Kind, Mismatches: m.Mismatches}
		case wire.Failed:
			return wire.Welcome{}, &session.Remote{Kind: m.Kind, Text: m.Text}
		case wire.Welcome:
			s.hear(m)
			return m, nil
		default:
			return wire.Welcome{}, &session.Violation{What: fmt.Sprintf("a %s in place of a Welcome", m.Type())}
		}
	}
}

// sendTree brings one member over and adds up what was done.
func (s *Source) sendTree(ctx context.Context, stream *transport.Stream, v int) error {
	s.meter.phase(PhaseTransferring, "")
	before := s.trees
	totals, err := tree.Send(ctx, stream, v, s.cfg.Volumes[v].Device, tree.SendOptions{
		Log: s.parts.Log, Compression: s.cfg.Compression != CompressionOff, Pace: s.reads.Wait,
		Progress: func(done, total int64) { s.meter.progress(before.Bytes+done, before.Bytes+total) },
	})
	s.read.Add(totals.Read)
	s.traffic.add(traffic{wire: totals.Wire, payload: totals.Payload, data: totals.Data})
	if err == nil {
		s.trees.Entries += totals.Entries
		s.trees.Changed += totals.Changed
		s.trees.Deleted += totals.Deleted
		s.trees.Bytes += totals.Bytes
		s.meter.progress(s.trees.Bytes, s.trees.Bytes)
	}
	return err
}

// awaitCommitted waits for the target's last word; it says something at every beat meanwhile, so that only a target
// that is gone is silent.
func (s *Source) awaitCommitted(stream *transport.Stream) error {
	over := make(chan struct{})
	spoken := make(chan struct{})
	go func() {
		defer close(spoken)
		beat := time.NewTicker(transport.Beat)
		defer beat.Stop()
		for {
			select {
			case <-over:
				return
			case <-beat.C:
				if sendNow(stream, wire.Pulse{Phase: wire.PhaseWaiting}) != nil {
					return
				}
			}
		}
	}()
	defer func() { close(over); <-spoken }()
	for {
		m, err := receiveSmall(stream)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case wire.Pulse:
			s.meter.phase(PhaseCommitting, m.Text)
		case wire.Failed:
			return &session.Remote{Kind: m.Kind, Text: m.Text}
		case wire.Committed:
			if m.Point != s.cfg.Point {
				return &session.Violation{What: fmt.Sprintf("it commits %q", m.Point)}
			}
			return nil
		default:
			return &session.Violation{What: fmt.Sprintf("a %s after everything was sent", m.Type())}
		}
	}
}

// treeKind sorts the errors of package tree.
func treeKind(err error) Kind {
	var (
		changed  *tree.SourceChanged
		diverged *tree.Diverged
		path     *tree.PathError
		old      *TooOld
	)
	switch {
	case errors.As(err, &old):
		return KindVersion
	case errors.As(err, &changed), errors.As(err, &diverged), errors.Is(err, tree.ErrIndex):
		return KindIntegrity
	case errors.As(err, &path):
		return KindVolume
	}
	return ""
}
