package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

type exportFlags struct {
	output, replication, basePoint, point, pointTime, after string
	base, baseMap, baseFile, changes, writeMap              []string
	compression                                             string
	quick                                                   bool
}

func newDeltaExportCommand() *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export [NAME=]VOLUME... [-o FILE]",
		Short: "Write what changed in volumes since a base",
		Long: `Write what changed in volumes since a base to a file, or to standard output. The volumes, block devices or image
files, must not change meanwhile: export snapshots. How changes are found is said with one of

  --base PATH        the volume at the base: both are read and compared
  --base-map FILE    the base's digests, as --write-map of the export before wrote them: only the volume is read
  --base-file PATH   the volume at the base, an image file that shares blocks with it (cp --reflink): what the file
                     system says is shared is not read
  --changes FILE     a list of extents that changed, with --base or --base-map
  nothing            there is no base: the delta is full, and applies to anything of the same size

Examples:
  lifeboat delta export data.img --write-map data.map -o full.delta
  lifeboat delta export data.img --base-map data.map --write-map data.map --after full.delta -o monday.delta
  lifeboat delta export data=/dev/vg/data-snap log=/dev/vg/log-snap --base data=/dev/vg/data-old --base log=/dev/vg/log-old |
      ssh standby lifeboat delta apply - data=/dev/vg/data log=/dev/vg/log`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), volumeArgs(args), cmd.OutOrStdout(), cmd.ErrOrStderr(), time.Now())
		},
	}
	o := cmd.Flags()
	o.StringVarP(&f.output, "output", "o", "-", "file to write (-: standard output)")
	o.StringArrayVar(&f.base, "base", nil, "[NAME=]PATH of a volume at the base")
	o.StringArrayVar(&f.baseMap, "base-map", nil, "[NAME=]FILE with the digests of a volume at the base")
	o.StringArrayVar(&f.baseFile, "base-file", nil, "[NAME=]PATH of an image file at the base that shares blocks with the volume")
	o.StringArrayVar(&f.changes, "changes", nil, "[NAME=]FILE of extents that changed since the base")
	o.StringArrayVar(&f.writeMap, "write-map", nil, "[NAME=]FILE to write the digests of a volume to, for the next export")
	o.StringVar(&f.replication, "replication", "", "name of what the volumes belong to (empty: that of --after, or none)")
	o.StringVar(&f.basePoint, "base-point", "", "name of the base's instant (empty: that of --after, or none)")
	o.StringVar(&f.point, "point", "", "name of the instant (empty: one is made from the time)")
	o.StringVar(&f.pointTime, "point-time", "", "time of the instant, RFC 3339 (empty: now)")
	o.StringVar(&f.after, "after", "", "delta this one follows: its point is the base")
	o.StringVar(&f.compression, "compression", "zstd", "zstd or off; zstd leaves alone what it cannot compress")
	o.BoolVar(&f.quick, "quick", false, "with --base-file or --changes and without --base-map: read only what changed; apply then checks only that")
	return cmd
}

func (f *exportFlags) run(ctx context.Context, volumes []named, stdout, stderr io.Writer, now time.Time) error {
	options, err := f.options(now)
	if err != nil {
		return err
	}
	x := exporting{stderr: stderr}
	defer x.close()
	if err := f.open(ctx, &x, volumes); err != nil {
		return err
	}
	var end delta.End
	err = writeTo(f.output, stdout, func(out io.Writer) (err error) {
		end, err = delta.Export(ctx, out, x.sources, options)
		return err
	})
	if err != nil {
		return err
	}
	// The maps come after the delta: a map without its delta would hide what changed from the next export.
	for _, m := range x.maps {
		if err := m.Keep(); err != nil {
			return err
		}
	}
	fmt.Fprintf(stderr, "point %s: %s of data and %s of zeros in %d records, sum %.16s\n",
		options.Point, humanBytes(end.DataBytes), humanBytes(end.HoleBytes), end.Records, end.Sum)
	return nil
}

func (f *exportFlags) options(now time.Time) (delta.ExportOptions, error) {
	o := delta.ExportOptions{Replication: f.replication, Base: f.basePoint, Point: f.point, PointTime: now.UTC(), Quick: f.quick}
	switch f.compression {
	case "zstd":
	case "off":
		o.Uncompressed = true
	default:
		return o, usage(fmt.Errorf("--compression %s: zstd and off are known", f.compression))
	}
	hasBase := len(f.base)+len(f.baseMap)+len(f.baseFile) > 0
	switch {
	case len(f.changes) > 0 && len(f.base)+len(f.baseMap) == 0:
		return o, usage(errors.New("--changes needs --base or --base-map: apply could not tell the base from anything else"))
	case len(f.changes) > 0 && len(f.baseFile) > 0:
		return o, usage(errors.New("--changes and --base-file both list changes: give one"))
	case len(f.base) > 0 && len(f.baseFile) > 0:
		return o, usage(errors.New("--base and --base-file both are the base: give one"))
	case len(f.base) > 0 && len(f.baseMap) > 0:
		return o, usage(errors.New("--base and --base-map both are the base: give one"))
	case !hasBase && (f.basePoint != "" || f.after != ""):
		return o, usage(errors.New("a base is named but not given: give --base, --base-map or --base-file"))
	}
	if f.pointTime != "" {
		t, err := time.Parse(time.RFC3339, f.pointTime)
		if err != nil {
			return o, usage(fmt.Errorf("--point-time: %w", err))
		}
		o.PointTime = t.UTC()
	}
	if f.after != "" {
		head, err := headOf(f.after)
		if err != nil {
			return o, err
		}
		if o.Base == "" {
			o.Base = head.Point
		}
		if o.Replication == "" {
			o.Replication = head.Replication
		}
	}
	if o.Point == "" {
		var tail [3]byte
		_, _ = rand.Read(tail[:]) // it never fails
		o.Point = o.PointTime.Format("20060102t150405") + "-" + hex.EncodeToString(tail[:])
	}
	return o, nil
}

