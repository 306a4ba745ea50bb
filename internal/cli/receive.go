package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/standalone"
	"lifeboat.dev/lifeboat/internal/version"
)

type receiveOptions struct {
	identity, peer, group string
	epoch                 uint64
	listen, status        string
	spool, spoolLimit     string
	create                []string
	holds                 string
	json, verbose         bool
}

// newReceiveCommand is `lifeboat receive`: the target of `lifeboat replicate`.
func newReceiveCommand() *cobra.Command {
	var o receiveOptions
	cmd := &cobra.Command{
		Use:   "receive [NAME=]PATH... --listen ADDRESS",
		Short: "Keep replicas of another host's devices, files or folders, without Kubernetes",
		Long: `Receive serves one group: the sources that one command of lifeboat replicate brings, each to one path here, in the same
order (or under the same NAME=). It runs until SIGTERM or ^C; what a session brought so far stays, and the next one goes on.

A file that does not exist is made when the first source comes, as large as the source; --create SIZE makes it at once.
A replica always holds one whole recovery point, except during the very first copy.

Exit codes: 0 stopped; 1 failed; 2 wrong configuration.`,
		Example: "  lifeboat receive --listen :9100 /srv/replica/db.img\n" +
			"  lifeboat receive --listen :9100 --peer east --spool /var/spool/lifeboat data=/dev/vg0/data log=/dev/vg0/log",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return coded(runReceive(cmd, o, args)) },
	}
	f := cmd.Flags()
	groupFlags(cmd, &o.identity, &o.peer, &o.group, &o.epoch)
	f.StringVar(&o.listen, "listen", ":9100", "where sources connect, host:port or :port")
	f.StringVar(&o.status, "status", "", "where to answer for the state as JSON, to this host's own identity (empty: nowhere)")
	f.StringVar(&o.spool, "spool", "", "folder to keep changes in until they are whole (empty: beside the first path)")
	f.StringVar(&o.spoolLimit, "spool-limit", "", "most bytes the changes of one session may take there, such as 50Gi (empty: what the disk has)")
	f.StringSliceVar(&o.create, "create", nil, "size of files that do not exist yet, such as 10Gi; one for all or one for each path (empty: as the source's)")
	f.StringVar(&o.holds, "holds", string(engine.HoldsNothing), "what the paths hold before the first session: nothing, or data that stays as it is until a whole point has come")
	f.BoolVar(&o.json, "json", false, "one JSON object for each session")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "also say what the engine does")
	return cmd
}

// groupFlags adds the flags by which both sides of a replication know each other.
func groupFlags(cmd *cobra.Command, identity, peer, group *string, epoch *uint64) {
	f := cmd.Flags()
	identityFlag(f.StringVar, "identity", identity)
	f.StringVar(peer, "peer", "", "name of the other host (empty: the only one that is trusted)")
	f.StringVar(group, "group", "default", "what both hosts call this group of sources")
	f.Uint64Var(epoch, "epoch", 1, "the source's right to write: a target refuses sources with a lower one than it has seen")
}

func runReceive(cmd *cobra.Command, o receiveOptions, args []string) error {
	host, err := standalone.OpenHost(o.identity, time.Now)
	if err != nil {
		return err
	}
	members, err := parseMembers(args)
	if err != nil {
		return err
	}
	opt := standalone.ReceiverOptions{
		Host: host, Peer: o.peer, Group: o.group, Epoch: o.epoch, Members: members,
		Listen: o.listen, Status: o.status, Spool: o.spool, Holds: engine.Content(o.holds),
		Software: version.Software, Log: standaloneLog(cmd.ErrOrStderr(), o.verbose), Now: time.Now,
	}
	if o.spoolLimit != "" {
		if opt.SpoolLimit, err = parseSize("--spool-limit", o.spoolLimit); err != nil {
			return err
		}
	}
	for _, text := range o.create {
		size, err := parseSize("--create", text)
		if err != nil {
			return err
		}
		opt.Sizes = append(opt.Sizes, size)
	}
	printer := receivePrinter{out: cmd.OutOrStdout(), json: o.json}
	opt.Ready, opt.Observe = printer.ready, printer.visit
	r, err := standalone.NewReceiver(opt)
	if err != nil {
		return err
	}
	engine.Overlap()
	return r.Run(cmd.Context())
}

// receivePrinter prints a line when the target is ready and one for each session.
type receivePrinter struct {
	out  io.Writer
	json bool
}

func (p receivePrinter) ready(address string) {
	if p.json {
		printJSON(p.out, struct {
			Event   string `json:"event"`
			Address string `json:"address"`
		}{"ready", address})
		return
	}
	_, _ = fmt.Fprintf(p.out, "ready at %s\n", address)
}

func (p receivePrinter) visit(v standalone.Visit) {
	if p.json {
		printJSON(p.out, struct {
			Event string `json:"event"`
			standalone.Visit
		}{"session", v})
		return
	}
	line := fmt.Sprintf("%s from %s: %s", v.Time.Format(time.DateTime), v.From, v.Outcome)
	if v.Point != "" {
		line += " " + v.Point
	}
	line += fmt.Sprintf(", %s received in %s", humanBytes(v.Bytes), seconds(v.Seconds))
	if v.Tier != "" {
		line += fmt.Sprintf(", tier %s: %s", v.Tier, v.Reason)
	}
	if v.Error != "" {
		line += ": " + v.Error
	}
	_, _ = fmt.Fprintln(p.out, line)
}

func printJSON(out io.Writer, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		raw, _ = json.Marshal(map[string]string{"event": "error", "error": err.Error()})
	}
	_, _ = fmt.Fprintf(out, "%s\n", raw)
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond).String()
}

// memberName is what may stand before a = in an argument; a path with a folder in it never fits.
var memberName = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]*$`)

// parseMembers reads [NAME=]PATH arguments. Without names, the two hosts' paths belong together by their order.
func parseMembers(args []string) ([]standalone.Member, error) {
	var out []standalone.Member
	for i, arg := range args {
		m := standalone.Member{Name: fmt.Sprintf("volume%d", i+1), Path: arg}
		if name, path, found := strings.Cut(arg, "="); found && memberName.MatchString(name) {
			m = standalone.Member{Name: name, Path: path}
		}
		if m.Path == "" {
			return nil, &engine.ConfigError{Field: "path", Found: fmt.Sprintf("%q", arg), Want: "give a device, file or folder, such as /srv/db.img or data=/srv/db.img"}
		}
		out = append(out, m)
	}
	return out, nil
}

// parseSize reads bytes such as 10Gi, 10GiB, 10G or 10737418240.
func parseSize(flag, text string) (int64, error) {
	q, err := resource.ParseQuantity(strings.TrimSuffix(text, "B"))
	if err != nil || q.Value() <= 0 {
		return 0, &engine.ConfigError{Field: flag, Found: fmt.Sprintf("%q", text), Want: "give bytes, such as 10Gi or 500M"}
	}
	return q.Value(), nil
}

// standaloneLog is quiet unless asked: what matters to a user is printed.
func standaloneLog(w io.Writer, verbose bool) *slog.Logger {
	if !verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w, nil))
}
