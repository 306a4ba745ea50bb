package change

import "lifeboat.dev/lifeboat/internal/mover/digest"

// coarsest steps: the first is the block that digests are made of, then each four times the one before.
const (
	firstCoarse = digest.BlockSize
	coarser     = 4
)

// builder collects extents that come in order of their offsets into a list of bounded length.
type builder struct {
	size    int64
	grain   int64
	limit   int
	extents []digest.Extent
}

func newBuilder(size int64) *builder { return &builder{size: size, grain: Grain, limit: MaxExtents} }

// add appends an extent that lies in the volume and begins at or behind the beginning of the one before. It may
// begin inside the one before: widening makes neighbours touch.
func (b *builder) add(offset, length int64) {
	if length <= 0 {
		return
	}
	b.join(offset, length)
	if len(b.extents) > b.limit {
		b.coarsen()
	}
}

// join widens the extent to the grain and appends it, or makes the last one longer.
func (b *builder) join(offset, length int64) {
	end := b.up(offset + length)
	offset -= offset % b.grain
	if n := len(b.extents); n > 0 {
		last := &b.extents[n-1]
		if offset <= last.Offset+last.Length {
			last.Length = max(last.Length, end-last.Offset)
			return
		}
	}
	b.extents = append(b.extents, digest.Extent{Offset: offset, Length: end - offset})
}

// up is the end of the grain that end lies in, or the volume's end.
func (b *builder) up(end int64) int64 {
	rest := end % b.grain
	if rest == 0 {
		return end
	}
	return end + min(b.grain-rest, b.size-end)
}

// coarsen halves the list at least, so that the work spent on coarsening stays proportional to what is added. It
// only widens: no change is lost.
func (b *builder) coarsen() {
	for len(b.extents) > b.limit/2 && len(b.extents) > 1 {
		b.grain = max(firstCoarse, b.grain*coarser)
		fine := b.extents
		b.extents = b.extents[:0] // join writes behind what was read
		for _, e := range fine {
			b.join(e.Offset, e.Length)
		}
	}
}

func (b *builder) list() List { return List{Size: b.size, Extents: b.extents} }
