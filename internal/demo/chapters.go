package demo

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// MakeRoom deletes what an earlier demo left behind, on both sides: plan, replication, group, namespace.
func (s *Story) MakeRoom(ctx context.Context) error {
	err := s.both(func(c Cluster) error {
		for _, o := range []client.Object{s.plan(), s.replication(), s.group()} {
			if err := c.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("delete %T: %w", o, err)
			}
		}
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}
		return client.IgnoreNotFound(c.Client.Delete(ctx, ns))
	})
	if err != nil {
		return err
	}
	return s.both(func(c Cluster) error {
		return poll(ctx, 3*time.Minute, func() (bool, string, error) {
			var ns corev1.Namespace
			err := c.Client.Get(ctx, client.ObjectKey{Name: s.Namespace}, &ns)
			if apierrors.IsNotFound(err) {
				return true, "", nil
			}
			return false, fmt.Sprintf("namespace %s is being deleted: %s", s.Namespace, NamespaceRemains(&ns)), err
		})
	})
}

// NamespaceRemains is what the cluster says still keeps a namespace that is being deleted.
func NamespaceRemains(ns *corev1.Namespace) string {
	var remains []string
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			remains = append(remains, c.Message)
		}
	}
	return strings.Join(remains, "; ")
}

// Protect makes PVCGroup, Replication and plan on the home cluster.
func (s *Story) Protect(ctx context.Context) error {
	for _, o := range []client.Object{s.group(), s.replication(), s.plan()} {
		if err := s.Home.Client.Create(ctx, o); err != nil {
			return fmt.Errorf("create %T %s: %w", o, o.GetName(), err)
		}
	}
	s.say("protected: PVCGroup, Replication and DisasterRecoveryPlan made on %s", s.Home.Name)
	return nil
}

// FirstSync waits until the first copy is committed and the plan says that the application is protected.
func (s *Story) FirstSync(ctx context.Context) error {
	began := time.Now()
	if err := s.WaitSessions(ctx, s.Home, 1, "first copy"); err != nil {
		return err
	}
	s.Figures.FirstSync = time.Since(began)
	return poll(ctx, 2*time.Minute, func() (bool, string, error) {
		p, err := s.Plan(ctx, s.Home)
		if err != nil {
			return false, "", err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionProtected {
				return c.Status == metav1.ConditionTrue, "plan: " + c.Message, nil
			}
		}
		return false, "plan: not looked at yet", nil
	})
}

// WaitScheduledSessions waits for as many as the options ask for.
func (s *Story) WaitScheduledSessions(ctx context.Context) error {
	if s.ScheduledSessions == 0 {
		return nil
	}
	s.say("waiting for %d scheduled sessions", s.ScheduledSessions)
	return s.WaitSessions(ctx, s.Home, 1+s.ScheduledSessions, "scheduled")
}

// WaitSessions returns once the source on c has n committed sessions to show, noting each as it appears.
func (s *Story) WaitSessions(ctx context.Context, c Cluster, n int, what string) error {
	return poll(ctx, 10*time.Minute, func() (bool, string, error) {
		r, err := s.Replication(ctx, c)
		if err != nil {
			return false, "", err
		}
		committed := s.noteSessions(c, r, what)
		return committed >= n, waitingFor(r), nil
	})
}

// noteSessions adds sessions not yet seen to the table and counts the committed ones of this source.
func (s *Story) noteSessions(c Cluster, r *v1alpha1.Replication, what string) int {
	if len(r.Status.Rlinks) == 0 {
		return 0
	}
	l := &r.Status.Rlinks[0]
	reports := append([]v1alpha1.SessionReport(nil), l.History...)
	if l.LastSession != nil && (len(reports) == 0 || reports[0].Point != l.LastSession.Point) {
		reports = append([]v1alpha1.SessionReport{*l.LastSession}, reports...)
	}
	committed := 0
	for i := len(reports) - 1; i >= 0; i-- {
		report := reports[i]
		if report.Result == "Committed" {
			committed++
		}
		if s.seen[c.Name+report.Point] {
			continue
		}
		s.seen[c.Name+report.Point] = true
		row := SessionRow{From: c.Name, What: what, Report: report}
		if l.RecoveryPoint != nil && l.RecoveryPoint.Point == report.Point {
			row.Lag = report.FinishedAt.Sub(l.RecoveryPoint.Time.Time)
		}
		s.Figures.Sessions = append(s.Figures.Sessions, row)
		s.say("session %s: %s, %s in %.1f s, %s read, %s changed, %s sent", report.Point, report.Result, report.Tier,
			report.FinishedAt.Sub(report.StartedAt.Time).Seconds(), mib(report.BytesRead), mib(report.BytesChanged), mib(report.BytesSent))
	}
	return committed
}

