// Package identity knows who speaks: certificate authorities of clusters, the short-lived certificates they issue,
// and how each end of a connection proves the other. Trust is two things together, always: the chain ends in the
// one CA that is expected, and the certificate carries exactly the URI that is expected. Server names only route.
//
// It is cryptography and names. It reads no cluster, opens no socket and keeps no file. Begin with Verify.
package identity

import (
	"fmt"
	"net/url"
	"strings"
)

// Server names that connections ask for. The gateway routes by them; nobody trusts them.
const (
	// ManagerServerName is the control service of a manager.
	ManagerServerName = "manager.lifeboat"
	// receiverSuffix ends the server name of every receiver.
	receiverSuffix = ".receiver.lifeboat"
)

const scheme = "lifeboat"

// ReceiverServerName is the server name of the receiver of a Replication.
func ReceiverServerName(namespace, name string) string {
	return name + "." + namespace + receiverSuffix
}

// ParseReceiverServerName undoes ReceiverServerName. A namespace has no dot, so the last label before the suffix
// is the namespace whatever the name looks like.
func ParseReceiverServerName(serverName string) (namespace, name string, ok bool) {
	rest, ok := strings.CutSuffix(serverName, receiverSuffix)
	if !ok {
		return "", "", false
	}
	dot := strings.LastIndexByte(rest, '.')
	if dot <= 0 || dot == len(rest)-1 {
		return "", "", false
	}
	return rest[dot+1:], rest[:dot], true
}

// ManagerURI is the identity of a cluster's manager: lifeboat://<cluster>/manager.
func ManagerURI(cluster string) string {
	return scheme + "://" + cluster + "/manager"
}

// ReplicationURI is the identity of the movers of one Replication in one cluster:
// lifeboat://<cluster>/replication/<namespace>/<name>.
func ReplicationURI(cluster, namespace, name string) string {
	return scheme + "://" + cluster + "/replication/" + namespace + "/" + name
}

// managerCluster returns the cluster of a manager's URI.
func managerCluster(uri *url.URL) (string, error) {
	cluster := uri.Host
	if cluster == "" || uri.String() != ManagerURI(cluster) {
		return "", fmt.Errorf("%s is not the identity of a manager", uri)
	}
	return cluster, nil
}
