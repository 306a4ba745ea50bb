package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/retention"
	"lifeboat.dev/lifeboat/internal/schedule"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// Reasons of problems seen here; those of a group's claims are in package snapshot.
const (
	reasonPairMissing       = "ClusterPairMissing"
	reasonTrustMissing      = "TrustMissing"
	reasonGroupMissing      = "PVCGroupMissing"
	reasonClaimInTwoGroups  = "ClaimInTwoGroups"
	reasonLabelTaken        = "LabelTaken"
	reasonPVCMapInvalid     = "PVCMapInvalid"
	reasonPeerDeclined      = "PeerDeclined"
	reasonSizesOrModeDiffer = "PeerConflict"
	reasonCutNotAtomic      = "CutNotAtomic"
)

// view is everything that was read of one link in one look, and the Replication as the status will be saved.
type view struct {
	now   time.Time
	rep   *v1alpha1.Replication
	names names
	rlink v1alpha1.Rlink
	// lead is true for the link that a replica is, or was, received through. What belongs to the replica is in its view alone.
	lead bool
	// watched is true when it was read from what is watched, which suffices for the step that follows.
	watched bool
	// status is the link's, within rep.
	status *v1alpha1.RlinkStatus
	// observed is the generation that the status was of.
	observed int64

	// agenda says when sessions are wanted, outlook what that means now; unscheduled why it cannot be told.
	agenda      schedule.Agenda
	outlook     schedule.Outlook
	unscheduled *cycle.Problem

	pair    *v1alpha1.ClusterPair
	peerCA  []byte
	members []snapshot.Member
	// access is how the members are replicated; empty when it cannot be told.
	access v1alpha1.VolumeAccess
	// trouble is with the pair, problem is the first of all.
	trouble, problem *cycle.Problem
	peer             cycle.Peer
	// way is how the members are cut, as far as the storage goes; policy is what the group asks for.
	way    snapshot.Way
	policy v1alpha1.CutPolicy

	snapshots []snapshot.Seen
	claims    []corev1.PersistentVolumeClaim // those Lifeboat made for this Replication
	jobs      []batchv1.Job
	pods      []corev1.Pod // movers' and receivers'

	// report is the ended mover's; state is what the running mover or the receiver says.
	report  *engine.Report
	state   *engine.State
	replica replica
	rules   ruleRun
	// point is the name of the session that StartSession begins, agreed is set once the peer found in PreparePeer that both sides fit.
	point  string
	agreed bool

	source *cycle.Source
	target *cycle.Target
}

// sight is one look at a Replication: a view of each of its links, the leading one first, and of each link that is not in its spec any
// more though something of it is left.
type sight struct {
	rep   *v1alpha1.Replication
	links []*view
	gone  []*view
}

func (s *sight) lead() *view { return s.links[0] }

// next asks package cycle, for all links together.
func (s *sight) next() []cycle.Decision {
	if s.rep.Spec.Role == v1alpha1.RoleSource {
		sources := make([]cycle.Source, len(s.links))
		for i, v := range s.links {
			sources[i] = *v.source
		}
		return cycle.NextSources(sources)
	}
	targets := make([]cycle.Target, len(s.links))
	for i, v := range s.links {
		targets[i] = *v.target
	}
	return cycle.NextTargets(targets)
}

func (v *view) key() types.NamespacedName { return client.ObjectKeyFromObject(v.rep) }

func (v *view) wanted() cycle.Stand { return standOf(v.rep) }

// standOf is the role a side shall have and the epoch it shall have it in, here or at a peer: epochs never go back, and one that was
// claimed counts for the spec it was claimed for alone.
func standOf(rep *v1alpha1.Replication) cycle.Stand {
	stand := cycle.Stand{Role: rep.Spec.Role, Epoch: max(rep.Spec.Epoch, rep.Status.Epoch, 1)}
	if c := claimed(rep); c != nil {
		stand.Epoch = max(stand.Epoch, c.Epoch)
	}
	return stand
}

func claimed(rep *v1alpha1.Replication) *v1alpha1.ClaimedEpoch {
	if c := rep.Status.ClaimedEpoch; c != nil && rep.Spec.Role == v1alpha1.RoleSource && c.Generation == rep.Generation {
		return c
	}
	return nil
}

// brought is the epoch of the source that prepared this side last, 0 when none did.
func brought(rep *v1alpha1.Replication) int64 {
	epoch, err := strconv.ParseInt(rep.Annotations[v1alpha1.AnnotationSourceEpoch], 10, 64)
	if err != nil {
		return 0
	}
	return epoch
}

func (v *view) inForce() cycle.Stand {
	return cycle.Stand{Role: v.rep.Status.Role, Epoch: v.rep.Status.Epoch}
}

func (v *view) peerCluster() string {
	if v.pair == nil {
		return ""
	}
	return v.pair.Spec.PeerCluster
}

func (v *view) retain() int {
	if v.rlink.Retain == nil {
		return 3
	}
	return int(*v.rlink.Retain)
}

// retention is what is kept of recovery points.
func (v *view) retention() retention.Policy {
	p := retention.Policy{Count: v.retain()}
	if v.rlink.RetainFor != nil {
		p.For = v.rlink.RetainFor.Duration
	}
	return p
}

// refusedFor is how long a storage that refused to cut a group is not asked again. On a target hardly anything is lost by not asking: a
// replica is still while it is snapshotted.
const (
	refusedFor         = 10 * time.Minute
	refusedOnTargetFor = 24 * time.Hour
)

