package replication

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/hook/hooktest"
	"lifeboat.dev/lifeboat/internal/link"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// Two API servers, joined by the real link over loopback. There is neither kubelet nor driver: node_test.go plays them.

var servers apiserver.Servers

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	// A test waits for an answer most of the time: with more tests than processors these have something to do.
	if !given {
		if err := flag.Set("test.parallel", strconv.Itoa(3*goruntime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	os.Exit(servers.Main(m))
}

const (
	driver    = "disk.example.com"
	className = "disk"
	// listingClass is of a driver that lists changes.
	listingDriver = "listing.example.com"
	listingClass  = "listing"
	// keepingClass is of a driver whose only snapshot class keeps what it made.
	keepingDriver = "keeping.example.com"
	keepingClass  = "keeping"
)

// site is one cluster, shared by all tests of the package.
type site struct {
	name string
	// kube is everybody's client. live asks the server each time.
	kube  *watched
	live  client.Client
	reach *rest.Config
	ca    *identity.CA
	// address is where it serves peers.
	address string
	// peers are this site's links.
	peers *link.Peers
}

var (
	sitesOnce, southOnce sync.Once
	east, west, south    *site
	sitesErr, southErr   error
)

func sites(t *testing.T) (*site, *site) {
	t.Helper()
	for _, name := range []string{"east", "west"} {
		servers.Config(t, name) // skips here when there are no binaries
	}
	sitesOnce.Do(func() {
		if east, sitesErr = startSite(t, "east"); sitesErr != nil {
			return
		}
		if west, sitesErr = startSite(t, "west"); sitesErr != nil {
			return
		}
		sitesErr = pair(east, west)
	})
	if sitesErr != nil {
		t.Fatal(sitesErr)
	}
	return east, west
}

// third is a site that few tests need; it is paired with both others.
func third(t *testing.T) *site {
	t.Helper()
	east, west := sites(t)
	servers.Config(t, "south")
	southOnce.Do(func() {
		if south, southErr = startSite(t, "south"); southErr == nil {
			southErr = errors.Join(pair(east, south), pair(west, south))
		}
	})
	if southErr != nil {
		t.Fatal(southErr)
	}
	return south
}

func scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, snapshotv1.AddToScheme, groupsnapshotv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// startSite starts a cluster that serves peers. It lives as long as the package's tests, so nothing here may end with the test that came
// first.
func startSite(t *testing.T, name string) (*site, error) {
	ctx, end := context.WithCancel(context.Background())
	servers.AtEnd(end)
	s, err := scheme()
	if err != nil {
		return nil, err
	}
	config := servers.Config(t, name)
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8").Output()
	if err != nil {
		return nil, fmt.Errorf("find the snapshot kinds: %w", err)
	}
	crds := filepath.Join(strings.TrimSpace(string(dir)), "config", "crd")
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{
		filepath.Join(crds, "snapshot.storage.k8s.io_volumesnapshots.yaml"),
		filepath.Join(crds, "snapshot.storage.k8s.io_volumesnapshotcontents.yaml"),
		filepath.Join(crds, "snapshot.storage.k8s.io_volumesnapshotclasses.yaml"),
		filepath.Join(crds, "groupsnapshot.storage.k8s.io_volumegroupsnapshots.yaml"),
		filepath.Join(crds, "groupsnapshot.storage.k8s.io_volumegroupsnapshotclasses.yaml"),
		filepath.Join("..", "..", "snapshot", "testdata", "snapshotmetadataservices.yaml"),
	}}); err != nil {
		return nil, fmt.Errorf("install the snapshot kinds: %w", err)
	}
	kube, live, err := newWatched(ctx, config, s)
	if err != nil {
		return nil, err
	}
	ca, err := identity.NewCA(name, time.Now())
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	own := identity.NewRotating(ca, identity.ManagerURI(name), []string{identity.ManagerServerName}, time.Now)
	server := control.NewServer(control.ServerOptions{Cluster: name, Version: "test", Own: own, Client: kube, Live: kube, Now: time.Now, Log: logr.Discard()})
	go func() { _ = server.Serve(ctx, listener) }()
	out := &site{name: name, kube: kube, live: live, reach: config, ca: ca, address: listener.Addr().String(),
		peers: link.NewPeers(link.PeersOptions{Cluster: name, Version: "test", Own: own, Now: time.Now, Log: logr.Discard()})}
	return out, out.furnish(ctx)
}

