package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
	"lifeboat.dev/lifeboat/internal/cli"
	"lifeboat.dev/lifeboat/internal/controller/applicationsnapshot"
	"lifeboat.dev/lifeboat/internal/controller/clusterpair"
	"lifeboat.dev/lifeboat/internal/controller/plan"
	"lifeboat.dev/lifeboat/internal/controller/pvcgroup"
	"lifeboat.dev/lifeboat/internal/controller/replication"
	"lifeboat.dev/lifeboat/internal/controller/schedulepolicy"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/scrape"
	"lifeboat.dev/lifeboat/internal/store/secrets"
	"lifeboat.dev/lifeboat/internal/version"
	"lifeboat.dev/lifeboat/internal/watched"
)

// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=lifeboat-system,resources=leases,verbs=get;create;update
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch

type managerOptions struct {
	cluster, image           string
	moverPriority            string
	control, health, metrics string
	leaderElection           bool
	maxSessions              int
}

func newManagerCommand() *cobra.Command {
	o := managerOptions{}
	cmd := &cobra.Command{
		Use:     "manager",
		Short:   "Reconcile Lifeboat's kinds and talk to the managers of peers",
		GroupID: cli.PodGroup,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runManager(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.cluster, "cluster-name", "", "name of this cluster, as peers and plans call it")
	f.StringVar(&o.image, "image", "", "image that movers run: this one")
	f.StringVar(&o.moverPriority, "mover-priority-class", "", "PriorityClass of movers (empty: the cluster's default)")
	f.StringVar(&o.control, "control-address", ":9443", "where peers' managers are answered")
	f.StringVar(&o.health, "health-address", ":8081", "where /healthz and /readyz are answered")
	f.StringVar(&o.metrics, "metrics-address", ":8443", "where /metrics is answered, with TLS, to whoever may get /metrics (0: nowhere)")
	f.IntVar(&o.maxSessions, "max-sessions", 16, "how many scheduled sessions may run together in this cluster; those closest to their objective go first (0: any number)")
	f.BoolVar(&o.leaderElection, "leader-election", true, "let one manager of several act")
	_ = cmd.MarkFlagRequired("cluster-name")
	_ = cmd.MarkFlagRequired("image")
	return cmd
}

func runManager(ctx context.Context, o managerOptions) error {
	if o.maxSessions < 0 {
		return fmt.Errorf("--max-sessions %d: give how many sessions may run together, or 0 for any number", o.maxSessions)
	}
	log := logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, nil))
	ctrl.SetLogger(log)
	klog.SetLogger(log)

	cfg, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("reach the API server: %w", err)
	}
	// The API server's own fairness limits a manager better than a fixed rate.
	cfg.QPS, cfg.Burst = 1000, 2000
	mgr, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme:                        cli.Scheme,
		Logger:                        log,
		HealthProbeBindAddress:        o.health,
		Metrics:                       metricsserver.Options{BindAddress: o.metrics, SecureServing: true, FilterProvider: scrape.Filter},
		LeaderElection:                o.leaderElection,
		LeaderElectionID:              "lifeboat-manager",
		LeaderElectionNamespace:       v1alpha1.SystemNamespace,
		LeaderElectionReleaseOnCancel: true,
		// A killed manager's successor begins within seconds; two never act together.
		LeaseDuration: ptr.To(8 * time.Second),
		RenewDeadline: ptr.To(5 * time.Second),
		RetryPeriod:   ptr.To(time.Second),
		// Clients read everything but Lifeboat's own kinds from the API server. What is read from the cache all the same is named in package watched.
		NewCache: watched.NewCache,
		Client:   client.Options{Cache: &client.CacheOptions{Unstructured: false, DisableFor: uncached}},
	})
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	if err := addControllers(ctx, mgr, o); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	log.Info("manager starts", "cluster", o.cluster, "version", version.Software)
	return mgr.Start(ctx)
}

