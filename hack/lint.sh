#!/usr/bin/env bash
# Finds bugs in every module, and files that gofmt would change.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "gofmt would change:" >&2; echo "$unformatted" >&2; exit 1; }
go vet -vettool="$PWD/bin/lint" -tags e2e ./...
(cd test/clusters && go vet -vettool="$OLDPWD/bin/lint" ./...)
