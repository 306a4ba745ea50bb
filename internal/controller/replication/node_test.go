package replication

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	movers "lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// play does what driver, snapshot controller, binder, garbage collector, kubelet and engine would do.
func (s *side) play() {
	s.w.t.Helper()
	s.playGroups()
	s.playSnapshots()
	s.playContents()
	s.playClaims()
	s.playPods()
	s.playMovers()
}

func (s *side) must(err error) {
	s.w.t.Helper()
	if client.IgnoreNotFound(err) != nil {
		s.w.t.Fatalf("%s: %v\n%s", s.name, err, s.w.story())
	}
}

func (s *side) list(list client.ObjectList) {
	s.w.t.Helper()
	s.must(s.kube.List(s.w.t.Context(), list, client.InNamespace(s.w.namespace)))
}

func (s *side) playSnapshots() {
	if s.holdSnapshots {
		return
	}
	ctx := s.w.t.Context()
	var list snapshotv1.VolumeSnapshotList
	s.list(&list)
	for i := range list.Items {
		snap := &list.Items[i]
		if snap.Status != nil && snap.Status.ReadyToUse != nil && *snap.Status.ReadyToUse || len(snap.OwnerReferences) > 0 && snap.OwnerReferences[0].Kind == "VolumeGroupSnapshot" {
			continue
		}
		var claim corev1.PersistentVolumeClaim
		var volume corev1.PersistentVolume
		s.must(s.kube.Get(ctx, s.key(*snap.Spec.Source.PersistentVolumeClaimName), &claim))
		s.must(s.kube.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume))
		if volume.Spec.CSI == nil {
			continue // the claim is gone
		}
		content, mode := "content-"+string(snap.UID), corev1.PersistentVolumeFilesystem
		stored := &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{Name: content},
			Spec: snapshotv1.VolumeSnapshotContentSpec{Driver: volume.Spec.CSI.Driver, DeletionPolicy: s.deletionPolicy(*snap.Spec.VolumeSnapshotClassName), SourceVolumeMode: &mode,
				Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volume.Spec.CSI.VolumeHandle},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: snap.Namespace, Name: snap.Name, UID: snap.UID}},
		}
		s.must(s.kube.Create(ctx, stored))
		handle := handleOf(snap.Name)
		stored.Status = &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle}
		s.must(s.kube.Status().Update(ctx, stored))
		now, yes, size := metav1.NewTime(s.w.now()), true, claim.Status.Capacity[corev1.ResourceStorage]
		snap.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, CreationTime: &now, ReadyToUse: &yes, RestoreSize: &size}
		s.must(s.kube.Status().Update(ctx, snap))
	}
}

func (s *side) deletionPolicy(class string) snapshotv1.DeletionPolicy {
	var object snapshotv1.VolumeSnapshotClass
	s.must(s.kube.Get(s.w.t.Context(), client.ObjectKey{Name: class}, &object))
	return object.DeletionPolicy
}

// playContents lets the storage's snapshots go whose objects are gone, as their policy says.
func (s *side) playContents() {
	ctx := s.w.t.Context()
	var contents snapshotv1.VolumeSnapshotContentList
	s.must(s.kube.List(ctx, &contents, client.MatchingFields{ofNamespace: s.w.namespace}))
	for i := range contents.Items {
		content := &contents.Items[i]
		if ref := content.Spec.VolumeSnapshotRef; ref.Namespace != s.w.namespace || content.Spec.DeletionPolicy != snapshotv1.VolumeSnapshotContentDelete {
			continue
		}
		var snap snapshotv1.VolumeSnapshot
		err := s.kube.Get(ctx, s.key(content.Spec.VolumeSnapshotRef.Name), &snap)
		s.must(err)
		if err != nil || snap.UID != content.Spec.VolumeSnapshotRef.UID {
			s.must(s.kube.Delete(ctx, content))
		}
	}
}

// handleOf is what the storage calls a snapshot.
func handleOf(name string) string { return "handle-" + name }

