package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// exitCheckFailed is the exit code of `lifeboat check` when a check failed; 1 says that it could not check at all.
const exitCheckFailed = 2

type checkOptions struct {
	contexts    []string
	peerContext string
	asJSON      bool
	timeout     time.Duration
}

// finding is one check of one cluster, as it is printed.
type finding struct {
	// Cluster it was made from, Peer the one it was about; Peer is empty where only one is.
	Cluster string                `json:"cluster"`
	Peer    string                `json:"peer,omitempty"`
	Name    string                `json:"check"`
	About   string                `json:"about,omitempty"`
	Outcome v1alpha1.CheckOutcome `json:"outcome"`
	Message string                `json:"message,omitempty"`
}

// checked is a cluster that is looked at.
type checked struct {
	context string
	name    string
	client  client.Client
}

func newCheckCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check --context A,B",
		Short: "Check two clusters, the way between them, and every replication, from inside both",
		Long: "Check looks at Lifeboat and storage in both clusters, asks both managers to try every way to the other cluster from inside their\n" +
			"own, and compares the two sides of every replication. One line per check says what was found and what to do.\n\n" +
			"Exit codes: 0 all is well; 2 a check failed; 1 it could not be checked.",
		Example: "  lifeboat check --context east,west\n  lifeboat check --context east --peer-context west --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := o.names()
			if err != nil {
				return err
			}
			var sides [2]checked
			for i, name := range names {
				c, err := kubeClient(name)
				if err != nil {
					return err
				}
				sides[i] = checked{context: name, client: c}
			}
			return runCheck(cmd.Context(), sides, o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.contexts, "context", nil, "kubeconfig contexts of the two clusters, or of one with --peer-context")
	f.StringVar(&o.peerContext, "peer-context", "", "kubeconfig context of the other cluster")
	f.BoolVar(&o.asJSON, "json", false, "print a JSON list of checks")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait for each manager's answer")
	_ = cmd.MarkFlagRequired("context")
	return cmd
}

func (o checkOptions) names() ([]string, error) {
	names := slices.Clone(o.contexts)
	if o.peerContext != "" {
		names = append(names, o.peerContext)
	}
	if len(names) != 2 || names[0] == names[1] || names[0] == "" || names[1] == "" {
		return nil, fmt.Errorf("give the contexts of two clusters, as --context east,west; found %d: %s", len(names), strings.Join(names, ", "))
	}
	return names, nil
}

func runCheck(ctx context.Context, sides [2]checked, o checkOptions, out io.Writer) error {
	for i := range sides {
		name, err := clusterName(ctx, sides[i].client)
		if err != nil {
			return fmt.Errorf("context %s: %w", sides[i].context, err)
		}
		sides[i].name = name
	}
	if sides[0].name == sides[1].name {
		return fmt.Errorf("the contexts %s and %s are both cluster %s: give two clusters", sides[0].context, sides[1].context, sides[0].name)
	}
	var all []finding
	show := func(findings ...finding) {
		all = append(all, findings...)
		if !o.asJSON {
			printFindings(out, findings)
		}
	}
	for i, s := range sides {
		show(checkCluster(ctx, s)...)
		show(checkWay(ctx, s, sides[1-i].name, o.timeout)...)
	}
	show(checkReplications(ctx, sides)...)
	if o.asJSON {
		raw, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(out, string(raw))
	}
	bad := 0
	for _, f := range all {
		if f.Outcome == v1alpha1.CheckFailed {
			bad++
		}
	}
	if bad > 0 {
		return &exitError{exitCheckFailed, fmt.Errorf("%d of %d checks failed", bad, len(all))}
	}
	return nil
}

func clusterName(ctx context.Context, c client.Client) (string, error) {
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: clusterConfigMap}
	if err := c.Get(ctx, key, &cm); err != nil {
		return "", fmt.Errorf("read ConfigMap %s, which lifeboat install makes: %w", key, err)
	}
	if cm.Data["name"] == "" {
		return "", fmt.Errorf("ConfigMap %s has no name: run lifeboat install", key)
	}
	return cm.Data["name"], nil
}

func printFindings(out io.Writer, findings []finding) {
	words := map[v1alpha1.CheckOutcome]string{v1alpha1.CheckPassed: "ok  ", v1alpha1.CheckFailed: "FAIL", v1alpha1.CheckSkipped: "skip"}
	for _, f := range findings {
		where := f.Cluster
		if f.Peer != "" {
			where += " -> " + f.Peer
		}
		about := ""
		if f.About != "" {
			about = " " + f.About
		}
		fmt.Fprintf(out, "%s  %-16s %s%s: %s\n", words[f.Outcome], where, f.Name, about, f.Message)
	}
}

// checkWay asks a cluster's manager to try every way to the peer from inside.
func checkWay(ctx context.Context, s checked, peer string, timeout time.Duration) []finding {
	say := func(outcome v1alpha1.CheckOutcome, format string, args ...any) []finding {
		return []finding{{Cluster: s.name, Peer: peer, Name: "pair", Outcome: outcome, Message: fmt.Sprintf(format, args...)}}
	}
	var pairs v1alpha1.ClusterPairList
	if err := s.client.List(ctx, &pairs); err != nil {
		return say(v1alpha1.CheckFailed, "the ClusterPairs cannot be read: %v", err)
	}
	i := slices.IndexFunc(pairs.Items, func(p v1alpha1.ClusterPair) bool { return p.Spec.PeerCluster == peer })
	if i < 0 {
		return say(v1alpha1.CheckFailed, "there is no ClusterPair for cluster %s: run lifeboat pair", peer)
	}
	pair := &pairs.Items[i]
	before := pair.DeepCopy()
	pair.Spec.CheckNow = time.Now().UTC().Format(time.RFC3339Nano)
	asked := pair.Spec.CheckNow
	if err := s.client.Patch(ctx, pair, client.MergeFrom(before)); err != nil {
		return say(v1alpha1.CheckFailed, "the manager cannot be asked (spec.checkNow of ClusterPair %s): %v", pair.Name, err)
	}
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(pair), pair); err != nil {
			return false, err
		}
		return pair.Status.Check != nil && pair.Status.Check.CheckNow == asked, nil
	})
	switch {
	case wait.Interrupted(err) || errors.Is(err, context.DeadlineExceeded):
		return say(v1alpha1.CheckFailed, "the manager of cluster %s has not answered within %s: see Deployment %s/lifeboat-manager there", s.name, timeout, v1alpha1.SystemNamespace)
	case err != nil:
		return say(v1alpha1.CheckFailed, "ClusterPair %s cannot be read: %v", pair.Name, err)
	}
	var out []finding
	for _, r := range pair.Status.Check.Results {
		out = append(out, finding{Cluster: s.name, Peer: peer, Name: r.Name, About: r.About, Outcome: r.Outcome, Message: r.Message})
	}
	return out
}
