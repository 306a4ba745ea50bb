package appmeta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const (
	// parallel bounds the requests one capture or restore has under way.
	parallel = 32
	// pageSize bounds one answer of a list.
	pageSize = 500
)

// retries are the pauses between the tries of one request: about 3 s in all. What lasts longer is reported.
var retries = wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Steps: 6}

// api is one cluster's API as this package walks it.
type api struct {
	dynamic   dynamic.Interface
	discovery *discovery.DiscoveryClient
}

// newAPI returns a client without a rate limit of its own: the number of requests under way is bounded, and the
// API server's priority and fairness is the judge of the rest.
func newAPI(config *rest.Config) (*api, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.RateLimiter = nil
	// Deprecation warnings are about the kinds users chose, once per object: no line of log helps them.
	config.WarningHandler = rest.NoWarnings{}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a dynamic client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a discovery client: %w", err)
	}
	return &api{dynamic: dyn, discovery: disco}, nil
}

// resource is one kind as a cluster serves it.
type resource struct {
	schema.GroupVersionResource
	kind       string
	namespaced bool
	verbs      []string
	// preferred is true for the version the cluster prefers.
	preferred bool
}

func (r resource) gvk() schema.GroupVersionKind { return r.GroupVersion().WithKind(r.kind) }

func (r resource) can(verbs ...string) bool {
	return !slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(r.verbs, v) })
}

// served asks what the cluster serves now. Groups whose servers do not answer are named in silent: what they
// hold is unknown, not absent.
func (a *api) served(ctx context.Context) (found []resource, silent []string, err error) {
	groups, lists, err := a.discovery.ServerGroupsAndResourcesWithContext(ctx)
	var partly *discovery.ErrGroupDiscoveryFailed
	if errors.As(err, &partly) {
		for gv := range partly.Groups {
			silent = append(silent, gv.String())
		}
		slices.Sort(silent)
	} else if err != nil {
		return nil, nil, fmt.Errorf("discover what the cluster serves: %w", err)
	}
	preferred := preferredVersions(groups, lists)
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, nil, fmt.Errorf("discover what the cluster serves: %w", err)
		}
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") {
				continue
			}
			found = append(found, resource{
				GroupVersionResource: gv.WithResource(r.Name),
				kind:                 r.Kind,
				namespaced:           r.Namespaced,
				verbs:                r.Verbs,
				preferred:            preferred[gv.WithResource(r.Name).GroupResource()] == gv.Version,
			})
		}
	}
	return found, silent, nil
}

// preferredVersions is, for each resource, the first version that serves it, the group's preferred one first.
func preferredVersions(groups []*metav1.APIGroup, lists []*metav1.APIResourceList) map[schema.GroupResource]string {
	serves := map[string]*metav1.APIResourceList{}
	for _, list := range lists {
		serves[list.GroupVersion] = list
	}
	preferred := map[schema.GroupResource]string{}
	for _, g := range groups {
		for _, v := range append([]metav1.GroupVersionForDiscovery{g.PreferredVersion}, g.Versions...) {
			list := serves[v.GroupVersion]
			if list == nil {
				continue
			}
			for _, r := range list.APIResources {
				gr := schema.GroupResource{Group: g.Name, Resource: r.Name}
				if _, known := preferred[gr]; !known {
					preferred[gr] = v.Version
				}
			}
		}
	}
	return preferred
}

// list reads every object of a resource in a namespace, page by page. A resource that vanished meanwhile has none.
func (a *api) list(ctx context.Context, gvr schema.GroupVersionResource, namespace string) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	next := ""
	for {
		var page *unstructured.UnstructuredList
		err := trying(ctx, func() (err error) {
			page, err = a.dynamic.Resource(gvr).Namespace(namespace).List(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
			return err
		})
		switch {
		case apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
			return nil, nil
		case apierrors.IsResourceExpired(err) && next != "":
			// The instant the pages are read at is compacted away: begin again with a newer one.
			all, next = nil, ""
			continue
		case err != nil:
			return nil, fmt.Errorf("list %s in namespace %s: %w", gvr.GroupResource(), namespace, err)
		}
		for i := range page.Items {
			all = append(all, &page.Items[i])
		}
		if next = page.GetContinue(); next == "" {
			return all, nil
		}
	}
}

// listAll reads several resources at once; the answer has their order.
func (a *api) listAll(ctx context.Context, resources []resource, namespace string) ([][]*unstructured.Unstructured, error) {
	lists := make([][]*unstructured.Unstructured, len(resources))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(parallel)
	for i, r := range resources {
		work.Go(func() (err error) {
			lists[i], err = a.list(ctx, r.GroupVersionResource, namespace)
			return err
		})
	}
	return lists, work.Wait()
}

// trying repeats a request while it fails in a way that passes by itself.
func trying(ctx context.Context, request func() error) error {
	pause := retries
	for {
		err := request()
		if err == nil || !passing(err) || pause.Steps <= 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause.Step()):
		}
	}
}

// passing reports whether an error may be gone at the next try with nothing changed: the API server is busy,
// restarting or out of reach, a webhook's pod is not up, somebody else wrote first, or a namespace is on its way out.
func passing(err error) bool {
	var network net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case apierrors.IsConflict(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err),
		apierrors.IsInternalError(err), apierrors.IsServiceUnavailable(err), apierrors.IsUnexpectedServerError(err),
		apierrors.HasStatusCause(err, "NamespaceTerminating"):
		return true
	case errors.As(err, &network):
		return true
	}
	return false
}
