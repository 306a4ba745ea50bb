package clusterpair

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link"
)

// defaultTolerance is the API's default, for objects that were stored before there was one.
const defaultTolerance = 5

func (r *Reconciler) act(pair *v1alpha1.ClusterPair, s seen) error {
	if s.reason != "" {
		r.Links.SetBroken(pair.Name, pair.Spec.PeerCluster, s.reason, s.message)
		return nil
	}
	tolerance := pair.Spec.HeartbeatMissTolerance
	if tolerance == 0 {
		tolerance = defaultTolerance
	}
	return r.Links.Set(pair.Name, link.Endpoint{
		PeerCluster: pair.Spec.PeerCluster,
		Address:     pair.Spec.GatewayAddress,
		CAPEM:       string(s.caPEM),
	}, tolerance)
}

// adoptTrust lets the trust Secret that pairing made go with its pair, so that nobody is trusted whom no pair names. A Secret that a
// person made stays the person's.
func (r *Reconciler) adoptTrust(ctx context.Context, pair *v1alpha1.ClusterPair) error {
	var secret corev1.Secret
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: pair.Spec.TrustSecretName}
	if err := r.Trust.Get(ctx, key, &secret); err != nil {
		return client.IgnoreNotFound(err)
	}
	if secret.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByLifeboat || slices.ContainsFunc(secret.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == pair.UID }) {
		return nil
	}
	secret.OwnerReferences = append(secret.OwnerReferences, metav1.OwnerReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "ClusterPair", Name: pair.Name, UID: pair.UID})
	if err := r.Update(ctx, &secret); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("let Secret %s go with ClusterPair %s: %w", key, pair.Name, err)
	}
	return nil
}

// maxResults is how many results of a check are shown.
const maxResults = 512

// check answers spec.checkNow, once for each value.
func (r *Reconciler) check(ctx context.Context, pair *v1alpha1.ClusterPair, s seen) {
	asked, answered := pair.Spec.CheckNow, ""
	if pair.Status.Check != nil {
		answered = pair.Status.Check.CheckNow
	}
	if r.Checker == nil || asked == "" || asked == answered {
		return
	}
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	report := &v1alpha1.CheckReport{CheckNow: asked}
	if s.reason != "" {
		report.Results = []v1alpha1.CheckResult{{Name: "pair", About: pair.Name, Outcome: v1alpha1.CheckFailed, Message: s.message}}
	} else {
		report.Results = r.Checker.Check(ctx, pair, s.caPEM)
	}
	report.Results = report.Results[:min(len(report.Results), maxResults)]
	report.At = metav1.NewTime(now())
	pair.Status.Check = report
}

// tell makes an event of a link that changed.
func (r *Reconciler) tell(before, now *v1alpha1.ClusterPair) {
	if r.Events == nil || before.Status.LinkState == now.Status.LinkState {
		return
	}
	kind := corev1.EventTypeNormal
	if now.Status.LinkState == v1alpha1.LinkLost || now.Status.LinkState == v1alpha1.LinkRefused {
		kind = corev1.EventTypeWarning
	}
	message := string(now.Status.LinkState)
	for _, c := range now.Status.Conditions {
		if c.Type == v1alpha1.ConditionConnected {
			message = c.Message
		}
	}
	r.Events.Eventf(now, nil, kind, "Link"+string(now.Status.LinkState), "Heartbeat", "%s", message)
}
