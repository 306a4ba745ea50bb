package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/mover/pace"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// SourceConfig is the file a source mover is started with. It runs one session: one instant of one group.
type SourceConfig struct {
	Replication string    `json:"replication"` // namespace/name, the same on both sides
	Epoch       uint64    `json:"epoch"`
	Point       string    `json:"point"`     // the session's id; it names the recovery point once committed
	PointTime   time.Time `json:"pointTime"` // when the instant was cut
	// Cut is how the members were cut, in a word that the target keeps with the point; empty: not said.
	Cut     string         `json:"cut,omitempty"`
	Volumes []SourceVolume `json:"volumes"`

	Address      string `json:"address"`    // of the peer's gateway, host:port
	ServerName   string `json:"serverName"` // routes through the gateway; it is not verified
	IdentityDir  string `json:"identityDir"`
	PeerIdentity string `json:"peerIdentity"` // URI SAN of the target's certificate

	StatusListen    string `json:"statusListen,omitempty"`    // empty: no status endpoint
	ManagerIdentity string `json:"managerIdentity,omitempty"` // who may read the status
	TerminationLog  string `json:"terminationLog,omitempty"`  // where the final report goes; empty: nowhere

	Compression    Compression   `json:"compression,omitempty"`    // empty: auto
	BandwidthLimit int64         `json:"bandwidthLimit,omitempty"` // bytes per second on the wire; 0: none
	Bandwidth      pace.Calendar `json:"bandwidth,omitzero"`       // limits by the hour; together with BandwidthLimit the lower holds
	ReadLimit      int64         `json:"readLimit,omitempty"`      // bytes per second read from the volumes; 0: none

	// Base is the point since which the volumes' Changes are complete; empty: there is no list, and ChangeNote says
	// why, for people.
	Base       string `json:"base,omitempty"`
	ChangeNote string `json:"changeNote,omitempty"`
	// Verify reads and compares both sides, block by block, whatever they remember, and repairs the replica.
	Verify bool `json:"verify,omitempty"`
}

// SourceVolume is one member of the group, at an instant: a snapshot's device, or a file nobody writes.
type SourceVolume struct {
	Name   string `json:"name"` // the target's name for it
	Device string `json:"device"`
	// Changes is where the list of what changed since Base comes from. Where it cannot be had whole, digests are
	// compared, and the report says why.
	Changes *change.Origin `json:"changes,omitempty"`
	// Allocated is where the list of what was ever written comes from; a file is asked itself when this is empty.
	Allocated *change.Origin `json:"allocated,omitempty"`
}

// Compression says whether records are compressed.
type Compression string

// The choices.
const (
	CompressionAuto Compression = "auto" // zstd, backing off from what does not compress
	CompressionOff  Compression = "off"
)

// TargetConfig is the file a target mover is started with.
type TargetConfig struct {
	Replication  string         `json:"replication"`
	Epoch        uint64         `json:"epoch"`
	Volumes      []TargetVolume `json:"volumes"`
	ReplicaHolds Content        `json:"replicaHolds,omitempty"` // empty: nothing
	Spool        string         `json:"spool"`
	SpoolLimit   int64          `json:"spoolLimit,omitempty"` // bytes a delta may take in the spool; 0: what the disk has
	// KeptElsewhere says that the committed recovery point also exists in another place, such as a snapshot of the
	// replica: a delta that the spool cannot hold may then go straight onto the replica. Else it is refused.
	KeptElsewhere bool  `json:"keptElsewhere,omitempty"`
	ReadLimit     int64 `json:"readLimit,omitempty"` // bytes per second read from the replica to verify it; 0: none

	Listen          string `json:"listen"`
	StatusListen    string `json:"statusListen,omitempty"`
	IdentityDir     string `json:"identityDir"`
	PeerIdentity    string `json:"peerIdentity"`
	ManagerIdentity string `json:"managerIdentity,omitempty"`
}

// TargetVolume is one member of the group.
type TargetVolume struct {
	Name   string `json:"name"`
	Device string `json:"device"`
	Size   int64  `json:"size,omitempty"` // bytes the device must at least have; 0: whatever it has
}

// Content says what a replica holds before its first session, as far as the spool does not know better.
type Content string

// The choices.
const (
	// HoldsNothing allows the first copy to go straight onto the replica.
	HoldsNothing Content = "nothing"
	// HoldsData is for a former primary: what it holds stays untouched until a whole delta is there.
	HoldsData Content = "data"
)

// LoadSourceConfig reads and checks a file. Errors are *ConfigError where a field is wrong.
func LoadSourceConfig(path string) (SourceConfig, error) {
	var c SourceConfig
	if err := load(path, &c); err != nil {
		return c, err
	}
	return c, c.Validate()
}

// LoadTargetConfig reads and checks a file. Errors are *ConfigError where a field is wrong.
func LoadTargetConfig(path string) (TargetConfig, error) {
	var c TargetConfig
	if err := load(path, &c); err != nil {
		return c, err
	}
	return c, c.Validate()
}

func load(path string, into any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return &ConfigError{Field: "--config", Found: path, Want: err.Error()}
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &ConfigError{Field: "--config", Found: path, Want: "it must be JSON of the documented fields: " + err.Error()}
	}
	return nil
}

