package engine

import (
	"os"
	"runtime"
)

// cores is how many processors there are to compute with.
var cores = runtime.GOMAXPROCS(0)

// Overlap keeps a process that runs sessions busy while it waits for disks; its main function calls it once. A goroutine that
// reads or writes past the page cache keeps its processor, for the Go scheduler, until a monitor takes it away some ten
// microseconds to milliseconds later. With as many as there are cores, those idle meanwhile: 4 GiB took a fifth longer on two.
// Whoever sets GOMAXPROCS keeps what was set.
func Overlap() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(4, 2*cores))
	}
}
