package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"lifeboat.dev/lifeboat/internal/localcsi"
	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/localcsi/pool"
)

// newCSICommand is `lifeboat csi`: the local storage driver of one node.
func newCSICommand() *cobra.Command {
	var dir, size, fs, node, endpoint, kubelet string
	var register, verbose bool
	cmd := &cobra.Command{
		Use:   "csi",
		Short: "Serve local volumes to one node (CSI driver " + localcsi.Name + ")",
		Long: `Serve volumes from a folder of this node: sparse files behind loop devices, with snapshots and clones that
share blocks. Needs root, /dev of the host and, where the folder's file system cannot share blocks between
files, mkfs.xfs or mkfs.btrfs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bytes, err := resource.ParseQuantity(size)
			if err != nil {
				return fmt.Errorf("--pool-size %q is no size (example: 20Gi): %w", size, err)
			}
			if os.Geteuid() != 0 {
				return fmt.Errorf("lifeboat csi needs root: it attaches loop devices and mounts file systems")
			}
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			registration := ""
			if register {
				registration = filepath.Join(kubelet, "plugins_registry")
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return localcsi.Run(ctx, localcsi.Config{
				NodeID:  node,
				Version: cmd.Root().Version,
				Pool:    pool.Config{Dir: dir, ImageSize: bytes.Value(), ImageType: filesystem.Kind(fs)},
				Now:     time.Now,
				Log:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
			}, csiEndpoint(endpoint, kubelet), registration)
		},
	}
	flags, shared := cmd.Flags(), cmd.PersistentFlags()
	flags.StringVar(&dir, "pool", "/var/lib/lifeboat-csi", "folder that holds the volumes")
	flags.StringVar(&size, "pool-size", "20Gi", "size of the pool's image file, used when the folder's file system cannot share blocks; may grow later")
	flags.StringVar(&fs, "pool-fs", "xfs", "file system of a new image file: xfs or btrfs")
	flags.StringVar(&node, "node", os.Getenv("NODE_NAME"), "name of this node")
	shared.StringVar(&kubelet, "kubelet-dir", "/var/lib/kubelet", "the kubelet's folder")
	shared.StringVar(&endpoint, "endpoint", "", "socket to serve on (default unix://<kubelet-dir>/plugins/"+localcsi.Name+"/csi.sock)")
	flags.BoolVar(&register, "register", true, "register with the kubelet")
	flags.BoolVarP(&verbose, "verbose", "v", false, "log every call")
	cmd.AddCommand(&cobra.Command{
		Use:   "probe",
		Short: "Exit 0 when the driver on this node serves",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
			defer cancel()
			return localcsi.Ready(ctx, csiEndpoint(endpoint, kubelet))
		},
	})
	return cmd
}

func csiEndpoint(endpoint, kubelet string) string {
	if endpoint != "" {
		return endpoint
	}
	return "unix://" + filepath.Join(kubelet, "plugins", localcsi.Name, "csi.sock")
}
