package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/standalone"
	"lifeboat.dev/lifeboat/internal/version"
)

// The exit codes of `lifeboat replicate`, besides those of a source mover.
const (
	// exitSome plus the number of targets that failed, when there are several targets.
	exitSome = 10
	// exitInterrupted is what shells report of a process that ^C ended.
	exitInterrupted = 130
)

type replicateOptions struct {
	identity, peer, group string
	epoch                 uint64
	to                    []string
	state                 string
	limit, limitTotal     string
	compression           string
	readLimit             string
	verify, fresh         bool
	verifyEvery           time.Duration
	point, base           string
	changes               []string
	keepBase              bool
	watch, giveUp         time.Duration
	json, verbose         bool
}

// newReplicateCommand is `lifeboat replicate`: the source of `lifeboat receive`.
func newReplicateCommand() *cobra.Command {
	var o replicateOptions
	cmd := &cobra.Command{
		Use:   "replicate [NAME=]SRC... [HOST@]ADDRESS:PORT",
		Short: "Bring devices, files or folders to other hosts and keep them in step, without Kubernetes",
		Long: `Replicate brings one instant of its sources to each target, which runs lifeboat receive. Several sources are one group:
they are committed together or not at all. Several targets (--to) each have a session of their own; a slow one holds
nobody back.

Of image files on a file system that can share blocks (XFS, btrfs) the instant is a clone: the file may be written
meanwhile. Everything else is read in place and must not be written until the session has ended.

After ^C, a crash or a cut link the same command goes on with the same instant: what the target has acknowledged is not
sent again. A second ^C ends at once.

Exit codes: 0 done; 1 failed, trying again may help; 2 wrong configuration; 3 refused, somebody must change something;
10 + N when N of several targets failed; 130 interrupted.`,
		Example: "  lifeboat replicate /srv/db.img west:9100\n" +
			"  lifeboat replicate data=/dev/vg0/data-snap log=/dev/vg0/log-snap west@10.0.0.2:9100 --to north@10.0.0.3:9100\n" +
			"  lifeboat replicate /srv/db.img west:9100 --watch 30s --limit '20MB 08:00-18:00 Mon-Fri, 200MB otherwise'",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runReplicate(cmd, o, args) },
	}
	f := cmd.Flags()
	groupFlags(cmd, &o.identity, &o.peer, &o.group, &o.epoch)
	f.StringArrayVar(&o.to, "to", nil, "another target, [HOST@]ADDRESS:PORT; may be given again")
	f.DurationVar(&o.watch, "watch", 0, "go on: a session with a fresh instant every so often, start to start, such as 30s")
	f.BoolVar(&o.verify, "verify", false, "read and compare both sides whatever they remember, and repair the replica")
	f.DurationVar(&o.verifyEvery, "verify-every", 0, "do so by itself when the last time is so long ago, such as 168h with --watch")
	f.StringVar(&o.limit, "limit", "", `bytes per second to each target: "20MB", or by the hour: "20MB 08:00-18:00 Mon-Fri, 200MB otherwise, in Europe/Berlin"`)
	f.StringVar(&o.limitTotal, "limit-total", "", "the same for all targets together")
	f.StringVar(&o.readLimit, "limit-read", "", "bytes per second read from the sources, such as 200MB")
	f.StringVar(&o.compression, "compression", string(engine.CompressionAuto), "auto (only where it helps) or off")
	f.StringVar(&o.point, "point", "", "name of the instant (empty: its time)")
	f.StringVar(&o.base, "base", "", "the point since which the --changes are complete")
	f.StringArrayVar(&o.changes, "changes", nil, "file with the list of what changed since --base; one for each source")
	f.BoolVar(&o.keepBase, "keep-base", false, "keep the instant afterwards, so that the next session finds changes without reading (--watch does)")
	f.BoolVar(&o.fresh, "fresh", false, "take a new instant although an interrupted session could go on")
	f.DurationVar(&o.giveUp, "give-up", 30*time.Second, "fail when a target is out of reach for so long; 0 waits for ever (--watch does, unless this is given)")
	f.StringVar(&o.state, "state", "", "folder to remember interrupted sessions in (empty: state in the identity's folder)")
	f.BoolVar(&o.json, "json", false, "one JSON object for each event, progress included")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "also say what the engine does")
	return cmd
}