func metadataService() client.Object {
	object := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
		"address": "10.3.0.9:6443", "audience": "lists", "caCert": base64.StdEncoding.EncodeToString([]byte("the driver's CA")),
	}}}
	object.SetGroupVersionKind(snapshot.MetadataServiceKind)
	object.SetName(listingDriver)
	return object
}

// furnish gives a site the classes of its drivers.
func (s *site) furnish(ctx context.Context) error {
	immediate, remove, grows := storagev1.VolumeBindingImmediate, corev1.PersistentVolumeReclaimDelete, true
	late := storagev1.VolumeBindingWaitForFirstConsumer
	return s.make(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: className}, Provisioner: driver, VolumeBindingMode: &immediate, ReclaimPolicy: &remove, AllowVolumeExpansion: &grows},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "rigid"}, Provisioner: driver, VolumeBindingMode: &immediate},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Provisioner: driver, VolumeBindingMode: &late},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "plain"}, Provisioner: "plain.example.com", VolumeBindingMode: &immediate},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: className}, Driver: driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: listingClass}, Provisioner: listingDriver, VolumeBindingMode: &immediate, ReclaimPolicy: &remove},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: listingClass}, Driver: listingDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: keepingClass}, Provisioner: keepingDriver, VolumeBindingMode: &immediate, ReclaimPolicy: &remove},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: keepingClass}, Driver: keepingDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentRetain},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: groupingClass}, Provisioner: groupingDriver, VolumeBindingMode: &immediate, ReclaimPolicy: &remove},
		&snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: groupingClass}, Driver: groupingDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		&groupsnapshotv1.VolumeGroupSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: groupingClass}, Driver: groupingDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete},
		metadataService(),
	)
}

func (s *site) make(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		if err := s.kube.Create(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// pair lets two sites trust and reach each other. In the ClusterPairs stands a gateway that no test dials.
func pair(one, other *site) error {
	ctx := context.Background()
	for _, p := range [][2]*site{{one, other}, {other, one}} {
		s, peer := p[0], p[1]
		if err := s.make(ctx,
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: trust.SecretName(peer.name)}, Data: map[string][]byte{trust.KeyCA: peer.ca.CertPEM()}},
			&v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "to-" + peer.name}, Spec: v1alpha1.ClusterPairSpec{
				PeerCluster: peer.name, GatewayAddress: "192.0.2.7:9002", TrustSecretName: trust.SecretName(peer.name), Namespaces: []string{"*"}}},
		); err != nil {
			return err
		}
		if err := s.peers.Set("to-"+peer.name, link.Endpoint{PeerCluster: peer.name, Address: peer.address, CAPEM: string(peer.ca.CertPEM())}, 5); err != nil {
			return err
		}
	}
	return nil
}

// world is one namespace in both sites, with a controller each.
type world struct {
	t         *testing.T
	namespace string
	east      *side
	west      *side
	// south takes part where a test asks for it.
	south *side
	// skip is how far the clock is ahead of the real one.
	skip time.Duration
}

// side is one cluster as a test sees it.
type side struct {
	*site
	w    *world
	peer *side
	r    *Reconciler

	mu sync.Mutex
	// states are what movers say, by address.
	states map[string]engine.State
	// deaf lets movers be silent.
	deaf bool
	// ends tells how movers of sessions end: nil is committed.
	ends func(engine.SourceConfig) *ending
	// hold keeps snapshots, bindings or movers where they are.
	holdSnapshots, holdMovers, holdClaims, holdGrowth bool
	// unequal names the sessions whose sizes differed.
	unequal []string
	// applyLate keeps the receiver from applying what it has.
	applyLate bool
	// paused keeps the controller from running, stuck names a claim the cluster never lets go, offline cuts the link.
	paused, offline bool
	stuck           string
	// refuseGroups is what the driver says to group snapshots when it does not take them.
	refuseGroups string
	// tooLarge is the point whose delta the receiver could not spool.
	tooLarge string
	// rolledBack are the points that rollbacks were run to.
	rolledBack []string
	// fresh makes another manager for each step when set.
	fresh     func() *Reconciler
	addresses int
	seen      []string
	// commands runs those of Rules.
	commands *hooktest.Machine
}

type ending struct {
	code   int32
	report *engine.Report
}

