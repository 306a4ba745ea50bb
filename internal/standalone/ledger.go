package standalone

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// ledger is what a source remembers of its targets between two runs: which point each has not finished, and which one
// it holds whose instant is still here. It is one small file per group of sources, locked while a Sender runs.
type ledger struct {
	path string
	lock *os.File

	mu   sync.Mutex
	data records
}

type records struct {
	Version int `json:"version"`
	// Instants are those that a target still needs, by point.
	Instants map[string]instant `json:"instants"`
	Targets  map[string]*target `json:"targets"`
}

// target is where one target stands.
type target struct {
	Unfinished string `json:"unfinished,omitempty"` // the point of a session that has not ended well
	Base       string `json:"base,omitempty"`       // the newest point it holds whose instant is kept
	// Verified is when both sides were last compared, or when the first session ended.
	Verified time.Time `json:"verified,omitzero"`
}

const ledgerVersion = 1

// openLedger reads the ledger of a group of sources, an empty one when there is none. Two processes at once would each
// take the other's instants away, so the second one is refused.
func openLedger(dir, replication string, members []Member) (*ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	sum := sha256.New()
	for _, m := range members {
		full, err := filepath.Abs(m.Path)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", m.Path, err)
		}
		fmt.Fprintf(sum, "%s\x00%s\x00", m.Name, full)
	}
	name := strings.ReplaceAll(replication, "/", "-") + "-" + hex.EncodeToString(sum.Sum(nil))[:12]
	l := &ledger{path: filepath.Join(dir, name+".json")}
	var err error
	if l.lock, err = os.OpenFile(filepath.Join(dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = l.lock.Close()
		return nil, &engine.ConfigError{Field: "sources", Found: "being replicated by another process", Want: "wait for its end, or name several targets in one command"}
	}
	raw, err := os.ReadFile(l.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		l.data = records{Version: ledgerVersion}
	case err != nil:
		return nil, errors.Join(fmt.Errorf("read state: %w", err), l.close())
	default:
		if err := json.Unmarshal(raw, &l.data); err != nil || l.data.Version != ledgerVersion {
			return nil, errors.Join(&engine.ConfigError{Field: "state", Found: l.path + ", which is damaged or of another version",
				Want: "remove it: the next session then begins a new point"}, l.close())
		}
	}
	if l.data.Instants == nil {
		l.data.Instants = map[string]instant{}
	}
	if l.data.Targets == nil {
		l.data.Targets = map[string]*target{}
	}
	return l, nil
}

func (l *ledger) close() error { return l.lock.Close() }

// of is where a target stands. The caller holds mu.
func (l *ledger) of(name string) *target {
	t := l.data.Targets[name]
	if t == nil {
		t = &target{}
		l.data.Targets[name] = t
	}
	return t
}

// save makes what is known durable, then removes the instants nobody needs any more. The caller holds mu.
func (l *ledger) save() error {
	var dropped []instant
	for point, i := range l.data.Instants {
		if !l.needed(point) {
			dropped = append(dropped, i)
			delete(l.data.Instants, point)
		}
	}
	raw, err := json.MarshalIndent(l.data, "", "  ")
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if err := writeFile(l.path, append(raw, '\n')); err != nil {
		return err
	}
	var errs []error
	for _, i := range dropped {
		errs = append(errs, i.remove())
	}
	return errors.Join(errs...)
}

func (l *ledger) needed(point string) bool {
	for _, t := range l.data.Targets {
		if t.Unfinished == point || t.Base == point {
			return true
		}
	}
	return false
}

// pointID names an instant: when it was cut, and something nobody else has.
func pointID(now time.Time, random uint32) string {
	return fmt.Sprintf("%s-%06x", strings.ToLower(now.UTC().Format("20060102T150405")), random&0xffffff)
}
