package replication

import (
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// addressed makes a replication by hand on both sides, each with an address of its own.
func addressed(w *world, eastLocal, westLocal string) {
	for _, s := range []*side{w.east, w.west} {
		s.claim("data", "1Gi", className)
		s.group("app", "data")
	}
	w.west.replication("app", v1alpha1.RoleTarget, func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].LocalEndpoint, r.Spec.Rlinks[0].RemoteAddress = westLocal, "198.51.100.1:9001"
		r.Spec.Rlinks[0].PeerObjects = v1alpha1.PeerObjectsManual
	})
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].LocalEndpoint, r.Spec.Rlinks[0].RemoteAddress = eastLocal, "[2001:db8::7]:9002"
		r.Spec.Rlinks[0].PeerObjects = v1alpha1.PeerObjectsManual
	})
}

func (s *side) service(name string) *corev1.Service {
	s.w.t.Helper()
	var out corev1.Service
	if err := s.kube.Get(s.w.t.Context(), s.key(name), &out); err != nil {
		if client.IgnoreNotFound(err) != nil {
			s.w.t.Fatal(err)
		}
		return nil
	}
	return &out
}

// dialled is where the movers of this side were told to dial; a session is held while it is looked at.
func (s *side) dialled() (address, job string) {
	var jobs batchv1.JobList
	s.list(&jobs)
	if len(jobs.Items) != 1 || !jobs.Items[0].DeletionTimestamp.IsZero() {
		return "", ""
	}
	var config engine.SourceConfig
	s.config(&corev1.Pod{Spec: jobs.Items[0].Spec.Template.Spec}, &config)
	return config.Address, string(jobs.Items[0].UID)
}

// behind are the pods that a Service selects and that could answer.
func (s *side) behind(service *corev1.Service) []string {
	s.w.t.Helper()
	var pods corev1.PodList
	s.must(s.kube.List(s.w.t.Context(), &pods, client.InNamespace(s.w.namespace), client.MatchingLabels(service.Spec.Selector)))
	var out []string
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp.IsZero() {
			out = append(out, pod.Name)
		}
	}
	return out
}

// M-157, M-160, M-161, M-162, T-21: a Service that the user made for one receiver is used as it is and has exactly one endpoint,
// and the receiver listens where its endpoint says.
func TestAUsersServiceLeadsToOneReceiver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	mine := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "mine", Annotations: map[string]string{"platform/setting": "kept"}},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "appdr"}, ExternalIPs: []string{"192.0.2.10"},
			Ports: []corev1.ServicePort{{Port: 9002, TargetPort: intstr.FromInt32(9005)}}},
	}
	w.west.create(mine)
	addressed(w, "", ":9005")
	w.until("a point through the receiver's own address", w.east.committed("app", ""))

	after := w.west.service("mine")
	if after.ResourceVersion != mine.ResourceVersion {
		t.Errorf("the user's Service was touched: %+v", after)
	}
	if pods := w.west.behind(after); len(pods) != 1 {
		t.Errorf("behind it are %v, want exactly one receiver", pods)
	}
	if e := w.west.link("app").Endpoint; e == nil || e.Service != "mine" || e.Address != "192.0.2.10:9002" || e.Message != "" {
		t.Errorf("endpoint %+v", e)
	}
	receiver := w.west.receiver(w.namespace + "/app")
	var config engine.TargetConfig
	w.west.config(receiver, &config)
	if config.Listen != ":9005" || receiver.Spec.Containers[0].Ports[1].ContainerPort != 9005 {
		t.Errorf("the receiver listens on %s, its pod shows %+v", config.Listen, receiver.Spec.Containers[0].Ports)
	}
	if w.west.service("lb-app-dr-endpoint") != nil {
		t.Error("Lifeboat made a Service beside the user's")
	}
	// The gateway's way in follows the port by its name.
	if door := w.west.service("lb-app-dr-receiver"); door.Spec.Ports[0].TargetPort.StrVal != portName {
		t.Errorf("the gateway's Service: %+v", door.Spec.Ports)
	}
}

