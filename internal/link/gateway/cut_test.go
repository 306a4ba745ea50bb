package gateway_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/link/gateway"
)

const (
	// A network for tests that no real one uses (RFC 2544).
	nearAddress = "198.18.177.1"
	farAddress  = "198.18.177.2"
	nearLink    = "lb-cut-near"
	farLink     = "lb-cut-far"
)

// far runs functions in a network namespace of its own, which is joined to this one by a cable.
type far struct {
	work chan func() error
	done chan error
}

func newFar(t *testing.T) *far {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace and cuts the cable to it")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2")
	}
	f := &far{work: make(chan func() error), done: make(chan error)}
	started := make(chan int)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine and takes the namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			close(started)
			return
		}
		started <- unix.Gettid()
		for work := range f.work {
			f.done <- work()
		}
	}()
	thread, ok := <-started
	if !ok {
		t.Skip("needs a kernel that lets this process make a network namespace")
	}
	t.Cleanup(func() { close(f.work) })
	ip(t, "link", "add", "name", nearLink, "type", "veth", "peer", "name", farLink, "netns", fmt.Sprint(thread))
	t.Cleanup(func() { ip(t, "link", "del", nearLink) })
	ip(t, "address", "add", nearAddress+"/30", "dev", nearLink)
	ip(t, "link", "set", nearLink, "up")
	f.do(t, func() error { return exec.Command("ip", "address", "add", farAddress+"/30", "dev", farLink).Run() })
	f.do(t, func() error { return exec.Command("ip", "link", "set", farLink, "up").Run() })
	return f
}

func (f *far) do(t *testing.T, work func() error) {
	t.Helper()
	f.work <- work
	if err := <-f.done; err != nil {
		t.Fatal(err)
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
}

// pass opens a connection from the far side through the gateway and returns the backend's end.
func (f *far) pass(t *testing.T) *net.TCPConn {
	t.Helper()
	address, accepted := rawBackend(t)
	listener := must(net.Listen("tcp", nearAddress+":0"))(t)
	serve(t, &gateway.Gateway{Router: routes{"x.lifeboat": address}}, listener)
	hello := clientHello(t, "x.lifeboat")
	f.do(t, func() error {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, err = conn.Write(hello)
		return err
	})
	server := <-accepted
	t.Cleanup(func() { _ = server.Close() })
	must(io.ReadFull(server, make([]byte, len(hello))))(t)
	return server
}

func TestACutLinkIsSeenInAboutFifteenSeconds(t *testing.T) {
	f := newFar(t)
	idle, busy := f.pass(t), f.pass(t)
	f.do(t, func() error { return exec.Command("ip", "link", "set", farLink, "down").Run() })
	cut := time.Now()
	must(busy.Write([]byte("nobody will acknowledge this")))(t)
	type seen struct {
		name string
		err  error
		took time.Duration
	}
	all := make(chan seen)
	for name, conn := range map[string]*net.TCPConn{"idle": idle, "busy": busy} {
		go func() {
			_ = conn.SetReadDeadline(cut.Add(40 * time.Second))
			_, err := conn.Read(make([]byte, 1))
			all <- seen{name, err, time.Since(cut)}
		}()
	}
	for range 2 {
		s := <-all
		t.Logf("%s connection: %v after %s", s.name, s.err, s.took.Round(100*time.Millisecond))
		if !errors.Is(s.err, syscall.ECONNRESET) || s.took > 25*time.Second {
			t.Errorf("%s connection: %v after %s, want a reset", s.name, s.err, s.took)
		}
	}
}
