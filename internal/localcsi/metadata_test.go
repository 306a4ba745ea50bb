package localcsi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"lifeboat.dev/lifeboat/internal/localcsi/filesystem"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// told is what a stream of the SnapshotMetadata service said.
type told struct {
	size     int64
	extents  []digest.Extent
	messages int
	longest  int
}

// hear reads a stream to its end.
func hear[M interface {
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}](recv func() (M, error)) (told, error) {
	var h told
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return told{}, err
		}
		if m.GetBlockMetadataType() != csi.BlockMetadataType_VARIABLE_LENGTH {
			return told{}, fmt.Errorf("the type is %s", m.GetBlockMetadataType())
		}
		h.messages++
		h.size = m.GetVolumeCapacityBytes()
		h.longest = max(h.longest, len(m.GetBlockMetadata()))
		for _, e := range m.GetBlockMetadata() {
			h.extents = append(h.extents, digest.Extent{Offset: e.GetByteOffset(), Length: e.GetSizeBytes()})
		}
	}
}

func (n *node) delta(r *csi.GetMetadataDeltaRequest) (told, error) {
	s, err := csi.NewSnapshotMetadataClient(n.conn).GetMetadataDelta(n.t.Context(), r)
	if err != nil {
		return told{}, err
	}
	return hear(s.Recv)
}

func (n *node) allocated(r *csi.GetMetadataAllocatedRequest) (told, error) {
	s, err := csi.NewSnapshotMetadataClient(n.conn).GetMetadataAllocated(n.t.Context(), r)
	if err != nil {
		return told{}, err
	}
	return hear(s.Recv)
}

// apply copies the extents of from into content and tells whether content is then the same as from.
func apply(t *testing.T, content []byte, from string, extents []digest.Extent) bool {
	t.Helper()
	want, err := os.ReadFile(from)
	must(t, err)
	for _, e := range extents {
		copy(content[e.Offset:e.Offset+e.Length], want[e.Offset:])
	}
	return bytes.Equal(content, want)
}

// A chain of deltas, applied to a copy, gives each snapshot's content; the first comes from what is allocated.
func TestSnapshotsTellWhereTheyDiffer(t *testing.T) {
	for _, kind := range []filesystem.Kind{filesystem.XFS, filesystem.Btrfs} {
		for _, block := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, block %t", kind, block), func(t *testing.T) {
				n := newNodeOn(t, kind, gib)
				capability := fsCapability("ext4")
				if block {
					capability = blockCapability()
				}
				v := n.create("v", 64*mib, capability, nil)
				at := n.use(v, "v", "pod", capability)
				random := rand.New(rand.NewPCG(1, 2))
				copied := make([]byte, 64*mib)
				last := ""
				for round := range 4 {
					scribble(t, random, at, block)
					s := n.snapshotAlternately(round, v)
					var h told
					var err error
					if last == "" {
						h, err = n.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: s})
					} else {
						h, err = n.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: last, TargetSnapshotId: s})
					}
					must(t, err)
					if h.size != 64*mib {
						t.Errorf("the size is %d", h.size)
					}
					var listed int64
					for _, e := range h.extents {
						listed += e.Length
					}
					if listed == 0 || listed > 40*mib {
						t.Errorf("round %d: %d bytes are listed", round, listed)
					}
					if !apply(t, copied, n.driver.pool.SnapshotData(s), h.extents) {
						t.Fatalf("round %d: a change is missing in %v", round, h.extents)
					}
					last = s
				}
			})
		}
	}
}

// snapshotAlternately takes a snapshot, alone or as a group.
func (n *node) snapshotAlternately(round int, v string) string {
	n.t.Helper()
	if round%2 == 0 {
		return n.snapshot(fmt.Sprint("s", round), v)
	}
	g, err := n.tryGroup(fmt.Sprint("g", round), v)
	must(n.t, err)
	return of(g, v)
}

