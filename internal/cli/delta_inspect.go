package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/internal/mover/delta"
	"lifeboat.dev/lifeboat/internal/mover/digest"
)

func newDeltaInspectCommand() *cobra.Command {
	var asJSON, extents bool
	cmd := &cobra.Command{
		Use:   "inspect DELTA",
		Short: "Say what a delta is about and what it holds",
		Long: `Say what a delta (- for standard input) is about and what it holds, once it is proven whole. With --extents each
run of bytes it holds comes first, one a line, as it is read: nothing of that counts before the summary has come.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			var visit func(delta.Head, delta.Extent) error
			if extents {
				visit = func(h delta.Head, e delta.Extent) error { return printExtent(out, h, e, asJSON) }
			}
			s, err := summarize(cmd.Context(), args[0], cmd.InOrStdin(), visit)
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(out)
				if !extents {
					encoder.SetIndent("", "  ")
				}
				return encoder.Encode(viewOf(s))
			}
			return printSummary(out, s)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON; with --extents one object a line, the summary last")
	f.BoolVar(&extents, "extents", false, "print every run of bytes too")
	return cmd
}

func summarize(ctx context.Context, path string, stdin io.Reader, visit func(delta.Head, delta.Extent) error) (delta.Summary, error) {
	if path != "-" {
		f, err := openInput(path)
		if err != nil {
			return delta.Summary{}, err
		}
		defer func() { _ = f.Close() }()
		stdin = f
	}
	return delta.Verify(ctx, stdin, visit)
}

func printExtent(out io.Writer, h delta.Head, e delta.Extent, asJSON bool) error {
	kind := "data"
	if e.Hole {
		kind = "hole"
	}
	name := h.Members[e.Volume].Name
	if asJSON {
		return json.NewEncoder(out).Encode(extentView{name, e.Offset, e.Length, kind})
	}
	_, err := fmt.Fprintf(out, "%s %d %d %s\n", name, e.Offset, e.Length, kind)
	return err
}

type extentView struct {
	Volume string `json:"volume"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"`
}

// deltaView is a summary as JSON: sizes in bytes, digests in hexadecimal, empty where they are not known.
type deltaView struct {
	Replication string       `json:"replication"`
	Full        bool         `json:"full"`
	Base        string       `json:"base"`
	Point       string       `json:"point"`
	PointTime   *time.Time   `json:"pointTime,omitempty"`
	Bytes       int64        `json:"bytes"`
	DataBytes   int64        `json:"dataBytes"`
	PackedBytes int64        `json:"packedBytes"`
	HoleBytes   int64        `json:"holeBytes"`
	Records     int64        `json:"records"`
	Segments    int          `json:"segments"`
	Closing     string       `json:"closing"`
	Sum         string       `json:"sum"`
	Volumes     []volumeView `json:"volumes"`
}

type volumeView struct {
	Name          string `json:"name"`
	Size          int64  `json:"size"`
	BaseRoot      string `json:"baseRoot"`
	Root          string `json:"root"`
	DataRecords   int    `json:"dataRecords"`
	HoleRecords   int    `json:"holeRecords"`
	DataBytes     int64  `json:"dataBytes"`
	HoleBytes     int64  `json:"holeBytes"`
	Extents       int    `json:"extents"`
	LargestExtent int64  `json:"largestExtent"`
}

func viewOf(s delta.Summary) deltaView {
	v := deltaView{
		Replication: s.Head.Replication, Full: s.Head.Full, Base: s.Head.Base, Point: s.Head.Point,
		Bytes: s.Bytes, DataBytes: s.End.DataBytes, PackedBytes: s.Packed, HoleBytes: s.End.HoleBytes,
		Records: s.End.Records, Segments: s.Segments, Closing: s.End.Closing.String(), Sum: s.End.Sum.String(),
	}
	if !s.Head.PointTime.IsZero() {
		v.PointTime = &s.Head.PointTime
	}
	for i, m := range s.Head.Members {
		x := s.Volumes[i]
		v.Volumes = append(v.Volumes, volumeView{
			Name: m.Name, Size: m.Size, BaseRoot: knownDigest(s.End.Base[i]), Root: knownDigest(s.End.After[i]),
			DataRecords: x.Data, HoleRecords: x.Holes, DataBytes: x.DataBytes, HoleBytes: x.HoleBytes,
			Extents: x.Extents, LargestExtent: x.Largest,
		})
	}
	return v
}

func knownDigest(d digest.Digest) string {
	if d == digest.Unknown {
		return ""
	}
	return d.String()
}

func printSummary(out io.Writer, s delta.Summary) error {
	v := viewOf(s)
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", what, fmt.Sprintf(format, args...))
	}
	if v.Replication != "" {
		line("replication", "%s", v.Replication)
	}
	switch {
	case v.Full:
		line("base", "none: the delta is full")
	case v.Base == "":
		line("base", "an instant without a name")
	default:
		line("base", "%s", v.Base)
	}
	line("point", "%s", v.Point)
	if v.PointTime != nil {
		line("time", "%s", v.PointTime.Format(time.RFC3339))
	}
	line("length", "%s", humanBytes(v.Bytes))
	line("data", "%s in %d records, packed to %s", humanBytes(v.DataBytes), v.Records, humanBytes(v.PackedBytes))
	line("zeros", "%s", humanBytes(v.HoleBytes))
	line("segments", "%d", v.Segments)
	for _, x := range v.Volumes {
		line("volume", "%s, %d bytes: %d extents, the largest of %s; data %s, zeros %s",
			x.Name, x.Size, x.Extents, humanBytes(x.LargestExtent), humanBytes(x.DataBytes), humanBytes(x.HoleBytes))
		if x.BaseRoot != "" {
			line("", "root at the base %s", x.BaseRoot)
		}
		if x.Root != "" {
			line("", "root at the point %s", x.Root)
		}
	}
	line("closing", "%s", v.Closing)
	line("sum", "%s", v.Sum)
	_, err := io.WriteString(out, b.String())
	return err
}
