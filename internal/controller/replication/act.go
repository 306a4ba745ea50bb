package replication

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

const (
	// freshFor is how old a claim made for a Replication may be to count as never used.
	freshFor = 10 * time.Minute
	// deletionPatience is how long a deletion waits for what it has asked to be removed.
	deletionPatience = time.Minute
	// refusalPatience is how long a deletion tries what the API server does not let it do.
	refusalPatience = 10 * time.Minute
)

// actAll takes each link's step. A role is taken by all links or by none.
func (r *Reconciler) actAll(ctx context.Context, s *sight, next []cycle.Decision) []error {
	acted := make([]error, len(next))
	for i, v := range s.links {
		acted[i] = r.act(ctx, v, next[i])
	}
	if next[0].Step == cycle.TakeRole {
		if err := errors.Join(acted...); err != nil {
			for i := range acted {
				acted[i] = err
			}
		}
	}
	for _, v := range s.gone {
		if left, err := r.resumeLeft(ctx, v); left || err != nil {
			acted[0] = errors.Join(acted[0], err)
			continue
		}
		r.forgetRules(v)
		if err := errors.Join(r.retire(ctx, v), r.removeEndpoints(ctx, v)); err != nil {
			acted[0] = errors.Join(acted[0], err)
			continue
		}
		v.status.Endpoint = nil
	}
	return acted
}

// act takes the step. Steps that only change what is remembered are taken by tell.
func (r *Reconciler) act(ctx context.Context, v *view, d cycle.Decision) error {
	switch d.Step {
	case cycle.TakeRole:
		return r.removeFormerRole(ctx, v)
	case cycle.PreparePeer:
		return r.preparePeer(ctx, v)
	case cycle.GrowPeer:
		if err := r.preparePeer(ctx, v); err != nil {
			return err
		}
		r.nudge(ctx, v)
		return nil
	case cycle.StartSession:
		var err error
		v.point, err = r.newPoint(v.now)
		return err
	case cycle.TakeSnapshots:
		return r.takeSnapshots(ctx, v)
	case cycle.BeginQuiesce, cycle.Quiesce, cycle.Resume, cycle.RecordResumed:
		return r.actOnRules(ctx, v, d)
	case cycle.CutApart:
		return r.cutApart(ctx, v)
	case cycle.RecordCut:
		return r.settleCut(ctx, v, v.status.Session.Point, snapshot.ForSession)
	case cycle.FailSession:
		return r.release(ctx, v)
	case cycle.RecordPoint:
		return r.settleCut(ctx, v, v.target.Replica.State.Applied.Point, snapshot.ForRecovery)
	case cycle.MakeRollback:
		return r.makeRollback(ctx, v)
	case cycle.StartRollback:
		return r.startRollback(ctx, v)
	case cycle.RemoveRollback:
		return r.removeRollback(ctx, v)
	case cycle.RemoveFormer:
		return r.removeFormer(ctx, v)
	case cycle.MakeClones:
		return r.makeClones(ctx, v)
	case cycle.StartMover:
		return r.startMover(ctx, v)
	case cycle.FollowMover:
		return r.keepIdentity(ctx, v, v.names.mover())
	case cycle.RemoveMover:
		return r.removeMover(ctx, v, v.status.Session.Point)
	case cycle.CommitSession:
		r.nudge(ctx, v)
		return nil
	case cycle.Tidy:
		return r.tidy(ctx, v)
	case cycle.MakePair:
		return r.makePair(ctx, v)
	case cycle.RemovePair:
		return r.removePair(ctx, v)
	case cycle.MakeSpool:
		return r.makeSpool(ctx, v)
	case cycle.SealSpool:
		return r.sealSpool(ctx, v)
	case cycle.RemoveSpool:
		return r.delete(ctx, &corev1.PersistentVolumeClaim{}, v.rep.Namespace, v.names.spool())
	case cycle.StartReceiver:
		return r.startReceiver(ctx, v)
	case cycle.CloseReceiver:
		return r.closeDoor(ctx, v)
	case cycle.BindClaims:
		return r.bindClaims(ctx, v)
	case cycle.RemoveBinder:
		return r.removeBinder(ctx, v)
	case cycle.RemoveReceiver:
		return r.removeReceiver(ctx, v)
	case cycle.RemoveStrays:
		return r.removeStrays(ctx, v)
	case cycle.GrowClaims:
		return r.growClaims(ctx, v)
	case cycle.TakeRecoveryPoint:
		return r.takeRecoveryPoint(ctx, v)
	case cycle.DropRecoveryPoints:
		return r.dropRecoveryPoints(ctx, v)
	case cycle.Rest:
		if v.target != nil && v.inForce().Role == v1alpha1.RoleTarget {
			return r.keepIdentity(ctx, v, v.names.receiver())
		}
	}
	return nil
}

