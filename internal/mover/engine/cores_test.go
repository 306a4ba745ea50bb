package engine

import (
	"runtime"
	"testing"
)

func TestOverlapGivesTheSchedulerMoreProcessorsThanCores(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	t.Setenv("GOMAXPROCS", "3")
	runtime.GOMAXPROCS(3)
	if Overlap(); runtime.GOMAXPROCS(0) != 3 {
		t.Errorf("GOMAXPROCS was set to 3 and is %d", runtime.GOMAXPROCS(0))
	}
	t.Setenv("GOMAXPROCS", "")
	Overlap()
	if got := runtime.GOMAXPROCS(0); got < 4 || got < 2*cores {
		t.Errorf("%d processors for %d cores", got, cores)
	}
	if newPilot().procs != cores {
		t.Errorf("compression is thought to have %d processors, of %d cores", newPilot().procs, cores)
	}
}
