//go:build !linux

// Command clusters runs two real Kubernetes clusters on one machine, which has to run Linux.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "clusters: this machine runs %s; the clusters need Linux and root\n", runtime.GOOS)
	os.Exit(1)
}
