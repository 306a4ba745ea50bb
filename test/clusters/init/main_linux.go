// Command init is pid 1 of a cluster's machine: package machine does the work, this reads the Spec.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"lifeboat.dev/lifeboat/test/clusters/machine"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: init SPEC.json (started by `clusters up`, never by hand)")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec machine.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return machine.Run(spec, os.Stdin)
}
