package wire

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxBanner bounds the banner line, its newline included, in bytes.
const MaxBanner = 256

// Banner is the first line each side sends: readable, so that whoever looks at a connection sees what speaks.
//
//	lifeboat-mover protocol=1 oldest=1 software=v0.1.0 role=source\n
//
// protocol is the newest the side speaks and oldest the oldest it understands. Words it does not know are ignored.
type Banner struct {
	Protocol int
	Oldest   int
	Software string
	Role     string
}

const bannerWord = "lifeboat-mover"

// OwnBanner is the banner of this build.
func OwnBanner(software, role string) Banner {
	return Banner{Protocol: Version, Oldest: Oldest, Software: software, Role: role}
}

// String is the line without its newline.
func (b Banner) String() string {
	software := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, b.Software)
	if len(software) > 64 {
		software = software[:64]
	}
	return fmt.Sprintf("%s protocol=%d oldest=%d software=%s role=%s", bannerWord, b.Protocol, b.Oldest, software, b.Role)
}

// ParseBanner reads a line without its newline.
func ParseBanner(line string) (Banner, error) {
	words := strings.Fields(line)
	if len(line) > MaxBanner || len(words) == 0 || words[0] != bannerWord {
		return Banner{}, fmt.Errorf("%w: the first line is no banner of a mover", ErrCorrupt)
	}
	var b Banner
	var err error
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "protocol":
			b.Protocol, err = strconv.Atoi(value)
		case "oldest":
			b.Oldest, err = strconv.Atoi(value)
		case "software":
			b.Software = value
		case "role":
			b.Role = value
		}
		if err != nil {
			return Banner{}, fmt.Errorf("%w: banner: %s is no number", ErrCorrupt, key)
		}
	}
	if b.Protocol < 1 || b.Oldest < 1 {
		return Banner{}, fmt.Errorf("%w: the banner names no protocol", ErrCorrupt)
	}
	return b, nil
}

// VersionConflict says that two sides have no protocol in common.
type VersionConflict struct{ Own, Peer Banner }

func (v *VersionConflict) Error() string {
	older := v.Peer
	if v.Own.Protocol < v.Peer.Protocol {
		older = v.Own
	}
	return fmt.Sprintf("no protocol in common: this %s (%s) speaks %d to %d, the peer's %s (%s) speaks %d to %d; upgrade the %s",
		v.Own.Role, v.Own.Software, v.Own.Oldest, v.Own.Protocol,
		v.Peer.Role, v.Peer.Software, v.Peer.Oldest, v.Peer.Protocol, older.Role)
}

// Agree picks the newest protocol both sides speak.
func Agree(own, peer Banner) (int, error) {
	both := min(own.Protocol, peer.Protocol)
	if both < own.Oldest || both < peer.Oldest {
		return 0, &VersionConflict{Own: own, Peer: peer}
	}
	return both, nil
}