// addControllers joins the parts: each owns small interfaces for what it needs of the others.
func addControllers(ctx context.Context, mgr ctrl.Manager, o managerOptions) error {
	live := mgr.GetAPIReader()
	kept := secrets.New(mgr.GetClient(), live, v1alpha1.SystemNamespace)
	library := appmeta.NewLibrary(kept)
	inbox := appmeta.NewInbox(mgr.GetClient(), live, library, o.cluster, kept.Location)
	nudges := link.NewNudges("Replication", "DisasterRecoveryPlan")
	hooks := hook.New(live, mgr.GetClient())
	commands, err := hook.NewExec(mgr.GetConfig())
	if err != nil {
		return err
	}

	l, err := link.AddToManager(ctx, mgr, link.Options{
		Cluster: o.cluster, Version: version.Software, Address: o.control,
		Sink: applicationsnapshot.Sink{Inbox: inbox}, Nudge: nudges.Nudge, Application: applicationOf(hooks), Now: time.Now,
	})
	if err != nil {
		return fmt.Errorf("make the link: %w", err)
	}
	seen, err := watched.New(ctx, mgr.GetCache(), live, mgr.GetRESTMapper(), mgr.GetScheme(), time.Now)
	if err != nil {
		return fmt.Errorf("watch the cluster: %w", err)
	}
	capturer, err := appmeta.NewCapturer(mgr.GetConfig())
	if err != nil {
		return fmt.Errorf("make the capturer: %w", err)
	}
	restorer, err := appmeta.NewRestorer(mgr.GetConfig(), live, library)
	if err != nil {
		return fmt.Errorf("make the restorer: %w", err)
	}
	for _, c := range []interface{ SetupWithManager(ctrl.Manager) error }{
		&clusterpair.Reconciler{
			Client: mgr.GetClient(), Cluster: o.cluster, Trust: l.Trust, Links: l.Peers, Checker: l.Checker, Events: mgr.GetEventRecorder("lifeboat-link"),
		},
		&pvcgroup.Reconciler{Client: mgr.GetClient(), Reader: seen},
		&schedulepolicy.Reconciler{Client: mgr.GetClient(), Live: live},
		&replication.Reconciler{
			Client: mgr.GetClient(), Live: live, Watched: seen, Cluster: o.cluster, Image: o.image, PriorityClass: o.moverPriority,
			Peers: l.Peers, Trust: l.Trust, CA: l.CA, Movers: newMovers(l.CA, o.cluster, time.Now), Rules: hook.NewRules(live, commands),
			Events: mgr.GetEventRecorder("lifeboat-replication"), Nudges: nudges.Channel("Replication"),
			Now: time.Now, Random: rand.Reader, MaxSessions: o.maxSessions, Metrics: metrics.Registry,
		},
		&applicationsnapshot.Reconciler{
			Client: mgr.GetClient(), Reader: live, Capturer: capturer, Library: library,
			Pusher: applicationsnapshot.Link{Client: l.Peers.Client}, Cluster: o.cluster, Locate: kept.Location, Now: time.Now,
		},
		&plan.Reconciler{
			Client: mgr.GetClient(), Reader: live, Cluster: o.cluster, Peers: l.Peers, Hook: hooks, Restorer: restorer,
			Nudges: nudges.Channel("DisasterRecoveryPlan"), Events: mgr.GetEventRecorder("lifeboat-plan"), Now: time.Now,
		},
	} {
		if err := c.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("add controller %T: %w", c, err)
		}
	}
	return nil
}

// applicationOf tells a peer how many pods of a plan's application there are here.
func applicationOf(hooks *hook.Hook) func(context.Context, *v1alpha1.DisasterRecoveryPlan) (control.ApplicationState, error) {
	return func(ctx context.Context, p *v1alpha1.DisasterRecoveryPlan) (control.ApplicationState, error) {
		state, err := hooks.Observe(ctx, p.Namespace, p.Spec.Selector)
		if err != nil {
			return control.ApplicationState{}, err
		}
		return control.ApplicationState{Known: true, Pods: int32(len(state.Pods))}, nil
	}
}
