package main

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
)

// bytesFlag is a number of bytes on the command line: a plain number, or one with KiB, MiB, GiB or TiB.
type bytesFlag int64

var units = []struct {
	name  string
	shift int
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}}

// Set parses.
func (f *bytesFlag) Set(text string) error {
	number, shift := text, 0
	for _, u := range units {
		if n, found := strings.CutSuffix(text, u.name); found {
			number, shift = strings.TrimSpace(n), u.shift
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return fmt.Errorf("%q is no number of bytes: write one such as 4GiB or 512MiB", text)
	}
	*f = bytesFlag(n << shift)
	return nil
}

// String is what Set understands.
func (f *bytesFlag) String() string { return binary(int64(*f)) }

// binary is a number of bytes for people; exact where a unit divides it.
func binary(n int64) string {
	for _, u := range units {
		if n >= 1<<u.shift {
			return strconv.FormatFloat(float64(n)/float64(int64(1)<<u.shift), 'f', precision(n, u.shift), 64) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

func precision(n int64, shift int) int {
	if n&(1<<shift-1) == 0 {
		return 0
	}
	return 1
}

func processors() int { return runtime.NumCPU() }
