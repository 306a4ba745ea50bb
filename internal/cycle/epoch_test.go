package cycle

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

func TestEpochsOfTwoClustersNeverMeet(t *testing.T) {
	names := []string{"a", "b", "c"}
	for known := range int64(20) {
		seen := map[int64]string{}
		for _, self := range names {
			e := NextEpoch(known, self, names)
			if e <= known || e > known+3 || seen[e] != "" {
				t.Errorf("after %d cluster %s takes %d, as %q does", known, self, e, seen[e])
			}
			seen[e] = self
			for other := range int64(20) {
				for _, o := range names {
					if o != self && NextEpoch(other, o, names) == e {
						t.Fatalf("%s after %d and %s after %d take one epoch %d", self, known, o, other, e)
					}
				}
			}
		}
	}
	if e := NextEpoch(1, "west", []string{"east"}); e != 3 {
		t.Errorf("west takes %d after 1", e)
	}
}

// The model: three clusters, each paired with both others, whose operators set roles in any order, acknowledge losses, cut and mend links,
// while each manager asks one peer after the other and acts on what it heard, unless its own object was changed meanwhile. Spec and
// status are all that a cluster remembers.

const sites = 3

type site struct {
	role         v1alpha1.Role
	spec         int64 // spec.epoch
	brought      int64 // by a source
	acknowledged bool
	inForce      Stand
	taken        int64 // an epoch of its own, gone with any edit of the spec
	changed      bool  // since it began to ask
}

// written is the object after a write: what is under way was decided on what was before.
func (s *site) written() { s.changed = true }

func (s *site) edited() {
	s.taken = 0
	s.written()
}

func (s site) stand() Stand {
	out := Stand{s.role, max(s.spec, s.inForce.Epoch, 1)}
	if s.role == v1alpha1.RoleSource {
		out.Epoch = max(out.Epoch, s.taken)
	}
	return out
}

// heard is what one cluster heard of another, and whether it asked at all.
type heard struct {
	asked, answered bool
	stand, inForce  Stand
}

type model struct {
	at     [sites]site
	heard  [sites][sites]heard
	cut    [sites][sites]bool
	owner  [24]int8 // who was the source of an epoch, plus one
	budget int
	acked  bool
}

func start() model {
	m := model{}
	for i := range m.at {
		m.at[i] = site{role: v1alpha1.RoleTarget, spec: 1, inForce: Stand{v1alpha1.RoleTarget, 1}}
	}
	m.at[0].role, m.at[0].inForce = v1alpha1.RoleSource, Stand{v1alpha1.RoleSource, 1}
	m.owner[1] = 1
	return m
}

func siteName(i int) string { return string(rune('a' + i)) }

// decide is what cluster i does after it has asked all peers.
func (m *model) decide(i int) Decision {
	s := m.at[i]
	if s.role == v1alpha1.RoleTarget {
		return NextTarget(Target{Wanted: s.stand(), InForce: s.inForce})
	}
	var links []Source
	for j := range m.at {
		if j == i {
			continue
		}
		h := m.heard[i][j]
		p := Peer{Name: siteName(j), Link: v1alpha1.LinkLost, Asked: h.answered, Found: h.answered, Stand: h.stand, InForce: h.inForce}
		source := Source{Cluster: siteName(i), Wanted: s.stand(), InForce: s.inForce, Suspended: true, Brought: s.brought, Own: s.taken > 0, Recovery: Recovery{Point: "p"}, Peer: p}
		if s.acknowledged {
			source.Acknowledged = "p"
		}
		links = append(links, source)
	}
	return NextSources(links)[0]
}

