//go:build e2e

// Package e2e tells stories on two real clusters, one file each: a database under load, the faults that
// befall it, and what must be true at the end. It uses Lifeboat as a user does and reaches into nothing.
//
// hack/e2e.sh brings the clusters up and names them in the environment. Stories run one after the other.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cli"
	"lifeboat.dev/lifeboat/internal/demo"
)

const clustersProgram = "../../bin/clusters"

// tell begins a story with a small database on east; west is where it may go. At its end the database is
// removed from both, also when the story failed, after a look at what the clusters said.
func tell(t *testing.T, edit ...func(*demo.Options)) *demo.Story {
	t.Helper()
	o := demo.Options{
		Home: cluster(t, "east"), Away: cluster(t, "west"),
		Namespace: "lifeboat-demo", Image: "lifeboat-demo/postgres:15",
		Scale: 5, VolumeSize: "1Gi", Clients: 2, Rate: 100,
		WorkDir: t.TempDir(), Out: testOutput{t},
	}
	for _, e := range edit {
		e(&o)
	}
	s := demo.NewStory(o)
	must(t, s.MakeRoom(t.Context()))
	t.Cleanup(func() {
		s.StopLoad()
		if t.Failed() {
			lookAround(t, s)
		}
		if err := s.MakeRoom(context.Background()); err != nil {
			t.Errorf("nothing may be left behind: %v", err)
		}
	})
	return s
}

// running begins a story whose database is filled, loaded, protected and has its first recovery point.
func running(t *testing.T, edit ...func(*demo.Options)) *demo.Story {
	t.Helper()
	s := tell(t, edit...)
	for _, chapter := range []func(context.Context) error{s.StartDatabase, s.FillDatabase, s.StartLoad, s.Protect, s.FirstSync} {
		must(t, chapter(t.Context()))
	}
	return s
}

func cluster(t *testing.T, name string) demo.Cluster {
	t.Helper()
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(),
		&clientcmd.ConfigOverrides{CurrentContext: name}).ClientConfig()
	must(t, err)
	c, err := client.New(cfg, client.Options{Scheme: cli.Scheme})
	must(t, err)
	var nodes corev1.NodeList
	must(t, c.List(t.Context(), &nodes))
	for _, a := range nodes.Items[0].Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return demo.Cluster{Name: name, Client: c, Address: a.Address}
		}
	}
	t.Fatalf("the node of %s has no address", name)
	return demo.Cluster{}
}