func (s *Story) migrateAway(ctx context.Context) error {
	took, downtime, err := s.Move(ctx, s.Home, s.Away)
	s.Figures.MigrateTime, s.Figures.DowntimeMigrate = took, downtime
	return err
}

func (s *Story) migrateHome(ctx context.Context) error {
	if err := s.WaitSessions(ctx, s.Away, 1, "reverse"); err != nil {
		return fmt.Errorf("reverse replication: %w", err)
	}
	took, downtime, err := s.Move(ctx, s.Away, s.Home)
	s.Figures.HomeTime, s.Figures.DowntimeHome = took, downtime
	return err
}

// Move edits the plan where the application runs and waits until it is served from the other side again.
func (s *Story) Move(ctx context.Context, from, to Cluster) (took, downtime time.Duration, err error) {
	s.say("moving from %s to %s", from.Name, to.Name)
	began := time.Now()
	var shown string
	if err := s.AskForMove(ctx, from, to); err != nil {
		return 0, 0, err
	}
	err = poll(ctx, 5*time.Minute, func() (bool, string, error) {
		p, err := s.Plan(ctx, from)
		if err != nil {
			return false, "", err
		}
		other, err := s.Plan(ctx, to)
		if err != nil {
			return false, "", err
		}
		if r, err := s.Replication(ctx, from); err == nil {
			s.noteSessions(from, r, "move to "+to.Name)
		}
		now := p.Status.Message
		if other.Status.Operation != nil {
			now = to.Name + ": " + other.Status.Message
		}
		if now != shown && now != "" {
			shown = now
			s.say("  %s", now)
		}
		if ended := p.Status.History; len(ended) > 0 && ended[0].StartedAt.After(began.Add(-2*time.Second)) && ended[0].Result != "Completed" {
			return false, "", fmt.Errorf("the move ended as %s: %s", ended[0].Result, ended[0].Message)
		}
		both := p.Status.PrimaryCluster == to.Name && other.Status.PrimaryCluster == to.Name
		return both && p.Status.Operation == nil && other.Status.Operation == nil, now, nil
	})
	if err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	downtime, err = s.downtime(ctx, began)
	if err != nil {
		return took, 0, err
	}
	s.say("moved to %s in %.1f s; the load was without its database for %.1f s", to.Name, took.Seconds(), downtime.Seconds())
	return took, downtime, nil
}

// AskForMove edits the plan on the cluster where the application runs.
func (s *Story) AskForMove(ctx context.Context, from, to Cluster) error {
	p, err := s.Plan(ctx, from)
	if err != nil {
		return err
	}
	before := p.DeepCopy()
	p.Spec.PrimaryCluster = to.Name
	return from.Client.Patch(ctx, p, client.MergeFrom(before))
}

// downtime waits until the load commits again and returns the longest gap between two acknowledged commits
// since began.
func (s *Story) downtime(ctx context.Context, began time.Time) (time.Duration, error) {
	served := time.Now()
	var gap time.Duration
	err := poll(ctx, 3*time.Minute, func() (bool, string, error) {
		acks, err := s.Load.Acks()
		if err != nil || len(acks) == 0 {
			return false, "no commit is logged", err
		}
		gap, _ = LongestGap(acks, began, time.Now())
		newest := acks[len(acks)-1].At
		return newest.After(served), "the load has not committed since the move", nil
	})
	return gap, err
}

// Check looks for every acknowledged commit and for damage.
func (s *Story) Check(ctx context.Context) error {
	s.Load.Stop()
	acks, err := s.Load.Acks()
	if err != nil {
		return err
	}
	db := s.Database()
	s.Figures.AckedCommits = len(acks)
	if s.Figures.LostCommits, err = db.Lost(ctx, acks); err != nil {
		return err
	}
	s.Figures.Checked = true
	balanced, sums, err := db.Balanced(ctx)
	if err != nil {
		return err
	}
	s.Figures.InconsistentSums = !balanced
	s.say("checking every page with pg_amcheck")
	if s.Figures.AmcheckComplaints, err = db.Amcheck(ctx); err != nil {
		return err
	}
	switch {
	case s.Figures.LostCommits > 0:
		return fmt.Errorf("%d of %d acknowledged commits are not in the database", s.Figures.LostCommits, len(acks))
	case !balanced:
		return fmt.Errorf("pgbench's tables do not add up: accounts, tellers, branches, history = %s", sums)
	case s.Figures.AmcheckComplaints != "":
		return fmt.Errorf("pg_amcheck complains: %s", s.Figures.AmcheckComplaints)
	}
	s.say("all %d acknowledged commits are there, pgbench's tables add up, pg_amcheck finds nothing", len(acks))
	return nil
}

