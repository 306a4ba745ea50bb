package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/endpoint"
)

// The ways to a receiver: the Service that the gateway routes to, and every Service of a user's or of localEndpoint that selects
// the label app. Both are closed by closing them here, so that no Service of somebody else has to be touched.

const labelApp = "app"

// portName is the receiver's port by name: Services of Lifeboat's follow it when localEndpoint names another number.
const portName = "data"

// address is where the source dials: the receiver's own address if it has one, else the peer's gateway.
func (v *view) address() string {
	if v.rlink.RemoteAddress != "" {
		return v.rlink.RemoteAddress
	}
	return v.pair.Spec.GatewayAddress
}

// local is the link's endpoint; nil when it has none.
func (v *view) local() *endpoint.Local {
	if v.rlink.LocalEndpoint == "" {
		return nil
	}
	local, err := endpoint.ParseLocal(v.rlink.LocalEndpoint)
	if err != nil {
		return nil // the API server refuses those
	}
	return &local
}

// listensOn is the port of the receiver's pod.
func (v *view) listensOn() int32 {
	if local := v.local(); local != nil {
		return int32(local.Port)
	}
	return dataPort
}

// observeDoor tells whether sources can reach the receiver, and whether some of the ways to it are open and others are not.
func observeDoor(v *view) (open, ajar bool) {
	ways, shut := 0, 0
	count := func(is bool) {
		if is {
			ways++
			return
		}
		shut++
	}
	count(v.replica.service != nil)
	for i := range v.pods {
		if pod := &v.pods[i]; receivesNow(pod) {
			count(pod.Labels[labelApp] != "")
		}
	}
	return ways > 0, ways > 0 && shut > 0
}

func receivesNow(pod *corev1.Pod) bool {
	return pod.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentReceiver && pod.DeletionTimestamp.IsZero()
}

// openDoor lets sources in. It is the last that is done for a receiver.
func (r *Reconciler) openDoor(ctx context.Context, v *view) error {
	if err := r.labelReceivers(ctx, v, `"`+v.names.labels("")[labelApp]+`"`); err != nil {
		return err
	}
	if former := v.replica.service; former != nil && former.Spec.Ports[0].TargetPort.StrVal != portName {
		// Made by a version whose receivers had one port.
		patch := client.RawPatch(types.JSONPatchType, []byte(`[{"op":"replace","path":"/spec/ports/0/targetPort","value":"`+portName+`"}]`))
		if err := r.Client.Patch(ctx, former, patch); err != nil {
			return fmt.Errorf("change Service %s/%s: %w", former.Namespace, former.Name, err)
		}
	}
	return r.create(ctx, receiverService(v))
}

// closeDoor lets no more sources in: the pods leave every Service that selects them.
func (r *Reconciler) closeDoor(ctx context.Context, v *view) error {
	if err := r.labelReceivers(ctx, v, "null"); err != nil {
		return err
	}
	return r.delete(ctx, &corev1.Service{}, v.rep.Namespace, v.names.receiver())
}