// Validate checks what can be known from the file alone.
func (c SourceConfig) Validate() error {
	names := make([]string, 0, len(c.Volumes))
	for i, v := range c.Volumes {
		if v.Device == "" {
			return missing(fmt.Sprintf("volumes[%d].device", i), "name the device or file to read")
		}
		names = append(names, v.Name)
	}
	switch {
	case c.Replication == "":
		return missing("replication", "name it as namespace/name")
	case c.Point == "":
		return missing("point", "give the session's id")
	case len(c.Replication) > wire.MaxName, len(c.Point) > wire.MaxName, len(c.Cut) > wire.MaxName:
		return &ConfigError{Field: "replication, point or cut", Found: "too long", Want: fmt.Sprintf("at most %d bytes", wire.MaxName)}
	case c.Address == "":
		return missing("address", "give the peer's gateway as host:port")
	case c.IdentityDir == "":
		return missing("identityDir", "name the folder with tls.crt, tls.key, ca.crt and peer-ca.crt")
	case c.PeerIdentity == "":
		return missing("peerIdentity", "give the target's identity, such as lifeboat://west/replication/shop/pg")
	case c.StatusListen != "" && c.ManagerIdentity == "":
		return missing("managerIdentity", "say who may read the status, such as lifeboat://east/manager")
	case len(c.Base) > wire.MaxName:
		return &ConfigError{Field: "base", Found: "too long", Want: fmt.Sprintf("at most %d bytes", wire.MaxName)}
	case c.ReadLimit < 0:
		return &ConfigError{Field: "readLimit", Found: fmt.Sprint(c.ReadLimit), Want: "give bytes per second, or 0 for no limit"}
	case c.BandwidthLimit < 0:
		return &ConfigError{Field: "bandwidthLimit", Found: fmt.Sprint(c.BandwidthLimit), Want: "give bytes per second, or 0 for no limit"}
	}
	if err := c.Bandwidth.Validate(); err != nil {
		return &ConfigError{Field: "bandwidth", Found: c.Bandwidth.String(), Want: err.Error()}
	}
	if c.Base != "" {
		for i, v := range c.Volumes {
			if v.Changes == nil {
				return missing(fmt.Sprintf("volumes[%d].changes", i), "say where the list of what changed since base comes from, or leave base empty")
			}
		}
	}
	switch c.Compression {
	case "", CompressionAuto, CompressionOff:
	default:
		return &ConfigError{Field: "compression", Found: fmt.Sprintf("%q", c.Compression), Want: "use auto or off"}
	}
	return checkNames(names)
}

// Validate checks what can be known from the file alone.
func (c TargetConfig) Validate() error {
	names := make([]string, 0, len(c.Volumes))
	for i, v := range c.Volumes {
		if v.Device == "" {
			return missing(fmt.Sprintf("volumes[%d].device", i), "name the device or file to write")
		}
		names = append(names, v.Name)
	}
	switch {
	case c.Replication == "":
		return missing("replication", "name it as namespace/name")
	case c.SpoolLimit < 0:
		return &ConfigError{Field: "spoolLimit", Found: fmt.Sprint(c.SpoolLimit), Want: "give bytes, or 0 for what the disk has"}
	case c.ReadLimit < 0:
		return &ConfigError{Field: "readLimit", Found: fmt.Sprint(c.ReadLimit), Want: "give bytes per second, or 0 for no limit"}
	case c.Spool == "":
		return missing("spool", "name the folder to keep deltas in until they are whole")
	case c.Listen == "":
		return missing("listen", "give host:port or :port")
	case c.IdentityDir == "":
		return missing("identityDir", "name the folder with tls.crt, tls.key, ca.crt and peer-ca.crt")
	case c.PeerIdentity == "":
		return missing("peerIdentity", "give the source's identity, such as lifeboat://east/replication/shop/pg")
	case c.StatusListen != "" && c.ManagerIdentity == "":
		return missing("managerIdentity", "say who may read the status, such as lifeboat://west/manager")
	}
	switch c.ReplicaHolds {
	case "", HoldsNothing, HoldsData:
	default:
		return &ConfigError{Field: "replicaHolds", Found: fmt.Sprintf("%q", c.ReplicaHolds), Want: "use nothing or data"}
	}
	return checkNames(names)
}

func checkNames(names []string) error {
	if len(names) == 0 {
		return missing("volumes", "name at least one")
	}
	if len(names) > wire.MaxVolumes {
		return &ConfigError{Field: "volumes", Found: fmt.Sprintf("a list of %d", len(names)), Want: fmt.Sprintf("at most %d are possible", wire.MaxVolumes)}
	}
	seen := map[string]bool{}
	for i, name := range names {
		field := fmt.Sprintf("volumes[%d].name", i)
		switch {
		case name == "" || len(name) > wire.MaxName:
			return missing(field, "give the claim's name")
		case seen[name]:
			return &ConfigError{Field: field, Found: fmt.Sprintf("%q again", name), Want: "name each volume once"}
		}
		seen[name] = true
	}
	return nil
}

func missing(field, want string) error {
	return &ConfigError{Field: field, Found: "missing", Want: want}
}
