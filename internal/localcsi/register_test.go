package localcsi

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestTheKubeletLearnsWhereTheDriverIs(t *testing.T) {
	dir := socketDir(t)
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	taken := false
	go func() { done <- register(ctx, dir, "/plugins/csi.sock", func() { taken = true }) }()
	socket := filepath.Join(dir, Name+"-reg.sock")
	eventually(t, "the registration socket", func() error { return socketThere(socket) })
	conn := dial(t, socket)
	defer func() { _ = conn.Close() }()
	kubelet := registration.NewRegistrationClient(conn)
	info, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{})
	must(t, err)
	if info.GetType() != "CSIPlugin" || info.GetName() != Name || info.GetEndpoint() != "/plugins/csi.sock" {
		t.Errorf("info: %v", info)
	}
	_, err = kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true})
	must(t, err)
	end()
	must(t, <-done)
	if !taken {
		t.Error("the driver did not hear that the kubelet took it")
	}
}

func TestARefusalOfTheKubeletEndsTheDriver(t *testing.T) {
	dir := socketDir(t)
	done := make(chan error, 1)
	go func() {
		done <- register(t.Context(), dir, "/plugins/csi.sock", func() { t.Error("taken and refused") })
	}()
	socket := filepath.Join(dir, Name+"-reg.sock")
	eventually(t, "the registration socket", func() error { return socketThere(socket) })
	conn := dial(t, socket)
	defer func() { _ = conn.Close() }()
	// The answer may be lost: the driver is ending.
	_, _ = registration.NewRegistrationClient(conn).NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{Error: "another driver has this name"})
	if err := <-done; err == nil || !strings.Contains(err.Error(), "another driver has this name") {
		t.Errorf("the driver ended with: %v", err)
	}
}

// socketDir returns a folder with a short name: the path of a Unix socket has at most 107 bytes.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "reg-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func socketThere(path string) error {
	if !exists(path) {
		return context.DeadlineExceeded
	}
	return nil
}

func TestTheDriverIsReadyWhenTheKubeletTookIt(t *testing.T) {
	n := newNode(t)
	endpoint := "unix://" + n.path("csi.sock")
	n.driver.unregistered.Store(true)
	if err := Ready(t.Context(), endpoint); err == nil {
		t.Error("ready before the kubelet knows the driver")
	}
	n.driver.unregistered.Store(false)
	must(t, Ready(t.Context(), endpoint))
}
