package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Exit codes of migrate. Scripts branch on them.
const (
	exitMoveEndedElsewhere = 4
	exitMoveTimeout        = 5
)

func newMigrateCommand() *cobra.Command {
	var kubeContext, peerContext, namespace, to string
	var timeout time.Duration
	var noWait bool
	cmd := &cobra.Command{
		Use:   "migrate PLAN --to CLUSTER",
		Short: "Move an application to another cluster, with nothing lost",
		Long: `Move an application to another cluster, with nothing lost.

The edit is made on the cluster where the application runs now. Before the handover the move can be
taken back with --to and the present cluster's name; any failure before it takes itself back.

Exit codes: 0 moved; 4 the move was aborted or rolled back and the application runs where it ran;
5 --timeout passed while the move goes on; 1 any other failure.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := kubeClient(kubeContext)
			if err != nil {
				return err
			}
			var peer client.Client
			if peerContext != "" {
				if peer, err = kubeClient(peerContext); err != nil {
					return err
				}
			}
			key := client.ObjectKey{Namespace: namespace, Name: args[0]}
			return migrate(cmd.Context(), c, peer, key, to, noWait, timeout, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeContext, "context", "", "kubeconfig context of the cluster where the application runs (empty: the current one)")
	f.StringVar(&peerContext, "peer-context", "", "kubeconfig context of the other cluster, to show its steps too")
	f.StringVarP(&namespace, "namespace", "n", "default", "namespace of the plan")
	f.StringVar(&to, "to", "", "cluster the application shall run on")
	f.DurationVar(&timeout, "timeout", 30*time.Minute, "how long to follow the move; it goes on when the time is up")
	f.BoolVar(&noWait, "no-wait", false, "return once the move is asked for")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// migrate asks for the move and follows it to its end. peer may be nil.
func migrate(ctx context.Context, c, peer client.Client, key client.ObjectKey, to string, noWait bool, timeout time.Duration, out io.Writer) error {
	asked, err := askForMove(ctx, c, key, to)
	if err != nil || noWait {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	f := follower{out: out, shown: map[string]bool{}}
	for {
		done, err := f.look(ctx, c, peer, key, to, asked)
		if done || (err != nil && ctx.Err() == nil) {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &exitError{exitMoveTimeout, fmt.Errorf("plan %s is still on its way to %s after %s (%s); it goes on: look with lifeboat status", key, to, timeout, f.last)}
			}
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// askForMove edits spec.primaryCluster and returns the number of operations the plan had ended before.
func askForMove(ctx context.Context, c client.Client, key client.ObjectKey, to string) (*v1alpha1.DisasterRecoveryPlan, error) {
	var plan v1alpha1.DisasterRecoveryPlan
	if err := c.Get(ctx, key, &plan); err != nil {
		return nil, fmt.Errorf("plan %s: %w", key, err)
	}
	before := plan.DeepCopy()
	plan.Spec.PrimaryCluster = to
	if err := c.Patch(ctx, &plan, client.MergeFrom(before)); err != nil {
		return nil, fmt.Errorf("ask plan %s to move to %s: %w", key, to, err)
	}
	return before, nil
}

// follower prints each step of a move once, as it ends.
type follower struct {
	out   io.Writer
	shown map[string]bool
	last  string
}

func (f *follower) look(ctx context.Context, c, peer client.Client, key client.ObjectKey, to string, asked *v1alpha1.DisasterRecoveryPlan) (bool, error) {
	var plan v1alpha1.DisasterRecoveryPlan
	if err := c.Get(ctx, key, &plan); err != nil {
		if apierrors.IsNotFound(err) {
			return true, fmt.Errorf("plan %s was deleted while it moved", key)
		}
		f.say("the API server does not answer: %v", err)
		return false, nil
	}
	f.steps(plan.Status.Operation)
	if peer != nil {
		var other v1alpha1.DisasterRecoveryPlan
		if err := peer.Get(ctx, key, &other); err == nil {
			f.steps(other.Status.Operation)
		}
	}
	if ended := endedSince(asked, &plan); ended != nil {
		f.reported(ended)
		if ended.Result != "Completed" {
			return true, &exitError{exitMoveEndedElsewhere, fmt.Errorf("the move of %s to %s ended as %s: %s; the application runs on %s", key, to, ended.Result, ended.Message, plan.Status.PrimaryCluster)}
		}
	}
	if plan.Status.PrimaryCluster == to && plan.Status.Operation == nil {
		fmt.Fprintf(f.out, "%s runs on %s, epoch %d\n", key, to, plan.Status.Epoch)
		return true, nil
	}
	if m := plan.Status.Message; m != "" {
		f.say("%s: %s", plan.Status.Reason, m)
	}
	return false, nil
}

// endedSince is the newest ended operation when it was not there at the time of asking.
func endedSince(asked, now *v1alpha1.DisasterRecoveryPlan) *v1alpha1.OperationReport {
	if len(now.Status.History) == 0 {
		return nil
	}
	newest := &now.Status.History[0]
	if len(asked.Status.History) > 0 && asked.Status.History[0].ID == newest.ID {
		return nil
	}
	return newest
}

func (f *follower) reported(r *v1alpha1.OperationReport) {
	for i := range r.Steps {
		f.step(r.ID, &r.Steps[i])
	}
}

func (f *follower) steps(o *v1alpha1.Operation) {
	if o == nil {
		return
	}
	for i := range o.Steps {
		f.step(o.ID, &o.Steps[i])
	}
}

func (f *follower) step(id string, s *v1alpha1.StepRecord) {
	name := id + string(s.Name) + s.Cluster
	if s.FinishedAt == nil || f.shown[name] {
		return
	}
	f.shown[name] = true
	fmt.Fprintf(f.out, "%s  %-15s on %-10s %6.1f s  %s\n", s.FinishedAt.Format("15:04:05"), s.Name, s.Cluster, s.FinishedAt.Sub(s.StartedAt.Time).Seconds(), s.Message)
}

// say prints a message when it is another than the last one.
func (f *follower) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text == f.last {
		return
	}
	f.last = text
	fmt.Fprintf(f.out, "%s  ... %s\n", time.Now().Format("15:04:05"), text)
}
