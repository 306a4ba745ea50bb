package cli

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

func newDemoCommand() *cobra.Command {
	var homeContext, awayContext, homeAddress, awayAddress string
	o := demo.Options{}
	cmd := &cobra.Command{
		Use:   "demo --context A --peer-context B",
		Short: "Watch a PostgreSQL under load move to the other cluster and home, losing nothing",
		Long: `Watch a PostgreSQL under load move to the other cluster and home, losing nothing.

Needs two paired clusters with Lifeboat, the image of PostgreSQL 15 in both, and psql, pgbench and
pg_amcheck 15 on this machine, which must reach a node port of both. Its last lines are for scripts:
"figure NAME VALUE". It ends with another code than 0 when an acknowledged commit is missing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Home, err = demoCluster(cmd, homeContext, homeAddress); err != nil {
				return err
			}
			if o.Away, err = demoCluster(cmd, awayContext, awayAddress); err != nil {
				return err
			}
			if o.Home.Name == o.Away.Name {
				return fmt.Errorf("contexts %q and %q are the same cluster %q", homeContext, awayContext, o.Home.Name)
			}
			o.Out = cmd.OutOrStdout()
			figures, err := demo.Run(cmd.Context(), o)
			figures.Print(o)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&homeContext, "context", "", "kubeconfig context where the database starts (empty: the current one)")
	f.StringVar(&awayContext, "peer-context", "", "kubeconfig context it moves to")
	f.StringVar(&homeAddress, "address", "", "address of a node of the first cluster (empty: from its node)")
	f.StringVar(&awayAddress, "peer-address", "", "address of a node of the second cluster (empty: from its node)")
	f.StringVar(&o.Namespace, "namespace", "lifeboat-demo", "namespace of the database; deleted first when it is there")
	f.StringVar(&o.Image, "image", "lifeboat-demo/postgres:15", "image of PostgreSQL 15")
	f.Int64Var(&o.User, "run-as-user", 0, "user the server runs as (0: the image's own; PostgreSQL refuses to run as root)")
	f.IntVar(&o.Scale, "scale", 70, "pgbench scale factor; 70 is about 1 GiB")
	f.StringVar(&o.VolumeSize, "volume-size", "3Gi", "size of the database's claim")
	f.StringVar(&o.StorageClass, "storage-class", "", "storage class of the claim (empty: the cluster's default)")
	f.IntVar(&o.Clients, "clients", 4, "clients of the load")
	f.IntVar(&o.Rate, "rate", 200, "transactions per second of the load")
	f.IntVar(&o.ScheduledSessions, "scheduled-sessions", 2, "scheduled sessions to wait for before the first move")
	f.StringVar(&o.WorkDir, "work-dir", filepath.Join(os.TempDir(), "lifeboat-demo"), "where pgbench's logs are kept")
	f.BoolVar(&o.Keep, "keep", false, "leave the database in place at the end")
	_ = cmd.MarkFlagRequired("peer-context")
	return cmd
}

// demoCluster opens a cluster and learns its Lifeboat name and, unless given, a node's address.
func demoCluster(cmd *cobra.Command, kubeContext, address string) (demo.Cluster, error) {
	c, err := kubeClient(kubeContext)
	if err != nil {
		return demo.Cluster{}, err
	}
	var cm corev1.ConfigMap
	if err := c.Get(cmd.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: "lifeboat-cluster"}, &cm); err != nil {
		return demo.Cluster{}, fmt.Errorf("context %q has no Lifeboat: install it with lifeboat install: %w", kubeContext, err)
	}
	if address == "" {
		if address, err = nodeAddress(cmd, c); err != nil {
			return demo.Cluster{}, fmt.Errorf("context %q: %w", kubeContext, err)
		}
	}
	return demo.Cluster{Name: cm.Data["name"], Client: c, Address: address}, nil
}

func nodeAddress(cmd *cobra.Command, c client.Client) (string, error) {
	var nodes corev1.NodeList
	if err := c.List(cmd.Context(), &nodes); err != nil {
		return "", fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && net.ParseIP(a.Address) != nil {
				return a.Address, nil
			}
		}
	}
	return "", fmt.Errorf("none of %d nodes has an internal address: give --address and --peer-address", len(nodes.Items))
}