// cut is how the members are cut next: the way there is, unless the storage has refused it just now.
func (v *view) cut() snapshot.Way {
	at, forgotten := v.status.GroupSnapshotsRefusedAt, refusedFor
	if v.rep.Spec.Role == v1alpha1.RoleTarget {
		forgotten = refusedOnTargetFor
	}
	if v.way.Cut != v1alpha1.CutAtomic || v.policy == v1alpha1.CutRequireAtomic || at == nil || v.now.Sub(at.Time) > forgotten {
		return v.way
	}
	return snapshot.Way{Cut: v1alpha1.CutNotAtomic, Reason: snapshot.CutRefused, Message: fmt.Sprintf(
		"%d members are snapshotted together, but not at one instant: the storage refused at %s to cut them with VolumeGroupSnapshotClass %s; it is asked again after %s",
		len(v.members), at.UTC().Format(time.RFC3339), v.way.GroupClass, forgotten)}
}

// memberNames in the order of the group.
func (v *view) memberNames() []string {
	out := make([]string, len(v.members))
	for i, m := range v.members {
		out[i] = m.Name
	}
	return out
}

// peerName is what the peer calls a local claim.
func (v *view) peerName(claim string) string {
	if name, ok := v.rlink.PVCMap[claim]; ok {
		return name
	}
	return claim
}

// common is what all links of a Replication share.
type common struct {
	group   *v1alpha1.PVCGroup
	members []snapshot.Member
	way     snapshot.Way
	// selector is set when the group's selector cannot be read, shared when another Replication carries one of the claims.
	selector *snapshot.SelectorError
	shared   *cycle.Problem
	// labelled are, by the label app, the links of older Replications of the namespace.
	labelled map[string]names

	snapshots []snapshot.Seen
	claims    []corev1.PersistentVolumeClaim
	jobs      []batchv1.Job
	pods      []corev1.Pod
}

// peerClass is the peer's storage class for a local one.
func (v *view) peerClass(class string) string {
	if there, ok := v.rlink.StorageClassMap[class]; ok {
		return there
	}
	return class
}

// observe reads what the next step depends on, and no more: from the API server, or from what is watched of it.
func (r *Reconciler) observe(ctx context.Context, from client.Reader, rep *v1alpha1.Replication) (*sight, error) {
	c, err := r.observeCommon(ctx, from, rep)
	if err != nil {
		return nil, err
	}
	s := r.views(rep)
	for _, v := range s.links {
		if err := r.observeSchedule(ctx, v); err != nil {
			return nil, err
		}
		if err := r.observePair(ctx, from, v); err != nil {
			return nil, err
		}
	}
	if err := r.chooseLead(ctx, s); err != nil {
		return nil, err
	}
	for _, v := range append(slices.Clone(s.links), s.gone...) {
		v.take(c)
		v.judge(c)
	}
	if rep.Spec.Role == v1alpha1.RoleSource {
		return s, r.observeSources(ctx, from, s)
	}
	return s, r.observeTargets(ctx, s)
}

// views makes an empty view of each link, and gives each its place in the status.
func (r *Reconciler) views(rep *v1alpha1.Replication) *sight {
	s := &sight{rep: rep}
	now := r.Now().UTC()
	alignStatus(rep)
	for i := range rep.Status.Rlinks {
		v := &view{now: now, rep: rep, observed: rep.Status.ObservedGeneration, status: &rep.Status.Rlinks[i], names: names{rep.Namespace, rep.Name, rep.Status.Rlinks[i].RlinkName}}
		if i >= len(rep.Spec.Rlinks) {
			v.rlink.RlinkName = v.status.RlinkName
			s.gone = append(s.gone, v)
			continue
		}
		v.rlink = rep.Spec.Rlinks[i]
		s.links = append(s.links, v)
	}
	return s
}

// alignStatus orders the links' status as the spec does, those that are not in the spec any more last.
func alignStatus(rep *v1alpha1.Replication) {
	var out []v1alpha1.RlinkStatus
	former := rep.Status.Rlinks
	for _, link := range rep.Spec.Rlinks {
		i := slices.IndexFunc(former, func(s v1alpha1.RlinkStatus) bool { return s.RlinkName == link.RlinkName })
		if i < 0 {
			out = append(out, v1alpha1.RlinkStatus{RlinkName: link.RlinkName})
			continue
		}
		out = append(out, former[i])
	}
	for _, s := range former {
		if !slices.ContainsFunc(rep.Spec.Rlinks, func(link v1alpha1.Rlink) bool { return link.RlinkName == s.RlinkName }) {
			out = append(out, s)
		}
	}
	rep.Status.Rlinks = out
}

// chooseLead puts the link first that a replica is received through. Only a target with several links asks its peers for it; a side
// that was a target keeps what it chose then.
func (r *Reconciler) chooseLead(ctx context.Context, s *sight) error {
	former := cycle.Receipt{}
	if chosen := s.rep.Status.Receiving; chosen != nil {
		former = cycle.Receipt{Rlink: chosen.RlinkName, Epoch: chosen.Epoch}
	}
	lead := former.Rlink
	if s.rep.Spec.Role == v1alpha1.RoleTarget {
		givers := make([]cycle.Giver, len(s.links))
		for i, v := range s.links {
			givers[i].Rlink = v.rlink.RlinkName
		}
		if len(s.links) > 1 {
			r.observePeers(ctx, s.links)
			for i, v := range s.links {
				givers[i].Peer = v.peer
			}
		}
		chosen := cycle.Receiving(givers, former, s.rep.Status.Epoch)
		lead = chosen.Rlink
		s.rep.Status.Receiving = &v1alpha1.ReceivingStatus{RlinkName: chosen.Rlink, Epoch: chosen.Epoch}
	}
	if i := slices.IndexFunc(s.links, func(v *view) bool { return v.rlink.RlinkName == lead }); i > 0 {
		v := s.links[i]
		s.links = slices.Insert(slices.Delete(s.links, i, i+1), 0, v)
	}
	s.links[0].lead = true
	return nil
}