// act saves what was decided, if nobody wrote the object meanwhile. It returns the broken rule, or nothing.
func (m *model) act(i int) string {
	d, s := m.decide(i), &m.at[i]
	changed := s.changed
	m.heard[i], s.changed = [sites]heard{}, false
	if changed {
		return ""
	}
	switch d.Step {
	case TakeEpoch:
		s.taken = d.Epoch
	case TakeRole:
		s.inForce, s.taken = s.stand(), 0
	}
	if s.inForce.Role != v1alpha1.RoleSource {
		return ""
	}
	if owner := m.owner[s.inForce.Epoch]; owner != 0 && owner != int8(i+1) {
		return fmt.Sprintf("clusters %s and %s are sources of epoch %d", siteName(int(owner-1)), siteName(i), s.inForce.Epoch)
	}
	m.owner[s.inForce.Epoch] = int8(i + 1)
	for j, other := range m.at {
		if j != i && other.inForce.Role == v1alpha1.RoleSource && !m.acked {
			return fmt.Sprintf("clusters %s and %s are sources, and nobody acknowledged a loss", siteName(i), siteName(j))
		}
	}
	return ""
}

// next are all states that follow, each with what happened.
func (m model) next(visit func(what string, n model, broken string)) {
	for i := range m.at {
		s := m.at[i]
		asked := true
		for j := range m.at {
			if j == i || m.heard[i][j].asked {
				continue
			}
			asked = false
			n := m
			if m.heard[i] == [sites]heard{} {
				n.at[i].changed = false
			}
			n.heard[i][j] = heard{asked: true}
			if !m.cut[i][j] {
				n.heard[i][j] = heard{true, true, m.at[j].stand(), m.at[j].inForce}
			}
			visit(siteName(i)+" asks "+siteName(j), n, "")
			break // in one order: who is asked first makes no difference to who changes in between
		}
		if asked || s.role == v1alpha1.RoleTarget && s.inForce != s.stand() {
			n := m
			if s.role == v1alpha1.RoleTarget {
				n.at[i].changed = false // a target asks nobody
			}
			d := n.decide(i)
			broken := n.act(i)
			visit(fmt.Sprint(siteName(i), " acts: ", d.Step), n, broken)
		}
		// A source lets its targets' epochs follow.
		for j := range m.at {
			if j != i && s.inForce.Role == v1alpha1.RoleSource && s.inForce == s.stand() && !m.cut[i][j] && m.at[j].role == v1alpha1.RoleTarget && m.at[j].stand().Epoch < s.inForce.Epoch {
				n := m
				n.at[j].spec, n.at[j].brought = s.inForce.Epoch, s.inForce.Epoch
				n.at[j].edited()
				visit(siteName(i)+" prepares "+siteName(j), n, "")
			}
		}
		if m.budget == 0 {
			continue
		}
		n := m
		n.budget--
		n.at[i].role = map[v1alpha1.Role]v1alpha1.Role{v1alpha1.RoleSource: v1alpha1.RoleTarget, v1alpha1.RoleTarget: v1alpha1.RoleSource}[s.role]
		n.at[i].edited()
		visit(siteName(i)+" is set to "+string(n.at[i].role), n, "")
		// One who counts epochs by hand knows of all of them, whatever links are cut.
		if s.role == v1alpha1.RoleTarget {
			n.at[i].spec = 1
			for _, other := range m.at {
				n.at[i].spec = max(n.at[i].spec, other.stand().Epoch+1)
			}
			visit(fmt.Sprint(siteName(i), " is set to source in epoch ", n.at[i].spec), n, "")
		}
		if !s.acknowledged {
			n := m
			n.budget--
			n.acked, n.at[i].acknowledged = true, true
			n.at[i].edited()
			visit(siteName(i)+" acknowledges a loss", n, "")
		}
		for j := i + 1; j < sites; j++ {
			n := m
			n.budget--
			n.cut[i][j], n.cut[j][i] = !m.cut[i][j], !m.cut[i][j]
			visit("the link "+siteName(i)+siteName(j)+" changes", n, "")
		}
	}
}