// M-165, M-157, M-158, M-159: both sides carry an endpoint and an address; after each change of roles the mover dials the other one, and
// neither Service is ever made anew, so neither address changes.
func TestAfterAChangeOfRolesTheOtherAddressIsDialled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addressed(w, "east-in:9001", "west-in")
	w.east.holdMovers = true
	w.until("the first session's mover", func() bool { address, _ := w.east.dialled(); return address != "" })
	if address, _ := w.east.dialled(); address != "[2001:db8::7]:9002" {
		t.Errorf("the source dials %s", address)
	}
	w.east.holdMovers = false
	w.until("the first point", w.east.committed("app", ""))
	east, west := w.east.service("east-in"), w.west.service("west-in")
	if east == nil || west == nil || east.Spec.Ports[0].Port != 9001 || west.Spec.Ports[0].Port != 9002 || west.Spec.Type != corev1.ServiceTypeLoadBalancer {
		t.Fatalf("Services: east %+v, west %+v", east, west)
	}
	if pods := w.west.behind(west); len(pods) != 1 {
		t.Errorf("behind the target's Service are %v", pods)
	}
	if e := w.west.link("app").Endpoint; e == nil || e.Service != "west-in" || !strings.Contains(e.Message, "waits for its platform") {
		t.Errorf("endpoint %+v", e)
	}

	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.holdMovers = true
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("the way back", func() bool { address, _ := w.west.dialled(); return address != "" })
	if address, _ := w.west.dialled(); address != "198.51.100.1:9001" {
		t.Errorf("after the change of roles the source dials %s", address)
	}
	w.west.holdMovers = false
	w.until("a point on the way back", w.west.committed("app", ""))
	if pods := w.east.behind(w.east.service("east-in")); len(pods) != 1 {
		t.Errorf("behind the new target's Service are %v", pods)
	}
	if w.east.service("east-in").UID != east.UID || w.west.service("west-in").UID != west.UID {
		t.Error("a Service was made anew: its address is another now")
	}

	// Deleting the Replication takes what Lifeboat made for it.
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("the Replication is gone", func() bool { return w.east.get("app") == nil })
	if w.east.service("east-in") != nil {
		t.Error("the Service of a deleted Replication stays")
	}
}

// M-109: endpoint and address are changed while a session runs; it goes on with the point it has.
func TestAddressesAreEditedLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	addressed(w, "", "west-in:9001")
	w.east.holdMovers = true
	w.until("the session runs", func() bool { address, _ := w.east.dialled(); return address != "" })
	point := w.east.link("app").Session.Point
	_, job := w.east.dialled()
	// M-180: the running session's Job, and how to read its log.
	w.until("its log is told", func() bool { return len(w.east.link("app").Logs) > 0 })
	l := w.east.link("app")
	if !slices.Contains(l.Objects, "Job/lb-app-dr-"+point) || !slices.Contains(l.Logs, "kubectl -n "+w.namespace+" logs job/lb-app-dr-"+point) {
		t.Errorf("objects %v, logs %v", l.Objects, l.Logs)
	}
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].RemoteAddress = "203.0.113.9:443" })
	w.until("the mover dials the new address", func() bool { address, _ := w.east.dialled(); return address == "203.0.113.9:443" })
	if _, again := w.east.dialled(); again == job || w.east.link("app").Session.Point != point || w.east.link("app").LastSession != nil {
		t.Errorf("the session did not go on: %+v", w.east.link("app"))
	}
	w.east.holdMovers = false
	w.until("the point is committed", func() bool { return w.east.link("app").LastSession != nil })
	if last := w.east.link("app").LastSession; last.Point != point || last.Result != "Committed" {
		t.Errorf("ended as %+v", last)
	}
	w.until("recorded", func() bool { return w.west.link("app").RecoveryPoint != nil })
	if l := w.west.link("app"); !slices.Contains(l.Objects, "Deployment/lb-app-dr-receiver") || !slices.Contains(l.Logs, "kubectl -n "+w.namespace+" logs deployment/lb-app-dr-receiver") {
		t.Errorf("M-180: objects %v, logs %v", l.Objects, l.Logs)
	}

	// Another port, then another name, then none.
	uid := w.west.service("west-in").UID
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].LocalEndpoint = "west-in:9003" })
	w.until("the receiver listens on the new port", func() bool {
		var config engine.TargetConfig
		receiver := w.west.receiver(w.namespace + "/app")
		if receiver == nil {
			return false
		}
		w.west.config(receiver, &config)
		return config.Listen == ":9003" && w.west.link("app").ReceiverReady
	})
	if s := w.west.service("west-in"); s.UID != uid || s.Spec.Ports[0].Port != 9003 {
		t.Errorf("Service %+v", s.Spec)
	}
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].LocalEndpoint = "other-in:9003" })
	w.until("the other Service", func() bool { return w.west.service("other-in") != nil && w.west.service("west-in") == nil })
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].LocalEndpoint = "" })
	w.until("no Service of its own", func() bool { return w.west.service("other-in") == nil && w.west.link("app").Endpoint == nil })
	w.east.trigger("app", "again")
	w.until("and through the gateway again", w.east.committed("app", "again"))
}

// M-016: without endpoints all replications of a cluster are dialled at its one gateway.
func TestOneAddressServesAllReplications(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"app", "two"} {
		w.east.claim("data-"+name, "1Gi", className)
		w.east.group(name, "data-"+name)
		w.east.replication(name, v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.PVCGroupName = name })
	}
	dialled := map[string]string{}
	w.east.holdMovers = true
	w.until("both dial", func() bool {
		var jobs batchv1.JobList
		w.east.list(&jobs)
		for _, job := range jobs.Items {
			dialled[job.Labels[v1alpha1.LabelReplication]] = job.Annotations[annotationAddress]
		}
		return len(dialled) == 2
	})
	if dialled["app"] != "192.0.2.7:9002" || dialled["two"] != "192.0.2.7:9002" {
		t.Errorf("they dial %v, want the gateway's address twice", dialled)
	}
}

