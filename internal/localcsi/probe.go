package localcsi

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Ready asks the driver that listens at endpoint (unix:///path) whether it serves its pool.
func Ready(ctx context.Context, endpoint string) error {
	// The socket is a file that only root can open; there is no network to protect.
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("ask the driver at %s: %w", endpoint, err)
	}
	defer func() { _ = conn.Close() }()
	resp, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
	if err != nil {
		return fmt.Errorf("ask the driver at %s: %w", endpoint, err)
	}
	if !resp.GetReady().GetValue() {
		return fmt.Errorf("the driver at %s is not ready", endpoint)
	}
	return nil
}
