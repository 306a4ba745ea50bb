#!/usr/bin/env bash
# Measures the engine against this machine's own tools: see bench/main.go. BENCH_FLAGS are passed on.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
[ "$(id -u)" = 0 ] || { echo "the bench empties the page cache between runs and needs root for it" >&2; exit 1; }
go run ./bench ${BENCH_FLAGS:-}
