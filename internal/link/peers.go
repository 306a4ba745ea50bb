// Package link keeps a manager's connections to its peers: one client per ClusterPair, a heartbeat on each, and what the
// heartbeats say. Controllers ask Peers for a client or for the state of a link; they never dial.
//
// It decides nothing: package heartbeat judges links, package control carries calls, package trust knows whom to
// believe. Begin with AddToManager, then Peers.
package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/heartbeat"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// NotPairedError: nothing is known of this peer here, because no ClusterPair was ready to be used.
type NotPairedError struct {
	// Name is the pair or the peer that was asked for.
	Name string
	// Reason tells what is wrong with the pair; empty when there is none.
	Reason string
}

func (e *NotPairedError) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("ClusterPair %s cannot be used: %s", e.Name, e.Reason)
	}
	return fmt.Sprintf("no ClusterPair is named %s or has it as spec.peerCluster: pair the clusters with lifeboat pair", e.Name)
}

// Endpoint is all that a connection to a peer depends on. When it changes, the connection is made anew.
type Endpoint struct {
	PeerCluster string
	Address     string
	// CAPEM is the peer's CA certificate.
	CAPEM string
}

// PeersOptions say who this side is.
type PeersOptions struct {
	Cluster, Version string
	// Own is this side's manager certificate.
	Own identity.Source
	// Now is the clock of certificates and heartbeats.
	Now func() time.Time
	// Ticks gives the beat: a channel that fires every heartbeat.Interval until stop is called. A ticker when nil.
	Ticks func() (ticks <-chan time.Time, stop func())
	Log   logr.Logger
}

// Peers are the links of this manager, by the name of their ClusterPair. Set makes one, Remove ends it, and both may be called
// as often as a reconcile likes. Safe for concurrent use.
type Peers struct {
	PeersOptions
	changes chan event.GenericEvent

	mu    sync.Mutex
	run   context.Context // of Start; nil before
	beats sync.WaitGroup
	links map[string]*link
}

// link is one pair. Its fields are guarded by Peers.mu; state belongs to the connection: a new one begins unknown.
type link struct {
	endpoint  Endpoint
	tolerance int32
	client    *control.Client
	state     heartbeat.State
	broken    string
	stop      context.CancelFunc // nil until the heartbeat runs
}

// NewPeers makes Peers without links.
func NewPeers(o PeersOptions) *Peers {
	if o.Ticks == nil {
		o.Ticks = func() (<-chan time.Time, func()) {
			t := time.NewTicker(heartbeat.Interval)
			return t.C, t.Stop
		}
	}
	return &Peers{PeersOptions: o, links: map[string]*link{}, changes: make(chan event.GenericEvent, 64)}
}

// Changes tells of ClusterPairs whose link changed its state, for a source.Channel.
func (p *Peers) Changes() <-chan event.GenericEvent { return p.changes }

// NeedLeaderElection is true: only the manager that acts keeps links.
func (p *Peers) NeedLeaderElection() bool { return true }

// Start sends heartbeats until ctx is done, then ends all connections.
func (p *Peers) Start(ctx context.Context) error {
	p.mu.Lock()
	p.run = ctx
	for name, l := range p.links {
		p.beatLocked(name, l)
	}
	p.mu.Unlock()
	<-ctx.Done()
	p.beats.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for name, l := range p.links {
		if l.client != nil {
			errs = append(errs, l.client.Close())
		}
		delete(p.links, name)
	}
	return errors.Join(errs...)
}

// Set makes the link of a pair, or makes it anew when its endpoint changed; otherwise only the tolerance follows.
func (p *Peers) Set(pair string, endpoint Endpoint, tolerance int32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.links[pair]; l != nil && l.endpoint == endpoint && l.broken == "" {
		l.tolerance = tolerance
		return nil
	}
	p.removeLocked(pair)
	roots, err := identity.Roots([]byte(endpoint.CAPEM))
	if err != nil {
		return fmt.Errorf("trust of ClusterPair %s: %w", pair, err)
	}
	client, err := control.NewClient(control.ClientOptions{
		Cluster: p.Cluster, Version: p.Version, Own: p.Own, Now: p.Now,
		PeerCluster: endpoint.PeerCluster, Address: endpoint.Address, Roots: roots,
	})
	if err != nil {
		return err
	}
	l := &link{endpoint: endpoint, tolerance: tolerance, client: client, state: heartbeat.Initial()}
	p.links[pair] = l
	p.beatLocked(pair, l)
	return nil
}