// removeFormerRole removes what only the role needed that is left now: identities, and the account of movers. A target has no sessions to
// send, a source none to receive.
func (r *Reconciler) removeFormerRole(ctx context.Context, v *view) error {
	if v.target != nil {
		return errors.Join(r.removeAccount(ctx, v), r.delete(ctx, &corev1.Secret{}, v.rep.Namespace, v.names.mover()))
	}
	return r.delete(ctx, &corev1.Secret{}, v.rep.Namespace, v.names.receiver())
}

// create makes an object; one that is there already is what an interrupted step left.
func (r *Reconciler) create(ctx context.Context, object client.Object) error {
	if err := r.Client.Create(ctx, object); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %T %s: %w", object, client.ObjectKeyFromObject(object), err)
	}
	return nil
}

// delete removes an object and what it owns, soon; one that is gone is no error.
func (r *Reconciler) delete(ctx context.Context, object client.Object, namespace, name string) error {
	object.SetNamespace(namespace)
	object.SetName(name)
	err := r.Client.Delete(ctx, object, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %T %s/%s: %w", object, namespace, name, err)
	}
	return nil
}

// preparePeer asks the other side to make what it lacks. Its answer is kept for the next look, also a refusal: that is
// for the operator, not an error to retry.
func (r *Reconciler) preparePeer(ctx context.Context, v *view) error {
	peer, err := r.Peers.Client(v.rlink.ClusterPair)
	if err != nil {
		return fmt.Errorf("prepare cluster %s: %w", v.peerCluster(), err)
	}
	group, err := group(ctx, r.Live, v.rep)
	if err != nil || group == nil {
		return err
	}
	if len(v.rep.Spec.Rlinks) > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerWithin)
		defer cancel()
	}
	answer, err := peer.PrepareReplication(ctx, prepareRequest(v, group))
	p := preparation{at: v.now, message: answer.Message}
	v.agreed = err == nil
	if reason := control.RefusedReason(err); reason != "" {
		p.declined = &cycle.Problem{Reason: declinedReason(reason), Message: err.Error()}
		err = nil
	}
	r.notePreparation(v.linkKey(), p)
	if err != nil {
		// It is asked again soon; meanwhile the status tells what the last answer was.
		r.notePreparation(v.linkKey(), preparation{at: v.now, message: err.Error()})
	}
	return nil
}

func declinedReason(reason string) string {
	switch reason {
	case control.ReasonStaleEpoch:
		return cycle.ReasonStaleEpoch
	case control.ReasonIsSource:
		return cycle.ReasonPeerIsSource
	case control.ReasonNamespace, control.ReasonNoPair:
		return cycle.ReasonPeerRefuses
	case control.ReasonConflict:
		return reasonSizesOrModeDiffer
	}
	return reasonPeerDeclined
}

// inverse leads back. Where two lead to one, the first by name is gone back to.
func inverse(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, here := range slices.Backward(slices.Sorted(maps.Keys(m))) {
		out[m[here]] = here
	}
	return out
}

