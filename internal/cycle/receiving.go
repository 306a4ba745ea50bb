package cycle

import "lifeboat.dev/lifeboat/api/v1alpha1"

// Giver is one link of a target, and what its peer says.
type Giver struct {
	Rlink string
	Peer  Peer
}

// Receipt is the link a target receives its replica through, and the epoch in which its peer was seen as the source. The zero
// value means that none was chosen yet.
type Receipt struct {
	Rlink string
	Epoch int64
}

// Receiving says which link a target receives its replica through: the one whose peer is the source in force with the newest epoch.
// Former is what was chosen before, and inForce this side's epoch.
//
// Nothing is chosen anew for want of an answer, nor for a peer of an older epoch than this side knows, which is a source that was left
// behind. Another source of the same epoch takes over only from a peer that says that it is none any more; otherwise data of
// two sources might mix. With one link there is nothing to choose.
func Receiving(links []Giver, former Receipt, inForce int64) Receipt {
	best, rivals, current := Receipt{}, 0, -1
	for i, link := range links {
		if link.Rlink == former.Rlink {
			current = i
		}
		switch p := link.Peer; {
		case !gives(p) || p.InForce.Epoch < inForce:
		case p.InForce.Epoch > best.Epoch:
			best, rivals = Receipt{link.Rlink, p.InForce.Epoch}, 1
		case p.InForce.Epoch == best.Epoch:
			rivals++
		}
	}
	if current < 0 || len(links) == 1 {
		if rivals == 1 {
			return best
		}
		return Receipt{Rlink: links[0].Rlink}
	}
	p := links[current].Peer
	over := p.Asked && !gives(p)
	switch {
	case rivals != 1, best.Epoch < former.Epoch:
		return former
	case best.Rlink == former.Rlink, best.Epoch > former.Epoch, over:
		return best
	}
	return former
}

// gives reports that a peer says that it is the source.
func gives(p Peer) bool {
	return p.Asked && p.Found && p.InForce.Role == v1alpha1.RoleSource && p.Stand.Role == v1alpha1.RoleSource
}
