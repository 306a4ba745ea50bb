package replication

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

func (s *side) role(name string, role v1alpha1.Role) {
	s.edit(name, func(r *v1alpha1.Replication) { r.Spec.Role = role })
}

func (s *side) is(name string, role v1alpha1.Role) func() bool {
	return func() bool { return s.get(name).Status.Role == role }
}

// inStep reports that the newest point of this source, of its epoch, is the target's.
func (s *side) inStep(name string) func() bool {
	return func() bool {
		l, epoch := s.link(name), s.get(name).Status.Epoch
		there := s.peer.get(name)
		return s.is(name, v1alpha1.RoleSource)() && l.LastSession != nil && l.LastSession.Result == "Committed" && l.RecoveryPoint.Epoch == epoch &&
			there.Status.Epoch == epoch && s.peer.link(name).RecoveryPoint != nil && s.peer.link(name).RecoveryPoint.Point == l.RecoveryPoint.Point
	}
}

// M-125, M-126, M-143, M-165: two patches are a failover, the same two the other way round the failback; epochs advance by themselves, nobody
// edits an address, and at the end both sides are what they were.
func TestRolesByHandAreAFailoverAndAFailback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	links := [2][]v1alpha1.Rlink{w.east.get("app").Spec.Rlinks, w.west.get("app").Spec.Rlinks}
	app := w.east.app("app-0", "data")
	w.east.role("app", v1alpha1.RoleTarget)
	w.until("M-126: the pod holds the demotion and is named", func() bool {
		c := w.east.ready("app")
		return c.Reason == cycle.ReasonClaimsInUse && strings.Contains(c.Message, "app-0") && strings.Contains(w.east.link("app").WaitingFor, "app-0")
	})
	w.west.role("app", v1alpha1.RoleSource)
	w.until("the other side waits for it", func() bool {
		c := w.west.ready("app")
		return c.Reason == cycle.ReasonPeerIsSource && strings.Contains(c.Message, "app-0")
	})
	w.east.must(w.east.kube.Delete(t.Context(), app, client.GracePeriodSeconds(0)))
	w.until("west is source and east follows", w.west.inStep("app"))
	if e := w.west.get("app").Status.Epoch; e != 3 {
		t.Errorf("west took epoch %d", e)
	}
	if tier := w.west.link("app").LastSession.Tier; tier != v1alpha1.TierDigest {
		t.Errorf("M-142: the way back used tier %s", tier)
	}

	w.west.role("app", v1alpha1.RoleTarget)
	w.until("both are targets", w.west.is("app", v1alpha1.RoleTarget))
	for range 5 {
		w.turn()
	}
	if e, there := w.east.get("app"), w.west.get("app"); e.Status.Role != v1alpha1.RoleTarget || e.Status.Rlinks[0].Session != nil || there.Status.Rlinks[0].Session != nil {
		t.Errorf("between two targets something flows: %s, %s", describe(e), describe(there))
	}
	w.east.role("app", v1alpha1.RoleSource)
	w.until("home", w.east.inStep("app"))
	if e := w.east.get("app").Status; e.Epoch != 4 || e.ClaimedEpoch != nil || e.Takeover != nil {
		t.Errorf("home: %+v", e)
	}
	after := [2][]v1alpha1.Rlink{w.east.get("app").Spec.Rlinks, w.west.get("app").Spec.Rlinks}
	for i := range links {
		if links[i][0].ClusterPair != after[i][0].ClusterPair || links[i][0].RlinkName != after[i][0].RlinkName {
			t.Errorf("links were %+v, are %+v", links[i], after[i])
		}
	}
}

