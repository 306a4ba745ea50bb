// Command lifeboat is everything Lifeboat runs: the manager, the gateway, the movers, the local storage
// driver, and the user's verbs. It wires the parts together and decides nothing.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"lifeboat.dev/lifeboat/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := cli.NewRootCommand()
	root.AddCommand(newManagerCommand())
	os.Exit(cli.Report(os.Stderr, root.ExecuteContext(ctx)))
}
