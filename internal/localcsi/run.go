package localcsi

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// poolWait is how long a new process waits for its predecessor to give the pool up.
const poolWait = time.Minute

// Run opens the driver, listens on the Unix socket endpoint and offers itself to the kubelet that watches
// registrationDir (empty: to nobody), until ctx ends.
func Run(ctx context.Context, cfg Config, endpoint, registrationDir string) error {
	socket := strings.TrimPrefix(endpoint, "unix://")
	if !strings.HasPrefix(socket, "/") {
		return fmt.Errorf("endpoint %q: it must be unix:///absolute/path.sock", endpoint)
	}
	opening, cancel := context.WithTimeout(ctx, poolWait)
	d, err := Open(opening, cfg)
	cancel()
	if err != nil {
		return err
	}
	defer func() {
		if err := d.Close(); err != nil {
			cfg.Log.Error("the pool was not closed cleanly", "error", err)
		}
	}()
	l, err := Listen(socket)
	if err != nil {
		return err
	}
	cfg.Log.Info("serving", "driver", Name, "node", cfg.NodeID, "endpoint", endpoint)
	d.unregistered.Store(registrationDir != "")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.Serve(ctx, l) })
	if registrationDir != "" {
		group.Go(func() error {
			return register(ctx, registrationDir, socket, func() {
				cfg.Log.Info("the kubelet took the driver")
				d.unregistered.Store(false)
			})
		})
	}
	return group.Wait()
}
