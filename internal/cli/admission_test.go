package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const (
	userManager     = "system:serviceaccount:lifeboat-system:lifeboat-manager"
	userReplicaSets = "system:serviceaccount:kube-system:replicaset-controller"
	userDeployments = "system:serviceaccount:kube-system:deployment-controller"
	userJobs        = "system:serviceaccount:kube-system:job-controller"
	userSets        = "system:serviceaccount:kube-system:statefulset-controller"
	userControllers = "system:kube-controller-manager"
)

// guarded is an API server with the admission rules that install applies, and the clients of whoever asks.
type guarded struct {
	t      *testing.T
	config *rest.Config
	admin  client.Client
}

func newGuarded(t *testing.T, server string) *guarded {
	t.Helper()
	g := &guarded{t: t, config: servers.Config(t, server)}
	g.admin = g.as("")
	objects, err := manifests(installOptions{ClusterName: "west", GatewayAddress: "192.0.2.7:9002", Image: "lifeboat:test"}, exposure{Expose: exposeClusterIP, Port: 9002})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if strings.HasPrefix(o.GetKind(), "ValidatingAdmissionPolicy") {
			if err := applyObject(t.Context(), g.admin, o); err != nil {
				t.Fatal(err)
			}
		}
	}
	return g
}

// as is a client of that user, who may do everything that admission lets through.
func (g *guarded) as(user string) client.Client {
	g.t.Helper()
	config := rest.CopyConfig(g.config)
	if user != "" {
		config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:masters"}}
	}
	c, err := client.New(config, client.Options{Scheme: Scheme})
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

func (g *guarded) namespace(name string) {
	g.t.Helper()
	if err := g.admin.Create(g.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		g.t.Fatal(err)
	}
}

// replication of group and name "app" whose claim is data, wanted and in force as given.
func (g *guarded) replication(namespace string, wanted, inForce v1alpha1.Role) *v1alpha1.Replication {
	g.t.Helper()
	rep := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "app"}, Spec: v1alpha1.ReplicationSpec{
		Role: wanted, PVCGroupName: "app", Rlinks: []v1alpha1.Rlink{{RlinkName: "dr", ClusterPair: "east"}}}}
	if err := g.admin.Create(g.t.Context(), rep); err != nil {
		g.t.Fatal(err)
	}
	rep.Status = v1alpha1.ReplicationStatus{Role: inForce, Claims: []string{"data"}, PrimaryCluster: "east", Rlinks: []v1alpha1.RlinkStatus{{
		RlinkName: "dr", Objects: []string{"Deployment/lb-app-dr-receiver", "PersistentVolumeClaim/lb-app-spool", "PersistentVolumeClaim/lb-data-replica"}}}}
	if err := g.admin.Status().Update(g.t.Context(), rep); err != nil {
		g.t.Fatal(err)
	}
	return rep
}

// eventually asks until the answer is the one expected: policies and what they know take a moment to be in force. The question must
// leave nothing behind.
func (g *guarded) eventually(what string, ask func(ctx context.Context) error, want string) {
	g.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		err = ask(g.t.Context())
		if want == "" && err == nil || want != "" && err != nil && strings.Contains(err.Error(), want) {
			return
		}
	}
	g.t.Fatalf("%s: %v, want %q", what, err, want)
}

func podOn(namespace string, claims ...string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web-0"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}}}
	for _, c := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return pod
}

// moverLabels are those of a mover of Replication app.
func moverLabels() map[string]string {
	return map[string]string{v1alpha1.LabelReplication: "app", v1alpha1.LabelComponent: v1alpha1.ComponentReceiver}
}

func marked(pod *corev1.Pod) *corev1.Pod {
	pod.Labels = moverLabels()
	return pod
}

func ephemeral(pod *corev1.Pod) *corev1.Pod {
	pod.Name = "da"
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "ta", VolumeSource: corev1.VolumeSource{
		Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}}}})
	return pod
}

// try asks the API server whether it would make the object, and makes nothing.
func try(c client.Client, o client.Object) func(context.Context) error {
	return func(ctx context.Context) error {
		return c.Create(ctx, o.DeepCopyObject().(client.Object), client.DryRunAll)
	}
}