// State implements Movers.
func (s *side) State(_ context.Context, _ types.NamespacedName, address string) (engine.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state, ok := s.states[address]
	if !ok || s.deaf {
		return engine.State{}, fmt.Errorf("connect to %s: refused", address)
	}
	return state, nil
}

func newWorld(t *testing.T) *world {
	e, w := sites(t)
	namespace := "t-" + strings.ToLower(fmt.Sprintf("%x", time.Now().UnixNano()))
	world := &world{t: t, namespace: namespace}
	world.east, world.west = world.side(e), world.side(w)
	world.east.peer, world.west.peer = world.west, world.east
	return world
}

// withSouth adds the third cluster.
func (w *world) withSouth() {
	w.south = w.side(third(w.t))
	w.south.peer = w.east
}

// sides are the clusters that take part.
func (w *world) sides() []*side {
	out := []*side{w.east, w.west}
	if w.south != nil {
		out = append(out, w.south)
	}
	return out
}

func (w *world) side(s *site) *side {
	out := &side{site: s, w: w, states: map[string]engine.State{}, commands: hooktest.New(w.t)}
	out.r = out.manager()
	out.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}})
	return out
}

// manager is a fresh one: nothing of the former is remembered.
func (s *side) manager() *Reconciler {
	return &Reconciler{
		Client: s.kube, Live: s.kube, Watched: current{s.kube}, Cluster: s.name, Image: "lifeboat:test", Peers: links{s}, Trust: trust.Reader{Reader: s.kube}, CA: s.ca,
		Movers: s, Now: s.w.now, Random: rand.Reader, Rules: hook.NewRules(s.kube, s.commands),
	}
}

func (w *world) now() time.Time { return time.Now().Add(w.skip) }

// create makes an object, its status included.
func (s *side) create(o client.Object) {
	s.w.t.Helper()
	wanted := o.DeepCopyObject().(client.Object)
	if err := s.kube.Create(s.w.t.Context(), o); err != nil {
		s.w.t.Fatalf("%s: create %T %s: %v", s.name, o, o.GetName(), err)
	}
	switch o := o.(type) {
	case *corev1.PersistentVolumeClaim:
		o.Status = wanted.(*corev1.PersistentVolumeClaim).Status
	case *corev1.Pod:
		o.Status = wanted.(*corev1.Pod).Status
	default:
		return
	}
	if err := s.kube.Status().Update(s.w.t.Context(), o); err != nil {
		s.w.t.Fatalf("%s: status of %T %s: %v", s.name, o, o.GetName(), err)
	}
}

func (s *side) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: s.w.namespace, Name: name}
}

// claim makes a claim that the driver binds.
func (s *side) claim(name, size, class string) {
	s.w.t.Helper()
	s.create(&corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	})
}

func (s *side) group(name string, claims ...string) {
	s.w.t.Helper()
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name}}
	for _, c := range claims {
		group.Spec.PVCList = append(group.Spec.PVCList, v1alpha1.PVCRef{PVCName: c})
	}
	s.create(group)
}

func (s *side) replication(name string, role v1alpha1.Role, edit ...func(*v1alpha1.Replication)) {
	s.w.t.Helper()
	rep := &v1alpha1.Replication{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name},
		Spec: v1alpha1.ReplicationSpec{Role: role, PVCGroupName: "app", Epoch: 1,
			Rlinks: []v1alpha1.Rlink{{RlinkName: "dr", ClusterPair: "to-" + s.peer.name}}},
	}
	for _, e := range edit {
		e(rep)
	}
	s.create(rep)
}

// get returns the Replication of that name; nil when it is gone.
func (s *side) get(name string) *v1alpha1.Replication {
	s.w.t.Helper()
	var rep v1alpha1.Replication
	err := s.kube.Get(s.w.t.Context(), s.key(name), &rep)
	if client.IgnoreNotFound(err) != nil {
		s.w.t.Fatal(err)
	}
	if err != nil {
		return nil
	}
	return &rep
}

func (s *side) edit(name string, change func(*v1alpha1.Replication)) {
	s.w.t.Helper()
	rep := s.get(name)
	before := rep.DeepCopy()
	change(rep)
	if err := s.kube.Patch(s.w.t.Context(), rep, client.MergeFrom(before)); err != nil {
		s.w.t.Fatalf("%s: edit replication: %v", s.name, err)
	}
}

