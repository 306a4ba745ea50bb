package localcsi

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestTheKubeletLearnsWhereTheDriverIs(t *testing.T) {
	dir := t.TempDir()
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- register(ctx, dir, "/plugins/csi.sock") }()
	socket := filepath.Join(dir, Name+"-reg.sock")
	eventually(t, "the registration socket", func() error { return socketThere(socket) })
	conn := dial(t, socket)
	defer conn.Close()
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
}

func TestARefusalOfTheKubeletEndsTheDriver(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() { done <- register(t.Context(), dir, "/plugins/csi.sock") }()
	socket := filepath.Join(dir, Name+"-reg.sock")
	eventually(t, "the registration socket", func() error { return socketThere(socket) })
	conn := dial(t, socket)
	defer conn.Close()
	// The answer may be lost: the driver is ending.
	_, _ = registration.NewRegistrationClient(conn).NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{Error: "another driver has this name"})
	if err := <-done; err == nil || !strings.Contains(err.Error(), "another driver has this name") {
		t.Errorf("the driver ended with: %v", err)
	}
}

func socketThere(path string) error {
	if !exists(path) {
		return context.DeadlineExceeded
	}
	return nil
}