// observeCommon reads group, claims and what Lifeboat made.
func (r *Reconciler) observeCommon(ctx context.Context, from client.Reader, rep *v1alpha1.Replication) (*common, error) {
	c := &common{}
	if err := r.observeMade(ctx, from, rep, c); err != nil {
		return nil, err
	}
	others, err := olderOnes(ctx, from, rep)
	if err != nil {
		return nil, err
	}
	c.labelled = labelled(others)
	if c.group, err = group(ctx, from, rep); err != nil || c.group == nil {
		return c, err
	}
	c.members, err = snapshot.Members(ctx, from, c.group)
	if errors.As(err, &c.selector) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if c.way, err = snapshot.WayOf(ctx, from, c.group.Spec.CutPolicy, c.members); err != nil {
		return nil, err
	}
	c.shared = sharedClaim(others, c.members)
	return c, nil
}

// take gives a view what is its link's of what Lifeboat made. Replica and recovery points are the leading link's, whichever link
// they were made through.
func (v *view) take(c *common) {
	v.members, v.way = c.members, c.way
	if c.group != nil {
		v.policy = c.group.Spec.CutPolicy
	}
	if c.group != nil && len(c.members) > 0 {
		v.access, _ = snapshot.Access(c.group, c.members) // its fault is one of snapshot.Check's
	}
	mine := func(labels map[string]string) bool { return labels[v1alpha1.LabelRlink] == v.rlink.RlinkName }
	v.takeSnapshots(c.snapshots)
	for _, claim := range c.claims {
		clone := claim.Labels[v1alpha1.LabelComponent] == componentClone
		if clone && mine(claim.Labels) || !clone && v.lead {
			v.claims = append(v.claims, claim)
		}
	}
	for _, job := range c.jobs {
		if mine(job.Labels) {
			v.jobs = append(v.jobs, job)
		}
	}
	for _, pod := range c.pods {
		if mine(pod.Labels) {
			v.pods = append(v.pods, pod)
		}
	}
}

func (v *view) takeSnapshots(all []snapshot.Seen) {
	v.snapshots = nil
	for _, s := range all {
		if s.Purpose == snapshot.ForSession && s.Rlink == v.rlink.RlinkName || s.Purpose != snapshot.ForSession && v.lead {
			v.snapshots = append(v.snapshots, s)
		}
	}
}

