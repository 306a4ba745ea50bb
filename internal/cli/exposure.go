package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/endpoint"
)

// The ways to expose a gateway. A host port is one of its node, beside a Service of type ClusterIP.
const (
	exposeHostPort     = "HostPort"
	exposeLoadBalancer = "LoadBalancer"
	exposeNodePort     = "NodePort"
	exposeClusterIP    = "ClusterIP"

	gatewayService = "lifeboat-gateway"
	// keyExposure of the ConfigMap lifeboat-cluster remembers how the gateway is exposed, so that installing again does
	// not need to be told again.
	keyExposure = "gatewayExposure"
)

// exposure is how peers reach the gateway. It is written into the gateway's Service and remembered in the cluster.
type exposure struct {
	Expose string `json:"expose"`
	// Port is the Service's, which peers dial; the gateway's pod listens on 9002 whatever it is.
	Port              int               `json:"port,omitempty"`
	NodePort          int               `json:"nodePort,omitempty"`
	HostPort          int               `json:"hostPort,omitempty"`
	ExternalIPs       []string          `json:"externalIPs,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	LoadBalancerClass string            `json:"loadBalancerClass,omitempty"`
	SourceRanges      []string          `json:"sourceRanges,omitempty"`
}

// exposureFlags are an exposure as it is given on the command line.
type exposureFlags struct {
	exposure
	annotations []string
	// given tells which flags were; what was not is as it was installed before.
	given func(flag string) bool
}

const (
	flagExpose       = "gateway-expose"
	flagPort         = "gateway-port"
	flagNodePort     = "gateway-node-port"
	flagHostPort     = "gateway-host-port"
	flagExternalIP   = "gateway-external-ip"
	flagAnnotation   = "gateway-annotation"
	flagBalancer     = "gateway-load-balancer-class"
	flagSourceRanges = "gateway-source-range"
)

func (e *exposureFlags) register(f *pflag.FlagSet) {
	e.given = f.Changed
	f.StringVar(&e.Expose, flagExpose, exposeLoadBalancer, "how the gateway is exposed: LoadBalancer, NodePort, ClusterIP or HostPort (a port of its node)")
	f.IntVar(&e.Port, flagPort, endpoint.DefaultPort, "port of the gateway's Service, which peers dial")
	f.IntVar(&e.NodePort, flagNodePort, 0, "with NodePort or LoadBalancer: the port of every node (0: the cluster picks one)")
	f.IntVar(&e.HostPort, flagHostPort, endpoint.DefaultPort, "with HostPort: the port of the gateway's node")
	f.StringSliceVar(&e.ExternalIPs, flagExternalIP, nil, "addresses of the Service that your network leads to the cluster's nodes, IPv4 or IPv6")
	f.StringArrayVar(&e.annotations, flagAnnotation, nil, "KEY=VALUE on the Service, as platforms want it; may be given again and again (\"\" removes those given before)")
	f.StringVar(&e.LoadBalancerClass, flagBalancer, "", "with LoadBalancer: the class of the load balancer")
	f.StringSliceVar(&e.SourceRanges, flagSourceRanges, nil, "with LoadBalancer: who may connect, as 203.0.113.0/24 or 2001:db8::/32 (empty: everybody)")
}

// over lays the given flags over what was installed before. Another way of exposing drops what belongs to the former one.
func (e *exposureFlags) over(before *exposure) (exposure, error) {
	out := e.exposure
	annotations, err := parseAnnotations(e.annotations)
	if err != nil {
		return exposure{}, err
	}
	out.Annotations = annotations
	if before != nil {
		keep := func(flag string, take func()) {
			if e.given == nil || !e.given(flag) {
				take()
			}
		}
		keep(flagExpose, func() { out.Expose = before.Expose })
		keep(flagPort, func() { out.Port = before.Port })
		keep(flagAnnotation, func() { out.Annotations = before.Annotations })
		if out.Expose != exposeHostPort {
			keep(flagExternalIP, func() { out.ExternalIPs = before.ExternalIPs })
		}
		switch out.Expose {
		case exposeLoadBalancer:
			keep(flagNodePort, func() { out.NodePort = before.NodePort })
			keep(flagBalancer, func() { out.LoadBalancerClass = before.LoadBalancerClass })
			keep(flagSourceRanges, func() { out.SourceRanges = before.SourceRanges })
		case exposeNodePort:
			keep(flagNodePort, func() { out.NodePort = before.NodePort })
		case exposeHostPort:
			if before.HostPort > 0 {
				keep(flagHostPort, func() { out.HostPort = before.HostPort })
			}
		}
	}
	if out.Port == 0 {
		out.Port = endpoint.DefaultPort
	}
	switch {
	case out.Expose != exposeHostPort && (e.given == nil || !e.given(flagHostPort)):
		out.HostPort = 0
	case out.Expose == exposeHostPort && out.HostPort == 0:
		out.HostPort = endpoint.DefaultPort
	}
	return out, out.check()
}

func parseAnnotations(given []string) (map[string]string, error) {
	out := map[string]string{}
	for _, entry := range given {
		key, value, ok := strings.Cut(entry, "=")
		switch {
		case entry == "":
			continue
		case !ok || len(validation.IsQualifiedName(strings.ToLower(key))) > 0:
			return nil, fmt.Errorf("--%s %q: give KEY=VALUE, such as service.beta.kubernetes.io/aws-load-balancer-type=external", flagAnnotation, entry)
		}
		out[key] = value
	}
	return out, nil
}

// check refuses what cannot be, naming the flag, what was found and what to do.
func (e exposure) check() error {
	only := func(flag string, set bool, with ...string) error {
		if set && !slices.Contains(with, e.Expose) {
			return fmt.Errorf("--%s: it goes with --%s %s, not with %s", flag, flagExpose, strings.Join(with, " or "), e.Expose)
		}
		return nil
	}
	if !slices.Contains([]string{exposeLoadBalancer, exposeNodePort, exposeClusterIP, exposeHostPort}, e.Expose) {
		return fmt.Errorf("--%s %q: give LoadBalancer, NodePort, ClusterIP or HostPort", flagExpose, e.Expose)
	}
	errs := []error{
		only(flagNodePort, e.NodePort != 0, exposeNodePort, exposeLoadBalancer),
		only(flagHostPort, e.HostPort != 0, exposeHostPort),
		only(flagBalancer, e.LoadBalancerClass != "", exposeLoadBalancer),
		only(flagSourceRanges, len(e.SourceRanges) > 0, exposeLoadBalancer),
		only(flagExternalIP, len(e.ExternalIPs) > 0, exposeClusterIP, exposeLoadBalancer, exposeNodePort),
	}
	for flag, port := range map[string]int{flagPort: e.Port, flagNodePort: e.NodePort, flagHostPort: e.HostPort} {
		if port < 0 || port > 65535 {
			errs = append(errs, fmt.Errorf("--%s %d: give a port from 1 to 65535", flag, port))
		}
	}
	for _, ip := range e.ExternalIPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			errs = append(errs, fmt.Errorf("--%s %q: give an IPv4 or IPv6 address without a port", flagExternalIP, ip))
		}
	}
	for _, r := range e.SourceRanges {
		if _, err := netip.ParsePrefix(r); err != nil {
			errs = append(errs, fmt.Errorf("--%s %q: give an address and the length of its prefix, such as 203.0.113.0/24", flagSourceRanges, r))
		}
	}
	return errors.Join(errs...)
}

// shape writes the exposure into the manifests of the gateway's Service and Deployment. Only what is named here is Lifeboat's: the
// API server keeps every other annotation and setting that somebody put on the Service.
func (e exposure) shape(objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		if o.GetName() != gatewayService {
			continue
		}
		var err error
		switch o.GetKind() {
		case "Service":
			err = e.shapeService(o)
		case "Deployment":
			err = e.shapePod(o)
		}
		if err != nil {
			return fmt.Errorf("manifest of %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

func (e exposure) shapeService(o *unstructured.Unstructured) error {
	spec, found, err := unstructured.NestedMap(o.Object, "spec")
	if err != nil || !found {
		return errors.Join(err, errors.New("it has no spec"))
	}
	port := map[string]any{"name": "gateway", "protocol": "TCP", "port": int64(e.Port), "targetPort": "gateway"}
	if e.NodePort != 0 {
		port["nodePort"] = int64(e.NodePort)
	}
	spec["type"], spec["ports"] = e.Expose, []any{port}
	if e.Expose == exposeHostPort {
		spec["type"] = exposeClusterIP
	}
	if e.LoadBalancerClass != "" {
		spec["loadBalancerClass"] = e.LoadBalancerClass
	}
	if len(e.SourceRanges) > 0 {
		spec["loadBalancerSourceRanges"] = anySlice(e.SourceRanges)
	}
	if len(e.ExternalIPs) > 0 {
		spec["externalIPs"] = anySlice(e.ExternalIPs)
	}
	o.Object["spec"] = spec
	if len(e.Annotations) > 0 {
		annotations := o.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		maps.Copy(annotations, e.Annotations)
		o.SetAnnotations(annotations)
	}
	return nil
}

func (e exposure) shapePod(o *unstructured.Unstructured) error {
	path := []string{"spec", "template", "spec", "containers"}
	containers, found, err := unstructured.NestedSlice(o.Object, path...)
	if err != nil || !found || len(containers) != 1 {
		return errors.Join(err, errors.New("it does not have one container"))
	}
	port := map[string]any{"name": "gateway", "containerPort": int64(endpoint.DefaultPort), "protocol": "TCP"}
	if e.Expose == exposeHostPort {
		port["hostPort"] = int64(e.HostPort)
	}
	containers[0].(map[string]any)["ports"] = []any{port}
	return unstructured.SetNestedSlice(o.Object, containers, path...)
}

func anySlice(texts []string) []any {
	out := make([]any, len(texts))
	for i, text := range texts {
		out[i] = text
	}
	return out
}

// remembered is how the gateway was exposed by the last install, and the address that peers are told; nil when there is none.
func remembered(ctx context.Context, c client.Client) (*exposure, string, error) {
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: clusterConfigMap}
	if err := c.Get(ctx, key, &cm); err != nil {
		return nil, "", client.IgnoreNotFound(err)
	}
	address := cm.Data[keyGatewayAddress]
	raw := cm.Data[keyExposure]
	if raw == "" {
		return nil, address, nil
	}
	var e exposure
	if err := json.Unmarshal([]byte(raw), &e); err != nil {
		return nil, "", fmt.Errorf("ConfigMap %s, key %s: %w: correct it, or delete the key and give all --gateway flags again", key, keyExposure, err)
	}
	return &e, address, nil
}

// address is where peers reach this cluster's gateway as far as its Service tells; empty while it does not.
func (e exposure) address(service *corev1.Service) string {
	at := func(host string) string { return endpoint.Address{Host: host, Port: e.Port}.String() }
	if len(e.ExternalIPs) > 0 {
		return at(e.ExternalIPs[0])
	}
	if e.Expose != exposeLoadBalancer {
		return ""
	}
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		switch {
		case ingress.IP != "":
			return at(ingress.IP)
		case ingress.Hostname != "":
			return at(ingress.Hostname)
		}
	}
	return ""
}

// reachedAs reports whether peers reach this exposure as they did another, so that the address they were told still holds.
func (e exposure) reachedAs(before exposure) bool {
	return e.Expose == before.Expose && e.Port == before.Port && e.NodePort == before.NodePort && e.HostPort == before.HostPort &&
		slices.Equal(e.ExternalIPs, before.ExternalIPs)
}

// tellsAddress reports whether the gateway's address can be read from its Service.
func (e exposure) tellsAddress() bool {
	return e.Expose == exposeLoadBalancer || len(e.ExternalIPs) > 0
}

// awaitAddress waits until the platform has given the gateway an address.
func awaitAddress(ctx context.Context, c client.Client, e exposure, timeout time.Duration) (string, error) {
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: gatewayService}
	var address string
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
		var service corev1.Service
		if err := c.Get(ctx, key, &service); err != nil {
			return false, err
		}
		address = e.address(&service)
		return address != "", nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return "", fmt.Errorf("Service %s has no address after %s: nothing in this cluster gives addresses to Services of type LoadBalancer, or it is slow; "+
			"give --gateway-address host:port, or another --%s", key, timeout, flagExpose)
	}
	return address, err
}
