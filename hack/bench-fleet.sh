#!/usr/bin/env bash
# Measures what a fleet of replications costs one manager: see bench/README.md. Arguments, and BENCH_FLAGS, are passed on.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
. hack/kube-assets.sh
go build -o bin/bench-fleet ./bench/fleet
# shellcheck disable=SC2086
exec bin/bench-fleet ${BENCH_FLAGS:-} "$@"
