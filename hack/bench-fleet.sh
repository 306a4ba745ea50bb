#!/usr/bin/env bash
# Measures what a fleet of replications costs one manager: see bench/README.md. Arguments, and BENCH_FLAGS, are passed on.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
if [ -z "${KUBEBUILDER_ASSETS:-}" ]; then
  built=$(bin/clusters build)
  mkdir -p bin/kube-assets
  for server in kube-apiserver etcd kubectl; do ln -sf "$built/kube" bin/kube-assets/$server; done
  export KUBEBUILDER_ASSETS=$PWD/bin/kube-assets
fi
go build -o bin/bench-fleet ./bench/fleet
# shellcheck disable=SC2086
exec bin/bench-fleet ${BENCH_FLAGS:-} "$@"
