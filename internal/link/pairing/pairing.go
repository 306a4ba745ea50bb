// Package pairing introduces two clusters to each other: it carries name, gateway address and CA certificate of each to the other,
// and waits until they have found each other. No key and no kubeconfig crosses.
//
// It works with two API servers at once, as the person does who may use both. What the clusters then make of it is
// theirs. Begin with Pair.
package pairing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/link/trust"
)

const (
	// clusterConfigMap is written by the installer.
	clusterConfigMap  = "lifeboat-cluster"
	keyName           = "name"
	keyGatewayAddress = "gatewayAddress"

	// annotationFingerprint shows which CA a pair trusts, and wakes the manager when it is replaced.
	annotationFingerprint = "lifeboat.dev/trust-fingerprint"

	// requestTimeout bounds each conversation with an API server.
	requestTimeout = 20 * time.Second
	pollInterval   = 500 * time.Millisecond
)

// Side is one of the two clusters, seen from the person who pairs them.
type Side struct {
	// Context names the cluster to the person: the kubeconfig context.
	Context string
	Client  client.Client
	// GatewayAddress is host:port of this cluster's gateway as the other cluster reaches it; empty takes what was installed.
	GatewayAddress string
}

// Options of a pairing.
type Options struct {
	// Namespaces that each cluster allows the other to act in. Nil leaves an existing pair's as they are.
	Namespaces []string
	// Mode of the pair; empty leaves an existing pair's, and makes a new one DisasterRecovery.
	Mode v1alpha1.PairMode
	// ReplaceTrust accepts that a cluster comes with another CA than it was paired with.
	ReplaceTrust bool
	// Timeout bounds the wait for missing CAs and for the links. Zero: one minute.
	Timeout time.Duration
	// Progress is told what happens, for people. May be nil.
	Progress func(line string)
}

// NotInstalledError: there is no Lifeboat in a cluster, or it has not come up.
type NotInstalledError struct {
	Context string
	Missing string
}

func (e *NotInstalledError) Error() string {
	return fmt.Sprintf("Lifeboat is not installed in context %s: %s is missing; run lifeboat install there first", e.Context, e.Missing)
}

// SameNameError: both clusters have one name, or are one cluster.
type SameNameError struct {
	Name     string
	Contexts [2]string
}

func (e *SameNameError) Error() string {
	return fmt.Sprintf("the clusters of contexts %s and %s are both named %s: they are the same cluster, or one must be installed under another --cluster-name",
		e.Contexts[0], e.Contexts[1], e.Name)
}

// OtherCAError: a cluster is paired with the other one already, under another CA.
type OtherCAError struct {
	Context, Pair, Secret string
	// Trusted and Offered are fingerprints of CA certificates.
	Trusted, Offered string
	Peer             string
}

func (e *OtherCAError) Error() string {
	return fmt.Sprintf("context %s: ClusterPair %s trusts a CA for cluster %s with fingerprint %s (Secret %s/%s), but that cluster now has %s: "+
		"if it was installed anew, run again with --replace-trust; if not, find out who answers there",
		e.Context, e.Pair, e.Peer, short(e.Trusted), v1alpha1.SystemNamespace, e.Secret, short(e.Offered))
}

// NotConnectedError: all is written, but the clusters do not reach each other.
type NotConnectedError struct {
	// Problems has a sentence for each direction that is not connected.
	Problems []string
	After    time.Duration
}

func (e *NotConnectedError) Error() string {
	return fmt.Sprintf("paired, but not connected after %s: %s", e.After, strings.Join(e.Problems, "; "))
}

// Result is what a pairing made.
type Result struct {
	// Names of the two clusters, in the order of the sides.
	Names [2]string
	// Pairs are the statuses of both ClusterPairs once connected.
	Pairs [2]v1alpha1.ClusterPair
}

// introduced is a side that has said who it is.
type introduced struct {
	Side
	name    string
	address string
	caPEM   []byte
}

