package schedule

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// maxDuration keeps sums of a few durations and an instant within what time can count.
const maxDuration = 3650 * 24 * time.Hour

var durationText = regexp.MustCompile(`^(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?$`)

// ParseDuration reads days, hours and minutes, as "12m", "2h", "1d" or "1d12h". A day is 24 hours. The least is a minute.
func ParseDuration(text string) (time.Duration, error) {
	refuse := func(why string) (time.Duration, error) {
		return 0, fmt.Errorf("%q %s: write days, hours and minutes, as \"12m\", \"2h\", \"1d\" or \"1d12h\"", text, why)
	}
	parts := durationText.FindStringSubmatch(text)
	if text == "" || parts == nil {
		return refuse("is no duration")
	}
	var sum time.Duration
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute} {
		if parts[i+1] == "" {
			continue
		}
		n, err := strconv.ParseInt(parts[i+1], 10, 64)
		if err != nil {
			return refuse("is no duration")
		}
		if n > int64(maxDuration/unit) {
			return refuse("is longer than ten years")
		}
		sum += time.Duration(n) * unit
	}
	switch {
	case sum < time.Minute:
		return refuse("is less than a minute")
	case sum > maxDuration:
		return refuse("is longer than ten years")
	}
	return sum, nil
}
