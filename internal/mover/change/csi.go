package change

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// maxResults is how many extents one message may have: about 350 KiB, well below gRPC's limit of 4 MiB.
const maxResults = 16384

// ServiceFailed is a SnapshotMetadata service that did not give a whole list.
type ServiceFailed struct {
	Address, Call, Snapshot string
	Code                    codes.Code
	Message                 string
}

func (s *ServiceFailed) Error() string {
	return fmt.Sprintf("%s of snapshot %s at %s: %s: %s%s", s.Call, s.Snapshot, s.Address, s.Code, s.Message, s.advice())
}

func (s *ServiceFailed) advice() string {
	switch s.Code {
	case codes.Unauthenticated:
		return "; the token must be for the audience that the driver's SnapshotMetadataService names"
	case codes.PermissionDenied:
		return "; the service account must be allowed to get volumesnapshots and volumesnapshotcontents"
	case codes.NotFound:
		return "; both snapshots must exist until the list is read"
	case codes.Unimplemented:
		return "; this driver lists no changes"
	}
	return ""
}

// Absent tells whether err is a service that could not be reached, or went away: asked later it may answer.
func Absent(err error) bool {
	var failed *ServiceFailed
	return errors.As(err, &failed) && failed.Code == codes.Unavailable
}

// BadStream is an answer of a SnapshotMetadata service that breaks its contract: nothing in it can be relied on.
type BadStream struct{ Address, Call, Snapshot, Problem string }

func (b *BadStream) Error() string {
	return fmt.Sprintf("%s of snapshot %s at %s: the answer breaks the contract of SnapshotMetadata: %s", b.Call, b.Snapshot, b.Address, b.Problem)
}

func (c *CSI) check(delta bool) error {
	for _, f := range []struct{ name, value string }{
		{"address", c.Address}, {"caFile", c.CAFile}, {"tokenFile", c.TokenFile}, {"namespace", c.Namespace}, {"snapshot", c.Snapshot},
	} {
		if f.value == "" {
			return &BadOrigin{"csi." + f.name, "is empty"}
		}
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return &BadOrigin{"csi.address", fmt.Sprintf("is %q; want host:port", c.Address)}
	}
	if delta && c.BaseSnapshot == "" {
		return &BadOrigin{"csi.baseSnapshot", "is empty; it is the snapshot handle of the earlier instant"}
	}
	return nil
}

// answer is what both calls' messages have in common.
type answer interface {
	GetBlockMetadataType() api.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*api.BlockMetadata
}

// question is one of the two calls. ask begins the stream at an offset; recv ends with io.EOF.
type question struct {
	call string
	ask  func(ctx context.Context, client api.SnapshotMetadataClient, token string, from int64) (recv func() (answer, error), err error)
}

func (c *CSI) delta(ctx context.Context, size int64) (List, error) {
	return c.list(ctx, size, question{"GetMetadataDelta", func(ctx context.Context, client api.SnapshotMetadataClient, token string, from int64) (func() (answer, error), error) {
		s, err := client.GetMetadataDelta(ctx, &api.GetMetadataDeltaRequest{SecurityToken: token, Namespace: c.Namespace,
			BaseSnapshotId: c.BaseSnapshot, TargetSnapshotName: c.Snapshot, StartingOffset: from, MaxResults: maxResults})
		if err != nil {
			return nil, err
		}
		return func() (answer, error) { return s.Recv() }, nil
	}})
}

func (c *CSI) allocated(ctx context.Context, size int64) (List, error) {
	return c.list(ctx, size, question{"GetMetadataAllocated", func(ctx context.Context, client api.SnapshotMetadataClient, token string, from int64) (func() (answer, error), error) {
		s, err := client.GetMetadataAllocated(ctx, &api.GetMetadataAllocatedRequest{SecurityToken: token, Namespace: c.Namespace,
			SnapshotName: c.Snapshot, StartingOffset: from, MaxResults: maxResults})
		if err != nil {
			return nil, err
		}
		return func() (answer, error) { return s.Recv() }, nil
	}})
}

// list asks the question and reads the answer to its end. A stream that breaks is continued once, behind the last
// extent received.
//
// What makes a list complete is the OK status that ends the stream: it travels behind the last message, and a
// connection that is cut, or a service that is stopped, ends without it.
func (c *CSI) list(ctx context.Context, size int64, q question) (List, error) {
	conn, err := c.dial()
	if err != nil {
		return List{}, err
	}
	defer func() { _ = conn.Close() }()
	r := streamReader{csi: c, question: q, client: api.NewSnapshotMetadataClient(conn), builder: newBuilder(size)}
	err = r.read(ctx)
	if mayContinue(ctx, err) {
		err = r.read(ctx)
	}
	if err != nil {
		return List{}, err
	}
	return r.builder.list(), nil
}

