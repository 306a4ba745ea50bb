package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// Exit codes of delta. Scripts branch on them.
const (
	exitDeltaUsage   = 2
	exitDeltaRefused = 3
)

const deltaCodes = `

Exit codes: 0 done; 1 failed, trying again may help; 2 wrong arguments; 3 refused, and nothing was written: a
delta is damaged, a volume is not at its base, sizes differ, a chain has a gap.`

// newDeltaCommand is `lifeboat delta`: the changes between two instants as a file.
func newDeltaCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delta",
		Short: "Keep the changes between two instants of volumes in one file",
		Long: `Keep the changes between two instants of volumes, block devices or image files, in one file: export it
here, carry it anywhere, apply it to copies of the earlier instant. It proves itself: damage anywhere is found.` + deltaCodes,
		Args: cobra.NoArgs,
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitDeltaUsage, err} })
	cmd.AddCommand(newDeltaExportCommand(), newDeltaApplyCommand(), newDeltaVerifyCommand(), newDeltaInspectCommand(), newDeltaFoldCommand())
	for _, verb := range cmd.Commands() {
		check, run := verb.Args, verb.RunE
		verb.Args = func(c *cobra.Command, args []string) error { return deltaCode(usage(check(c, args))) }
		verb.RunE = func(c *cobra.Command, args []string) error { return deltaCode(run(c, args)) }
		verb.Long += deltaCodes
	}
	return cmd
}

// usageError is a mistake in what was asked for.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// deltaCode gives an error its exit code.
func deltaCode(err error) error {
	var (
		asked    usageError
		members  *delta.MembersDiffer
		origin   *change.BadOrigin
		extents  *change.BadFile
		otherVol *change.SizeDiffers
	)
	switch {
	case err == nil:
		return nil
	case delta.Refused(err):
		return &exitError{exitDeltaRefused, err}
	case errors.As(err, &asked), errors.As(err, &members), errors.As(err, &origin), errors.As(err, &extents), errors.As(err, &otherVol):
		return &exitError{exitDeltaUsage, err}
	}
	return err
}

// named is NAME=PATH, or PATH alone.
type named struct{ name, path string }

func parseNamed(arg string) named {
	name, path, found := strings.Cut(arg, "=")
	if !found || strings.Contains(name, "/") {
		return named{path: arg}
	}
	return named{name, path}
}

// volumeArgs are the volumes an export or apply names. A path without a name is called by its last element.
func volumeArgs(args []string) []named {
	out := make([]named, len(args))
	for i, arg := range args {
		if out[i] = parseNamed(arg); out[i].name == "" {
			out[i].name = filepath.Base(out[i].path)
		}
	}
	return out
}

// perVolume sorts the values of a flag that may be given once for each volume.
func perVolume(flag string, values []string, volumes []named) (map[string]string, error) {
	out := map[string]string{}
	for _, value := range values {
		n := parseNamed(value)
		if n.name == "" && len(volumes) == 1 {
			n.name = volumes[0].name
		}
		known := false
		for _, v := range volumes {
			known = known || v.name == n.name
		}
		if !known || out[n.name] != "" {
			return nil, usage(fmt.Errorf("--%s %s: give NAME=PATH once for each volume", flag, value))
		}
		out[n.name] = n.path
	}
	if len(out) > 0 && len(out) < len(volumes) {
		return nil, usage(fmt.Errorf("--%s is given for %d of %d volumes: a delta starts from one instant of all", flag, len(out), len(volumes)))
	}
	return out, nil
}