// Pair makes two clusters trust each other and waits until both links are connected. It may be run again at any time: what is
// right already stays. Everything is checked on both sides before anything is written on either.
func Pair(ctx context.Context, a, b Side, o Options) (Result, error) {
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if err := checkNamespaces(o.Namespaces); err != nil {
		return Result{}, err
	}
	var sides [2]introduced
	for i, s := range []Side{a, b} {
		known, err := introduce(ctx, s, o)
		if err != nil {
			return Result{}, err
		}
		sides[i] = known
		o.Progress(fmt.Sprintf("context %s is cluster %s, gateway %s, CA %s", known.Context, known.name, known.address, short(identity.Fingerprint(known.caPEM))))
	}
	if sides[0].name == sides[1].name {
		return Result{}, &SameNameError{Name: sides[0].name, Contexts: [2]string{a.Context, b.Context}}
	}
	var written [2]*entry
	for i := range sides {
		e, err := plan(ctx, sides[i], sides[1-i], o)
		if err != nil {
			return Result{}, err
		}
		written[i] = e
	}
	for i, e := range written {
		if err := e.write(ctx); err != nil {
			return Result{}, err
		}
		o.Progress(fmt.Sprintf("cluster %s: ClusterPair %s %s", sides[i].name, e.pair.Name, e.did()))
	}
	result := Result{Names: [2]string{sides[0].name, sides[1].name}}
	pairs, err := await(ctx, written, o)
	result.Pairs = pairs
	return result, err
}

func checkNamespaces(namespaces []string) error {
	for _, n := range namespaces {
		switch {
		case n == "*":
		case n == v1alpha1.SystemNamespace || strings.HasPrefix(n, "kube-"):
			return fmt.Errorf("namespace %s cannot be allowed: a peer never acts in %s or kube-*", n, v1alpha1.SystemNamespace)
		case len(validation.IsDNS1123Label(n)) > 0:
			return fmt.Errorf("namespace %q: %s", n, validation.IsDNS1123Label(n)[0])
		}
	}
	return nil
}

// introduce asks a cluster who it is.
func introduce(ctx context.Context, s Side, o Options) (introduced, error) {
	known := introduced{Side: s, address: s.GatewayAddress}
	var cluster corev1.ConfigMap
	if err := read(ctx, s, clusterConfigMap, &cluster); err != nil {
		return known, err
	}
	known.name = cluster.Data[keyName]
	if known.name == "" {
		return known, &NotInstalledError{Context: s.Context, Missing: fmt.Sprintf("key %s of ConfigMap %s/%s", keyName, v1alpha1.SystemNamespace, clusterConfigMap)}
	}
	if known.address == "" {
		known.address = cluster.Data[keyGatewayAddress]
	}
	if known.address == "" {
		return known, fmt.Errorf("context %s: the address of cluster %s's gateway is not known: give it as --gateway-address %s=host:port", s.Context, known.name, s.Context)
	}
	caPEM, err := awaitCA(ctx, s, o)
	known.caPEM = caPEM
	return known, err
}

// awaitCA reads the CA certificate, which the manager publishes when it first starts.
func awaitCA(ctx context.Context, s Side, o Options) ([]byte, error) {
	var published corev1.ConfigMap
	var missing *NotInstalledError
	told := false
	err := wait.PollUntilContextTimeout(ctx, pollInterval, o.Timeout, true, func(ctx context.Context) (bool, error) {
		err := read(ctx, s, trust.CAName, &published)
		if errors.As(err, &missing) {
			if !told {
				told = true
				o.Progress(fmt.Sprintf("context %s: waiting for the manager to make its CA", s.Context))
			}
			return false, nil
		}
		return err == nil, err
	})
	switch {
	case wait.Interrupted(err) && ctx.Err() == nil:
		return nil, fmt.Errorf("context %s: Lifeboat is installed but its manager has not made its CA after %s (ConfigMap %s/%s is missing): "+
			"look at Deployment %s/lifeboat-manager", s.Context, o.Timeout, v1alpha1.SystemNamespace, trust.CAName, v1alpha1.SystemNamespace)
	case err != nil:
		return nil, err
	}
	caPEM := []byte(published.Data[trust.KeyCA])
	if _, err := identity.Roots(caPEM); err != nil {
		return nil, fmt.Errorf("context %s: ConfigMap %s/%s, key %s: %w", s.Context, v1alpha1.SystemNamespace, trust.CAName, trust.KeyCA, err)
	}
	return caPEM, nil
}

