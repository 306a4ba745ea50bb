#!/usr/bin/env bash
# Everything that can be proven in minutes: generated files fresh, lint, every unit and crash test, the
# controllers on a real API server, the storage driver on a real pool, a short story on two real clusters.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
step() { printf '\n== %s (%(%H:%M:%S)T)\n' "$*" -1; }

if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ]; then
  step "what the tests need"
  hack/apt.sh protobuf-compiler e2fsprogs xfsprogs btrfs-progs iproute2
fi
step "generated files"
make --no-print-directory bin/controller-gen bin/lint
hack/generate.sh --check
step "lint"
hack/lint.sh

if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ]; then
  step "the clusters' servers (the first build takes minutes)"
  . hack/kube-assets.sh
else
  echo "SKIPPED in plain sight: tests on an API server, on a storage pool and on two clusters need Linux and root"
fi
step "tests"
go test -timeout 25m ./...
(cd test/clusters && go test -short ./...)
if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ]; then
  step "a short story on two clusters"
  hack/images.sh
  hack/need.sh postgres
  hack/e2e.sh short
fi
