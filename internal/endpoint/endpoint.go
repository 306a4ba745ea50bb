// Package endpoint reads and writes network addresses as people give them: host:port, [IPv6]:port, name:port, :port.
//
// It knows text alone: it resolves nothing and dials nobody. Begin with Parse.
package endpoint

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultPort is where a gateway listens, and a receiver of its own whose endpoint names no port.
const DefaultPort = 9002

// Address is where somebody is reached.
type Address struct {
	// Host is a DNS name, an IPv4 address or an IPv6 address without brackets.
	Host string
	Port int
}

// String is what Parse reads: an IPv6 address comes in brackets.
func (a Address) String() string {
	if strings.Contains(a.Host, ":") {
		return "[" + a.Host + "]:" + strconv.Itoa(a.Port)
	}
	return a.Host + ":" + strconv.Itoa(a.Port)
}

// Error says what is wrong with an address, and how it is written.
type Error struct{ Found, Want string }

func (e *Error) Error() string { return fmt.Sprintf("%q is no address: %s", e.Found, e.Want) }

// Parse reads host:port. An IPv6 address has to be in brackets: without them its end cannot be told from a port.
func Parse(text string) (Address, error) {
	wrong := func(want string) (Address, error) { return Address{}, &Error{text, want} }
	host, port, ok := cut(text)
	switch {
	case strings.TrimSpace(text) != text || text == "":
		return wrong("give host:port, such as 203.0.113.7:9002 or [2001:db8::7]:9002")
	case !ok && strings.Count(text, ":") > 1 && !strings.HasPrefix(text, "["):
		return wrong("put an IPv6 address in brackets and a port behind it, such as [2001:db8::7]:9002")
	case !ok:
		return wrong("the port is missing; give host:port, such as 203.0.113.7:9002 or [2001:db8::7]:9002")
	case host == "":
		return wrong("the host is missing; give host:port, such as 203.0.113.7:9002 or [2001:db8::7]:9002")
	}
	number, err := ParsePort(port)
	if err != nil {
		return wrong(err.Error())
	}
	if bracketed := strings.HasPrefix(text, "["); bracketed {
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return wrong("in brackets goes an IPv6 address without a zone, such as [2001:db8::7]:9002")
		}
		return Address{ip.String(), number}, nil
	}
	if !hostname(host) {
		return wrong("the host is neither a DNS name nor an IP address")
	}
	return Address{host, number}, nil
}

// cut takes text apart at the colon before the port. Not ok: there is none.
func cut(text string) (host, port string, ok bool) {
	if strings.HasPrefix(text, "[") {
		host, port, ok = strings.Cut(text[1:], "]:")
		return host, port, ok && !strings.Contains(port, ":")
	}
	host, port, ok = strings.Cut(text, ":")
	return host, port, ok && !strings.Contains(port, ":")
}

// ParsePort reads a port.
func ParsePort(text string) (int, error) {
	number, err := strconv.Atoi(text)
	if err != nil || number < 1 || number > 65535 || strings.HasPrefix(text, "+") {
		return 0, fmt.Errorf("the port %q is no number from 1 to 65535", text)
	}
	return number, nil
}

// hostname reports that a host can be a DNS name or an IPv4 address. Whether it exists is another question.
func hostname(host string) bool {
	if len(host) > 253 {
		return false
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	digits := true
	for _, label := range labels {
		if !nameLabel(label) {
			return false
		}
		_, err := strconv.Atoi(label)
		digits = digits && err == nil
	}
	if !digits {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Is4()
}

func nameLabel(label string) bool {
	if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
		return false
	}
	return !strings.ContainsFunc(label, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// Local is where a receiver of its own is reached: a Service, and the port the receiver listens on.
type Local struct {
	// Service is empty when the endpoint names none.
	Service string
	Port    int
}

// ParseLocal reads name:port, :port or name, whose port is DefaultPort.
func ParseLocal(text string) (Local, error) {
	wrong := func(want string) (Local, error) { return Local{}, &Error{text, want} }
	name, port, hasPort := strings.Cut(text, ":")
	local := Local{Service: name, Port: DefaultPort}
	switch {
	case name == "" && !hasPort:
		return wrong("give name:port, :port or name, such as db-in:9002")
	case name != "" && (!nameLabel(name) || strings.ToLower(name) != name || strings.Contains(name, "_") || name[0] >= '0' && name[0] <= '9'):
		return wrong("the name is that of a Service in this namespace: small letters, digits and dashes, a letter first")
	case !hasPort:
		return local, nil
	}
	number, err := ParsePort(port)
	if err != nil {
		return wrong(err.Error())
	}
	local.Port = number
	return local, nil
}