func newDeltaApplyCommand() *cobra.Command {
	var check, state string
	var interrupted bool
	cmd := &cobra.Command{
		Use:   "apply DELTA [NAME=]VOLUME...",
		Short: "Bring volumes that hold a delta's base to its point",
		Long: `Bring volumes, block devices or image files of exactly the delta's sizes, from its base to its point. DELTA is a
file, or - for standard input, which is kept in a temporary file (in TMPDIR) until it is whole.

Before the first byte is written the delta is proven whole and every segment (64 MiB) it changes is compared with the
base. At the end everything is synced. Applying twice is the same as once. After a crash, apply again: it continues.
A note in --state says meanwhile that the volumes are between two points; when it is lost, --interrupted says so.

Examples:
  lifeboat delta apply monday.delta /dev/vg/data
  lifeboat delta apply monday.delta data=/dev/vg/data log=/dev/vg/log --check full`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := delta.ApplyOptions{Interrupted: interrupted}
			switch check {
			case "touched":
			case "full":
				o.Full = true
			default:
				return usage(fmt.Errorf("--check %s: touched and full are known", check))
			}
			folder, err := stateFolder(state)
			if err != nil {
				return err
			}
			o.Notes = delta.Folder(folder)
			return applyDelta(cmd.Context(), args[0], args[1:], o, cmd.InOrStdin(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&check, "check", "touched", "what is compared with the base first: touched (the segments that change) or full (the whole volumes)")
	f.StringVar(&state, "state", "", "folder for the note of an apply that runs (empty: lifeboat/delta in XDG_STATE_HOME or ~/.local/state)")
	f.BoolVar(&interrupted, "interrupted", false, "an apply of this very delta was interrupted on these volumes and its note is lost: take what is torn for that")
	return cmd
}

// stateFolder is where notes are kept.
func stateFolder(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "lifeboat", "delta"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usage(fmt.Errorf("no folder for the note of an apply: %w; give --state", err))
	}
	return filepath.Join(home, ".local", "state", "lifeboat", "delta"), nil
}

func applyDelta(ctx context.Context, path string, volumes []string, o delta.ApplyOptions, stdin io.Reader, stderr io.Writer) error {
	in, err := seekable(path, stdin)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	targets, err := openTargets(in, volumes)
	defer func() {
		for _, t := range targets {
			_ = t.Volume.Close()
		}
	}()
	if err != nil {
		return err
	}
	done, err := delta.Apply(ctx, in, targets, o)
	if err != nil {
		return err
	}
	if done.Continued {
		fmt.Fprintln(stderr, "an interrupted apply was continued")
	}
	if done.Already {
		fmt.Fprintf(stderr, "the volumes are at point %s already\n", done.Summary.Head.Point)
		return nil
	}
	fmt.Fprintf(stderr, "the volumes are at point %s: %s of data and %s of zeros written and synced\n",
		done.Summary.Head.Point, humanBytes(done.Summary.End.DataBytes), humanBytes(done.Summary.End.HoleBytes))
	return nil
}

// openTargets opens volumes to write. One without a name is the delta's only one, or called by its path's last element.
func openTargets(in io.ReadSeeker, args []string) (targets []delta.Target, err error) {
	r, err := delta.NewReader(in)
	if err != nil {
		return nil, err
	}
	members := r.Head().Members
	volumes := volumeArgs(args)
	if len(volumes) == 1 && len(members) == 1 && parseNamed(args[0]).name == "" {
		volumes[0].name = members[0].Name
	}
	for i, v := range volumes {
		for _, earlier := range volumes[:i] {
			if sameFile(earlier.path, v.path) {
				return targets, usage(fmt.Errorf("%s and %s are the same volume", earlier.path, v.path))
			}
		}
		file, err := volume.Open(v.path)
		if errors.Is(err, os.ErrNotExist) {
			return targets, usage(err)
		}
		if err != nil {
			return targets, err
		}
		identity, err := filepath.Abs(v.path)
		if err == nil {
			identity, err = filepath.EvalSymlinks(identity)
		}
		targets = append(targets, delta.Target{Name: v.name, Volume: file, Identity: identity})
		if err != nil {
			return targets, err
		}
	}
	return targets, nil
}

// seekable is a delta that can be read several times: a file, or what comes from elsewhere in a temporary one.
func seekable(path string, stdin io.Reader) (*os.File, error) {
	if path == "-" {
		return delta.Spool(stdin, "")
	}
	f, err := openInput(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		return f, nil
	}
	defer func() { _ = f.Close() }()
	if err != nil {
		return nil, err
	}
	return delta.Spool(f, "")
}

func newDeltaVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify DELTA",
		Short: "Prove that a delta is whole, without any volume",
		Long: `Prove that a delta (- for standard input) is whole: every byte as it was written, nothing missing, and every block
that it holds whole as its digest says.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := summarize(cmd.Context(), args[0], cmd.InOrStdin(), nil)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "whole: point %s, %s, sum %s\n", s.Head.Point, humanBytes(s.Bytes), s.End.Sum)
			return err
		},
	}
}

func newDeltaFoldCommand() *cobra.Command {
	var output, compression string
	cmd := &cobra.Command{
		Use:   "fold DELTA... [-o FILE]",
		Short: "Make one delta of a chain",
		Long: `Make one delta of a chain, given in order: each must start where the one before ends. The result leads from the base
of the first to the point of the last.

Example:
  lifeboat delta fold monday.delta tuesday.delta wednesday.delta -o half-a-week.delta`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if compression != "zstd" && compression != "off" {
				return usage(fmt.Errorf("--compression %s: zstd and off are known", compression))
			}
			return foldDeltas(cmd.Context(), args, output, compression == "off", cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "file to write (-: standard output)")
	cmd.Flags().StringVar(&compression, "compression", "zstd", "zstd or off")
	return cmd
}

func foldDeltas(ctx context.Context, paths []string, output string, uncompressed bool, stdout, stderr io.Writer) error {
	var chain []delta.Link
	for _, path := range paths {
		f, err := openInput(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		chain = append(chain, delta.Link{Name: path, In: f})
	}
	var end delta.End
	err := writeTo(output, stdout, func(out io.Writer) (err error) {
		end, err = delta.Fold(ctx, out, chain, uncompressed)
		return err
	})
	if err == nil {
		fmt.Fprintf(stderr, "%d deltas in one: %s of data and %s of zeros in %d records, sum %.16s\n",
			len(paths), humanBytes(end.DataBytes), humanBytes(end.HoleBytes), end.Records, end.Sum)
	}
	return err
}

// openInput opens a file to read; a missing one is a mistake of whoever named it.
func openInput(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, usage(err)
	}
	return f, err
}

// writeTo lets write write to a file, which has its name only when all went well, or to standard output.
func writeTo(path string, stdout io.Writer, write func(io.Writer) error) error {
	if path == "-" {
		if f, ok := stdout.(*os.File); ok {
			if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
				return usage(errors.New("a delta is not for the screen: give -o FILE or pipe it"))
			}
		}
		return write(stdout)
	}
	file, err := delta.CreateFile(path)
	if err != nil {
		return err
	}
	defer file.Discard()
	if err := write(file); err != nil {
		return err
	}
	return file.Keep()
}

// sameFile reports whether two paths lead to one file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
