package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

const (
	// probeTimeout bounds each connection of a check.
	probeTimeout = 5 * time.Second
	// clockTolerance is how far two clusters' clocks may be apart: schedules and lags are wrong by as much. Certificates bear more.
	clockTolerance = 5 * time.Second
	// probesAtOnce is how many receivers are asked together.
	probesAtOnce = 8
)

// Names of checks, in the order they are made.
const (
	CheckGateway  = "gateway"
	CheckIdentity = "identity"
	CheckControl  = "control"
	CheckVersion  = "version"
	CheckClock    = "clock"
	CheckReceiver = "receiver"
)

// Checker tries the ways from this cluster's pods to a peer. It changes nothing there, and disturbs no session: a receiver is greeted
// until it has proven itself, and left before it knows who asked.
type Checker struct {
	// Cluster is this cluster's name.
	Cluster string
	Own     identity.Source
	// Reader reads Replications.
	Reader client.Reader
	// Client returns whom to ask of a pair; Peers.Client does.
	Client func(pair string) (control.Peer, error)
	Now    func() time.Time
}

// Check reports every way to the peer of a pair, whatever the others say.
func (c *Checker) Check(ctx context.Context, pair *v1alpha1.ClusterPair, caPEM []byte) []v1alpha1.CheckResult {
	results := []v1alpha1.CheckResult{c.gateway(ctx, pair)}
	results = append(results, c.control(ctx, pair)...)
	return append(results, c.receivers(ctx, pair, caPEM)...)
}

func passed(name, about, format string, args ...any) v1alpha1.CheckResult {
	return v1alpha1.CheckResult{Name: name, About: about, Outcome: v1alpha1.CheckPassed, Message: fmt.Sprintf(format, args...)}
}

func failed(name, about, format string, args ...any) v1alpha1.CheckResult {
	return v1alpha1.CheckResult{Name: name, About: about, Outcome: v1alpha1.CheckFailed, Message: fmt.Sprintf(format, args...)}
}

func skipped(name, about, format string, args ...any) v1alpha1.CheckResult {
	return v1alpha1.CheckResult{Name: name, About: about, Outcome: v1alpha1.CheckSkipped, Message: fmt.Sprintf(format, args...)}
}

