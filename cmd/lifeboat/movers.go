package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"

	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/transport"
)

// uncached are the kinds that are read from the API server each time: there are many of them and few are Lifeboat's.
var uncached = []client.Object{
	&corev1.Secret{}, &corev1.ConfigMap{}, &corev1.Pod{}, &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{},
	&corev1.Service{}, &corev1.Namespace{}, &corev1.Node{}, &appsv1.Deployment{}, &appsv1.StatefulSet{}, &appsv1.DaemonSet{},
	&appsv1.ReplicaSet{}, &batchv1.Job{}, &batchv1.CronJob{}, &rbacv1.Role{}, &rbacv1.RoleBinding{}, &storagev1.StorageClass{},
	&storagev1.VolumeAttachment{}, &snapshotv1.VolumeSnapshot{}, &snapshotv1.VolumeSnapshotContent{}, &snapshotv1.VolumeSnapshotClass{},
	&groupsnapshotv1.VolumeGroupSnapshot{}, &groupsnapshotv1.VolumeGroupSnapshotClass{},
}

// statusPort is where movers answer their manager.
const statusPort = "9445"

// movers asks movers how far they are, as this cluster's manager.
type movers struct {
	ca      *identity.CA
	cluster string
	now     func() time.Time

	mu      sync.Mutex
	own     transport.Material
	renewAt time.Time
}

func newMovers(ca *identity.CA, cluster string, now func() time.Time) *movers {
	return &movers{ca: ca, cluster: cluster, now: now}
}

// answerWithin is how long a mover is waited for. A pod that ends takes its network with it: without a bound a question
// that was under way then would hold up its Replication until the kernel gives up, minutes later.
const answerWithin = 3 * time.Second

// State asks the mover of a Replication at a pod's address. One that does not answer within answerWithin is silent, which is an error.
func (m *movers) State(ctx context.Context, replication types.NamespacedName, address string) (engine.State, error) {
	own, err := m.material()
	if err != nil {
		return engine.State{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	expected := identity.ReplicationURI(m.cluster, replication.Namespace, replication.Name)
	return engine.FetchState(ctx, net.JoinHostPort(address, statusPort), own, expected)
}

// material is the manager's own identity, renewed in time.
func (m *movers) material() (transport.Material, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if now.Before(m.renewAt) {
		return m.own, nil
	}
	leaf, err := m.ca.Issue(identity.ManagerURI(m.cluster), nil, now)
	if err != nil {
		return transport.Material{}, fmt.Errorf("issue the manager's identity: %w", err)
	}
	m.own = transport.Material{Cert: leaf.CertPEM, Key: leaf.KeyPEM, CA: m.ca.CertPEM()}
	m.renewAt = identity.RenewAt(leaf.NotAfter)
	return m.own, nil
}
