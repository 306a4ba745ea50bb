package localcsi

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrar tells the kubelet where the driver listens, over the kubelet's own registration socket.
type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string
	accepted func()
	refused  chan error
}

// GetInfo answers the kubelet's question who is there.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              Name,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus hears whether the kubelet took the driver.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		r.accepted()
		return &registration.RegistrationStatusResponse{}, nil
	}
	select {
	case r.refused <- errors.New(s.GetError()):
	default:
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// register offers the driver at endpoint to the kubelet that watches dir, until ctx ends, and calls accepted each
// time the kubelet took it. The kubelet finds the socket by itself, also after its own restart; when it refuses
// the driver, that is the error.
func register(ctx context.Context, dir, endpoint string, accepted func()) error {
	l, err := Listen(filepath.Join(dir, Name+"-reg.sock"))
	if err != nil {
		return err
	}
	r := &registrar{endpoint: endpoint, accepted: accepted, refused: make(chan error, 1)}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	done := make(chan error, 1)
	go func() { done <- serveUntil(ctx, server, l) }()
	select {
	case err := <-done:
		return err
	case err := <-r.refused:
		server.Stop()
		return fmt.Errorf("the kubelet refused the driver: %w", err)
	}
}
