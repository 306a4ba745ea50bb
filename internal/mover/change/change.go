// Package change knows where a volume changed without reading it: from a list somebody else wrote down, from the
// block maps of two files that share blocks, or from the CSI SnapshotMetadata service.
//
// A List is complete or it is an error; a source that ends early, contradicts itself or cannot be trusted never
// yields a short list. The package reads no content, writes nothing to a volume, and knows no session and no
// cluster. Begin with List and Origin, then Delta and Allocated.
package change

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

const (
	// Grain is what extents are widened to, in bytes: the unit in which changes travel.
	Grain = 4096
	// MaxExtents bounds a list and with it the memory, 16 bytes each. A list that would be longer is made coarser.
	MaxExtents = 1 << 20
)

// List says which parts of one volume differ from an earlier instant, or were ever written.
//
// Invariant: it is complete. Every byte outside Extents is as it was (Delta) or zero (Allocated). Extents are in
// order, do not touch each other, begin at multiples of Grain and end at one or at Size.
type List struct {
	Size    int64 // of the volume, in bytes
	Extents []digest.Extent
}

// Bytes is the sum of the extents' lengths.
func (l *List) Bytes() int64 {
	var sum int64
	for _, e := range l.Extents {
		sum += e.Length
	}
	return sum
}

// Origin is where a list comes from: exactly one field is set. Its JSON form stands in a mover's configuration.
type Origin struct {
	// File is the path of an extents file; see Read for its format.
	File string `json:"file,omitempty"`
	// BaseFile is the volume's earlier instant: a file that shares blocks with the volume's file, on the same XFS
	// or btrfs. It must exist unchanged since that instant: once it is gone, its blocks are used again and addresses
	// mean nothing.
	BaseFile string `json:"baseFile,omitempty"`
	// CSI asks the storage driver.
	CSI *CSI `json:"csi,omitempty"`
}

// CSI names two instants of a volume and the SnapshotMetadata service of Kubernetes that knows what lies between.
type CSI struct {
	// Address is host:port, as in the driver's SnapshotMetadataService object.
	Address string `json:"address"`
	// CAFile holds the certificates that the service is checked against, PEM.
	CAFile string `json:"caFile"`
	// ServerName is the name the service's certificate must bear. Empty: the host of Address.
	ServerName string `json:"serverName,omitempty"`
	// TokenFile holds the token that names us to the service. It is read at each call: tokens are renewed.
	TokenFile string `json:"tokenFile"`
	// Namespace is where the VolumeSnapshot is.
	Namespace string `json:"namespace"`
	// BaseSnapshot is the storage's own name (the snapshot handle) of the earlier instant. The snapshot must still
	// exist. Empty for Allocated.
	BaseSnapshot string `json:"baseSnapshot,omitempty"`
	// Snapshot is the name of the VolumeSnapshot that the volume was made from.
	Snapshot string `json:"snapshot"`
}

// Delta lists what changed in the volume at path device, size bytes large, since the instant o names. The volume
// and the earlier instant must not change meanwhile. A service that hangs is ended by ctx only: give it a deadline.
func Delta(ctx context.Context, device string, size int64, o Origin) (List, error) {
	if err := o.check(true); err != nil {
		return List{}, err
	}
	switch {
	case o.File != "":
		return ReadFile(o.File, size)
	case o.BaseFile != "":
		return compareFiles(ctx, o.BaseFile, device, size)
	}
	return o.CSI.delta(ctx, size)
}

// Allocated lists what was ever written to the volume at path device, size bytes large; the rest reads as zeros. An
// empty origin asks the volume itself, which must be a file: a block device does not know. Space that was reserved
// but never written is not listed.
func Allocated(ctx context.Context, device string, size int64, o Origin) (List, error) {
	if err := o.check(false); err != nil {
		return List{}, err
	}
	switch {
	case o.File != "":
		return ReadFile(o.File, size)
	case o.CSI != nil:
		return o.CSI.allocated(ctx, size)
	}
	return allocatedInFile(ctx, device, size)
}

// BadOrigin is an origin that cannot be asked: a mistake in the configuration.
type BadOrigin struct{ Field, Problem string }

func (b *BadOrigin) Error() string { return fmt.Sprintf("change list: %s %s", b.Field, b.Problem) }

// SizeDiffers is a list of another volume, or of one that was resized since: it is of no use.
type SizeDiffers struct {
	Origin       string
	Listed, Size int64
}

func (s *SizeDiffers) Error() string {
	return fmt.Sprintf("change list from %s is of a volume of %d bytes, this one has %d: make the list anew", s.Origin, s.Listed, s.Size)
}

func (o Origin) check(delta bool) error {
	var set []string
	if o.File != "" {
		set = append(set, "file")
	}
	if o.BaseFile != "" {
		set = append(set, "baseFile")
	}
	if o.CSI != nil {
		set = append(set, "csi")
	}
	switch {
	case len(set) > 1:
		return &BadOrigin{strings.Join(set, " and "), "are both set: name one origin"}
	case len(set) == 0 && delta:
		return &BadOrigin{"origin", "is empty: set file, baseFile or csi"}
	case o.BaseFile != "" && !delta:
		return &BadOrigin{"baseFile", "tells what changed, not what was ever written: leave the origin empty, or set file or csi"}
	case o.CSI != nil:
		return o.CSI.check(delta)
	}
	return nil
}

// Normalize returns extents sorted, widened to multiples of grain, joined where they touch, and cut at size. An
// extent that leaves the volume is an error. Empty extents are dropped; the argument is not changed.
func Normalize(size int64, extents []digest.Extent, grain int64) ([]digest.Extent, error) {
	sorted := slices.Clone(extents)
	slices.SortFunc(sorted, func(a, b digest.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	b := builder{size: size, grain: grain, limit: len(sorted)}
	for _, e := range sorted {
		if !within(e.Offset, e.Length, size) {
			return nil, fmt.Errorf("extent of %d bytes at %d leaves the volume of %d bytes", e.Length, e.Offset, size)
		}
		b.add(e.Offset, e.Length)
	}
	return b.extents, nil
}

// within tells whether the extent lies in a volume of size bytes, without overflow.
func within(offset, length, size int64) bool {
	return offset >= 0 && length >= 0 && offset <= size && length <= size-offset
}
