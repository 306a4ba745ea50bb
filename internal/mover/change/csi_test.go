package change

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

const (
	goodToken = "the-token-of-the-mover"
	capacity  = 100 * Grain
)

// message is one message of a stream, in multiples of Grain. A message with an err ends the stream with it.
type message struct {
	kind     api.BlockMetadataType
	capacity int64
	extents  [][2]int64
	err      error
	cut      bool // the connection is closed here
}

const (
	fixed    = api.BlockMetadataType_FIXED_LENGTH
	variable = api.BlockMetadataType_VARIABLE_LENGTH
)

func says(kind api.BlockMetadataType, extents ...[2]int64) message {
	return message{kind: kind, capacity: capacity, extents: extents}
}

// service is a SnapshotMetadata service that says what it is told, stream after stream.
type service struct {
	api.UnimplementedSnapshotMetadataServer
	csi *CSI
	// stubborn services say everything, wherever they are asked to begin.
	stubborn bool

	mu      sync.Mutex
	streams [][]message
	asked   []*api.GetMetadataDeltaRequest
	conns   []net.Conn
}

func (s *service) GetMetadataDelta(r *api.GetMetadataDeltaRequest, out grpc.ServerStreamingServer[api.GetMetadataDeltaResponse]) error {
	return s.answer(r, func(m *api.GetMetadataDeltaResponse) error { return out.Send(m) }, out.Context())
}

func (s *service) GetMetadataAllocated(r *api.GetMetadataAllocatedRequest, out grpc.ServerStreamingServer[api.GetMetadataAllocatedResponse]) error {
	same := &api.GetMetadataDeltaRequest{SecurityToken: r.SecurityToken, Namespace: r.Namespace, TargetSnapshotName: r.SnapshotName, StartingOffset: r.StartingOffset, MaxResults: r.MaxResults}
	return s.answer(same, func(m *api.GetMetadataDeltaResponse) error {
		return out.Send(&api.GetMetadataAllocatedResponse{BlockMetadataType: m.BlockMetadataType, VolumeCapacityBytes: m.VolumeCapacityBytes, BlockMetadata: m.BlockMetadata})
	}, out.Context())
}

func (s *service) answer(r *api.GetMetadataDeltaRequest, send func(*api.GetMetadataDeltaResponse) error, ctx context.Context) error {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	var say []message
	if len(s.streams) > 0 {
		say, s.streams = s.streams[0], s.streams[1:]
	}
	s.mu.Unlock()
	if r.SecurityToken != goodToken {
		return status.Errorf(codes.Unauthenticated, "token %q is not known", r.SecurityToken)
	}
	for _, m := range say {
		switch {
		case m.cut:
			s.cut()
			<-ctx.Done()
			return nil
		case m.err != nil:
			return m.err
		}
		out := &api.GetMetadataDeltaResponse{BlockMetadataType: m.kind, VolumeCapacityBytes: m.capacity}
		for _, e := range m.extents {
			if (e[0]+e[1])*Grain <= r.StartingOffset && !s.stubborn {
				continue
			}
			out.BlockMetadata = append(out.BlockMetadata, &api.BlockMetadata{ByteOffset: e[0] * Grain, SizeBytes: e[1] * Grain})
		}
		if err := send(out); err != nil {
			return err
		}
	}
	return nil
}

// cut closes every connection under the streams.
func (s *service) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
}

// Accept notes connections, so that they can be cut.
type noting struct {
	net.Listener
	s *service
}

func (n noting) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if err == nil {
		n.s.mu.Lock()
		n.s.conns = append(n.s.conns, c)
		n.s.mu.Unlock()
	}
	return c, err
}

// serve starts a service over TLS that will say these streams.
func serve(t *testing.T, streams ...[]message) *service {
	t.Helper()
	dir := t.TempDir()
	certificate, authority := certify(t, "snapshot-metadata.test")
	s := &service{streams: streams}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}})))
	api.RegisterSnapshotMetadataServer(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(noting{l, s})
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	s.csi = &CSI{Address: l.Addr().String(), ServerName: "snapshot-metadata.test", Namespace: "shop", Snapshot: "s2", BaseSnapshot: "handle-1",
		CAFile: filepath.Join(dir, "ca.crt"), TokenFile: filepath.Join(dir, "token")}
	must(t, os.WriteFile(s.csi.CAFile, authority, 0o600))
	must(t, os.WriteFile(s.csi.TokenFile, []byte(goodToken+"\n"), 0o600))
	return s
}

