package env

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// mac gives every interface a fixed address: with random ones the host's neighbour table is stale for up to a
// minute after a cluster came back, and a bridge without its own changes its address with its ports.
func mac(slot, host int) string { return fmt.Sprintf("02:4c:42:%02x:00:%02x", slot, host) }

// makeBridge makes the switch that joins the host and the clusters, if it is not there.
func (e *Env) makeBridge(ctx context.Context) error {
	name := e.config.bridge()
	if !linkExists(name) {
		if err := run(ctx, "ip", "link", "add", name, "address", mac(e.config.Slot, 1), "type", "bridge", "stp_state", "0", "forward_delay", "0"); err != nil {
			return err
		}
	}
	if err := run(ctx, "ip", "address", "replace", e.config.Host().String()+"/24", "dev", name); err != nil {
		return err
	}
	if err := run(ctx, "ip", "link", "set", name, "up"); err != nil {
		return err
	}
	for _, c := range e.clusters {
		for _, net := range []netip.Prefix{c.Pods, c.Services} {
			if err := run(ctx, "ip", "route", "replace", net.String(), "via", c.Node.String(), "dev", name); err != nil {
				return err
			}
		}
	}
	return nil
}

// plug lays the cable between the bridge and the network namespace of process pid. Inside, it is called eth0.
func (e *Env) plug(ctx context.Context, c Cluster, pid int) error {
	if err := unplug(ctx, c); err != nil {
		return err
	}
	if err := run(ctx, "ip", "link", "add", c.link(), "address", mac(c.slot, 100+c.index), "type", "veth",
		"peer", "name", "eth0", "netns", fmt.Sprint(pid), "address", mac(c.slot, 10+c.index)); err != nil {
		return err
	}
	if err := run(ctx, "ip", "link", "set", c.link(), "master", e.config.bridge(), "up"); err != nil {
		return err
	}
	if e.isCut() {
		return isolate(ctx, c, true)
	}
	return nil
}

// inside are the commands that the machine runs at its end of the cable.
func (e *Env) inside(c Cluster) [][]string {
	commands := [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "address", "add", c.Node.String() + "/24", "dev", "eth0"},
		{"ip", "link", "set", "eth0", "up"},
		// A process on the node that calls a service's address needs some route for the packet to exist at all;
		// kube-proxy then gives it its true destination. There is no default route: nothing leaves this machine.
		{"ip", "route", "add", c.Services.String(), "dev", "eth0"},
	}
	for _, other := range e.clusters {
		if other.Name == c.Name {
			continue
		}
		for _, net := range []netip.Prefix{other.Pods, other.Services} {
			commands = append(commands, []string{"ip", "route", "add", net.String(), "via", other.Node.String()})
		}
	}
	return commands
}

func unplug(ctx context.Context, c Cluster) error {
	if !linkExists(c.link()) {
		return nil
	}
	err := run(ctx, "ip", "link", "delete", c.link())
	if err != nil && !linkExists(c.link()) {
		return nil // it went away by itself with the cluster's network namespace
	}
	return err
}

func (e *Env) removeBridge(ctx context.Context) error {
	if !linkExists(e.config.bridge()) {
		return nil
	}
	return run(ctx, "ip", "link", "delete", e.config.bridge())
}

// isolate makes the bridge drop frames between isolated ports. The host's own port is not one, so the host still
// reaches every cluster while the clusters do not reach each other. Connections that were open stall, as they do
// when a line between two sites fails: no reset arrives.
func isolate(ctx context.Context, c Cluster, on bool) error {
	state := "off"
	if on {
		state = "on"
	}
	return run(ctx, "bridge", "link", "set", "dev", c.link(), "isolated", state)
}

// A cut is a wish that outlives a cluster's restart, so it is a file.
func (e *Env) cutFile() string { return filepath.Join(e.config.StateDir, "cut") }

func (e *Env) isCut() bool {
	_, err := os.Stat(e.cutFile())
	return err == nil
}

// Cut breaks the link between the clusters in both directions; the host keeps reaching all of them. It stays cut,
// also over a restart of a cluster, until Heal.
func (e *Env) Cut(ctx context.Context) error { return e.setCut(ctx, true) }

// Heal ends a Cut.
func (e *Env) Heal(ctx context.Context) error { return e.setCut(ctx, false) }

func (e *Env) setCut(ctx context.Context, on bool) error {
	unlock, err := e.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if !linkExists(e.config.bridge()) {
		return errors.New("the clusters are not up: run `clusters up` first")
	}
	if on {
		if err := os.WriteFile(e.cutFile(), nil, 0o644); err != nil {
			return err
		}
	}
	for _, c := range e.clusters {
		if !linkExists(c.link()) {
			continue
		}
		if err := isolate(ctx, c, on); err != nil {
			return err
		}
	}
	if on {
		return nil
	}
	if err := os.Remove(e.cutFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// rangesFree refuses to lay addresses over somebody else's.
func (e *Env) rangesFree(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "ip", "-j", "-4", "route", "show", "table", "all").Output()
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	var routes []struct{ Dst, Dev, Type string }
	if err := json.Unmarshal(out, &routes); err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	var taken []string
	for _, r := range routes {
		if r.Dev == e.config.bridge() || r.Dst == "default" {
			continue
		}
		theirs, err := prefix(r.Dst)
		if err != nil {
			continue
		}
		for _, ours := range e.ranges() {
			if ours.Overlaps(theirs) {
				taken = append(taken, fmt.Sprintf("%s (wanted) is in use: route %s on %s", ours, theirs, r.Dev))
			}
		}
	}
	if len(taken) > 0 {
		return fmt.Errorf("address ranges are taken; choose another slot with --slot or LIFEBOAT_CLUSTERS_SLOT:\n  %s", strings.Join(taken, "\n  "))
	}
	return nil
}

func (e *Env) ranges() []netip.Prefix {
	all := []netip.Prefix{netip.PrefixFrom(e.config.Host(), 24).Masked()}
	for _, c := range e.clusters {
		all = append(all, c.Pods, c.Services)
	}
	return all
}

func prefix(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		return netip.ParsePrefix(text)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

func linkExists(name string) bool {
	_, err := os.Stat("/sys/class/net/" + name)
	return err == nil
}

// run runs a command to its end; what it printed is in the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
