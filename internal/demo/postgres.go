package demo

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const (
	application = "postgres"
	claim       = "data-postgres-0"
	nodePort    = 30432
	password    = "demo-only-password"

	groupName       = "postgres"
	replicationName = "postgres"
	planName        = "postgres"
	rlinkName       = "peer"
)

// databaseObjects are what a user would apply for a small PostgreSQL: a namespace, a password, settings, a
// claim, a StatefulSet and a Service with a node port.
func (s *Story) databaseObjects() []client.Object {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: s.Namespace, Labels: map[string]string{"app": application}}
	}
	var class *string
	if s.StorageClass != "" {
		class = &s.StorageClass
	}
	return []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}},
		&corev1.Secret{ObjectMeta: meta("postgres"), StringData: map[string]string{"password": password}},
		&corev1.ConfigMap{ObjectMeta: meta("postgres"), Data: map[string]string{"start.sh": startScript, "lifeboat.conf": settings}},
		&corev1.PersistentVolumeClaim{ObjectMeta: meta(claim), Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(s.VolumeSize)}},
		}},
		&corev1.Service{ObjectMeta: meta("postgres"), Spec: corev1.ServiceSpec{
			Type:     corev1.ServiceTypeNodePort,
			Selector: map[string]string{"app": application},
			Ports:    []corev1.ServicePort{{Name: "postgres", Port: 5432, TargetPort: intstr.FromInt32(5432), NodePort: nodePort}},
		}},
		&appsv1.StatefulSet{ObjectMeta: meta("postgres"), Spec: appsv1.StatefulSetSpec{
			ServiceName: "postgres",
			Replicas:    ptr.To[int32](1),
			Selector:    &metav1.LabelSelector{MatchLabels: map[string]string{"app": application}},
			Template:    corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": application}}, Spec: s.databasePod()},
		}},
	}
}

func (s *Story) databasePod() corev1.PodSpec {
	// The volume belongs to a group of its own, whichever user the server runs as.
	const group = 999
	var user *int64
	if s.User != 0 {
		user = &s.User
	}
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To[int64](30),
		AutomountServiceAccountToken:  ptr.To(false),
		SecurityContext: &corev1.PodSecurityContext{
			RunAsUser: user, FSGroup: ptr.To[int64](group), FSGroupChangePolicy: ptr.To(corev1.FSGroupChangeOnRootMismatch),
		},
		Containers: []corev1.Container{{
			Name:            "postgres",
			Image:           s.Image,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Command:         []string{"/bin/bash", "/etc/lifeboat-demo/start.sh"},
			Env: []corev1.EnvVar{{Name: "POSTGRES_PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: "postgres"}, Key: "password"}}}},
			Ports: []corev1.ContainerPort{{Name: "postgres", ContainerPort: 5432}},
			ReadinessProbe: &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(5432)}},
				PeriodSeconds: 1,
			},
			VolumeMounts: []corev1.VolumeMount{
				{Name: "data", MountPath: "/var/lib/postgresql/data"},
				{Name: "config", MountPath: "/etc/lifeboat-demo"},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}},
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "postgres"}}}},
		},
	}
}

// startScript makes the database once, with page checksums, and runs it; SIGINT asks for a fast shutdown,
// which ends sessions and writes a checkpoint.
const startScript = `set -eu
export PGDATA=/var/lib/postgresql/data/pgdata PATH=/usr/lib/postgresql/15/bin:$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --data-checksums --username=postgres --auth-host=scram-sha-256 --auth-local=trust --pwfile=<(printf %s "$POSTGRES_PASSWORD")
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
fi
postgres -c config_file="$PGDATA/postgresql.conf" -c unix_socket_directories=/tmp -c listen_addresses='*' $(sed 's/^/-c /' /etc/lifeboat-demo/lifeboat.conf) &
server=$!
trap 'kill -INT $server' TERM INT
wait $server || wait $server
`

const settings = `shared_buffers=256MB
max_wal_size=512MB
checkpoint_timeout=60s
`

func (s *Story) group() *v1alpha1.PVCGroup {
	return &v1alpha1.PVCGroup{
		ObjectMeta: metav1.ObjectMeta{Name: groupName, Namespace: s.Namespace},
		Spec:       v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: claim}}},
	}
}

func (s *Story) replication() *v1alpha1.Replication {
	return &v1alpha1.Replication{
		ObjectMeta: metav1.ObjectMeta{Name: replicationName, Namespace: s.Namespace},
		Spec: v1alpha1.ReplicationSpec{
			Role:         v1alpha1.RoleSource,
			PVCGroupName: groupName,
			Rlinks:       []v1alpha1.Rlink{{RlinkName: rlinkName, ClusterPair: s.Away.Name, Schedule: "* * * * *"}},
		},
	}
}

func (s *Story) plan() *v1alpha1.DisasterRecoveryPlan {
	return &v1alpha1.DisasterRecoveryPlan{
		ObjectMeta: metav1.ObjectMeta{Name: planName, Namespace: s.Namespace},
		Spec: v1alpha1.DisasterRecoveryPlanSpec{
			PrimaryCluster:         s.Home.Name,
			PreferredClusterList:   []string{s.Home.Name, s.Away.Name},
			DataReplicationPointer: replicationName,
		},
	}
}
