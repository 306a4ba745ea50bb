package engine

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/transport"
)

// StatePath is where a mover says its State, as JSON, over HTTPS with both sides' certificates from the cluster's own
// CA.
const StatePath = "/v1/state"

// maxState bounds a State as JSON, in bytes.
const maxState = 1 << 20

// serveStatus begins to serve; stop ends it.
func serveStatus(listen string, load func() (transport.Material, error), manager string, state func() State, log *slog.Logger) (stop func(), err error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, &ConfigError{Field: "statusListen", Found: listen, Want: err.Error()}
	}
	return ServeStatus(l, load, manager, state, log), nil
}

// ServeStatus serves State on l to the manager of this identity until stop is called.
func ServeStatus(l net.Listener, load func() (transport.Material, error), manager string, state func() State, log *slog.Logger) (stop func()) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatePath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(state())
	})
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		TLSNextProto:   map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1 is enough
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(tls.NewListener(l, transport.ServerConfig(load, transport.OwnCluster, manager)))
	}()
	return func() {
		_ = server.Close()
		<-done
	}
}

// FetchState asks the mover at addr (host:port) for its State. m is the asker's own identity and its cluster's CA;
// expected is the mover's identity.
func FetchState(ctx context.Context, addr string, m transport.Material, expected string) (State, error) {
	conf, err := transport.ClientConfig(m, transport.OwnCluster, "", expected)
	if err != nil {
		return State{}, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+StatePath, nil)
	if err != nil {
		return State{}, fmt.Errorf("ask mover %s: %w", expected, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return State{}, fmt.Errorf("ask mover %s: %w", expected, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return State{}, fmt.Errorf("ask mover %s: it answers %s", expected, resp.Status)
	}
	var s State
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxState)).Decode(&s); err != nil {
		return State{}, fmt.Errorf("ask mover %s: %w", expected, err)
	}
	return s, nil
}
