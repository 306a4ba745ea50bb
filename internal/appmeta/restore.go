package appmeta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// FieldManager is who the API server notes for restored fields.
const FieldManager = "lifeboat-restore"

// Restorer brings a snapshot's objects into one cluster.
type Restorer struct {
	api     *api
	reader  client.Reader
	library *Library
}

// NewRestorer returns a Restorer for the cluster of config. Reader asks the API server itself.
func NewRestorer(config *rest.Config, reader client.Reader, library *Library) (*Restorer, error) {
	a, err := newAPI(config)
	if err != nil {
		return nil, err
	}
	return &Restorer{api: a, reader: reader, library: library}, nil
}

// ObjectError is an object that was not restored, and why.
type ObjectError struct {
	// Object as "Deployment.apps shop/web".
	Object string
	// Reason is a sentence for the operator. It never quotes a Secret.
	Reason string
}

// RestoreResult is how a restore stands after a call.
type RestoreResult struct {
	// Done is true when calling again changes nothing: every object is there, or failed in a way that does not
	// pass by itself. When false, Message says what it waits for.
	Done bool
	// Applied were written by this call, Unchanged were right already, Total is what the snapshot holds.
	Applied, Unchanged, Total int
	// Failed are in the order of the restore.
	Failed  []ObjectError
	Message string
}

// Restore applies an ApplicationSnapshot of the namespace, wave by wave, on behalf of an operation. It looks at what
// is there first and may be called again at any time: objects this operation has restored are left alone.
//
// What a user or an earlier restore left in an object beside what was captured is removed, so that the object is as
// it was captured. Claims and namespaces are the exception: they are only added to, and a claim that exists stays
// bound as it is. An error means that nothing can be said: no such snapshot, a damaged one, or no answer.
func (r *Restorer) Restore(ctx context.Context, namespace, snapshot, operation string) (RestoreResult, error) {
	objects, by, err := r.open(ctx, namespace, snapshot, operation)
	if err != nil {
		return RestoreResult{}, fmt.Errorf("restore application snapshot %s/%s: %w", namespace, snapshot, err)
	}
	job, err := r.prepare(ctx, namespace, by, objects)
	if err != nil {
		return RestoreResult{}, fmt.Errorf("restore application snapshot %s/%s: %w", namespace, snapshot, err)
	}
	for _, wave := range byWaves(objects) {
		if waits := job.waits(ctx, wave); waits != "" {
			return job.result(false, waits), nil
		}
		if err := job.apply(ctx, wave); err != nil {
			return RestoreResult{}, fmt.Errorf("restore application snapshot %s/%s: %w", namespace, snapshot, err)
		}
		if len(job.passing) > 0 {
			return job.result(false, "tries again: "+job.passing[0].Object+": "+job.passing[0].Reason), nil
		}
	}
	return job.result(true, ""), nil
}

// open reads the snapshot's objects and says in whose name they are restored.
func (r *Restorer) open(ctx context.Context, namespace, name, operation string) (objects []*unstructured.Unstructured, by string, err error) {
	var snapshot v1alpha1.ApplicationSnapshot
	if err := r.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &snapshot); err != nil {
		return nil, "", err
	}
	if snapshot.Status.Phase != v1alpha1.SnapshotCompleted {
		return nil, "", fmt.Errorf("its phase is %q, only a Completed one can be restored", snapshot.Status.Phase)
	}
	objects, err = r.library.Load(ctx, namespace, name, snapshot.Status.Digest)
	return objects, fmt.Sprintf("%s/%s@%s", namespace, snapshot.Spec.PlanName, operation), err
}

// restoration is one call of Restore.
type restoration struct {
	api       *api
	namespace string
	by        string
	kinds     map[schema.GroupVersionKind]resource
	// live are the objects that were there when the call began.
	live map[objectKey]*unstructured.Unstructured

	mu                 sync.Mutex
	total              int
	applied, unchanged int
	failed, passing    []ObjectError
	lostVolumes        map[string]string
}

