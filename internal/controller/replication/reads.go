package replication

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// Watched reads what is watched of the cluster, which was true a moment ago.
type Watched interface {
	client.Reader
	// Watches reports that news of a kind come.
	Watches(client.Object) bool
}

// look reads and decides. The Replication itself was always read from the API server just before: so what this manager saved last is in
// it, a session is never started twice, and role and epoch are those in force.
//
// A source whose role is in force looks at the rest as it is watched, because it looks often and mostly finds nothing to do. What may
// be taken back, or made again, is done by that (see suffices); for everything else it looks again, at the API server.
func (r *Reconciler) look(ctx context.Context, rep *v1alpha1.Replication) (*sight, []cycle.Decision, error) {
	if r.Watched != nil && settled(rep) {
		read := rep.DeepCopy()
		s, next, err := r.lookAt(ctx, r.Watched, rep)
		if err == nil && suffices(s, next) {
			for _, v := range s.links {
				v.watched = true
			}
			return s, next, nil
		}
		read.DeepCopyInto(rep)
	}
	return r.lookAt(ctx, r.Live, rep)
}

func (r *Reconciler) lookAt(ctx context.Context, from client.Reader, rep *v1alpha1.Replication) (*sight, []cycle.Decision, error) {
	s, err := r.observe(ctx, from, rep)
	if err != nil {
		return nil, nil, err
	}
	next, err := r.decide(ctx, s)
	return s, next, err
}

// settled reports a source in force that has seen its present spec: it takes no role, fences nobody and removes nothing but what sessions made.
func settled(rep *v1alpha1.Replication) bool {
	stand := cycle.Stand{Role: rep.Status.Role, Epoch: rep.Status.Epoch}
	return rep.Spec.Role == v1alpha1.RoleSource && stand == standOf(rep) && rep.Status.ObservedGeneration == rep.Generation
}

// suffices reports that what is watched is enough to go by. Each of these steps stays right however late the news were:
//
//   - Wait, Rest, FollowMover change nothing. The news wakes the Replication when it comes.
//   - StartSession depends on the status and on the peer, both read just now. A member that joined a moment ago comes with the next session.
//   - TakeSnapshots, MakeClones and StartMover make what bears the session's name, or find it made.
//   - RecordCut and CommitSession go by what was seen of objects of this session: once true it stays true.
//   - Tidy removes what bears the name of a point that is neither the session's nor the base, by the status that was read just now. No
//     point ever comes back.
//
// Whatever gives up a session or touches the peer waits for a look at the API server: news that are late look like something lost.
// So does what is about group snapshots: there several kinds of objects have to agree.
func suffices(s *sight, next []cycle.Decision) bool {
	if len(s.gone) > 0 {
		return false
	}
	for i, d := range next {
		switch d.Step {
		case cycle.Wait, cycle.Rest, cycle.FollowMover:
			continue
		case cycle.StartSession, cycle.TakeSnapshots, cycle.RecordCut, cycle.MakeClones, cycle.StartMover, cycle.CommitSession, cycle.Tidy:
			if grouped(s.links[i]) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// grouped reports that the storage cuts the members together, or did.
func grouped(v *view) bool {
	if v.status.Session != nil && v.status.Session.Cut == v1alpha1.CutAtomic || v.way.Cut == v1alpha1.CutAtomic {
		return true
	}
	for _, s := range v.snapshots {
		if s.Group != "" {
			return true
		}
	}
	return false
}

// trustedFor is how long a peer's CA is taken for what it was. Whoever is about to give it to a mover reads it.
const trustedFor = time.Minute

// trusted is a peer's CA as it was read.
type trusted struct {
	pair  string // what it was read for. Pairing changes an annotation of the pair when it changes the Secret.
	pem   []byte
	until time.Time
}

// peerCA reads the CA that a pair trusts, or remembers it.
func (r *Reconciler) peerCA(ctx context.Context, pair *v1alpha1.ClusterPair, remembered bool) ([]byte, error) {
	version := fmt.Sprint(pair.UID, pair.Generation, pair.Annotations)
	now := r.Now()
	r.mu.Lock()
	known := r.trusted[pair.Name]
	r.mu.Unlock()
	if remembered && known.pair == version && now.Before(known.until) {
		return known.pem, nil
	}
	pem, err := r.Trust.CAPEM(ctx, pair)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trusted == nil {
		r.trusted = map[string]trusted{}
	}
	r.trusted[pair.Name] = trusted{version, pem, now.Add(trustedFor)}
	return pem, nil
}

// complete reads from the API server what a mover is told, where the look read what is watched: whom it trusts, and the snapshots
// that lists of changes lead from. A base that is gone pins no blocks any more, so a list that leads from it would lie.
func (r *Reconciler) complete(ctx context.Context, v *view) error {
	if !v.watched {
		return nil
	}
	var err error
	if v.peerCA, err = r.peerCA(ctx, v.pair, false); err != nil {
		return err
	}
	all, err := snapshot.List(ctx, r.Live, v.key())
	if err != nil {
		return err
	}
	v.takeSnapshots(all)
	return nil
}
