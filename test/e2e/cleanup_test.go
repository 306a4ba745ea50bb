//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// inventory lists every object of a cluster but those that come and go by themselves, and every file of the storage driver's pool.
func inventory(t *testing.T, c demo.Cluster) []string {
	t.Helper()
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(),
		&clientcmd.ConfigOverrides{CurrentContext: c.Name}).ClientConfig()
	must(t, err)
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	must(t, err)
	kinds, err := d.ServerPreferredResources()
	must(t, err)
	var out []string
	for _, list := range kinds {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		must(t, err)
		for _, kind := range list.APIResources {
			switch kind.Kind {
			case "Event", "Lease", "Endpoints", "EndpointSlice", "ComponentStatus":
				continue
			}
			if !slices.Contains(kind.Verbs, "list") {
				continue
			}
			objects := &unstructured.UnstructuredList{}
			objects.SetGroupVersionKind(version.WithKind(kind.Kind + "List"))
			must(t, c.Client.List(t.Context(), objects))
			for _, o := range objects.Items {
				out = append(out, fmt.Sprintf("%s %s/%s", kind.Kind, o.GetNamespace(), o.GetName()))
			}
		}
	}
	files, err := exec.CommandContext(t.Context(), clustersProgram, "kubectl", c.Name, "exec", "-n", v1alpha1.SystemNamespace, "deployment/lifeboat-csi", "-c", "driver", "--",
		"find", "/var/lib/lifeboat-csi", "-type", "f").CombinedOutput()
	if err != nil {
		t.Fatalf("list the pool of %s: %v\n%s", c.Name, err, files)
	}
	for _, file := range strings.Fields(string(files)) {
		out = append(out, "file "+file)
	}
	slices.Sort(out)
	return out
}

// more is what a has and b has not.
func more(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(line string) bool { return slices.Contains(b, line) })
}

// M-097: what replication made is gone with its Replications, in the storage as well, and the user's claims stay. A target outlives its
// source and says so. A namespace that is deleted while it is replicated goes.
func TestDeletionLeavesNothing(t *testing.T) {
	s := tell(t)
	before := map[string][]string{}
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		before[c.Name] = inventory(t, c)
	}
	must(t, s.StartDatabase(t.Context()))
	must(t, s.FillDatabase(t.Context()))
	atHome := inventory(t, s.Home)
	slowly := resource.MustParse("2M")
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "postgres"}, Spec: v1alpha1.PVCGroupSpec{
		PVCList: []v1alpha1.PVCRef{{PVCName: "data-postgres-0"}}}}
	replication := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "postgres"}, Spec: v1alpha1.ReplicationSpec{
		Role: v1alpha1.RoleSource, PVCGroupName: "postgres", Rlinks: []v1alpha1.Rlink{{RlinkName: "peer", ClusterPair: s.Away.Name}}}}
	must(t, s.Home.Client.Create(t.Context(), group.DeepCopy()))
	must(t, s.Home.Client.Create(t.Context(), replication.DeepCopy()))
	until(t, 2*time.Minute, "the first point is recorded", func() (bool, string) {
		if _, err := s.Replication(t.Context(), s.Away); err != nil {
			return false, err.Error()
		}
		return rlink(t, s, s.Away).RecoveryPoint != nil, rlink(t, s, s.Home).WaitingFor
	})
	runs := func() {
		editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) {
			spec.Rlinks[0].BandwidthLimit, spec.TriggerNow = &slowly, "slowly"
		})
		until(t, time.Minute, "a session runs", func() (bool, string) {
			l := rlink(t, s, s.Home)
			return l.Session != nil && len(l.Objects) > 0, l.WaitingFor
		})
	}
	runs()

	must(t, s.Home.Client.Delete(t.Context(), group))
	must(t, s.Home.Client.Delete(t.Context(), replication))
	until(t, 90*time.Second, "the source leaves nothing", func() (bool, string) {
		left := more(inventory(t, s.Home), atHome)
		return len(left) == 0, strings.Join(left, ", ")
	})
	until(t, 2*time.Minute, "the target says that it has no source", func() (bool, string) {
		r, err := s.Replication(t.Context(), s.Away)
		must(t, err)
		message := conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
		return strings.HasPrefix(message, "False SourceMissing") && r.Status.Rlinks[0].RecoveryPoint != nil, message
	})

	there, err := s.Replication(t.Context(), s.Away)
	must(t, err)
	must(t, s.Away.Client.Delete(t.Context(), there))
	expected := func(line string) bool {
		for _, kept := range []string{"Namespace /" + s.Namespace, "ConfigMap " + s.Namespace + "/kube-root-ca.crt", "ServiceAccount " + s.Namespace + "/default",
			"PersistentVolumeClaim " + s.Namespace + "/data-postgres-0", "PersistentVolume /pvc-", "file /var/lib/lifeboat-csi/"} {
			if strings.HasPrefix(line, kept) {
				return true
			}
		}
		return false
	}
	until(t, 90*time.Second, "the target leaves the user's claim alone", func() (bool, string) {
		now := more(inventory(t, s.Away), before[s.Away.Name])
		left := slices.DeleteFunc(slices.Clone(now), expected)
		return len(left) == 0 && volumes(now) == 1, strings.Join(now, ", ")
	})
	claim := pvc(s, "data-postgres-0")
	must(t, s.Away.Client.Get(t.Context(), client.ObjectKeyFromObject(claim), claim))
	for key := range claim.Annotations {
		if strings.HasPrefix(key, "lifeboat.dev/") {
			t.Errorf("the claim still carries %s", key)
		}
	}

	// Once more, and now the namespaces go while a session runs.
	group.ResourceVersion, replication.ResourceVersion = "", ""
	must(t, s.Home.Client.Create(t.Context(), group))
	must(t, s.Home.Client.Create(t.Context(), replication))
	until(t, 2*time.Minute, "a first point again", func() (bool, string) {
		l := rlink(t, s, s.Home)
		return l.LastSession != nil && l.Session == nil, l.WaitingFor
	})
	runs()
	began := time.Now()
	must(t, s.MakeRoom(t.Context()))
	t.Logf("namespaces with a running replication were gone after %s", time.Since(began).Round(time.Millisecond))
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		until(t, 90*time.Second, "nothing is left on "+c.Name, func() (bool, string) {
			left := more(inventory(t, c), before[c.Name])
			return len(left) == 0, strings.Join(left, ", ")
		})
	}
}

// volumes counts the persistent volumes in an inventory.
func volumes(lines []string) int {
	n := 0
	for _, line := range lines {
		if strings.HasPrefix(line, "PersistentVolume /") {
			n++
		}
	}
	return n
}
