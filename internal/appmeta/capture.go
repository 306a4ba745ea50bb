package appmeta

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Capturer reads an application's objects from one cluster, ready for another.
//
// Left out: what describes the cluster (Events, Leases, snapshots, kube-root-ca.crt, token Secrets that
// controllers made), what a captured owner makes again (ReplicaSets of Deployments, Pods of anything, Jobs of
// CronJobs, Endpoints of Services with a selector), what has run to its end, what is being deleted, and
// Lifeboat's own objects. Taken off what is kept: Sanitise.
//
// Not carried yet: cluster-scoped objects other than static PersistentVolumes, among them
// CustomResourceDefinitions; the restore names each object whose kind is missing on the other side.
type Capturer struct{ api *api }

// NewCapturer returns a Capturer for the cluster of config.
func NewCapturer(config *rest.Config) (*Capturer, error) {
	a, err := newAPI(config)
	if err != nil {
		return nil, err
	}
	return &Capturer{api: a}, nil
}

// Request says what to capture.
type Request struct {
	Namespace string
	// Selector chooses by label; nil means everything.
	Selector *metav1.LabelSelector
	// Include and Exclude name resources, as "deployments.apps" or "configmaps".
	Include, Exclude []string
	// ReplicatedClaims have their data carried by a Replication; their volumes never are.
	ReplicatedClaims []string
}

// BadRequest says that a request can never be captured, whatever the cluster does.
type BadRequest struct{ Problem string }

func (e *BadRequest) Error() string { return e.Problem }

// Captured is what was found.
type Captured struct {
	// Objects in the order they are restored in; equal clusters give equal objects in equal order.
	Objects []*unstructured.Unstructured
	// Warnings tell what could not be looked at, one sentence each.
	Warnings []string
}

// Capture reads the namespace. Each kind is read at one instant, but not all of them at the same: an application
// that is being changed while it is captured is captured as its changes arrive.
func (c *Capturer) Capture(ctx context.Context, req Request) (Captured, error) {
	if req.Namespace == v1alpha1.SystemNamespace {
		return Captured{}, &BadRequest{fmt.Sprintf("namespace %s is Lifeboat's own and is never captured: it would carry this cluster's identity away", req.Namespace)}
	}
	selector := labels.Everything()
	if req.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(req.Selector); err != nil {
			return Captured{}, &BadRequest{fmt.Sprintf("spec.selector: %v", err)}
		}
	}
	namespace, err := c.api.get(ctx, namespaces, "", req.Namespace)
	if err != nil {
		return Captured{}, fmt.Errorf("read namespace %s: %w", req.Namespace, err)
	}
	served, silent, err := c.api.served(ctx)
	if err != nil {
		return Captured{}, err
	}
	resources, err := chooseResources(served, req.Include, req.Exclude)
	if err != nil {
		return Captured{}, err
	}
	lists, err := c.api.listAll(ctx, resources, req.Namespace)
	if err != nil {
		return Captured{}, fmt.Errorf("%w; mend it, or leave the resource out with spec.excludeResources", err)
	}
	read := slices.Concat(lists...)
	s := see(selector, req.ReplicatedClaims, read)
	objects := []*unstructured.Unstructured{Sanitise(namespace)}
	var claims []*unstructured.Unstructured
	for _, o := range read {
		if s.leave(o) != "" {
			continue
		}
		objects = append(objects, Sanitise(o))
		if o.GroupVersionKind().GroupKind() == kindClaim && !slices.Contains(req.ReplicatedClaims, o.GetName()) {
			claims = append(claims, o)
		}
	}
	volumes, err := c.volumes(ctx, claims)
	if err != nil {
		return Captured{}, err
	}
	objects = append(objects, volumes...)
	slices.SortFunc(objects, byWave)
	return Captured{Objects: objects, Warnings: silence(silent)}, nil
}

// volumes reads the static volumes that the claims are bound to.
func (c *Capturer) volumes(ctx context.Context, claims []*unstructured.Unstructured) ([]*unstructured.Unstructured, error) {
	found := make([]*unstructured.Unstructured, len(claims))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(parallel)
	for i, claim := range claims {
		name, _, _ := unstructured.NestedString(claim.Object, "spec", "volumeName")
		if name == "" {
			continue
		}
		work.Go(func() error {
			pv, err := c.api.get(ctx, persistentVolumes, "", name)
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read PersistentVolume %s of claim %s: %w", name, claim.GetName(), err)
			}
			if portableVolume(pv) {
				found[i] = Sanitise(pv)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(pv *unstructured.Unstructured) bool { return pv == nil }), nil
}

var (
	namespaces        = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	persistentVolumes = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
)

func (a *api) get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (found *unstructured.Unstructured, err error) {
	err = trying(ctx, func() error {
		found, err = a.dynamic.Resource(gvr).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return found, err
}

// byWave is the one order of captured objects.
func byWave(a, b *unstructured.Unstructured) int {
	ka, kb := a.GroupVersionKind(), b.GroupVersionKind()
	return cmp.Or(
		cmp.Compare(wave(ka.GroupKind()), wave(kb.GroupKind())),
		strings.Compare(ka.Group, kb.Group),
		strings.Compare(ka.Kind, kb.Kind),
		strings.Compare(a.GetName(), b.GetName()),
	)
}

func silence(groups []string) []string {
	var warnings []string
	for _, g := range groups {
		warnings = append(warnings, fmt.Sprintf("the API group %s does not answer: its objects, if there are any, are not in the snapshot", g))
	}
	return warnings
}
