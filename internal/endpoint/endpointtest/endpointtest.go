// Package endpointtest runs tests where there is no IPv4: in a network namespace whose only address is ::1.
//
// It is imported by tests only. Begin with OnlyIPv6.
package endpointtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// inside tells a test process that it runs in such a namespace.
const inside = "LIFEBOAT_TEST_ONLY_IPV6"

// Listen opens a port on loopback: on 127.0.0.1, or on ::1 where there is no IPv4.
func Listen() (net.Listener, error) {
	if os.Getenv(inside) != "" {
		return net.Listen("tcp", "[::1]:0")
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// OnlyIPv6 runs the tests of this package that pattern names once more, as a process of its own without IPv4. Tests that take part
// listen with Listen.
func OnlyIPv6(t *testing.T, pattern string) {
	t.Helper()
	if os.Getenv(inside) != "" {
		t.Skip("runs inside already")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	for _, program := range []string{"ip", "sh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	// The last line before the tests proves that no IPv4 address is left.
	script := fmt.Sprintf(`set -e
ip link set lo up
ip address del 127.0.0.1/8 dev lo
test -z "$(ip -4 -o address)"
exec %s -test.v -test.count=1 -test.run '%s'`, self, pattern)
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("without IPv4: %v\n%s", err, out)
	}
	ran := strings.Count(string(out), "--- PASS")
	t.Logf("%d tests pass without IPv4", ran)
	if ran == 0 {
		t.Errorf("no test ran:\n%s", out)
	}
}
