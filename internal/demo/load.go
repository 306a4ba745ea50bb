package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Database is a PostgreSQL server that may answer at any of several hosts.
type Database struct {
	// Hosts are tried in order; the first that answers is used.
	Hosts    []string
	Port     int
	Password string
}

// binDir is where Debian keeps the PostgreSQL programs that are not on the path.
const binDir = "/usr/lib/postgresql/15/bin"

func (d *Database) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if p, err := exec.LookPath(program); err == nil {
		program = p
	} else {
		program = filepath.Join(binDir, program)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	ports := strings.TrimSuffix(strings.Repeat(strconv.Itoa(d.Port)+",", len(d.Hosts)), ",")
	cmd.Env = append(os.Environ(),
		"PGHOST="+strings.Join(d.Hosts, ","), "PGPORT="+ports, "PGUSER=postgres", "PGDATABASE=postgres",
		"PGPASSWORD="+d.Password, "PGCONNECT_TIMEOUT=2", "PGSSLMODE=disable")
	return cmd
}

// connection makes a connection whose other end was cut off end within seconds instead of hanging.
const connection = "dbname=postgres keepalives_idle=3 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=5000"

// Query returns the unaligned text of a statement's result.
func (d *Database) Query(ctx context.Context, sql string) (string, error) {
	out, err := d.command(ctx, "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", connection, "-c", sql).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// WaitReady returns once the server answers a query.
func (d *Database) WaitReady(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	for {
		if _, last = d.Query(ctx, "SELECT 1"); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not answer at %s port %d after %s: %w", strings.Join(d.Hosts, " or "), d.Port, timeout, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Fill makes pgbench's tables and the table of noted commits.
func (d *Database) Fill(ctx context.Context, scale int) error {
	cmd := d.command(ctx, "pgbench", "-i", "-q", "-s", strconv.Itoa(scale), connection)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench -i: %s: %w", lastLine(string(out)), err)
	}
	_, err := d.Query(ctx, `CREATE EXTENSION IF NOT EXISTS amcheck;
		CREATE TABLE noted_commits (run int, client int, n int, PRIMARY KEY (run, client, n)); CHECKPOINT`)
	return err
}

// Load runs pgbench against the database again and again, and knows which commits it was told of.
//
// Each run has a number. Each transaction writes (run, client, n), n counting from 1 in each client; pgbench
// logs a line for each transaction that the server acknowledged. A client's first k lines therefore stand
// for its commits 1 to k. A run that loses its server ends, and the next begins.
type Load struct {
	*Database
	Dir           string
	Scale         int
	Clients, Rate int

	run    int
	cancel context.CancelFunc
	done   chan struct{}
}

// runSeconds is how long one pgbench lasts. Its log is only whole once it has ended by itself, so the load
// is stopped by starting no further run.
const runSeconds = 4

const script = `\set aid random(1, 100000 * :scale)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
\set n :n + 1
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO noted_commits (run, client, n) VALUES (:run, :client_id, :n);
END;
`

// Start begins the load in the background. Stop ends it.
func (l *Load) Start(ctx context.Context) error {
	if err := os.RemoveAll(l.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "script.sql"), []byte(script), 0o644); err != nil {
		return err
	}
	ctx, l.cancel = context.WithCancel(ctx)
	l.done = make(chan struct{})
	go l.keepRunning(ctx)
	return nil
}

// Stop starts no further run and returns when the present one has ended.
func (l *Load) Stop() {
	if l.cancel == nil {
		return
	}
	l.cancel()
	<-l.done
}

func (l *Load) keepRunning(ctx context.Context) {
	defer close(l.done)
	for ctx.Err() == nil {
		if host, ok := l.answering(ctx); ok {
			l.run++
			if l.once(l.run, host) == nil {
				continue
			}
		}
		// The database is on its way to the other cluster: nobody listens yet.
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answering is the host that takes connections. A node port without a pod behind it may leave a client without any
// answer for seconds, so the one that answers is looked for before pgbench opens its connections one by one.
func (l *Load) answering(ctx context.Context) (string, bool) {
	for _, host := range l.Hosts {
		d := net.Dialer{Timeout: 250 * time.Millisecond}
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(l.Port)))
		if err == nil {
			_ = conn.Close()
			return host, true
		}
	}
	return "", false
}

// once runs pgbench without the caller's context: killing it would lose the log of what was acknowledged.
func (l *Load) once(run int, host string) error {
	at := &Database{Hosts: []string{host}, Port: l.Port, Password: l.Password}
	cmd := at.command(context.Background(), "pgbench", "-n", "-f", "script.sql",
		"-c", strconv.Itoa(l.Clients), "-j", "1", "-R", strconv.Itoa(l.Rate), "-T", strconv.Itoa(runSeconds), "-s", strconv.Itoa(l.Scale),
		"-D", "run="+strconv.Itoa(run), "-D", "n=0", "--log", "--log-prefix=run"+strconv.Itoa(run), connection)
	cmd.Dir = l.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("pgbench run %d: %s: %w", run, lastLine(string(out)), err)
	}
	return nil
}