// reach opens a connection and closes it: the port is open.
func reach(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (c *Checker) gateway(ctx context.Context, pair *v1alpha1.ClusterPair) v1alpha1.CheckResult {
	address := pair.Spec.GatewayAddress
	began := c.Now()
	if err := reach(ctx, address); err != nil {
		return failed(CheckGateway, address, "this cluster's pods do not reach the gateway of cluster %s: %v: open TCP port of %s from here in every firewall between, or correct spec.gatewayAddress of ClusterPair %s",
			pair.Spec.PeerCluster, err, address, pair.Name)
	}
	return passed(CheckGateway, address, "accepts connections (%s)", c.Now().Sub(began).Round(time.Microsecond))
}

// control greets the peer's manager through its gateway.
func (c *Checker) control(ctx context.Context, pair *v1alpha1.ClusterPair) []v1alpha1.CheckResult {
	peer, err := c.Client(pair.Name)
	if err != nil {
		return []v1alpha1.CheckResult{failed(CheckControl, pair.Name, "%v", err)}
	}
	began := c.Now()
	greeting, err := peer.Hello(ctx)
	ended := c.Now()
	who := identity.ManagerURI(pair.Spec.PeerCluster)
	switch reason := control.RefusedReason(err); {
	case err == nil:
	case reason == control.ReasonTrust || reason == control.ReasonWrongCluster:
		return []v1alpha1.CheckResult{failed(CheckIdentity, who, "%v", err)}
	case reason == control.ReasonProtocol:
		return []v1alpha1.CheckResult{passed(CheckIdentity, who, "is proven, both ways"), failed(CheckVersion, "", "%v", err)}
	default:
		return []v1alpha1.CheckResult{failed(CheckControl, who, "the manager of cluster %s does not answer: %v: see Deployment lifeboat-manager there", pair.Spec.PeerCluster, err)}
	}
	out := []v1alpha1.CheckResult{
		passed(CheckIdentity, who, "is proven, both ways"),
		passed(CheckControl, who, "answers in %s", ended.Sub(began).Round(time.Microsecond)),
		passed(CheckVersion, greeting.Version, "Lifeboat %s, protocol %d", greeting.Version, greeting.Protocol),
	}
	skew := greeting.Clock.Sub(began.Add(ended.Sub(began) / 2))
	if skew.Abs() > clockTolerance {
		return append(out, failed(CheckClock, "", "the clock of cluster %s is %s from this one's: let both follow a time server (NTP); schedules, lags and certificates depend on it",
			pair.Spec.PeerCluster, skew.Round(time.Millisecond)))
	}
	return append(out, passed(CheckClock, "", "%s apart", skew.Abs().Round(time.Millisecond)))
}

// receivers greets the receiver of every Replication that goes to the peer.
func (c *Checker) receivers(ctx context.Context, pair *v1alpha1.ClusterPair, caPEM []byte) []v1alpha1.CheckResult {
	var all v1alpha1.ReplicationList
	if err := c.Reader.List(ctx, &all); err != nil {
		return []v1alpha1.CheckResult{failed(CheckReceiver, "", "the Replications cannot be read: %v", err)}
	}
	roots, err := identity.Roots(caPEM)
	if err != nil {
		return []v1alpha1.CheckResult{failed(CheckReceiver, "", "the peer's CA in Secret %s/%s: %v", v1alpha1.SystemNamespace, pair.Spec.TrustSecretName, err)}
	}
	var out []v1alpha1.CheckResult
	var mu sync.Mutex
	var running sync.WaitGroup
	places := make(chan struct{}, probesAtOnce)
	for _, r := range all.Items {
		for _, link := range r.Spec.Rlinks {
			if link.ClusterPair != pair.Name {
				continue
			}
			running.Go(func() {
				places <- struct{}{}
				defer func() { <-places }()
				result := c.receiver(ctx, pair, roots, &r, link)
				mu.Lock()
				defer mu.Unlock()
				out = append(out, result)
			})
		}
	}
	running.Wait()
	slices.SortFunc(out, func(a, b v1alpha1.CheckResult) int {
		if a.About < b.About {
			return -1
		}
		return 1
	})
	return out
}

func (c *Checker) receiver(ctx context.Context, pair *v1alpha1.ClusterPair, roots *x509.CertPool, r *v1alpha1.Replication, link v1alpha1.Rlink) v1alpha1.CheckResult {
	about := r.Namespace + "/" + r.Name + " " + link.RlinkName
	address, by := pair.Spec.GatewayAddress, "the gateway"
	if link.RemoteAddress != "" {
		address, by = link.RemoteAddress, "its remoteAddress"
	}
	if r.Status.Role != v1alpha1.RoleSource {
		return skipped(CheckReceiver, about, "this side is the target: there is no receiver at %s (%s) before the roles change", address, by)
	}
	err := greet(ctx, address, identity.ClientConfig(c.Own, identity.ReceiverServerName(r.Namespace, r.Name),
		identity.Exactly(roots, identity.ReplicationURI(pair.Spec.PeerCluster, r.Namespace, r.Name), x509.ExtKeyUsageServerAuth, c.Now)))
	if err != nil {
		return failed(CheckReceiver, about, "its receiver does not answer at %s (%s): %v: see status.rlinks of the Replication on cluster %s", address, by, err, pair.Spec.PeerCluster)
	}
	return passed(CheckReceiver, about, "its receiver answers at %s (%s) and has proven itself", address, by)
}

// errProven ends a greeting as soon as the server has proven itself.
var errProven = errors.New("proven")

// greet connects until the server has proven who it is, and goes without having said who asks.
func greet(ctx context.Context, address string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = raw.Close() }()
	verify := config.VerifyConnection
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verify(s); err != nil {
			return err
		}
		return errProven
	}
	err = tls.Client(raw, config).HandshakeContext(ctx)
	if errors.Is(err, errProven) {
		return nil
	}
	if err == nil {
		err = errors.New("it proved nothing")
	}
	return err
}