// M-125: in the wrong order the second source waits, says which patch goes where, and never writes.
func TestTheWrongOrderWaitsAndSaysWhatToPatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.role("app", v1alpha1.RoleSource)
	w.until("it says what to do", func() bool {
		m := w.west.ready("app").Message
		return strings.Contains(m, "cluster east") && strings.Contains(m, "kubectl -n "+w.namespace+` patch replication app --type=merge -p '{"spec":{"role":"target"}}'`)
	})
	for range 5 {
		w.turn()
	}
	if s := w.west.get("app").Status; s.Role != v1alpha1.RoleTarget || s.Epoch != 1 || s.ClaimedEpoch != nil {
		t.Errorf("west: %+v", s)
	}
	if !slices.Contains(w.west.claims(), "lb-data-replica") {
		t.Error("the replica was taken apart though the source was not left")
	}
	w.west.role("app", v1alpha1.RoleTarget)
	w.east.trigger("app", "on")
	w.until("taken back, replication goes on", w.east.committed("app", "on"))
}

// M-125, M-142: without its source a target is promoted only with the loss acknowledged by point; that is remembered until the
// former source was demoted and resynchronised, which takes what differs and no more.
func TestATakeoverByHandIsAcknowledgedAndRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.offline, w.east.offline = true, true
	w.west.role("app", v1alpha1.RoleSource)
	point := w.west.link("app").RecoveryPoint.Point
	w.until("it asks for the acknowledgement", func() bool {
		return strings.Contains(w.west.ready("app").Message, `set spec.acknowledgePeerLost to "`+point+`"`)
	})
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.AcknowledgePeerLost = "20250101t000000-aaaaaa" })
	for range 5 {
		w.turn()
	}
	if c := w.west.ready("app"); w.west.get("app").Status.ClaimedEpoch != nil || !strings.Contains(c.Message, "20250101t000000-aaaaaa") {
		t.Fatalf("another point was acknowledged, and yet: %s", describe(w.west.get("app")))
	}
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.AcknowledgePeerLost = point })
	w.until("promoted", w.west.inForce("app", v1alpha1.RoleSource, 3))
	over := func() *v1alpha1.TakeoverStatus { return w.west.get("app").Status.Takeover }
	if o := over(); o == nil || o.Epoch != 3 || o.Point != point || !slices.Equal(o.Clusters, []string{"east"}) {
		t.Fatalf("T-02: the takeover is remembered as %+v", o)
	}
	if c := conditionOf(w.west.get("app"), v1alpha1.ConditionPromoted); c.Status != "True" || c.Reason != reasonTakenOver || !strings.Contains(c.Message, "east") {
		t.Errorf("Promoted: %+v", c)
	}

	w.west.offline, w.east.offline = false, false
	w.east.trigger("app", "stale")
	w.until("the stale source is told", func() bool { return w.east.ready("app").Reason == cycle.ReasonStaleEpoch })
	if over() == nil {
		t.Error("the takeover was forgotten when the peer came back")
	}
	w.east.role("app", v1alpha1.RoleTarget)
	w.until("resynchronised", w.west.inStep("app"))
	w.until("the takeover is over", func() bool { return over() == nil })
	if last := w.west.link("app").LastSession; last.Tier != v1alpha1.TierDigest {
		t.Errorf("the former source was resynchronised by tier %s", last.Tier)
	}
	// T-03: the acknowledgement that is left over counts for nothing later.
	w.west.role("app", v1alpha1.RoleTarget)
	w.until("both are targets", w.west.is("app", v1alpha1.RoleTarget))
	w.until("settled", func() bool { return w.west.link("app").ReceiverReady })
	w.west.offline, w.east.offline = true, true
	w.west.role("app", v1alpha1.RoleSource)
	w.until("it is asked again", func() bool {
		return strings.Contains(w.west.ready("app").Message, "which is not the newest point") || strings.Contains(w.west.ready("app").Message, "nothing to promote")
	})
}