// explore visits every state that budget edits lead to, in whatever order they and the managers' reads and writes come.
func explore(t *testing.T, first model) (states, promotions int) {
	type step struct {
		from model
		what string
	}
	came := map[model]step{first: {}}
	queue := []model{first}
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		m.next(func(what string, n model, broken string) {
			if _, known := came[n]; known {
				return
			}
			came[n] = step{m, what}
			if strings.Contains(what, "acts: TakeRole") {
				promotions++
			}
			if broken != "" {
				var trace []string
				for at := n; at != first; at = came[at].from {
					trace = append(trace, came[at].what)
				}
				slices.Reverse(trace)
				t.Fatalf("%s:\n%s", broken, strings.Join(trace, "\n"))
			}
			queue = append(queue, n)
		})
	}
	return len(came), promotions
}

// M-084, M-125: with several peers no two clusters are ever the source of one epoch, whatever is edited in whatever order; and without an
// acknowledged loss no two are sources at all.
func TestNeverTwoSourcesOfOneEpoch(t *testing.T) {
	whole := start()
	whole.budget = 3
	// Nobody hears anybody, nobody is the source, and every loss was acknowledged.
	split := start()
	split.budget, split.acked = 3, true
	split.at[0].role, split.at[0].inForce = v1alpha1.RoleTarget, Stand{v1alpha1.RoleTarget, 1}
	for i := range sites {
		split.at[i].acknowledged = true
		for j := range sites {
			split.cut[i][j] = i != j
		}
	}
	if testing.Short() {
		whole.budget, split.budget = 2, 2
	}
	for name, first := range map[string]model{"whole": whole, "split": split} {
		states, promotions := explore(t, first)
		t.Logf("%s: %d states, %d promotions and demotions", name, states, promotions)
		if promotions < 10 {
			t.Errorf("%s: only %d: the model does nothing", name, promotions)
		}
	}
}

// M-125: what each peer says or does not say decides whether a side goes on that was handed no epoch by a plan, and what it is told. An epoch
// that somebody wrote into the spec changes nothing of it.
func TestWhoMayTakeAnEpoch(t *testing.T) {
	silent := func(link v1alpha1.LinkState) Peer { return Peer{Name: "north", Link: link, Trouble: "timeout"} }
	north := func(stand, inForce Stand) Peer {
		return Peer{Name: "north", Link: v1alpha1.LinkConnected, Asked: true, Found: true, Stand: stand, InForce: inForce, WaitingFor: "pods use the volumes"}
	}
	source, target := stand(v1alpha1.RoleSource, 2), stand(v1alpha1.RoleTarget, 2)
	for _, c := range []struct {
		name  string
		north Peer
		ack   string
		want  expectation
		epoch int64
		given int64 // where epoch 4 was set by hand
	}{
		{"all are targets", north(target, target), "", expectation{TakeEpoch, ReasonEpochTaken, false, "", "takes epoch"}, 5, 4},
		{"one was never set up", Peer{Name: "north", Asked: true}, "", expectation{TakeEpoch, ReasonEpochTaken, false, "", ""}, 5, 4},
		{"one knows a later epoch", north(stand(v1alpha1.RoleTarget, 6), target), "", expectation{TakeEpoch, ReasonEpochTaken, false, "", "epoch 8"}, 8, 8},
		{"one is the source: the wrong order", north(source, source), "", expectation{Wait, ReasonPeerIsSource, false, "", `kubectl -n shop patch replication db --type=merge -p '{"spec":{"role":"target"}}'`}, 0, 0},
		{"one shall become the source too", north(source, target), "", expectation{Wait, ReasonPeerIsSource, false, "", "shall become the source too"}, 0, 0},
		{"one still leaves its role", north(target, source), "", expectation{Wait, ReasonPeerIsSource, false, "", "pods use the volumes"}, 0, 0},
		{"one did not answer yet", silent(v1alpha1.LinkUnknown), "p1", expectation{Wait, ReasonLinkUnknown, false, "", "north"}, 0, 0},
		{"one did not answer just now, though its heartbeats do", silent(v1alpha1.LinkConnected), "p1", expectation{Wait, ReasonLinkUnknown, false, "", "north"}, 0, 0},
		{"one is not trusted", silent(v1alpha1.LinkRefused), "p1", expectation{Wait, ReasonLinkRefused, false, "", "trust"}, 0, 0},
		{"one must not be asked", Peer{Name: "north", Link: v1alpha1.LinkConnected, Refuses: true, Trouble: "namespaces"}, "p1", expectation{Wait, ReasonPeerRefuses, false, "", "namespaces"}, 0, 0},
		{"one is lost", silent(v1alpha1.LinkLost), "", expectation{Wait, ReasonLinkLost, false, "", `set spec.acknowledgePeerLost to "p1"`}, 0, 0},
		{"one is lost, and another point was acknowledged", silent(v1alpha1.LinkLost), "p0", expectation{Wait, ReasonLinkLost, false, "", `is "p0"`}, 0, 0},
		{"one is lost, and that was acknowledged", silent(v1alpha1.LinkLost), "p1", expectation{TakeEpoch, ReasonEpochTaken, false, "", "without north: what was written there after point p1 is lost"}, 5, 5},
	} {
		for wanted, epoch := range map[int64]int64{2: c.epoch, 4: c.given} {
			t.Run(fmt.Sprintf("%s, epoch %d in the spec", c.name, wanted), func(t *testing.T) {
				s := atRest()
				s.Cluster, s.Namespace, s.Name = "east", "shop", "db"
				s.Wanted, s.InForce, s.Acknowledged = stand(v1alpha1.RoleSource, wanted), target, c.ack
				s.Replica = replica(s.Recovery)
				second := s
				s.Cluster, second.Cluster, second.Peer = "west", "west", c.north
				s.Peer.Name = "east"
				d := NextSources([]Source{s, second})[0]
				check(t, d, c.want)
				if d.Epoch != epoch {
					t.Errorf("epoch %d, want %d", d.Epoch, epoch)
				}
				if lost := d.Step == TakeEpoch && !c.north.Asked; lost != slices.Equal(d.Lost, []string{"north"}) {
					t.Errorf("taken without %v", d.Lost)
				}
			})
		}
	}
}

