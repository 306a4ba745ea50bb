package pace

import (
	"errors"
	"fmt"
	"strings"
)

// Parse reads a calendar's text form: rules with commas between them.
//
//	100MB
//	20MB 08:00-18:00 Mon-Fri, 200MB otherwise
//	5MB 08:00-12:00, 10MB 12:00-18:00 Mon,Wed-Fri, unlimited Sat,Sun, 50MB otherwise, in Europe/Berlin
//
// A rule is a rate, then the time of day and the days it holds on, either of which may be left out. The rule with neither
// holds otherwise, and may say so; without one there is no limit otherwise. Of two rules for the same time the first
// one counts. "in ZONE" names the time zone the times are meant in: UTC if it is not there.
func Parse(text string) (Calendar, error) {
	c, err := parse(text)
	if err != nil {
		return Calendar{}, fmt.Errorf("calendar %q: %w", text, err)
	}
	return c, nil
}

func parse(text string) (Calendar, error) {
	var c Calendar
	rules, err := split(text)
	if err != nil {
		return c, err
	}
	otherwise := false
	for _, rule := range rules {
		words, err := c.takeZone(strings.Fields(rule))
		if err != nil {
			return c, err
		}
		if len(words) == 0 {
			continue
		}
		w, always, err := parseRule(words)
		switch {
		case err != nil:
			return c, err
		case !always:
			c.Windows = append(c.Windows, w)
		case otherwise:
			return c, fmt.Errorf("%q: there is a rate for all other times already", rule)
		default:
			c.Rate, otherwise = w.Rate, true
		}
	}
	if !otherwise && len(c.Windows) == 0 {
		return c, errors.New("no rate is given: give one such as 100MB, or leave the calendar out")
	}
	return c, nil
}

// split cuts a text into rules. A comma also stands between days: a part that begins with a day goes on with the rule
// before it.
func split(text string) ([]string, error) {
	var rules []string
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		words := strings.Fields(part)
		if len(words) == 0 {
			return nil, errors.New("a rule is empty: give rules such as 20MB 08:00-18:00 Mon-Fri with commas between them")
		}
		if _, err := ParseDays(words[0]); err == nil && len(rules) > 0 {
			rules[len(rules)-1] += "," + part
			continue
		}
		rules = append(rules, part)
	}
	return rules, nil
}

// takeZone takes "in ZONE" off the end of a rule.
func (c *Calendar) takeZone(words []string) ([]string, error) {
	n := len(words)
	if n < 2 || words[n-2] != "in" {
		return words, nil
	}
	name := words[n-1]
	if _, err := zone(name); err != nil {
		return nil, err
	}
	if c.Zone != "" && c.Zone != name {
		return nil, fmt.Errorf("two time zones, %s and %s: a calendar has one", c.Zone, name)
	}
	c.Zone = name
	return words[:n-2], nil
}

// parseRule reads a rule's words; always says that it names no time.
func parseRule(words []string) (w Window, always bool, err error) {
	if w.Rate, err = ParseRate(words[0]); err != nil {
		return w, false, err
	}
	words = words[1:]
	if len(words) == 0 || len(words) == 1 && strings.EqualFold(words[0], "otherwise") {
		return w, true, nil
	}
	w.To = endOfDay
	if strings.Contains(words[0], ":") {
		from, to, _ := strings.Cut(words[0], "-")
		if w.From, err = ParseClock(from); err != nil {
			return w, false, err
		}
		if w.To, err = ParseClock(to); err != nil {
			return w, false, err
		}
		words = words[1:]
	}
	if len(words) > 0 {
		if w.Days, err = ParseDays(strings.Join(words, "")); err != nil {
			return w, false, err
		}
	}
	return w, false, w.validate()
}

// String is the text form, which Parse reads back as the same calendar.
func (c Calendar) String() string {
	var rules []string
	for _, w := range c.Windows {
		rule := fmt.Sprintf("%s %s-%s", w.Rate, w.From, w.To)
		if days := w.Days.String(); days != "" {
			rule += " " + days
		}
		rules = append(rules, rule)
	}
	last := c.Rate.String()
	if len(rules) > 0 {
		last += " otherwise"
	}
	rules = append(rules, last)
	if c.Zone != "" {
		rules = append(rules, "in "+c.Zone)
	}
	return strings.Join(rules, ", ")
}