type objectKey struct {
	schema.GroupKind
	name string
}

func keyOf(o *unstructured.Unstructured) objectKey {
	return objectKey{o.GroupVersionKind().GroupKind(), o.GetName()}
}

// prepare learns what the cluster serves and reads what is there of the kinds to restore, one list a kind.
func (r *Restorer) prepare(ctx context.Context, namespace, by string, objects []*unstructured.Unstructured) (*restoration, error) {
	served, _, err := r.api.served(ctx)
	if err != nil {
		return nil, err
	}
	job := &restoration{
		api: r.api, namespace: namespace, by: by, total: len(objects),
		kinds: map[schema.GroupVersionKind]resource{}, live: map[objectKey]*unstructured.Unstructured{}, lostVolumes: map[string]string{},
	}
	for _, s := range served {
		if s.can("create") {
			job.kinds[s.gvk()] = s
		}
	}
	var wanted []resource
	for _, o := range objects {
		kind, known := job.kinds[o.GroupVersionKind()]
		if known && kind.namespaced && !slices.ContainsFunc(wanted, func(w resource) bool { return w.GroupVersionResource == kind.GroupVersionResource }) {
			wanted = append(wanted, kind)
		}
	}
	lists, err := r.api.listAll(ctx, wanted, namespace)
	if err != nil {
		return nil, err
	}
	for _, o := range slices.Concat(lists...) {
		job.live[keyOf(o)] = o
	}
	return job, job.readClusterScoped(ctx, objects)
}

// readClusterScoped looks at the namespace and the volumes to restore, one by one: there are few.
func (job *restoration) readClusterScoped(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		kind, known := job.kinds[o.GroupVersionKind()]
		if !known || kind.namespaced {
			continue
		}
		found, err := job.api.get(ctx, kind.GroupVersionResource, "", o.GetName())
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("read %s: %w", nameOf(o), err)
		default:
			job.live[keyOf(o)] = found
		}
	}
	return nil
}

// byWaves cuts objects, which are in the order of their waves, where the wave changes.
func byWaves(objects []*unstructured.Unstructured) [][]*unstructured.Unstructured {
	objects = slices.SortedStableFunc(slices.Values(objects), byWave)
	var cut [][]*unstructured.Unstructured
	last := -1
	for _, o := range objects {
		if w := wave(o.GroupVersionKind().GroupKind()); w != last {
			cut, last = append(cut, nil), w
		}
		cut[len(cut)-1] = append(cut[len(cut)-1], o)
	}
	return cut
}

// waits tells what a wave cannot begin without. Pods are refused while their namespace has no default
// ServiceAccount, which its controller makes a moment after the namespace.
func (job *restoration) waits(ctx context.Context, wave []*unstructured.Unstructured) string {
	namespace := job.live[objectKey{kindNamespace, job.namespace}]
	if namespace != nil && namespace.GetDeletionTimestamp() != nil {
		return fmt.Sprintf("waits until namespace %s, which is being deleted, is gone", job.namespace)
	}
	if !slices.ContainsFunc(wave, func(o *unstructured.Unstructured) bool { return o.GroupVersionKind().GroupKind() == kindPod }) {
		return ""
	}
	_, err := job.api.get(ctx, serviceAccounts, job.namespace, "default")
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("waits for the default ServiceAccount of namespace %s", job.namespace)
	}
	return ""
}

var serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}

// apply applies one wave in parallel. An error is only that of ctx: an object's failure is a result.
func (job *restoration) apply(ctx context.Context, wave []*unstructured.Unstructured) error {
	outcomes := make([]outcome, len(wave))
	var work errgroup.Group
	work.SetLimit(parallel)
	for i, o := range wave {
		if ctx.Err() != nil {
			break
		}
		work.Go(func() error {
			outcomes[i] = job.restore(ctx, o)
			return nil
		})
	}
	_ = work.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, o := range wave {
		job.note(o, outcomes[i])
	}
	return nil
}

