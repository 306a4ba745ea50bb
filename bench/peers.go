package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A peer makes a copy its own way and ends with a sync of what it wrote, as durable as ours.

// script is a command that runs a text with arguments $1, $2, ...; it stops at the first command that fails, also
// inside a pipe.
func script(text string, args ...string) []string {
	return append([]string{"bash", "-euo", "pipefail", "-c", text, "bash"}, args...)
}

// shell measures a script.
func shell(ctx context.Context, text string, args ...string) (usage, error) {
	return measured(ctx, "", nil, script(text, args...)...)
}

// plain is a peer that is one script over source and copy, both forgotten by the cache before when cold.
func plain(name, text, source, copy string, cold, anew bool, check func() error) *contender {
	return &contender{
		name: name,
		prepare: func(context.Context, int) error {
			if anew {
				if err := os.RemoveAll(copy); err != nil {
					return fmt.Errorf("remove the last copy: %w", err)
				}
			}
			if cold {
				return cool(source, copy)
			}
			return nil
		},
		work: func(ctx context.Context, _ int) (usage, error) { return shell(ctx, text, source, copy) },
		check: func(context.Context) error {
			if check == nil {
				return nil
			}
			return check()
		},
	}
}

const (
	cpScript     = `cp --reflink=never --sparse=auto "$1" "$2"; sync "$2"`
	cpTreeScript = `cp -a "$1" "$2"; sync -f "$2"`
	ddScript     = `dd if="$1" of="$2" bs=1M iflag=direct oflag=direct conv=fsync status=none`
	readScript   = `dd if="$1" of=/dev/null bs=1M iflag=direct status=none`
)

// rsync is a daemon of ours, on loopback, that stores into a folder.
type rsync struct {
	daemon *process
	port   string
}

// rsyncDaemon starts one that ends with the scene.
func (b *bench) rsyncDaemon(ctx context.Context, into string) (*rsync, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(into, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for rsync: %w", err)
	}
	config := b.path("rsyncd.conf")
	text := fmt.Sprintf("use chroot = no\nuid = root\ngid = root\naddress = 127.0.0.1\nport = %s\n[copy]\npath = %s\nread only = no\n", port, into)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("configure rsync: %w", err)
	}
	daemon, err := start(context.WithoutCancel(ctx), "rsync", "--daemon", "--no-detach", "--config="+config)
	if err != nil {
		return nil, err
	}
	b.leave(daemon.stop)
	return &rsync{daemon, port}, listening(ctx, "127.0.0.1:"+port, daemon)
}

// run copies with the given options and syncs the copy. A daemon does not sync what it stores, so this is done here,
// in the time that counts.
func (r *rsync) run(ctx context.Context, source, copy, flags, sync string) (usage, error) {
	text := fmt.Sprintf(`rsync %s "$1" "rsync://127.0.0.1:%s/copy/$2"; sync %s "$3"`, flags, r.port, sync)
	return measured(ctx, loopback, []*process{r.daemon}, script(text, source, filepath.Base(copy), copy)...)
}

// file is a contender that copies a volume. Options begin with --ignore-times: what a volume's time says of its
// content is nothing.
func (r *rsync) file(name, flags, source, copy string, cold, anew bool) *contender {
	c := plain(name, "", source, copy, cold, anew, func() error { return sameFile(source, copy) })
	c.work = func(ctx context.Context, _ int) (usage, error) {
		return r.run(ctx, source, copy, "--ignore-times "+flags, "")
	}
	return c
}

// tree is a contender that brings a directory in step.
func (r *rsync) tree(name, source, copy string, anew bool, check func() error) *contender {
	c := plain(name, "", source, copy, false, anew, check)
	c.work = func(ctx context.Context, _ int) (usage, error) {
		return r.run(ctx, source+"/", copy, "-a --delete", "-f")
	}
	return c
}

// rclone copies on one machine.
const (
	rcloneFile = `RCLONE_CONFIG=/dev/null rclone copyto --ignore-times "$1" "$2"; sync "$2"`
	rcloneTree = `RCLONE_CONFIG=/dev/null rclone sync "$1" "$2"; sync -f "$2"`
)

// restic backs up into a new repository and restores from it: what must happen before the copy can be used.
func (b *bench) restic(source, copy string, cold bool, check func() error) *contender {
	repository := b.path("restic")
	c := plain("restic", "", source, copy, cold, true, check)
	prepare := c.prepare
	c.prepare = func(ctx context.Context, pair int) error {
		return errors.Join(prepare(ctx, pair), os.RemoveAll(repository), command(ctx, script(resticHead+`restic init -q`, repository)...))
	}
	c.work = func(ctx context.Context, _ int) (usage, error) {
		return shell(ctx, resticHead+`cd "$(dirname "$2")"; restic backup -q "$(basename "$2")"; sync -f "$1"; restic restore -q latest --target "$3"; sync -f "$3"`,
			repository, source, filepath.Dir(copy))
	}
	return c
}

const resticHead = `export RESTIC_REPOSITORY="$1" RESTIC_PASSWORD=bench RESTIC_CACHE_DIR="$1.cache"; `

// treesEqual proves that two directories hold the same names and contents.
func treesEqual(ctx context.Context, a, b string) error {
	return command(ctx, "diff", "-r", "--no-dereference", a, b)
}
