package cli

import (
	"fmt"

	"github.com/go-logr/logr"
	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	lifeboat "lifeboat.dev/lifeboat/api/v1alpha1"
)

// Scheme knows every kind that Lifeboat reads or writes.
var Scheme = newScheme()

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(apiextensionsv1.AddToScheme(s))
	utilruntime.Must(snapshotv1.AddToScheme(s))
	utilruntime.Must(groupsnapshotv1.AddToScheme(s))
	utilruntime.Must(lifeboat.AddToScheme(s))
	return s
}

// restConfig loads the kubeconfig as kubectl does ($KUBECONFIG, else ~/.kube/config, else the pod's own
// account) and picks a context of it; "" is the current one.
func restConfig(kubeContext string) (*rest.Config, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(),
		&clientcmd.ConfigOverrides{CurrentContext: kubeContext},
	)
	cfg, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig context %q: %w", kubeContext, err)
	}
	cfg.QPS, cfg.Burst = 200, 400
	// A verb speaks for itself; pods that log set a logger of their own first, and the first one stays.
	ctrllog.SetLogger(logr.Discard())
	return cfg, nil
}

// kubeClient opens the cluster behind a kubeconfig context.
func kubeClient(kubeContext string) (client.Client, error) {
	cfg, err := restConfig(kubeContext)
	if err != nil {
		return nil, err
	}
	c, err := client.New(cfg, client.Options{Scheme: Scheme})
	if err != nil {
		return nil, fmt.Errorf("reach the API server of context %q at %s: %w", kubeContext, cfg.Host, err)
	}
	return c, nil
}
