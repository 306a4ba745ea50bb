package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const benchFiles = 100_000

// BenchmarkSmallFiles copies 100,000 files of about 4 KB over loopback, ended by a sync, then 1 % changed, then nothing.
func BenchmarkSmallFiles(b *testing.B) {
	for range b.N {
		w := newWorld(b)
		size := int64(0)
		for i := range benchFiles {
			if i%100 == 0 {
				must(b, os.MkdirAll(w.path(fmt.Sprintf("%02d/%03d", i/10_000, i/100)), 0o755))
			}
			content := noise(uint64(i), 2048+i%4096)
			size += int64(len(content))
			must(b, os.WriteFile(w.path(smallName(i)), content, 0o644))
		}
		settle(b, w)
		fresh := w.timed(b)
		for i := 0; i < benchFiles; i += 100 {
			must(b, os.WriteFile(w.path(smallName(i)), noise(uint64(i)+1<<40, 4000), 0o644))
		}
		settle(b, w)
		changed := w.timed(b)
		nothing := w.timed(b)
		b.ReportMetric(fresh.Seconds(), "fresh-s")
		b.ReportMetric(changed.Seconds(), "changed1pct-s")
		b.ReportMetric(nothing.Seconds(), "nothing-s")
		b.ReportMetric(float64(size)/1e6, "MB")
		if kept := os.Getenv("LIFEBOAT_KEEP_TREE"); kept != "" {
			must(b, os.Rename(w.source, kept)) // for a comparison with another tool
		}
	}
}

func smallName(i int) string {
	return filepath.Join(fmt.Sprintf("%02d/%03d", i/10_000, i/100), fmt.Sprintf("file-%06d", i))
}

// settle lets nothing of the preparation be paid for by what is measured.
func settle(b *testing.B, w *world) {
	fd, err := openRoot(w.source)
	must(b, err)
	must(b, syncAll(fd))
	must(b, unix.Close(fd))
}

func (w *world) timed(b *testing.B) time.Duration {
	began, cpu := time.Now(), cpuTime(b)
	_, _, sendErr, receiveErr := w.transfer()
	if sendErr != nil || receiveErr != nil {
		b.Fatal(sendErr, receiveErr)
	}
	sent := time.Since(began)
	must(b, w.commit())
	whole := time.Since(began)
	b.Logf("sent after %s, applied after %s, %s of CPU on both sides",
		sent.Round(time.Millisecond), whole.Round(time.Millisecond), (cpuTime(b) - cpu).Round(time.Millisecond))
	return whole
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
