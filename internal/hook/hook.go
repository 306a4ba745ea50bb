package hook

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// fieldOwner is who the API server notes for the changes this package makes.
const fieldOwner = client.FieldOwner("lifeboat-hook")

// pageSize bounds one answer of a list.
const pageSize = 500

// Hook stops and starts the applications of one cluster.
type Hook struct {
	reader client.Reader
	writer client.Client
}

// New returns a Hook. Reader asks the API server itself: "no pod is left" from a cache may be old news.
func New(reader client.Reader, writer client.Client) *Hook {
	return &Hook{reader: reader, writer: writer}
}

// Progress is how far Offline or Online came.
type Progress struct {
	// Done is true when nothing is left to do or to wait for.
	Done bool
	// Changed counts the workloads this call changed.
	Changed int
	// Waiting names what it waits for, one sentence each; those a user must act on say how.
	Waiting []string
}

// Offline stops the workloads of a namespace that match selector (nil: all) and reports which of their pods are
// not gone yet. Call it again until Done; it looks first, and what is stopped already keeps the count it has.
// Operation is noted on each workload it stops.
func (h *Hook) Offline(ctx context.Context, namespace string, selector *metav1.LabelSelector, operation string) (Progress, error) {
	before, err := h.look(ctx, namespace, selector)
	if err != nil {
		return Progress{}, err
	}
	// Jobs that a CronJob has started run on when it is suspended, so they are stopped as well.
	changed, err := h.change(ctx, slices.Concat(before.workloads, jobs(before.ownHelpers())), func(o *unstructured.Unstructured) bool { return stop(o, operation) })
	if err != nil {
		return Progress{Changed: changed}, err
	}
	after := before
	if changed > 0 {
		if after, err = h.look(ctx, namespace, selector); err != nil {
			return Progress{Changed: changed}, err
		}
	}
	waiting := after.left()
	return Progress{Done: len(waiting) == 0, Changed: changed, Waiting: waiting}, nil
}

// Online puts back every workload of a namespace that matches selector (nil: all) and that Offline stopped. It
// does not wait for pods: Observe tells when they are ready.
func (h *Hook) Online(ctx context.Context, namespace string, selector *metav1.LabelSelector) (Progress, error) {
	s, err := h.look(ctx, namespace, selector)
	if err != nil {
		return Progress{}, err
	}
	stopped := slices.Concat(s.workloads, jobs(s.ownHelpers()))
	slices.Reverse(stopped)
	changed, err := h.change(ctx, stopped, Undo)
	if err != nil {
		return Progress{Changed: changed}, err
	}
	return Progress{Done: true, Changed: changed}, nil
}

// Observe tells what the workloads of a namespace that match selector (nil: all) do now.
func (h *Hook) Observe(ctx context.Context, namespace string, selector *metav1.LabelSelector) (State, error) {
	s, err := h.look(ctx, namespace, selector)
	if err != nil {
		return State{}, err
	}
	return s.state(), nil
}

// look reads the application. Pods come last: see seen.
func (h *Hook) look(ctx context.Context, namespace string, selector *metav1.LabelSelector) (seen, error) {
	s := seen{namespace: namespace, selector: labels.Everything()}
	if selector != nil {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			return seen{}, fmt.Errorf("look at the application in namespace %s: selector: %w", namespace, err)
		}
		s.selector = parsed
	}
	for _, kind := range workloadKinds {
		found, err := h.list(ctx, namespace, kind.GroupVersionKind)
		if err != nil {
			return seen{}, err
		}
		for _, o := range found {
			switch {
			case o.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByLifeboat:
			case isHelper(o):
				s.helpers = append(s.helpers, o)
			case s.selector.Matches(labels.Set(o.GetLabels())):
				s.workloads = append(s.workloads, o)
			}
		}
	}
	pods, err := h.list(ctx, namespace, schema.GroupVersionKind{Version: "v1", Kind: "Pod"})
	if err != nil {
		return seen{}, err
	}
	s.pods = pods
	return s, nil
}

// isHelper recognises what another workload made and keeps: stopping that one stops it.
func isHelper(o *unstructured.Unstructured) bool {
	owner := controller(o)
	if owner == nil {
		return false
	}
	return slices.ContainsFunc(workloadKinds, func(k workloadKind) bool {
		return k.Kind == owner.Kind && k.Group == schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).Group
	})
}

func jobs(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	return slices.DeleteFunc(slices.Clone(objects), func(o *unstructured.Unstructured) bool { return o.GetKind() != "Job" })
}

func (h *Hook) list(ctx context.Context, namespace string, kind schema.GroupVersionKind) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	next := ""
	for {
		page := &unstructured.UnstructuredList{}
		page.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		if err := h.reader.List(ctx, page, client.InNamespace(namespace), client.Limit(pageSize), client.Continue(next)); err != nil {
			return nil, fmt.Errorf("list the %ss of namespace %s: %w", kind.Kind, namespace, err)
		}
		for i := range page.Items {
			all = append(all, &page.Items[i])
		}
		if next = page.GetContinue(); next == "" {
			sortByName(all)
			return all, nil
		}
	}
}

// change applies edit to each object that needs it, and counts those.
func (h *Hook) change(ctx context.Context, objects []*unstructured.Unstructured, edit func(*unstructured.Unstructured) bool) (int, error) {
	changed := 0
	for _, o := range objects {
		did, err := h.changeOne(ctx, o, edit)
		if err != nil {
			return changed, fmt.Errorf("change %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
		if did {
			changed++
		}
	}
	return changed, nil
}

// changeOne writes the edit in one request that fails if the object changed since it was read: a count that was
// not read is not kept. One that is gone needs no change.
func (h *Hook) changeOne(ctx context.Context, o *unstructured.Unstructured, edit func(*unstructured.Unstructured) bool) (bool, error) {
	did := false
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		after := o.DeepCopy()
		if did = edit(after); !did {
			return nil
		}
		patch := client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{})
		err := h.writer.Patch(ctx, after, patch, fieldOwner)
		if apierrors.IsConflict(err) {
			if read := h.reader.Get(ctx, client.ObjectKeyFromObject(o), o); read != nil {
				return read
			}
		}
		return err
	})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return did && err == nil, err
}

func fromUnstructured(raw map[string]any, into any) error {
	return runtime.DefaultUnstructuredConverter.FromUnstructured(raw, into)
}