// scribble writes to a few places of a device, or makes and removes files.
func scribble(t *testing.T, random *rand.Rand, at string, block bool) {
	t.Helper()
	for i := range 20 {
		p := make([]byte, 1+random.IntN(30_000))
		for j := range p {
			p[j] = byte(random.Uint32())
		}
		if !block {
			if i%5 == 4 {
				must(t, os.Remove(filepath.Join(at, fmt.Sprint("file-", i-1))))
				continue
			}
			must(t, os.WriteFile(filepath.Join(at, fmt.Sprint("file-", i)), p, 0o600))
			continue
		}
		f, err := os.OpenFile(at, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(p, random.Int64N(60*mib))
		must(t, errors.Join(err, f.Close()))
	}
}

func TestSnapshotMetadataKeepsToItsContract(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	device := n.use(v, "v", "pod", blockCapability())
	empty := n.snapshot("empty", v)
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	must(t, err)
	for i := range int64(10) {
		_, err := f.WriteAt([]byte("written"), i*4*mib)
		must(t, err)
	}
	must(t, f.Close())
	full := n.snapshot("full", v)
	stranger := n.snapshot("stranger", n.create("other", 64*mib, blockCapability(), nil))

	all, err := n.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: empty, TargetSnapshotId: full})
	must(t, err)
	if len(all.extents) != 10 || all.messages != 1 {
		t.Fatalf("%d extents in %d messages", len(all.extents), all.messages)
	}
	same, err := n.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: full})
	must(t, err)
	if !slices.Equal(same.extents, all.extents) {
		t.Errorf("allocated %v, changed since nothing was written %v", same.extents, all.extents)
	}
	t.Run("messages are as short as asked", func(t *testing.T) {
		h, err := n.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: empty, TargetSnapshotId: full, MaxResults: 3})
		must(t, err)
		if h.longest != 3 || h.messages != 4 || !slices.Equal(h.extents, all.extents) {
			t.Errorf("%d messages of at most %d extents: %v", h.messages, h.longest, h.extents)
		}
	})
	t.Run("a list goes on where it was interrupted", func(t *testing.T) {
		for i, e := range all.extents {
			for _, from := range []int64{e.Offset, e.Offset + 1, e.Offset + e.Length - 1} {
				h, err := n.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: empty, TargetSnapshotId: full, StartingOffset: from})
				must(t, err)
				if !slices.Equal(h.extents, all.extents[i:]) {
					t.Errorf("from %d: %v", from, h.extents)
				}
			}
			h, err := n.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: full, StartingOffset: e.Offset + e.Length, MaxResults: 1})
			must(t, err)
			if !slices.Equal(h.extents, all.extents[i+1:]) {
				t.Errorf("behind %v: %v", e, h.extents)
			}
		}
	})
	t.Run("nothing to list is a message with the size", func(t *testing.T) {
		for name, h := range map[string]func() (told, error){
			"no change": func() (told, error) {
				return n.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: full, TargetSnapshotId: full})
			},
			"nothing allocated": func() (told, error) { return n.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: empty}) },
			"from the end": func() (told, error) {
				return n.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: full, StartingOffset: 64 * mib})
			},
		} {
			got, err := h()
			must(t, err)
			if got.messages != 1 || got.size != 64*mib || len(got.extents) > 0 {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
	t.Run("refusals", func(t *testing.T) {
		for name, c := range map[string]struct {
			request *csi.GetMetadataDeltaRequest
			want    codes.Code
		}{
			"no base":              {&csi.GetMetadataDeltaRequest{TargetSnapshotId: full}, codes.InvalidArgument},
			"no target":            {&csi.GetMetadataDeltaRequest{BaseSnapshotId: full}, codes.InvalidArgument},
			"unknown base":         {&csi.GetMetadataDeltaRequest{BaseSnapshotId: "x", TargetSnapshotId: full}, codes.NotFound},
			"unknown target":       {&csi.GetMetadataDeltaRequest{BaseSnapshotId: full, TargetSnapshotId: "../x"}, codes.NotFound},
			"another volume":       {&csi.GetMetadataDeltaRequest{BaseSnapshotId: stranger, TargetSnapshotId: full}, codes.InvalidArgument},
			"negative offset":      {&csi.GetMetadataDeltaRequest{BaseSnapshotId: empty, TargetSnapshotId: full, StartingOffset: -1}, codes.OutOfRange},
			"offset behind it":     {&csi.GetMetadataDeltaRequest{BaseSnapshotId: empty, TargetSnapshotId: full, StartingOffset: 64*mib + 1}, codes.OutOfRange},
			"negative max_results": {&csi.GetMetadataDeltaRequest{BaseSnapshotId: empty, TargetSnapshotId: full, MaxResults: -1}, codes.InvalidArgument},
		} {
			_, err := n.delta(c.request)
			t.Log(name)
			wantCode(t, err, c.want)
		}
		_, err := n.allocated(&csi.GetMetadataAllocatedRequest{})
		wantCode(t, err, codes.InvalidArgument)
		_, err = n.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: "x"})
		wantCode(t, err, codes.NotFound)
	})
}

func TestDeltaOfAVolumeThatGrewListsTheNewPart(t *testing.T) {
	n := newNode(t)
	v := n.create("v", 64*mib, blockCapability(), nil)
	small := n.snapshot("small", v)
	_, err := n.controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: v, CapacityRange: &csi.CapacityRange{RequiredBytes: 96 * mib}})
	must(t, err)
	large := n.snapshot("large", v)
	h, err := n.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: small, TargetSnapshotId: large})
	must(t, err)
	if want := []digest.Extent{{Offset: 64 * mib, Length: 32 * mib}}; h.size != 96*mib || !slices.Equal(h.extents, want) {
		t.Errorf("%+v", h)
	}
}
