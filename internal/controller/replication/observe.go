package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	reasonScheduleInvalid   = "ScheduleInvalid"
	reasonPairMissing       = "ClusterPairMissing"
	reasonTrustMissing      = "TrustMissing"
	reasonGroupMissing      = "PVCGroupMissing"
	reasonClaimInTwoGroups  = "ClaimInTwoGroups"
	reasonPVCMapInvalid     = "PVCMapInvalid"
	reasonPeerDeclined      = "PeerDeclined"
	reasonSizesOrModeDiffer = "PeerConflict"
)

// view is everything that was read in one look, and the Replication as the status will be saved.
type view struct {
	now   time.Time
	rep   *v1alpha1.Replication
	names names
	rlink v1alpha1.Rlink
	// status is the link's, within rep.
	status *v1alpha1.RlinkStatus

	pair    *v1alpha1.ClusterPair
	peerCA  []byte
	members []snapshot.Member
	problem *cycle.Problem

	snapshots []snapshot.Seen
	claims    []corev1.PersistentVolumeClaim // those Lifeboat made for this Replication
	jobs      []batchv1.Job
	pods      []corev1.Pod // movers' and receivers'

	// report is the ended mover's; state is what the running mover or the receiver says.
	report  *engine.Report
	state   *engine.State
	replica replica
	// point is the name of the session that StartSession begins.
	point string

	source *cycle.Source
	target *cycle.Target
}

func (v *view) next() cycle.Decision {
	if v.source != nil {
		return cycle.NextSource(*v.source)
	}
	return cycle.NextTarget(*v.target)
}

func (v *view) key() types.NamespacedName { return client.ObjectKeyFromObject(v.rep) }

