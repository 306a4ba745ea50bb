package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-179: the first pair of claims that does not fit is named, with both sides.
func TestTheFirstDifferingPairOfClaimsIsNamed(t *testing.T) {
	sides := func(edit func(here, there *half)) (half, half) {
		here := half{cluster: "east", role: v1alpha1.RoleSource, sizes: map[string]int64{"data": 1 << 30, "wal": 1 << 20}, there: map[string]string{"data": "copy-data", "wal": "wal"}}
		there := half{cluster: "west", role: v1alpha1.RoleTarget, sizes: map[string]int64{"copy-data": 1 << 30, "wal": 1 << 20}, there: map[string]string{"copy-data": "data", "wal": "wal"}}
		edit(&here, &there)
		return here, there
	}
	for _, c := range []struct {
		name string
		edit func(here, there *half)
		says string
	}{
		{"all fit", func(_, _ *half) {}, ""},
		{"a size", func(_, there *half) { there.sizes["wal"]++ }, "wal (cluster east) has 1Mi (1048576 bytes), wal (cluster west) has 1048577 (1048577 bytes)"},
		{"two sizes: the first", func(_, there *half) { there.sizes["wal"]++; there.sizes["copy-data"] = 1 }, "data (cluster east) has 1Gi"},
		{"the same map on both sides", func(here, there *half) {
			there.there = map[string]string{"copy-data": "copy-data", "data": "copy-data", "wal": "wal"}
		}, "each other's inverse"},
		{"a map of nothing", func(here, _ *half) { here.there["absent"] = "wal" }, "pvcMap names absent, which is no member of the group on cluster east"},
		{"a member that is missing there", func(_, there *half) { delete(there.sizes, "copy-data") }, "cluster west has no member copy-data"},
		{"a member that is missing here", func(_, there *half) { there.sizes["more"], there.there["more"] = 1, "more" }, "cluster east has no such member"},
		{"two sources", func(_, there *half) { there.role = v1alpha1.RoleSource }, "both sides have role source"},
	} {
		here, there := sides(c.edit)
		if got := firstDifference(here, there); (c.says == "") != (got == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", c.name, got, c.says)
		}
	}
}

func TestCheckWantsTwoClusters(t *testing.T) {
	for _, o := range []checkOptions{{contexts: []string{"east"}}, {contexts: []string{"east", "east"}}, {contexts: []string{"a", "b", "c"}}, {contexts: []string{"east"}, peerContext: "east"}} {
		if _, err := o.names(); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	if names, err := (checkOptions{contexts: []string{"east"}, peerContext: "west"}).names(); err != nil || names[1] != "west" {
		t.Errorf("%v, %v", names, err)
	}
}

// answer plays the manager of a cluster: it answers what is asked of a pair.
func answer(t *testing.T, c client.Client, pair string, results ...v1alpha1.CheckResult) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			var p v1alpha1.ClusterPair
			if c.Get(ctx, client.ObjectKey{Name: pair}, &p) == nil && p.Spec.CheckNow != "" {
				p.Status.Check = &v1alpha1.CheckReport{CheckNow: p.Spec.CheckNow, At: metav1.Now(), Results: results}
				_ = c.Status().Update(ctx, &p)
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func must0(t *testing.T, err error) {
	t.Helper()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// M-178, M-179: what both managers found and what both sides hold become lines, JSON and an exit code.
func TestCheckPrintsWhatBothClustersFind(t *testing.T) {
	var sides [2]checked
	for i, name := range []string{"checked-east", "checked-west"} {
		c, err := client.New(servers.Config(t, name), client.Options{Scheme: Scheme})
		if err != nil {
			t.Fatal(err)
		}
		peer := [2]string{"checked-west", "checked-east"}[i]
		must0(t, c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}))
		must0(t, c.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: clusterConfigMap}, Data: map[string]string{"name": name}}))
		must0(t, c.Create(t.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Provisioner: "disk.example.com"}))
		must0(t, c.Create(t.Context(), &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "to-peer"},
			Spec: v1alpha1.ClusterPairSpec{PeerCluster: peer, GatewayAddress: "[fd00::1]:9002", TrustSecretName: "trust"}}))
		size := []string{"1Gi", "2Gi"}[i]
		must0(t, c.Create(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"},
			Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}}}))
		must0(t, c.Create(t.Context(), &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
			Spec: v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: "data"}}}}))
		must0(t, c.Create(t.Context(), &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
			Spec: v1alpha1.ReplicationSpec{Role: []v1alpha1.Role{v1alpha1.RoleSource, v1alpha1.RoleTarget}[i], PVCGroupName: "db",
				Rlinks: []v1alpha1.Rlink{{RlinkName: "dr", ClusterPair: "to-peer"}}}}))
		sides[i] = checked{context: name, client: c}
	}
	answer(t, sides[0].client, "to-peer", v1alpha1.CheckResult{Name: "gateway", About: "[fd00::1]:9002", Outcome: v1alpha1.CheckPassed, Message: "accepts connections"})
	answer(t, sides[1].client, "to-peer", v1alpha1.CheckResult{Name: "gateway", About: "[fd00::1]:9002", Outcome: v1alpha1.CheckFailed, Message: "refused: open TCP port"})

	var out bytes.Buffer
	err := runCheck(t.Context(), sides, checkOptions{timeout: 30 * time.Second}, &out)
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitCheckFailed {
		t.Errorf("%v", err)
	}
	for _, line := range []string{
		"ok    checked-east -> checked-west gateway [fd00::1]:9002: accepts connections",
		"FAIL  checked-west -> checked-east gateway [fd00::1]:9002: refused: open TCP port",
		"FAIL  checked-east     installed lifeboat-manager",
		"run lifeboat install",
		"FAIL  checked-east     storage snapshot kinds: this cluster does not know VolumeSnapshots",
		"claims default/db: data (cluster checked-east) has 1Gi (1073741824 bytes), data (cluster checked-west) has 2Gi",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no line %q in\n%s", line, out.String())
		}
	}
	out.Reset()
	err = runCheck(t.Context(), sides, checkOptions{timeout: 30 * time.Second, asJSON: true}, &out)
	var all []finding
	if jsonErr := json.Unmarshal(out.Bytes(), &all); jsonErr != nil || len(all) < 6 || err == nil {
		t.Errorf("%v, %v: %s", jsonErr, err, out.String())
	}
}