// clusters runs the program that made the two clusters: cut, heal, kill, restart.
func clusters(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), clustersProgram, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("clusters %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// until waits for something to become true and fails the test with what was seen last when it does not.
func until(t *testing.T, timeout time.Duration, what string, ask func() (done bool, seen string)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	var seen string
	for time.Now().Before(deadline) {
		var done bool
		if done, seen = ask(); done {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, t.Context().Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("%s: not within %s; last seen: %s", what, timeout, seen)
}

func plan(t *testing.T, s *demo.Story, c demo.Cluster) *v1alpha1.DisasterRecoveryPlan {
	t.Helper()
	p, err := s.Plan(t.Context(), c)
	must(t, err)
	return p
}

func rlink(t *testing.T, s *demo.Story, c demo.Cluster) v1alpha1.RlinkStatus {
	t.Helper()
	r, err := s.Replication(t.Context(), c)
	must(t, err)
	if len(r.Status.Rlinks) == 0 {
		return v1alpha1.RlinkStatus{}
	}
	return r.Status.Rlinks[0]
}

// onlyOneSideRuns fails unless the database's pods are on c and on no other cluster.
func onlyOneSideRuns(t *testing.T, s *demo.Story, c demo.Cluster) {
	t.Helper()
	for _, side := range []demo.Cluster{s.Home, s.Away} {
		n := databasePods(t, s, side)
		if side.Name == c.Name && n == 0 {
			t.Errorf("no pod of the database on %s", side.Name)
		}
		if side.Name != c.Name && n > 0 {
			t.Errorf("%d pods of the database on %s, which is not the primary", n, side.Name)
		}
	}
}

func databasePods(t *testing.T, s *demo.Story, c demo.Cluster) int {
	t.Helper()
	var pods corev1.PodList
	must(t, c.Client.List(t.Context(), &pods, client.InNamespace(s.Namespace), client.MatchingLabels{"app": "postgres"}))
	return len(pods.Items)
}

// editReplication changes the source's replication.
func editReplication(t *testing.T, s *demo.Story, c demo.Cluster, edit func(*v1alpha1.ReplicationSpec)) {
	t.Helper()
	r, err := s.Replication(t.Context(), c)
	must(t, err)
	before := r.DeepCopy()
	edit(&r.Spec)
	must(t, c.Client.Patch(t.Context(), r, client.MergeFrom(before)))
}

// setPrimary edits the plan on c.
func setPrimary(t *testing.T, s *demo.Story, c demo.Cluster, primary string) error {
	t.Helper()
	p := plan(t, s, c)
	before := p.DeepCopy()
	p.Spec.PrimaryCluster = primary
	return c.Client.Patch(t.Context(), p, client.MergeFrom(before))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lookAround writes what an operator would look at into the log of a failed story.
func lookAround(t *testing.T, s *demo.Story) {
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		t.Logf("---- cluster %s", c.Name)
		for _, args := range [][]string{
			{"get", "pods,pvc,jobs,volumegroupsnapshots,volumesnapshots,pvcgroups,replications,disasterrecoveryplans,applicationsnapshots", "-n", s.Namespace, "-o", "wide"},
			{"get", "disasterrecoveryplans,replications,pvcgroups", "-n", s.Namespace, "-o", "yaml"},
			{"get", "events", "-n", s.Namespace, "--sort-by=.lastTimestamp"},
			{"logs", "-n", v1alpha1.SystemNamespace, "deployment/lifeboat-manager", "--tail=60"},
		} {
			var out bytes.Buffer
			cmd := exec.Command(clustersProgram, append([]string{"kubectl", c.Name}, args...)...)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				fmt.Fprintln(&out, err)
			}
			t.Logf("kubectl %s\n%s", strings.Join(args, " "), out.String())
		}
	}
}

// testOutput writes a story into the test's log.
type testOutput struct{ t *testing.T }

func (o testOutput) Write(p []byte) (int, error) {
	o.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// killManagers ends the manager's pods of a cluster at once, without a chance to tidy up.
func killManagers(t *testing.T, c demo.Cluster) {
	t.Helper()
	err := c.Client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(v1alpha1.SystemNamespace),
		client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentManager}, client.GracePeriodSeconds(0))
	must(t, err)
}

func TestMain(m *testing.M) {
	if os.Getenv("KUBECONFIG") == "" {
		fmt.Println("KUBECONFIG is not set: run make e2e, which brings the clusters up")
		os.Exit(1)
	}
	ctrllog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func conditionMessage(conditions []metav1.Condition, kind string) string {
	for _, c := range conditions {
		if c.Type == kind {
			return string(c.Status) + " " + c.Reason + ": " + c.Message
		}
	}
	return "no condition " + kind
}

// replicaIsGuarded fails unless the API server of c refuses a pod on the replica, and names the cluster where it belongs.
func replicaIsGuarded(t *testing.T, s *demo.Story, c, primary demo.Cluster) {
	t.Helper()
	r, err := s.Replication(t.Context(), c)
	must(t, err)
	if len(r.Status.Claims) == 0 {
		t.Fatalf("the Replication on %s knows no claims", c.Name)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "intruder"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "intruder", Image: s.Image}},
		Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: r.Status.Claims[0]}}}},
	}}
	err = c.Client.Create(t.Context(), pod, client.DryRunAll)
	if want := "may write on cluster " + primary.Name + " only"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a pod on the replica on %s: want a refusal that says %q, got: %v", c.Name, want, err)
	}
}
