// Command bench measures the replication engine against what the machine's own tools reach in the same run, by turns,
// and prints medians and ratios. Its last lines are for scripts: "ratio NAME VALUE", our time over theirs, below 1 is
// faster. README.md tells what each row means and how to read noise.
//
// It runs the engine as two processes over TLS, as pods do, and its peers as their users would, all durable at the
// end. It lives in network and mount namespaces of its own: bytes on the wire can be counted, and nothing it mounts
// outlives it. It is no test: figures of a shared machine vary by a third and more, only ratios of one run mean
// anything.
//
// Begin with stages, the table of all work; then play, which takes turns; then measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	options
	self       string   // this program
	east, west string   // folders with identities
	leaving    []func() // undo what the present stage made, newest first
}

type options struct {
	lifeboat string
	dir      string
	rows     *regexp.Regexp
	size     int64
	files    int
	pairs    int
	patience time.Duration
	profile  string
	list     bool

	memorySize    int64
	memoryWritten int64
}

func run(args []string) error {
	if len(args) > 0 && args[0] == moverVerb {
		return runMover(args[1:])
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	b := &bench{options: o}
	chosen := wanted(b.stages(), o.rows)
	if len(chosen) == 0 {
		return fmt.Errorf("--rows %s: no row has such a name; --list shows them all", o.rows)
	}
	if o.list {
		list(os.Stdout, chosen)
		return nil
	}
	if !isolated() {
		return isolate(chosen)
	}
	return b.run(chosen)
}

// stages is all the work there is, in the order it is done.
func (b *bench) stages() []stage {
	return []stage{b.empty(), b.delta(), b.fullRandom(), b.fullText(), b.slowLink(), b.fullSparse(), b.archives(), b.small(), b.resume(), b.memory()}
}

func list(out io.Writer, chosen []stage) {
	for _, st := range chosen {
		for _, s := range st.scenes {
			for _, r := range s.rows {
				fmt.Fprintf(out, "%s\t%s\n", r.name, goal(r.goal))
			}
		}
	}
}

func parse(args []string) (options, error) {
	o := options{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	rows := flags.String("rows", "", "measure only rows whose name matches this regular expression (empty: all)")
	size, memorySize, memoryWritten := bytesFlag(4<<30), bytesFlag(1<<40), bytesFlag(0)
	flags.StringVar(&o.lifeboat, "lifeboat", "bin/lifeboat", "the lifeboat binary")
	flags.StringVar(&o.dir, "dir", "/var/tmp", "folder on the file system to measure; a folder of its own is made in it and removed")
	flags.Var(&size, "size", "size of volumes, such as 4GiB")
	flags.IntVar(&o.files, "files", 100_000, "how many small files")
	flags.IntVar(&o.pairs, "pairs", 5, "pairs of each comparison")
	flags.DurationVar(&o.patience, "patience", 15*time.Minute, "how long one run of one contender may take")
	flags.StringVar(&o.profile, "profile", "", "write CPU profiles of the movers to this folder; times are then not comparable")
	flags.BoolVar(&o.list, "list", false, "list rows and goals, and measure nothing")
	flags.Var(&memorySize, "memory-size", "size of the volume of the row about memory")
	flags.Var(&memoryWritten, "memory-written", "how much of it is written (0: 1 %)")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	pattern, err := regexp.Compile(*rows)
	if err != nil {
		return o, fmt.Errorf("--rows: %w", err)
	}
	o.rows, o.size, o.memorySize, o.memoryWritten = pattern, int64(size), int64(memorySize), int64(memoryWritten)
	if o.memoryWritten == 0 {
		o.memoryWritten = o.memorySize / 100
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q is not understood: all is said with flags, see --help", flags.Arg(0))
	case o.size < 16<<20 || o.size%(1<<20) != 0:
		return o, fmt.Errorf("--size is %d bytes: give whole MiB, at least 16MiB", o.size)
	case o.memorySize < 16<<20 || o.memoryWritten > o.memorySize:
		return o, fmt.Errorf("--memory-size is %d and --memory-written %d bytes: give at least 16MiB, and no more written than there is", o.memorySize, o.memoryWritten)
	case o.pairs < 1, o.files < 100:
		return o, fmt.Errorf("--pairs is %d and --files %d: give at least 1 and 100", o.pairs, o.files)
	}
	return o, nil
}

// run measures stage after stage. A scene that fails does not stop the others.
func (b *bench) run(chosen []stage) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), interrupts...)
	defer stop()
	if b.lifeboat, err = filepath.Abs(b.lifeboat); err != nil {
		return err
	}
	if _, err := os.Stat(b.lifeboat); err != nil {
		return fmt.Errorf("the lifeboat binary is missing, run make build: %w", err)
	}
	if b.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := loopbackUp(ctx); err != nil {
		return err
	}
	if b.profile != "" {
		if err := os.MkdirAll(b.profile, 0o755); err != nil {
			return fmt.Errorf("--profile: %w", err)
		}
	}
	if b.dir, err = os.MkdirTemp(b.dir, "lifeboat-bench-"); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	if b.east, b.west, err = identities(b.dir, time.Now()); err != nil {
		return err
	}
	b.head(os.Stdout)
	began := time.Now()
	var all []outcome
	for _, st := range chosen {
		b.perform(ctx, st, func(r result) {
			r.report(os.Stdout)
			b.say("%s: done in %v", r.scene.name, r.took.Round(time.Second))
			all = append(all, r.outcomes()...)
		})
		if ctx.Err() != nil {
			return errors.New("interrupted; what was made is put away")
		}
	}
	fmt.Printf("\n%d rows in %v\n", len(all), time.Since(began).Round(time.Second))
	if unmeasured := summary(os.Stdout, all); unmeasured > 0 {
		return fmt.Errorf("%d of %d rows were not measured; the tables say why", unmeasured, len(all))
	}
	return nil
}

