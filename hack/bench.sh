#!/usr/bin/env bash
# Measures the engine against this machine's own tools: see bench/README.md. Arguments, and BENCH_FLAGS, are passed on.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
[ "$(id -u)" = 0 ] || { echo "the bench mounts file systems and shapes a link: run it as root" >&2; exit 1; }
go build -o bin/bench ./bench
# shellcheck disable=SC2086
exec bin/bench ${BENCH_FLAGS:-} "$@"
