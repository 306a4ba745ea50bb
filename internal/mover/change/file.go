package change

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"lifeboat.dev/lifeboat/internal/mover/digest"
)

// An extents file is text, one item a line, numbers in decimal and in bytes:
//
//	lifeboat-extents 1
//	size 1073741824
//	0 65536              offset and length, in order, without overlap
//	1048576 4096
//	end 2                how many extents there were
//
// Without its last line it is incomplete: whoever wrote it was interrupted.
const (
	fileHead = "lifeboat-extents 1"
	fileSize = "size "
	fileEnd  = "end "
)

// BadFile is an extents file that cannot be relied on.
type BadFile struct {
	Path    string
	Line    int // from 1
	Problem string
}

func (b *BadFile) Error() string {
	return fmt.Sprintf("extents file %s, line %d: %s", b.Path, b.Line, b.Problem)
}

// ReadFile reads the extents file at path for a volume of size bytes; see Read.
func ReadFile(path string, size int64) (List, error) {
	f, err := os.Open(path)
	if err != nil {
		return List{}, fmt.Errorf("read extents file: %w", err)
	}
	defer func() { _ = f.Close() }()
	return Read(f, path, size)
}

// Read reads an extents file for a volume of size bytes. It returns BadFile, which names the file and the line, for
// one that is malformed, ends early, or has extents out of order, overlapping or outside the volume; SizeDiffers for
// one of another size.
func Read(r io.Reader, name string, size int64) (List, error) {
	f := fileReader{name: name, lines: bufio.NewScanner(r)}
	if text, err := f.next(fileHead); err != nil {
		return List{}, err
	} else if text != fileHead {
		return List{}, f.bad("found %q; the first line of an extents file is %q", text, fileHead)
	}
	listed, err := f.size()
	if err != nil {
		return List{}, err
	}
	if listed != size {
		return List{}, &SizeDiffers{Origin: "extents file " + name, Listed: listed, Size: size}
	}
	b := newBuilder(size)
	if err := f.extents(b); err != nil {
		return List{}, err
	}
	return b.list(), nil
}

// fileReader reads lines and knows where it is.
type fileReader struct {
	name  string
	line  int
	lines *bufio.Scanner
}

func (f *fileReader) bad(format string, args ...any) error {
	return &BadFile{Path: f.name, Line: f.line, Problem: fmt.Sprintf(format, args...)}
}

// next returns the next line; a file that ends before it misses what is wanted.
func (f *fileReader) next(wanted string) (string, error) {
	f.line++
	if f.lines.Scan() {
		return f.lines.Text(), nil
	}
	err := f.lines.Err()
	switch {
	case errors.Is(err, bufio.ErrTooLong):
		return "", f.bad("the line is too long for an extents file")
	case err != nil:
		return "", fmt.Errorf("read extents file %s: %w", f.name, err)
	}
	return "", f.bad("the file ends here and is incomplete; %q is missing", wanted)
}

func (f *fileReader) size() (int64, error) {
	text, err := f.next(fileSize + "BYTES")
	if err != nil {
		return 0, err
	}
	number, ok := strings.CutPrefix(text, fileSize)
	size, valid := parseNumber(number)
	if !ok || !valid {
		return 0, f.bad("found %q; want %q with the volume's size", text, fileSize+"BYTES")
	}
	return size, nil
}

// extents reads up to the end line, which must be the last and count right.
func (f *fileReader) extents(b *builder) error {
	var count, behind int64
	for {
		text, err := f.next(fileEnd + "COUNT")
		if err != nil {
			return err
		}
		if number, ok := strings.CutPrefix(text, fileEnd); ok {
			return f.end(number, count)
		}
		e, err := f.extent(text, behind, b.size)
		if err != nil {
			return err
		}
		b.add(e.Offset, e.Length)
		behind = e.Offset + e.Length
		count++
	}
}

func (f *fileReader) extent(text string, behind, size int64) (digest.Extent, error) {
	first, second, _ := strings.Cut(text, " ")
	offset, ok := parseNumber(first)
	length, valid := parseNumber(second)
	switch {
	case !ok || !valid || length == 0:
		return digest.Extent{}, f.bad("found %q; want an offset and a length above 0, in bytes, with one space between", text)
	case offset < behind:
		return digest.Extent{}, f.bad("the extent begins at %d, before the end of the one above it (%d): sort and join them", offset, behind)
	case !within(offset, length, size):
		return digest.Extent{}, f.bad("the extent of %d bytes at %d leaves the volume of %d bytes", length, offset, size)
	}
	return digest.Extent{Offset: offset, Length: length}, nil
}

func (f *fileReader) end(number string, count int64) error {
	if want, ok := parseNumber(number); !ok || want != count {
		return f.bad("the end line says %q extents, %d were read: the file is damaged", number, count)
	}
	if f.line++; f.lines.Scan() {
		return f.bad("found %q behind the end line", f.lines.Text())
	}
	if err := f.lines.Err(); err != nil {
		return fmt.Errorf("read extents file %s: %w", f.name, err)
	}
	return nil
}

// parseNumber takes decimal digits only, no sign.
func parseNumber(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}

// Write writes the list as an extents file.
func Write(w io.Writer, l List) error {
	out := bufio.NewWriter(w)
	_, _ = fmt.Fprintf(out, "%s\n%s%d\n", fileHead, fileSize, l.Size)
	for _, e := range l.Extents {
		_, _ = fmt.Fprintf(out, "%d %d\n", e.Offset, e.Length)
	}
	_, _ = fmt.Fprintf(out, "%s%d\n", fileEnd, len(l.Extents))
	if err := out.Flush(); err != nil { // keeps the first error
		return fmt.Errorf("write extents file: %w", err)
	}
	return nil
}

// WriteFile puts an extents file in the place of the one at path, whole or not at all.
func WriteFile(path string, l List) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return fmt.Errorf("write extents file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(Write(f, l), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write extents file: %w", err)
	}
	return nil
}