// headOf reads the head of a delta.
func headOf(path string) (delta.Head, error) {
	file, err := openInput(path)
	if err != nil {
		return delta.Head{}, err
	}
	defer func() { _ = file.Close() }()
	r, err := delta.NewReader(file)
	if err != nil {
		return delta.Head{}, fmt.Errorf("%s: %w", path, err)
	}
	return r.Head(), nil
}

// exporting is what an export has open.
type exporting struct {
	stderr  io.Writer
	sources []delta.Source
	maps    []*delta.NewFile
	closers []io.Closer
}

func (x *exporting) close() {
	for _, c := range x.closers {
		_ = c.Close()
	}
	for _, m := range x.maps {
		m.Discard()
	}
}

// open opens everything the flags name.
func (f *exportFlags) open(ctx context.Context, x *exporting, volumes []named) error {
	flags := map[string]map[string]string{}
	for flag, values := range map[string][]string{
		"base": f.base, "base-map": f.baseMap, "base-file": f.baseFile, "changes": f.changes, "write-map": f.writeMap,
	} {
		var err error
		if flags[flag], err = perVolume(flag, values, volumes); err != nil {
			return err
		}
	}
	for _, v := range volumes {
		s, err := x.source(ctx, v, flags)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.name, err)
		}
		x.sources = append(x.sources, s)
	}
	return nil
}

func (x *exporting) source(ctx context.Context, v named, flags map[string]map[string]string) (delta.Source, error) {
	s := delta.Source{Name: v.name}
	now, err := x.reader(v.path)
	if err != nil {
		return s, err
	}
	s.Volume = now
	size, geo := now.Size(), digest.Geometry{Size: now.Size()}
	mapPath := flags["base-map"][v.name]
	basePath := flags["base"][v.name]
	if basePath == "" && mapPath == "" {
		basePath = flags["base-file"][v.name]
	}
	if basePath != "" {
		if sameFile(basePath, v.path) {
			return s, usage(fmt.Errorf("the base %s is the volume itself", basePath))
		}
		if s.Base, err = x.reader(basePath); err != nil {
			return s, err
		}
	}
	if mapPath != "" {
		file, err := openInput(mapPath)
		if err != nil {
			return s, err
		}
		x.closers = append(x.closers, file)
		if s.Map, err = digest.OpenMap(file, geo); err != nil {
			return s, usage(fmt.Errorf("digest map %s: %w", mapPath, err))
		}
	}
	if err := x.list(ctx, &s, v, size, flags); err != nil {
		return s, err
	}
	if path := flags["write-map"][v.name]; path != "" {
		file, err := delta.CreateFile(path)
		if err != nil {
			return s, err
		}
		x.maps = append(x.maps, file)
		if s.NewMap, err = digest.CreateMap(file, geo); err != nil {
			return s, err
		}
	}
	return s, nil
}

// list finds out where a volume changed, or was ever written. A list that cannot be had costs time, never a change:
// then everything is read, and said to be.
func (x *exporting) list(ctx context.Context, s *delta.Source, v named, size int64, flags map[string]map[string]string) error {
	var l change.List
	var err error
	base := flags["base-file"][v.name]
	switch {
	case flags["changes"][v.name] != "":
		if l, err = change.ReadFile(flags["changes"][v.name], size); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				err = usage(err)
			}
			return err
		}
	case base != "":
		if l, err = change.Delta(ctx, v.path, size, change.Origin{BaseFile: base}); err != nil {
			fmt.Fprintf(x.stderr, "volume %s is read whole: %v\n", v.name, err)
			return ctx.Err()
		}
	case s.Base == nil && s.Map == nil:
		if l, err = change.Allocated(ctx, v.path, size, change.Origin{}); err != nil {
			return ctx.Err() // a device: nothing lost, it is read whole
		}
	default:
		return nil
	}
	s.Listed, s.Extents = true, l.Extents
	return nil
}

func (x *exporting) reader(path string) (*volume.File, error) {
	v, err := volume.OpenReader(path)
	if errors.Is(err, os.ErrNotExist) {
		err = usage(err)
	}
	if err == nil {
		x.closers = append(x.closers, v)
	}
	return v, err
}
