// Command bench measures the replication engine against what the machine's own tools reach in the same run,
// alternating, and prints medians and ratios. Its last lines are for scripts: "ratio NAME VALUE", our time
// over theirs, below 1 is faster.
//
// It runs the engine as two processes over TLS on loopback, as pods do. Nothing here is a test: figures of a
// shared machine vary by a third and more, so only ratios of one run mean anything.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	lifeboat, dir string
	size          int64
	pairs         int
	source        string
	rows          []row
}

// row is one comparison: the times of each pair, in order.
type row struct {
	name         string
	ours, theirs []time.Duration
	note         string
}

func run() error {
	b := bench{}
	flag.StringVar(&b.lifeboat, "lifeboat", "bin/lifeboat", "the lifeboat binary")
	flag.StringVar(&b.dir, "dir", "", "folder on the file system to measure (empty: a temporary one)")
	flag.Int64Var(&b.size, "size", 1<<30, "bytes of the volume")
	flag.IntVar(&b.pairs, "pairs", 5, "pairs of each comparison")
	flag.Parse()
	if b.dir == "" {
		dir, err := os.MkdirTemp("", "lifeboat-bench")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		b.dir = dir
	}
	b.source = filepath.Join(b.dir, "source.img")
	for _, c := range []func() error{b.fullRandom, b.digest} {
		if err := c(); err != nil {
			return err
		}
	}
	return b.print(os.Stdout)
}

// fullRandom is a first copy of incompressible data that is not in the page cache, against cp and a sync.
func (b *bench) fullRandom() error {
	if err := writeRandom(b.source, b.size, 1); err != nil {
		return err
	}
	r := row{name: "full-random-cold/cp"}
	for range b.pairs {
		if err := b.fresh(); err != nil {
			return err
		}
		ours, report, err := b.session("first")
		if err != nil {
			return err
		}
		r.ours, r.note = append(r.ours, ours), fmt.Sprintf("%s, %d bytes sent", report.Tier, report.BytesSent)
		if err := b.cool(); err != nil {
			return err
		}
		began := time.Now()
		if err := command("sh", "-c", fmt.Sprintf("cp --reflink=never %s %s && sync %s", b.source, b.path("copy.img"), b.path("copy.img"))); err != nil {
			return err
		}
		r.theirs = append(r.theirs, time.Since(began))
		if err := command("cmp", b.source, b.path("replica.img")); err != nil {
			return fmt.Errorf("the replica differs from its source: %w", err)
		}
	}
	b.rows = append(b.rows, r)
	return nil
}

