package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/tree"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// commit makes the delta's instant the recovery point and applies it.
func (t *Target) commit(ctx context.Context) error {
	began := t.parts.Now()
	t.meter.phase(PhaseCommitting, "")
	if err := t.spool.Commit(); err != nil {
		return classify("spool "+t.cfg.Spool, err)
	}
	committed := t.parts.Now()
	t.overflow = ""
	t.note()
	t.meter.phase(PhaseApplying, "")
	err := t.apply(ctx)
	t.note()
	if err == nil {
		t.parts.Log.Info("recovery point committed and applied", "point", t.spool.State().Committed.ID,
			"commitSeconds", committed.Sub(began).Seconds(), "applySeconds", t.parts.Now().Sub(committed).Seconds())
	}
	return err
}

// redo applies a committed delta that was interrupted. A log that is damaged on disk cannot be applied whole: then
// there is no recovery point any more, and the state says so, until a source brings one.
func (t *Target) redo(ctx context.Context) error {
	if !t.spool.Pending() {
		return nil
	}
	t.meter.phase(PhaseRedoing, "")
	err := t.apply(ctx)
	var damaged *spool.Damaged
	var wrong *session.Integrity
	var diverged *tree.Diverged
	if errors.As(err, &damaged) || errors.As(err, &wrong) || errors.As(err, &diverged) {
		t.parts.Log.Error("recovery point lost: its delta cannot be applied whole", "error", err.Error())
		t.meter.phase(PhaseRedoing, "the committed recovery point is lost, its delta cannot be applied whole: "+err.Error())
		err = t.spool.Abandon()
	}
	if err == nil {
		// Nobody waits here, so a disk that fails is told of rather than found out by the next session.
		err = classify("spool "+t.cfg.Spool, t.spool.Sweep())
	}
	t.note()
	return err
}

// sweep removes a delta that is applied, once its source was told. What stays behind for now is removed by the next one.
func (t *Target) sweep() {
	if err := t.spool.Sweep(); err != nil {
		t.parts.Log.Warn("a delta that is applied was not removed", "error", err.Error())
	}
}

// apply brings the committed delta onto the replicas and into the digest maps. Doing it again, from the beginning,
// after a crash at any point gives the same: that is why nothing of it is recorded before all of it is durable.
func (t *Target) apply(ctx context.Context) error {
	d := t.spool.State().Delta
	if len(d.Members) > 0 && d.Members[0].Kind == wire.KindTree {
		return t.applyTrees(ctx, d)
	}
	a := &application{target: t, delta: d, slots: make(chan struct{}, appliesAtOnce)}
	// Nothing writes to a replica any more when this returns.
	defer a.writes.Wait()
	var err error
	if a.index, err = t.indexes(d.Members); err != nil {
		return err
	}
	a.maps = t.mapsToUpdate(d)
	defer a.maps.close()
	err = t.spool.Replay(func(m wire.Message) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return a.record(m)
	})
	a.writes.Wait()
	if err := errors.Join(err, a.failed()); err != nil {
		return err
	}
	for _, v := range a.index {
		if err := t.parts.Volumes[v].Sync(); err != nil {
			return t.volumeError(v, err)
		}
	}
	return classify("spool "+t.cfg.Spool, t.spool.Settle(a.maps.refs(t.parts.Log)))
}

