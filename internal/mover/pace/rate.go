// Package pace knows how fast bytes may go: a Calendar says how many per second at which time of which day, and a
// Limiter shares that rate between all who use it. It knows nothing of what the bytes are or where they go; Conn is
// the one place where it touches a connection, and only its writes.
//
// Begin with Parse, Calendar.At and Limiter.Wait.
package pace

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Rate is in bytes per second; 0 is no limit. As text it is a number with a unit: "20MB", "512KiB", "100Mbit",
// "unlimited".
type Rate int64

// The bounds of a rate that is not 0. Below the least one, a link would be silent for so long that each side takes the
// other for gone.
const (
	MinRate Rate = 1000
	MaxRate Rate = 1 << 50
)

// units, the longest names first: each is also the end of a longer one. A number alone is bytes per second. The letters'
// case is not regarded: millibits do not exist, and users do write "mb".
var units = []struct {
	name  string
	bytes float64
}{
	{"kbit", 1e3 / 8}, {"mbit", 1e6 / 8}, {"gbit", 1e9 / 8},
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9},
	{"ki", 1 << 10}, {"mi", 1 << 20}, {"gi", 1 << 30},
	{"k", 1e3}, {"m", 1e6}, {"g", 1e9},
	{"b", 1}, {"", 1},
}

const rateForms = "give bytes per second such as 20MB, 512KiB or 100Mbit, or unlimited"

// ParseRate reads the text form.
func ParseRate(text string) (Rate, error) {
	lower := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(text)), "/s")
	if lower == "unlimited" || lower == "0" {
		return 0, nil
	}
	for _, u := range units {
		number, found := strings.CutSuffix(lower, u.name)
		if !found {
			continue
		}
		value, err := strconv.ParseFloat(number, 64)
		if err != nil || math.IsNaN(value) || math.IsInf(value, 0) {
			return 0, fmt.Errorf("rate %q: %s", text, rateForms)
		}
		if value*u.bytes > float64(MaxRate) {
			return 0, fmt.Errorf("rate %q: more than is possible: %s", text, rateForms)
		}
		r := Rate(math.Round(value * u.bytes))
		return r, r.check(text)
	}
	return 0, fmt.Errorf("rate %q: %s", text, rateForms)
}

func (r Rate) check(text string) error {
	switch {
	case r < 0 || r > MaxRate:
		return fmt.Errorf("rate %q: %s", text, rateForms)
	case r == 0 || r >= MinRate:
		return nil
	}
	return fmt.Errorf("rate %q: the least is %s per second, a slower link would be taken for a dead one; give a unit such as MB", text, MinRate)
}

// String is the shortest text form that ParseRate reads back as the same rate.
func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	for _, u := range []struct {
		name  string
		bytes Rate
	}{{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}} {
		if r%u.bytes == 0 {
			return strconv.FormatInt(int64(r/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(r), 10)
}

// MarshalText writes the text form.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalJSON reads the text form, or a number of bytes per second.
func (r *Rate) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		text = string(raw)
	}
	got, err := ParseRate(text)
	if err != nil {
		return err
	}
	*r = got
	return nil
}