// A demoted side lets no pod onto its volumes, whoever makes the pod, and says where it belongs.
func TestPodsOnAReplicaAreRefusedByTheAPIServer(t *testing.T) {
	g := newGuarded(t, "admission")
	const target, source, demoting, promoting, free = "replica", "source", "demoting", "promoting", "free"
	for _, ns := range []string{target, source, demoting, promoting, free} {
		g.namespace(ns)
	}
	g.replication(target, v1alpha1.RoleTarget, v1alpha1.RoleTarget)
	g.replication(source, v1alpha1.RoleSource, v1alpha1.RoleSource)
	g.replication(demoting, v1alpha1.RoleTarget, v1alpha1.RoleSource)
	g.replication(promoting, v1alpha1.RoleSource, v1alpha1.RoleTarget)
	const refused = "belongs to a replica"
	for _, c := range []struct {
		name string
		user string
		pod  *corev1.Pod
		want string // empty: let in
	}{
		{"on a replica", "", podOn(target, "data"), refused},
		{"it says where the pod belongs", "", podOn(target, "data"), "claim data in namespace replica belongs to a replica, which Replication app keeps here: the application may write on cluster east only"},
		{"a StatefulSet's", userSets, podOn(target, "data"), refused},
		{"a Deployment's", userReplicaSets, podOn(target, "other", "data"), refused},
		{"through the block claim beside it", "", podOn(target, "lb-data-replica"), refused},
		{"on the spool", "", podOn(target, "lb-app-spool"), refused},
		{"on another claim", "", podOn(target, "other"), ""},
		{"without volumes", "", podOn(target), ""},
		{"where the role is source", "", podOn(source, "data"), ""},
		{"where there is no replication", "", podOn(free, "data"), ""},
		{"where the source is about to be a target", "", podOn(demoting, "data"), refused},
		{"where the target is not yet a source", "", podOn(promoting, "data"), refused},
		{"the receiver", userReplicaSets, marked(podOn(target, "lb-data-replica", "lb-app-spool")), ""},
		{"a receiver of files", userReplicaSets, marked(podOn(target, "data")), ""},
		{"a mover, where controllers have one user", userControllers, marked(podOn(target, "data")), ""},
		{"a mover's Job", userJobs, marked(podOn(target, "data")), ""},
		{"the manager's own pod", userManager, marked(podOn(target, "data")), ""},
		// Two policies refuse these, for the claim and for the label; which of them speaks is the API server's choice.
		{"somebody with the movers' label", "", marked(podOn(target, "data")), "is forbidden: ValidatingAdmissionPolicy 'lifeboat-"},
		{"a StatefulSet's with the movers' label", userSets, marked(podOn(target, "data")), "is forbidden: ValidatingAdmissionPolicy 'lifeboat-"},
		{"a mover of another Replication", userReplicaSets, func() *corev1.Pod {
			p := marked(podOn(target, "data"))
			p.Labels[v1alpha1.LabelReplication] = "other"
			return p
		}(), refused},
		{"the manager without the label", userManager, podOn(target, "data"), refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			g.eventually(c.name, try(g.as(c.user), c.pod), c.want)
		})
	}
}

// An ephemeral volume takes the claim called after pod and volume, so a replica's name is refused there too.
func TestEphemeralVolumesOnAReplicaAreRefused(t *testing.T) {
	g := newGuarded(t, "admission")
	g.namespace("ephemeral")
	rep := g.replication("ephemeral", v1alpha1.RoleTarget, v1alpha1.RoleTarget)
	rep.Status.Claims = []string{"da-ta"}
	if err := g.admin.Status().Update(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	g.eventually("an ephemeral volume", try(g.admin, ephemeral(podOn("ephemeral"))), "claim da-ta in namespace ephemeral belongs to a replica")
}

// A container that is added to a running pod gets no replica either, not even in a mover's pod.
func TestContainersAddedLaterGetNoReplica(t *testing.T) {
	g := newGuarded(t, "admission")
	g.namespace("debug")
	receiver := marked(podOn("debug", "lb-data-replica", "other"))
	if err := g.as(userReplicaSets).Create(t.Context(), receiver); err != nil {
		t.Fatal(err)
	}
	g.replication("debug", v1alpha1.RoleTarget, v1alpha1.RoleTarget)
	debug := func(edit func(*corev1.EphemeralContainer)) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			pod := receiver.DeepCopy()
			added := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "debug"}}
			edit(&added)
			pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, added)
			return g.admin.SubResource("ephemeralcontainers").Update(ctx, pod, client.DryRunAll)
		}
	}
	mount := func(volume string) func(*corev1.EphemeralContainer) {
		return func(c *corev1.EphemeralContainer) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: volume, MountPath: "/mnt"}}
		}
	}
	g.eventually("a mount", debug(mount("lb-data-replica")), "belongs to a replica")
	g.eventually("a device", debug(func(c *corev1.EphemeralContainer) {
		c.VolumeDevices = []corev1.VolumeDevice{{Name: "lb-data-replica", DevicePath: "/dev/replica"}}
	}), "belongs to a replica")
	g.eventually("another volume", debug(mount("other")), "")
	g.eventually("none", debug(func(*corev1.EphemeralContainer) {}), "")
}

