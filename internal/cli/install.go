package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/deploy"
	"lifeboat.dev/lifeboat/internal/endpoint"
)

// installOptions is what differs between clusters.
type installOptions struct {
	ClusterName string
	// GatewayAddress may differ from every address known in this cluster. Empty: as before, or as its Service tells.
	GatewayAddress string
	Gateway        exposureFlags
	Image          string
	SidecarImage   string
	LocalStorage   bool
	Timeout        time.Duration
}

const (
	// manifestImage and manifestSidecarImage stand in the manifests for the images that the user names.
	manifestImage        = "lifeboat:dev"
	manifestSidecarImage = "lifeboat-clusters/csi-sidecars:dev"

	fieldManager = "lifeboat-install"

	// clusterConfigMap tells who this cluster is; pairing reads it.
	clusterConfigMap  = "lifeboat-cluster"
	keyGatewayAddress = "gatewayAddress"
)

func newInstallCommand() *cobra.Command {
	var kubeContext string
	o := installOptions{}
	cmd := &cobra.Command{
		Use:   "install --cluster-name NAME [--gateway-address HOST:PORT]",
		Short: "Install or upgrade Lifeboat in a cluster",
		Long: "Install applies Lifeboat's kinds, roles and pods, and waits until they run. It may be run again at any time: how the gateway\n" +
			"is exposed stays as it was installed, unless a flag says otherwise, and so does whatever somebody else put on its Service.\n" +
			"The address that peers are told may be another than this cluster knows, such as the public one of a mapped private network.",
		Example: "  lifeboat install --cluster-name east\n" +
			"  lifeboat install --cluster-name east --gateway-annotation service.beta.kubernetes.io/aws-load-balancer-type=external\n" +
			"  lifeboat install --cluster-name east --gateway-expose ClusterIP --gateway-external-ip 203.0.113.7\n" +
			"  lifeboat install --cluster-name east --gateway-expose NodePort --gateway-node-port 30902 --gateway-address '[2001:db8::7]:30902'",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := kubeClient(kubeContext)
			if err != nil {
				return err
			}
			return install(cmd.Context(), c, o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeContext, "context", "", "kubeconfig context of the cluster (empty: the current one)")
	f.StringVar(&o.ClusterName, "cluster-name", "", "name of this cluster, as peers and plans call it")
	f.StringVar(&o.GatewayAddress, "gateway-address", "", "host:port or [IPv6]:port where peers reach this cluster's gateway (empty: as before, or as its Service tells)")
	o.Gateway.register(f)
	f.StringVar(&o.Image, "image", manifestImage, "Lifeboat's image")
	f.BoolVar(&o.LocalStorage, "local-storage", false, "also install the local storage driver (one-node clusters, demos and tests)")
	f.StringVar(&o.SidecarImage, "sidecar-image", manifestSidecarImage, "image with the CSI sidecars for the local storage driver")
	f.DurationVar(&o.Timeout, "timeout", 3*time.Minute, "how long to wait until everything runs")
	_ = cmd.MarkFlagRequired("cluster-name")
	return cmd
}

// check refuses bad options, naming the flag and what it found.
func (o installOptions) check() error {
	if problems := validation.IsDNS1123Label(o.ClusterName); len(problems) > 0 {
		return fmt.Errorf("--cluster-name %q: %s", o.ClusterName, problems[0])
	}
	if o.GatewayAddress == "" {
		return nil
	}
	if _, err := endpoint.Parse(o.GatewayAddress); err != nil {
		return fmt.Errorf("--gateway-address: %w", err)
	}
	return nil
}

// install applies the manifests and waits until all of it runs. Applying twice is the same as once; an
// existing installation under another cluster name is refused, because peers and plans know it by name.
func install(ctx context.Context, c client.Client, o installOptions, out io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := refuseRename(ctx, c, o.ClusterName); err != nil {
		return err
	}
	before, address, err := remembered(ctx, c)
	if err != nil {
		return err
	}
	exposed, err := o.Gateway.over(before)
	if err != nil {
		return err
	}
	if o.GatewayAddress == "" && (before == nil || exposed.reachedAs(*before)) {
		o.GatewayAddress = address
	}
	ask := o.GatewayAddress == ""
	if ask && !exposed.tellsAddress() {
		return fmt.Errorf("--gateway-address is needed: with --%s %s the cluster does not know where peers reach it; give host:port", flagExpose, exposed.Expose)
	}
	objects, err := manifests(o, exposed)
	if err != nil {
		return err
	}
	// What runs comes last: its pods find everything they mount.
	runs := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool { return applyRank(o) == rankRuns })
	if err := applyAll(ctx, c, objects[:runs]); err != nil {
		return err
	}
	if o.LocalStorage {
		if err := serveMetadata(ctx, c, time.Now(), out); err != nil {
			return err
		}
	}
	if err := applyAll(ctx, c, objects[runs:]); err != nil {
		return err
	}
	fmt.Fprintf(out, "applied %d objects in cluster %s\n", len(objects), o.ClusterName)
	if err := waitRunning(ctx, c, objects, o.Timeout, out); err != nil {
		return err
	}
	if ask {
		if err := tellAddress(ctx, c, o, exposed); err != nil {
			return err
		}
	}
	return printAddress(ctx, c, out)
}

// tellAddress waits for the address that the platform gives the gateway and writes down what peers are told.
func tellAddress(ctx context.Context, c client.Client, o installOptions, exposed exposure) error {
	var err error
	if o.GatewayAddress, err = awaitAddress(ctx, c, exposed, o.Timeout); err != nil {
		return err
	}
	objects, err := manifests(o, exposed)
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.GetKind() == "ConfigMap" && object.GetName() == clusterConfigMap {
			return applyObject(ctx, c, object)
		}
	}
	return fmt.Errorf("manifest of ConfigMap %s is missing", clusterConfigMap)
}

