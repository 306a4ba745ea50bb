package standalone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/spool"
	"lifeboat.dev/lifeboat/internal/mover/transport"
	"lifeboat.dev/lifeboat/internal/mover/volume"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// ReceiverOptions is what a Receiver is to do.
type ReceiverOptions struct {
	Host    *Host
	Peer    string // the source host's name; empty: the only one that is trusted
	Group   string
	Epoch   uint64
	Members []Member
	// Sizes are what files that do not exist yet are made with, in the members' order. Empty: the source's sizes.
	Sizes      []int64
	Listen     string
	Status     string // where to answer for the state; empty: nowhere
	Spool      string // empty: beside the first member
	SpoolLimit int64  // bytes; 0: what the disk has
	// Holds says what the members hold before the first session.
	Holds engine.Content

	Software string
	Log      *slog.Logger
	Now      func() time.Time
	// Ready is told the address, once sources are accepted. Observe is told of each session, one at a time.
	Ready   func(address string)
	Observe func(Visit)
}

// Outcome is how a connection of a source ended.
type Outcome string

// The outcomes.
const (
	Committed Outcome = "committed" // the target holds the point
	Cut       Outcome = "cut"       // the source may come again and go on
	Refused   Outcome = "refused"   // it may not before somebody changes something
)

// Visit is one connection of a source, after its end.
type Visit struct {
	Time    time.Time   `json:"time"`
	From    string      `json:"from"` // address
	Outcome Outcome     `json:"outcome"`
	Point   string      `json:"point,omitempty"`
	Tier    string      `json:"tier,omitempty"`
	Reason  string      `json:"reason,omitempty"`
	Bytes   int64       `json:"bytes"` // received, as they came over the link
	Seconds float64     `json:"seconds"`
	Error   string      `json:"error,omitempty"`
	Kind    engine.Kind `json:"errorKind,omitempty"`
}

// Receiver keeps the replicas of one group at the newest recovery point a source brought.
type Receiver struct {
	o    ReceiverOptions
	peer Peer

	end     context.CancelCauseFunc // of the run
	closers []func() error          // of what open opened

	mu     sync.Mutex
	target *engine.Target // nil until the replicas exist

	observing sync.Mutex
}

// NewReceiver checks the options. Errors are *engine.ConfigError where one is wrong.
func NewReceiver(o ReceiverOptions) (*Receiver, error) {
	peer, err := o.Host.Peer(o.Peer)
	if err != nil {
		return nil, err
	}
	r := &Receiver{o: o, peer: peer}
	if r.o.Spool == "" {
		if r.o.Spool, err = spoolBeside(o.Members); err != nil {
			return nil, err
		}
	}
	if n := len(o.Sizes); n > 1 && n != len(o.Members) {
		return nil, &engine.ConfigError{Field: "--create", Found: fmt.Sprintf("%d sizes for %d targets", n, len(o.Members)), Want: "give one for all, or one for each in the same order"}
	}
	return r, r.config().Validate()
}

// spoolBeside is where deltas are kept when nobody said.
func spoolBeside(members []Member) (string, error) {
	if len(members) == 0 {
		return "", &engine.ConfigError{Field: "target", Found: "missing", Want: "name the device, file or folder to keep the replica in"}
	}
	full, err := filepath.Abs(members[0].Path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", members[0].Path, err)
	}
	if isDevicePath(full) {
		return "", &engine.ConfigError{Field: "--spool", Found: "missing", Want: "name a folder on a disk: beside the device " + full + " there is no room"}
	}
	return filepath.Join(filepath.Dir(full), "."+filepath.Base(full)+".lifeboat-spool"), nil
}

func isDevicePath(full string) bool { return strings.HasPrefix(full, "/dev/") }

func (r *Receiver) replication() string { return r.peer.Name + "/" + r.o.Group }

func (r *Receiver) config() engine.TargetConfig {
	c := engine.TargetConfig{
		Replication: r.replication(), Epoch: r.o.Epoch, ReplicaHolds: r.o.Holds,
		Spool: r.o.Spool, SpoolLimit: r.o.SpoolLimit,
		Listen: r.o.Listen, IdentityDir: r.o.Host.Dir, PeerIdentity: URI(r.peer.Name),
	}
	for _, m := range r.o.Members {
		c.Volumes = append(c.Volumes, engine.TargetVolume{Name: m.Name, Device: m.Path})
	}
	return c
}