// The movers' label is a pass, so only who makes movers may give it, and nobody takes it away.
func TestOnlyTheManagerMakesMovers(t *testing.T) {
	g := newGuarded(t, "admission")
	g.namespace("movers")
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: moverLabels()}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}}}
	selector := &metav1.LabelSelector{MatchLabels: moverLabels()}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "movers", Name: "receiver"}, Spec: appsv1.DeploymentSpec{Selector: selector, Template: template}}
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "movers", Name: "receiver"}, Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template}}
	never := template
	never.Spec.RestartPolicy = corev1.RestartPolicyNever
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "movers", Name: "mover"}, Spec: batchv1.JobSpec{Template: never}}
	const refused = "only Lifeboat's manager may set, change or remove it"
	for _, c := range []struct {
		name, user string
		object     client.Object
		want       string
	}{
		{"a user's Deployment", "alice", deployment, refused},
		{"it names the user and the object", "alice", deployment, "not alice. Leave it out of deployments movers/receiver"},
		{"the manager's Deployment", userManager, deployment, ""},
		{"a user's ReplicaSet", "alice", set, refused},
		{"a Deployment's ReplicaSet", userDeployments, set, ""},
		{"a user's Job", "alice", job, refused},
		{"the manager's Job", userManager, job, ""},
		{"a user's pod", "alice", marked(podOn("movers")), refused},
		{"a StatefulSet's pod", userSets, marked(podOn("movers")), refused},
		{"a ReplicaSet's pod", userReplicaSets, marked(podOn("movers")), ""},
		{"a Job's pod", userJobs, marked(podOn("movers")), ""},
		{"anybody's pod without it", "alice", podOn("movers"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			g.eventually(c.name, try(g.as(c.user), c.object), c.want)
		})
	}
	g.t = t
	if err := g.as(userManager).Create(t.Context(), deployment); err != nil {
		t.Fatal(err)
	}
	plain, mover := podOn("movers"), marked(podOn("movers"))
	mover.Name = "receiver-x"
	for user, pod := range map[string]*corev1.Pod{"alice": plain, userReplicaSets: mover} {
		if err := g.as(user).Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	edit := func(user string, o client.Object, patch string) func(context.Context) error {
		return func(ctx context.Context) error {
			return g.as(user).Patch(ctx, o.DeepCopyObject().(client.Object), client.RawPatch("application/merge-patch+json", []byte(patch)), client.DryRunAll)
		}
	}
	for _, c := range []struct {
		name, user string
		object     client.Object
		patch      string
		want       string
	}{
		{"a label put on a pod that runs", "alice", plain, `{"metadata":{"labels":{"lifeboat.dev/replication":"app"}}}`, refused},
		{"a label taken off a mover", "alice", mover, `{"metadata":{"labels":{"lifeboat.dev/replication":null}}}`, refused},
		{"another image in a receiver", "alice", deployment, `{"spec":{"template":{"spec":{"hostname":"mine"}}}}`, refused},
		{"another image in a receiver, by the manager", userManager, deployment, `{"spec":{"template":{"spec":{"hostname":"mine"}}}}`, ""},
		{"a note on a mover", "alice", mover, `{"metadata":{"annotations":{"note":"slow"}}}`, ""},
		{"a note on a receiver", userDeployments, deployment, `{"metadata":{"annotations":{"deployment.kubernetes.io/revision":"2"}}}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			g.eventually(c.name, edit(c.user, c.object, c.patch), c.want)
		})
	}
}

// T-56: two Replications of one group would give one set of volumes contradictory orders. The kind's own rules see one object only.
func TestAGroupHasOneReplication(t *testing.T) {
	g := newGuarded(t, "admission")
	g.namespace("groups")
	rep := g.replication("groups", v1alpha1.RoleSource, v1alpha1.RoleSource)
	second := func(group string) *v1alpha1.Replication {
		return &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "groups", Name: "second"}, Spec: v1alpha1.ReplicationSpec{
			Role: v1alpha1.RoleSource, PVCGroupName: group, Rlinks: rep.Spec.Rlinks}}
	}
	g.eventually("the same group", try(g.admin, second("app")), "PVCGroup app in namespace groups is replicated by Replication app already")
	g.eventually("another group", try(g.admin, second("other")), "")
}

// While the kind Replication is missing, as after an uninstallation in the wrong order, pods start all the same.
func TestWithoutTheKindPodsStart(t *testing.T) {
	g := newGuarded(t, "without-kinds")
	g.namespace("bare")
	g.replication("bare", v1alpha1.RoleTarget, v1alpha1.RoleTarget)
	g.eventually("the rule is in force", try(g.admin, podOn("bare", "data")), "belongs to a replica")
	for _, kind := range []string{"replications", "pvcgroups"} {
		if err := g.admin.Delete(t.Context(), &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: kind + ".lifeboat.dev"}}); err != nil {
			t.Fatal(err)
		}
	}
	g.eventually("a pod without the kind", try(g.admin, podOn("bare", "data")), "")
	// The rule has noticed by now that its kind is gone: it stays open.
	for range 20 {
		if err := try(g.admin, podOn("bare"))(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
