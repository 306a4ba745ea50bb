package snapshot

import (
	"strings"
	"testing"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

func class(name, driver string, isDefault bool, policy snapshotv1.DeletionPolicy) snapshotv1.VolumeSnapshotClass {
	c := snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver, DeletionPolicy: policy}
	if isDefault {
		c.Annotations = map[string]string{annotationDefaultClass: "true"}
	}
	return c
}

func TestClassFor(t *testing.T) {
	const keep, remove = snapshotv1.VolumeSnapshotContentRetain, snapshotv1.VolumeSnapshotContentDelete
	for _, c := range []struct {
		name    string
		classes []snapshotv1.VolumeSnapshotClass
		want    string
	}{
		{"none at all", nil, ""},
		{"another driver's", []snapshotv1.VolumeSnapshotClass{class("a", "other", true, remove)}, ""},
		{"the only one", []snapshotv1.VolumeSnapshotClass{class("a", "disk", false, keep)}, "a"},
		{"the default one", []snapshotv1.VolumeSnapshotClass{class("a", "disk", false, remove), class("b", "disk", true, keep)}, "b"},
		{"one that removes what it made", []snapshotv1.VolumeSnapshotClass{class("a", "disk", false, keep), class("b", "disk", false, remove)}, "b"},
		{"the first by name", []snapshotv1.VolumeSnapshotClass{class("b", "disk", false, remove), class("a", "disk", false, remove)}, "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ClassFor(c.classes, "disk"); got != c.want {
				t.Errorf("class %q, want %q", got, c.want)
			}
		})
	}
}

func TestNamesFitAndDiffer(t *testing.T) {
	long := strings.Repeat("r", 40)
	seen := map[string]bool{}
	for _, point := range []string{"20261121t120000-0000aa", "20261121t120000-0000ab"} {
		for index := range 16 {
			for _, replication := range []string{"app", long, long[:39] + "s"} {
				name := MemberName(replication, point, index)
				if seen[name] {
					t.Errorf("%s twice", name)
				}
				seen[name] = true
				if problems := append(validation.IsDNS1123Label(name), validation.IsValidLabelValue(name)...); len(problems) > 0 {
					t.Errorf("%s: %v", name, problems)
				}
			}
		}
	}
	if got := MemberName("app", "20261121t120000-0000aa", 3); got != "lb-app-20261121t120000-0000aa-3" {
		t.Errorf("a name that fits is changed: %s", got)
	}
}

func bound(name, driver, class string) Member {
	mode := corev1.PersistentVolumeFilesystem
	return Member{
		Name: name, Class: class,
		Claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{VolumeMode: &mode, VolumeName: "pv-" + name},
			Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}},
		Volume: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver}}}},
	}
}

func TestCheckNamesWhatAPersonMustMend(t *testing.T) {
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: v1alpha1.PVCGroupSpec{MaxMembers: 2}}
	deleting := bound("data", "disk", "c")
	now := metav1.Now()
	deleting.Claim.DeletionTimestamp = &now
	pending := bound("data", "disk", "c")
	pending.Claim.Status.Phase, pending.Volume = corev1.ClaimPending, nil
	newer := bound("a-newer-one", "d", "c")
	newer.Claim.CreationTimestamp = now
	late := pending
	late.Late = true
	hostPath := bound("data", "disk", "")
	hostPath.Volume.Spec.CSI = nil
	for _, c := range []struct {
		name      string
		members   []Member
		snapshots bool
		reason    string
		says      string
	}{
		{"fine", []Member{bound("data", "disk", "c")}, true, "", ""},
		{"empty", nil, true, FaultEmpty, "shop/db"},
		{"one too many", []Member{bound("a", "d", "c"), bound("b", "d", "c"), bound("one-more", "d", "c")}, true, FaultTooMany, "claim one-more is one more than spec.maxMembers 2"},
		{"one too many that came later", []Member{newer, bound("b", "d", "c"), bound("c", "d", "c")}, true, FaultTooMany, "claim a-newer-one is one more than spec.maxMembers 2"},
		{"missing", []Member{{Name: "data"}}, true, FaultMissing, "shop/data does not exist"},
		{"being deleted", []Member{deleting}, true, FaultDeleting, "shop/data"},
		{"pending", []Member{pending}, true, FaultUnbound, "phase Pending"},
		{"waiting for its first pod", []Member{late}, true, FaultUnbound, "first pod"},
		{"no CSI volume", []Member{hostPath}, true, FaultNotCSI, "pv-data"},
		{"no class", []Member{bound("data", "disk", "")}, true, FaultNoClass, "its driver disk"},
		{"no class needed", []Member{bound("data", "disk", "")}, false, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			fault := Check(group, c.members, c.snapshots)
			switch {
			case c.reason == "" && fault == nil:
			case fault == nil || fault.Reason != c.reason || !strings.Contains(fault.Message, c.says):
				t.Errorf("fault %+v, want %s that says %q", fault, c.reason, c.says)
			}
		})
	}
	// Unset means 16.
	group.Spec.MaxMembers = 0
	var many []Member
	for range 17 {
		many = append(many, bound("x", "d", "c"))
	}
	if Check(group, many[:16], true) != nil || Check(group, many, true) == nil {
		t.Error("the seventeenth member is the first that is refused")
	}
}

