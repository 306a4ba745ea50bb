package engine

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/volume"
)

// Offer is what a source knows of its volumes before it reads them, per volume.
type Offer struct {
	// Changes are complete since the configuration's Base; nil: there are none, and Note says why.
	Changes []change.List
	// Allocated has what was ever written; nil: nothing is known of any volume.
	Allocated []change.List
	Note      string
}

const (
	// listTimeout bounds asking a driver for a list: comparing is cheaper than waiting for ever.
	listTimeout = 2 * time.Minute
	// servicePatience is how long all of a driver's services that do not answer are waited for. After a node's restart they come back
	// seconds after the mover, and without them a session reads everything there is.
	servicePatience = 30 * time.Second
	// serviceRetry is the time between two attempts.
	serviceRetry = time.Second
)

// gather asks where the volumes changed and what of them was ever written. A list that cannot be had whole is none:
// the note says why, and the next tier does.
func (c SourceConfig) gather(ctx context.Context, volumes []volume.Reader, log *slog.Logger) Offer {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	patient, impatient := context.WithTimeout(ctx, servicePatience)
	defer impatient()
	o := Offer{Note: c.ChangeNote}
	if volumes == nil {
		return o // trees are compared entry by entry
	}
	if c.Base != "" {
		for i, v := range c.Volumes {
			list, err := whenThere(patient, log.With("volume", v.Name), func() (change.List, error) {
				return change.Delta(ctx, v.Device, volumes[i].Size(), *v.Changes)
			})
			if err != nil {
				o.Changes, o.Note = nil, fmt.Sprintf("the list of changes of volume %s cannot be had: %v", v.Name, err)
				break
			}
			o.Changes = append(o.Changes, list)
		}
	}
	known := false
	for i, v := range c.Volumes {
		list, err := whenThere(patient, log.With("volume", v.Name), func() (change.List, error) { return allocated(ctx, v, volumes[i].Size()) })
		if err != nil && v.Allocated != nil && o.Note == "" {
			o.Note = fmt.Sprintf("what was written of volume %s cannot be told: %v", v.Name, err)
		}
		known = known || err == nil
		o.Allocated = append(o.Allocated, list)
	}
	if !known {
		o.Allocated = nil
	}
	return o
}

// whenThere asks for a list, and again while its service is absent and patient lasts.
func whenThere(patient context.Context, log *slog.Logger, ask func() (change.List, error)) (change.List, error) {
	for said := false; ; said = true {
		list, err := ask()
		if !change.Absent(err) {
			return list, err
		}
		if !said {
			log.Warn("the storage driver's service does not answer and is asked again; without it more is read than needs be",
				"atMost", servicePatience.String(), "error", err.Error())
		}
		if wait(patient, serviceRetry) != nil {
			return list, err
		}
	}
}

// allocated lists what was ever written of a volume; all of it, with an error, where that is not known.
func allocated(ctx context.Context, v SourceVolume, size int64) (change.List, error) {
	all := change.List{Size: size, Extents: []digest.Extent{{Length: size}}}
	from := change.Origin{}
	if v.Allocated != nil {
		from = *v.Allocated
	} else if info, err := os.Stat(v.Device); err != nil || !info.Mode().IsRegular() {
		return all, fmt.Errorf("%s is no file", v.Device)
	}
	list, err := change.Allocated(ctx, v.Device, size, from)
	if err != nil {
		return all, err
	}
	return list, nil
}

// session is the offer as the session takes it.
func (o Offer) session() session.Offer {
	var out session.Offer
	for _, l := range o.Changes {
		out.Changes = append(out.Changes, l.Extents)
	}
	for _, l := range o.Allocated {
		out.Allocated = append(out.Allocated, l.Extents)
	}
	return out
}
