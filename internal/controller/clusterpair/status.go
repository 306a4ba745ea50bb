package clusterpair

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
)

// report writes what the heartbeats say into the pair's status. What is known of a peer stays when it falls silent.
func report(pair *v1alpha1.ClusterPair, s heartbeat.State) {
	status := &pair.Status
	status.ObservedGeneration = pair.Generation
	status.LinkState = s.Link
	status.MissedHeartbeats = s.Missed
	if !s.LastHeartbeat.IsZero() {
		last := metav1.NewTime(s.LastHeartbeat)
		status.LastHeartbeat = &last
		status.RoundTripMicroseconds = s.RoundTrip.Microseconds()
		status.PeerVersion = s.Version
		status.PeerProtocol = s.Protocol
	}
	condition.Set(&status.Conditions, pair.Generation, v1alpha1.ConditionConnected, connected(s.Link), s.Reason, s.Message)
}

// connected is Unknown as long as the link is: nobody may read False as "the peer is gone".
func connected(state v1alpha1.LinkState) metav1.ConditionStatus {
	switch state {
	case v1alpha1.LinkConnected:
		return metav1.ConditionTrue
	case v1alpha1.LinkLost, v1alpha1.LinkRefused:
		return metav1.ConditionFalse
	default:
		return metav1.ConditionUnknown
	}
}