// link is the status of the one link.
func (s *side) link(name string) v1alpha1.RlinkStatus {
	rep := s.get(name)
	if rep == nil || len(rep.Status.Rlinks) == 0 {
		return v1alpha1.RlinkStatus{}
	}
	return rep.Status.Rlinks[0]
}

// linkOf is the status of one of several links.
func (s *side) linkOf(name, rlink string) v1alpha1.RlinkStatus {
	s.w.t.Helper()
	if rep := s.get(name); rep != nil {
		if l := statusOf(rep, rlink); l != nil {
			return *l
		}
	}
	return v1alpha1.RlinkStatus{}
}

// turn lets all controllers take a step, then nodes and drivers do what there is to do.
func (w *world) turn() {
	w.t.Helper()
	for _, s := range w.sides() {
		s.reconcile()
	}
	for _, s := range w.sides() {
		s.play()
	}
}

// reconcile takes one step of each Replication.
func (s *side) reconcile() {
	s.w.t.Helper()
	if s.paused {
		return
	}
	if s.fresh != nil {
		s.r = s.fresh()
	}
	var list v1alpha1.ReplicationList
	if err := s.kube.List(s.w.t.Context(), &list, client.InNamespace(s.w.namespace)); err != nil {
		s.w.t.Fatal(err)
	}
	for _, rep := range list.Items {
		_, err := s.r.Reconcile(s.w.t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(&rep)})
		if err != nil {
			s.note("error: " + err.Error())
			continue
		}
		if now := s.get(rep.Name); now != nil {
			s.note(describe(now))
		}
	}
}

// note keeps what changed, for the story of a failed test.
func (s *side) note(line string) {
	if len(s.seen) == 0 || s.seen[len(s.seen)-1] != line {
		s.seen = append(s.seen, line)
	}
}