// indexes finds the volumes of a delta by name.
func (t *Target) indexes(members []wire.Member) ([]int, error) {
	out := make([]int, len(members))
	for i, m := range members {
		v, err := t.memberNamed(m)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// memberNamed finds a volume of a delta among the target's. It may have grown since.
func (t *Target) memberNamed(m wire.Member) (int, error) {
	v := slices.IndexFunc(t.members, func(x wire.Member) bool {
		return x.Name == m.Name && x.Kind == m.Kind && x.Size >= m.Size
	})
	if v < 0 {
		return 0, &ConfigError{
			Field: "volumes", Found: "without " + m.Name,
			Want: fmt.Sprintf("a committed recovery point waits to be applied to volume %s of %d bytes: name it until that is done", m.Name, m.Size),
		}
	}
	return v, nil
}

// application is one run over a delta's log.
type application struct {
	target *Target
	delta  *spool.Delta
	index  []int // volumes of the delta -> of the target
	maps   maps  // by volume of the delta
	dirty  bool  // the segment at hand has records
	done   int64

	// Records never overlap: they are written side by side.
	slots  chan struct{}
	writes sync.WaitGroup
	mu     sync.Mutex
	err    error
}

// failed is the first error of a write.
func (a *application) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// put brings a record onto its replica. What its payload lies in belongs to the log's reader, which goes on.
func (a *application) put(m wire.Message, v int) error {
	if err := a.failed(); err != nil {
		return err
	}
	d, isData := m.(wire.Data)
	var packed []byte
	var from *volume.Pool
	if isData {
		if len(d.Payload) > wire.MaxRecord {
			return &session.Integrity{What: fmt.Sprintf("record of volume %d at %d: it is longer than any record", d.Volume, d.Offset)}
		}
		from = recordPool(len(d.Payload))
		packed = from.Get()
		d.Payload = packed[:copy(packed, d.Payload)]
	}
	a.slots <- struct{}{}
	a.writes.Go(func() {
		defer func() { <-a.slots }()
		if from != nil {
			defer from.Put(packed)
		}
		if err := a.write(m, d, isData, v); err != nil {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.err == nil {
				a.err = err
			}
		}
	})
	return nil
}

func (a *application) write(m wire.Message, d wire.Data, isData bool, v int) error {
	if !isData {
		return a.target.put(v, m, nil)
	}
	var memory []byte
	if !liesRight(d) {
		from := recordPool(d.Length)
		memory = from.Get()
		defer from.Put(memory)
	}
	raw, err := a.target.check.unpack(d, a.delta.Members[d.Volume].Size, memory)
	if err != nil {
		return err
	}
	return a.target.put(v, d, raw)
}

func (a *application) record(m wire.Message) error {
	t := a.target
	switch m := m.(type) {
	case wire.Data:
		if !a.delta.Direct {
			if err := a.put(m, a.index[m.Volume]); err != nil {
				return err
			}
		}
		a.maps.update(m.Volume, m.Offset, m.Digests)
		a.dirty = true
	case wire.Hole:
		if !a.delta.Direct {
			if err := a.put(m, a.index[m.Volume]); err != nil {
				return err
			}
		}
		a.maps.update(m.Volume, m.Offset, make([]digest.Digest, (m.Length+digest.BlockSize-1)/digest.BlockSize))
		a.dirty = true
	case wire.SegmentEnd:
		if a.dirty {
			a.maps.seal(m.Volume, m.Segment, m.Digest)
		}
		a.dirty = false
		a.done += digest.Geometry{Size: a.delta.Members[m.Volume].Size}.SegmentLen(m.Segment)
		total := t.meter.read().BytesTotal
		t.meter.progress(min(a.done, total), total)
	}
	return nil
}

// maps are the digest maps of a group, open. A map that cannot be read or written is given up: it is built again from
// the replica when it is needed, and nothing else depends on it.
type maps []*openMap

type openMap struct {
	name string // of the volume
	size int64
	ref  string // of the file
	file spool.File
	m    *digest.Map
	err  error

	// The blocks of the segment that update is at, until seal writes them; nil: none.
	segment int
	blocks  []digest.Digest
}

func (ms maps) close() {
	for _, o := range ms {
		if o.file != nil {
			_ = o.file.Close()
		}
	}
}

func (ms maps) blocks(v, s int) ([]digest.Digest, error) { return ms[v].m.Blocks(s) }

func (ms maps) update(v int, at int64, digests []digest.Digest) {
	o := ms[v]
	if s := int(at / digest.SegmentSize); o.err == nil && (o.blocks == nil || o.segment != s) {
		o.put()
		if o.err == nil {
			o.segment = s
			o.blocks, o.err = o.m.Held(s)
		}
	}
	if o.err == nil {
		copy(o.blocks[at%digest.SegmentSize/digest.BlockSize:], digests)
	}
}

// put writes blocks whose segment was not sealed.
func (o *openMap) put() {
	if o.blocks == nil || o.err != nil {
		return
	}
	o.err = o.m.Update(int64(o.segment)*digest.SegmentSize, o.blocks)
	o.blocks = nil
}

// seal ends a segment, whose digest is known: a map that comes to another one was wrong before.
func (ms maps) seal(v, s int, want digest.Digest) {
	o := ms[v]
	if o.err != nil {
		return
	}
	var got digest.Digest
	switch {
	case o.blocks != nil && o.segment == s:
		got = digest.Segment(o.blocks)
		o.err = o.m.SetSegment(s, o.blocks)
		o.blocks = nil
	default:
		got, o.err = o.m.Seal(s)
	}
	if o.err == nil && got != want {
		o.err = fmt.Errorf("%w: segment %d comes to %.16s instead of %.16s", digest.ErrDamaged, s, got, want)
	}
}

// refs makes the maps durable and describes those that are whole.
func (ms maps) refs(log logger) map[string]spool.MapRef {
	out := map[string]spool.MapRef{}
	for _, o := range ms {
		o.put()
		if o.err == nil {
			o.err = o.m.Sync()
		}
		var ref spool.MapRef
		if o.err == nil {
			ref, o.err = spool.Ref(o.ref, o.m, o.size)
		}
		if o.err != nil {
			log.Warn("digest map given up, it will be built again from the replica", "volume", o.name, "error", o.err.Error())
			continue
		}
		out[o.name] = ref
	}
	return out
}

type logger interface{ Warn(string, ...any) }

// mapsToUpdate opens the maps a delta updates; a full copy makes them new.
func (t *Target) mapsToUpdate(d *spool.Delta) maps {
	out := make(maps, len(d.Members))
	for v, member := range d.Members {
		o := &openMap{name: member.Name, size: member.Size}
		out[v] = o
		if !d.Tier.Compares() {
			o.create(t.spool)
			continue
		}
		ref, ok := t.spool.State().Maps[member.Name]
		if !ok {
			o.err = errors.New("there is none")
			continue
		}
		o.open(t.spool, ref)
	}
	return out
}

func (o *openMap) create(s *spool.Spool) {
	if o.ref, o.file, o.err = s.CreateMapFile(); o.err == nil {
		o.m, o.err = digest.CreateMap(o.file, digest.Geometry{Size: o.size})
	}
}

func (o *openMap) open(s *spool.Spool, ref spool.MapRef) {
	o.ref = ref.File
	if ref.Size != o.size {
		o.err = fmt.Errorf("it is of %d bytes, the volume has %d", ref.Size, o.size)
		return
	}
	if o.file, o.err = s.OpenMapFile(ref.File); o.err == nil {
		o.m, o.err = digest.OpenMap(o.file, digest.Geometry{Size: o.size})
	}
}

// openMaps opens the maps that describe the replicas, building those that are missing or damaged from the replicas'
// bytes. It also returns their segment digests.
func (t *Target) openMaps(ctx context.Context) (maps, [][]digest.Digest, error) {
	out := make(maps, len(t.members))
	expect := make([][]digest.Digest, len(t.members))
	refs := map[string]spool.MapRef{}
	built := false
	for v, member := range t.members {
		o := &openMap{name: member.Name, size: member.Size}
		out[v] = o
		ref, known := t.spool.State().Maps[member.Name]
		if known {
			o.open(t.spool, ref)
			if o.err == nil {
				expect[v], o.err = o.m.Segments()
			}
			if o.err == nil && spool.MapRoot(expect[v]) == ref.Root {
				refs[member.Name] = ref
				continue
			}
			t.parts.Log.Warn("digest map is damaged, it is built again from the replica", "volume", member.Name)
			if o.file != nil {
				_ = o.file.Close()
			}
			*o = openMap{name: member.Name, size: member.Size}
		}
		built = true
		var err error
		if refs[member.Name], expect[v], err = t.build(ctx, v, o); err != nil {
			out[:v+1].close()
			return nil, nil, err
		}
	}
	if built {
		if err := t.spool.SetMaps(refs); err != nil {
			out.close()
			return nil, nil, classify("spool "+t.cfg.Spool, err)
		}
	}
	return out, expect, nil
}

// fill reads what the maps do not know: blocks of which a list of changes named only a part. Sessions with a list need
// none of it, one that compares would find them all different.
func (t *Target) fill(ctx context.Context, ms maps, expect [][]digest.Digest) error {
	filled := false
	from := t.reading()
	buf := volume.Buffer(digest.BlockSize)
	for v, o := range ms {
		for s := range expect[v] {
			if expect[v][s] != digest.Unknown {
				continue
			}
			filled = true
			t.meter.phase(PhaseReconciling, "reads blocks of replica "+o.name+" that changed in part")
			sealed, err := o.fill(ctx, from, v, s, buf)
			if err != nil {
				return classify("spool "+t.cfg.Spool, err)
			}
			expect[v][s] = sealed
		}
	}
	if !filled {
		return nil
	}
	return classifyNil("spool "+t.cfg.Spool, t.spool.SetMaps(ms.refs(t.parts.Log)))
}

// fill completes one segment of a map.
func (o *openMap) fill(ctx context.Context, from reading, v, s int, buf []byte) (digest.Digest, error) {
	geo := digest.Geometry{Size: o.size}
	blocks, err := o.m.Blocks(s)
	if errors.Is(err, digest.ErrDamaged) {
		// Filling was interrupted: what was written of it may be there or not.
		blocks, err = make([]digest.Digest, geo.SegmentBlocks(s)), nil
		for i := range blocks {
			blocks[i] = digest.Unknown
		}
	}
	if err != nil {
		return digest.Digest{}, err
	}
	for i, d := range blocks {
		if d != digest.Unknown {
			continue
		}
		at := geo.SegmentStart(s) + int64(i)*digest.BlockSize
		p := buf[:min(digest.BlockSize, o.size-at)]
		if err := from.bytes(ctx, v, p, at); err != nil {
			return digest.Digest{}, err
		}
		blocks[i] = digest.Block(p)
	}
	if err := o.m.SetSegment(s, blocks); err != nil {
		return digest.Digest{}, err
	}
	return digest.Segment(blocks), nil
}

// reading is how replicas are read to learn what they hold.
func (t *Target) reading() reading {
	r := reading{limit: t.reads, read: new(atomic.Int64)}
	for i, v := range t.parts.Volumes {
		r.volumes, r.names = append(r.volumes, v), append(r.names, t.cfg.Volumes[i].Name)
	}
	return r
}

// build reads a replica and makes its digest map.
func (t *Target) build(ctx context.Context, v int, o *openMap) (spool.MapRef, []digest.Digest, error) {
	t.meter.phase(PhaseReconciling, "reads replica "+o.name+" to learn what it holds")
	o.create(t.spool)
	if o.err != nil {
		return spool.MapRef{}, nil, classify("spool "+t.cfg.Spool, o.err)
	}
	err := t.reading().digestVolume(ctx, v, func(s int, blocks []digest.Digest, done int64) error {
		t.meter.progress(done, o.size)
		return o.m.SetSegment(s, blocks)
	})
	if err != nil {
		return spool.MapRef{}, nil, classify("spool "+t.cfg.Spool, err)
	}
	if err := o.m.Sync(); err != nil {
		return spool.MapRef{}, nil, classify("spool "+t.cfg.Spool, err)
	}
	expect, err := o.m.Segments()
	if err != nil {
		return spool.MapRef{}, nil, classify("spool "+t.cfg.Spool, err)
	}
	ref, err := spool.Ref(o.ref, o.m, o.size)
	return ref, expect, err
}

// digestVolume digests all segments of a volume; visit is called for one at a time.
func (r reading) digestVolume(ctx context.Context, v int, visit func(s int, blocks []digest.Digest, done int64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	segments := make(chan session.Scan)
	go func() {
		defer close(segments)
		for s := range (digest.Geometry{Size: r.volumes[v].Size()}).Segments() {
			select {
			case segments <- session.Scan{Volume: v, Segment: s}:
			case <-ctx.Done():
				return
			}
		}
	}()
	var mu sync.Mutex
	r.scan(ctx, segments, func(s session.Scanned, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			err = visit(s.Segment, s.Digests, r.read.Load())
		}
		if err != nil {
			cancel(err)
		}
	})
	return context.Cause(ctx)
}