// M-093: a peer that nobody can reach, for as long as that may be, promotes nobody; when it is back each side is what it was, and after a
// takeover by hand nobody goes home by itself.
func TestNobodyIsPromotedByAPeerThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	before := w.west.get("app")
	stays := func(when string) {
		t.Helper()
		for _, s := range []*side{w.east, w.west} {
			role := map[string]v1alpha1.Role{"east": v1alpha1.RoleSource, "west": v1alpha1.RoleTarget}[s.name]
			if r := s.get("app"); r.Spec.Role != role || r.Status.Role != role || r.Status.Epoch != before.Status.Epoch || r.Status.ClaimedEpoch != nil || r.Status.Takeover != nil {
				t.Fatalf("%s %s is %s", s.name, when, describe(r))
			}
		}
	}
	w.west.offline, w.east.offline = true, true
	for range 6 {
		w.turn()
		w.skip += 12 * time.Hour
		w.turn()
		stays("with the peer away")
	}
	if !slices.Contains(w.west.claims(), "lb-data-replica") {
		t.Error("the replica was taken apart while the peer was away")
	}
	w.west.offline, w.east.offline = false, false
	w.east.trigger("app", "back")
	w.until("replication goes on as it was", w.east.committed("app", "back"))
	stays("with the peer back")

	// Who is set to become the source waits for a person to say that the loss is accepted, however long the peer is away.
	w.west.offline, w.east.offline = true, true
	w.west.role("app", v1alpha1.RoleSource)
	for range 6 {
		w.turn()
		w.skip += 12 * time.Hour
		w.turn()
		if r := w.west.get("app"); r.Status.Role != v1alpha1.RoleTarget || r.Status.ClaimedEpoch != nil {
			t.Fatalf("nobody accepted a loss, and west is %s", describe(r))
		}
	}

	// A person takes over. The former source comes back, and nothing but a person leads home.
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.AcknowledgePeerLost = w.west.link("app").RecoveryPoint.Point })
	w.until("taken over", w.west.is("app", v1alpha1.RoleSource))
	epoch := w.west.get("app").Status.Epoch
	w.west.offline, w.east.offline = false, false
	w.until("the former source is told", func() bool { return w.east.ready("app").Reason == cycle.ReasonStaleEpoch })
	for range 6 {
		w.turn()
		w.skip += 12 * time.Hour
		w.turn()
		if r := w.west.get("app"); r.Spec.Role != v1alpha1.RoleSource || r.Status.Role != v1alpha1.RoleSource || r.Status.Epoch != epoch {
			t.Fatalf("the side that took over is %s", describe(r))
		}
		if r := w.east.get("app"); r.Spec.Role != v1alpha1.RoleSource || r.Spec.Epoch >= epoch || r.Status.Epoch >= epoch {
			t.Fatalf("the former source is %s", describe(r))
		}
	}
}

// M-125: a source that was taken over from in the middle of a session ends it when it hears of that, and says that it is stale.
func TestASourceThatComesBackWithASessionIsStale(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.east.holdMovers = true
	w.east.trigger("app", "cut short")
	w.until("the mover runs", func() bool {
		s := w.east.link("app").Session
		return s != nil && strings.Contains(s.Message, "runs")
	})
	w.west.offline, w.east.offline = true, true
	w.west.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Role, r.Spec.AcknowledgePeerLost = v1alpha1.RoleSource, w.west.link("app").RecoveryPoint.Point
	})
	w.until("taken over", w.west.is("app", v1alpha1.RoleSource))
	w.east.holdMovers = false
	w.west.offline, w.east.offline = false, false
	w.until("the former source is told", func() bool {
		return w.east.ready("app").Reason == cycle.ReasonStaleEpoch && w.east.link("app").Session == nil
	})
	if last := w.east.link("app").LastSession; last.Result != "Failed" || !strings.Contains(last.Message, "another cluster has become primary") {
		t.Errorf("the session ended as %+v", last)
	}
}

