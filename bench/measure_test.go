package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestCPUIsOfTheProcessAndItsEndedChildren(t *testing.T) {
	got, err := parseCPU("17 (a) b) S 1 17 17 0 -1 4194560 5 6 7 8 100 20 3 4 20 0 1 0 55 66 77")
	if err != nil || got != 1270*time.Millisecond {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseCPU("17 (cut) S 1"); err == nil {
		t.Error("a line that is cut is taken")
	}
}

func TestResidentIsTheHighWaterMark(t *testing.T) {
	if got := parseResident("Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t    1024 kB\nVmRSS:\t 5 kB\n"); got != 1<<20 {
		t.Errorf("got %d", got)
	}
	if got := parseResident("Name:\tkthread\n"); got != 0 {
		t.Errorf("of one without memory: %d", got)
	}
	if got := resident(os.Getpid()); got < 1<<20 {
		t.Errorf("of this process: %d", got)
	}
}

func TestWireIsOfOneDevice(t *testing.T) {
	const dev = "Inter-|   Receive\n face |bytes packets\n    lo: 100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n  near:  30 1 0 0 0 0 0 0 4 2 0 0 0 0 0 0\n"
	received, sent, err := parseWire(dev, "near")
	if err != nil || received != 30 || sent != 4 {
		t.Errorf("got %d, %d, %v", received, sent, err)
	}
	if _, _, err := parseWire(dev, "far"); err == nil {
		t.Error("a device that is not there is counted")
	}
}

func TestARunIsMeasuredWithItsChildren(t *testing.T) {
	u, err := measured(t.Context(), "", nil, script(`x=$(head -c 30000000 /dev/zero | tail -c 30000000 | wc -c); test $x = 30000000`)...)
	if err != nil {
		t.Fatal(err)
	}
	// tail keeps what it may have to print.
	if u.wall <= 0 || u.cpu <= 0 || u.wire != noWire || u.peak < 20<<20 {
		t.Errorf("got %+v", u)
	}
}

func TestAFailureIsSaidWithTheLastWords(t *testing.T) {
	_, err := measured(t.Context(), "", nil, script(`echo "the disk is full" >&2; false | cat`)...)
	if err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("got %v", err)
	}
}

func TestBytesOnTheCommandLine(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "4GiB": 4 << 30, "512MiB": 512 << 20, "1TiB": 1 << 40, "8KiB": 8 << 10} {
		var f bytesFlag
		if err := f.Set(text); err != nil || int64(f) != want {
			t.Errorf("%s: %d, %v", text, f, err)
		}
	}
	for _, text := range []string{"", "4GB", "-1", "x", "99999999TiB"} {
		if err := new(bytesFlag).Set(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if got := []string{binary(4 << 30), binary(3 << 29), binary(100), binary(1 << 40)}; strings.Join(got, " ") != "4GiB 1.5GiB 100 1TiB" {
		t.Errorf("got %v", got)
	}
}