// Where the source makes the peer's objects it brings neither its own addresses nor takes away the peer's.
func TestTheSourceLeavesThePeersAddressesAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].LocalEndpoint, r.Spec.Rlinks[0].RemoteAddress = "west-in", "198.51.100.1:9001"
	})
	w.east.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].LocalEndpoint, r.Spec.Rlinks[0].RemoteAddress, r.Spec.Epoch = "east-in", "203.0.113.9:9002", 2
	})
	w.until("the peer follows into the next epoch", func() bool { return w.west.get("app").Spec.Epoch == 2 && w.west.link("app").ReceiverReady })
	if l := w.west.get("app").Spec.Rlinks[0]; l.LocalEndpoint != "west-in" || l.RemoteAddress != "198.51.100.1:9001" {
		t.Errorf("the peer's link is %+v", l)
	}
}

// While a replica is promoted nobody reaches its receiver, also not through a Service that Lifeboat may not touch.
func TestAClosedReceiverIsBehindNoService(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.west.create(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "mine"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "appdr"}, Ports: []corev1.ServicePort{{Port: 9002}}}})
	addressed(w, "", "mine:9002")
	w.until("a point", w.east.committed("app", ""))
	w.west.applyLate = true
	w.turn()
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("it waits", func() bool { return w.west.ready("app").Reason == cycle.ReasonApplying })
	if pods := w.west.behind(w.west.service("mine")); len(pods) != 0 {
		t.Errorf("sources still reach %v", pods)
	}
	// Taken back: the same receiver is let in again.
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 3 })
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 3 })
	w.west.applyLate = false
	w.until("sources reach it again", func() bool {
		return len(w.west.behind(w.west.service("mine"))) == 1 && w.west.link("app").ReceiverReady
	})
}

// What is wrong with a user's Service is said, and nothing waits for it.
func TestAServiceThatLeadsNowhereSaysSo(t *testing.T) {
	v := viewOf()
	v.rlink.LocalEndpoint = "mine:9005"
	for _, c := range []struct {
		name string
		spec corev1.ServiceSpec
		says string
	}{
		{"another selector", corev1.ServiceSpec{Selector: map[string]string{"app": "shop"}, Ports: []corev1.ServicePort{{Port: 9005}}}, "app: dbdr"},
		{"another port", corev1.ServiceSpec{Selector: map[string]string{"app": "dbdr"}, Ports: []corev1.ServicePort{{Port: 9002, TargetPort: intstr.FromInt32(9002)}}}, "targetPort 9005"},
		{"it leads there", corev1.ServiceSpec{Selector: map[string]string{"app": "dbdr"}, Ports: []corev1.ServicePort{{Port: 9002, TargetPort: intstr.FromInt32(9005)}}}, ""},
		{"by its name", corev1.ServiceSpec{Selector: map[string]string{"app": "dbdr"}, Ports: []corev1.ServicePort{{Port: 9002, TargetPort: intstr.FromString(portName)}}}, ""},
		{"endpoints made by hand", corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}, ""},
	} {
		got := endpointStatus(v, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: c.spec}, *v.local()).Message
		if (c.says == "") != (got == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", c.name, got, c.says)
		}
	}
}

// A target's claims that wait for their first pod get one, which is gone before the replica is begun, and what it left is not
// taken for nothing.
func TestClaimsThatWaitForAPodAreBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.claim("wal", "1Gi", className)
	w.east.group("app", "data", "wal")
	w.west.claim("data", "1Gi", "late")
	w.west.claim("wal", "1Gi", "late")
	w.east.replication("app", v1alpha1.RoleSource)
	w.west.holdClaims = true
	var binder corev1.Pod
	w.until("a pod mounts the claims", func() bool { return w.west.kube.Get(t.Context(), w.west.key("lb-app-dr-binder"), &binder) == nil })
	if len(binder.Spec.Volumes) != 2 || binder.Labels["app"] != "" || *binder.Spec.SecurityContext.RunAsUser == 0 || len(binder.Spec.Containers[0].VolumeMounts) != 2 {
		t.Errorf("binder %+v %+v", binder.Labels, binder.Spec)
	}
	w.until("it says what it waits for", func() bool {
		c := w.west.ready("app")
		return c.Reason == cycle.ReasonBindingClaims && strings.Contains(c.Message, "data, wal")
	})
	w.west.holdClaims = false
	w.until("a point", w.east.committed("app", ""))
	if err := w.west.kube.Get(t.Context(), w.west.key("lb-app-dr-binder"), &binder); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the pod is still there: %v", err)
	}
	var spool corev1.PersistentVolumeClaim
	if err := w.west.kube.Get(t.Context(), w.west.key("lb-app-spool"), &spool); err != nil || spool.Annotations[annotationHolds] != string(engine.HoldsData) {
		t.Errorf("what the pod left was taken for nothing: %v, %v", spool.Annotations, err)
	}
}