func groupClass(name, driver string) groupsnapshotv1.VolumeGroupSnapshotClass {
	return groupsnapshotv1.VolumeGroupSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete}
}

// How members are cut is chosen from what the storage has, and whatever is not one instant says why.
func TestTheWayAGroupIsCut(t *testing.T) {
	two := []Member{bound("a", "disk", "c"), bound("b", "disk", "c")}
	unbound := bound("b", "disk", "c")
	unbound.Volume = nil
	served := GroupClasses{Served: true, Classes: []groupsnapshotv1.VolumeGroupSnapshotClass{groupClass("other", "tape"), groupClass("g", "disk")}}
	for _, c := range []struct {
		name    string
		policy  v1alpha1.CutPolicy
		members []Member
		classes GroupClasses
		cut     v1alpha1.CutAtomicity
		reason  string
		says    string
	}{
		{"one member", "", two[:1], GroupClasses{}, v1alpha1.CutSingle, CutOneMember, "by itself"},
		{"a class of the driver", "", two, served, v1alpha1.CutAtomic, CutGroupSnapshot, "class g"},
		{"one member, and it must be atomic", v1alpha1.CutRequireAtomic, two[:1], served, v1alpha1.CutSingle, CutOneMember, ""},
		{"separate was asked for", v1alpha1.CutSeparate, two, served, v1alpha1.CutNotAtomic, CutAsAsked, "spec.cutPolicy"},
		{"the kind is not served", "", two, GroupClasses{}, v1alpha1.CutNotAtomic, CutKindUnknown, "does not serve"},
		{"only another driver's class", "", two, GroupClasses{Served: true, Classes: served.Classes[:1]}, v1alpha1.CutNotAtomic, CutNoClass, "driver disk"},
		{"two drivers", "", []Member{two[0], bound("b", "tape", "c")}, served, v1alpha1.CutNotAtomic, CutDriversDiffer, "claim a is of driver disk, claim b of driver tape"},
		{"one is not bound yet", "", []Member{two[0], unbound}, served, v1alpha1.CutNotAtomic, CutNotBound, "claim b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			way := ChooseWay(c.policy, c.members, c.classes)
			if way.Cut != c.cut || way.Reason != c.reason || !strings.Contains(way.Message, c.says) || (way.GroupClass != "") != (c.cut == v1alpha1.CutAtomic) {
				t.Errorf("%+v", way)
			}
		})
	}
}

// The label of a cut is the point's own, and may be a label whatever the names are.
func TestLabelsOfCuts(t *testing.T) {
	long := strings.Repeat("r", 40)
	seen := map[string]bool{}
	for _, p := range []Point{{Replication: "app", ID: "20261121t120000-0000aa"}, {Replication: "app", ID: "20261121t120000-0000ab"}, {Replication: long, ID: "20261121t120000-0000aa"}} {
		if problems := validation.IsQualifiedName(p.cutLabel()); len(problems) > 0 || seen[p.cutLabel()] {
			t.Errorf("%s: %v", p.cutLabel(), problems)
		}
		seen[p.cutLabel()] = true
	}
}