// prepareRequest describes this side as the peer shall mirror it: names and pvcMap inverted.
func prepareRequest(v *view, group *v1alpha1.PVCGroup) control.PrepareRequest {
	link := *v.rlink.DeepCopy()
	link.PVCMap, link.StorageClassMap = inverse(v.rlink.PVCMap), inverse(v.rlink.StorageClassMap)
	link.SuspendReplication = false
	// These are this side's; the peer has its own.
	link.LocalEndpoint, link.RemoteAddress = "", ""
	request := control.PrepareRequest{
		Key: v.key(),
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleTarget, PVCGroupName: v.rep.Spec.PVCGroupName, Epoch: v.wanted().Epoch,
			Rlinks: []v1alpha1.Rlink{link}},
		Group: *group.Spec.DeepCopy(),
	}
	// The peer's claims may be of another driver: it is told, rather than left to find out.
	if v.access == v1alpha1.AccessFiles {
		request.Group.VolumeAccess = v.access
	}
	for i, ref := range request.Group.PVCList {
		request.Group.PVCList[i].PVCName = v.peerName(ref.PVCName)
	}
	for _, m := range v.members {
		claim := control.Claim{Name: v.peerName(m.Name), SizeBytes: m.Size(), VolumeMode: string(corev1.PersistentVolumeFilesystem),
			StorageClass: v.peerClass(m.StorageClass()), Labels: ownLabels(m.Claim.Labels), Annotations: map[string]string{v1alpha1.AnnotationCreatedFor: v.rep.Name}}
		if m.Block() {
			claim.VolumeMode = string(corev1.PersistentVolumeBlock)
		}
		for _, mode := range m.Claim.Spec.AccessModes {
			claim.AccessModes = append(claim.AccessModes, string(mode))
		}
		request.Claims = append(request.Claims, claim)
	}
	return request
}

// ownLabels are the application's: the marks of a cut are not.
func ownLabels(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	maps.DeleteFunc(out, func(key, _ string) bool { return strings.HasPrefix(key, v1alpha1.LabelCutPrefix) })
	return out
}

// nudge lets the peer look at what was committed there now. When it is lost, the peer looks by itself a little later.
func (r *Reconciler) nudge(ctx context.Context, v *view) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	peer, err := r.Peers.Client(v.rlink.ClusterPair)
	if err == nil {
		err = peer.Nudge(ctx, "Replication", v.key())
	}
	if err != nil {
		log.FromContext(ctx).V(1).Info("nudge was lost", "peer", v.peerCluster(), "cause", err.Error())
	}
}

// newPoint names an instant: its time in UTC, and six characters against two of one second.
func (r *Reconciler) newPoint(now time.Time) (string, error) {
	var tail [3]byte
	if _, err := io.ReadFull(r.Random, tail[:]); err != nil {
		return "", fmt.Errorf("name a point: %w", err)
	}
	return now.UTC().Format("20060102t150405") + "-" + hex.EncodeToString(tail[:]), nil
}

// takeSnapshots cuts the members the session carries.
func (r *Reconciler) takeSnapshots(ctx context.Context, v *view) error {
	owner := ownedBy(v.rep)
	point := snapshot.Point{Namespace: v.rep.Namespace, Replication: v.rep.Name, Rlink: v.rlink.RlinkName,
		ID: v.status.Session.Point, Purpose: snapshot.ForSession, Owner: &owner}
	classes, members := make([]string, len(v.status.Session.Claims)), make([]snapshot.Member, len(v.status.Session.Claims))
	for i, claim := range v.status.Session.Claims {
		m := v.member(claim)
		if m == nil || m.Class == "" {
			return fmt.Errorf("take snapshot of claim %s/%s: it has gone from its group or lost its snapshot class while session %s began", v.rep.Namespace, claim, v.status.Session.Point)
		}
		classes[i], members[i] = m.Class, *m
	}
	if v.status.Session.Cut != v1alpha1.CutAtomic {
		return point.Take(ctx, r.Client, v.status.Session.Claims, classes)
	}
	if v.way.GroupClass == "" {
		return fmt.Errorf("cut the members of PVCGroup %s/%s at one instant: %s", v.rep.Namespace, v.rep.Spec.PVCGroupName, v.way.Message)
	}
	return r.takeTogether(ctx, point, members, v.way.GroupClass)
}

