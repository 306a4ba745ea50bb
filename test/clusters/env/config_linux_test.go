package env

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNoTwoClustersShareAddressesOrNames(t *testing.T) {
	var ranges []netip.Prefix
	names := map[string]bool{}
	for slot := 0; slot <= MaxSlot; slot++ {
		c, err := Config{Slot: slot, Clusters: []string{"a", "b", "c", "d", "e"}}.complete()
		if err != nil {
			t.Fatal(err)
		}
		e := &Env{config: c, clusters: c.clusters()}
		ranges = append(ranges, e.ranges()...)
		for _, name := range []string{c.bridge(), c.StateDir} {
			if names[name] {
				t.Errorf("%s is used twice", name)
			}
			names[name] = true
		}
		for _, cluster := range e.clusters {
			for _, name := range []string{cluster.link(), cluster.cgroup(), cluster.Node.String(), cluster.Dir} {
				if names[name] {
					t.Errorf("%s is used twice", name)
				}
				names[name] = true
			}
		}
	}
	for i, a := range ranges {
		for _, b := range ranges[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s overlaps %s", a, b)
			}
		}
	}
}

func TestLongestNamesFitTheKernel(t *testing.T) {
	c, err := Config{Slot: MaxSlot, Clusters: []string{"abcdefgh"}}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if link := c.clusters()[0].link(); len(link) > 15 {
		t.Errorf("interface name %s has %d letters, the kernel takes 15", link, len(link))
	}
}

func TestBadConfigsAreRefusedWithTheValue(t *testing.T) {
	for want, c := range map[string]Config{
		"slot is 10":              {Slot: 10},
		"slot is -1":              {Slot: -1},
		`cluster name "East"`:     {Clusters: []string{"East"}},
		`cluster name ""`:         {Clusters: []string{""}},
		`cluster name "a"`:        {Clusters: []string{"a", "a"}},
		`cluster name "../../e"`:  {Clusters: []string{"../../e"}},
		"6 clusters named":        {Clusters: []string{"a", "b", "c", "d", "e", "f"}},
		`state folder "/"`:        {StateDir: "/"},
		`state folder "/var"`:     {StateDir: "/var"},
		`state folder "/tmp/a b"`: {StateDir: "/tmp/a b"},
	} {
		_, err := c.complete()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error with %q", c, err, want)
		}
	}
	t.Setenv("LIFEBOAT_CLUSTERS_SLOT", "two")
	if _, err := FromEnvironment(); err == nil || !strings.Contains(err.Error(), `"two"`) {
		t.Errorf("slot \"two\" from the environment: got %v", err)
	}
}