func (v *view) wanted() cycle.Stand {
	return cycle.Stand{Role: v.rep.Spec.Role, Epoch: max(v.rep.Spec.Epoch, 1)}
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

// observe reads what the next step depends on, and no more.
func (r *Reconciler) observe(ctx context.Context, rep *v1alpha1.Replication) (*view, error) {
	v := &view{now: r.Now().UTC(), rep: rep, rlink: rep.Spec.Rlinks[0]}
	v.names = names{rep.Namespace, rep.Name, v.rlink.RlinkName}
	v.status = linkStatus(&rep.Status, v.rlink.RlinkName)
	if err := r.observeOwn(ctx, v); err != nil {
		return nil, err
	}
	if err := r.observeMade(ctx, v); err != nil {
		return nil, err
	}
	if rep.Spec.Role == v1alpha1.RoleSource {
		return v, r.observeSource(ctx, v)
	}
	return v, r.observeTarget(ctx, v)
}

// linkStatus returns the status of a link, made if there is none. What belongs to links that are gone goes.
func linkStatus(status *v1alpha1.ReplicationStatus, rlink string) *v1alpha1.RlinkStatus {
	for i := range status.Rlinks {
		if status.Rlinks[i].RlinkName == rlink {
			status.Rlinks = status.Rlinks[i : i+1]
			return &status.Rlinks[0]
		}
	}
	status.Rlinks = []v1alpha1.RlinkStatus{{RlinkName: rlink}}
	return &status.Rlinks[0]
}

// observeOwn reads pair, trust, group and claims, and notes the first thing a person must mend.
func (r *Reconciler) observeOwn(ctx context.Context, v *view) error {
	note := func(reason, format string, args ...any) {
		if v.problem == nil {
			v.problem = &cycle.Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
		}
	}
	if v.rlink.Schedule != "" {
		if _, err := schedule.Parse(v.rlink.Schedule); err != nil {
			note(reasonScheduleInvalid, "spec.rlinks[%s].%v", v.rlink.RlinkName, err)
		}
	}
	if err := r.observePair(ctx, v, note); err != nil {
		return err
	}
	group, err := r.group(ctx, v.rep)
	switch {
	case err != nil:
		return err
	case group == nil:
		note(reasonGroupMissing, "PVCGroup %s/%s does not exist: create it; spec.pvcGroupName names it", v.rep.Namespace, v.rep.Spec.PVCGroupName)
		return nil
	}
	v.members, err = snapshot.Members(ctx, r.Live, group)
	var selector *snapshot.SelectorError
	if errors.As(err, &selector) {
		note(snapshot.FaultSelector, "%v", err)
		return nil
	}
	if err != nil {
		return err
	}
	if fault := snapshot.Check(group, v.members, v.rep.Spec.Role == v1alpha1.RoleSource || v.retain() > 0); fault != nil {
		note(fault.Reason, "%s", fault.Message)
	}
	if message := mapFault(v); message != "" {
		note(reasonPVCMapInvalid, "%s", message)
	}
	return r.observeOthers(ctx, v, note)
}

func (r *Reconciler) observePair(ctx context.Context, v *view, note func(reason, format string, args ...any)) error {
	var pair v1alpha1.ClusterPair
	err := r.Live.Get(ctx, client.ObjectKey{Name: v.rlink.ClusterPair}, &pair)
	switch {
	case apierrors.IsNotFound(err):
		note(reasonPairMissing, "ClusterPair %s does not exist: pair the clusters with lifeboat pair; spec.rlinks[%s].clusterPair names it", v.rlink.ClusterPair, v.rlink.RlinkName)
		return nil
	case err != nil:
		return fmt.Errorf("read ClusterPair %s: %w", v.rlink.ClusterPair, err)
	}
	v.pair = &pair
	if v.peerCA, err = r.Trust.CAPEM(ctx, &pair); err != nil {
		note(reasonTrustMissing, "%v", err)
	}
	return nil
}

func (r *Reconciler) group(ctx context.Context, rep *v1alpha1.Replication) (*v1alpha1.PVCGroup, error) {
	var group v1alpha1.PVCGroup
	err := r.Live.Get(ctx, client.ObjectKey{Namespace: rep.Namespace, Name: rep.Spec.PVCGroupName}, &group)
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

// observeOthers finds claims that another Replication of the namespace carries too. The older Replication keeps them.
func (r *Reconciler) observeOthers(ctx context.Context, v *view, note func(reason, format string, args ...any)) error {
	var all v1alpha1.ReplicationList
	if err := r.Live.List(ctx, &all, client.InNamespace(v.rep.Namespace)); err != nil {
		return fmt.Errorf("list replications of namespace %s: %w", v.rep.Namespace, err)
	}
	mine := map[string]bool{}
	for _, m := range v.members {
		mine[m.Name] = true
	}
	for i := range all.Items {
		other := &all.Items[i]
		if other.Name == v.rep.Name || !older(other, v.rep) {
			continue
		}
		for _, claim := range other.Status.Claims {
			if mine[claim] {
				note(reasonClaimInTwoGroups, "claim %s/%s is replicated by Replication %s (PVCGroup %s) already: take it out of one of the groups", v.rep.Namespace, claim, other.Name, other.Spec.PVCGroupName)
			}
		}
	}
	return nil
}

func older(a, b *v1alpha1.Replication) bool {
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.Name < b.Name
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}

// observeMade reads what Lifeboat made for this Replication.
func (r *Reconciler) observeMade(ctx context.Context, v *view) error {
	var err error
	if v.snapshots, err = snapshot.List(ctx, r.Live, v.key()); err != nil {
		return err
	}
	mine := []client.ListOption{client.InNamespace(v.rep.Namespace),
		client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat, v1alpha1.LabelReplication: v.rep.Name}}
	var claims corev1.PersistentVolumeClaimList
	var jobs batchv1.JobList
	var pods corev1.PodList
	for _, list := range []client.ObjectList{&claims, &jobs, &pods} {
		if err := r.Live.List(ctx, list, mine...); err != nil {
			return fmt.Errorf("list what serves replication %s: %w", v.key(), err)
		}
	}
	v.claims, v.jobs, v.pods = claims.Items, jobs.Items, pods.Items
	return nil
}

// observeSource fills what NextSource asks for.
func (r *Reconciler) observeSource(ctx context.Context, v *view) error {
	s := &cycle.Source{
		Now: v.now, Wanted: v.wanted(), InForce: v.inForce(), Suspended: v.rlink.SuspendReplication, TriggerNow: v.rep.Spec.TriggerNow,
		Problem: v.problem, Create: v.rlink.PeerObjects != v1alpha1.PeerObjectsManual,
		Last: ended(v.status.LastSession), Failures: failures(v.status), Recovery: recovery(v.status.RecoveryPoint),
	}
	v.source = s
	s.Scheduled, s.Look = look(v)
	var err error
	if s.Moving, err = r.moving(ctx, v); err != nil {
		return err
	}
	r.observeSession(ctx, v)
	s.Session, s.Snapshots = session(v.status.Session), sessionSnapshots(v)
	if s.Clones, s.Trouble, err = r.clones(ctx, v); err != nil {
		return err
	}
	s.Mover, v.report = judgeMover(v)
	switch {
	case s.Mover.State != cycle.MoverRunning:
	case v.state != nil:
		s.Mover.Message = progressMessage(v.state)
		s.Mover.Ending = v.state.Phase == engine.PhaseCommitting || v.state.Phase == engine.PhaseDone
	default:
		// It was well on its way and has fallen silent: most likely it is through.
		s.Mover.Ending = v.status.Session.Percent >= 50
	}
	s.Stale = stale(v)
	if s.InForce.Role != v1alpha1.RoleSource {
		if err := r.observeReplica(ctx, v); err != nil {
			return err
		}
		s.Replica = v.replica.seen
	}
	// Peers are asked only when a session could start, or when a replica is about to be promoted: nothing else depends on them.
	promoting := s.InForce.Role == v1alpha1.RoleTarget && s.Replica.Spool != cycle.Absent && !s.Replica.Sealed
	if promoting || s.InForce == s.Wanted && s.Session == nil && !s.Suspended && s.Problem == nil {
		s.Peer = r.observePeer(ctx, v)
	}
	return nil
}

// moving reports whether a plan of this Replication has the application offline for a move that can still be undone.
func (r *Reconciler) moving(ctx context.Context, v *view) (bool, error) {
	var plans v1alpha1.DisasterRecoveryPlanList
	if err := r.Live.List(ctx, &plans, client.InNamespace(v.rep.Namespace)); err != nil {
		return false, fmt.Errorf("list plans of replication %s: %w", v.key(), err)
	}
	for i := range plans.Items {
		p := &plans.Items[i]
		if o := p.Status.Operation; p.Spec.DataReplicationPointer == v.rep.Name && o != nil && o.From == r.Cluster {
			switch o.Step {
			case v1alpha1.StepOffline, v1alpha1.StepFinalSync, v1alpha1.StepHandover:
				return true, nil
			}
		}
	}
	return false, nil
}

// observeTarget fills what NextTarget asks for.
func (r *Reconciler) observeTarget(ctx context.Context, v *view) error {
	s := &cycle.Target{Now: v.now, Wanted: v.wanted(), InForce: v.inForce(), Problem: v.problem, Retain: v.retain(), Recorded: recovery(v.status.RecoveryPoint)}
	v.target = s
	s.Session = session(v.status.Session)
	s.Mover, v.report = judgeMover(v)
	s.Leftover = leftover(v)
	var err error
	if s.Users, err = r.users(ctx, v); err != nil {
		return err
	}
	if s.InForce.Role != v1alpha1.RoleTarget {
		s.Attached, err = r.attached(ctx, v)
		return err
	}
	if err := r.observeReplica(ctx, v); err != nil {
		return err
	}
	s.Replica = v.replica.seen
	if s.Replica.State != nil {
		s.Snapshots = recoverySnapshots(v, s.Replica.State.Applied.Point)
	}
	s.Surplus = surplus(v)
	return nil
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
	return cycle.Recovery{Point: point.Point, Time: point.Time.Time, Epoch: point.Epoch}
}

func session(s *v1alpha1.SessionStatus) *cycle.Session {
	if s == nil {
		return nil
	}
	out := &cycle.Session{Point: s.Point, Epoch: s.Epoch, Trigger: s.Trigger, StartedAt: s.StartedAt.Time}
	if s.CutAt != nil {
		out.CutAt = s.CutAt.Time
	}
	return out
}

// look asks the schedule; an invalid one is a problem that was noted before.
func look(v *view) (bool, schedule.Look) {
	if v.rlink.Schedule == "" {
		return false, schedule.Look{}
	}
	parsed, err := schedule.Parse(v.rlink.Schedule)
	if err != nil {
		return false, schedule.Look{}
	}
	var promised time.Time
	if v.status.NextRun != nil {
		promised = v.status.NextRun.Time
	}
	return true, parsed.Look(promised, v.now)
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
	return pick(v, point, snapshot.ForRecovery, v.memberNames())
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

func find(v *view, point string, purpose snapshot.Purpose, claim string) *snapshot.Seen {
	for i := range v.snapshots {
		if s := &v.snapshots[i]; s.Point == point && s.Purpose == purpose && s.Claim == claim {
			return s
		}
	}
	return nil
}

// clones tells how far the running session's block claims are, and what holds them up. Those of a class that waits for the
// first pod are there as soon as they exist: the mover's pod is the first.
func (r *Reconciler) clones(ctx context.Context, v *view) (cycle.Presence, string, error) {
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
			late, err := snapshot.BindsLate(ctx, r.Live, clone)
			if err != nil {
				return cycle.Partial, "", err
			}
			if late || presence == cycle.Absent {
				continue
			}
			presence, trouble = cycle.Partial, r.claimTrouble(ctx, clone)
		}
	}
	return presence, trouble, nil
}