// certify makes a certificate for the name, signed by itself.
func certify(t *testing.T, name string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (s *service) delta(t *testing.T) (List, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return Delta(ctx, "", capacity, Origin{CSI: s.csi})
}

func wantExtents(t *testing.T, l List, want ...[2]int64) {
	t.Helper()
	var w []digest.Extent
	for _, e := range want {
		w = append(w, digest.Extent{Offset: e[0] * Grain, Length: e[1] * Grain})
	}
	if !slices.Equal(l.Extents, w) {
		t.Errorf("listed %v, want %v", l.Extents, w)
	}
}

func TestServiceListsWhatChanged(t *testing.T) {
	s := serve(t, []message{says(variable, [2]int64{0, 2}, [2]int64{10, 1}), says(variable), says(variable, [2]int64{11, 3}, [2]int64{99, 1})})
	l, err := s.delta(t)
	must(t, err)
	wantExtents(t, l, [2]int64{0, 2}, [2]int64{10, 4}, [2]int64{99, 1})
	r := s.asked[0]
	if r.Namespace != "shop" || r.BaseSnapshotId != "handle-1" || r.TargetSnapshotName != "s2" || r.StartingOffset != 0 {
		t.Errorf("asked for %v", r)
	}
}

func TestServiceListsWhatIsAllocated(t *testing.T) {
	s := serve(t, []message{says(fixed, [2]int64{0, 2}, [2]int64{10, 2})})
	s.csi.BaseSnapshot = ""
	l, err := Allocated(t.Context(), "", capacity, Origin{CSI: s.csi})
	must(t, err)
	wantExtents(t, l, [2]int64{0, 2}, [2]int64{10, 2})
}

func TestStreamWithoutMessagesSaysThatNothingChanged(t *testing.T) {
	l, err := serve(t, nil).delta(t)
	must(t, err)
	wantExtents(t, l)
}

func TestLastOfEqualBlocksMayStickOut(t *testing.T) {
	s := serve(t, []message{says(fixed, [2]int64{0, 8}, [2]int64{96, 8})})
	l, err := s.delta(t)
	must(t, err)
	wantExtents(t, l, [2]int64{0, 8}, [2]int64{96, 4})
}

var unavailable = message{err: status.Error(codes.Unavailable, "the driver restarts")}

func TestBrokenStreamGoesOnOnce(t *testing.T) {
	for name, broken := range map[string]message{"an error in the middle": unavailable, "the connection is cut": {cut: true}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t,
				[]message{says(variable, [2]int64{0, 2}, [2]int64{10, 4}), broken},
				[]message{says(variable, [2]int64{0, 2}), says(variable, [2]int64{10, 6}, [2]int64{50, 1})}) // 10 to 16 begins before what was received
			l, err := s.delta(t)
			must(t, err)
			wantExtents(t, l, [2]int64{0, 2}, [2]int64{10, 6}, [2]int64{50, 1})
			if len(s.asked) != 2 || broken.err != nil && s.asked[1].StartingOffset != 14*Grain {
				t.Errorf("asked: %v", s.asked) // what was sent just before a cut may never arrive
			}
		})
	}
}

func TestStreamThatBreaksTwiceIsNoList(t *testing.T) {
	for name, broken := range map[string]message{"errors": unavailable, "cuts": {cut: true}} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, []message{says(variable, [2]int64{0, 2}), broken}, []message{says(variable, [2]int64{10, 4}), broken}, []message{says(variable, [2]int64{50, 1})})
			l, err := s.delta(t)
			var failed *ServiceFailed
			if !errors.As(err, &failed) || failed.Code != codes.Unavailable || len(l.Extents) > 0 {
				t.Errorf("got %v, %v", l, err)
			}
			if len(s.asked) != 2 {
				t.Errorf("asked %d times", len(s.asked))
			}
		})
	}
}

func TestServiceThatSaysNoIsNotAskedAgain(t *testing.T) {
	for _, code := range []codes.Code{codes.PermissionDenied, codes.NotFound, codes.InvalidArgument, codes.Unimplemented, codes.FailedPrecondition, codes.OutOfRange} {
		s := serve(t, []message{says(variable, [2]int64{0, 2}), {err: status.Error(code, "no")}}, []message{says(variable)})
		l, err := s.delta(t)
		var failed *ServiceFailed
		if !errors.As(err, &failed) || failed.Code != code || len(l.Extents) > 0 || len(s.asked) != 1 {
			t.Errorf("%s: got %v, %v after %d calls", code, l, err, len(s.asked))
		}
	}
}