// mayContinue tells whether the service may give the rest when asked again: not when it said no.
func mayContinue(ctx context.Context, err error) bool {
	var failed *ServiceFailed
	if ctx.Err() != nil || !errors.As(err, &failed) {
		return false
	}
	switch failed.Code {
	case codes.Unavailable, codes.Internal, codes.Unknown, codes.Aborted, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted:
		return true
	}
	return false
}

func (c *CSI) dial() (*grpc.ClientConn, error) {
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the certificates of the snapshot metadata service: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, &BadOrigin{"csi.caFile", fmt.Sprintf("%s holds no certificate", c.CAFile)}
	}
	security := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: c.ServerName})
	// The service is in the cluster: a proxy for the world outside has no part in it.
	conn, err := grpc.NewClient("passthrough:///"+c.Address, grpc.WithTransportCredentials(security), grpc.WithNoProxy())
	if err != nil {
		return nil, fmt.Errorf("connect to the snapshot metadata service at %s: %w", c.Address, err)
	}
	return conn, nil
}

// streamReader reads one answer, in one stream or two.
type streamReader struct {
	csi      *CSI
	question question
	client   api.SnapshotMetadataClient
	builder  *builder

	behind int64                 // end of the last extent received
	kind   api.BlockMetadataType // of the messages so far; UNKNOWN before the first
	block  int64                 // length of all extents when they are of one
}

// read reads a stream that begins behind what was received.
func (r *streamReader) read(ctx context.Context) error {
	token, err := os.ReadFile(r.csi.TokenFile)
	if err != nil {
		return fmt.Errorf("read the token for the snapshot metadata service: %w", err)
	}
	secret := strings.TrimSpace(string(token))
	if secret == "" {
		return &BadOrigin{"csi.tokenFile", r.csi.TokenFile + " is empty"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream on the way out of an error
	from := r.behind
	recv, err := r.question.ask(ctx, r.client, secret, from)
	if err != nil {
		return r.failed(err, secret)
	}
	for first := true; ; {
		a, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return r.failed(err, secret)
		}
		if err := r.take(a, first, from); err != nil {
			return err
		}
		first = first && len(a.GetBlockMetadata()) == 0
	}
}

// failed keeps the token out of errors, should a service repeat it.
func (r *streamReader) failed(err error, secret string) error {
	s := status.Convert(err)
	return &ServiceFailed{Address: r.csi.Address, Call: r.question.call, Snapshot: r.csi.Snapshot, Code: s.Code(),
		Message: strings.ReplaceAll(s.Message(), secret, "(token)")}
}

func (r *streamReader) bad(format string, args ...any) error {
	return &BadStream{Address: r.csi.Address, Call: r.question.call, Snapshot: r.csi.Snapshot, Problem: fmt.Sprintf(format, args...)}
}

// take checks one message against the contract and the messages before, and adds its extents. The first extent
// behind a starting offset may begin before it.
func (r *streamReader) take(a answer, first bool, from int64) error {
	size := r.builder.size
	if have := a.GetVolumeCapacityBytes(); have != size {
		return &SizeDiffers{Origin: r.question.call + " of snapshot " + r.csi.Snapshot, Listed: have, Size: size}
	}
	kind := a.GetBlockMetadataType()
	switch {
	case kind != api.BlockMetadataType_FIXED_LENGTH && kind != api.BlockMetadataType_VARIABLE_LENGTH:
		return r.bad("block_metadata_type is %s", kind)
	case r.kind != api.BlockMetadataType_UNKNOWN && r.kind != kind:
		return r.bad("block_metadata_type changes from %s to %s", r.kind, kind)
	}
	r.kind = kind
	for i, e := range a.GetBlockMetadata() {
		offset, length := e.GetByteOffset(), e.GetSizeBytes()
		if err := r.checkExtent(offset, length); err != nil {
			return err
		}
		length = min(length, size-offset)
		if first && i == 0 && from > 0 && offset < from {
			if offset+length <= from {
				return r.bad("the extent of %d bytes at %d ends before starting_offset %d", length, offset, from)
			}
			offset, length = from, offset+length-from
		}
		if offset < r.behind {
			return r.bad("the extent at %d begins before the end of the one before it, %d", offset, r.behind)
		}
		r.builder.add(offset, length)
		r.behind = offset + length
	}
	return nil
}

// checkExtent refuses an extent that is not in the volume. Only the last of equal blocks may stick out, where the
// volume's size is no multiple of the block.
func (r *streamReader) checkExtent(offset, length int64) error {
	size := r.builder.size
	if length <= 0 || offset < 0 || offset >= size {
		return r.bad("the extent of %d bytes at %d is empty or leaves the volume of %d bytes", length, offset, size)
	}
	if r.kind == api.BlockMetadataType_VARIABLE_LENGTH {
		if !within(offset, length, size) {
			return r.bad("the extent of %d bytes at %d leaves the volume of %d bytes", length, offset, size)
		}
		return nil
	}
	if r.block == 0 {
		r.block = length
	}
	if length != r.block {
		return r.bad("the extents are said to have one length and have %d and %d bytes", r.block, length)
	}
	return nil
}
