// Package gateway is the one port of a cluster: it reads the server name that a TLS client asks for, and passes the bytes on to the
// manager or receiver of that name, unopened. The two ends judge each other; the gateway trusts nobody and holds no key.
//
// It knows TCP and the first message of TLS. Where a name leads is the Router's to say. Begin with Serve.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
)

// Limits.
const (
	// helloTimeout is how long a client may take to say which server it wants.
	helloTimeout = 10 * time.Second
	// maxWaiting is how many clients may be in that state at once, so that silent ones cannot fill the table.
	maxWaiting = 256
	// maxConnections is how many connections are passed on at once.
	maxConnections = 4096
	// dialTimeout bounds the connection to a backend, which is in this cluster.
	dialTimeout = 5 * time.Second
	// halfClosedTimeout is how long one direction may be silent after the other has ended.
	halfClosedTimeout = 10 * time.Minute
	// stopTimeout is how long connections may go on after the gateway was told to stop.
	stopTimeout = 20 * time.Second
)

// Router says where a server name leads: the host:port of a backend. Its error is for the log.
type Router interface {
	Route(serverName string) (address string, err error)
}

// Gateway passes connections on.
type Gateway struct {
	Router  Router
	Log     logr.Logger
	Metrics *Metrics
	// refusals limits how many refused connections are logged: a stranger may knock as often as it likes. All are counted.
	refusals *rate.Limiter
	// HelloTimeout, HalfClosedTimeout and StopTimeout are for tests; the defaults when zero.
	HelloTimeout, HalfClosedTimeout, StopTimeout time.Duration
}

// Serve accepts until ctx is done, then lets connections end by themselves for a while and cuts the rest. It closes
// the listener.
func (g *Gateway) Serve(ctx context.Context, listener net.Listener) error {
	g.refusals = rate.NewLimiter(rate.Every(time.Second), 20)
	var running sync.WaitGroup
	waiting := make(chan struct{}, maxWaiting)
	table := make(chan struct{}, maxConnections)
	cut, cutAll := context.WithCancel(context.WithoutCancel(ctx))
	defer cutAll()
	stopListening := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stopListening()

	pause := time.Duration(0)
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			break
		}
		if err != nil {
			// Out of file descriptors, as a rule: accepting again at once would only spin.
			if !temporary(err) {
				return fmt.Errorf("accept connections: %w", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			g.Log.Error(err, "accept connection", "retryAfter", pause)
			sleep(ctx, pause)
			continue
		}
		pause = 0
		if !enter(waiting) {
			g.refuse(conn, resultBusy, errors.New("too many clients have not said which server they want"))
			continue
		}
		if !enter(table) {
			<-waiting
			g.refuse(conn, resultBusy, fmt.Errorf("%d connections are open already", maxConnections))
			continue
		}
		running.Go(func() {
			defer func() { <-table }()
			g.handle(cut, conn, sync.OnceFunc(func() { <-waiting }))
		})
	}
	timer := time.AfterFunc(or(g.StopTimeout, stopTimeout), cutAll)
	defer timer.Stop()
	running.Wait()
	return nil
}

// handle passes one connection on. Said is called when the client has said what it wants, or has failed to.
func (g *Gateway) handle(ctx context.Context, client net.Conn, said func()) {
	defer said()
	closeClient := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer closeClient()
	if err := tune(client); err != nil {
		g.refuse(client, resultClient, err)
		return
	}
	serverName, hello, err := readHello(client, or(g.HelloTimeout, helloTimeout))
	said()
	switch {
	case errors.Is(err, errNothing): // a probe that looks whether the port is open
		_ = client.Close()
		return
	case err != nil:
		g.refuse(client, resultClient, err)
		return
	}
	address, err := g.Router.Route(serverName)
	if err != nil {
		g.refuse(client, resultUnknown, err)
		return
	}
	backend, err := dial(ctx, address)
	if err != nil {
		g.refuse(client, resultBackend, fmt.Errorf("connect to the backend of %s: %w", serverName, err))
		return
	}
	closeBackend := context.AfterFunc(ctx, func() { _ = backend.Close() })
	defer closeBackend()

	g.Metrics.opened()
	began := time.Now()
	log := g.Log.WithValues("client", client.RemoteAddr().String(), "serverName", serverName, "backend", address)
	log.V(1).Info("connection opened")
	in, out, err := splice(client, backend, hello, or(g.HalfClosedTimeout, halfClosedTimeout))
	g.Metrics.closed(in, out)
	log.V(1).Info("connection closed", "bytesIn", in, "bytesOut", out, "seconds", time.Since(began).Seconds(), "reason", text(err))
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn, tune(conn)
}

// refuse ends a connection that is not passed on. The client is told nothing: it has not shown who it is.
func (g *Gateway) refuse(client net.Conn, result string, err error) {
	g.Metrics.refused(result)
	if g.refusals.Allow() {
		g.Log.Info("connection refused", "client", client.RemoteAddr().String(), "result", result, "reason", err.Error())
	}
	_ = client.Close()
}

func enter(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

func text(err error) string {
	if err == nil {
		return "ended by both sides"
	}
	return err.Error()
}
