package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// spoolSpare is what a spool needs beside the group's size: 5 % for frames and digests, and this for its file system.
const spoolSpare = 64 << 20

// replica is what was read of a target's objects.
type replica struct {
	seen       cycle.Replica
	volumes    map[string]*corev1.PersistentVolume // by member; nil where there is none
	deployment *appsv1.Deployment
	service    *corev1.Service
	// running is the configuration that the deployment has; nil when there is none to read.
	running *engine.TargetConfig
	// wanted is the configuration the receiver should run with, digest names it.
	wanted engine.TargetConfig
	digest string
	// strays are links that have something of a receiver though the replica is not received through them.
	strays []*view
}

// observeReplica reads pair, spool, receiver and what the receiver says.
func (r *Reconciler) observeReplica(ctx context.Context, all *sight) error {
	v := all.lead()
	if err := r.observeStrays(ctx, all); err != nil {
		return err
	}
	v.replica.volumes = map[string]*corev1.PersistentVolume{}
	for _, m := range v.members {
		var volume corev1.PersistentVolume
		err := r.Live.Get(ctx, client.ObjectKey{Name: v.names.replicaVolume(m.Name)}, &volume)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("read volume %s: %w", v.names.replicaVolume(m.Name), err)
		default:
			v.replica.volumes[m.Name] = &volume
		}
	}
	name := client.ObjectKey{Namespace: v.rep.Namespace, Name: v.names.receiver()}
	var err error
	if v.replica.deployment, err = lookFor(ctx, r.Live, name, &appsv1.Deployment{}); err != nil {
		return err
	}
	if v.replica.service, err = lookFor(ctx, r.Live, name, &corev1.Service{}); err != nil {
		return err
	}
	s := &v.replica.seen
	spool := v.claim(v.names.spool())
	s.Spool, s.Files = spoolPresence(v), v.replicaIsFiles()
	if spool != nil {
		s.Sealed = spool.Annotations[annotationSealed] == "true"
	}
	s.Door, s.Ajar = observeDoor(v)
	s.Pair = pairPresence(v)
	s.Rollback = rollbackLeft(v)
	for _, claim := range v.formerPairs() {
		s.Former = append(s.Former, claim.Annotations[v1alpha1.AnnotationVolume])
	}
	if v.replica.running, err = r.runningConfig(ctx, v); err != nil {
		return err
	}
	address, silent := moverAddress(v.pods, v1alpha1.ComponentReceiver, ""), ""
	if address != "" {
		if state, err := r.Movers.State(ctx, v.key(), address); err != nil {
			silent = err.Error()
		} else {
			v.state = &state
		}
	}
	v.replica.wanted = r.targetConfig(v)
	s.Regroups = v.replica.running != nil && !sameVolumes(v.replica.running.Volumes, v.replica.wanted.Volumes)
	if v.replica.digest, err = r.configDigest(v.rep, v.replica.wanted); err != nil {
		return err
	}
	s.Receiver, s.Trouble = receiverPresence(v)
	if s.Receiver == cycle.Absent {
		return nil
	}
	if silent != "" {
		s.Trouble = silent
	}
	if v.state != nil {
		s.State = received(v.state)
	}
	return nil
}

// observeStrays finds what other links have of a receiver.
func (r *Reconciler) observeStrays(ctx context.Context, all *sight) error {
	lead := all.lead()
	for _, v := range append(slices.Clone(all.links[1:]), all.gone...) {
		name := client.ObjectKey{Namespace: v.rep.Namespace, Name: v.names.receiver()}
		var err error
		if v.replica.deployment, err = lookFor(ctx, r.Live, name, &appsv1.Deployment{}); err != nil {
			return err
		}
		if v.replica.service, err = lookFor(ctx, r.Live, name, &corev1.Service{}); err != nil {
			return err
		}
		var found []string
		if v.replica.deployment != nil {
			found = append(found, "Deployment "+name.Name)
		}
		if v.replica.service != nil {
			found = append(found, "Service "+name.Name)
		}
		for _, pod := range v.pods {
			if pod.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentReceiver {
				found = append(found, "Pod "+pod.Name)
			}
		}
		if len(found) > 0 {
			lead.replica.strays = append(lead.replica.strays, v)
			lead.replica.seen.Strays = append(lead.replica.seen.Strays, found...)
		}
	}
	return nil
}