// SetBroken ends the link of a pair that cannot be used, and keeps the reason for those who ask for it.
func (p *Peers) SetBroken(pair, peerCluster, reason, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(pair)
	state := heartbeat.Initial()
	state.Link, state.Reason, state.Message = v1alpha1.LinkRefused, reason, message
	p.links[pair] = &link{endpoint: Endpoint{PeerCluster: peerCluster}, broken: message, state: state}
}

// Remove ends the link of a pair that is gone.
func (p *Peers) Remove(pair string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(pair)
}

func (p *Peers) removeLocked(pair string) {
	l := p.links[pair]
	if l == nil {
		return
	}
	delete(p.links, pair)
	if l.stop != nil {
		l.stop()
	}
	if l.client != nil {
		// Closing only reports that it was closed before.
		_ = l.client.Close()
	}
}

// Client returns the client for a ClusterPair, by its name, or for a peer, by its cluster name. It does not tell whether the
// peer answers: the calls do. *NotPairedError when there is no usable pair.
func (p *Peers) Client(name string) (control.Peer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, l := p.findLocked(name)
	switch {
	case l == nil:
		return nil, &NotPairedError{Name: name}
	case l.broken != "":
		return nil, &NotPairedError{Name: name, Reason: l.broken}
	}
	return l.client, nil
}

// State returns what the heartbeats say of a ClusterPair, by its name, or of a peer, by its cluster name. Without a
// link it is Unknown.
func (p *Peers) State(name string) heartbeat.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, l := p.findLocked(name); l != nil {
		return l.state
	}
	return heartbeat.Initial()
}

// PeerCluster returns the peer's name for a ClusterPair or a peer; false without a link.
func (p *Peers) PeerCluster(name string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, l := p.findLocked(name); l != nil {
		return l.endpoint.PeerCluster, true
	}
	return "", false
}

// findLocked looks by pair first, then by peer, in the order of the pairs' names so that the answer does not change.
func (p *Peers) findLocked(name string) (string, *link) {
	if l := p.links[name]; l != nil {
		return name, l
	}
	var pairs []string
	for pair, l := range p.links {
		if l.endpoint.PeerCluster == name {
			pairs = append(pairs, pair)
		}
	}
	if len(pairs) == 0 {
		return "", nil
	}
	first := slices.Min(pairs)
	return first, p.links[first]
}

// beatLocked starts the heartbeat of a link once Start runs.
func (p *Peers) beatLocked(pair string, l *link) {
	if p.run == nil || p.run.Err() != nil || l.client == nil || l.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(p.run)
	l.stop = stop
	p.beats.Go(func() {
		ticks, stopTicks := p.Ticks()
		defer stopTicks()
		for {
			p.beat(ctx, pair, l)
			select {
			case <-ctx.Done():
				return
			case <-ticks:
			}
		}
	})
}

// beat sends one heartbeat and notes what became of it.
func (p *Peers) beat(ctx context.Context, pair string, l *link) {
	call, cancel := context.WithTimeout(ctx, heartbeat.Timeout)
	defer cancel()
	began := p.Now()
	greeting, err := l.client.Hello(call)
	if ctx.Err() != nil {
		return
	}
	p.note(pair, l, outcome(greeting, err, began, p.Now()))
}

func (p *Peers) note(pair string, l *link, b heartbeat.Beat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.links[pair] != l {
		return // the endpoint changed while the beat was under way
	}
	before := l.state
	l.state = heartbeat.Next(before, b, l.tolerance)
	if l.state.Link == before.Link && l.state.Reason == before.Reason {
		return
	}
	p.Log.Info("link changed", "clusterPair", pair, "peer", l.endpoint.PeerCluster, "link", l.state.Link, "message", l.state.Message)
	select {
	case p.changes <- event.GenericEvent{Object: &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: pair}}}:
	default: // nobody reads yet: the controller also looks by itself
	}
}

// outcome says what a call to Hello means for the link. A peer that answers with a failure of its own is missed: it
// is of no more use than a silent one.
func outcome(g control.Greeting, err error, began, ended time.Time) heartbeat.Beat {
	b := heartbeat.Beat{At: ended, RoundTrip: ended.Sub(began), Version: g.Version, Protocol: g.Protocol}
	var refused *control.Refused
	switch {
	case errors.As(err, &refused):
		b.Refused, b.Message = refused.Reason, refused.Error()
	case err != nil:
		b.Missed, b.Message = true, err.Error()
	default:
		b.Skew = g.Clock.Sub(began.Add(b.RoundTrip / 2))
	}
	return b
}