// Plan reads a cluster's copy of the plan.
func (s *Story) Plan(ctx context.Context, c Cluster) (*v1alpha1.DisasterRecoveryPlan, error) {
	var p v1alpha1.DisasterRecoveryPlan
	err := c.Client.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: planName}, &p)
	return &p, err
}

// Replication reads a cluster's side of the replication.
func (s *Story) Replication(ctx context.Context, c Cluster) (*v1alpha1.Replication, error) {
	var r v1alpha1.Replication
	err := c.Client.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: replicationName}, &r)
	return &r, err
}

func waitingFor(r *v1alpha1.Replication) string {
	for _, c := range r.Status.Conditions {
		if c.Type == v1alpha1.ConditionReady && c.Status != metav1.ConditionTrue {
			return "replication: " + c.Message
		}
	}
	for _, l := range r.Status.Rlinks {
		if l.Session != nil {
			return fmt.Sprintf("session %s: %s %s", l.Session.Point, l.Session.Phase, l.Session.Message)
		}
		if l.WaitingFor != "" {
			return "replication: " + l.WaitingFor
		}
	}
	return "replication: " + r.Status.Phase
}

// poll asks until done, the time is up or an error comes. When the time is up the error says what was waited for.
func poll(ctx context.Context, timeout time.Duration, ask func() (done bool, state string, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		done, state, err := ask()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %s: %w", timeout, state, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Print writes the table and, last, the figures for scripts: "figure NAME VALUE".
func (f *Figures) Print(o Options) {
	w := tabwriter.NewWriter(o.Out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nsession\tfrom\twhy\ttier\tread\tchanged\tsent\ttime\tbehind at its end\t")
	for _, r := range f.Sessions {
		p := r.Report
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f s\t%s\t\n", p.Point, r.From, r.What, p.Tier, mib(p.BytesRead), mib(p.BytesChanged), mib(p.BytesSent),
			p.FinishedAt.Sub(p.StartedAt.Time).Seconds(), measured(r.Lag, "%.1f s"))
	}
	_ = w.Flush()
	f.explain(o.Out)
	fmt.Fprintf(o.Out, "\nmoved %s -> %s in %s, down %s; home in %s, down %s\n\n", o.Home.Name, o.Away.Name,
		measured(f.MigrateTime, "%.1f s"), measured(f.DowntimeMigrate, "%.1f s"), measured(f.HomeTime, "%.1f s"), measured(f.DowntimeHome, "%.1f s"))
	for _, figure := range []struct {
		name  string
		value any
	}{
		{"acked_commits", f.AckedCommits},
		{"lost_commits", f.lost()},
		{"first_sync_s", measured(f.FirstSync, "%.2f")},
		{"sessions", len(f.Sessions)},
		{"sessions_by_change_list", f.byTier(v1alpha1.TierCBT)},
		{"migrate_s", measured(f.MigrateTime, "%.2f")},
		{"home_s", measured(f.HomeTime, "%.2f")},
		{"downtime_migrate_s", measured(f.DowntimeMigrate, "%.2f")},
		{"downtime_home_s", measured(f.DowntimeHome, "%.2f")},
	} {
		fmt.Fprintf(o.Out, "figure %s %v\n", figure.name, figure.value)
	}
}

// point is the id of an instant, which makes the same reason look different in each session.
var point = regexp.MustCompile(`\d{8}t\d{6}-[0-9a-f]{6}`)

// explain tells of each way the changes were found why it was not a cheaper one, once for each reason.
func (f *Figures) explain(out io.Writer) {
	told := map[string]bool{}
	for _, r := range f.Sessions {
		why := fmt.Sprintf("%s: %s", r.Report.Tier, r.Report.TierReason)
		kind := point.ReplaceAllString(why, "")
		if r.Report.TierReason == "" || told[kind] {
			continue
		}
		if len(told) == 0 {
			fmt.Fprintln(out)
		}
		told[kind] = true
		fmt.Fprintln(out, why)
	}
}

// byTier counts the committed sessions of a tier.
func (f *Figures) byTier(tier v1alpha1.Tier) int {
	n := 0
	for _, r := range f.Sessions {
		if r.Report.Tier == tier && r.Report.Result == "Committed" {
			n++
		}
	}
	return n
}

// lost is how many commits are missing, or that nobody has looked: a story that ended early has no figure to show.
func (f *Figures) lost() string {
	if !f.Checked {
		return unknown
	}
	return strconv.Itoa(f.LostCommits)
}

const unknown = "unknown"

// measured prints seconds, or that they were not measured.
func measured(d time.Duration, format string) string {
	if d == 0 {
		return unknown
	}
	return fmt.Sprintf(format, d.Seconds())
}
