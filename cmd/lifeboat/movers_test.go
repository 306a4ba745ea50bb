package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"lifeboat.dev/lifeboat/internal/link/identity"
)

// A mover whose pod has ended while it was asked answers no more, and nothing tells the asker so.
func TestAMoverThatFellSilentIsNotWaitedForLong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:"+statusPort)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ca, err := identity.NewCA("east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// The connection is taken by the kernel, and nobody reads what was asked.
	_, err = newMovers(ca, "east", time.Now).State(t.Context(), types.NamespacedName{Namespace: "shop", Name: "db"}, "127.0.0.1")
	if err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("a silent mover: %v", err)
	}
}
