package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const sample = `24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 24 7:3 / /data/with\040space ro,noatime shared:9 master:2 - xfs /dev/loop3 rw,nouuid
41 24 0:5 /loop4 /pods/a/device rw - devtmpfs udev rw,size=1k
42 24 7:3 / /top rw - xfs /dev/loop3 rw
43 42 0:44 / /top rw - tmpfs none rw
`

func TestParse(t *testing.T) {
	table, err := Parse(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	mounts := table.OfDevice(unix.Mkdev(7, 3))
	if len(mounts) != 2 || mounts[0].Point != "/data/with space" || !mounts[0].ReadOnly() || mounts[0].FileSystemReadOnly() || mounts[1].ReadOnly() {
		t.Errorf("mounts of 7:3: %+v", mounts)
	}
	if mounts[0].Source != "/dev/loop3" || mounts[0].Type != "xfs" {
		t.Errorf("source and type: %+v", mounts[0])
	}
}

func TestTheTopmostMountCounts(t *testing.T) {
	dir := t.TempDir()
	text := strings.ReplaceAll(sample, "/top", dir)
	table, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link} {
		e, ok, err := table.At(path)
		if err != nil || !ok || e.Type != "tmpfs" {
			t.Errorf("at %s: %+v %t %v", path, e, ok, err)
		}
	}
	if _, ok, err := table.At(filepath.Join(dir, "no", "such")); ok || err != nil {
		t.Errorf("a path that is not there: %t %v", ok, err)
	}
}

func TestATableThatCannotBeReadIsAnError(t *testing.T) {
	for _, text := range []string{"", "garbage", "24 1 x:0 / / rw - ext4 /dev/vda rw", "24 1 254:0 / / rw,relatime ext4 /dev/vda rw"} {
		if table, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%q gave %+v", text, table)
		}
	}
}

func TestOptions(t *testing.T) {
	flags, data := Options{"noatime,data=ordered", "ro", "rw", "nosuid", "discard"}.split()
	if flags != unix.MS_NOATIME|unix.MS_NOSUID || data != "data=ordered,discard" {
		t.Errorf("flags %#x, data %q", flags, data)
	}
	if o := (Options{"a,commit=5"}); !o.Has("commit") || !o.Has("a") || o.Has("comm") {
		t.Error("Has does not find whole names")
	}
}
