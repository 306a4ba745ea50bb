package tree

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// tally counts what a builder does, and notices two files that are made in one directory at the same time.
type tally struct {
	mu      sync.Mutex
	ops     map[string]int
	making  map[string]bool
	waiting chan struct{} // of the first file made, until there is a second
	both    error
	last    int // from this file on nobody waits: there may be none to come from another directory
}

// step lets every second file that is made wait for one more to be begun, wherever the builder begins it.
func (c *tally) step(op, path string) error {
	dir, _ := splitPath(path)
	c.mu.Lock()
	c.ops[op]++
	if op != "create" || c.ops[op] > c.last {
		c.mu.Unlock()
		return nil
	}
	if c.making[dir] && c.both == nil {
		c.both = fmt.Errorf("two files are made in %q at the same time", dir)
	}
	wait := c.waiting
	if wait == nil && c.ops[op] < c.last {
		c.making[dir] = true
		wait = make(chan struct{})
		c.waiting = wait
		c.mu.Unlock()
		<-wait
		c.mu.Lock()
		delete(c.making, dir)
	} else if wait != nil {
		close(wait)
		c.waiting = nil
	}
	defer c.mu.Unlock()
	return c.both
}

// The kernel makes one name of a directory at a time, and who waits for it there spins. So whoever builds makes files of
// several directories at a time, and of each one after the other.
func TestFilesOfADirectoryAreMadeOneAfterTheOther(t *testing.T) {
	const dirs = 20
	b := &tally{ops: map[string]int{}, making: map[string]bool{}, last: (dirs - 1) * 2 * runItems}
	build, err := newBuilder(t.TempDir(), 1, b.step)
	must(t, err)
	memory := newBuffer()
	for d := range dirs {
		name := fmt.Sprintf("%02d", d)
		it := dir(wire.TreeNew, name)
		must(t, build.item(&it, memory))
		for i := range 2 * runItems {
			it := file(wire.TreeNew, fmt.Sprintf("%s/%02d", name, i), "x")
			if err := build.item(&it, memory); err != nil {
				t.Fatal(err)
			}
		}
	}
	must(t, build.endRun())
	build.pending.Wait()
	must(t, b.both)
	must(t, build.err())
	build.close()
	if got := b.ops["create"]; got != dirs*2*runItems {
		t.Errorf("%d files were made", got)
	}
}

// A tree that is brought again to a fresh place costs what it did the first time, and each file costs the same however
// many there are.
func TestAFreshPlaceCostsTheSameEachTime(t *testing.T) {
	costs := func(files int) (first, again map[string]int) {
		w := newWorld(t)
		for i := range files {
			w.write(fmt.Sprintf("%02d/%03d", i/20, i), []byte(fmt.Sprint(i)))
		}
		copyOnce := func() map[string]int {
			c := &counts{ops: map[string]int{}}
			w.receive.Step, w.apply.Step = c.step, c.step
			w.replicate()
			return c.ops
		}
		first = copyOnce()
		_ = w.sp.Close()
		_ = w.dir.Close()
		must(t, os.RemoveAll(w.target))
		must(t, os.Mkdir(w.target, 0o755))
		w.openSpool(t.TempDir())
		return first, copyOnce()
	}
	few, fewAgain := costs(40)
	many, manyAgain := costs(400)
	for _, op := range []string{"create", "write", "chmod", "set times"} {
		switch {
		case few[op] != fewAgain[op], many[op] != manyAgain[op]:
			t.Errorf("%s: %d and %d times at first, %d and %d times when it came again", op, few[op], many[op], fewAgain[op], manyAgain[op])
		case many[op] > 10*few[op]:
			t.Errorf("%s: %d times for 40 files, %d for 400", op, few[op], many[op])
		}
	}
	if few["create"] != 40 || few["write"] != 40 {
		t.Errorf("40 files cost %v", few)
	}
}

// counts counts changes of a replica by kind.
type counts struct {
	mu  sync.Mutex
	ops map[string]int
}

func (c *counts) step(op, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops[op]++
	return nil
}