// takeTogether asks for a group snapshot, and frees first what an earlier one left behind that ended while it was made.
func (r *Reconciler) takeTogether(ctx context.Context, point snapshot.Point, members []snapshot.Member, class string) error {
	if _, err := snapshot.FreeStranded(ctx, r.Live, r.Client, point.Namespace); err != nil {
		return err
	}
	return point.TakeTogether(ctx, r.Client, members, class)
}

// settleCut takes the labels off that the storage chose the members by, and labels what it made instead.
func (r *Reconciler) settleCut(ctx context.Context, v *view, point string, purpose snapshot.Purpose) error {
	var made []snapshot.Seen
	for _, s := range v.snapshots {
		if s.Point == point && s.Purpose == purpose && !s.Deleting {
			made = append(made, s)
		}
	}
	return errors.Join(r.release(ctx, v), snapshot.Adopt(ctx, r.Client, v.key(), v.rlink.RlinkName, made))
}

// release takes the labels of cuts off all claims that may bear them, also off those that left the group since.
func (r *Reconciler) release(ctx context.Context, v *view) error {
	members := slices.Clone(v.members)
	names := v.rep.Status.Claims
	if v.status.Session != nil {
		names = append(slices.Clone(names), v.status.Session.Claims...)
	}
	for _, name := range names {
		if slices.ContainsFunc(members, func(m snapshot.Member) bool { return m.Name == name && m.Claim != nil }) {
			continue
		}
		claim, err := lookFor(ctx, r.Live, client.ObjectKey{Namespace: v.rep.Namespace, Name: name}, &corev1.PersistentVolumeClaim{})
		if err != nil {
			return err
		}
		members = append(members, snapshot.Member{Name: name, Claim: claim})
	}
	return snapshot.Release(ctx, r.Client, v.key(), v.rlink.RlinkName, "", members)
}

// cutApart gives up the group snapshot that the storage refuses; the next look finds snapshots missing and takes them one by one.
func (r *Reconciler) cutApart(ctx context.Context, v *view) error {
	point, purpose := "", snapshot.ForRecovery
	if v.target == nil {
		point, purpose = v.status.Session.Point, snapshot.ForSession
	} else {
		point = v.target.Replica.State.Applied.Point
	}
	var refused []snapshot.Seen
	for _, s := range v.snapshots {
		if s.Point == point && s.Purpose == purpose && s.Group != "" {
			refused = append(refused, s)
		}
	}
	return errors.Join(snapshot.Remove(ctx, r.Client, v.rep.Namespace, refused...), r.release(ctx, v))
}

func (v *view) member(claim string) *snapshot.Member {
	for i := range v.members {
		if v.members[i].Name == claim {
			return &v.members[i]
		}
	}
	return nil
}

// makeClones makes a claim from each snapshot, for block devices or files.
func (r *Reconciler) makeClones(ctx context.Context, v *view) error {
	files := v.clonesAreFiles()
	for i, claim := range v.status.Session.Claims {
		from := find(v, v.status.Session.Point, snapshot.ForSession, claim)
		m := v.member(claim)
		if from == nil || m == nil || m.Claim == nil {
			return fmt.Errorf("make a block claim of claim %s/%s at point %s: claim or snapshot are gone", v.rep.Namespace, claim, v.status.Session.Point)
		}
		made := clone(v, i, from, m.Size(), m.Claim.Spec.StorageClassName)
		switch {
		case files:
			asFiles(made, m)
		case !m.Block():
			if err := snapshot.AllowBlock(ctx, r.Client, from.Content); err != nil {
				return err
			}
		}
		if err := r.create(ctx, made); err != nil {
			return err
		}
	}
	return nil
}

