// Package env makes two real Kubernetes clusters on one Linux machine and takes them away again: full upstream servers,
// a kubelet, containerd and runc each, a network between them that can be cut, and no registry anywhere.
//
// It knows addresses, files, processes and mounts. It never knows Lifeboat: what is tested on the clusters comes in as
// image archives and through their API servers.
//
// Open(Config) checks the machine and gives an Env; everything else is a method of it. The truth is never stored: what
// runs is read from the kernel (processes in the cluster's cgroup, loop devices on its files, network links by name),
// so any call may be killed at any moment and be made again. Begin with Env.Up.
package env

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// MaxSlot is the highest Config.Slot. Ten pairs beside each other are more than a machine can run.
const MaxSlot = 9

// Config says which pair of clusters is meant. Two Envs with different slots live beside each other.
type Config struct {
	// Slot picks addresses and names that no other slot has. Cluster i (1, 2, ...) of slot s has the node address
	// 10.78.s.(10+i), pods 10.(170+i).s.0/24, services 10.(180+i).s.0/24; the host is 10.78.s.1.
	Slot int
	// StateDir holds everything of the pair: keys, etcd, images, volumes, logs. Down removes it.
	StateDir string
	// Cache keeps what was built, by content. It is shared by all slots and survives Down.
	Cache string
	// Source is the folder of this module. Empty: looked for from the working directory upwards.
	Source string
	// Clusters are the names, in address order.
	Clusters []string
	// Progress gets lines for a person who waits. Nil discards them.
	Progress func(format string, args ...any)
}

// FromEnvironment is the default Config, changed by LIFEBOAT_CLUSTERS_SLOT, LIFEBOAT_CLUSTERS_STATE,
// LIFEBOAT_CLUSTERS_SOURCE and LIFEBOAT_CACHE.
func FromEnvironment() (Config, error) {
	c := Config{
		StateDir: os.Getenv("LIFEBOAT_CLUSTERS_STATE"),
		Cache:    os.Getenv("LIFEBOAT_CACHE"),
		Source:   os.Getenv("LIFEBOAT_CLUSTERS_SOURCE"),
		Clusters: []string{"east", "west"},
	}
	if text := os.Getenv("LIFEBOAT_CLUSTERS_SLOT"); text != "" {
		slot, err := strconv.Atoi(text)
		if err != nil {
			return Config{}, fmt.Errorf("LIFEBOAT_CLUSTERS_SLOT is %q: want a number from 0 to %d", text, MaxSlot)
		}
		c.Slot = slot
	}
	return c, nil
}

// complete fills what is empty and refuses what cannot be.
func (c Config) complete() (Config, error) {
	if c.Slot < 0 || c.Slot > MaxSlot {
		return c, fmt.Errorf("slot is %d: want a number from 0 to %d", c.Slot, MaxSlot)
	}
	if len(c.Clusters) == 0 {
		c.Clusters = []string{"east", "west"}
	}
	if len(c.Clusters) > 5 {
		return c, fmt.Errorf("%d clusters named: want at most 5", len(c.Clusters))
	}
	seen := map[string]bool{}
	for _, name := range c.Clusters {
		if !validName(name) || seen[name] {
			return c, fmt.Errorf("cluster name %q: want distinct names of 1 to 8 lower-case letters and digits", name)
		}
		seen[name] = true
	}
	if c.StateDir == "" {
		c.StateDir = "/var/lib/lifeboat-clusters"
		if c.Slot > 0 {
			c.StateDir += "-" + strconv.Itoa(c.Slot)
		}
	}
	if c.Cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return c, fmt.Errorf("no folder for built files: %w; set LIFEBOAT_CACHE", err)
		}
		c.Cache = filepath.Join(home, ".cache", "lifeboat")
	}
	for what, dir := range map[string]*string{"state": &c.StateDir, "cache": &c.Cache} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return c, fmt.Errorf("%s folder %s: %w", what, *dir, err)
		}
		*dir = abs
	}
	if strings.ContainsAny(c.StateDir, " \t\n\"'\\") || strings.Count(c.StateDir, "/") < 2 {
		return c, fmt.Errorf("state folder %q: want a path of at least two levels without blanks or quotes, because down removes it whole", c.StateDir)
	}
	if c.Progress == nil {
		c.Progress = func(string, ...any) {}
	}
	return c, nil
}

func validName(name string) bool {
	if len(name) == 0 || len(name) > 8 {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// Cluster is one of the pair: where it is and where its files are. It is derived from a Config, never stored.
type Cluster struct {
	Name string
	// Node is the address of the cluster's one node; its API server listens there on port 6443.
	Node     netip.Addr
	Pods     netip.Prefix
	Services netip.Prefix
	// Dir is the cluster's own folder of the state folder.
	Dir string

	slot, index int
}

func (c Config) cluster(index int) Cluster {
	name, s, i := c.Clusters[index], byte(c.Slot), byte(index+1)
	return Cluster{
		Name:     name,
		Node:     netip.AddrFrom4([4]byte{10, 78, s, 10 + i}),
		Pods:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 170 + i, s, 0}), 24),
		Services: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 180 + i, s, 0}), 24),
		Dir:      filepath.Join(c.StateDir, name),
		slot:     c.Slot, index: index,
	}
}

func (c Config) clusters() []Cluster {
	all := make([]Cluster, len(c.Clusters))
	for i := range c.Clusters {
		all[i] = c.cluster(i)
	}
	return all
}

// Host is the address under which the clusters see this machine.
func (c Config) Host() netip.Addr { return netip.AddrFrom4([4]byte{10, 78, byte(c.Slot), 1}) }

func (c Config) bridge() string { return "lbc" + strconv.Itoa(c.Slot) }

// link is the host's end of the cluster's cable. With names of at most 8 letters it stays below the kernel's 15.
func (c Cluster) link() string { return fmt.Sprintf("lbc%d-%s", c.slot, c.Name) }

// cgroup is the cluster's own branch of every cgroup hierarchy.
func (c Cluster) cgroup() string { return fmt.Sprintf("/lifeboat-%d-%s", c.slot, c.Name) }

// API is the address of the cluster's API server.
func (c Cluster) API() string { return "https://" + netip.AddrPortFrom(c.Node, 6443).String() }

// APIService is the address that pods know the API server by.
func (c Cluster) APIService() netip.Addr { return c.Services.Addr().Next() }

func (c Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir}, parts...)...)
}

// CSIDir is, on the host, what the cluster's pods see as /var/lib/lifeboat-csi.
func (c Cluster) CSIDir() string { return c.path("var/lib/lifeboat-csi") }
