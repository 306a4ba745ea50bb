#!/usr/bin/env bash
# Runs the tests under the race detector, a package at a time, at the lowest priority, to the end: every package that
# failed is named last. hack/race.sh [PACKAGE...] takes some of them. Nothing is skipped for being slow.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
if [ "$(uname -s)" = Linux ] && { [ "$(id -u)" = 0 ] || ! command -v gcc >/dev/null; }; then
  hack/apt.sh gcc libc6-dev e2fsprogs xfsprogs btrfs-progs iproute2
fi
if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ]; then
  . hack/kube-assets.sh
fi
# The detector is C. Its objects share no cache with the build's, so the first run compiles all again; not the servers above.
export CGO_ENABLED=1

if [ $# -eq 0 ]; then
  # The engine and the controllers first: most of what runs side by side is there.
  first=(./internal/controller/... ./internal/link/... ./internal/mover/... ./internal/hook/... ./internal/watched ./internal/snapshot ./internal/cycle)
  set -- "${first[@]}" ./...
fi
packages=$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "$@")
failed=()
for package in $(awk '!seen[$0]++' <<<"$packages"); do
  nice -n 19 go test -race -p 1 -count=1 -timeout 60m "$package" || failed+=("$package")
done
[ ${#failed[@]} -eq 0 ] || { printf 'failed under the race detector:\n' >&2; printf '  %s\n' "${failed[@]}" >&2; exit 1; }