// runningConfig reads what the present receiver was started with.
func (r *Reconciler) runningConfig(ctx context.Context, v *view) (*engine.TargetConfig, error) {
	if v.replica.deployment == nil || configMapOf(v.replica.deployment) == "" {
		return nil, nil
	}
	key := client.ObjectKey{Namespace: v.rep.Namespace, Name: configMapOf(v.replica.deployment)}
	object, err := lookFor(ctx, r.Live, key, &corev1.ConfigMap{})
	if err != nil || object == nil {
		return nil, err
	}
	var config engine.TargetConfig
	if err := json.Unmarshal([]byte(object.Data[configFile]), &config); err != nil {
		return nil, fmt.Errorf("read configuration %s of the receiver: %w", key, err)
	}
	return &config, nil
}

func sameVolumes(a, b []engine.TargetVolume) bool {
	return slices.EqualFunc(a, b, func(a, b engine.TargetVolume) bool { return a.Name == b.Name })
}

// lookFor returns nil when there is no such object.
func lookFor[T client.Object](ctx context.Context, reader client.Reader, key client.ObjectKey, into T) (T, error) {
	var none T
	err := reader.Get(ctx, key, into)
	switch {
	case apierrors.IsNotFound(err):
		return none, nil
	case err != nil:
		return none, fmt.Errorf("read %T %s: %w", into, key, err)
	}
	return into, nil
}

func received(s *engine.State) *cycle.Received {
	out := &cycle.Received{Busy: s.Phase != engine.PhaseIdle, Progress: progressMessage(s)}
	if s.Committed != nil {
		out.Committed = cycle.Recovery{Point: s.Committed.ID, Time: s.Committed.Time, Epoch: int64(s.Committed.Epoch), Cut: v1alpha1.CutAtomicity(s.Committed.Cut)}
		if s.Applied {
			out.Applied = out.Committed
		}
	}
	return out
}

// pairPresence judges the static volumes and claims beside the user's. One that names another volume than the user's claim has
// now, or that lost its counterpart, is outdated.
func pairPresence(v *view) cycle.Presence {
	missing, partial, any := false, false, false
	for _, m := range v.members {
		volume, claim := v.replica.volumes[m.Name], v.claim(v.names.replicaClaim(m.Name))
		any = any || volume != nil || claim != nil
		switch {
		case volume != nil && !volume.DeletionTimestamp.IsZero(), claim != nil && !claim.DeletionTimestamp.IsZero():
			partial = true
		case volume == nil && claim != nil && claim.Status.Phase == corev1.ClaimLost:
			return cycle.Outdated
		case volume == nil, claim == nil:
			missing = missing || true
		case volume.Status.Phase == corev1.VolumeReleased, volume.Status.Phase == corev1.VolumeFailed:
			return cycle.Outdated
		case m.Volume != nil && m.Volume.Spec.CSI != nil && volume.Spec.CSI != nil && volume.Spec.CSI.VolumeHandle != m.Volume.Spec.CSI.VolumeHandle:
			return cycle.Outdated
		case claim.Status.Phase != corev1.ClaimBound:
			partial = true
		}
	}
	switch {
	case partial:
		return cycle.Partial
	case missing:
		// Some of it may be there; making it again completes it.
		return cycle.Absent
	case !any:
		return cycle.Absent
	}
	return cycle.Present
}

// receiverPresence is Present only when one pod, with the wanted configuration, is ready.
func receiverPresence(v *view) (cycle.Presence, string) {
	var pods []*corev1.Pod
	for i := range v.pods {
		if v.pods[i].Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentReceiver {
			pods = append(pods, &v.pods[i])
		}
	}
	d := v.replica.deployment
	switch {
	case d == nil && len(pods) == 0:
		return cycle.Absent, ""
	case d == nil || !d.DeletionTimestamp.IsZero():
		return cycle.Partial, "its former pods are ending"
	case d.Spec.Template.Labels[labelConfig] != v.replica.digest:
		return cycle.Outdated, ""
	}
	trouble := ""
	ready := 0
	for _, pod := range pods {
		switch {
		case !pod.DeletionTimestamp.IsZero() || pod.Labels[labelConfig] != v.replica.digest:
			trouble = "its former pod " + pod.Name + " is ending"
		case podReady(pod):
			ready++
		default:
			trouble = podTrouble(pod)
		}
	}
	if ready == 1 && trouble == "" {
		return cycle.Present, ""
	}
	return cycle.Partial, trouble
}

func podReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// targetConfig is what the receiver should run with. A source with a smaller epoch is refused, and a side that is being promoted is
// in its new one already.
func (r *Reconciler) targetConfig(v *view) engine.TargetConfig {
	c := engine.TargetConfig{
		Replication: v.key().String(), Epoch: uint64(v.wanted().Epoch), ReplicaHolds: engine.HoldsData, Spool: spoolDir,
		Listen: fmt.Sprintf(":%d", v.listensOn()), StatusListen: fmt.Sprintf(":%d", statusPort), IdentityDir: identityDir,
		PeerIdentity: identity.ReplicationURI(v.peerCluster(), v.rep.Namespace, v.rep.Name), ManagerIdentity: identity.ManagerURI(r.Cluster),
	}
	if spool := v.claim(v.names.spool()); spool != nil && spool.Annotations[annotationHolds] == string(engine.HoldsNothing) {
		c.ReplicaHolds = engine.HoldsNothing
	}
	c.SpoolLimit, c.KeptElsewhere = spoolLimit(v), keptElsewhere(v) != ""
	// While a replica is promoted its receiver keeps the members it has: what it committed is of these.
	if v.rep.Spec.Role == v1alpha1.RoleSource && v.replica.running != nil {
		c.Volumes, c.SpoolLimit, c.KeptElsewhere = v.replica.running.Volumes, v.replica.running.SpoolLimit, v.replica.running.KeptElsewhere
		return c
	}
	files := v.replicaIsFiles()
	for i, m := range v.members {
		volume := engine.TargetVolume{Name: m.Name, Device: memberPath(i, files)}
		if !files {
			volume.Size = m.Size()
		}
		c.Volumes = append(c.Volumes, volume)
	}
	return c
}

// spoolLimit is how many bytes a delta may take of the spool's claim: what its file system and the digest maps, 32 bytes for 64 KiB, leave. A
// delta that is larger is refused with these words rather than by a full disk. It follows from what was asked for, which is known
// before the claim is bound.
func spoolLimit(v *view) int64 {
	spool := v.claim(v.names.spool())
	if spool == nil {
		return 0
	}
	request := spool.Spec.Resources.Requests[corev1.ResourceStorage]
	var group int64
	for _, m := range v.members {
		group += m.Size()
	}
	return max(request.Value()-request.Value()/10-group/1024, request.Value()/2)
}

// keptElsewhere is the point that a delta which is too large for the spool may be written over, because snapshots keep it; empty when none
// may. It is allowed only once such a delta came, as each change starts the receiver again, and only for the point that
// the replica holds then: after the next one the spool is asked first again.
func keptElsewhere(v *view) string {
	p := v.status.RecoveryPoint
	if p == nil || v.replicaIsFiles() || v.rep.Spec.Role != v1alpha1.RoleTarget || v.rep.Status.Role != v1alpha1.RoleTarget {
		return ""
	}
	asked := v.state != nil && v.state.TooLarge != "" && v.state.Committed != nil && v.state.Committed.ID == p.Point
	allowed := v.replica.deployment != nil && v.replica.deployment.Annotations[annotationKept] == p.Point
	if !asked && !allowed {
		return ""
	}
	for _, claim := range v.pointMembers() {
		if s := find(v, p.Point, snapshot.ForRecovery, claim); s == nil || !s.Ready || s.Deleting {
			return ""
		}
	}
	return p.Point
}

// configDigest names everything a receiver's pod depends on.
func (r *Reconciler) configDigest(rep *v1alpha1.Replication, c engine.TargetConfig) (string, error) {
	raw, err := json.Marshal(struct {
		engine.TargetConfig
		Mover *v1alpha1.Mover `json:"mover,omitempty"`
	}{c, rep.Spec.Mover})
	if err != nil {
		return "", fmt.Errorf("write configuration of the receiver: %w", err)
	}
	return snapshot.Digest(append(raw, r.Image...)), nil
}

func (r *Reconciler) receiverDeployment(v *view) *appsv1.Deployment {
	labels := with(v.names.labels(v1alpha1.ComponentReceiver), labelConfig, v.replica.digest)
	selector := map[string]string{v1alpha1.LabelReplication: v.rep.Name, v1alpha1.LabelRlink: v.rlink.RlinkName, v1alpha1.LabelComponent: v1alpha1.ComponentReceiver}
	one := int32(1)
	pod := r.podSpec(v.rep, "target", v.names.receiverConfig(v.replica.digest), v.names.receiver())
	main := &pod.Containers[0]
	main.Ports = append(main.Ports, corev1.ContainerPort{Name: portName, ContainerPort: v.listensOn()})
	main.ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString(portName)}},
		PeriodSeconds: 1, FailureThreshold: 3,
	}
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: "spool", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.names.spool()}}})
	main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "spool", MountPath: spoolDir})
	if v.replicaIsFiles() {
		main.SecurityContext.Capabilities.Add = targetCapabilities
	}
	for i, volume := range v.replica.wanted.Volumes {
		if v.replicaIsFiles() {
			mountTree(&pod, i, volume.Name, false)
			continue
		}
		mountDevice(&pod, i, v.names.replicaClaim(volume.Name))
	}
	if v.target == nil {
		delete(labels, labelApp) // nobody shall reach a receiver that is needed once more
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.receiver(), Labels: v.names.labels(v1alpha1.ComponentReceiver),
			Annotations: map[string]string{annotationKept: keptElsewhere(v)}, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one,
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			// Two receivers would write one volume.
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: mover(v.rep).PodAnnotations}, Spec: pod},
		},
	}
}