// startMover makes identity and configuration before the Job whose pods need them.
func (r *Reconciler) startMover(ctx context.Context, v *view) error {
	if v.pair == nil || v.peerCA == nil {
		return fmt.Errorf("start the mover of replication %s: ClusterPair %s or its trust is gone", v.key(), v.rlink.ClusterPair)
	}
	if err := r.complete(ctx, v); err != nil {
		return err
	}
	if err := r.keepIdentity(ctx, v, v.names.mover()); err != nil {
		return err
	}
	var l lists
	if !v.clonesAreFiles() { // what drivers list is blocks
		var err error
		if l, err = r.observeLists(ctx, v); err != nil {
			return err
		}
	}
	if len(l.services) > 0 {
		if err := r.keepAccount(ctx, v); err != nil {
			return err
		}
	}
	labels := with(v.names.labels(v1alpha1.ComponentSourceMover), v1alpha1.LabelPoint, v.status.Session.Point)
	if err := r.makeConfig(ctx, v, v.names.job(v.status.Session.Point), labels, r.sourceConfig(v, l), l.files()); err != nil {
		return err
	}
	return r.create(ctx, r.moverJob(v, l))
}

// makeConfig makes a mover's configuration, with files beside it; nil for none.
func (r *Reconciler) makeConfig(ctx context.Context, v *view, name string, labels map[string]string, config any, files map[string]string) error {
	raw, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration %s: %w", name, err)
	}
	yes, data := true, map[string]string{configFile: string(raw)}
	maps.Copy(data, files)
	return r.create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: name, Labels: labels, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Data:       data,
		Immutable:  &yes,
	})
}

// keepIdentity issues a mover's identity when there is none, or when it is due for renewal.
func (r *Reconciler) keepIdentity(ctx context.Context, v *view, name string) error {
	if v.peerCA == nil {
		return nil
	}
	secret, err := lookFor(ctx, r.Live, client.ObjectKey{Namespace: v.rep.Namespace, Name: name}, &corev1.Secret{})
	if err != nil {
		return err
	}
	if secret != nil && !identity.MoverSecretDue(secret.Data, r.CA, v.peerCA, v.now) {
		return nil
	}
	data, _, err := identity.IssueMoverSecretData(r.CA, r.Cluster, v.rep.Namespace, v.rep.Name, v.peerCA, v.now)
	if err != nil {
		return fmt.Errorf("issue identity of replication %s: %w", v.key(), err)
	}
	if secret == nil {
		return r.create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: name, Labels: v.names.labels(""), OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
			Data:       data,
		})
	}
	if secret.Labels[v1alpha1.LabelReplication] != v.rep.Name {
		return fmt.Errorf("secret %s/%s is in the way: it is not Lifeboat's; delete or rename it", v.rep.Namespace, name)
	}
	secret.Data = data
	if err := r.Client.Update(ctx, secret); err != nil {
		return fmt.Errorf("renew identity %s/%s: %w", v.rep.Namespace, name, err)
	}
	return nil
}

// removeMover removes a point's Job, and its pods without waiting for whoever collects garbage.
func (r *Reconciler) removeMover(ctx context.Context, v *view, point string) error {
	errs := []error{
		r.delete(ctx, &batchv1.Job{}, v.rep.Namespace, v.names.job(point)),
		r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, v.names.job(point)),
	}
	for i := range v.pods {
		pod := &v.pods[i]
		if pod.Labels[v1alpha1.LabelPoint] == point && pod.DeletionTimestamp.IsZero() {
			errs = append(errs, r.delete(ctx, &corev1.Pod{}, pod.Namespace, pod.Name))
		}
	}
	return errors.Join(errs...)
}

// tidy removes what ended sessions left. A side that becomes a target keeps no base either.
func (r *Reconciler) tidy(ctx context.Context, v *view) error {
	names := stale(v)
	if v.target != nil {
		names = v.target.Leftover
	}
	return errors.Join(r.removeNamed(ctx, v, names), r.removeLastConfig(ctx, v))
}