// A cluster that comes back while it is taken over from is refused by the receiver of the new epoch, not waited for.
func TestATakeoverGoesOnWhenTheLostPeerComesBack(t *testing.T) {
	s := atRest()
	s.Wanted, s.InForce, s.Own, s.Lost = stand(v1alpha1.RoleSource, 3), stand(v1alpha1.RoleTarget, 2), true, []string{"west"}
	s.Replica = replica(s.Recovery)
	s.Replica.Door, s.Replica.Receiver = false, Outdated
	s.Peer.Stand, s.Peer.InForce = stand(v1alpha1.RoleSource, 2), stand(v1alpha1.RoleSource, 2)
	check(t, NextSource(s), expectation{StartReceiver, ReasonLeavingTarget, false, "", "epoch 3"})
	s.Replica.Receiver = Present
	check(t, NextSource(s), expectation{SealSpool, ReasonLeavingTarget, false, "", ""})
}

// M-091, M-083: a Replication that is new here is the source at once, unless a peer says that it is.
func TestAFirstSourceLooksForAnother(t *testing.T) {
	fresh := func() Source {
		s := atRest()
		s.InForce, s.Recovery, s.Last = Stand{}, Recovery{}, nil
		return s
	}
	s := fresh()
	s.Peer = Peer{Name: "west", Link: v1alpha1.LinkLost}
	check(t, NextSource(s), expectation{TakeRole, ReasonRoleTaken, false, "", ""})
	s = fresh()
	s.Peer.Stand.Role, s.Peer.InForce.Role = v1alpha1.RoleSource, v1alpha1.RoleSource
	check(t, NextSource(s), expectation{Wait, ReasonPeerIsSource, false, "", "first"})
	s = fresh()
	s.Cluster, s.Peer.InForce.Epoch = "east", 7
	check(t, NextSource(s), expectation{TakeEpoch, ReasonEpochTaken, false, "", "epoch 8"})
}