// playClaims binds claims, and lets deleted ones go once no pod uses them.
func (s *side) playClaims() {
	var claims corev1.PersistentVolumeClaimList
	var pods corev1.PodList
	s.list(&claims)
	s.list(&pods)
	for i := range claims.Items {
		claim := &claims.Items[i]
		switch {
		case !claim.DeletionTimestamp.IsZero():
			if claim.Name != s.stuck && len(mounting(pods.Items, []string{claim.Name})) == 0 {
				s.release(claim)
			}
		case claim.Status.Phase != corev1.ClaimBound && !s.holdClaims:
			s.bind(claim)
		case claim.Status.Phase == corev1.ClaimBound && !s.holdGrowth:
			s.grow(claim, pods.Items)
		}
	}
	s.playVolumes()
}

// grow makes a volume as large as its claim asks. The claim shows it only once a pod has mounted it and its file system has grown.
func (s *side) grow(claim *corev1.PersistentVolumeClaim, pods []corev1.Pod) {
	var volume corev1.PersistentVolume
	s.must(s.kube.Get(s.w.t.Context(), client.ObjectKey{Name: claim.Spec.VolumeName}, &volume))
	has, asks := volume.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if volume.Name == "" || has.Cmp(asks) >= 0 {
		return
	}
	// M-155: the receiver's pod is gone before a target volume is changed.
	for i := range pods {
		if pods[i].Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentReceiver {
			s.w.t.Errorf("%s: claim %s grows beside pod %s\n%s", s.name, claim.Name, pods[i].Name, s.w.story())
		}
	}
	volume.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: asks}
	s.must(s.kube.Update(s.w.t.Context(), &volume))
}

func (s *side) bind(claim *corev1.PersistentVolumeClaim) {
	ctx := s.w.t.Context()
	// The spool's first pod is the receiver's, which is scheduled with it.
	if class := claim.Spec.StorageClassName; class != nil && *class == "late" && claim.Labels[v1alpha1.LabelComponent] != componentSpool && claim.Annotations["volume.kubernetes.io/selected-node"] == "" {
		return
	}
	var volume corev1.PersistentVolume
	if claim.Spec.VolumeName != "" {
		// A static pair: the binder fills in what the claimRef lacks.
		if err := s.kube.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume); err != nil {
			s.must(err)
			return
		}
		if volume.Spec.ClaimRef.UID != "" && volume.Spec.ClaimRef.UID != claim.UID {
			return
		}
		volume.Spec.ClaimRef.UID = claim.UID
		s.must(s.kube.Update(ctx, &volume))
	} else {
		provisioner := driver
		switch *claim.Spec.StorageClassName {
		case "plain":
			provisioner = "plain.example.com"
		case keepingClass:
			provisioner = keepingDriver
		case listingClass:
			provisioner = listingDriver
		case groupingClass:
			provisioner = groupingDriver
		}
		mode := claim.Spec.VolumeMode
		volume = corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-" + string(claim.UID)},
			Spec: corev1.PersistentVolumeSpec{
				Capacity: claim.Spec.Resources.Requests, AccessModes: claim.Spec.AccessModes, VolumeMode: mode, StorageClassName: *claim.Spec.StorageClassName,
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: provisioner, VolumeHandle: "vol-" + string(claim.UID), FSType: "ext4", VolumeAttributes: map[string]string{"pool": "a"}}},
			},
		}
		s.must(s.kube.Create(ctx, &volume))
		claim.Spec.VolumeName = volume.Name
		s.must(s.kube.Update(ctx, claim))
	}
	volume.Status.Phase = corev1.VolumeBound
	s.must(s.kube.Status().Update(ctx, &volume))
	claim.Status.Phase, claim.Status.Capacity = corev1.ClaimBound, volume.Spec.Capacity
	s.must(s.kube.Status().Update(ctx, claim))
}

// release lets a claim go: its volume is deleted, with the storage, or released, as its policy says.
func (s *side) release(claim *corev1.PersistentVolumeClaim) {
	ctx := s.w.t.Context()
	var volume corev1.PersistentVolume
	if claim.Spec.VolumeName != "" && s.kube.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume) == nil {
		if volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			s.must(s.kube.Delete(ctx, &volume))
		} else {
			volume.Status.Phase = corev1.VolumeReleased
			s.must(s.kube.Status().Update(ctx, &volume))
		}
	}
	claim.Finalizers = nil
	s.must(s.kube.Update(ctx, claim))
}