func (b *bench) head(out *os.File) {
	kernel := unix.Utsname{}
	_ = unix.Uname(&kernel)
	fmt.Fprintf(out, "kernel %s, %d processors, volumes of %s, %d files, medians of %d pairs in %s\n",
		unix.ByteSliceToString(kernel.Release[:]), processors(), binary(b.size), b.files, b.pairs, filepath.Dir(b.dir))
	fmt.Fprintln(out, "CPU is user and system time of all processes of a contender; work of kernel threads (writeback, loop devices) is in nobody's.")
	fmt.Fprintln(out, "Wire is what passed the network device in both directions, with the headers of TCP and IP. Peak memory is the sum over its processes, page cache aside.")
	if b.profile != "" {
		fmt.Fprintln(out, "The movers write profiles: their times are not comparable.")
	}
}

// say tells the one who waits what goes on.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// enter begins a stage; what it returns ends it: everything it left is undone, newest first, and its files removed.
func (b *bench) enter() (leave func()) {
	outer, dir := b.leaving, b.dir
	b.leaving = nil
	b.dir = filepath.Join(dir, "stage")
	_ = os.MkdirAll(b.dir, 0o755)
	return func() {
		for i := len(b.leaving) - 1; i >= 0; i-- {
			b.leaving[i]()
		}
		if err := os.RemoveAll(b.dir); err != nil {
			b.say("put away: %v", err)
		}
		b.leaving, b.dir = outer, dir
	}
}

// leave remembers what to do at the end of the stage, whatever happens.
func (b *bench) leave(undo func()) { b.leaving = append(b.leaving, undo) }

// room refuses work that the disk has no room for; a tenth stays free for others.
func (b *bench) room(needs int64) error {
	var at unix.Statfs_t
	if err := unix.Statfs(b.dir, &at); err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	free := int64(at.Bavail) * at.Bsize
	if free < needs+needs/10 {
		return fmt.Errorf("%s has %s free and this needs %s: name a larger one with --dir, or less with --size", filepath.Dir(b.dir), binary(free), binary(needs+needs/10))
	}
	return nil
}

// settle writes everything back that anybody left dirty.
func (b *bench) settle() { unix.Sync() }
