package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

func newStatusCommand() *cobra.Command {
	var contexts []string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "One screen: pairs, plans, replications, how far behind they are, what waits and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(contexts) == 0 {
				contexts = []string{""}
			}
			for _, name := range contexts {
				c, err := kubeClient(name)
				if err != nil {
					return err
				}
				if err := printStatus(cmd.Context(), c, name, time.Now(), cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&contexts, "context", nil, "kubeconfig contexts to show, in order (empty: the current one)")
	return cmd
}

// printStatus writes one cluster's screen. What could not be read is said, not left out.
func printStatus(ctx context.Context, c client.Client, name string, now time.Time, out io.Writer) error {
	var pairs v1alpha1.ClusterPairList
	var plans v1alpha1.DisasterRecoveryPlanList
	var replications v1alpha1.ReplicationList
	for _, list := range []client.ObjectList{&pairs, &plans, &replications} {
		if err := c.List(ctx, list); err != nil {
			return fmt.Errorf("read the status of context %q: %w", name, err)
		}
	}
	fmt.Fprintf(out, "CLUSTER %s\n", orDash(name))
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "  PAIR\tLINK\tLAST HEARTBEAT\tROUND TRIP\tPEER VERSION\tWHY")
	for i := range pairs.Items {
		p := &pairs.Items[i]
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", p.Spec.PeerCluster, orDash(string(p.Status.LinkState)), age(now, p.Status.LastHeartbeat),
			time.Duration(p.Status.RoundTripMicroseconds)*time.Microsecond, orDash(p.Status.PeerVersion), whyNot(p.Status.Conditions, v1alpha1.ConditionConnected))
	}
	fmt.Fprintln(w, "  \n  PLAN\tPRIMARY\tWANTED\tPHASE\tSTEP\tEPOCH\tWHY")
	for i := range plans.Items {
		p := &plans.Items[i]
		fmt.Fprintf(w, "  %s/%s\t%s\t%s\t%s\t%s\t%d\t%s\n", p.Namespace, p.Name, orDash(p.Status.PrimaryCluster), p.Spec.PrimaryCluster,
			orDash(p.Status.Phase), orDash(string(p.Status.Step)), p.Status.Epoch, planWhy(p, now))
	}
	fmt.Fprintln(w, "  \n  REPLICATION\tLINK\tROLE\tPHASE\tRECOVERY POINT\tLAG\tLAST SESSION\tNEXT\tWHY")
	for i := range replications.Items {
		printReplication(w, &replications.Items[i], now)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return nil
}

func printReplication(w io.Writer, r *v1alpha1.Replication, now time.Time) {
	links := r.Status.Rlinks
	if len(links) == 0 {
		links = []v1alpha1.RlinkStatus{{}}
	}
	for i := range links {
		l := &links[i]
		phase := l.Phase
		if phase == "" {
			phase = r.Status.Phase
		}
		fmt.Fprintf(w, "  %s/%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Namespace, r.Name, orDash(l.RlinkName), orDash(string(r.Status.Role)), orDash(phase),
			pointName(l.RecoveryPoint), lag(l, now), lastSession(l), until(now, l.NextRun), replicationWhy(r, l))
	}
}

func pointName(p *v1alpha1.RecoveryPoint) string {
	if p == nil {
		return "none yet"
	}
	return p.Point
}

// lag is how much would be lost if the source ended now: the age of the newest committed instant.
func lag(l *v1alpha1.RlinkStatus, now time.Time) string {
	if l.RecoveryPoint == nil {
		return "-"
	}
	return age(now, &l.RecoveryPoint.Time)
}

func lastSession(l *v1alpha1.RlinkStatus) string {
	s := l.LastSession
	if s == nil {
		return "-"
	}
	if s.Result != "Committed" {
		return s.Result
	}
	return fmt.Sprintf("%s %s sent in %.1f s", s.Tier, humanBytes(s.BytesSent), s.FinishedAt.Sub(s.StartedAt.Time).Seconds())
}

func replicationWhy(r *v1alpha1.Replication, l *v1alpha1.RlinkStatus) string {
	if s := l.Session; s != nil {
		return strings.TrimSpace(fmt.Sprintf("%s %d%% %s/s %s", s.Phase, s.Percent, humanBytes(s.BytesPerSecond), s.Message))
	}
	if l.WaitingFor != "" {
		return l.WaitingFor
	}
	return whyNot(r.Status.Conditions, v1alpha1.ConditionReady)
}

func planWhy(p *v1alpha1.DisasterRecoveryPlan, now time.Time) string {
	why := p.Status.Message
	if p.Status.WaitingSince != nil {
		why += " (for " + age(now, p.Status.WaitingSince) + ")"
	}
	if why == "" {
		return whyNot(p.Status.Conditions, v1alpha1.ConditionReady)
	}
	return why
}

// whyNot is the message of a condition that is not True, "-" when it is True.
func whyNot(conditions []metav1.Condition, kind string) string {
	for _, c := range conditions {
		if c.Type == kind && c.Status != metav1.ConditionTrue {
			return c.Reason + ": " + c.Message
		}
		if c.Type == kind {
			return "-"
		}
	}
	return "not looked at yet"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func age(now time.Time, t *metav1.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

func until(now time.Time, t *metav1.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return "in " + duration.HumanDuration(t.Sub(now))
}

// humanBytes prints a count of bytes with a binary unit, three digits at most.
func humanBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for v >= 1000 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.3g %ciB", v, units[u])
}
