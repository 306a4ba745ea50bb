package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// writeFile makes a file of size bytes from a source of bytes, durable and no longer in the page cache.
func writeFile(path string, size int64, content io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	defer func() { _ = f.Close() }()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(content, size), make([]byte, 1<<20)); err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	return flush(f)
}

// flush makes a file durable and forgets its pages.
func flush(f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	return forget(f)
}

// random is bytes that nothing compresses.
func random(seed uint64) io.Reader {
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	return rand.NewChaCha8(key)
}

// vocabulary is how many words text has.
const vocabulary = 1 << 14

// oneIn is how many words there are to a figure.
const oneIn = 16

// text is bytes that compress like prose, about 2.4 to 1 with zstd's fastest level, and repeat nothing longer than a
// few words: what finds equal pieces finds none.
type text struct {
	choose *rand.PCG
	words  [][]byte
	figure [24]byte
	rest   []byte
}

func newText(seed uint64) *text {
	t := &text{choose: rand.NewPCG(seed, 11)}
	letters := rand.New(rand.NewPCG(3, 5))
	for range vocabulary {
		word := make([]byte, 2+letters.IntN(9), 12)
		for i := range word {
			word[i] = "etaoinshrdlcumwfgypbvk"[min(letters.IntN(22), letters.IntN(22))]
		}
		t.words = append(t.words, append(word, ' '))
	}
	return t
}

// Read never fails.
func (t *text) Read(p []byte) (int, error) {
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	for n < len(p) {
		r := t.choose.Uint64()
		// Few words are frequent and most are rare, as in prose: the range to choose from is itself chosen. Now and
		// then there is a figure.
		word := t.words[(r>>16)%(1<<(7+r%8))]
		if r>>8%oneIn == 0 {
			word = append(strconv.AppendUint(t.figure[:0], r>>40, 10), ' ')
		}
		took := copy(p[n:], word)
		n += took
		t.rest = word[took:]
	}
	return n, nil
}

// scattered are extents that cover fraction of size: pieces of lengths from least to most, in steps of least, at
// multiples of 4 KiB, in order and not touching.
func scattered(size int64, fraction float64, least, most int64, seed uint64) []digest.Extent {
	dice := rand.New(rand.NewPCG(seed, 7))
	left := int64(fraction * float64(size))
	var all []digest.Extent
	for left > 0 {
		n := min(least*(1+dice.Int64N(most/least)), (left+4095)/4096*4096)
		all = append(all, digest.Extent{Length: n})
		left -= n
	}
	if len(all) == 0 {
		return nil
	}
	// Each piece gets an equal share of the volume and lies somewhere in it.
	share := size / int64(len(all)) / 4096 * 4096
	for i := range all {
		all[i].Length = min(all[i].Length, share)
		all[i].Offset = int64(i) * share
		if room := (share - all[i].Length) / 4096; room > 1 {
			all[i].Offset += dice.Int64N(room) * 4096
		}
	}
	return all
}

func total(all []digest.Extent) int64 {
	sum := int64(0)
	for _, e := range all {
		sum += e.Length
	}
	return sum
}

// rewrite gives extents of a file new content and makes it durable.
func rewrite(path string, where []digest.Extent, seed uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("change data: %w", err)
	}
	defer func() { _ = f.Close() }()
	content := random(seed)
	piece := make([]byte, 1<<20)
	for _, e := range where {
		for done := int64(0); done < e.Length; {
			p := piece[:min(int64(len(piece)), e.Length-done)]
			if _, err := io.ReadFull(content, p); err != nil {
				return fmt.Errorf("change data: %w", err)
			}
			if _, err := f.WriteAt(p, e.Offset+done); err != nil {
				return fmt.Errorf("change data: %w", err)
			}
			done += int64(len(p))
		}
	}
	return flush(f)
}

// writeSparse makes a file of which only some extents hold anything.
func writeSparse(path string, size int64, where []digest.Extent, seed uint64) error {
	if err := writeHole(path, size); err != nil {
		return err
	}
	return rewrite(path, where, seed)
}

// writeHole makes a file of nothing.
func writeHole(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	return nil
}

// forget drops a file's clean pages from the cache.
func forget(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("forget the pages of %s: %w", f.Name(), err)
	}
	return nil
}

// cool forgets the pages of files; those that do not exist have none.
func cool(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("forget pages: %w", err)
		}
		err = errors.Join(flush(f), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// warm reads extents of a file, so that they are in the page cache.
func warm(path string, where []digest.Extent) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("warm data: %w", err)
	}
	defer func() { _ = f.Close() }()
	for _, e := range where {
		if _, err := io.Copy(io.Discard, io.NewSectionReader(f, e.Offset, e.Length)); err != nil {
			return fmt.Errorf("warm data: %w", err)
		}
	}
	return nil
}

// tree is a directory of small files: count of them, a hundred to a folder, of about 4 KiB each.
type tree struct {
	root  string
	count int
}

func (t tree) path(i int) string {
	return filepath.Join(t.root, fmt.Sprintf("d%04d", i/100), fmt.Sprintf("f%02d", i%100))
}

func (t tree) make(seed uint64) error {
	dice := rand.New(rand.NewPCG(seed, 13))
	for i := range t.count {
		if i%100 == 0 {
			if err := os.MkdirAll(filepath.Dir(t.path(i)), 0o755); err != nil {
				return fmt.Errorf("make data: %w", err)
			}
		}
		if err := t.write(i, dice); err != nil {
			return err
		}
	}
	return nil
}

func (t tree) write(i int, dice *rand.Rand) error {
	content := make([]byte, 512+dice.IntN(7168))
	if _, err := io.ReadFull(random(dice.Uint64()), content); err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	if err := os.WriteFile(t.path(i), content, 0o644); err != nil {
		return fmt.Errorf("make data: %w", err)
	}
	return nil
}

// change writes a fraction of the files anew.
func (t tree) change(fraction float64, seed uint64) error {
	dice := rand.New(rand.NewPCG(seed, 17))
	chosen := dice.Perm(t.count)[:int(fraction*float64(t.count))]
	slices.Sort(chosen)
	for _, i := range chosen {
		if err := t.write(i, dice); err != nil {
			return err
		}
	}
	return nil
}

// sameFile proves that two files hold the same bytes.
func sameFile(a, b string) error {
	x, err := os.Open(a)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	defer func() { _ = x.Close() }()
	y, err := os.Open(b)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	defer func() { _ = y.Close() }()
	return sameBytes(x, y)
}

func sameBytes(x, y io.Reader) error {
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(p)) {
		n, errX := io.ReadFull(x, p)
		m, errY := io.ReadFull(y, q)
		switch {
		case !bytes.Equal(p[:n], q[:m]):
			return fmt.Errorf("the copy differs from its source between %d and %d", at, at+int64(max(n, m)))
		case ended(errX) && ended(errY):
			return nil
		case errX != nil && !ended(errX):
			return fmt.Errorf("compare: %w", errX)
		case errY != nil && !ended(errY):
			return fmt.Errorf("compare: %w", errY)
		}
	}
}

func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
