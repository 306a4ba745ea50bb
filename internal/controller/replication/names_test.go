package replication

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Names of two links or Replications never meet, however dashes fall, and those of the usual case can be read.
func TestNoTwoLinksShareAName(t *testing.T) {
	words := []string{"a", "b", "c", "a-b", "b-c", "a-b-c", "c-receiver", "c-mover", strings.Repeat("r", 18) + "-s"}
	long := []string{strings.Repeat("r", 40), strings.Repeat("r", 37) + "-rr"}
	taken := map[string]names{}
	note := func(kind, name string, of names) {
		t.Helper()
		if other, twice := taken[kind+" "+name]; twice && other != of {
			t.Errorf("%s %s is of %v and of %v", kind, name, other, of)
		}
		taken[kind+" "+name] = of
		if problems := append(validation.IsDNS1035Label(name), validation.IsValidLabelValue(name)...); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
	}
	for _, replication := range append(slices.Clone(words), long...) {
		for _, rlink := range words {
			n := names{"shop", replication, rlink}
			note("secret", n.mover(), n)
			note("secret", n.receiver(), n)
			note("service", n.receiver(), n)
			note("service", n.endpoint(), n)
			note("pod", n.binder(), n)
			note("job", n.job("20261121t120000-0000aa"), n)
			note("job", n.rollback("20261121t120000-0000aa"), n)
			note("config", n.receiverConfig("0123456789"), n)
			// A namespace and a claim are words too, and a volume is among all namespaces'.
			for _, claim := range words {
				of := names{replication, rlink, claim}
				note("volume", names{namespace: replication, replication: rlink}.replicaVolume(claim), of)
			}
		}
	}
	usual := names{"shop", "order-db", "west"}
	for got, want := range map[string]string{usual.receiver(): "lb-order-db-west-receiver", usual.mover(): "lb-order-db-west-mover",
		names{"shop", "db", ""}.replicaVolume("data-postgres-0"): "lb-shop-db-data-postgres-0-replica"} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// grouped makes a replication of one claim, all by one name but for the link's.
func (w *world) grouped(name, rlink string) {
	w.east.claim(name, "1Gi", className)
	w.east.group(name, name)
	w.east.replication(name, v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.PVCGroupName, r.Spec.Rlinks[0].RlinkName = name, rlink
	})
}

// Two Replications whose names and links come to the same once joined live side by side, and one goes without taking what is the other's.
func TestTwoReplicationsWhoseNamesLookAlike(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.grouped("a", "b-c")
	w.grouped("a-b", "c")
	w.until("both have a point", func() bool { return w.east.committed("a", "")() && w.east.committed("a-b", "")() })
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("a")))
	w.west.must(w.west.kube.Delete(t.Context(), w.west.get("a")))
	w.until("one is gone", func() bool { return w.east.get("a") == nil && w.west.get("a") == nil })
	for _, s := range []*side{w.east, w.west} {
		for _, made := range s.made() {
			if strings.Contains(made, "lb-a-b-c-") && !strings.Contains(made, names{w.namespace, "a-b", "c"}.ofLink()) {
				t.Errorf("%s is left in %s", made, s.name)
			}
		}
	}
	w.west.only(&appsv1.DeploymentList{}, "lb-a-b-c-receiver", map[string]string{v1alpha1.LabelReplication: "a-b", v1alpha1.LabelRlink: "c", labelApp: "a-bc", v1alpha1.LabelComponent: v1alpha1.ComponentReceiver})
	w.east.trigger("a-b", "on")
	w.until("the other goes on", w.east.committed("a-b", "on"))
}

// M-161: users' Services select a receiver by a label that is two names without anything between them. A link that would share it is refused.
func TestALinkWhoseLabelIsTakenIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.grouped("x", "yz")
	w.until("the first point", w.east.committed("x", ""))
	w.skip = 0
	w.grouped("xy", "z")
	w.until("the younger one is refused", func() bool {
		c := w.east.ready("xy")
		return c.Reason == reasonLabelTaken && strings.Contains(c.Message, "link yz of Replication x and link z of this one") && strings.Contains(c.Message, "app: xyz")
	})
	w.east.trigger("x", "on")
	w.until("the older one goes on", w.east.committed("x", "on"))
	var pods corev1.PodList
	w.west.list(&pods)
	for _, pod := range pods.Items {
		if pod.Labels[v1alpha1.LabelReplication] == "xy" {
			t.Errorf("pod %s of the refused one bears %v", pod.Name, pod.Labels)
		}
	}
}
