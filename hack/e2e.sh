#!/usr/bin/env bash
# Stories on two clusters of their own (slot 3), beside any that run already: hack/e2e.sh [short]
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
hack/need.sh root postgres
export LIFEBOAT_CLUSTERS_SLOT=${LIFEBOAT_CLUSTERS_SLOT:-3}
trap 'bin/clusters down' EXIT
hack/clusters-up.sh
export KUBECONFIG=$(bin/clusters kubeconfig --path)
if [ "${1:-}" = short ]; then
  go test -count=1 -tags e2e -timeout 15m -v -run 'TestShort' ./test/e2e/
else
  # The clusters themselves: they come up, are cut, killed and removed without a trace.
  (cd test/clusters && go test -count=1 -timeout 20m ./...)
  go test -count=1 -tags e2e -timeout 90m -v ./test/e2e/
fi