func (s *side) playVolumes() {
	ctx := s.w.t.Context()
	var volumes corev1.PersistentVolumeList
	s.must(s.kube.List(ctx, &volumes, client.MatchingFields{ofNamespace: s.w.namespace}))
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		if ref := volume.Spec.ClaimRef; ref == nil || ref.Namespace != s.w.namespace || volume.DeletionTimestamp.IsZero() || volume.Status.Phase == corev1.VolumeBound && s.bound(volume) {
			continue
		}
		volume.Finalizers = nil
		s.must(s.kube.Update(ctx, volume))
	}
}

func (s *side) bound(volume *corev1.PersistentVolume) bool {
	var claim corev1.PersistentVolumeClaim
	err := s.kube.Get(s.w.t.Context(), client.ObjectKey{Namespace: s.w.namespace, Name: volume.Spec.ClaimRef.Name}, &claim)
	return err == nil
}

// playPods makes and removes the pods of Jobs and Deployments.
func (s *side) playPods() {
	ctx := s.w.t.Context()
	var jobs batchv1.JobList
	var deployments appsv1.DeploymentList
	var pods corev1.PodList
	s.list(&jobs)
	s.list(&deployments)
	s.list(&pods)
	wanted := map[string]bool{}
	for i := range jobs.Items {
		job := &jobs.Items[i]
		if !job.DeletionTimestamp.IsZero() {
			// The garbage collector removes dependents in its own time, then the finalizers.
			job.Finalizers = nil
			s.must(s.kube.Update(ctx, job))
			continue
		}
		wanted[job.Name] = true
		if !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return p.Annotations["owner"] == job.Name }) {
			s.pod(job.Name+"-x", job.Name, job.Spec.Template)
		}
	}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		owner := d.Name + "@" + d.Spec.Template.Labels[labelConfig]
		wanted[owner] = true
		others := slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return strings.HasPrefix(p.Annotations["owner"], d.Name+"@") })
		if !others {
			s.pod(d.Name+"-"+d.Spec.Template.Labels[labelConfig], owner, d.Spec.Template)
		}
	}
	s.playBinders(pods.Items)
	for i := range pods.Items {
		pod := &pods.Items[i]
		owner, ours := pod.Annotations["owner"]
		if ours && !wanted[owner] || !pod.DeletionTimestamp.IsZero() {
			s.mu.Lock()
			delete(s.states, pod.Status.PodIP)
			s.mu.Unlock()
			s.must(s.kube.Delete(ctx, pod, client.GracePeriodSeconds(0)))
		}
	}
}

// playBinders lets the scheduler place pods that are there to bind claims, and ends them once they were mounted.
func (s *side) playBinders(pods []corev1.Pod) {
	ctx := s.w.t.Context()
	for i := range pods {
		pod := &pods[i]
		if pod.Labels[v1alpha1.LabelComponent] != componentBinder || pod.Status.Phase == corev1.PodSucceeded || s.holdClaims {
			continue
		}
		waiting := false
		for _, volume := range pod.Spec.Volumes {
			var claim corev1.PersistentVolumeClaim
			s.must(s.kube.Get(ctx, s.key(volume.PersistentVolumeClaim.ClaimName), &claim))
			waiting = waiting || claim.Status.Phase != corev1.ClaimBound
			if claim.Annotations["volume.kubernetes.io/selected-node"] == "" {
				before := claim.DeepCopy()
				metav1.SetMetaDataAnnotation(&claim.ObjectMeta, "volume.kubernetes.io/selected-node", "node")
				s.must(s.kube.Patch(ctx, &claim, client.MergeFrom(before)))
			}
		}
		if !waiting && pod.DeletionTimestamp.IsZero() {
			pod.Status.Phase = corev1.PodSucceeded
			s.must(s.kube.Status().Update(ctx, pod))
		}
	}
}

func (s *side) pod(name, owner string, template corev1.PodTemplateSpec) {
	for _, volume := range template.Spec.Volumes {
		if ref := volume.PersistentVolumeClaim; ref != nil && s.unbound(ref.ClaimName) {
			return
		}
	}
	s.addresses++
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name, Labels: template.Labels, Annotations: map[string]string{"owner": owner}},
		Spec:       template.Spec,
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.9.%d.%d", s.addresses/250, s.addresses%250+1),
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}},
	}
	pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
	s.create(pod)
}