// removeNamed removes what is named as "kind name".
func (r *Reconciler) removeNamed(ctx context.Context, v *view, names []string) error {
	var errs []error
	for _, entry := range names {
		kind, name, _ := strings.Cut(entry, " ")
		switch kind {
		case "Job":
			errs = append(errs, r.delete(ctx, &batchv1.Job{}, v.rep.Namespace, name), r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, name))
		case "Pod":
			errs = append(errs, r.delete(ctx, &corev1.Pod{}, v.rep.Namespace, name))
		case "PersistentVolumeClaim":
			errs = append(errs, r.delete(ctx, &corev1.PersistentVolumeClaim{}, v.rep.Namespace, name))
		case "VolumeSnapshot":
			errs = append(errs, snapshot.Delete(ctx, r.Client, v.rep.Namespace, name))
		case "VolumeGroupSnapshot":
			errs = append(errs, snapshot.Remove(ctx, r.Client, v.rep.Namespace, snapshot.Seen{Group: name}))
		case "Label":
			errs = append(errs, r.release(ctx, v))
		}
	}
	return errors.Join(errs...)
}

// removeLastConfig removes the configuration of the newest session, whose Job may have been removed by hand without it.
func (r *Reconciler) removeLastConfig(ctx context.Context, v *view) error {
	last := v.status.LastSession
	if last == nil || v.status.Session != nil {
		return nil
	}
	return r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, v.names.job(last.Point))
}

// retire removes what a link made that is not in the spec any more. Its receiver, if it had one, goes as a stray.
func (r *Reconciler) retire(ctx context.Context, v *view) error {
	if s := v.status.Session; s != nil {
		return errors.Join(r.removeMover(ctx, v, s.Point), r.removeNamed(ctx, v, leftover(v)))
	}
	return errors.Join(r.removeNamed(ctx, v, leftover(v)), r.removeLastConfig(ctx, v), r.removeAccount(ctx, v),
		r.delete(ctx, &corev1.Secret{}, v.rep.Namespace, v.names.mover()))
}

// makePair makes the volume before the claim, so that the claim finds it.
func (r *Reconciler) makePair(ctx context.Context, v *view) error {
	for _, m := range v.members {
		if m.Volume == nil || m.Volume.Spec.CSI == nil {
			return fmt.Errorf("make the replica of claim %s/%s: its volume is gone", v.rep.Namespace, m.Name)
		}
		if v.claim(v.names.spool()) != nil {
			if err := r.markUsed(ctx, v, m); err != nil {
				return err
			}
		}
		if err := r.create(ctx, replicaVolume(v, m)); err != nil {
			return err
		}
		if err := r.create(ctx, replicaClaim(v, m)); err != nil {
			return err
		}
	}
	return nil
}

// removePair removes claims and volumes. The storage stays: before a claim goes, its volume is made sure to be kept.
func (r *Reconciler) removePair(ctx context.Context, v *view) error {
	volumes := map[string]bool{}
	for _, m := range v.members {
		volumes[v.names.replicaVolume(m.Name)] = true
	}
	return r.removePairs(ctx, v, v.pairs(), volumes)
}

// removeFormer removes the pairs of claims that are no members any more.
func (r *Reconciler) removeFormer(ctx context.Context, v *view) error {
	return r.removePairs(ctx, v, v.formerPairs(), map[string]bool{})
}

// pairs are the claims that replicas are written through.
func (v *view) pairs() []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	for i := range v.claims {
		if v.claims[i].Labels[v1alpha1.LabelComponent] == componentReplica {
			out = append(out, &v.claims[i])
		}
	}
	return out
}