// note keeps the first thing a person must mend.
func (v *view) note(reason, format string, args ...any) {
	if v.problem == nil {
		v.problem = &cycle.Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
}

// judge notes what is wrong with the link, then with what all links share.
func (v *view) judge(c *common) {
	if v.trouble != nil {
		v.note(v.trouble.Reason, "%s", v.trouble.Message)
	}
	if other, taken := c.labelled[v.names.app()]; taken {
		v.note(reasonLabelTaken, "link %s of Replication %s and link %s of this one come to one label app: %s, and a Service that selects it would find both: give this link, on both sides, another rlinkName",
			other.rlink, other.replication, v.rlink.RlinkName, v.names.app())
	}
	switch {
	case c.group == nil:
		v.note(reasonGroupMissing, "PVCGroup %s/%s does not exist: create it; spec.pvcGroupName names it", v.rep.Namespace, v.rep.Spec.PVCGroupName)
		return
	case c.selector != nil:
		v.note(snapshot.FaultSelector, "%v", c.selector)
		return
	}
	if fault := snapshot.Check(c.group, v.members, v.rep.Spec.Role == v1alpha1.RoleSource || v.retain() > 0); fault != nil {
		v.note(fault.Reason, "%s", fault.Message)
	}
	if v.policy == v1alpha1.CutRequireAtomic && v.way.Cut == v1alpha1.CutNotAtomic && v.rep.Spec.Role == v1alpha1.RoleSource {
		v.note(reasonCutNotAtomic, "PVCGroup %s/%s asks for one instant (spec.cutPolicy RequireAtomic), but %s", v.rep.Namespace, c.group.Name, v.way.Message)
	}
	if message := mapFault(v); message != "" {
		v.note(reasonPVCMapInvalid, "%s", message)
	}
	if c.shared != nil {
		v.note(c.shared.Reason, "%s", c.shared.Message)
	}
}

func (r *Reconciler) observePair(ctx context.Context, from client.Reader, v *view) error {
	note := func(reason, format string, args ...any) {
		v.trouble = &cycle.Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	var pair v1alpha1.ClusterPair
	err := from.Get(ctx, client.ObjectKey{Name: v.rlink.ClusterPair}, &pair)
	switch {
	case apierrors.IsNotFound(err):
		note(reasonPairMissing, "ClusterPair %s does not exist: pair the clusters with lifeboat pair; spec.rlinks[%s].clusterPair names it", v.rlink.ClusterPair, v.rlink.RlinkName)
		return nil
	case err != nil:
		return fmt.Errorf("read ClusterPair %s: %w", v.rlink.ClusterPair, err)
	}
	v.pair = &pair
	if v.peerCA, err = r.peerCA(ctx, &pair, from != r.Live); err != nil {
		note(reasonTrustMissing, "%v", err)
	}
	return nil
}

func group(ctx context.Context, from client.Reader, rep *v1alpha1.Replication) (*v1alpha1.PVCGroup, error) {
	var group v1alpha1.PVCGroup
	err := from.Get(ctx, client.ObjectKey{Namespace: rep.Namespace, Name: rep.Spec.PVCGroupName}, &group)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read PVCGroup %s/%s: %w", rep.Namespace, rep.Spec.PVCGroupName, err)
	}
	return &group, nil
}

// mapFault checks the pvcMap: it maps local claims to the peer's. The peer's map copied here would name claims that are not members.
func mapFault(v *view) string {
	local := map[string]bool{}
	for _, m := range v.members {
		local[m.Name] = true
	}
	taken := map[string]string{}
	for _, m := range v.members {
		there := v.peerName(m.Name)
		if other, twice := taken[there]; twice {
			return fmt.Sprintf("spec.rlinks[%s].pvcMap maps both %s and %s to the peer's claim %s: each needs its own", v.rlink.RlinkName, other, m.Name, there)
		}
		taken[there] = m.Name
	}
	for _, here := range slices.Sorted(maps.Keys(v.rlink.PVCMap)) {
		if !local[here] {
			return fmt.Sprintf("spec.rlinks[%s].pvcMap names the local claim %s, which is no member of PVCGroup %s: each entry is \"local claim: the peer's claim\", so the two sides' maps are each other's inverse",
				v.rlink.RlinkName, here, v.rep.Spec.PVCGroupName)
		}
	}
	return ""
}

// olderOnes are the Replications of the namespace that came before this one. What two of them claim the older one keeps.
func olderOnes(ctx context.Context, from client.Reader, rep *v1alpha1.Replication) ([]*v1alpha1.Replication, error) {
	var all v1alpha1.ReplicationList
	// What is only looked at need not be copied.
	if err := from.List(ctx, &all, client.InNamespace(rep.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list replications of namespace %s: %w", rep.Namespace, err)
	}
	var out []*v1alpha1.Replication
	for i := range all.Items {
		if other := &all.Items[i]; other.Name != rep.Name && older(other, rep) {
			out = append(out, other)
		}
	}
	return out, nil
}

// sharedClaim finds a claim that another Replication carries too.
func sharedClaim(others []*v1alpha1.Replication, members []snapshot.Member) *cycle.Problem {
	mine := map[string]bool{}
	for _, m := range members {
		mine[m.Name] = true
	}
	for _, other := range others {
		for _, claim := range other.Status.Claims {
			if mine[claim] {
				return &cycle.Problem{Reason: reasonClaimInTwoGroups, Message: fmt.Sprintf("claim %s/%s is replicated by Replication %s (PVCGroup %s) already: take it out of one of the groups",
					other.Namespace, claim, other.Name, other.Spec.PVCGroupName)}
			}
		}
	}
	return nil
}

// labelled are the others' links by the label app, which does not tell where the one name ends and the other begins.
func labelled(others []*v1alpha1.Replication) map[string]names {
	out := map[string]names{}
	for _, other := range others {
		for _, link := range other.Spec.Rlinks {
			n := names{other.Namespace, other.Name, link.RlinkName}
			out[n.app()] = n
		}
	}
	return out
}

func older(a, b *v1alpha1.Replication) bool {
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.Name < b.Name
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}

// observeMade reads what Lifeboat made for this Replication.
func (r *Reconciler) observeMade(ctx context.Context, from client.Reader, rep *v1alpha1.Replication, c *common) error {
	key := client.ObjectKeyFromObject(rep)
	var err error
	if c.snapshots, err = snapshot.List(ctx, from, key); err != nil {
		return err
	}
	mine := []client.ListOption{client.InNamespace(rep.Namespace),
		client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, v1alpha1.LabelReplication: rep.Name}}
	var claims corev1.PersistentVolumeClaimList
	var jobs batchv1.JobList
	var pods corev1.PodList
	for _, list := range []client.ObjectList{&claims, &jobs, &pods} {
		if err := from.List(ctx, list, mine...); err != nil {
			return fmt.Errorf("list what serves replication %s: %w", key, err)
		}
	}
	c.claims, c.jobs, c.pods = claims.Items, jobs.Items, pods.Items
	return nil
}

// observeSources fills what NextSources asks for. Peers are asked last and together, so that one that does not answer holds up no
// link but its own.
func (r *Reconciler) observeSources(ctx context.Context, from client.Reader, s *sight) error {
	moving, handed, err := r.plans(ctx, from, s.rep)
	if err != nil {
		return err
	}
	var ask []*view
	for _, v := range s.links {
		if err := observeRules(ctx, from, v); err != nil {
			return err
		}
		if err := r.observeSource(ctx, from, v, moving); err != nil {
			return err
		}
		v.source.Own = handed || claimed(s.rep) != nil
	}
	if lead := s.lead(); lead.inForce().Role != v1alpha1.RoleSource {
		if err := r.observeReplica(ctx, s); err != nil {
			return err
		}
		lead.source.Replica = lead.replica.seen
		if lead.source.Rollback, err = r.observeRollback(ctx, lead); err != nil {
			return err
		}
	}
	// Peers are asked only when a session could start or does not get on, or when this side is about to become the source: nothing else
	// depends on them.
	replica, inForce := s.lead().source.Replica, s.lead().inForce()
	promoting := inForce.Role == "" || inForce.Role == v1alpha1.RoleTarget &&
		(replica.Spool != cycle.Absent && !replica.Sealed || !s.lead().source.Own || s.lead().wanted().Epoch <= max(inForce.Epoch, brought(s.rep)))
	for _, v := range s.links {
		c := v.source
		if promoting || c.InForce == c.Wanted && (c.Session == nil && !c.Suspended && c.Problem == nil || cycle.NeedsPeer(*c)) {
			ask = append(ask, v)
		}
	}
	r.observePeers(ctx, ask)
	for _, v := range ask {
		v.source.Peer = v.peer
	}
	return nil
}

func (r *Reconciler) observeSource(ctx context.Context, from client.Reader, v *view, moving bool) error {
	s := &cycle.Source{
		Rlink: v.rlink.RlinkName, Cluster: r.Cluster, Namespace: v.rep.Namespace, Name: v.rep.Name,
		Now: v.now, Wanted: v.wanted(), InForce: v.inForce(), Acknowledged: v.rep.Spec.AcknowledgePeerLost, Brought: brought(v.rep), Suspended: v.rlink.SuspendReplication, Moving: moving, TriggerNow: v.rep.Spec.TriggerNow,
		Problem: v.problem, Create: v.rlink.PeerObjects != v1alpha1.PeerObjectsManual,
		Last: ended(v.status.LastSession), Failures: failures(v.status), Recovery: recovery(v.status.RecoveryPoint),
	}
	v.source = s
	if c := claimed(v.rep); c != nil {
		s.Lost = c.Lost
	}
	s.Scheduled, s.Look, s.Unscheduled = !v.agenda.Empty(), v.outlook.Look, v.unscheduled
	r.observeSession(ctx, v)
	s.Session, s.Snapshots = session(v.status.Session), sessionSnapshots(v)
	if s.Session != nil {
		s.Session.MayPart = v.policy != v1alpha1.CutRequireAtomic
	}
	err := r.observeQuiescence(ctx, v, s.Session, s.Snapshots)
	if err != nil {
		return err
	}
	if s.Clones, s.Trouble, err = r.clones(ctx, from, v); err != nil {
		return err
	}
	s.Mover, v.report = judgeMover(v)
	switch {
	case s.Mover.State != cycle.MoverRunning:
	case v.state != nil:
		s.Mover.Message = progressMessage(v.state)
		s.Mover.Ending = v.state.Phase == engine.PhaseCommitting || v.state.Phase == engine.PhaseDone
		s.Mover.Waiting = v.state.Phase == engine.PhaseWaiting
	default:
		// It was well on its way and has fallen silent: most likely it is through.
		s.Mover.Ending = v.status.Session.Percent >= 50
	}
	// One that is about to commit is let through.
	s.Mover.Outdated = outdated(v) && (v.state == nil || v.state.Phase != engine.PhaseCommitting && v.state.Phase != engine.PhaseDone)
	s.Stale = stale(v)
	return nil
}

// plans tells what the plans of this Replication are about: moving is true while one has the application offline for a move that can still
// be undone, handed when one was handed the spec's epoch over, by the cluster that was the source, and promotes this side in it.
func (r *Reconciler) plans(ctx context.Context, from client.Reader, rep *v1alpha1.Replication) (moving, handed bool, err error) {
	var plans v1alpha1.DisasterRecoveryPlanList
	if err := from.List(ctx, &plans, client.InNamespace(rep.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return false, false, fmt.Errorf("list plans of replication %s/%s: %w", rep.Namespace, rep.Name, err)
	}
	for i := range plans.Items {
		p := &plans.Items[i]
		o := p.Status.Operation
		if p.Spec.DataReplicationPointer != rep.Name || o == nil {
			continue
		}
		switch o.Step {
		case v1alpha1.StepOffline, v1alpha1.StepFinalSync, v1alpha1.StepHandover:
			moving = moving || o.From == r.Cluster
		case v1alpha1.StepPromote:
			handed = handed || o.To == r.Cluster && o.From != r.Cluster && p.Status.Epoch == rep.Spec.Epoch
		}
	}
	return moving, handed, nil
}

// observeTargets fills what NextTargets asks for.
func (r *Reconciler) observeTargets(ctx context.Context, all *sight) error {
	for _, v := range all.links {
		v.target = &cycle.Target{Rlink: v.rlink.RlinkName, Now: v.now, Wanted: v.wanted(), InForce: v.inForce(), Problem: v.problem, Retain: v.retain(),
			Recorded: recovery(v.status.RecoveryPoint), Session: session(v.status.Session), Leftover: leftover(v)}
		v.target.Mover, v.report = judgeMover(v)
		if err := r.observeQuiescence(ctx, v, v.target.Session, sessionSnapshots(v)); err != nil {
			return err
		}
	}
	v := all.lead()
	s := v.target
	for _, gone := range all.gone {
		s.Leftover = append(s.Leftover, leftover(gone)...)
	}
	observeBinding(v, s)
	users, err := r.users(ctx, v)
	if err != nil {
		return err
	}
	var attached []string
	if s.InForce.Role != v1alpha1.RoleTarget {
		if attached, err = r.attached(ctx, v); err != nil {
			return err
		}
	}
	for _, link := range all.links {
		link.target.Users, link.target.Attached = users, attached
	}
	if s.InForce.Role != v1alpha1.RoleTarget {
		return nil
	}
	if err := r.observeReplica(ctx, all); err != nil {
		return err
	}
	s.Replica = v.replica.seen
	if err := r.observeGrowth(ctx, v, s); err != nil {
		return err
	}
	if s.Replica.State != nil {
		s.Together = v.cut().Cut == v1alpha1.CutAtomic
		s.Snapshots = recoverySnapshots(v, s.Replica.State.Applied.Point)
	}
	s.Surplus = surplus(v)
	s.SourceMissing = r.sourceMissing(ctx, v)
	return nil
}

// askSourceEvery is how often a target looks whether it has a source still. Nothing else depends on it.
const askSourceEvery = time.Minute

// sourceMissing tells that the other side answers and has no Replication of this name.
func (r *Reconciler) sourceMissing(ctx context.Context, v *view) string {
	r.mu.Lock()
	last, known := r.sources[v.linkKey()]
	r.mu.Unlock()
	if known && v.now.Sub(last.at) < askSourceEvery || r.Peers.State(v.rlink.ClusterPair).Link == v1alpha1.LinkLost {
		return last.missing
	}
	last.at = v.now
	if peer, err := r.Peers.Client(v.rlink.ClusterPair); err == nil {
		// An answer that is none changes nothing.
		if there, err := peer.ObserveReplication(ctx, v.key()); err == nil {
			last.missing = ""
			if there == nil {
				last.missing = fmt.Sprintf("cluster %s has no Replication %s", v.peerCluster(), v.key())
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sources == nil {
		r.sources = map[linkKey]asked{}
	}
	r.sources[v.linkKey()] = last
	return last.missing
}

// asked is what a target's source last answered. It only saves calls.
type asked struct {
	at      time.Time
	missing string
}

func ended(report *v1alpha1.SessionReport) *cycle.Ended {
	if report == nil {
		return nil
	}
	return &cycle.Ended{Point: report.Point, Committed: report.Result == resultCommitted, Trigger: report.Trigger,
		TriggerNow: report.TriggerNow, FinishedAt: report.FinishedAt.Time}
}

// failures counts the newest sessions that failed in a row.
func failures(status *v1alpha1.RlinkStatus) int {
	if status.LastSession == nil || status.LastSession.Result == resultCommitted {
		return 0
	}
	n := 1
	for _, report := range status.History {
		if report.Result == resultCommitted {
			break
		}
		n++
	}
	return n
}

func recovery(point *v1alpha1.RecoveryPoint) cycle.Recovery {
	if point == nil {
		return cycle.Recovery{}
	}
	return cycle.Recovery{Point: point.Point, Time: point.Time.Time, Epoch: point.Epoch, Cut: point.Cut}
}

func session(s *v1alpha1.SessionStatus) *cycle.Session {
	if s == nil {
		return nil
	}
	out := &cycle.Session{Point: s.Point, Epoch: s.Epoch, Trigger: s.Trigger, StartedAt: s.StartedAt.Time, Together: s.Cut == v1alpha1.CutAtomic}
	if s.CutAt != nil {
		out.CutAt = s.CutAt.Time
	}
	return out
}

// sessionSnapshots finds the running session's snapshots, one for each member it carries.
func sessionSnapshots(v *view) []cycle.Snapshot {
	if v.status.Session == nil {
		return nil
	}
	return pick(v, v.status.Session.Point, snapshot.ForSession, v.status.Session.Claims)
}

func recoverySnapshots(v *view, point string) []cycle.Snapshot {
	if point == "" {
		return nil
	}
	return pick(v, point, snapshot.ForRecovery, v.pointMembers())
}

func pick(v *view, point string, purpose snapshot.Purpose, claims []string) []cycle.Snapshot {
	out := make([]cycle.Snapshot, len(claims))
	for i, claim := range claims {
		out[i].Claim = claim
		if s := find(v, point, purpose, claim); s != nil {
			out[i] = cycle.Snapshot{Claim: claim, Exists: true, CreatedAt: s.CreatedAt, Cut: !s.CutAt.IsZero() || s.Ready, Ready: s.Ready && !s.Deleting, Error: s.Error}
			if s.Deleting {
				out[i].Error = "it is being deleted"
			}
		}
	}
	return out
}

// find is the snapshot of a claim at a point. Of one that was asked for in two ways, because the storage refused the first, it is the
// one that counts.
func find(v *view, point string, purpose snapshot.Purpose, claim string) *snapshot.Seen {
	var found *snapshot.Seen
	for i := range v.snapshots {
		s := &v.snapshots[i]
		if s.Point != point || s.Purpose != purpose || s.Claim != claim || s.Group != "" && v.parted(s) {
			continue
		}
		if found == nil || found.Deleting {
			found = s
		}
	}
	return found
}

// parted reports that a group snapshot was given up: its point is taken by snapshots one by one.
func (v *view) parted(s *snapshot.Seen) bool {
	if session := v.status.Session; s.Purpose == snapshot.ForSession && session != nil && s.Point == session.Point {
		return session.Cut != v1alpha1.CutAtomic
	}
	return s.Deleting && v.status.GroupSnapshotsRefusedAt != nil
}

// clones tells how far the running session's block claims are, and what holds them up. Those of a class that waits for the
// first pod are there as soon as they exist: the mover's pod is the first.
func (r *Reconciler) clones(ctx context.Context, from client.Reader, v *view) (cycle.Presence, string, error) {
	if v.status.Session == nil {
		return cycle.Absent, "", nil
	}
	presence, trouble := cycle.Present, ""
	for i := range v.status.Session.Claims {
		name := snapshot.MemberName(v.rep.Name, v.status.Session.Point, i)
		clone := v.claim(name)
		switch {
		case clone == nil:
			if presence == cycle.Present {
				presence = cycle.Absent
			}
		case !clone.DeletionTimestamp.IsZero():
			return cycle.Partial, "the former claim " + name + " is being deleted", nil
		case clone.Status.Phase != corev1.ClaimBound:
			late, err := snapshot.BindsLate(ctx, from, clone)
			if err != nil {
				return cycle.Partial, "", err
			}
			if late || presence == cycle.Absent {
				continue
			}
			presence, trouble = cycle.Partial, r.claimTrouble(ctx, clone, "claim "+clone.Name+" is not bound yet")
		}
	}
	return presence, trouble, nil
}

// claimTrouble adds the newest warning about a claim. It is for the operator alone, so a failure to read it is left out.
func (r *Reconciler) claimTrouble(ctx context.Context, claim *corev1.PersistentVolumeClaim, trouble string) string {
	var list corev1.EventList
	of := client.MatchingFields{"involvedObject.uid": string(claim.UID), "type": corev1.EventTypeWarning}
	if err := r.Live.List(ctx, &list, client.InNamespace(claim.Namespace), of); err != nil || len(list.Items) == 0 {
		return trouble
	}
	newest := slices.MaxFunc(list.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return trouble + ": " + newest.Message
}

// claim finds a claim that Lifeboat made.
func (v *view) claim(name string) *corev1.PersistentVolumeClaim {
	for i := range v.claims {
		if v.claims[i].Name == name {
			return &v.claims[i]
		}
	}
	return nil
}

// stale names what ended sessions left and nobody has asked to be removed yet, as "kind name".
func stale(v *view) []string {
	current, base := "", v.status.BasePoint
	if v.status.Session != nil {
		current = v.status.Session.Point
	}
	var out []string
	for _, job := range v.jobs {
		if job.Labels[v1alpha1.LabelPoint] != current && job.DeletionTimestamp.IsZero() {
			out = append(out, "Job "+job.Name)
		}
	}
	for _, claim := range v.claims {
		if claim.Labels[v1alpha1.LabelComponent] == componentClone && claim.Labels[v1alpha1.LabelPoint] != current && claim.DeletionTimestamp.IsZero() {
			out = append(out, "PersistentVolumeClaim "+claim.Name)
		}
	}
	for i := range v.pods {
		if pod := &v.pods[i]; pod.Labels[v1alpha1.LabelComponent] == componentBinder && pod.DeletionTimestamp.IsZero() {
			out = append(out, "Pod "+pod.Name)
		}
	}
	for _, s := range v.snapshots {
		if s.Purpose == snapshot.ForSession && s.Point != current && s.Point != base && !s.Deleting {
			out = add(out, objectOf(s))
		}
	}
	if v.status.Session == nil || v.status.Session.CutAt != nil {
		for _, m := range v.members {
			if len(snapshot.Bears(m, v.rlink.RlinkName)) > 0 {
				out = append(out, "Label "+m.Name)
			}
		}
	}
	return out
}

// objectOf is what keeps a snapshot, as "kind name": itself, or the group it belongs to.
func objectOf(s snapshot.Seen) string {
	if s.Group != "" {
		return "VolumeGroupSnapshot " + s.Group
	}
	return "VolumeSnapshot " + s.Name
}

// add appends what is not there yet.
func add(list []string, entry string) []string {
	if slices.Contains(list, entry) {
		return list
	}
	return append(list, entry)
}

// leftover names everything sessions made that is still there, as "kind name".
func leftover(v *view) []string {
	var out []string
	for _, job := range v.jobs {
		out = append(out, "Job "+job.Name)
	}
	for _, pod := range v.pods {
		if pod.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentSourceMover {
			out = append(out, "Pod "+pod.Name)
		}
	}
	for _, claim := range v.claims {
		if claim.Labels[v1alpha1.LabelComponent] == componentClone {
			out = append(out, "PersistentVolumeClaim "+claim.Name)
		}
	}
	for _, s := range v.snapshots {
		if s.Purpose == snapshot.ForSession {
			out = add(out, objectOf(s))
		}
	}
	return out
}

// surplus names the recovery points that are not kept any more.
func surplus(v *view) []string {
	_, drop := retention.Keep(kept(v.snapshots), v.retention(), v.now)
	var out []string
	for _, point := range drop {
		out = append(out, point.ID)
	}
	return out
}

// kept lists the recovery points that exist as snapshots. A point's time is the instant it was cut at, where its snapshots tell.
func kept(snapshots []snapshot.Seen) []retention.Point {
	times := map[string]time.Time{}
	for _, s := range snapshots {
		if s.Purpose != snapshot.ForRecovery || s.Deleting {
			continue
		}
		at := s.Instant
		if at.IsZero() {
			at = s.CreatedAt
		}
		if first, ok := times[s.Point]; !ok || at.Before(first) {
			times[s.Point] = at
		}
	}
	var points []retention.Point
	for _, id := range slices.Sorted(maps.Keys(times)) {
		points = append(points, retention.Point{ID: id, Time: times[id]})
	}
	return points
}

// users names the pods that mount the group's claims. A pod that has ended holds nothing any more.
func (r *Reconciler) users(ctx context.Context, v *view) ([]string, error) {
	var pods corev1.PodList
	if err := r.Live.List(ctx, &pods, client.InNamespace(v.rep.Namespace)); err != nil {
		return nil, fmt.Errorf("list pods of namespace %s: %w", v.rep.Namespace, err)
	}
	others := slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return receives(&pod, v.rep.Name) || binds(&pod, v.rep.Name) })
	// Also the claims of before: a group that cannot be read right now has not let go of them.
	return mounting(others, append(v.memberNames(), v.rep.Status.Claims...)), nil
}

func mounting(pods []corev1.Pod, claims []string) []string {
	var out []string
	for i := range pods {
		if mounts(&pods[i], claims) {
			out = append(out, pods[i].Name)
		}
	}
	slices.Sort(out)
	return out
}

func mounts(pod *corev1.Pod, claims []string) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, volume := range pod.Spec.Volumes {
		if ref := volume.PersistentVolumeClaim; ref != nil && slices.Contains(claims, ref.ClaimName) {
			return true
		}
		if volume.Ephemeral != nil && slices.Contains(claims, pod.Name+"-"+volume.Name) {
			return true
		}
	}
	return false
}

// attached names the nodes that still hold the claims' volumes, where the driver attaches.
func (r *Reconciler) attached(ctx context.Context, v *view) ([]string, error) {
	var list storagev1.VolumeAttachmentList
	if err := r.Live.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list volume attachments: %w", err)
	}
	var nodes []string
	for _, attachment := range list.Items {
		name := attachment.Spec.Source.PersistentVolumeName
		if name == nil {
			continue
		}
		for _, m := range v.members {
			if m.Volume != nil && m.Volume.Name == *name && !slices.Contains(nodes, attachment.Spec.NodeName) {
				nodes = append(nodes, attachment.Spec.NodeName)
			}
		}
	}
	return nodes, nil
}

// linkKey names one link of one Replication.
type linkKey struct {
	replication types.NamespacedName
	rlink       string
}

// preparation is what the peer said when it was last asked to prepare. It only saves calls; nothing is decided by its being
// there after a restart.
type preparation struct {
	at       time.Time
	message  string
	declined *cycle.Problem
}

// agreement names what both sides compare: this side's spec, in its epoch.
func (v *view) agreement() v1alpha1.Agreement {
	return v1alpha1.Agreement{Epoch: v.wanted().Epoch, Generation: v.rep.Generation}
}

// prepareEvery is how often a peer that is not ready is asked again.
const prepareEvery = 5 * time.Second

func (v *view) linkKey() linkKey { return linkKey{v.key(), v.rlink.RlinkName} }

func (r *Reconciler) lastPreparation(key linkKey) preparation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.prepared[key]
}

func (r *Reconciler) notePreparation(key linkKey, p preparation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.prepared == nil {
		r.prepared = map[linkKey]preparation{}
	}
	r.prepared[key] = p
}

func (r *Reconciler) forget(key linkKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.prepared, key)
	delete(r.silent, key)
	delete(r.sources, key)
}