// M-017: roles are swapped ten times, as an application that follows the sun does. Each swap goes on from the newest point, by what
// differs, and leaves no object behind.
func TestRolesAreSwappedAgainAndAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	volumes := w.volumes("data")
	// What is there at rest: all that has a name of its own, and the snapshots that sessions go on from.
	at := func() (out [2][]string) {
		w.until("rest", func() bool { return w.east.idle("app")() && w.west.idle("app")() })
		for i, s := range []*side{w.east, w.west} {
			var bases snapshotv1.VolumeSnapshotList
			s.must(s.kube.List(t.Context(), &bases, client.InNamespace(w.namespace), client.MatchingLabels{snapshot.LabelPurpose: string(snapshot.ForSession)}))
			out[i] = slices.Concat(kindsOf(s.made()), s.claims(), []string{fmt.Sprint(len(bases.Items), " bases")})
		}
		return out
	}
	var before [2][]string
	from, to := w.east, w.west
	for swap := range 10 {
		from.role("app", v1alpha1.RoleTarget)
		w.until("the source is left", from.is("app", v1alpha1.RoleTarget))
		newest := to.link("app").RecoveryPoint.Point
		to.role("app", v1alpha1.RoleSource)
		w.until("the roles are swapped", to.is("app", v1alpha1.RoleSource))
		if got := to.link("app").RecoveryPoint.Point; got != newest {
			t.Fatalf("swap %d: %s was promoted with point %s, the newest is %s", swap, to.name, got, newest)
		}
		w.until("the way back", to.inStep("app"))
		if last := to.link("app").LastSession; last.Tier != v1alpha1.TierDigest {
			t.Errorf("swap %d: the way back took tier %s", swap, last.Tier)
		}
		from, to = to, from
		// After two each side has been both, and a swap leaves nothing more.
		if swap == 1 {
			before = at()
		}
	}
	after := at()
	for i, s := range []*side{w.east, w.west} {
		if !slices.Equal(after[i], before[i]) {
			t.Errorf("%s after ten swaps holds\n  %s\nafter two\n  %s", s.name, strings.Join(after[i], "\n  "), strings.Join(before[i], "\n  "))
		}
	}
	if now := w.volumes("data"); now != volumes {
		t.Errorf("the claims' volumes were %s, are %s", volumes, now)
	}
}

// M-017, M-084: one source feeds two clusters. When one of them becomes the source, the other switches to it by itself and the former
// source follows; beside that the new source is the target of another application.
func TestOneSourceFeedsTwoClustersAndOneOfThemBecomesTheSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.withSouth()
	to := func(rlink, cluster string) v1alpha1.Rlink {
		return v1alpha1.Rlink{RlinkName: rlink, ClusterPair: "to-" + cluster}
	}
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.Rlinks = []v1alpha1.Rlink{to("ew", "west"), to("es", "south")}
	})
	// fed reports that the source's last session on that link is a whole one of its epoch, whose point the peer has recorded.
	fed := func(source *side, rlink string, peer *side) bool {
		rep, here, kept := source.get("app"), source.linkOf("app", rlink), peer.linkOf("app", rlink)
		return rep.Status.Role == v1alpha1.RoleSource && here.LastSession != nil && here.LastSession.Result == "Committed" && here.RecoveryPoint.Epoch == rep.Status.Epoch &&
			kept.RecoveryPoint != nil && kept.RecoveryPoint.Point == here.RecoveryPoint.Point
	}
	w.until("both have a point", func() bool { return fed(w.east, "ew", w.west) && fed(w.east, "es", w.south) })

	// Every cluster has a link to both others.
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks = append(r.Spec.Rlinks, to("ws", "south")) })
	w.south.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks = append(r.Spec.Rlinks, to("ws", "west")) })
	w.east.role("app", v1alpha1.RoleTarget)
	w.west.role("app", v1alpha1.RoleSource)
	w.until("the new source feeds both", func() bool {
		var sources []string
		for _, s := range w.sides() {
			if s.is("app", v1alpha1.RoleSource)() {
				sources = append(sources, s.name)
			}
		}
		if len(sources) > 1 {
			t.Fatalf("sources: %v", sources)
		}
		return fed(w.west, "ew", w.east) && fed(w.west, "ws", w.south)
	})
	for _, rlink := range []string{"ew", "ws"} {
		if last := w.west.linkOf("app", rlink).LastSession; last.Tier != v1alpha1.TierDigest {
			t.Errorf("link %s began with tier %s", rlink, last.Tier)
		}
	}

	w.south.claim("other", "1Gi", className)
	w.south.group("other", "other")
	w.south.replication("other", v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.PVCGroupName, r.Spec.Rlinks = "other", []v1alpha1.Rlink{to("sw", "west")}
	})
	w.until("the new source is a target too", func() bool {
		l := w.west.get("other")
		return l != nil && l.Status.Role == v1alpha1.RoleTarget && w.west.linkOf("other", "sw").RecoveryPoint != nil
	})
	w.west.trigger("app", "again")
	w.until("and goes on as a source", func() bool {
		for _, rlink := range []string{"ew", "ws"} {
			if last := w.west.linkOf("app", rlink).LastSession; last.TriggerNow != "again" || last.Result != "Committed" {
				return false
			}
		}
		return true
	})
}