// formerPairs are those of claims that are no members any more.
func (v *view) formerPairs() []*corev1.PersistentVolumeClaim {
	return slices.DeleteFunc(v.pairs(), func(claim *corev1.PersistentVolumeClaim) bool {
		return slices.ContainsFunc(v.members, func(m snapshot.Member) bool { return v.names.replicaClaim(m.Name) == claim.Name })
	})
}

func (r *Reconciler) removePairs(ctx context.Context, v *view, claims []*corev1.PersistentVolumeClaim, volumes map[string]bool) error {
	for _, claim := range claims {
		volumes[claim.Spec.VolumeName] = true
	}
	var errs []error
	for name := range volumes {
		errs = append(errs, r.keepStorage(ctx, v, name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, claim := range claims {
		errs = append(errs, r.delete(ctx, &corev1.PersistentVolumeClaim{}, v.rep.Namespace, claim.Name))
	}
	for name := range volumes {
		errs = append(errs, r.removeVolume(ctx, v, name))
	}
	return errors.Join(errs...)
}

// keepStorage sets a replica volume's policy back to Retain, should anybody have changed it.
func (r *Reconciler) keepStorage(ctx context.Context, v *view, name string) error {
	volume, err := lookFor(ctx, r.Live, client.ObjectKey{Name: name}, &corev1.PersistentVolume{})
	if err != nil || volume == nil || volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain {
		return err
	}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`))
	if err := r.Client.Patch(ctx, volume, patch); err != nil {
		return fmt.Errorf("set volume %s of replication %s to Retain: %w", name, v.key(), err)
	}
	return nil
}

// removeVolume deletes a replica's volume object, and never one that is not Lifeboat's.
func (r *Reconciler) removeVolume(ctx context.Context, v *view, name string) error {
	volume, err := lookFor(ctx, r.Live, client.ObjectKey{Name: name}, &corev1.PersistentVolume{})
	if err != nil || volume == nil {
		return err
	}
	if volume.Labels[v1alpha1.LabelComponent] != componentReplica || volume.Labels[v1alpha1.LabelReplication] != v.rep.Name {
		return nil
	}
	return r.delete(ctx, &corev1.PersistentVolume{}, "", name)
}

// makeSpool decides once what the volumes hold. Claims are marked as used first: a crash in between makes the first session
// compare where it need not, the other order could make a later one trust volumes that hold something.
func (r *Reconciler) makeSpool(ctx context.Context, v *view) error {
	content := holds(v)
	for _, m := range v.members {
		if err := r.markUsed(ctx, v, m); err != nil {
			return err
		}
	}
	return r.create(ctx, spoolClaim(v, content))
}

// markUsed remembers that a replica was begun on a claim that was made for one.
func (r *Reconciler) markUsed(ctx context.Context, v *view, m snapshot.Member) error {
	if m.Claim.Annotations[v1alpha1.AnnotationCreatedFor] == "" || m.Claim.Annotations[annotationUsed] != "" {
		return nil
	}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+annotationUsed+`":"true"}}}`))
	if err := r.Client.Patch(ctx, m.Claim, patch); err != nil {
		return fmt.Errorf("mark claim %s/%s as used: %w", v.rep.Namespace, m.Name, err)
	}
	return nil
}

func (r *Reconciler) sealSpool(ctx context.Context, v *view) error {
	spool := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.spool()}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+annotationSealed+`":"true"}}}`))
	if err := r.Client.Patch(ctx, spool, patch); err != nil {
		return fmt.Errorf("seal spool %s/%s: %w", v.rep.Namespace, spool.Name, err)
	}
	return nil
}

// startReceiver makes or changes the receiver. A side that leaves being a target gets no Service: nobody shall reach it.
func (r *Reconciler) startReceiver(ctx context.Context, v *view) error {
	if v.pair == nil || v.peerCA == nil {
		return fmt.Errorf("start the receiver of replication %s: ClusterPair %s or its trust is gone", v.key(), v.rlink.ClusterPair)
	}
	if err := r.keepIdentity(ctx, v, v.names.receiver()); err != nil {
		return err
	}
	if err := r.makeConfig(ctx, v, v.names.receiverConfig(v.replica.digest), v.names.labels(v1alpha1.ComponentReceiver), v.replica.wanted, nil); err != nil {
		return err
	}
	if err := r.deployReceiver(ctx, v); err != nil {
		return err
	}
	if v.target == nil {
		return nil
	}
	return r.openDoor(ctx, v)
}