func (s *side) unbound(name string) bool {
	var claim corev1.PersistentVolumeClaim
	err := s.kube.Get(s.w.t.Context(), s.key(name), &claim)
	return err != nil || claim.Status.Phase != corev1.ClaimBound
}

// playMovers lets receivers start and source movers send.
func (s *side) playMovers() {
	var pods corev1.PodList
	s.list(&pods)
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Status.Phase != corev1.PodRunning || !pod.DeletionTimestamp.IsZero() {
			continue
		}
		switch pod.Labels[v1alpha1.LabelComponent] {
		case v1alpha1.ComponentReceiver:
			s.playReceiver(pod)
		case componentRollback:
			if !s.holdMovers {
				s.playRollback(pod)
			}
		case v1alpha1.ComponentSourceMover:
			if !s.holdMovers {
				s.playSource(pod)
			}
		}
	}
}

// config reads what a mover was started with.
func (s *side) config(pod *corev1.Pod, into any) {
	for _, volume := range pod.Spec.Volumes {
		if volume.Name != "config" {
			continue
		}
		var config corev1.ConfigMap
		s.must(s.kube.Get(s.w.t.Context(), s.key(volume.ConfigMap.Name), &config))
		if err := json.Unmarshal([]byte(config.Data[configFile]), into); err != nil {
			s.w.t.Fatalf("%s: configuration of %s: %v", s.name, pod.Name, err)
		}
	}
}

// playReceiver keeps what it committed in an annotation of the spool, as the engine does in the spool itself.
func (s *side) playReceiver(pod *corev1.Pod) {
	var config engine.TargetConfig
	s.config(pod, &config)
	if err := config.Validate(); err != nil {
		s.w.t.Fatalf("%s: receiver: %v", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	state := engine.State{Role: engine.RoleTarget, Phase: engine.PhaseIdle, Ready: true, Epoch: config.Epoch, Applied: !s.applyLate}
	if !state.Applied {
		state.Phase = engine.PhaseApplying
	}
	state.Committed, state.TooLarge = s.spooled(pod), s.tooLarge
	s.states[pod.Status.PodIP] = state
}

func (s *side) spool(pod *corev1.Pod) *corev1.PersistentVolumeClaim {
	var claim corev1.PersistentVolumeClaim
	s.must(s.kube.Get(s.w.t.Context(), s.key("lb-"+pod.Labels[v1alpha1.LabelReplication]+"-spool"), &claim))
	return &claim
}

func (s *side) spooled(pod *corev1.Pod) *movers.Point {
	raw := s.spool(pod).Annotations["test/committed"]
	if raw == "" {
		return nil
	}
	var p movers.Point
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		s.w.t.Fatal(err)
	}
	return &p
}

// playSource runs a session against the peer's receiver, if it can be reached.
func (s *side) playSource(pod *corev1.Pod) {
	var config engine.SourceConfig
	s.config(pod, &config)
	if err := config.Validate(); err != nil {
		s.w.t.Fatalf("%s: mover: %v", s.name, err)
	}
	end := s.ending(config)
	if end == nil {
		s.mu.Lock()
		s.states[pod.Status.PodIP] = engine.State{Role: engine.RoleSource, Phase: engine.PhaseWaiting, Message: "the target is away", Point: config.Point, Percent: 12}
		s.mu.Unlock()
		return
	}
	message, err := json.Marshal(end.report)
	if err != nil {
		s.w.t.Fatal(err)
	}
	pod.Status.Phase = corev1.PodSucceeded
	if end.code != 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	text := string(message)
	if end.report == nil {
		text = ""
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: end.code, Message: text, Reason: "Ended"}}}}
	s.must(s.kube.Status().Update(s.w.t.Context(), pod))
}

// named is the cluster that a mover's identity is of.
func (w *world) named(uri string) *side {
	for _, s := range w.sides() {
		if strings.HasPrefix(uri, "lifeboat://"+s.name+"/") {
			return s
		}
	}
	w.t.Fatalf("nobody is %s", uri)
	return nil
}

