package cli

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// given parses install's flags as the command line does.
func given(t *testing.T, args ...string) exposureFlags {
	t.Helper()
	var e exposureFlags
	f := pflag.NewFlagSet("install", pflag.ContinueOnError)
	e.register(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	e.given = f.Changed
	return e
}

func TestWhatCannotBeExposedIsRefusedByTheFlagsName(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"--gateway-expose Ingress", "--gateway-expose \"Ingress\": give LoadBalancer"},
		{"--gateway-expose ClusterIP --gateway-node-port 30902", "--gateway-node-port: it goes with --gateway-expose NodePort or LoadBalancer"},
		{"--gateway-expose NodePort --gateway-load-balancer-class x", "--gateway-load-balancer-class: it goes with --gateway-expose LoadBalancer"},
		{"--gateway-expose NodePort --gateway-source-range 10.0.0.0/8", "--gateway-source-range: it goes"},
		{"--gateway-expose HostPort --gateway-external-ip 203.0.113.7", "--gateway-external-ip: it goes"},
		{"--gateway-host-port 9100", "--gateway-host-port: it goes with --gateway-expose HostPort"},
		{"--gateway-external-ip 203.0.113.7:9002", "without a port"},
		{"--gateway-source-range 203.0.113.7", "the length of its prefix"},
		{"--gateway-annotation nothing", "give KEY=VALUE"},
		{"--gateway-port 70000", "--gateway-port 70000: give a port"},
	} {
		f := given(t, strings.Fields(c.args)...)
		if _, err := f.over(nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.args, err, c.says)
		}
	}
}

func TestInstallingAgainKeepsHowTheGatewayIsExposed(t *testing.T) {
	before := &exposure{Expose: exposeLoadBalancer, Port: 443, NodePort: 30902, LoadBalancerClass: "metal", SourceRanges: []string{"10.0.0.0/8"},
		ExternalIPs: []string{"fd00::7"}, Annotations: map[string]string{"a/b": "c"}}
	f := given(t)
	if got, err := f.over(before); err != nil || !got.reachedAs(*before) || got.LoadBalancerClass != "metal" || got.Annotations["a/b"] != "c" || len(got.SourceRanges) != 1 {
		t.Errorf("nothing was said: %+v, %v", got, err)
	}
	f = given(t, "--gateway-port", "444", "--gateway-annotation", "")
	if got, err := f.over(before); err != nil || got.Port != 444 || got.Expose != exposeLoadBalancer || len(got.Annotations) != 0 || got.LoadBalancerClass != "metal" {
		t.Errorf("another port, no annotations: %+v, %v", got, err)
	}
	// What belongs to load balancers alone goes with them.
	f = given(t, "--gateway-expose", "HostPort")
	if got, err := f.over(before); err != nil || got.HostPort != 9002 || got.LoadBalancerClass != "" || got.SourceRanges != nil || got.ExternalIPs != nil || got.NodePort != 0 {
		t.Errorf("from a load balancer to a host port: %+v, %v", got, err)
	}
	// Installed by a version that did not remember: the flags and their defaults count.
	f = given(t, "--gateway-expose", "HostPort", "--gateway-host-port", "9100")
	if got, err := f.over(nil); err != nil || got.HostPort != 9100 {
		t.Errorf("%+v, %v", got, err)
	}
}

