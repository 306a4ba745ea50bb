package main

import (
	"context"
	"fmt"
	"net"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

const (
	here, there = "here", "there"
	driver      = "disk.example.com"
	class       = "disk"
	rlink       = "dr"
	// seeded is the point that each replication begins with: what is measured is a fleet that runs, not its first copies.
	seeded = "20260101t000000-000000"
)

func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all were taken, so that they differ
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// keyOf is the i-th replication.
func keyOf(o options, i int) types.NamespacedName {
	return types.NamespacedName{Namespace: fmt.Sprintf("shop-%d", i%o.namespaces), Name: fmt.Sprintf("app-%d", i)}
}

// seed makes a fleet that has been running: each replication is the source and has a recovery point of just now.
func seed(ctx context.Context, o options, c *cluster, p *peer) error {
	immediate, remove := storagev1.VolumeBindingImmediate, corev1.PersistentVolumeReclaimDelete
	objects := []client.Object{
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: driver, VolumeBindingMode: &immediate, ReclaimPolicy: &remove},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: trust.SecretName(there)}, Data: map[string][]byte{trust.KeyCA: p.ca.CertPEM()}},
		&v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: there}, Spec: v1alpha1.ClusterPairSpec{
			PeerCluster: there, GatewayAddress: p.address, TrustSecretName: trust.SecretName(there), Namespaces: []string{"*"}}},
	}
	for i := range o.namespaces {
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("shop-%d", i)}})
	}
	for _, object := range objects {
		if err := c.kube.Create(ctx, object); err != nil {
			return fmt.Errorf("make %T %s: %w", object, object.GetName(), err)
		}
	}
	return each(o.replications, func(i int) error {
		key := keyOf(o, i)
		if err := seedClaim(ctx, c, key); err != nil {
			return err
		}
		p.commit(key, seeded)
		return seedReplication(ctx, o, c, key, i)
	})
}

func seedClaim(ctx context.Context, c *cluster, key types.NamespacedName) error {
	name, size, mode := class, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}, corev1.PersistentVolumeFilesystem
	access := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{"app": key.Name}},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: access, StorageClassName: &name, VolumeName: "pv-" + key.Name,
			Resources: corev1.VolumeResourceRequirements{Requests: size}}}
	if err := c.kube.Create(ctx, claim); err != nil {
		return err
	}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName}, Spec: corev1.PersistentVolumeSpec{
		Capacity: size, AccessModes: access, VolumeMode: &mode, StorageClassName: class, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
		ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: key.Namespace, Name: key.Name, UID: claim.UID},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			Driver: driver, VolumeHandle: "vol-" + key.Name, FSType: "ext4", VolumeAttributes: map[string]string{"pool": "a"}}}}}
	if err := c.kube.Create(ctx, volume); err != nil {
		return err
	}
	claim.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: size, AccessModes: access}
	return c.kube.Status().Update(ctx, claim)
}

func seedReplication(ctx context.Context, o options, c *cluster, key types.NamespacedName, i int) error {
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec: v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: key.Name}}}}
	if err := c.kube.Create(ctx, group); err != nil {
		return err
	}
	link := v1alpha1.Rlink{RlinkName: rlink, ClusterPair: there}
	if !o.rest {
		link.Schedule = fmt.Sprintf("*/%d * * * *", o.every)
		if o.spread {
			link.Schedule = fmt.Sprintf("%d-59/%d * * * *", i%o.every, o.every)
		}
	}
	rep := &v1alpha1.Replication{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Finalizers: []string{"lifeboat.dev/replication"}},
		Spec:       v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: key.Name, Epoch: 1, Rlinks: []v1alpha1.Rlink{link}},
	}
	if err := c.kube.Create(ctx, rep); err != nil {
		return err
	}
	now := time.Now()
	rep.Status.ObservedGeneration = rep.Generation
	rep.Status.Role, rep.Status.Epoch, rep.Status.Claims = v1alpha1.RoleSource, 1, []string{key.Name}
	rep.Status.Rlinks = []v1alpha1.RlinkStatus{{RlinkName: rlink,
		RecoveryPoint: &v1alpha1.RecoveryPoint{Point: seeded, Time: metav1.NewTime(now), Epoch: 1},
		LastSession:   &v1alpha1.SessionReport{Point: seeded, Result: committed, Trigger: "First", StartedAt: metav1.NewMicroTime(now), FinishedAt: metav1.NewMicroTime(now)},
	}}
	return c.kube.Status().Update(ctx, rep)
}
