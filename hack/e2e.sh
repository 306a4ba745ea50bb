#!/usr/bin/env bash
# Stories on two clusters of their own (slot 3), beside any that run already: hack/e2e.sh [short|soak|NAME OF A TEST]
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh
hack/need.sh root postgres
export LIFEBOAT_CLUSTERS_SLOT=${LIFEBOAT_CLUSTERS_SLOT:-3}
trap 'bin/clusters down' EXIT
hack/clusters-up.sh
export KUBECONFIG=$(bin/clusters kubeconfig --path)
case "${1:-}" in
short)
  go test -count=1 -tags e2e -timeout 15m -v -run 'TestShort' ./test/e2e/
  ;;
soak)
  LIFEBOAT_SOAK=${LIFEBOAT_SOAK:-2h} go test -count=1 -tags e2e -timeout 24h -v -run 'TestSoak' ./test/e2e/
  ;;
Test*)
  go test -count=1 -tags e2e -timeout 60m -v -run "$1" ./test/e2e/
  ;;
'')
  # The clusters themselves: they come up, are cut, killed and removed without a trace.
  (cd test/clusters && go test -count=1 -timeout 20m ./...)
  go test -count=1 -tags e2e -timeout 90m -v ./test/e2e/
  ;;
*)
  echo "unknown story $1: short, soak, or the name of a test as TestCut" >&2
  exit 2
  ;;
esac