// lossy adds a second link, whose peer never answers.
func lossy(w *world) func(*v1alpha1.Replication) {
	w.t.Helper()
	pair := &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: "north-" + w.namespace}, Spec: v1alpha1.ClusterPairSpec{
		PeerCluster: "north", GatewayAddress: "192.0.2.9:9002", TrustSecretName: "lifeboat-trust-west", Namespaces: []string{"*"}}}
	w.east.must(w.east.kube.Create(w.t.Context(), pair))
	w.t.Cleanup(func() { _ = w.east.kube.Delete(w.t.Context(), pair) })
	return func(r *v1alpha1.Replication) {
		r.Spec.Rlinks = append([]v1alpha1.Rlink{{RlinkName: "north", ClusterPair: pair.Name, Schedule: "*/7 * * * *"}}, r.Spec.Rlinks...)
	}
}

// M-084, M-099, M-161: two links in one object; the one whose peer is away delays nothing of the other, each has its own status, and a
// removed link leaves nothing.
func TestALostPeerHoldsNoOtherLinkBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	add := lossy(w)
	w.east.replication("app", v1alpha1.RoleSource, add)
	of := func(name string) v1alpha1.RlinkStatus { return w.east.linkOf("app", name) }
	committed := func(token string) func() bool {
		return func() bool {
			l := of("dr").LastSession
			return l != nil && l.Result == "Committed" && l.TriggerNow == token
		}
	}
	w.until("the first point on the link that works", committed(""))
	began := time.Now()
	turns := 0
	w.east.trigger("app", "now")
	w.until("a second", func() bool { turns++; return committed("now")() })
	t.Logf("a session beside a lost peer took %d turns and %s", turns, time.Since(began))
	north, dr := of("north"), of("dr")
	if north.WaitingFor == "" || north.Phase != cycle.Waiting || north.NextRun == nil || north.LastSession != nil || north.RecoveryPoint != nil {
		t.Errorf("the lost link: %+v", north)
	}
	if dr.BasePoint != dr.LastSession.Point || dr.NextRun != nil {
		t.Errorf("the other link: %+v", dr)
	}
	if c := w.east.ready("app"); c.Status != "False" || !strings.HasPrefix(c.Message, "link north: ") {
		t.Errorf("Ready: %+v", c)
	}
	// M-161: what serves the link is found by replication and link glued together.
	var secrets corev1.SecretList
	w.east.must(w.east.kube.List(t.Context(), &secrets, client.InNamespace(w.namespace), client.MatchingLabels{"app": "appdr"}))
	if len(secrets.Items) != 1 {
		t.Errorf("%d Secrets of app + dr", len(secrets.Items))
	}
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks = r.Spec.Rlinks[:1] })
	w.until("the removed link leaves nothing", func() bool {
		return len(w.east.get("app").Status.Rlinks) == 1 && len(w.east.snapshots()) == 0 && len(w.east.made()) == 0
	})
}