const (
	// answerWithin is how long a peer is waited for where other links wait too.
	answerWithin = 2 * time.Second
	// silence is how long a peer that took longer is not asked again, so that it takes little of the others' time.
	silence = 8 * time.Second
)

// observePeers asks the peers of all given links at once. Where there are several, none is waited for longer than answerWithin: what has
// not answered by then is not known in this look.
func (r *Reconciler) observePeers(ctx context.Context, links []*view) {
	if len(links) == 0 {
		return
	}
	if len(links[0].rep.Spec.Rlinks) == 1 {
		links[0].peer = r.observePeer(ctx, links[0])
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var all sync.WaitGroup
	for _, v := range links {
		if until := r.silentUntil(v.linkKey()); v.now.Before(until) {
			v.peer = cycle.Peer{Name: v.peerCluster(), Link: r.Peers.State(v.rlink.ClusterPair).Link, Trouble: "it takes long to answer; it is asked again in a moment"}
			continue
		}
		all.Go(func() {
			v.peer = r.observePeer(ctx, v)
			if ctx.Err() != nil && !v.peer.Asked {
				r.fellSilent(v.linkKey(), v.now.Add(silence))
			}
		})
	}
	all.Wait()
}

func (r *Reconciler) silentUntil(key linkKey) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.silent[key]
}