// outcome is what became of one object.
type outcome struct {
	changed bool
	err     error
}

func (job *restoration) note(o *unstructured.Unstructured, out outcome) {
	switch {
	case out.err == nil && out.changed:
		job.applied++
	case out.err == nil:
		job.unchanged++
	case passing(out.err):
		job.passing = append(job.passing, ObjectError{nameOf(o), job.reason(o, out.err)})
	default:
		job.failed = append(job.failed, ObjectError{nameOf(o), job.reason(o, out.err)})
		if ref, _, _ := unstructured.NestedString(o.Object, "spec", "claimRef", "name"); o.GroupVersionKind().GroupKind() == kindVolume {
			job.lostVolumes[ref] = o.GetName()
		}
	}
}

func (job *restoration) result(done bool, message string) RestoreResult {
	if message == "" {
		message = fmt.Sprintf("%d applied, %d unchanged, %d failed, of %d objects", job.applied, job.unchanged, len(job.failed), job.total)
	}
	return RestoreResult{
		Done: done, Applied: job.applied, Unchanged: job.unchanged, Total: job.total,
		Failed: slices.Concat(job.failed, job.passing), Message: message,
	}
}

// refusal is an object that is not applied, with a reason that an operator can act on.
type refusal string

func (r refusal) Error() string { return string(r) }

// restore brings one object about.
func (job *restoration) restore(ctx context.Context, o *unstructured.Unstructured) outcome {
	kind, known := job.kinds[o.GroupVersionKind()]
	if !known {
		return outcome{err: job.notServed(o)}
	}
	if err := job.allowed(o); err != nil {
		return outcome{err: err}
	}
	live := job.live[keyOf(o)]
	target := job.api.dynamic.Resource(kind.GroupVersionResource).Namespace(o.GetNamespace())
	switch o.GroupVersionKind().GroupKind() {
	case kindNamespace:
		// Not marked as restored: a purge that removed the namespace would remove everything in it.
		if live != nil {
			return merge(ctx, target, live, o)
		}
		return outcome{changed: true, err: apply(ctx, target, o)}
	case kindClaim:
		if live != nil {
			return merge(ctx, target, live, o)
		}
	case kindVolume:
		if live != nil {
			return job.keepVolume(live, o)
		}
	}
	wanted := job.marked(o)
	if live == nil {
		return outcome{changed: true, err: apply(ctx, target, wanted)}
	}
	return job.renew(ctx, target, live, o, wanted)
}

// marked is the object as it is applied: with the mark of who restores it.
func (job *restoration) marked(o *unstructured.Unstructured) *unstructured.Unstructured {
	wanted := o.DeepCopy()
	annotations := wanted.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[v1alpha1.AnnotationRestoredBy] = job.by
	wanted.SetAnnotations(annotations)
	return wanted
}

// allowed refuses what a snapshot, which another cluster made, may not bring here.
func (job *restoration) allowed(o *unstructured.Unstructured) error {
	switch o.GroupVersionKind().GroupKind() {
	case kindVolume:
		if onNode(o) {
			return refusal("it is a directory or disk of a node, which no snapshot may bring to another cluster")
		}
		if in, _, _ := unstructured.NestedString(o.Object, "spec", "claimRef", "namespace"); in != job.namespace {
			return refusal(fmt.Sprintf("its spec.claimRef.namespace is %q, and only volumes for namespace %s are restored", in, job.namespace))
		}
	case kindClaim:
		if volume, lost := job.lostVolumes[o.GetName()]; lost {
			return refusal(fmt.Sprintf("not made, because its PersistentVolume %s could not be restored: a provisioner would make a new, empty volume for it", volume))
		}
	}
	return nil
}