// M-086, M-087, M-088, M-090: what was made by hand on both sides is compared before any data move, and the first difference is named on both.
func TestWhatWasMadeByHandIsComparedFirst(t *testing.T) {
	byHand := func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].PeerObjects = v1alpha1.PeerObjectsManual }
	mapped := func(pairs ...string) func(*v1alpha1.Replication) {
		return func(r *v1alpha1.Replication) {
			r.Spec.Rlinks[0].PVCMap = map[string]string{}
			for i := 0; i < len(pairs); i += 2 {
				r.Spec.Rlinks[0].PVCMap[pairs[i]] = pairs[i+1]
			}
		}
	}
	for _, c := range []struct {
		name       string
		there      []string // claim, size, ...
		east, west []string
		says       []string
	}{
		// M-086, T-20: the same map on both sides, or one that crosses members.
		{"crossed", []string{"t-data", "1Gi", "t-wal", "2Gi"}, []string{"data", "t-data", "wal", "t-wal"}, []string{"t-data", "wal", "t-wal", "data"},
			[]string{"counterpart of claim t-data", "is wal on cluster west and data on cluster east", "inverse"}},
		// M-087: any difference in size.
		{"sizes", []string{"t-data", "1025Mi", "t-wal", "2Gi"}, []string{"data", "t-data", "wal", "t-wal"}, []string{"t-data", "data", "t-wal", "wal"},
			[]string{"t-data", "1025Mi", "1Gi"}},
		// M-088: two here, three there.
		{"members", []string{"t-data", "1Gi", "t-wal", "2Gi", "t-log", "1Gi"}, []string{"data", "t-data", "wal", "t-wal"}, []string{"t-data", "data", "t-wal", "wal"},
			[]string{"the number of members is 3", "2, pvcList [t-data t-wal], on cluster east"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.east.claim("data", "1Gi", className)
			w.east.claim("wal", "2Gi", className)
			w.east.group("app", "data", "wal")
			var names []string
			for i := 0; i < len(c.there); i += 2 {
				w.west.claim(c.there[i], c.there[i+1], className)
				names = append(names, c.there[i])
			}
			w.west.group("app", names...)
			w.west.replication("app", v1alpha1.RoleTarget, byHand, mapped(c.west...))
			w.east.replication("app", v1alpha1.RoleSource, byHand, mapped(c.east...))
			w.until(c.name, func() bool {
				m := w.east.ready("app").Message
				return !slices.ContainsFunc(c.says, func(part string) bool { return !strings.Contains(m, part) })
			})
			if len(w.east.snapshots()) != 0 || w.east.link("app").LastSession != nil {
				t.Error("a session was begun all the same")
			}
		})
	}
}

// M-085, M-089, M-090, M-091: both sides made by hand with names and a class of their own, the source first, in use all the while.
func TestBothSidesMadeByHandTheSourceFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.app("app-0", "data")
	w.east.group("app", "data")
	byHand := func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].PeerObjects, r.Spec.Epoch = v1alpha1.PeerObjectsManual, 0
	}
	w.east.replication("app", v1alpha1.RoleSource, byHand, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].PVCMap = map[string]string{"data": "t-data"} })
	w.until("the source waits and says for what", func() bool {
		c := w.east.ready("app")
		return c.Reason == cycle.ReasonPeerMissing && strings.Contains(c.Message, "west")
	})
	if got := w.west.claims(); len(got) != 0 || w.west.get("app") != nil {
		t.Errorf("M-090: made on the peer all the same: %v", got)
	}
	w.west.claim("t-data", "1Gi", listingClass)
	w.west.group("app", "t-data")
	w.west.replication("app", v1alpha1.RoleTarget, byHand, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].PVCMap = map[string]string{"t-data": "data"} })
	w.until("M-091: it goes on once the target exists", w.east.committed("app", ""))
}

// M-090: what is made on the peer is made of the storage class that the map names, and of no other.
func TestTheStorageClassMap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].StorageClassMap = map[string]string{className: "nowhere"}
	})
	w.until("a class that is missing there is named", func() bool {
		m := w.east.ready("app").Message
		return strings.Contains(m, `no storage class "nowhere"`) && strings.Contains(m, "data")
	})
	w.east.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].StorageClassMap = map[string]string{className: listingClass}
	})
	w.until("the first point", w.east.committed("app", ""))
	var claim corev1.PersistentVolumeClaim
	w.west.must(w.west.kube.Get(t.Context(), w.west.key("data"), &claim))
	if *claim.Spec.StorageClassName != listingClass {
		t.Errorf("made of class %s", *claim.Spec.StorageClassName)
	}
	if got := w.west.get("app").Spec.Rlinks[0].StorageClassMap; got[listingClass] != className {
		t.Errorf("the way back maps %v", got)
	}
}
