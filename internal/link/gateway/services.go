package gateway

import (
	"context"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// Names of the Services' ports.
const (
	managerService = "lifeboat-manager"
	portControl    = "control"
	portData       = "data"
)

// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch,roleName=lifeboat-gateway

// Services route to the ClusterIPs of this cluster's Services. They need no cluster DNS.
type Services struct {
	client.Reader
}

// WatchServices keeps Lifeboat's own Services in memory, until ctx is done, and returns once it knows them all.
func WatchServices(ctx context.Context, config *rest.Config) (Services, error) {
	ours, err := labels.Parse(v1alpha1.LabelComponent)
	if err != nil {
		return Services{}, err
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return Services{}, err
	}
	services, err := cache.New(config, cache.Options{
		Scheme:   scheme,
		ByObject: map[client.Object]cache.ByObject{&corev1.Service{}: {Label: ours}},
	})
	if err != nil {
		return Services{}, fmt.Errorf("watch services: %w", err)
	}
	if _, err := services.GetInformer(ctx, &corev1.Service{}, cache.BlockUntilSynced(false)); err != nil {
		return Services{}, fmt.Errorf("watch services: %w", err)
	}
	failed := make(chan error, 1)
	go func() { failed <- services.Start(ctx) }()
	if !services.WaitForCacheSync(ctx) {
		return Services{}, fmt.Errorf("watch services: the first list was not answered: %w", context.Cause(ctx))
	}
	return Services{Reader: services}, nil
}

// Route implements Router.
func (s Services) Route(serverName string) (string, error) {
	// Reads come from memory and need no deadline.
	ctx := context.Background()
	if serverName == identity.ManagerServerName {
		var service corev1.Service
		key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: managerService}
		if err := s.Get(ctx, key, &service); err != nil {
			return "", fmt.Errorf("find the manager: %w", err)
		}
		return backendOf(&service, portControl)
	}
	namespace, name, ok := identity.ParseReceiverServerName(serverName)
	if !ok {
		return "", fmt.Errorf("the server name %q is neither the manager's nor a receiver's", serverName)
	}
	var services corev1.ServiceList
	err := s.List(ctx, &services, client.InNamespace(namespace), client.MatchingLabels{
		v1alpha1.LabelComponent: v1alpha1.ComponentReceiver, v1alpha1.LabelReplication: name,
	})
	if err != nil {
		return "", fmt.Errorf("find the receiver of %s/%s: %w", namespace, name, err)
	}
	if len(services.Items) != 1 {
		return "", fmt.Errorf("replication %s/%s has %d receiver Services, expected one", namespace, name, len(services.Items))
	}
	return backendOf(&services.Items[0], portData)
}

func backendOf(service *corev1.Service, port string) (string, error) {
	if ip := net.ParseIP(service.Spec.ClusterIP); ip == nil {
		return "", fmt.Errorf("Service %s/%s has no ClusterIP (%q)", service.Namespace, service.Name, service.Spec.ClusterIP)
	}
	for _, p := range service.Spec.Ports {
		if p.Name == port && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			return net.JoinHostPort(service.Spec.ClusterIP, strconv.Itoa(int(p.Port))), nil
		}
	}
	return "", fmt.Errorf("Service %s/%s has no TCP port named %s", service.Namespace, service.Name, port)
}
