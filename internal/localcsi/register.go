package localcsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrar tells the kubelet where the driver listens, over the kubelet's own registration socket.
type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string
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
	if !s.GetPluginRegistered() {
		select {
		case r.refused <- errors.New(s.GetError()):
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// register offers the driver at endpoint to the kubelet that watches dir, until ctx ends. The kubelet finds the
// socket by itself, also after its own restart; when it refuses the driver, that is the error.
func register(ctx context.Context, dir, endpoint string) error {
	l, err := Listen(filepath.Join(dir, Name+"-reg.sock"))
	if err != nil {
		return err
	}
	return serveRegistration(ctx, l, endpoint)
}

func serveRegistration(ctx context.Context, l net.Listener, endpoint string) error {
	r := &registrar{endpoint: endpoint, refused: make(chan error, 1)}
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