// Run serves sources until ctx ends, which is no error. Replicas that do not exist are made when the first source
// comes: only it knows how large they must be.
func (r *Receiver) Run(ctx context.Context) error {
	l, err := net.Listen("tcp", r.o.Listen)
	if err != nil {
		return &engine.ConfigError{Field: "--listen", Found: r.o.Listen, Want: err.Error()}
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	r.end = end
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	missing, err := r.makeKnown()
	if err == nil && !missing {
		err = r.open(ctx)
	}
	if err != nil {
		_ = l.Close()
		return errors.Join(err, r.close())
	}
	r.o.Ready(l.Addr().String())
	r.accept(ctx, l)
	var failed *fatal
	if errors.As(context.Cause(ctx), &failed) {
		return errors.Join(failed.error, r.close())
	}
	return r.close()
}

// fatal is an error that ends the receiver, found while a source was served.
type fatal struct{ error }

// open opens spool and replicas, and brings them to the newest recovery point.
func (r *Receiver) open(ctx context.Context) error {
	t, done, err := openTarget(r.config(), r.o.Software, r.o.Log)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, func() error { done(); return nil }, t.Close)
	if r.o.Status != "" {
		at, err := net.Listen("tcp", r.o.Status)
		if err != nil {
			return &engine.ConfigError{Field: "--status", Found: r.o.Status, Want: err.Error()}
		}
		stop := engine.ServeStatus(at, r.o.Host.material(r.peer), URI(r.o.Host.Name), t.State, r.o.Log)
		r.closers = append(r.closers, func() error { stop(); return nil })
	}
	if err := t.Recover(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	r.target = t
	return nil
}

// close undoes open, backwards.
func (r *Receiver) close() error {
	var errs []error
	for _, c := range slices.Backward(r.closers) {
		errs = append(errs, c())
	}
	r.closers = nil
	return errors.Join(errs...)
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// openTarget opens spool and replicas; done closes them.
func openTarget(c engine.TargetConfig, software string, log *slog.Logger) (t *engine.Target, done func(), err error) {
	dir, err := spool.OpenDir(c.Spool)
	if err != nil {
		return nil, nil, err
	}
	closers := []io.Closer{dir}
	done = func() {
		for _, c := range closers {
			_ = c.Close()
		}
	}
	var volumes []volume.Volume
	paths := make([]string, len(c.Volumes))
	for i, v := range c.Volumes {
		paths[i] = v.Device
	}
	trees, err := allFolders(paths)
	if err != nil {
		done()
		return nil, nil, err
	}
	for _, v := range c.Volumes {
		if trees {
			break // they are opened by the engine
		}
		f, err := volume.Open(v.Device)
		if err != nil {
			done()
			return nil, nil, &engine.ConfigError{Field: "target " + v.Name, Found: v.Device, Want: err.Error()}
		}
		closers = append(closers, f)
		volumes = append(volumes, f)
	}
	t, err = engine.NewTarget(c, engine.TargetParts{FS: dir, Volumes: volumes, Software: software, Log: log, Now: time.Now})
	if err != nil {
		done()
		return nil, nil, err
	}
	return t, done, nil
}

// makeKnown makes the replicas whose size is known already; missing reports that there are others.
func (r *Receiver) makeKnown() (missing bool, err error) {
	for i, m := range r.o.Members {
		_, err := os.Stat(m.Path)
		switch {
		case err == nil:
			continue
		case !errors.Is(err, os.ErrNotExist):
			return false, &engine.ConfigError{Field: "target " + m.Name, Found: m.Path, Want: err.Error()}
		case isDevicePath(m.Path):
			return false, &engine.ConfigError{Field: "target " + m.Name, Found: m.Path + ", which does not exist", Want: "make the device first; only files are made here"}
		case len(r.o.Sizes) == 0:
			if _, err := os.Stat(filepath.Dir(m.Path)); err != nil {
				return false, &engine.ConfigError{Field: "target " + m.Name, Found: m.Path, Want: "make its folder first: " + err.Error()}
			}
			missing = true
			continue
		}
		size := r.o.Sizes[min(i, len(r.o.Sizes)-1)]
		if err := create(m.Path, size); err != nil {
			return false, &engine.ConfigError{Field: "target " + m.Name, Found: m.Path, Want: err.Error()}
		}
	}
	return missing, nil
}

// create makes a file of zeros that takes no space, durably: the spool will believe in it.
func create(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// createLike makes what a source's member needs: a file of its size, or an empty folder.
func createLike(path string, m wire.Member) error {
	if m.Kind != wire.KindTree {
		return create(path, m.Size)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// accept serves the connections that come until ctx ends, and waits for the last one.
func (r *Receiver) accept(ctx context.Context, l net.Listener) {
	conf := transport.ServerConfig(r.o.Host.material(r.peer), transport.PeerCluster, URI(r.peer.Name))
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		raw, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = raw.Close()
			}
			return
		}
		if err != nil {
			r.o.Log.Warn("accept", "error", err.Error())
			if wait(ctx, acceptPause) != nil {
				return
			}
			continue
		}
		wg.Go(func() { r.welcome(ctx, raw, conf) })
	}
}

// acceptPause lets a shortage, such as of file descriptors, pass.
const acceptPause = 200 * time.Millisecond

// welcome serves one connection to its end and tells of it. One that ends without a word, as health checks do, is not
// told of.
func (r *Receiver) welcome(ctx context.Context, raw net.Conn, conf *tls.Config) {
	began := r.o.Now()
	count := &counted{Conn: raw}
	conn := tls.Server(transport.Gather(transport.Patient(count, 0)), conf)
	hs, cancel := context.WithTimeout(ctx, connectTimeout)
	err := conn.HandshakeContext(hs)
	cancel()
	if err != nil {
		_ = raw.Close()
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || ctx.Err() != nil {
			return
		}
		err = fmt.Errorf("greet a source: %w", err)
	}
	var st engine.State
	if err == nil {
		st, err = r.serve(ctx, conn)
	}
	if errors.Is(err, errMade) {
		return // it comes again
	}
	v := Visit{
		Time: r.o.Now(), From: raw.RemoteAddr().String(), Outcome: Committed, Bytes: count.read.Load(), Seconds: r.o.Now().Sub(began).Seconds(),
		Point: st.Point, Tier: st.Tier, Reason: st.TierReason,
	}
	if err != nil {
		v.Outcome, v.Error, v.Kind = Cut, err.Error(), engine.KindOf(err)
		if v.Kind.ForGood() {
			v.Outcome, v.Point, v.Tier, v.Reason = Refused, "", "", ""
		}
	}
	r.observing.Lock()
	defer r.observing.Unlock()
	r.o.Observe(v)
}

// serve serves a trusted source. The state is the target's afterwards.
func (r *Receiver) serve(ctx context.Context, conn net.Conn) (engine.State, error) {
	r.mu.Lock()
	t := r.target
	r.mu.Unlock()
	if t == nil {
		return engine.State{}, r.learn(ctx, conn)
	}
	err := t.Handle(ctx, conn)
	return t.State(), err
}

// errMade ends a connection from which the replicas' sizes were learned.
var errMade = errors.New("the replicas were made")

// learn asks the first source how large the replicas must be, and makes them. The source finds its connection ended
// and comes again at once: that is cheaper than a target whose volumes may yet change.
func (r *Receiver) learn(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	stream, err := transport.NewStream(conn, wire.OwnBanner(r.o.Software, "target"))
	if err != nil {
		return err
	}
	frame, err := stream.Receive()
	if err != nil {
		return err
	}
	defer frame.Release()
	hello, ok := frame.Message.(wire.Hello)
	if !ok {
		return &session.Violation{What: fmt.Sprintf("it begins with a %s", frame.Message.Type())}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target != nil {
		return errMade // another connection was faster
	}
	if refusal := r.refuse(hello); refusal != nil {
		_, err := stream.Send(refusal.Message())
		if err == nil {
			err = stream.Flush()
		}
		if err == nil {
			stream.EndWrite()
			_, _ = stream.Receive() // until the source has read it and closes
		}
		return refusal
	}
	for i, m := range r.o.Members {
		if _, err := os.Stat(m.Path); err == nil {
			continue
		}
		if err := createLike(m.Path, hello.Members[i]); err != nil {
			err = &engine.ConfigError{Field: "target " + m.Name, Found: m.Path, Want: err.Error()}
			r.end(&fatal{err})
			return err
		}
	}
	if err := r.open(ctx); err != nil {
		r.end(&fatal{err})
		return err
	}
	return errMade
}

// refuse says why a source does not fit; what is missing here fits any size.
func (r *Receiver) refuse(hello wire.Hello) *session.Refusal {
	h := session.Holding{Replication: r.replication(), Epoch: r.o.Epoch}
	for i, m := range r.o.Members {
		own := wire.Member{Name: m.Name}
		if i < len(hello.Members) {
			own = hello.Members[i]
			own.Name = m.Name
		}
		if now, err := look(m.Path); err == nil {
			own.Size, own.Kind = now.Size, wire.KindBlocks
			if isFolder(m.Path) {
				own.Kind = wire.KindTree
			}
		}
		h.Members = append(h.Members, own)
	}
	return session.Refuse(h, hello)
}

// counted counts what is read.
type counted struct {
	net.Conn
	read atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// CloseWrite passes through to connections that can.
func (c *counted) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
