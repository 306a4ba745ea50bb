#!/usr/bin/env bash
# Generates what is generated: deep copies, kinds and roles from markers, the link's Go code from its proto
# file. `hack/generate.sh --check` fails when what is committed is not what is generated.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
bin/controller-gen object paths=./api/...
bin/controller-gen crd:maxDescLen=10000 paths=./api/... output:crd:dir=deploy/crds
bin/controller-gen rbac:roleName=lifeboat-manager paths=./internal/... paths=./cmd/... output:rbac:dir=deploy/rbac
if [ -x hack/generate-proto.sh ]; then hack/generate-proto.sh; fi
if [ "${1:-}" = --check ]; then
  changed=$(git status --porcelain -- api deploy/crds deploy/rbac internal/link)
  [ -z "$changed" ] || { echo "generated files are not fresh: run make generate and commit" >&2; echo "$changed" >&2; git diff -- api deploy internal/link | head -50 >&2; exit 1; }
fi