func (r *Reconciler) fellSilent(key linkKey, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent == nil {
		r.silent = map[linkKey]time.Time{}
	}
	r.silent[key] = until
}

// observePeer asks the other side. What it does not answer is not known, and never taken for absent.
func (r *Reconciler) observePeer(ctx context.Context, v *view) cycle.Peer {
	link := r.Peers.State(v.rlink.ClusterPair)
	p := cycle.Peer{Name: v.peerCluster(), Link: link.Link, Trouble: link.Message}
	// Heartbeats notice when it is back. A call would hold this worker until it times out.
	if link.Link == v1alpha1.LinkLost {
		return p
	}
	peer, err := r.Peers.Client(v.rlink.ClusterPair)
	if err != nil {
		p.Trouble = err.Error()
		return p
	}
	there, err := peer.ObserveReplication(ctx, v.key())
	if err != nil {
		p.Trouble = err.Error()
		switch control.RefusedReason(err) {
		case "":
		case control.ReasonTrust, control.ReasonWrongCluster, control.ReasonProtocol:
			p.Link = v1alpha1.LinkRefused
		default:
			p.Refuses = true
		}
		return p
	}
	p.Asked = true
	last := r.lastPreparation(v.linkKey())
	p.Prepared, p.Declined, p.PrepareDue = last.message, last.declined, v.now.Sub(last.at) >= prepareEvery
	p.Agreed = v.status.Agreed != nil && *v.status.Agreed == v.agreement()
	if there == nil {
		return p
	}
	p.Found = true
	p.Stand = standOf(there)
	p.InForce = cycle.Stand{Role: there.Status.Role, Epoch: there.Status.Epoch}
	p.Members, p.Lacks = sameMembers(v, there.Status.Claims), lacks(there)
	p.Sizes, p.Stuck = sizesThere(v, there), there.Status.Phase == cycle.Failed
	p.Well = meta.IsStatusConditionTrue(there.Status.Conditions, v1alpha1.ConditionReady)
	for _, link := range there.Status.Rlinks {
		if link.RlinkName == v.rlink.RlinkName {
			p.Quiet = link.Session == nil && there.Status.ObservedGeneration == there.Generation
			p.ReceiverReady, p.WaitingFor, p.Recovery = link.ReceiverReady, link.WaitingFor, recovery(link.RecoveryPoint)
			// What is kept there is shown here too: this is where operators look.
			if v.inForce().Role == v1alpha1.RoleSource {
				v.status.RecoveryPoints = link.RecoveryPoints
			}
		}
	}
	return p
}