// labelReceivers sets the label app of the receiver's pods; value is JSON. The Deployment does not select by it.
func (r *Reconciler) labelReceivers(ctx context.Context, v *view, value string) error {
	var errs []error
	for i := range v.pods {
		pod := &v.pods[i]
		if !receivesNow(pod) || (pod.Labels[labelApp] != "") == (value != "null") {
			continue
		}
		patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"`+labelApp+`":`+value+`}}}`))
		if err := r.Client.Patch(ctx, pod.DeepCopy(), patch); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("label pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

// keepEndpoint makes the Service that localEndpoint asks for, in either role: its address must be the same when this side becomes the
// target again. A Service that is not Lifeboat's is used as it is. What is wrong with it is told, and holds nothing up.
func (r *Reconciler) keepEndpoint(ctx context.Context, v *view) {
	local := v.local()
	if local == nil && v.status.Endpoint == nil {
		return
	}
	found, err := r.endpoint(ctx, v, local)
	if err != nil {
		log.FromContext(ctx).Error(err, "keep the endpoint of a replication", "replication", v.key(), "rlink", v.rlink.RlinkName)
		found = &v1alpha1.EndpointStatus{Message: err.Error()}
	}
	v.status.Endpoint = found
}

func (r *Reconciler) endpoint(ctx context.Context, v *view, local *endpoint.Local) (*v1alpha1.EndpointStatus, error) {
	var all corev1.ServiceList
	if err := r.Live.List(ctx, &all, client.InNamespace(v.rep.Namespace)); err != nil {
		return nil, fmt.Errorf("list Services of namespace %s: %w", v.rep.Namespace, err)
	}
	slices.SortFunc(all.Items, func(a, b corev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	var use *corev1.Service
	for i := range all.Items {
		s := &all.Items[i]
		if local != nil && use == nil && isEndpoint(v, local, s) {
			use = s
			continue
		}
		if mine(v, s) {
			if err := r.delete(ctx, &corev1.Service{}, s.Namespace, s.Name); err != nil {
				return nil, err
			}
		}
	}
	if local == nil {
		return nil, nil
	}
	if use == nil {
		use = endpointService(v, *local)
		if err := r.Client.Create(ctx, use); err != nil {
			return nil, fmt.Errorf("create Service %s/%s for spec.rlinks[%s].localEndpoint: %w", use.Namespace, use.Name, v.rlink.RlinkName, err)
		}
	}
	if mine(v, use) && int(use.Spec.Ports[0].Port) != local.Port {
		patch := client.RawPatch(types.JSONPatchType, fmt.Appendf(nil, `[{"op":"replace","path":"/spec/ports/0/port","value":%d}]`, local.Port))
		if err := r.Client.Patch(ctx, use, patch); err != nil {
			return nil, fmt.Errorf("change Service %s/%s: %w", use.Namespace, use.Name, err)
		}
	}
	return endpointStatus(v, use, *local), nil
}

// isEndpoint reports whether a Service is what localEndpoint means: the one of its name, or, where it names none, one that selects the
// receiver. A user's comes before Lifeboat's own.
func isEndpoint(v *view, local *endpoint.Local, s *corev1.Service) bool {
	if !s.DeletionTimestamp.IsZero() || s.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentReceiver {
		return false
	}
	if local.Service != "" {
		return s.Name == local.Service
	}
	if s.Labels[v1alpha1.LabelComponent] == componentEndpoint {
		return s.Name == v.names.endpoint()
	}
	return len(s.Spec.Selector) > 0 && selectsReceiver(v, s)
}

// mine reports whether Lifeboat made a Service as the endpoint of this link.
func mine(v *view, s *corev1.Service) bool {
	return s.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat && s.Labels[v1alpha1.LabelComponent] == componentEndpoint &&
		s.Labels[v1alpha1.LabelReplication] == v.rep.Name && s.Labels[v1alpha1.LabelRlink] == v.rlink.RlinkName
}

func selectsReceiver(v *view, s *corev1.Service) bool {
	pod := v.names.labels(v1alpha1.ComponentReceiver)
	for key, value := range s.Spec.Selector {
		if pod[key] != value {
			return false
		}
	}
	return true
}

// endpointService is of type LoadBalancer: the peer is outside. Whoever wants another type changes it, or makes the Service first.
func endpointService(v *view, local endpoint.Local) *corev1.Service {
	dual, name := corev1.IPFamilyPolicyPreferDualStack, local.Service
	if name == "" {
		name = v.names.endpoint()
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: name, Labels: v.names.labels(componentEndpoint),
			OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, IPFamilyPolicy: &dual,
			// The label app glues two names together; the others tell which two they were.
			Selector: v.names.labels(v1alpha1.ComponentReceiver),
			Ports:    []corev1.ServicePort{{Name: portName, Port: int32(local.Port), TargetPort: intstr.FromString(portName)}},
		},
	}
}

func endpointStatus(v *view, s *corev1.Service, local endpoint.Local) *v1alpha1.EndpointStatus {
	out := &v1alpha1.EndpointStatus{Service: s.Name, Address: serviceAddress(s, local.Port)}
	switch {
	case len(s.Spec.Selector) > 0 && !selectsReceiver(v, s):
		out.Message = fmt.Sprintf("Service %s does not select this link's receiver: give it the selector %s: %s, or delete it and Lifeboat makes one", s.Name, labelApp, v.names.labels("")[labelApp])
	case !leadsTo(s, local.Port):
		out.Message = fmt.Sprintf("Service %s has no TCP port that leads to port %d of the receiver: give one of its ports targetPort %d, or name its port in localEndpoint", s.Name, local.Port, local.Port)
	case out.Address == "" && s.Spec.Type == corev1.ServiceTypeLoadBalancer:
		out.Message = fmt.Sprintf("Service %s waits for its platform to give it an address", s.Name)
	}
	return out
}

func leadsTo(s *corev1.Service, port int) bool {
	if len(s.Spec.Selector) == 0 {
		return true // its endpoints are somebody else's to set
	}
	return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		to := p.TargetPort
		return p.Protocol != corev1.ProtocolUDP && (to.StrVal == portName || to.IntValue() == port || to.IntValue() == 0 && to.StrVal == "" && int(p.Port) == port)
	})
}

// serviceAddress is where a peer reaches a Service, as far as the Service knows; a mapped address it does not.
func serviceAddress(s *corev1.Service, listens int) string {
	if len(s.Spec.Ports) == 0 {
		return ""
	}
	port := s.Spec.Ports[0]
	for _, p := range s.Spec.Ports {
		if p.TargetPort.StrVal == portName || p.TargetPort.IntValue() == listens {
			port = p
		}
	}
	at := func(host string) string { return endpoint.Address{Host: host, Port: int(port.Port)}.String() }
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if host := cmp.Or(ingress.IP, ingress.Hostname); host != "" {
			return at(host)
		}
	}
	switch {
	case len(s.Spec.ExternalIPs) > 0:
		return at(s.Spec.ExternalIPs[0])
	case s.Spec.Type == corev1.ServiceTypeClusterIP && s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone:
		return at(s.Spec.ClusterIP)
	}
	return ""
}

// removeEndpoints removes the Services that Lifeboat made as endpoints of this link.
func (r *Reconciler) removeEndpoints(ctx context.Context, v *view) error {
	if v.rlink.LocalEndpoint == "" && v.status.Endpoint == nil {
		return nil
	}
	_, err := r.endpoint(ctx, v, nil)
	return err
}
