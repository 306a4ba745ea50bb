// Command clusters runs two real Kubernetes clusters, east and west, on one Linux machine. Package env does the work;
// this reads the command line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"lifeboat.dev/lifeboat/test/clusters/env"
)

const usage = `usage: clusters [--slot N] [--state-dir DIR] [--clusters east,west] COMMAND

  up                                make the clusters run (again); nothing to do when they do
  down                              remove them and all they were
  status                            what runs, and what keeps it from being used
  cut | heal                        break the link between the clusters | repair it; the host reaches both meanwhile
  kill CLUSTER                      end a cluster as a loss of power would
  restart CLUSTER                   bring it back with its data
  load-image [--cluster C] TAR...   bring image archives into all clusters, or one
  kubeconfig [--path] [CLUSTER]     print a kubeconfig with a context for each cluster, or its path
  kubectl CLUSTER ARGS...           kubectl of the clusters' own version
  exec CLUSTER [COMMAND...]         run a command (a shell) inside a cluster's machine
  build-image ...                   make an image archive; see build-image -h
  build                             only build what up would build, and print the folder it is in
  check                             say what this machine lacks

environment: LIFEBOAT_CLUSTERS_SLOT, LIFEBOAT_CLUSTERS_STATE, LIFEBOAT_CLUSTERS_SOURCE, LIFEBOAT_CACHE
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "clusters:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	config, err := env.FromEnvironment()
	if err != nil {
		return err
	}
	begun := time.Now()
	config.Progress = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "[%5.1fs] %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
	flags := flag.NewFlagSet("clusters", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.IntVar(&config.Slot, "slot", config.Slot, "")
	flags.StringVar(&config.StateDir, "state-dir", config.StateDir, "")
	names := flags.String("clusters", strings.Join(config.Clusters, ","), "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config.Clusters = strings.Split(*names, ",")
	if flags.NArg() == 0 {
		flags.Usage()
		return flag.ErrHelp
	}
	command, rest := flags.Arg(0), flags.Args()[1:]
	if command == "build-image" {
		return buildImage(ctx, config, rest)
	}
	if command == "check" {
		return env.Check()
	}
	do, ok := commands[command]
	if !ok {
		flags.Usage()
		return fmt.Errorf("no command %q", command)
	}
	e, err := env.Open(config)
	if err != nil {
		return err
	}
	return do(ctx, e, rest)
}

var commands = map[string]func(ctx context.Context, e *env.Env, args []string) error{
	"up": func(ctx context.Context, e *env.Env, args []string) error {
		if err := none(args); err != nil {
			return err
		}
		if err := e.Up(ctx); err != nil {
			return err
		}
		fmt.Printf("export KUBECONFIG=%s\n", e.Kubeconfig())
		return nil
	},
	"down":   noArgs((*env.Env).Down),
	"cut":    noArgs((*env.Env).Cut),
	"heal":   noArgs((*env.Env).Heal),
	"status": status,
	"build": noArgs(func(e *env.Env, ctx context.Context) error {
		built, err := e.Build(ctx)
		if err != nil {
			return err
		}
		fmt.Println(built.Dir)
		return nil
	}),
	"kill":       oneCluster((*env.Env).Kill),
	"restart":    oneCluster((*env.Env).Restart),
	"load-image": loadImage,
	"kubeconfig": kubeconfig,
	"kubectl":    kubectl,
	"exec":       enter,
}

func none(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

func noArgs(do func(*env.Env, context.Context) error) func(context.Context, *env.Env, []string) error {
	return func(ctx context.Context, e *env.Env, args []string) error {
		if err := none(args); err != nil {
			return err
		}
		return do(e, ctx)
	}
}

func oneCluster(do func(*env.Env, context.Context, string) error) func(context.Context, *env.Env, []string) error {
	return func(ctx context.Context, e *env.Env, args []string) error {
		if len(args) != 1 {
			return errors.New("want the name of one cluster")
		}
		return do(e, ctx, args[0])
	}
}

func status(ctx context.Context, e *env.Env, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	all, err := e.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%-10s %-14s %-6s %-8s %-10s %s\n", "CLUSTER", "ADDRESS", "LINK", "PID", "PROCESSES", "STATE")
	down := false
	for _, s := range all {
		state := "usable"
		if s.NotUsable != nil {
			state, down = s.NotUsable.Error(), true
		}
		fmt.Printf("%-10s %-14s %-6s %-8d %-10d %s\n", s.Name, s.Address, s.Link, s.PID, s.Processes, state)
	}
	if down {
		return errors.New("not all clusters are usable")
	}
	return nil
}

func loadImage(ctx context.Context, e *env.Env, args []string) error {
	flags := flag.NewFlagSet("load-image", flag.ContinueOnError)
	only := flags.String("cluster", "", "load into this cluster only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("load-image: want at least one image archive")
	}
	var clusters []string
	if *only != "" {
		clusters = []string{*only}
	}
	return e.LoadImage(ctx, clusters, flags.Args()...)
}

func kubeconfig(_ context.Context, e *env.Env, args []string) error {
	flags := flag.NewFlagSet("kubeconfig", flag.ContinueOnError)
	path := flags.Bool("path", false, "print the file's path instead")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *path {
		fmt.Println(e.Kubeconfig())
		return nil
	}
	text, err := e.KubeconfigOf(flags.Args()...)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}

func kubectl(_ context.Context, e *env.Env, args []string) error {
	if len(args) == 0 {
		return errors.New("kubectl: want the name of a cluster first")
	}
	if _, err := e.Cluster(args[0]); err != nil {
		return err
	}
	command := append([]string{"kubectl", "--kubeconfig", e.Kubeconfig(), "--context"}, args...)
	return fmt.Errorf("run kubectl: %w", syscall.Exec(e.Kubectl(), command, os.Environ()))
}

func enter(ctx context.Context, e *env.Env, args []string) error {
	if len(args) == 0 {
		return errors.New("exec: want the name of a cluster")
	}
	command := args[1:]
	if len(command) == 0 {
		command = []string{"/bin/bash"}
	}
	cmd, err := e.Command(ctx, args[0], command...)
	if err != nil {
		return err
	}
	return fmt.Errorf("run nsenter: %w", syscall.Exec(cmd.Path, cmd.Args, cmd.Env))
}
