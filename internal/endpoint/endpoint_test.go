package endpoint_test

import (
	"errors"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/endpoint"
)

// M-157: a remote address is host:port, and one without a port is refused with the reason.
func TestAnAddressIsHostAndPort(t *testing.T) {
	for text, want := range map[string]endpoint.Address{
		"203.0.113.7:9002":        {Host: "203.0.113.7", Port: 9002},
		"[fd00::1]:9002":          {Host: "fd00::1", Port: 9002},
		"[::1]:1":                 {Host: "::1", Port: 1},
		"gw.west.example.com:443": {Host: "gw.west.example.com", Port: 443},
		"gw.west.example.com.:65": {Host: "gw.west.example.com.", Port: 65},
		"7up:9002":                {Host: "7up", Port: 9002},
		"[2001:DB8:0:0::7]:65535": {Host: "2001:db8::7", Port: 65535},
		"k-1234.elb.amazonaws:80": {Host: "k-1234.elb.amazonaws", Port: 80},
		"a_b.example.com:9002":    {Host: "a_b.example.com", Port: 9002},
	} {
		got, err := endpoint.Parse(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
			continue
		}
		if again, err := endpoint.Parse(got.String()); err != nil || again != got {
			t.Errorf("%s is written as %s, which reads as %+v, %v", text, got, again, err)
		}
	}
	for text, says := range map[string]string{
		"203.0.113.7":           "the port is missing",
		"gw.example.com":        "the port is missing",
		"[fd00::1]":             "the port is missing",
		"fd00::1":               "in brackets",
		"fd00::1:9002":          "in brackets",
		"":                      "give host:port",
		" 203.0.113.7:9002":     "give host:port",
		":9002":                 "the host is missing",
		"[]:9002":               "the host is missing",
		"[203.0.113.7]:9002":    "in brackets goes an IPv6 address",
		"[fe80::1%eth0]:9002":   "without a zone",
		"203.0.113.7:0":         "1 to 65535",
		"203.0.113.7:65536":     "1 to 65535",
		"203.0.113.7:+90":       "1 to 65535",
		"203.0.113.7:http":      "1 to 65535",
		"203.0.113.700:9002":    "neither a DNS name nor an IP address",
		"1.2.3:9002":            "neither a DNS name nor an IP address",
		"-gw:9002":              "neither a DNS name nor an IP address",
		"gw..example.com:9002":  "neither a DNS name nor an IP address",
		"https://gw.west:9002":  "in brackets",
		"https://gw.west":       "1 to 65535",
		"gw west:9002":          "neither a DNS name nor an IP address",
		"[fd00::1]:9002:9003":   "the port is missing",
		"203.0.113.7:9002:9003": "in brackets",
	} {
		_, err := endpoint.Parse(text)
		var wrong *endpoint.Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), says) || wrong.Found != text {
			t.Errorf("%q: %v, want it to say %q", text, err, says)
		}
	}
}

// M-157, M-158: a local endpoint is name:port or :port; without a port it is 9002.
func TestALocalEndpointIsAServiceAndAPort(t *testing.T) {
	for text, want := range map[string]endpoint.Local{
		"db-in:9001": {Service: "db-in", Port: 9001},
		":9005":      {Port: 9005},
		"db-in":      {Service: "db-in", Port: 9002},
	} {
		if got, err := endpoint.ParseLocal(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, says := range map[string]string{
		"": "give name:port", "db-in:": "1 to 65535", ":": "1 to 65535", ":70000": "1 to 65535",
		"DB:9002": "small letters", "1db:9002": "a letter first", "db.in:9002": "small letters", "db_in:1": "small letters",
	} {
		if _, err := endpoint.ParseLocal(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want it to say %q", text, err, says)
		}
	}
}