// ending is how a session ends now; nil while it goes on.
func (s *side) ending(config engine.SourceConfig) *ending {
	if s.ends != nil {
		if end := s.ends(config); end != nil {
			return end
		}
	}
	peer := s.w.named(config.PeerIdentity)
	receiver := peer.receiver(config.Replication)
	if receiver == nil {
		return nil
	}
	var target engine.TargetConfig
	peer.config(receiver, &target)
	if target.Epoch > config.Epoch {
		return &ending{exitRefused, &engine.Report{Point: config.Point, Error: "the source's epoch is stale", Kind: engine.KindStaleEpoch}}
	}
	if len(target.Volumes) != len(config.Volumes) {
		return &ending{exitRefused, &engine.Report{Point: config.Point, Error: "the groups differ", Kind: engine.KindConflict}}
	}
	// A tree is as large as what is in it.
	if strings.HasPrefix(config.Volumes[0].Device, "/dev/") && s.sizesDiffer(config, target) {
		s.unequal = append(s.unequal, config.Point)
		return &ending{exitRefused, &engine.Report{Point: config.Point, Error: "the sizes differ", Kind: engine.KindConflict}}
	}
	tier := "digest"
	if target.ReplicaHolds == engine.HoldsNothing && peer.spooled(receiver) == nil {
		tier = "full"
	}
	raw, err := json.Marshal(movers.Point{ID: config.Point, Time: config.PointTime, Epoch: config.Epoch, Cut: config.Cut})
	if err != nil {
		s.w.t.Fatal(err)
	}
	spool := peer.spool(receiver)
	before := spool.DeepCopy()
	spool.Annotations["test/committed"] = string(raw)
	s.must(peer.kube.Patch(s.w.t.Context(), spool, client.MergeFrom(before)))
	return &ending{0, &engine.Report{Point: config.Point, Done: true, Tier: tier, TierReason: "as it was", Attempts: 1, BytesRead: 1 << 30, BytesChanged: 4096, BytesSent: 2048}}
}

// sizesDiffer compares a session's devices with those of the receiver. Both list the group in one order.
func (s *side) sizesDiffer(config engine.SourceConfig, target engine.TargetConfig) bool {
	_, name, _ := strings.Cut(config.Replication, "/")
	for i := range config.Volumes {
		var clone corev1.PersistentVolumeClaim
		s.must(s.kube.Get(s.w.t.Context(), s.key(snapshot.MemberName(name, config.Point, i)), &clone))
		if size := clone.Status.Capacity[corev1.ResourceStorage]; size.Value() != target.Volumes[i].Size {
			return true
		}
	}
	return false
}

// receiver is the pod that a session of that Replication reaches now.
func (s *side) receiver(replication string) *corev1.Pod {
	_, name, _ := strings.Cut(replication, "/")
	var services corev1.ServiceList
	s.must(s.kube.List(s.w.t.Context(), &services, client.InNamespace(s.w.namespace),
		client.MatchingLabels{v1alpha1.LabelComponent: v1alpha1.ComponentReceiver, v1alpha1.LabelReplication: name}))
	if len(services.Items) == 0 {
		return nil
	}
	var pods corev1.PodList
	s.must(s.kube.List(s.w.t.Context(), &pods, client.InNamespace(s.w.namespace), client.MatchingLabels(services.Items[0].Spec.Selector)))
	for i := range pods.Items {
		if pods.Items[i].Status.Phase == corev1.PodRunning && pods.Items[i].DeletionTimestamp.IsZero() {
			return &pods.Items[i]
		}
	}
	return nil
}

// playRollback does what the mover of a rollback does.
func (s *side) playRollback(pod *corev1.Pod) {
	var config engine.RollbackConfig
	s.config(pod, &config)
	if err := config.Validate(); err != nil {
		s.w.t.Fatalf("%s: rollback: %v", s.name, err)
	}
	s.rolledBack = append(s.rolledBack, config.Point)
	report := engine.Report{Point: config.Point, Done: true}
	pod.Status.Phase = corev1.PodSucceeded
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: 0, Message: string(report.Encode()), Reason: "Ended"}}}}
	s.must(s.kube.Status().Update(s.w.t.Context(), pod))
}
