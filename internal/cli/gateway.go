package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"lifeboat.dev/lifeboat/internal/link/gateway"
)

func newGatewayCommand() *cobra.Command {
	var listen, metrics string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Pass TLS connections of peers on to this cluster's manager and receivers",
		Long: "The gateway is the one port of a cluster that peers need. It reads the server name that a TLS client asks for and passes\n" +
			"the bytes on, unopened, to the manager or the receiver of that name. It holds no key.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug - 1
			}
			log := logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			ctrllog.SetLogger(log)
			return runGateway(cmd, log, listen, metrics)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":9002", "address that peers connect to")
	cmd.Flags().StringVar(&metrics, "metrics", "", "address that serves /metrics and /healthz (empty: none), as :8080")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "log every connection, not only refused ones")
	return cmd
}

func runGateway(cmd *cobra.Command, log logr.Logger, listen, metricsAddress string) error {
	ctx := cmd.Context()
	config, err := restConfig("")
	if err != nil {
		return err
	}
	services, err := gateway.WatchServices(ctx, config)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	metrics := gateway.NewMetrics(registry)
	if metricsAddress != "" {
		stop, err := serveMetrics(metricsAddress, registry, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	// Listening only now makes the open port mean that connections can be passed on.
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", listen, err)
	}
	log.Info("gateway listens", "address", listener.Addr().String())
	g := &gateway.Gateway{Router: services, Log: log, Metrics: metrics}
	return g.Serve(ctx, listener)
}

// serveMetrics answers until stop is called.
func serveMetrics(address string, registry *prometheus.Registry, log logr.Logger) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error(err, "serve metrics")
		}
	}()
	return func() { _ = server.Close() }, nil
}