// claimTrouble is the newest warning about a claim. It is for the operator alone, so a failure to read it is left out.
func (r *Reconciler) claimTrouble(ctx context.Context, claim *corev1.PersistentVolumeClaim) string {
	trouble := "claim " + claim.Name + " is not bound yet"
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
	for _, s := range v.snapshots {
		if s.Purpose == snapshot.ForSession && s.Point != current && s.Point != base && !s.Deleting {
			out = append(out, "VolumeSnapshot "+s.Name)
		}
	}
	return out
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
			out = append(out, "VolumeSnapshot "+s.Name)
		}
	}
	return out
}

// surplus names the recovery points that are not kept any more.
func surplus(v *view) []string {
	_, drop := retention.Keep(kept(v.snapshots), v.retain())
	var out []string
	for _, point := range drop {
		out = append(out, point.ID)
	}
	return out
}

// kept lists the recovery points that exist as snapshots.
func kept(snapshots []snapshot.Seen) []retention.Point {
	times := map[string]time.Time{}
	for _, s := range snapshots {
		if s.Purpose != snapshot.ForRecovery || s.Deleting {
			continue
		}
		if at, ok := times[s.Point]; !ok || s.CreatedAt.Before(at) {
			times[s.Point] = s.CreatedAt
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
	// Also the claims of before: a group that cannot be read right now has not let go of them.
	return mounting(pods.Items, append(v.memberNames(), v.rep.Status.Claims...)), nil
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

// preparation is what the peer said when it was last asked to prepare. It only saves calls; nothing is decided by its being
// there after a restart.
type preparation struct {
	at       time.Time
	message  string
	declined *cycle.Problem
}

// prepareEvery is how often a peer that is not ready is asked again.
const prepareEvery = 5 * time.Second

func (r *Reconciler) lastPreparation(key types.NamespacedName) preparation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.prepared[key]
}

func (r *Reconciler) notePreparation(key types.NamespacedName, p preparation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.prepared == nil {
		r.prepared = map[types.NamespacedName]preparation{}
	}
	r.prepared[key] = p
}

func (r *Reconciler) forget(key types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.prepared, key)
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
	last := r.lastPreparation(v.key())
	p.Prepared, p.Declined, p.PrepareDue = last.message, last.declined, v.now.Sub(last.at) >= prepareEvery
	if there == nil {
		return p
	}
	p.Found = true
	p.Stand = cycle.Stand{Role: there.Spec.Role, Epoch: max(there.Spec.Epoch, 1)}
	p.InForce = cycle.Stand{Role: there.Status.Role, Epoch: there.Status.Epoch}
	p.Members, p.Lacks = sameMembers(v, there.Status.Claims), lacks(there)
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