// read gets an object of lifeboat-system, and says what is wrong when there is none.
func read(ctx context.Context, s Side, name string, into *corev1.ConfigMap) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := s.Client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, into)
	switch {
	case apierrors.IsNotFound(err):
		return &NotInstalledError{Context: s.Context, Missing: fmt.Sprintf("ConfigMap %s/%s", v1alpha1.SystemNamespace, name)}
	case err != nil:
		return fmt.Errorf("context %s: read ConfigMap %s/%s: %w", s.Context, v1alpha1.SystemNamespace, name, err)
	}
	return nil
}

// entry is what one side shall hold about the other.
type entry struct {
	side introduced
	peer introduced

	secret, haveSecret *corev1.Secret
	pair, havePair     *v1alpha1.ClusterPair
	// trustChanged: the manager knew another CA, so what its status says of the link is about that one.
	trustChanged bool
}

// plan compares what a side holds with what it shall hold, and refuses what must not be overwritten.
func plan(ctx context.Context, side, peer introduced, o Options) (*entry, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	e := &entry{side: side, peer: peer}
	if err := e.findPair(ctx); err != nil {
		return nil, err
	}
	if err := e.findSecret(ctx, o); err != nil {
		return nil, err
	}
	if e.havePair == nil {
		e.pair = &v1alpha1.ClusterPair{ObjectMeta: metav1.ObjectMeta{Name: peer.name}}
		e.pair.Spec.PeerCluster = peer.name
		e.pair.Spec.Mode = v1alpha1.PairModeDisasterRecovery
	} else {
		e.pair = e.havePair.DeepCopy()
	}
	e.pair.Spec.TrustSecretName = e.secret.Name
	e.pair.Spec.GatewayAddress = peer.address
	if o.Namespaces != nil {
		e.pair.Spec.Namespaces = o.Namespaces
	}
	if o.Mode != "" {
		e.pair.Spec.Mode = o.Mode
	}
	metav1.SetMetaDataAnnotation(&e.pair.ObjectMeta, annotationFingerprint, identity.Fingerprint(peer.caPEM))
	return e, nil
}

// findPair looks for the pair of this peer, whatever its name, and for a stranger under the name it would get.
func (e *entry) findPair(ctx context.Context) error {
	var pairs v1alpha1.ClusterPairList
	err := e.side.Client.List(ctx, &pairs)
	switch {
	case meta.IsNoMatchError(err) || apierrors.IsNotFound(err):
		return &NotInstalledError{Context: e.side.Context, Missing: "the kind ClusterPair"}
	case err != nil:
		return fmt.Errorf("context %s: list ClusterPairs: %w", e.side.Context, err)
	}
	var found []string
	for i, p := range pairs.Items {
		switch {
		case p.Spec.PeerCluster == e.peer.name:
			e.havePair = &pairs.Items[i]
			found = append(found, p.Name)
		case p.Name == e.peer.name:
			return fmt.Errorf("context %s: ClusterPair %s is about cluster %s (spec.peerCluster), so none can be made under that name for cluster %s: delete or rename it",
				e.side.Context, p.Name, p.Spec.PeerCluster, e.peer.name)
		}
	}
	if len(found) > 1 {
		return fmt.Errorf("context %s: the ClusterPairs %s are all about cluster %s: delete all but one", e.side.Context, strings.Join(found, ", "), e.peer.name)
	}
	return nil
}

func (e *entry) findSecret(ctx context.Context, o Options) error {
	name := trust.SecretName(e.peer.name)
	if e.havePair != nil {
		name = e.havePair.Spec.TrustSecretName
	}
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}
	var have corev1.Secret
	err := e.side.Client.Get(ctx, key, &have)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("context %s: read Secret %s: %w", e.side.Context, key, err)
	}
	if err != nil {
		e.secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name,
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat}}}
		e.secret.Data = map[string][]byte{trust.KeyCA: e.peer.caPEM}
		e.trustChanged = e.havePair != nil
		return nil
	}
	e.haveSecret, e.secret = &have, have.DeepCopy()
	trusted, offered := identity.Fingerprint(have.Data[trust.KeyCA]), identity.Fingerprint(e.peer.caPEM)
	if trusted == offered {
		return nil
	}
	// An empty or broken Secret trusts nobody, so nothing is overwritten.
	if trusted != "" && !o.ReplaceTrust {
		return &OtherCAError{Context: e.side.Context, Pair: e.peer.name, Secret: name, Trusted: trusted, Offered: offered, Peer: e.peer.name}
	}
	e.trustChanged = true
	if e.secret.Data == nil {
		e.secret.Data = map[string][]byte{}
	}
	e.secret.Data[trust.KeyCA] = e.peer.caPEM
	return nil
}