func TestAServiceThatIsNotThereIsAbsent(t *testing.T) {
	s := serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.csi.Address = l.Addr().String()
	must(t, l.Close())
	if _, err := s.delta(t); !Absent(err) {
		t.Errorf("nobody listens: %v", err)
	}
	s = serve(t, []message{{err: status.Error(codes.NotFound, "no")}})
	if _, err := s.delta(t); err == nil || Absent(err) {
		t.Errorf("it says no: %v", err)
	}
}

func TestUnknownTokenIsRefusedAndNotRepeated(t *testing.T) {
	s := serve(t, []message{says(variable)})
	must(t, os.WriteFile(s.csi.TokenFile, []byte("of-somebody-else"), 0o600))
	_, err := s.delta(t)
	var failed *ServiceFailed
	if !errors.As(err, &failed) || failed.Code != codes.Unauthenticated {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), "of-somebody-else") {
		t.Errorf("the error shows the token: %v", err)
	}
	must(t, os.WriteFile(s.csi.TokenFile, []byte(" \n"), 0o600))
	var bad *BadOrigin
	if _, err := s.delta(t); !errors.As(err, &bad) {
		t.Errorf("an empty token: %v", err)
	}
}

func TestServiceThatCannotProveWhoItIsGetsNoToken(t *testing.T) {
	_, stranger := certify(t, "snapshot-metadata.test")
	for name, spoil := range map[string]func(*CSI){
		"another authority": func(c *CSI) { must(t, os.WriteFile(c.CAFile, stranger, 0o600)) },
		"another name":      func(c *CSI) { c.ServerName = "somebody.else" },
	} {
		s := serve(t, []message{says(variable)})
		spoil(s.csi)
		if _, err := s.delta(t); err == nil {
			t.Errorf("%s: taken", name)
		}
		if len(s.asked) > 0 {
			t.Errorf("%s: it was asked", name)
		}
	}
}

func TestAnswerThatBreaksTheContractIsNoList(t *testing.T) {
	size := says(variable, [2]int64{0, 1})
	size.capacity += Grain
	for name, stream := range map[string][]message{
		"overlapping extents":               {says(variable, [2]int64{0, 4}, [2]int64{3, 4})},
		"overlapping across messages":       {says(variable, [2]int64{0, 4}), says(variable, [2]int64{3, 4})},
		"out of order":                      {says(variable, [2]int64{10, 1}, [2]int64{0, 1})},
		"an extent outside the volume":      {says(variable, [2]int64{99, 2})},
		"an extent behind the volume":       {says(fixed, [2]int64{100, 1})},
		"a negative offset":                 {says(variable, [2]int64{-1, 2})},
		"an empty extent":                   {says(variable, [2]int64{5, 0})},
		"an overflowing extent":             {says(variable, [2]int64{5, (1<<63 - 1) / Grain})},
		"unequal fixed blocks":              {says(fixed, [2]int64{0, 1}, [2]int64{5, 2})},
		"unequal fixed blocks later":        {says(fixed, [2]int64{0, 1}), says(fixed, [2]int64{5, 2})},
		"no type":                           {says(api.BlockMetadataType_UNKNOWN, [2]int64{0, 1})},
		"another type later":                {says(variable, [2]int64{0, 1}), says(fixed, [2]int64{5, 1})},
		"the wrong size":                    {size},
		"the wrong size later":              {says(variable, [2]int64{0, 1}), {kind: variable, capacity: capacity - Grain}},
		"no size":                           {{kind: variable}},
		"it goes on before what was asked":  {says(variable, [2]int64{0, 4}), unavailable},
		"it goes on and overlaps afterward": {says(variable, [2]int64{20, 4}), unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, stream, []message{says(variable, [2]int64{2, 1}), says(variable, [2]int64{22, 1})})
			s.stubborn = true
			l, err := s.delta(t)
			var bad *BadStream
			var differs *SizeDiffers
			if !errors.As(err, &bad) && !errors.As(err, &differs) || len(l.Extents) > 0 {
				t.Errorf("got %v, %v", l, err)
			}
		})
	}
}

func TestServiceThatHangsEndsWithItsDeadline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	must(t, err)
	defer func() { _ = l.Close() }()
	s := serve(t)
	s.csi.Address = l.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Delta(ctx, "", capacity, Origin{CSI: s.csi}); err == nil {
		t.Error("a list came out of it")
	}
}