// lacks reports whether the peer's Replication says that objects are missing there, which preparing it would make.
func lacks(there *v1alpha1.Replication) bool {
	ready := meta.FindStatusCondition(there.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil {
		return false
	}
	switch ready.Reason {
	case reasonGroupMissing, snapshot.FaultMissing, snapshot.FaultDeleting:
		return true
	}
	return false
}

func sameMembers(v *view, there []string) bool {
	here := make([]string, len(v.members))
	for i, m := range v.members {
		here[i] = v.peerName(m.Name)
	}
	slices.Sort(here)
	return slices.Equal(here, slices.Sorted(slices.Values(there)))
}

// observeSession asks the running mover how far it is. A mover that does not answer may be starting, or through.
func (r *Reconciler) observeSession(ctx context.Context, v *view) {
	if v.status.Session == nil || v.status.Session.CutAt == nil {
		return
	}
	address := moverAddress(v.pods, v1alpha1.ComponentSourceMover, v.status.Session.Point)
	if address == "" {
		return
	}
	if state, err := r.Movers.State(ctx, v.key(), address); err == nil && state.Point == v.status.Session.Point {
		v.state = &state
	}
}

func progressMessage(s *engine.State) string {
	message := strings.ToLower(string(s.Phase))
	if s.Message != "" {
		message += ": " + s.Message
	}
	return message
}