// write makes the Secret before the pair that names it.
func (e *entry) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var err error
	switch {
	case e.haveSecret == nil:
		err = e.side.Client.Create(ctx, e.secret)
	case e.trustChanged:
		err = e.side.Client.Update(ctx, e.secret)
	}
	if err != nil {
		return fmt.Errorf("context %s: write Secret %s/%s: %w", e.side.Context, e.secret.Namespace, e.secret.Name, err)
	}
	switch {
	case e.havePair == nil:
		err = e.side.Client.Create(ctx, e.pair)
	case e.did() != didNothing:
		err = e.side.Client.Update(ctx, e.pair)
	}
	if err != nil {
		return fmt.Errorf("context %s: write ClusterPair %s: %w", e.side.Context, e.pair.Name, err)
	}
	return nil
}

const didNothing = "is as it shall be"

// did tells what write does, or did.
func (e *entry) did() string {
	switch {
	case e.havePair == nil:
		return "made"
	case e.trustChanged:
		return "given the new CA"
	case !sameSpec(e.havePair.Spec, e.pair.Spec) || !maps.Equal(e.havePair.Annotations, e.pair.Annotations):
		return "brought up to date"
	}
	return didNothing
}

func sameSpec(a, b v1alpha1.ClusterPairSpec) bool {
	return a.GatewayAddress == b.GatewayAddress && a.TrustSecretName == b.TrustSecretName && a.Mode == b.Mode && slices.Equal(a.Namespaces, b.Namespaces)
}

// await polls both pairs until both links are connected, and says what is wrong with those that are not.
func await(ctx context.Context, entries [2]*entry, o Options) ([2]v1alpha1.ClusterPair, error) {
	var pairs [2]v1alpha1.ClusterPair
	var problems []string
	err := wait.PollUntilContextTimeout(ctx, pollInterval, o.Timeout, true, func(ctx context.Context) (bool, error) {
		problems = nil
		for i, e := range entries {
			if err := e.side.Client.Get(ctx, client.ObjectKeyFromObject(e.pair), &pairs[i]); err != nil {
				problems = append(problems, fmt.Sprintf("context %s: read ClusterPair %s: %v", e.side.Context, e.pair.Name, err))
				continue
			}
			if problem := e.problem(&pairs[i]); problem != "" {
				problems = append(problems, problem)
			}
		}
		return len(problems) == 0, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return pairs, &NotConnectedError{Problems: problems, After: o.Timeout}
	}
	return pairs, err
}

// problem says why a pair is not connected yet; empty if it is.
func (e *entry) problem(pair *v1alpha1.ClusterPair) string {
	status := pair.Status
	who := fmt.Sprintf("cluster %s (context %s)", e.side.name, e.side.Context)
	stale := status.ObservedGeneration < pair.Generation
	if e.trustChanged && e.havePair.Status.LastHeartbeat.Equal(status.LastHeartbeat) && status.LinkState == v1alpha1.LinkConnected {
		stale = true
	}
	switch {
	case stale || status.LinkState == "":
		return fmt.Sprintf("the manager of %s has not looked at ClusterPair %s yet: is Deployment %s/lifeboat-manager running?", who, pair.Name, v1alpha1.SystemNamespace)
	case status.LinkState == v1alpha1.LinkConnected:
		return ""
	}
	message := "no heartbeat has been answered"
	if c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionConnected); c != nil {
		message = c.Message
	}
	return fmt.Sprintf("%s: link to %s at %s is %s: %s", who, e.peer.name, pair.Spec.GatewayAddress, status.LinkState, message)
}

// short is as much of a fingerprint as a person compares.
func short(fingerprint string) string {
	if len(fingerprint) < 16 {
		return "none"
	}
	return fingerprint[:16]
}