func (job *restoration) notServed(o *unstructured.Unstructured) error {
	gvk := o.GroupVersionKind()
	var versions []string
	for served := range job.kinds {
		if served.GroupKind() == gvk.GroupKind() {
			versions = append(versions, served.Version)
		}
	}
	if len(versions) > 0 {
		slices.Sort(versions)
		return refusal(fmt.Sprintf("this cluster serves %s as %s, not as %s in which it was captured: serve that version here too, or capture again from a cluster that prefers one of these", gvk.GroupKind(), strings.Join(versions, ", "), gvk.Version))
	}
	return refusal(fmt.Sprintf("this cluster serves no %s: install its CustomResourceDefinition and operator; the restore continues from there", gvk.GroupKind()))
}

// keepVolume leaves an existing PersistentVolume as it is, if it is for the same claim.
func (job *restoration) keepVolume(live, o *unstructured.Unstructured) outcome {
	claimOf := func(pv *unstructured.Unstructured) string {
		ref, _, _ := unstructured.NestedStringMap(pv.Object, "spec", "claimRef")
		return ref["namespace"] + "/" + ref["name"]
	}
	if have, want := claimOf(live), claimOf(o); have != want {
		return outcome{err: refusal(fmt.Sprintf("a PersistentVolume of that name exists here for claim %s, the captured one is for %s: rename or remove it", have, want))}
	}
	return outcome{}
}

// merge adds the captured labels and annotations to an object whose spec is this cluster's own.
func merge(ctx context.Context, target resourceClient, live, o *unstructured.Unstructured) outcome {
	metadata := map[string]any{}
	if added := lacking(live.GetLabels(), o.GetLabels()); len(added) > 0 {
		metadata["labels"] = added
	}
	if added := lacking(live.GetAnnotations(), o.GetAnnotations()); len(added) > 0 {
		metadata["annotations"] = added
	}
	if len(metadata) == 0 {
		return outcome{}
	}
	return outcome{changed: true, err: patch(ctx, target, o.GetName(), map[string]any{"metadata": metadata})}
}

// lacking are the entries of want that have does not hold.
func lacking(have, want map[string]string) map[string]any {
	added := map[string]any{}
	for k, v := range want {
		if held, found := have[k]; !found || held != v {
			added[k] = v
		}
	}
	return added
}

// renew makes an existing object what was captured. Server-side apply alone removes only what its own manager put
// there before, so the fields of earlier writers are taken over first if the object differs.
func (job *restoration) renew(ctx context.Context, target resourceClient, live, o, wanted *unstructured.Unstructured) outcome {
	if same(live, o) {
		if live.GetAnnotations()[v1alpha1.AnnotationRestoredBy] == job.by {
			return outcome{}
		}
		return outcome{changed: true, err: apply(ctx, target, wanted)}
	}
	err := trying(ctx, func() error {
		current, err := target.Get(ctx, o.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		return takeOver(ctx, target, current)
	})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	if err != nil {
		return outcome{err: err}
	}
	return outcome{changed: true, err: apply(ctx, target, wanted)}
}

// reason says why an object was not applied. What the API server says of a Secret may quote it, so of a Secret only
// the fields are named.
func (job *restoration) reason(o *unstructured.Unstructured, err error) string {
	text := err.Error()
	var status apierrors.APIStatus
	if errors.As(err, &status) && o.GroupVersionKind().GroupKind() == kindSecret {
		text = unquoted(status.Status())
	}
	if _, existed := job.live[keyOf(o)]; existed && apierrors.IsInvalid(err) {
		text += "; the object exists here already: if the field cannot be changed, delete the object here and the restore makes it anew"
	}
	return text
}

func unquoted(status metav1.Status) string {
	text := "the API server refuses it: " + string(status.Reason)
	if status.Details == nil {
		return text
	}
	for _, cause := range status.Details.Causes {
		text += fmt.Sprintf("; %s: %s", cause.Field, cause.Type)
	}
	return text
}
