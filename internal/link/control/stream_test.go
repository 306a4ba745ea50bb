package control_test

import (
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/link/control/linkpb"
	"lifeboat.dev/lifeboat/internal/link/identity"
)

// rawClient speaks the protocol by hand, to say what our own client never would.
func rawClient(t *testing.T, f *fixture) linkpb.LinkClient {
	t.Helper()
	config := identity.ClientConfig(f.east.source(), identity.ManagerServerName,
		identity.Exactly(f.west.roots(t), identity.ManagerURI(west), x509.ExtKeyUsageServerAuth, time.Now))
	conn := must(grpc.NewClient("passthrough:///"+f.address, grpc.WithTransportCredentials(credentials.NewTLS(config))))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return linkpb.NewLinkClient(conn)
}

func TestAStreamThatIsNotWholeIsNotKept(t *testing.T) {
	header := &linkpb.SnapshotPart{Part: &linkpb.SnapshotPart_Header{Header: &linkpb.SnapshotHeader{
		Snapshot: must(json.Marshal(&v1alpha1.ApplicationSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s1"}}))(t)}}}
	chunk := &linkpb.SnapshotPart{Part: &linkpb.SnapshotPart_Chunk{Chunk: &linkpb.SnapshotChunk{Digest: "d", Data: []byte("x")}}}
	nameless := &linkpb.SnapshotPart{Part: &linkpb.SnapshotPart_Chunk{Chunk: &linkpb.SnapshotChunk{Data: []byte("x")}}}
	end := func(chunks int64) *linkpb.SnapshotPart {
		return &linkpb.SnapshotPart{Part: &linkpb.SnapshotPart_End{End: &linkpb.SnapshotEnd{Chunks: chunks}}}
	}
	for name, c := range map[string]struct {
		parts []*linkpb.SnapshotPart
		kept  bool
	}{
		"whole":                  {[]*linkpb.SnapshotPart{header, chunk, chunk, end(2)}, true},
		"empty but whole":        {[]*linkpb.SnapshotPart{header, end(0)}, true},
		"no end":                 {[]*linkpb.SnapshotPart{header, chunk}, false},
		"a chunk was lost":       {[]*linkpb.SnapshotPart{header, chunk, end(2)}, false},
		"no header":              {[]*linkpb.SnapshotPart{chunk, end(1)}, false},
		"a second header":        {[]*linkpb.SnapshotPart{header, header, end(0)}, false},
		"a chunk without digest": {[]*linkpb.SnapshotPart{header, nameless, end(1)}, false},
		"a header that is no JSON": {[]*linkpb.SnapshotPart{
			{Part: &linkpb.SnapshotPart_Header{Header: &linkpb.SnapshotHeader{Snapshot: []byte("x")}}}, end(0)}, false},
		"nothing": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, []string{"shop"})
			ctx := metadata.AppendToOutgoingContext(t.Context(), "lifeboat-protocol", "1")
			stream := must(rawClient(t, f).PushApplicationSnapshot(ctx))(t)
			for _, p := range c.parts {
				// The server may have refused already; CloseAndRecv tells.
				_ = stream.Send(p)
			}
			_, err := stream.CloseAndRecv()
			if _, kept := f.sink.get(key("shop", "s1")); kept != c.kept || (err == nil) != c.kept {
				t.Errorf("kept %t, error %v", kept, err)
			}
		})
	}
}

func TestATooOldPeerIsToldToUpgrade(t *testing.T) {
	f := startFake(t, []string{"shop"})
	for name, values := range map[string][]string{"none": nil, "zero": {"lifeboat-protocol", "0"}, "garbage": {"lifeboat-protocol", "x"}} {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), values...)
			_, err := rawClient(t, f).Hello(ctx, &linkpb.HelloRequest{Cluster: east})
			wantStatus(t, err, "ProtocolTooOld", "upgrade Lifeboat on east")
		})
	}
}

func TestANameThatIsNotTheCertificatesIsRefused(t *testing.T) {
	f := startFake(t, []string{"shop"})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "lifeboat-protocol", "1")
	_, err := rawClient(t, f).Hello(ctx, &linkpb.HelloRequest{Cluster: "north"})
	wantStatus(t, err, "WrongCluster", "north", "east")
	_, err = rawClient(t, f).Nudge(ctx, &linkpb.NudgeRequest{Kind: "Replication"})
	wantStatus(t, err, "Invalid")
}

func wantStatus(t *testing.T, err error, reason string, parts ...string) {
	t.Helper()
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*linkpb.Refusal); ok && r.GetReason() == reason {
			for _, part := range parts {
				if !strings.Contains(r.GetMessage(), part) {
					t.Errorf("%q does not mention %q", r.GetMessage(), part)
				}
			}
			return
		}
	}
	t.Errorf("%v, want reason %s", err, reason)
}
