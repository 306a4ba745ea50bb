// Command fleet measures what a fleet of replications costs one manager: the real manager process against a real API server, with
// everything else played (see nodes.go and peer.go), so that sessions move no byte and only the manager's own work is seen.
//
// Its last lines are for scripts: "figure NAME VALUE", and "ratio NAME VALUE", a figure over its goal, below 1 is better. It needs
// KUBEBUILDER_ASSETS (hack/bench-fleet.sh sets it) and is run in the root of the repository.
//
// Begin reading at measure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

type options struct {
	lifeboat     string
	dir          string
	replications int
	namespaces   int
	minutes      float64
	every        int
	spread       bool
	rest         bool
	mover        time.Duration
	maxSessions  int
	patience     time.Duration
	keep         bool
}

func parse(args []string) (options, error) {
	o := options{}
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flags.StringVar(&o.lifeboat, "lifeboat", "bin/lifeboat", "the lifeboat binary")
	flags.StringVar(&o.dir, "dir", os.TempDir(), "where the manager's log and kubeconfig are, in a folder of their own that is removed unless the bench fails")
	flags.IntVar(&o.replications, "replications", 3000, "how many replications, of one claim each")
	flags.IntVar(&o.namespaces, "namespaces", 0, "how many namespaces they are in (0: one for ten)")
	flags.Float64Var(&o.minutes, "minutes", 10, "how long to measure")
	flags.IntVar(&o.every, "every", 5, "how many minutes between two sessions of one replication")
	flags.BoolVar(&o.spread, "spread", false, "let replications be due in different minutes, rather than all in the same")
	flags.BoolVar(&o.rest, "rest", false, "give them no schedule: what a fleet costs that does nothing")
	flags.DurationVar(&o.mover, "mover", time.Second, "how long a mover's pod takes, from its Job to its end")
	flags.IntVar(&o.maxSessions, "max-sessions", 64, "the manager's --max-sessions")
	flags.DurationVar(&o.patience, "patience", 20*time.Minute, "how long the manager may take to look at all of them for the first time")
	flags.BoolVar(&o.keep, "keep", false, "keep the manager's log also when all goes well")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.namespaces == 0 {
		o.namespaces = (o.replications + 9) / 10
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q is not understood: all is said with flags, see --help", flags.Arg(0))
	case o.replications < 1, o.minutes <= 0, o.namespaces < 0:
		return o, errors.New("--replications, --minutes and --namespaces: give at least 1")
	case o.every < 1 || o.every > 30 || 60%o.every != 0:
		return o, fmt.Errorf("--every %d: give minutes that an hour can be divided by, 30 at most", o.every)
	}
	return o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctrllog.SetLogger(logr.Discard())
	dir, err := os.MkdirTemp(o.dir, "lifeboat-fleet-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() {
		if err != nil || o.keep {
			fmt.Fprintln(os.Stderr, "fleet: the manager's log is kept in", dir)
			return
		}
		err = os.RemoveAll(dir)
	}()
	return measure(ctx, o, dir, os.Stdout)
}

// measure is the whole story: servers, a fleet at rest, the manager, and what it costs.
func measure(ctx context.Context, o options, dir string, out io.Writer) error {
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%s  %s\n", time.Now().UTC().Format("15:04:05"), fmt.Sprintf(format, args...))
	}
	say("starting etcd and an API server")
	c, err := startCluster(dir)
	if err != nil {
		return err
	}
	defer c.stop()
	// What watches the server lets go of it before it is stopped.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := startPeer(ctx, o)
	if err != nil {
		return err
	}
	defer p.stop()
	say("making %d replications in %d namespaces", o.replications, o.namespaces)
	if err := seed(ctx, o, c, p); err != nil {
		return err
	}
	n, err := playNodes(ctx, o, c, p)
	if err != nil {
		return err
	}
	say("starting the manager")
	m, err := startManager(o, c, dir)
	if err != nil {
		return err
	}
	defer m.stop()
	if err := n.untilAllWereSeen(ctx, o, m); err != nil {
		return err
	}
	say("all were looked at; measuring for %g minutes", o.minutes)
	before, err := read(ctx, c, m, n)
	if err != nil {
		return err
	}
	if err := pause(ctx, m, time.Duration(o.minutes*float64(time.Minute))); err != nil {
		return err
	}
	after, err := read(ctx, c, m, n)
	if err != nil {
		return err
	}
	report(out, o, before, after, n)
	return nil
}

// pause lets time pass, which is what is measured. A manager that ends meanwhile is an error.
func pause(ctx context.Context, m *manager, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-m.ended:
		return fmt.Errorf("the manager has ended: %w", err)
	case <-timer.C:
		return nil
	}
}
