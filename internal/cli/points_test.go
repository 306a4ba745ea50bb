package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

func at(minute int) time.Time { return time.Date(2026, 3, 1, 12, minute, 0, 0, time.UTC) }

// M-103: what a target keeps is listed newest first, also what only the snapshots tell of.
func TestRecoveryPointsAreListed(t *testing.T) {
	seen := func(point, claim string, edit func(*snapshot.Seen)) snapshot.Seen {
		s := snapshot.Seen{Name: point + "-" + claim, Point: point, Claim: claim, Purpose: snapshot.ForRecovery, Ready: true, RestoreSize: 1 << 30, CreatedAt: at(50)}
		if edit != nil {
			edit(&s)
		}
		return s
	}
	group := func(s *snapshot.Seen) { s.Group = "lb-app-p3" }
	rep := &v1alpha1.Replication{Status: v1alpha1.ReplicationStatus{Role: v1alpha1.RoleTarget, Rlinks: []v1alpha1.RlinkStatus{{
		RecoveryPoint: &v1alpha1.RecoveryPoint{Point: "p4", Time: metav1.NewTime(at(4)), Epoch: 2, Cut: v1alpha1.CutNotAtomic},
		RecoveryPoints: []v1alpha1.RecoveryPoint{
			{Point: "p5", Time: metav1.NewTime(at(5)), Epoch: 2, Cut: v1alpha1.CutAtomic},
			{Point: "p3", Time: metav1.NewTime(at(3)), Epoch: 2, Cut: v1alpha1.CutAtomic},
			{Point: "gone", Time: metav1.NewTime(at(2)), Epoch: 2},
		},
	}}}}
	refused := func(s *snapshot.Seen) { s.Name, s.Group, s.Deleting = "member-"+s.Claim, "lb-app-p5", true }
	points := joinPoints(rep, []snapshot.Seen{
		// The storage refused to cut p5 as one; what it made of it is on its way out.
		seen("p5", "data", refused), seen("p5", "data", nil), seen("p5", "wal", nil), seen("p5", "wal", refused),
		seen("p1", "data", func(s *snapshot.Seen) { s.Instant, s.Epoch, s.Cut = at(1), 1, v1alpha1.CutSingle }),
		seen("p3", "wal", group), seen("p3", "data", group),
		seen("p2", "data", func(s *snapshot.Seen) { s.Instant, s.Ready, s.Error = at(2), false, "the pool is full" }),
		{Name: "base", Point: "s", Purpose: snapshot.ForSession},
	})
	var out bytes.Buffer
	if err := printPoints(points, at(14), &out); err != nil {
		t.Fatal(err)
	}
	want := `POINT  AGE  INSTANT               EPOCH  ONE INSTANT  SIZE   KEPT AS                        RESTORABLE
p5     9m   2026-03-01T12:05:00Z  2      yes          2 GiB  2 VolumeSnapshots              yes
p4     10m  2026-03-01T12:04:00Z  2      no           -      replica                        no: only the replica holds it
p3     11m  2026-03-01T12:03:00Z  2      yes          2 GiB  VolumeGroupSnapshot lb-app-p3  yes
p2     12m  2026-03-01T12:02:00Z  -      not known    1 GiB  VolumeSnapshot p2-data         no: the pool is full
p1     13m  2026-03-01T12:01:00Z  1      one claim    1 GiB  VolumeSnapshot p1-data         yes
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
	o := restoreOptions{key: types.NamespacedName{Namespace: "shop", Name: "app"}}
	for asked, expect := range map[string]string{latestPoint: "p5", "p1": "p1", "p2": "the pool is full", "p4": "only the replica holds it", "p9": "it keeps p5, p3, p1"} {
		o.point = asked
		p, err := choosePoint(points, o)
		switch {
		case err != nil && !strings.Contains(err.Error(), expect), err == nil && p.Point != expect:
			t.Errorf("--point %s: %s, %v", asked, p.Point, err)
		}
	}
	if claims := points[2].claims(); !slices.Equal(claims, []string{"data", "wal"}) {
		t.Errorf("claims of p3: %v", claims)
	}
}

// M-105, M-092: claims are made from a point beside those that are there, and never over one, also when the Replication is gone and its
// snapshots were retained.
func TestRestoreMakesNewClaimsOnly(t *testing.T) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		t.Skip("needs an API server: set KUBEBUILDER_ASSETS, or run make test")
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8").Output()
	if err != nil {
		t.Fatal(err)
	}
	env := &envtest.Environment{CRDDirectoryPaths: []string{"../../deploy/crds", filepath.Join(strings.TrimSpace(string(dir)), "config", "crd", "snapshot.storage.k8s.io_volumesnapshots.yaml")}, ErrorIfCRDPathMissing: true}
	cfg, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = env.Stop() })
	c, err := client.New(cfg, client.Options{Scheme: Scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	create := func(o client.Object) {
		t.Helper()
		if err := c.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	class, mode := "fast", corev1.PersistentVolumeBlock
	claim := func(name string) {
		create(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class, VolumeMode: &mode,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}})
	}
	claim("data")
	snapclass, size, yes := "snap", resource.MustParse("2Gi"), true
	p := snapshot.Point{Namespace: "shop", Replication: "app", Rlink: "dr", ID: "p1", Purpose: snapshot.ForRecovery, Instant: at(1), Epoch: 1}
	if err := p.Take(ctx, c, []string{"data", "wal"}, []string{snapclass, snapclass}); err != nil {
		t.Fatal(err)
	}
	var list snapshotv1.VolumeSnapshotList
	if err := c.List(ctx, &list); err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		list.Items[i].Status = &snapshotv1.VolumeSnapshotStatus{ReadyToUse: &yes, RestoreSize: &size}
		if err := c.Status().Update(ctx, &list.Items[i]); err != nil {
			t.Fatal(err)
		}
	}
	o := restoreOptions{key: types.NamespacedName{Namespace: "shop", Name: "app"}, point: "p1", suffix: "-restored", noWait: true}
	claim("wal-restored")
	var out bytes.Buffer
	if err := restorePoint(ctx, c, o, &out); err == nil || !strings.Contains(err.Error(), "claim shop/wal-restored exists") {
		t.Fatalf("over a claim that is there: %v", err)
	}
	get := func(name string) *corev1.PersistentVolumeClaim {
		var pvc corev1.PersistentVolumeClaim
		if c.Get(ctx, client.ObjectKey{Namespace: "shop", Name: name}, &pvc) != nil {
			return nil
		}
		return &pvc
	}
	if get("data-restored") != nil {
		t.Fatal("a claim was made though another name was taken")
	}
	o.suffix = "-then"
	if err := restorePoint(ctx, c, o, &out); err != nil {
		t.Fatal(err)
	}
	made := get("data-then")
	if made == nil || get("wal-then") == nil {
		t.Fatalf("not all claims were made:\n%s", out.String())
	}
	if made.Spec.DataSource.Name != "lb-app-p1-0" || *made.Spec.StorageClassName != class || *made.Spec.VolumeMode != mode || made.Spec.Resources.Requests.Storage().Value() != 2<<30 ||
		made.Labels[v1alpha1.LabelReplication] != "" {
		t.Errorf("made: %+v", made)
	}
	o.suffix = ""
	if err := restorePoint(ctx, c, o, &out); err == nil || !strings.Contains(err.Error(), "--suffix") {
		t.Errorf("without a suffix: %v", err)
	}
}

func (p keptPoint) claims() []string {
	var out []string
	for _, s := range p.snapshots {
		out = append(out, s.Claim)
	}
	return out
}
