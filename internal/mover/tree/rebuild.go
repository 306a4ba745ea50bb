package tree

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// BuildIndex makes the index of a replica from the replica itself, reading all of it. What it lacks is what only a
// source knows: inode numbers and times of change; so the next session compares everything, by digests. progress is
// told how many bytes were read and may be nil.
func BuildIndex(ctx context.Context, sp *spool.Spool, root string, progress func(done int64)) (spool.MapRef, error) {
	w, err := newIndexWriter(sp, false)
	if err != nil {
		return spool.MapRef{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	walked := make(chan []entry, 8)
	go func() {
		defer close(walked)
		if err := walk(ctx, root, walked); err != nil {
			cancel(err)
		}
	}()
	b := &rebuild{ctx: ctx, w: w, progress: progress}
	for batch := range walked {
		if err == nil {
			err = b.batch(batch)
		}
		if err != nil {
			cancel(err)
		}
		releaseAll(batch)
	}
	if err := context.Cause(ctx); err != nil {
		w.abandon()
		return spool.MapRef{}, err
	}
	return w.finish()
}

type rebuild struct {
	ctx      context.Context
	w        *indexWriter
	progress func(int64)
	done     int64
}

// batch digests small files side by side, then writes everything in order; large files are read as their turn comes.
func (b *rebuild) batch(batch []entry) error {
	small := make([]digest.Digest, len(batch))
	errs := make([]error, len(batch))
	next := make(chan int)
	var wg sync.WaitGroup
	for range workers() {
		wg.Go(func() {
			buf := make([]byte, wire.TreeInline)
			for i := range next {
				small[i], errs[i] = digestSmall(&batch[i], buf)
			}
		})
	}
	for i := range batch {
		if m := &batch[i].meta; m.Kind == wire.TreeFile && m.Size > 0 && m.Size <= wire.TreeInline {
			next <- i
		}
	}
	close(next)
	wg.Wait()
	for i := range batch {
		if errs[i] != nil {
			return errs[i]
		}
		if err := b.entry(&batch[i], small[i]); err != nil {
			return err
		}
	}
	if b.progress != nil {
		b.progress(b.done)
	}
	return context.Cause(b.ctx)
}

func digestSmall(e *entry, buf []byte) (digest.Digest, error) {
	fd, err := openAt(e.in.fd, e.name(), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return digest.Digest{}, vanished(e.path, "open", err)
	}
	defer unix.Close(fd)
	p := buf[:e.meta.Size]
	if err := readWhole(fd, e.path, p, 0); err != nil {
		return digest.Digest{}, err
	}
	return digest.Block(p), nil
}

func readWhole(fd int, path string, p []byte, at int64) error {
	for len(p) > 0 {
		n := 0
		err := again(func() (err error) {
			n, err = unix.Pread(fd, p, at)
			return err
		})
		if err != nil {
			return failed("read", path, err)
		}
		if n == 0 {
			return &SourceChanged{Path: path, What: "became shorter"}
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

func (b *rebuild) entry(e *entry, small digest.Digest) error {
	listed := wire.TreeListed{Path: e.path, Meta: e.meta, Ref: b.w.offset()}
	listed.Meta.Inode = 0
	b.done += e.meta.Size
	var err error
	switch n := e.meta.Blocks(); {
	case n == 1:
		err = b.w.digests([]digest.Digest{small})
	case n > 1:
		err = b.large(e)
	}
	if err != nil {
		return err
	}
	return b.w.entry(&listed)
}

// large digests a file, several chunks at a time.
func (b *rebuild) large(e *entry) error {
	fd, err := openAt(e.in.fd, e.name(), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return vanished(e.path, "open", err)
	}
	defer unix.Close(fd)
	type chunk struct {
		digests []digest.Digest
		err     error
	}
	side := workers()
	for at := int64(0); at < e.meta.Size; at += int64(side) * chunkSize {
		if err := context.Cause(b.ctx); err != nil {
			return err
		}
		chunks := make([]chunk, side)
		var wg sync.WaitGroup
		for i := range chunks {
			from := at + int64(i)*chunkSize
			if from >= e.meta.Size {
				break
			}
			wg.Go(func() {
				m := newBuffer()
				defer m.release()
				p := m.b[:min(chunkSize, e.meta.Size-from)]
				if chunks[i].err = readWhole(fd, e.path, p, from); chunks[i].err == nil {
					chunks[i].digests = digest.Blocks(p)
				}
			})
		}
		wg.Wait()
		for _, c := range chunks {
			if c.err != nil {
				return c.err
			}
			if err := b.w.digests(c.digests); err != nil {
				return err
			}
		}
	}
	return nil
}
