package applicationsnapshot

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta"
)

func (r *Reconciler) showCompleted(snapshot *v1alpha1.ApplicationSnapshot, begun time.Time, kept appmeta.Kept, warnings []string) {
	at := metav1.NewTime(begun)
	snapshot.Status.Phase = v1alpha1.SnapshotCompleted
	snapshot.Status.Message = strings.Join(warnings, "; ")
	snapshot.Status.SourceCluster = r.Cluster
	snapshot.Status.CapturedAt = &at
	snapshot.Status.Objects = int32(kept.Objects)
	snapshot.Status.Digest = kept.Digest
	snapshot.Status.SizeBytes = kept.Size
	snapshot.Status.Location = r.Locate(kept.Name)
	snapshot.Status.ObservedGeneration = snapshot.Generation
}

func showFailed(snapshot *v1alpha1.ApplicationSnapshot, err error) {
	snapshot.Status.Phase = v1alpha1.SnapshotFailed
	snapshot.Status.Message = err.Error()
	snapshot.Status.ObservedGeneration = snapshot.Generation
}

func showWaiting(snapshot *v1alpha1.ApplicationSnapshot, err error) {
	snapshot.Status.Phase = v1alpha1.SnapshotCapturing
	snapshot.Status.Message = fmt.Sprintf("tries again: %v", err)
	snapshot.Status.ObservedGeneration = snapshot.Generation
}

func showPushed(snapshot *v1alpha1.ApplicationSnapshot, peer string, err error) {
	sync := v1alpha1.PeerSync{Cluster: peer, Synced: err == nil}
	if err != nil {
		sync.Message = err.Error()
	}
	i := slices.IndexFunc(snapshot.Status.Peers, func(p v1alpha1.PeerSync) bool { return p.Cluster == peer })
	if i < 0 {
		snapshot.Status.Peers = append(snapshot.Status.Peers, sync)
		return
	}
	snapshot.Status.Peers[i] = sync
}
