package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/endpoint"
	"lifeboat.dev/lifeboat/internal/link/pairing"
)

type pairOptions struct {
	context, peerContext string
	namespaces           []string
	gateways             map[string]string
	mode                 string
	replaceTrust         bool
	timeout              time.Duration
}

func newPairCommand() *cobra.Command {
	var o pairOptions
	cmd := &cobra.Command{
		Use:   "pair --context A --peer-context B --namespaces NS,...",
		Short: "Make two clusters trust each other and wait until they are connected",
		Long: "Pair carries the name, the gateway address and the CA certificate of each cluster to the other, and waits until both\n" +
			"managers have found each other. No key and no kubeconfig crosses. It may be run again at any time.",
		Example: "  lifeboat pair --context east --peer-context west --namespaces shop,billing\n" +
			"  lifeboat pair --context east --peer-context west --gateway-address west=203.0.113.7:9002",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runPair(cmd, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.context, "context", "", "kubeconfig context of one cluster")
	f.StringVar(&o.peerContext, "peer-context", "", "kubeconfig context of the other cluster")
	f.StringSliceVar(&o.namespaces, "namespaces", nil, `namespaces in which each cluster may act for the other; "*" is all but kube-* and lifeboat-system (empty: as they are)`)
	f.StringToStringVar(&o.gateways, "gateway-address", nil, "CONTEXT=HOST:PORT of a cluster's gateway as the other cluster reaches it (empty: as installed)")
	f.StringVar(&o.mode, "mode", "", "DisasterRecovery (changes only) or Default (every seventh scheduled session is a full one)")
	f.BoolVar(&o.replaceTrust, "replace-trust", false, "accept that a cluster has another CA than it was paired with")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to wait for the links")
	_ = cmd.MarkFlagRequired("context")
	_ = cmd.MarkFlagRequired("peer-context")
	return cmd
}

func runPair(cmd *cobra.Command, o pairOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	sides := [2]pairing.Side{{Context: o.context}, {Context: o.peerContext}}
	for i := range sides {
		c, err := kubeClient(sides[i].Context)
		if err != nil {
			return err
		}
		sides[i].Client = c
		sides[i].GatewayAddress = o.gateways[sides[i].Context]
	}
	out := cmd.OutOrStdout()
	result, err := pairing.Pair(cmd.Context(), sides[0], sides[1], pairing.Options{
		Namespaces: o.namespaces, Mode: v1alpha1.PairMode(o.mode), ReplaceTrust: o.replaceTrust, Timeout: o.timeout,
		Progress: func(line string) { _, _ = fmt.Fprintln(out, line) },
	})
	if err != nil {
		return err
	}
	printPairs(out, result)
	return nil
}

// check refuses bad options, naming the flag and what it found.
func (o pairOptions) check() error {
	if o.context == o.peerContext {
		return fmt.Errorf("--context and --peer-context are both %q: give the contexts of two clusters", o.context)
	}
	for name, address := range o.gateways {
		if name != o.context && name != o.peerContext {
			return fmt.Errorf("--gateway-address %s=%s: %q is neither --context %q nor --peer-context %q", name, address, name, o.context, o.peerContext)
		}
		if _, err := endpoint.Parse(address); err != nil {
			return fmt.Errorf("--gateway-address %s=%s: %w", name, address, err)
		}
	}
	switch v1alpha1.PairMode(o.mode) {
	case "", v1alpha1.PairModeDisasterRecovery, v1alpha1.PairModeDefault:
	default:
		return fmt.Errorf("--mode %q: give DisasterRecovery or Default", o.mode)
	}
	if o.timeout <= 0 {
		return errors.New("--timeout must be more than 0")
	}
	return nil
}

func printPairs(out io.Writer, r pairing.Result) {
	for i, pair := range r.Pairs {
		allowed := "nowhere yet: give --namespaces"
		if len(pair.Spec.Namespaces) > 0 {
			allowed = "in " + strings.Join(pair.Spec.Namespaces, ", ")
		}
		roundTrip := time.Duration(pair.Status.RoundTripMicroseconds) * time.Microsecond
		_, _ = fmt.Fprintf(out, "%s -> %s: %s, round trip %s, %s runs Lifeboat %s; %s may act here %s\n",
			r.Names[i], r.Names[1-i], pair.Status.LinkState, roundTrip, r.Names[1-i], pair.Status.PeerVersion, r.Names[1-i], allowed)
	}
}