// Ack is a commit that the server acknowledged.
type Ack struct {
	Run, Client, N int
	At             time.Time
}

// Acks reads the logs of all ended runs, in the order of acknowledgement.
func (l *Load) Acks() ([]Ack, error) {
	files, err := filepath.Glob(filepath.Join(l.Dir, "run*.*"))
	if err != nil {
		return nil, err
	}
	var acks []Ack
	for _, file := range files {
		more, err := readLog(file)
		if err != nil {
			return nil, err
		}
		acks = append(acks, more...)
	}
	sort.Slice(acks, func(i, j int) bool { return acks[i].At.Before(acks[j].At) })
	return acks, nil
}

// readLog reads one per-transaction log of pgbench: "client transaction time script epoch microseconds [lag]".
func readLog(file string) ([]Ack, error) {
	name := filepath.Base(file)
	number, _, _ := strings.Cut(strings.TrimPrefix(name, "run"), ".")
	run, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("log %s is not named run<number>.<pid>", name)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var acks []Ack
	counted := map[int]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[2] == "failed" || fields[2] == "skipped" {
			continue
		}
		var v [3]int64
		for i, at := range []int{0, 4, 5} {
			if v[i], err = strconv.ParseInt(fields[at], 10, 64); err != nil {
				return nil, fmt.Errorf("log %s: %q: %w", name, lines.Text(), err)
			}
		}
		client := int(v[0])
		counted[client]++
		acks = append(acks, Ack{Run: run, Client: client, N: counted[client], At: time.Unix(v[1], v[2]*1000)})
	}
	return acks, lines.Err()
}

// Lost is how many of the acknowledged commits the database does not hold.
func (d *Database) Lost(ctx context.Context, acks []Ack) (int, error) {
	if len(acks) == 0 {
		return 0, errors.New("the load was told of no commit at all: nothing can be checked")
	}
	held, err := d.heldCommits(ctx)
	if err != nil {
		return 0, err
	}
	lost := 0
	for _, a := range acks {
		if !held[[3]int{a.Run, a.Client, a.N}] {
			lost++
		}
	}
	return lost, nil
}

func (d *Database) heldCommits(ctx context.Context) (map[[3]int]bool, error) {
	text, err := d.Query(ctx, "SELECT run || ' ' || client || ' ' || n FROM noted_commits")
	if err != nil {
		return nil, err
	}
	held := map[[3]int]bool{}
	for _, line := range strings.Split(text, "\n") {
		var k [3]int
		if _, err := fmt.Sscan(line, &k[0], &k[1], &k[2]); err != nil {
			return nil, fmt.Errorf("noted commit %q: %w", line, err)
		}
		held[k] = true
	}
	return held, nil
}

// LongestGap is the longest time without an acknowledged commit between from and to, and when it began.
func LongestGap(acks []Ack, from, to time.Time) (gap time.Duration, began time.Time) {
	var last time.Time
	for _, a := range acks {
		if !last.IsZero() && a.At.After(from) && last.Before(to) && a.At.Sub(last) > gap {
			gap, began = a.At.Sub(last), last
		}
		last = a.At
	}
	return gap, began
}

// Balanced reports whether pgbench's own invariant holds: accounts, tellers, branches and history add up to the same.
func (d *Database) Balanced(ctx context.Context) (bool, string, error) {
	text, err := d.Query(ctx, `SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' ||
		(SELECT sum(bbalance) FROM pgbench_branches) || ' ' || (SELECT coalesce(sum(delta), 0) FROM pgbench_history)`)
	if err != nil {
		return false, "", err
	}
	sums := strings.Fields(text)
	for _, s := range sums {
		if s != sums[0] {
			return false, text, nil
		}
	}
	return len(sums) == 4, text, nil
}

// Amcheck verifies every table and index page with pg_amcheck; complaints is empty when all is well.
func (d *Database) Amcheck(ctx context.Context) (complaints string, err error) {
	out, err := d.command(ctx, "pg_amcheck", "--heapallindexed", "-d", "postgres").CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strings.TrimSpace(string(out)), nil
	}
	return "", err
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