func describe(rep *v1alpha1.Replication) string {
	out := fmt.Sprintf("%s %s@%d(%s@%d) %s", rep.Name, rep.Spec.Role, rep.Spec.Epoch, rep.Status.Role, rep.Status.Epoch, rep.Status.Phase)
	for _, c := range rep.Status.Conditions {
		if c.Type == v1alpha1.ConditionReady {
			out += fmt.Sprintf(" ready=%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return out
}

func (w *world) story() string {
	out := ""
	for _, s := range w.sides() {
		out += s.name + ":\n  " + strings.Join(s.seen, "\n  ") + "\n"
		for _, rep := range []string{"app"} {
			if r := s.get(rep); r != nil {
				raw, _ := json.MarshalIndent(r.Status, "  ", " ")
				out += "  " + string(raw) + "\n"
			}
		}
	}
	return out
}

// until turns the world until done, for at most a minute of its own time; the clock of the controllers runs ahead, so that
// what they wait for by the clock comes soon.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for range 300 {
		if done() {
			return
		}
		w.turn()
		w.skip += 2 * time.Second
	}
	w.t.Fatalf("never: %s\n%s", what, w.story())
}

// committed reports that a session answered the trigger and that the target has recorded its point.
func (s *side) committed(name, trigger string) func() bool {
	return func() bool {
		l := s.link(name)
		return l.Session == nil && l.LastSession != nil && l.LastSession.Result == "Committed" && l.LastSession.TriggerNow == trigger &&
			s.peer.link(name).RecoveryPoint != nil && s.peer.link(name).RecoveryPoint.Point == l.LastSession.Point
	}
}

func (s *side) trigger(name, token string) {
	s.edit(name, func(r *v1alpha1.Replication) { r.Spec.TriggerNow = token })
}

func (s *side) ready(name string) metav1.Condition {
	return conditionOf(s.get(name), v1alpha1.ConditionReady)
}

func conditionOf(rep *v1alpha1.Replication, kind string) metav1.Condition {
	if rep != nil {
		for _, c := range rep.Status.Conditions {
			if c.Type == kind {
				return c
			}
		}
	}
	return metav1.Condition{}
}

// Client and State are Peers: the real link, unless the test has cut it.
func (s *side) Client(pair string) (control.Peer, error) {
	if s.offline {
		return nil, &control.Unreachable{Peer: s.peer.name, Address: "192.0.2.7:9002", Err: errors.New("the cable is out")}
	}
	return s.peers.Client(pair)
}

type links struct{ *side }

func (l links) State(pair string) heartbeat.State {
	state := l.peers.State(pair)
	if l.offline {
		state.Link, state.Message = v1alpha1.LinkLost, "the cable is out"
	}
	return state
}

func (s *side) idle(name string) func() bool {
	return func() bool { return s.get(name).Status.Phase == "Idle" }
}

func (s *side) inForce(name string, role v1alpha1.Role, epoch int64) func() bool {
	return func() bool {
		status := s.get(name).Status
		return status.Role == role && status.Epoch == epoch
	}
}

// app is a pod of the application that mounts a claim.
func (s *side) app(name, claim string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}, Volumes: []corev1.Volume{{Name: "data",
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	s.create(pod)
	return pod
}

func (s *side) claims() []string {
	var list corev1.PersistentVolumeClaimList
	s.list(&list)
	var out []string
	for _, o := range list.Items {
		out = append(out, o.Name)
	}
	return out
}

func (s *side) snapshots() []string {
	var list snapshotv1.VolumeSnapshotList
	s.list(&list)
	var out []string
	for _, o := range list.Items {
		out = append(out, o.Name)
	}
	return out
}

// made lists what Lifeboat left in the namespace besides claims and snapshots.
func (s *side) made() []string {
	var out []string
	for _, list := range []client.ObjectList{&batchv1.JobList{}, &appsv1.DeploymentList{}, &corev1.ServiceList{}, &corev1.ConfigMapList{}, &corev1.SecretList{},
		&corev1.ServiceAccountList{}, &rbacv1.RoleBindingList{}} {
		s.must(s.kube.List(s.w.t.Context(), list, client.InNamespace(s.w.namespace), client.HasLabels{v1alpha1.LabelReplication}))
		items, err := meta.ExtractList(list)
		s.must(err)
		for _, item := range items {
			out = append(out, fmt.Sprintf("%T %s", item, item.(client.Object).GetName()))
		}
	}
	var volumes corev1.PersistentVolumeList
	s.must(s.kube.List(s.w.t.Context(), &volumes, client.MatchingLabels{v1alpha1.LabelComponent: componentReplica}))
	for _, o := range volumes.Items {
		if strings.Contains(o.Name, s.w.namespace) {
			out = append(out, "volume "+o.Name)
		}
	}
	return out
}

// volumes tells which volumes the claim has in both sites.
func (w *world) volumes(claim string) string {
	out := ""
	for _, s := range []*side{w.east, w.west} {
		var c corev1.PersistentVolumeClaim
		s.must(s.kube.Get(w.t.Context(), s.key(claim), &c))
		var v corev1.PersistentVolume
		if err := s.kube.Get(w.t.Context(), client.ObjectKey{Name: c.Spec.VolumeName}, &v); err != nil {
			out += s.name + "=none "
			continue
		}
		out += s.name + "=" + v.Spec.CSI.VolumeHandle + " "
	}
	return out
}

// flakyClient refuses every write once, before it reaches the API server. The snapshots of a group are made side by side.
type flakyClient struct {
	client.Client
	mu     sync.Mutex
	tried  map[string]bool
	failed int
}

var errKilled = errors.New("the manager was killed here")

func (f *flakyClient) fail(verb string, o client.Object) error {
	key := fmt.Sprintf("%s %T %s", verb, o, o.GetName())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tried[key] {
		delete(f.tried, key) // the next one of its kind fails again
		return nil
	}
	f.tried[key] = true
	f.failed++
	return errKilled
}

func (f *flakyClient) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	if err := f.fail("create", o); err != nil {
		return err
	}
	return f.Client.Create(ctx, o, opts...)
}

func (f *flakyClient) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	if err := f.fail("delete", o); err != nil {
		return err
	}
	return f.Client.Delete(ctx, o, opts...)
}

func (f *flakyClient) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	if err := f.fail("patch", o); err != nil {
		return err
	}
	return f.Client.Patch(ctx, o, p, opts...)
}

func (f *flakyClient) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	if err := f.fail("update", o); err != nil {
		return err
	}
	return f.Client.Update(ctx, o, opts...)
}

func (f *flakyClient) Status() client.SubResourceWriter { return flakyStatus{f.Client.Status(), f} }

type flakyStatus struct {
	client.SubResourceWriter
	f *flakyClient
}

func (s flakyStatus) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
	if err := s.f.fail("status", o); err != nil {
		return err
	}
	return s.SubResourceWriter.Patch(ctx, o, p, opts...)
}