// applyExposure is what install does to the gateway, without waiting for pods that no kubelet starts.
func applyExposure(t *testing.T, c client.Client, address string, args ...string) {
	t.Helper()
	ctx := t.Context()
	before, told, err := remembered(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	f := given(t, args...)
	exposed, err := f.over(before)
	if err != nil {
		t.Fatal(err)
	}
	if address == "" {
		address = told
	}
	objects, err := manifests(installOptions{ClusterName: "east", GatewayAddress: address, Image: "lifeboat:test", SidecarImage: "none"}, exposed)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() != "CustomResourceDefinition" {
			if err := applyObject(ctx, c, o); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func gatewayOf(t *testing.T, c client.Client) *corev1.Service {
	t.Helper()
	var s corev1.Service
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: gatewayService}, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// M-159, M-160, M-162, M-163: every way of exposing a gateway on a real API server, and what installing again leaves alone.
func TestTheGatewaysServiceIsAsItWasAskedFor(t *testing.T) {
	c := servers.Client(t, "exposure")
	aws := []string{"--gateway-annotation", "service.beta.kubernetes.io/aws-load-balancer-type=external",
		"--gateway-annotation", "service.beta.kubernetes.io/aws-load-balancer-scheme=internet-facing",
		"--gateway-load-balancer-class", "example.com/metal", "--gateway-source-range", "203.0.113.0/24", "--gateway-external-ip", "192.0.2.9"}
	// M-159 and M-163: a load balancer, and an address that this cluster knows nothing of.
	applyExposure(t, c, "[2001:db8::7]:443", aws...)
	s := gatewayOf(t, c)
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.Ports[0].Port != 9002 || s.Spec.Ports[0].TargetPort.StrVal != "gateway" ||
		*s.Spec.LoadBalancerClass != "example.com/metal" || !slices.Equal(s.Spec.LoadBalancerSourceRanges, []string{"203.0.113.0/24"}) ||
		!slices.Equal(s.Spec.ExternalIPs, []string{"192.0.2.9"}) || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicyPreferDualStack {
		t.Errorf("load balancer: %+v", s.Spec)
	}
	if _, address, err := remembered(t.Context(), c); err != nil || address != "[2001:db8::7]:443" {
		t.Errorf("peers are told %q, %v", address, err)
	}

	// M-162: what somebody else put on the Service stays, and so does what an earlier install was told.
	before := s.DeepCopy()
	s.Annotations["mine/by-hand"] = "stays"
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	if err := c.Patch(t.Context(), s, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	applyExposure(t, c, "")
	s = gatewayOf(t, c)
	if s.Annotations["mine/by-hand"] != "stays" || s.Annotations["service.beta.kubernetes.io/aws-load-balancer-type"] != "external" ||
		s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || *s.Spec.LoadBalancerClass != "example.com/metal" {
		t.Errorf("installed again: %v %+v", s.Annotations, s.Spec)
	}
	if _, address, _ := remembered(t.Context(), c); address != "[2001:db8::7]:443" {
		t.Errorf("installed again, peers are told %q", address)
	}

	// What an install was told and is told no more goes; what is somebody else's does not.
	applyExposure(t, c, "", "--gateway-annotation", "", "--gateway-expose", "NodePort", "--gateway-node-port", "30902")
	s = gatewayOf(t, c)
	if s.Spec.Type != corev1.ServiceTypeNodePort || s.Spec.Ports[0].NodePort != 30902 || s.Annotations["mine/by-hand"] != "stays" ||
		len(s.Annotations) != 1 || s.Spec.LoadBalancerClass != nil || len(s.Spec.LoadBalancerSourceRanges) != 0 {
		t.Errorf("node port: %v %+v", s.Annotations, s.Spec)
	}

	// M-160: a ClusterIP with an external address; the pod's own port is another.
	applyExposure(t, c, "", "--gateway-expose", "ClusterIP", "--gateway-external-ip", "192.0.2.10,fd00::10", "--gateway-port", "9100")
	s = gatewayOf(t, c)
	if s.Spec.Type != corev1.ServiceTypeClusterIP || !slices.Equal(s.Spec.ExternalIPs, []string{"192.0.2.10", "fd00::10"}) || len(s.Spec.Ports) != 1 ||
		s.Spec.Ports[0].Port != 9100 || s.Spec.Ports[0].NodePort != 0 || s.Spec.Ports[0].TargetPort.StrVal != "gateway" {
		t.Errorf("cluster IP: %+v", s.Spec)
	}

	applyExposure(t, c, "", "--gateway-expose", "HostPort", "--gateway-host-port", "9443")
	var pod unstructured.Unstructured
	pod.SetAPIVersion("apps/v1")
	pod.SetKind("Deployment")
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: gatewayService}, &pod); err != nil {
		t.Fatal(err)
	}
	containers, _, _ := unstructured.NestedSlice(pod.Object, "spec", "template", "spec", "containers")
	ports := containers[0].(map[string]any)["ports"].([]any)
	if s = gatewayOf(t, c); s.Spec.Type != corev1.ServiceTypeClusterIP || len(s.Spec.ExternalIPs) != 0 || len(ports) != 1 || ports[0].(map[string]any)["hostPort"] != int64(9443) {
		t.Errorf("host port: %+v, %v", s.Spec, ports)
	}
}

// M-159: a load balancer's address is told to peers as soon as the platform gives it.
func TestTheAddressOfALoadBalancerIsTold(t *testing.T) {
	c := servers.Client(t, "balanced")
	applyExposure(t, c, "")
	e := exposure{Expose: exposeLoadBalancer, Port: 9002}
	if _, err := awaitAddress(t.Context(), c, e, time.Second); err == nil || !strings.Contains(err.Error(), "--gateway-address") {
		t.Errorf("no platform gives an address: %v", err)
	}
	for _, given := range []struct {
		ingress corev1.LoadBalancerIngress
		want    string
	}{
		{corev1.LoadBalancerIngress{IP: "fd00::99"}, "[fd00::99]:9002"},
		{corev1.LoadBalancerIngress{Hostname: "k.elb.example.com"}, "k.elb.example.com:9002"},
	} {
		s := gatewayOf(t, c)
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{given.ingress}
		if err := c.Status().Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if address, err := awaitAddress(t.Context(), c, e, 30*time.Second); err != nil || address != given.want {
			t.Errorf("%q, %v, want %s", address, err, given.want)
		}
	}
	o := installOptions{ClusterName: "east", Image: "lifeboat:test", SidecarImage: "none", Timeout: 30 * time.Second}
	if err := tellAddress(t.Context(), c, o, e); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printAddress(context.Background(), c, &out); err != nil || !strings.Contains(out.String(), "k.elb.example.com:9002") {
		t.Errorf("%v %s", err, out.String())
	}
	// Without a load balancer nobody but the user knows.
	err := install(t.Context(), c, installOptions{ClusterName: "east", Gateway: given(t, "--gateway-expose", "NodePort")}, &out)
	if err == nil || !strings.Contains(err.Error(), "--gateway-address is needed") {
		t.Errorf("%v", err)
	}
}

func TestBadAddressesAreRefusedBeforeAnythingIsDone(t *testing.T) {
	for address, says := range map[string]string{"203.0.113.7": "the port is missing", "fd00::1:9002": "in brackets"} {
		if err := (installOptions{ClusterName: "east", GatewayAddress: address}).check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("install: %v", err)
		}
		o := pairOptions{context: "east", peerContext: "west", gateways: map[string]string{"west": address}, timeout: time.Second}
		if err := o.check(); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "west="+address) {
			t.Errorf("pair: %v", err)
		}
	}
	o := pairOptions{context: "east", peerContext: "west", gateways: map[string]string{"west": "[fd00::1]:9002"}, timeout: time.Second}
	if err := o.check(); err != nil {
		t.Error(err)
	}
}
