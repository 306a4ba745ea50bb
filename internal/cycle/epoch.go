package cycle

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// NextEpoch is the epoch that a cluster takes to become the source: the smallest above all that are known which only this
// cluster takes. Two clusters that are cut off from each other and both told to take over must not end up in one epoch, or neither
// would be refused as stale afterwards; so each counts in its own residue class among the clusters of the Replication, by name.
func NextEpoch(known int64, self string, peers []string) int64 {
	all := append([]string{self}, peers...)
	slices.Sort(all)
	all = slices.Compact(all)
	n, mine := int64(len(all)), int64(slices.Index(all, self))
	return known + 1 + ((mine-known-1)%n+n)%n
}

// entitled reports that this side has an epoch in which no other cluster is or was the source, and that somebody made sure of it: itself,
// or a plan.
func entitled(s Source, links []Source) bool { return s.Own && greatest(s, links) }

// greatest reports that the wanted epoch is greater than this side's in force and than the one a source brought, and that no peer which
// answers knows a greater one.
func greatest(s Source, links []Source) bool {
	return s.Wanted.Epoch > max(s.InForce.Epoch, s.Brought) && known(links) <= s.Wanted.Epoch
}

func known(links []Source) int64 {
	newest := int64(0)
	for _, link := range links {
		if p := link.Peer; p.Asked && p.Found {
			newest = max(newest, p.Stand.Epoch, p.InForce.Epoch)
		}
	}
	return newest
}

// claim takes an epoch for a side that has none of its own.
//
// Order is safety. Every peer is asked, since each might be the source. One that answers must be a target and wanted as such: as two that
// shall both become the source can each see the other's wish before either takes an epoch, at most one goes on. One that does
// not answer is unknown, not gone: without it this is a takeover, for which a person must say what may be lost.
func claim(s Source, links []Source) Decision {
	names, newest := make([]string, len(links)), max(s.Wanted.Epoch, s.InForce.Epoch, s.Brought, known(links))
	var lost []string
	for i, link := range links {
		d, released := release(s, link.Peer)
		if !released {
			return d
		}
		names[i] = link.Peer.Name
		if !link.Peer.Asked {
			lost = append(lost, link.Peer.Name)
		}
	}
	epoch := NextEpoch(newest, s.Cluster, names)
	// One that was set by hand is taken as it is where all have answered. Where one has not, it may have been told the same.
	if len(lost) == 0 && greatest(s, links) {
		epoch = s.Wanted.Epoch
	}
	message := fmt.Sprintf("this side takes epoch %d to become the source", epoch)
	if len(lost) > 0 {
		message += fmt.Sprintf(", without %s: what was written there after point %s is lost", strings.Join(lost, ", "), s.Recovery.Point)
	}
	return Decision{Step: TakeEpoch, Phase: Promoting, Reason: ReasonEpochTaken, Message: message, Epoch: epoch, Lost: lost}
}

// release tells whether a peer is no source and will not become one meanwhile, or else what it waits for.
func release(s Source, p Peer) (Decision, bool) {
	switch {
	case p.Asked && (!p.Found || p.Stand.Role == v1alpha1.RoleTarget && p.InForce.Role != v1alpha1.RoleSource):
		return Decision{}, true
	case p.Asked && p.Stand.Role == v1alpha1.RoleTarget:
		return wait(Promoting, ReasonPeerIsSource, leaving(p), Quick), false
	case p.Asked:
		return wait(Waiting, ReasonPeerIsSource, wrongOrder(s, p), Steady), false
	case p.Refuses:
		return wait(Waiting, ReasonPeerRefuses, fmt.Sprintf("cluster %s does not tell whether it is the source: %s", p.Name, p.Trouble), Patient), false
	case p.Link == v1alpha1.LinkRefused:
		return wait(Waiting, ReasonLinkRefused, fmt.Sprintf("cluster %s may be the source still, and answers but trust, name or version do not fit: %s", p.Name, p.Trouble), Patient), false
	case p.Link != v1alpha1.LinkLost:
		return wait(Waiting, ReasonLinkUnknown, fmt.Sprintf("cluster %s may be the source still and did not answer yet: %s", p.Name, p.Trouble), Steady), false
	case s.Recovery.Point == "":
		return nothingToPromote(), false
	case s.Acknowledged != s.Recovery.Point:
		return wait(Waiting, ReasonLinkLost, unacknowledged(s, p), Steady), false
	}
	return Decision{}, true
}

func nothingToPromote() Decision {
	return wait(Failed, ReasonNothingToPromote, "the volumes hold no recovery point, so there is nothing to promote; set spec.role back to target, or delete this Replication to use the claims as they are", Patient)
}

func leaving(p Peer) string {
	return fmt.Sprintf("waiting for cluster %s to leave its role as source: %s", p.Name, p.WaitingFor)
}

func wrongOrder(s Source, p Peer) string {
	do := fmt.Sprintf("kubectl -n %s patch replication %s --type=merge -p '{\"spec\":{\"role\":\"target\"}}'", s.Namespace, s.Name)
	if p.InForce.Role != v1alpha1.RoleSource {
		return fmt.Sprintf("cluster %s shall become the source too: on the one that shall not, first run %s", p.Name, do)
	}
	return fmt.Sprintf("cluster %s is the source still: stop the application there and set spec.role to target first, on cluster %s: %s", p.Name, p.Name, do)
}

func unacknowledged(s Source, p Peer) string {
	said := ""
	if s.Acknowledged != "" {
		said = fmt.Sprintf("; spec.acknowledgePeerLost is %q, which is not the newest point here", s.Acknowledged)
	}
	return fmt.Sprintf("cluster %s does not answer (%s), and may be the source still. To take over without it, and lose what was written there after point %s (cut at %s), set spec.acknowledgePeerLost to %q%s",
		p.Name, p.Trouble, s.Recovery.Point, s.Recovery.Time.UTC().Format(time.RFC3339), s.Recovery.Point, said)
}

// firstRole looks before a Replication that is new here becomes a source. Nothing was ever received here, so the claims are the
// application's and a peer that does not answer holds nothing up; but one that answers that it is the source does, and one that knows a
// later epoch asks for a newer one.
func firstRole(s Source, links []Source) (Decision, bool) {
	all := true
	for _, link := range links {
		p := link.Peer
		all = all && p.Asked
		if p.Asked && p.Found && (p.Stand.Role == v1alpha1.RoleSource || p.InForce.Role == v1alpha1.RoleSource) {
			return wait(Waiting, ReasonPeerIsSource, wrongOrder(s, p), Steady), false
		}
	}
	if all && known(links) > s.Wanted.Epoch {
		return claim(s, links), false
	}
	return Decision{}, true
}