func runReplicate(cmd *cobra.Command, o replicateOptions, args []string) error {
	if o.watch > 0 && !cmd.Flags().Changed("give-up") {
		o.giveUp = 0
	}
	opt, err := o.sender(args)
	if err != nil {
		return coded(err)
	}
	screen := newScreen(cmd.OutOrStdout(), cmd.ErrOrStderr(), o.json, len(opt.Targets))
	opt.Log = standaloneLog(cmd.ErrOrStderr(), o.verbose)
	opt.Observe = screen.event
	s, err := standalone.NewSender(opt)
	if err != nil {
		return coded(err)
	}
	defer func() { _ = s.Close() }()
	ctx, stop := endOnSignals(cmd.Context())
	defer stop()
	engine.Overlap()
	results := screen.follow(ctx, s)
	code, err := verdict(results)
	screen.end(results, code)
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

// endOnSignals returns a context that the first SIGINT or SIGTERM ends; the second one ends the process at once.
func endOnSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	over := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-over:
				return
			case <-signals:
			}
			if n > 0 {
				os.Exit(exitInterrupted)
			}
			cancel()
		}
	}()
	return ctx, func() { signal.Stop(signals); close(over); cancel() }
}

// verdict is the exit code of the whole command, and what to tell of it.
func verdict(results []standalone.Result) (int, error) {
	var failed []error
	interrupted := false
	code := engine.ExitDone
	for _, r := range results {
		if r.Report.Done {
			continue
		}
		code = r.Report.ExitCode()
		interrupted = interrupted || r.Interrupted
		failed = append(failed, fmt.Errorf("%s: %s", r.Target, r.Report.Error))
	}
	switch {
	case len(failed) == 0:
		return engine.ExitDone, nil
	case interrupted:
		return exitInterrupted, errors.New("interrupted: the same command goes on where this one ended")
	case len(results) == 1:
		return code, failed[0]
	}
	return exitSome + len(failed), fmt.Errorf("%d of %d targets failed: %w", len(failed), len(results), errors.Join(failed...))
}

// sender reads flags and arguments.
func (o replicateOptions) sender(args []string) (standalone.SenderOptions, error) {
	out := standalone.SenderOptions{
		Group: o.group, Epoch: o.epoch, StateDir: o.state, Compression: engine.Compression(o.compression),
		Verify: o.verify, VerifyEvery: o.verifyEvery, Fresh: o.fresh, Point: o.point, Base: o.base, Changes: o.changes, KeepBase: o.keepBase,
		Watch: o.watch, Patience: o.giveUp, Software: version.Software, Now: time.Now,
	}
	bad := func(field, found, want string) (standalone.SenderOptions, error) {
		return out, &engine.ConfigError{Field: field, Found: found, Want: want}
	}
	last := args[len(args)-1]
	if _, ok := parseDestination(last); ok {
		if _, err := os.Stat(last); err != nil {
			o.to = append([]string{last}, o.to...)
			args = args[:len(args)-1]
		}
	}
	switch {
	case len(o.to) == 0:
		return bad("target", "missing", "end with where lifeboat receive listens, such as west:9100")
	case len(args) == 0:
		return bad("source", "missing", "begin with the device, file or folder to replicate")
	case o.watch < 0 || o.giveUp < 0:
		return bad("--watch or --give-up", "less than 0", "give a time such as 30s")
	case o.watch > 0 && (o.point != "" || o.base != ""):
		return bad("--watch with --point or --base", "given", "each session of a watch has an instant and a base of its own; leave them out")
	}
	for _, text := range o.to {
		to, ok := parseDestination(text)
		if !ok {
			return bad("--to", fmt.Sprintf("%q", text), "give [HOST@]ADDRESS:PORT, such as west:9100 or west@10.0.0.2:9100")
		}
		if to.Peer == "" {
			to.Peer = o.peer
		}
		out.Targets = append(out.Targets, to)
	}
	var err error
	if out.Members, err = parseMembers(args); err != nil {
		return out, err
	}
	for flag, c := range map[string]struct {
		text string
		into *pace.Calendar
	}{"--limit": {o.limit, &out.Limit}, "--limit-total": {o.limitTotal, &out.Total}} {
		if c.text == "" {
			continue
		}
		if *c.into, err = pace.Parse(c.text); err != nil {
			return bad(flag, "not a calendar", err.Error())
		}
	}
	if o.readLimit != "" {
		r, err := pace.ParseRate(o.readLimit)
		if err != nil {
			return bad("--limit-read", "not a rate", err.Error())
		}
		out.ReadLimit = int64(r)
	}
	out.Host, err = standalone.OpenHost(o.identity, time.Now)
	return out, err
}

// parseDestination reads [HOST@]ADDRESS:PORT. A path, even one with a colon, has no port behind it.
func parseDestination(text string) (standalone.Destination, bool) {
	peer, address, found := strings.Cut(text, "@")
	if !found {
		peer, address = "", text
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.Contains(host, "/") || found && peer == "" {
		return standalone.Destination{}, false
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return standalone.Destination{}, false
	}
	return standalone.Destination{Peer: peer, Address: address}, true
}