// digest is a later session after 1 % changed, against one direct read of the volume.
func (b *bench) digest() error {
	if err := b.fresh(); err != nil {
		return err
	}
	if _, _, err := b.session("base"); err != nil {
		return err
	}
	r := row{name: "delta1pct-digest/read"}
	for i := range b.pairs {
		if err := change(b.source, b.size, uint64(i)); err != nil {
			return err
		}
		if err := b.cool(); err != nil {
			return err
		}
		ours, report, err := b.session(fmt.Sprintf("delta-%d", i))
		if err != nil {
			return err
		}
		r.ours, r.note = append(r.ours, ours), fmt.Sprintf("%s, %d bytes changed", report.Tier, report.BytesChanged)
		if err := b.cool(); err != nil {
			return err
		}
		began := time.Now()
		if err := command("dd", "if="+b.source, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"); err != nil {
			return err
		}
		r.theirs = append(r.theirs, time.Since(began))
		if err := command("cmp", b.source, b.path("replica.img")); err != nil {
			return fmt.Errorf("the replica differs from its source: %w", err)
		}
	}
	b.rows = append(b.rows, r)
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// fresh forgets the target and empties the page cache.
func (b *bench) fresh() error {
	for _, name := range []string{"replica.img", "copy.img", "spool"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	f, err := os.Create(b.path("replica.img"))
	if err != nil {
		return err
	}
	if err := f.Truncate(b.size); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return b.cool()
}

func (b *bench) cool() error {
	return command("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")
}

// session runs one session between two processes and returns how long the source took, process start included.
func (b *bench) session(point string) (time.Duration, *engine.Report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	now := time.Now()
	east, west, err := identities(b.dir, now)
	if err != nil {
		return 0, nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return 0, nil, err
	}
	target := engine.TargetConfig{
		Replication: "bench/volume", Epoch: 1, Volumes: []engine.TargetVolume{{Name: "volume", Device: b.path("replica.img")}},
		Spool: b.path("spool"), Listen: address, IdentityDir: west, PeerIdentity: identity.ReplicationURI("east", "bench", "volume"),
	}
	stop, err := b.start(ctx, target, address)
	if err != nil {
		return 0, nil, err
	}
	defer stop()
	source := engine.SourceConfig{
		Replication: "bench/volume", Epoch: 1, Point: point, PointTime: now.UTC(), Volumes: []engine.SourceVolume{{Name: "volume", Device: b.source}},
		Address: address, ServerName: identity.ReceiverServerName("bench", "volume"), IdentityDir: east,
		PeerIdentity: identity.ReplicationURI("west", "bench", "volume"), TerminationLog: b.path("report.json"),
	}
	config, err := writeConfig(b.path("source.json"), source)
	if err != nil {
		return 0, nil, err
	}
	began := time.Now()
	if err := command(b.lifeboat, "mover", "source", "--config", config); err != nil {
		return 0, nil, err
	}
	took := time.Since(began)
	text, err := os.ReadFile(b.path("report.json"))
	if err != nil {
		return 0, nil, err
	}
	var report engine.Report
	return took, &report, json.Unmarshal(text, &report)
}

// start runs a target until stop and returns once it accepts connections.
func (b *bench) start(ctx context.Context, c engine.TargetConfig, address string) (stop func(), err error) {
	config, err := writeConfig(b.path("target.json"), c)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Spool, 0o755); err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.lifeboat, "mover", "target", "--config", config)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-ended
	}
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			return stop, conn.Close()
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("the target ended: %w\n%s", err, stderr.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func identities(dir string, now time.Time) (east, west string, err error) {
	cas := map[string]*identity.CA{}
	for _, cluster := range []string{"east", "west"} {
		if cas[cluster], err = identity.NewCA(cluster, now); err != nil {
			return "", "", err
		}
	}
	write := func(cluster, peer string) (string, error) {
		data, _, err := identity.IssueMoverSecretData(cas[cluster], cluster, "bench", "volume", cas[peer].CertPEM(), now)
		if err != nil {
			return "", err
		}
		folder := filepath.Join(dir, "identity-"+cluster)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return "", err
		}
		for name, pem := range data {
			if err := os.WriteFile(filepath.Join(folder, name), pem, 0o600); err != nil {
				return "", err
			}
		}
		return folder, nil
	}
	if east, err = write("east", "west"); err != nil {
		return "", "", err
	}
	west, err = write("west", "east")
	return east, west, err
}

func writeConfig(path string, c any) (string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, text, 0o600)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %s: %w", name, strings.TrimSpace(string(out)), err)
	}
	return nil
}

// writeRandom makes a file of bytes that nothing compresses.
func writeRandom(path string, size int64, seed uint64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{byte(seed)}), size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// change writes 1 % of the file anew, in pieces of 4 to 64 KiB at places that differ by seed.
func change(path string, size int64, seed uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	places := rand.New(rand.NewPCG(seed, 7))
	content := rand.NewChaCha8([32]byte{byte(seed), 1})
	piece := make([]byte, 64<<10)
	for left := size / 100; left > 0; {
		n := int64(4<<10) * (1 + places.Int64N(16))
		if _, err := content.Read(piece[:n]); err != nil {
			return err
		}
		if _, err := f.WriteAt(piece[:n], places.Int64N((size-n)/4096)*4096); err != nil {
			return err
		}
		left -= n
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func (b *bench) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "medians of %d pairs, volume of %d bytes\n", b.pairs, b.size)
	fmt.Fprintln(w, "comparison\tours\ttheirs\tratio\tnote\t")
	for _, r := range b.rows {
		fmt.Fprintf(w, "%s\t%.2f s\t%.2f s\t%.2f\t%s\t\n", r.name, median(r.ours).Seconds(), median(r.theirs).Seconds(), r.ratio(), r.note)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range b.rows {
		fmt.Fprintf(out, "ratio %s %.3f\n", r.name, r.ratio())
	}
	return nil
}

// ratio is the median of the pairs' ratios: noise that slows a whole pair cancels.
func (r row) ratio() float64 {
	ratios := make([]float64, len(r.ours))
	for i := range r.ours {
		ratios[i] = r.ours[i].Seconds() / r.theirs[i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
