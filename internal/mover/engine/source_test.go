package engine

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/transport"
)

// A link that swallows everything lets a connection be tried for many seconds: whoever looks then is told of the link, too.
func TestASourceThatConnectsAgainSaysThatItWaits(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dials := make(chan State)
	var s *Source
	dial := func(ctx context.Context) (net.Conn, error) {
		dials <- s.State()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &transport.Lost{During: "dial", Err: context.DeadlineExceeded}
	}
	s, err := NewSource(SourceConfig{Replication: "shop/pg", Point: "p1", Volumes: []SourceVolume{{Name: "data", Device: "data"}}},
		SourceParts{Dial: dial, Log: slog.New(slog.DiscardHandler), Now: time.Now, Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan Report)
	go func() { done <- s.Run(ctx) }()
	if first := <-dials; first.Phase != PhaseConnecting {
		t.Errorf("at first: %s %s", first.Phase, first.Message)
	}
	if again := <-dials; again.Phase != PhaseWaiting || !strings.Contains(again.Message, "dial: context deadline exceeded") {
		t.Errorf("again: %s %s", again.Phase, again.Message)
	}
	cancel()
	for {
		select {
		case <-dials:
		case <-done:
			return
		}
	}
}
