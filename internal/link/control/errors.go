package control

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// Reasons of a Refused.
const (
	// ReasonTrust: one side does not accept the other's certificate.
	ReasonTrust = "TrustMismatch"
	// ReasonWrongCluster: another cluster answers than the pair names.
	ReasonWrongCluster = "WrongCluster"
	// ReasonProtocol: one side's software is too old for the other.
	ReasonProtocol = "ProtocolTooOld"
	// ReasonNoPair: the peer has no (or more than one) ClusterPair for this cluster.
	ReasonNoPair = "NoClusterPair"
	// ReasonNamespace: the peer's ClusterPair does not name the namespace.
	ReasonNamespace = "NamespaceNotAllowed"
	// ReasonNotPrimary: by what the peer knows, the caller is not the plan's primary.
	ReasonNotPrimary = "NotPrimary"
	// ReasonStaleEpoch: the peer knows a later epoch.
	ReasonStaleEpoch = "StaleEpoch"
	// ReasonIsSource: the peer's Replication is a source itself.
	ReasonIsSource = "PeerIsSource"
	// ReasonConflict: an object on the peer has other contents than asked for.
	ReasonConflict = "Conflict"
	// ReasonNoStorageClass: the peer has neither the class nor a default one.
	ReasonNoStorageClass = "NoStorageClass"
	// ReasonInvalid: the request, or an object made from it, is not valid.
	ReasonInvalid = "Invalid"
)

// Unreachable: no answer came. It says nothing about the peer's state.
type Unreachable struct {
	Peer, Address string
	Err           error
}

func (e *Unreachable) Error() string {
	return fmt.Sprintf("cluster %s does not answer at %s: %v", e.Peer, e.Address, e.Err)
}

func (e *Unreachable) Unwrap() error { return e.Err }

// Refused: the answer is no, and asking again changes nothing until somebody acts.
type Refused struct {
	// Peer that refused, or that this side refuses to talk to.
	Peer string
	// Reason is one of the Reason constants.
	Reason string
	// Message tells the operator what was found and what to do.
	Message string
}

func (e *Refused) Error() string {
	if e.Peer == "" {
		return e.Message
	}
	return fmt.Sprintf("cluster %s: %s", e.Peer, e.Message)
}

// IsUnreachable reports whether err says that no answer came.
func IsUnreachable(err error) bool {
	var u *Unreachable
	return errors.As(err, &u)
}

// RefusedReason returns the reason when err is a refusal, else "".
func RefusedReason(err error) string {
	var r *Refused
	if !errors.As(err, &r) {
		return ""
	}
	return r.Reason
}

func refuse(reason, format string, args ...any) error {
	return &Refused{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

var codeOf = map[string]codes.Code{
	ReasonTrust:          codes.Unauthenticated,
	ReasonWrongCluster:   codes.FailedPrecondition,
	ReasonProtocol:       codes.FailedPrecondition,
	ReasonNoPair:         codes.PermissionDenied,
	ReasonNamespace:      codes.PermissionDenied,
	ReasonNotPrimary:     codes.FailedPrecondition,
	ReasonStaleEpoch:     codes.FailedPrecondition,
	ReasonIsSource:       codes.FailedPrecondition,
	ReasonConflict:       codes.FailedPrecondition,
	ReasonNoStorageClass: codes.FailedPrecondition,
	ReasonInvalid:        codes.InvalidArgument,
}

// toStatus turns an error of the server's own work into what travels. What is no refusal travels as a failure of this
// cluster, with its text: peers are allowed to know what went wrong with what they asked for.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var r *Refused
	if errors.As(err, &r) {
		st := status.New(codeOf[r.Reason], r.Message)
		detailed, detailErr := st.WithDetails(&linkpb.Refusal{Reason: r.Reason, Message: r.Message})
		if detailErr != nil {
			return st.Err()
		}
		return detailed.Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

// fromStatus turns what a call returned into one of the three kinds of error. The handshake's verdict decides
// whether a connection that did not come about was refused or is missing.
func (c *Client) fromStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	for _, detail := range st.Details() {
		if r, ok := detail.(*linkpb.Refusal); ok {
			return &Refused{Peer: c.peer, Reason: r.GetReason(), Message: r.GetMessage()}
		}
	}
	switch st.Code() {
	case codes.Canceled:
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &Unreachable{Peer: c.peer, Address: c.address, Err: errors.New(st.Message())}
	case codes.Unavailable, codes.DeadlineExceeded:
		if verdict := c.handshakes.verdict(); verdict != nil {
			return &Refused{Peer: c.peer, Reason: verdictReason(verdict), Message: c.explain(verdict)}
		}
		return &Unreachable{Peer: c.peer, Address: c.address, Err: errors.New(st.Message())}
	case codes.Unimplemented:
		return &Refused{Peer: c.peer, Reason: ReasonProtocol,
			Message: fmt.Sprintf("its Lifeboat does not know this request (%s): upgrade Lifeboat there", st.Message())}
	default:
		return fmt.Errorf("cluster %s failed: %s", c.peer, st.Message())
	}
}

func verdictReason(err error) string {
	var wrong *identity.WrongIdentityError
	if errors.As(err, &wrong) {
		return ReasonWrongCluster
	}
	return ReasonTrust
}

// explain says what to do about a handshake that failed for trust.
func (c *Client) explain(err error) string {
	var wrong *identity.WrongIdentityError
	var untrusted *identity.UntrustedError
	var expired *identity.ExpiredError
	var rejected *rejectedError
	switch {
	case errors.As(err, &wrong):
		return fmt.Sprintf("another party answers at %s: %v; correct spec.gatewayAddress or spec.peerCluster of the ClusterPair", c.address, wrong)
	case errors.As(err, &expired):
		return expired.Error()
	case errors.As(err, &untrusted):
		return fmt.Sprintf("%v; if that cluster was installed anew, run lifeboat pair with --replace-trust", untrusted)
	case errors.As(err, &rejected):
		return fmt.Sprintf("it does not accept the certificate of this cluster: it has no ClusterPair for cluster %s, or trusts another CA for it; "+
			"run lifeboat pair (with --replace-trust if a CA changed), and see its manager's log (%v)", c.cluster, rejected)
	default:
		return err.Error()
	}
}