func receiverService(v *view) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.receiver(), Labels: v.names.labels(v1alpha1.ComponentReceiver),
			OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{v1alpha1.LabelReplication: v.rep.Name, v1alpha1.LabelRlink: v.rlink.RlinkName, v1alpha1.LabelComponent: v1alpha1.ComponentReceiver},
			Ports:    []corev1.ServicePort{{Name: portName, Port: dataPort, TargetPort: intstr.FromString(portName)}},
		},
	}
}

// replicaVolume is a second, static volume over the storage of a member's: the same handle as a block device. It carries no file
// system type, is kept when its claim goes, and knows its claim by name alone, so that neither removes the user's data.
func replicaVolume(v *view, m snapshot.Member) *corev1.PersistentVolume {
	block := corev1.PersistentVolumeBlock
	csi := m.Volume.Spec.CSI.DeepCopy()
	csi.FSType = ""
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: v.names.replicaVolume(m.Name), Labels: v.names.labels(componentReplica),
			Annotations: map[string]string{v1alpha1.AnnotationVolume: m.Name}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      maps.Clone(m.Volume.Spec.Capacity),
			PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: csi},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: v.rep.Namespace, Name: v.names.replicaClaim(m.Name)},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			VolumeMode:                    &block,
			NodeAffinity:                  m.Volume.Spec.NodeAffinity.DeepCopy(),
			MountOptions:                  nil,
		},
	}
}

func replicaClaim(v *view, m snapshot.Member) *corev1.PersistentVolumeClaim {
	block, none := corev1.PersistentVolumeBlock, ""
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.replicaClaim(m.Name), Labels: v.names.labels(componentReplica),
			Annotations: map[string]string{v1alpha1.AnnotationVolume: m.Name}, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &block,
			// No class, or a provisioner would make a volume before the static one is found.
			StorageClassName: &none, VolumeName: v.names.replicaVolume(m.Name),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: m.Volume.Spec.Capacity[corev1.ResourceStorage]}},
		},
	}
}

// spoolSize is what holds one whole delta, which may be the whole group.
func spoolSize(v *view) resource.Quantity {
	if v.rlink.SpoolSize != nil {
		return *v.rlink.SpoolSize
	}
	size := int64(spoolSpare)
	for _, m := range v.members {
		size += m.Size() + m.Size()/20
	}
	return *resource.NewQuantity(size, resource.BinarySI)
}

func spoolClaim(v *view, holds engine.Content) *corev1.PersistentVolumeClaim {
	files := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.spool(), Labels: v.names.labels(componentSpool),
			Annotations: map[string]string{annotationHolds: string(holds), annotationAccess: string(v.access), annotationVolumes: v.handles()}, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &files,
			StorageClassName: v.members[0].Claim.Spec.StorageClassName,
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: spoolSize(v)}},
		},
	}
}

// holds tells what the volumes hold before a first replica is begun on them: nothing only when every claim was made for this
// Replication, lately, and neither a replica nor a pod was ever on it. A pod leaves at least a file system, also the one
// that Lifeboat itself starts to bind a claim, and the scheduler leaves its choice of node on claims that waited for one.
func holds(v *view) engine.Content {
	for _, m := range v.members {
		a := m.Claim.Annotations
		fresh := v.now.Sub(m.Claim.CreationTimestamp.Time) < freshFor
		if a[v1alpha1.AnnotationCreatedFor] != v.rep.Name || a[annotationUsed] != "" || a["volume.kubernetes.io/selected-node"] != "" || !fresh {
			return engine.HoldsData
		}
	}
	return engine.HoldsNothing
}

// configMapOf is the ConfigMap a receiver was started with.
func configMapOf(d *appsv1.Deployment) string {
	i := slices.IndexFunc(d.Spec.Template.Spec.Volumes, func(volume corev1.Volume) bool { return volume.Name == "config" && volume.ConfigMap != nil })
	if i < 0 {
		return ""
	}
	return d.Spec.Template.Spec.Volumes[i].ConfigMap.Name
}
