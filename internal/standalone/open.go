package standalone

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// openSource opens what a session reads and gathers what is known of it; done closes it.
func openSource(ctx context.Context, c engine.SourceConfig, dial func(context.Context) (net.Conn, error), software string, log *slog.Logger) (s *engine.Source, done func(), err error) {
	var volumes []volume.Reader
	done = func() {
		for _, v := range volumes {
			_ = v.Close()
		}
	}
	paths := make([]string, len(c.Volumes))
	for i, v := range c.Volumes {
		paths[i] = v.Device
	}
	trees, err := allFolders(paths)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range c.Volumes {
		if trees {
			break // they are opened by the engine
		}
		f, err := volume.OpenReader(v.Device)
		if err != nil {
			done()
			return nil, nil, &engine.ConfigError{Field: "source " + v.Name, Found: v.Device, Want: err.Error()}
		}
		volumes = append(volumes, f)
	}
	s, err = engine.NewSource(c, engine.SourceParts{
		Dial: dial, Volumes: volumes, Offer: gather(ctx, c, volumes), Software: software, Log: log, Now: time.Now, Wait: wait,
	})
	if err != nil {
		done()
		return nil, nil, err
	}
	return s, done, nil
}

// allFolders reports whether a group is one of trees. A group is of one kind: an instant of both would have to come from
// two kinds of storage.
func allFolders(paths []string) (bool, error) {
	folders := 0
	for _, p := range paths {
		if isFolder(p) {
			folders++
		}
	}
	if folders > 0 && folders < len(paths) {
		return false, &engine.ConfigError{Field: "paths", Found: "a mixture of folders and devices or files", Want: "make a group of its own for each kind"}
	}
	return folders > 0, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// gather asks where the volumes changed and what of them was ever written.
func gather(ctx context.Context, c engine.SourceConfig, volumes []volume.Reader) engine.Offer {
	o := engine.Offer{Note: c.ChangeNote}
	if len(volumes) == 0 {
		return o
	}
	if c.Base != "" {
		for i, v := range c.Volumes {
			list, err := change.Delta(ctx, v.Device, volumes[i].Size(), *v.Changes)
			if err != nil {
				o.Changes, o.Note = nil, fmt.Sprintf("the list of changes of %s cannot be had: %v", v.Name, err)
				break
			}
			o.Changes = append(o.Changes, list)
		}
	}
	known := false
	for i, v := range c.Volumes {
		list, err := change.Allocated(ctx, v.Device, volumes[i].Size(), change.Origin{})
		if err != nil { // a block device does not know
			list = change.List{Size: volumes[i].Size(), Extents: []digest.Extent{{Length: volumes[i].Size()}}}
		}
		known = known || err == nil
		o.Allocated = append(o.Allocated, list)
	}
	if !known {
		o.Allocated = nil
	}
	return o
}