func (r *Reconciler) deployReceiver(ctx context.Context, v *view) error {
	wanted, present := r.receiverDeployment(v), v.replica.deployment
	if present == nil {
		return r.create(ctx, wanted)
	}
	if present.Spec.Template.Labels[labelConfig] == v.replica.digest {
		return nil
	}
	former := configMapOf(present)
	present.Spec = wanted.Spec
	if present.Annotations == nil {
		present.Annotations = map[string]string{}
	}
	present.Annotations[annotationKept] = wanted.Annotations[annotationKept]
	if err := r.Client.Update(ctx, present); err != nil {
		return fmt.Errorf("change receiver %s/%s: %w", present.Namespace, present.Name, err)
	}
	return r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, former)
}

func (r *Reconciler) removeReceiver(ctx context.Context, v *view) error {
	errs := []error{r.delete(ctx, &corev1.Service{}, v.rep.Namespace, v.names.receiver())}
	if d := v.replica.deployment; d != nil {
		if config := configMapOf(d); config != "" {
			errs = append(errs, r.delete(ctx, &corev1.ConfigMap{}, v.rep.Namespace, config))
		}
		errs = append(errs, r.delete(ctx, &appsv1.Deployment{}, v.rep.Namespace, v.names.receiver()))
	}
	return errors.Join(errs...)
}

// removeStrays removes receivers of other links, the way to them first.
func (r *Reconciler) removeStrays(ctx context.Context, v *view) error {
	var errs []error
	for _, stray := range v.replica.strays {
		errs = append(errs, r.removeReceiver(ctx, stray), r.delete(ctx, &corev1.Secret{}, v.rep.Namespace, stray.names.receiver()))
	}
	return errors.Join(errs...)
}

// takeRecoveryPoint keeps the applied point by snapshots of the members it has.
func (r *Reconciler) takeRecoveryPoint(ctx context.Context, v *view) error {
	applied := v.target.Replica.State.Applied
	point := snapshot.Point{Namespace: v.rep.Namespace, Replication: v.rep.Name, Rlink: v.rlink.RlinkName,
		ID: applied.Point, Purpose: snapshot.ForRecovery, Instant: applied.Time, Epoch: applied.Epoch, Cut: applied.Cut}
	claims := v.pointMembers()
	classes, members := make([]string, len(claims)), make([]snapshot.Member, len(claims))
	for i, claim := range claims {
		members[i] = *v.member(claim)
		classes[i] = members[i].Class
	}
	if way := v.cut(); way.Cut == v1alpha1.CutAtomic && len(members) > 1 {
		return r.takeTogether(ctx, point, members, way.GroupClass)
	}
	return point.Take(ctx, r.Client, claims, classes)
}

// pointMembers are the members that the receiver's point is of: one that has just joined the group is not in it yet.
func (v *view) pointMembers() []string {
	if v.replica.running == nil {
		return v.memberNames()
	}
	return slices.DeleteFunc(v.memberNames(), func(name string) bool {
		return !slices.ContainsFunc(v.replica.running.Volumes, func(o engine.TargetVolume) bool { return o.Name == name })
	})
}

func (r *Reconciler) dropRecoveryPoints(ctx context.Context, v *view) error {
	var surplus []snapshot.Seen
	for _, s := range v.snapshots {
		if s.Purpose == snapshot.ForRecovery && !s.Deleting && slices.Contains(v.target.Surplus, s.Point) {
			surplus = append(surplus, s)
		}
	}
	return snapshot.Remove(ctx, r.Client, v.rep.Namespace, surplus...)
}