func printAddress(ctx context.Context, c client.Client, out io.Writer) error {
	_, address, err := remembered(ctx, c)
	if err == nil {
		fmt.Fprintf(out, "peers are told to reach this cluster at %s\n", address)
	}
	return err
}

func applyAll(ctx context.Context, c client.Client, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		if err := applyObject(ctx, c, o); err != nil {
			return err
		}
		if o.GetKind() == "CustomResourceDefinition" {
			if err := waitEstablished(ctx, c, o.GetName()); err != nil {
				return err
			}
		}
	}
	return nil
}

func refuseRename(ctx context.Context, c client.Client, name string) error {
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: clusterConfigMap}
	if err := c.Get(ctx, key, &cm); err != nil {
		return client.IgnoreNotFound(err)
	}
	if had := cm.Data["name"]; had != "" && had != name {
		return fmt.Errorf("--cluster-name %q: Lifeboat is installed here as cluster %q, and peers and plans know it by that name; keep it, or uninstall first", name, had)
	}
	return nil
}

// manifests are the objects to apply, in order: namespace, kinds, roles, the rest, and last what runs.
func manifests(o installOptions, exposed exposure) ([]*unstructured.Unstructured, error) {
	note, err := json.Marshal(exposed)
	if err != nil {
		return nil, fmt.Errorf("write how the gateway is exposed: %w", err)
	}
	replace := strings.NewReplacer(
		"${CLUSTER_NAME}", o.ClusterName,
		"${GATEWAY_ADDRESS}", o.GatewayAddress,
		"${GATEWAY_EXPOSURE}", string(note),
		manifestImage, o.Image,
		manifestSidecarImage, o.SidecarImage,
	)
	folders := []string{"crds", "rbac", "manifests"}
	if o.LocalStorage {
		folders = append(folders, "localcsi")
	}
	var objects []*unstructured.Unstructured
	for _, folder := range folders {
		files, err := fs.Glob(deploy.Files, path.Join(folder, "*.yaml"))
		if err != nil {
			return nil, err
		}
		sort.Strings(files)
		for _, file := range files {
			text, err := deploy.Files.ReadFile(file)
			if err != nil {
				return nil, err
			}
			more, err := decode([]byte(replace.Replace(string(text))))
			if err != nil {
				return nil, fmt.Errorf("manifest %s: %w", file, err)
			}
			objects = append(objects, more...)
		}
	}
	if err := exposed.shape(objects); err != nil {
		return nil, err
	}
	sort.SliceStable(objects, func(i, j int) bool { return applyRank(objects[i]) < applyRank(objects[j]) })
	return objects, nil
}

func applyRank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return 1
	case "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap":
		return 2
	case "Deployment", "DaemonSet":
		return rankRuns
	}
	return 3
}

// rankRuns is the last rank of all: what makes pods.
const rankRuns = 4

func decode(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	d := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var o unstructured.Unstructured
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(o.Object) > 0 {
			objects = append(objects, &o)
		}
	}
}

func applyObject(ctx context.Context, c client.Client, o *unstructured.Unstructured) error {
	err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(o.DeepCopy()), client.FieldOwner(fieldManager), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", o.GetKind(), client.ObjectKeyFromObject(o), err)
	}
	return nil
}

func waitEstablished(ctx context.Context, c client.Client, name string) error {
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &crd); err != nil {
			return false, client.IgnoreNotFound(err)
		}
		for _, cond := range crd.Status.Conditions {
			if cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("kind %s is not served after 30 s: %w", name, err)
	}
	return nil
}

// waitRunning returns once every Deployment and DaemonSet among the objects runs its newest pods; when time
// is up it names the one it waited for and what its pods say.
func waitRunning(ctx context.Context, c client.Client, objects []*unstructured.Unstructured, timeout time.Duration, out io.Writer) error {
	for _, o := range objects {
		var state string
		err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
			var running bool
			var err error
			running, state, err = rolledOut(ctx, c, o)
			return running, err
		})
		if err != nil {
			return fmt.Errorf("%s %s/%s does not run: %s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), state, err)
		}
		if state != "" {
			fmt.Fprintf(out, "%s %s %s\n", strings.ToLower(o.GetKind()), o.GetName(), state)
		}
	}
	return nil
}

func rolledOut(ctx context.Context, c client.Client, o *unstructured.Unstructured) (bool, string, error) {
	key := client.ObjectKeyFromObject(o)
	switch o.GetKind() {
	case "Deployment":
		var d appsv1.Deployment
		if err := c.Get(ctx, key, &d); err != nil {
			return false, "", client.IgnoreNotFound(err)
		}
		s := d.Status
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		state := fmt.Sprintf("%d of %d pods ready", s.ReadyReplicas, want)
		return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == want && s.ReadyReplicas == want && s.Replicas == want, state, nil
	case "DaemonSet":
		var d appsv1.DaemonSet
		if err := c.Get(ctx, key, &d); err != nil {
			return false, "", client.IgnoreNotFound(err)
		}
		s := d.Status
		state := fmt.Sprintf("%d of %d pods ready", s.NumberReady, s.DesiredNumberScheduled)
		return s.ObservedGeneration >= d.Generation && s.DesiredNumberScheduled > 0 && s.UpdatedNumberScheduled == s.DesiredNumberScheduled && s.NumberReady == s.DesiredNumberScheduled, state, nil
	}
	return true, "", nil
}
