#!/usr/bin/env bash
# The main job, watched: see `bin/lifeboat demo --help`. KEEP=1 leaves clusters and database for playing.
set -eu
cd "$(dirname "$0")/.."
hack/need.sh postgres
hack/clusters-up.sh
if [ -z "${CONTEXT:-}" ]; then
  export KUBECONFIG=$(bin/clusters kubeconfig --path)
fi
result=0
bin/lifeboat demo --context "${CONTEXT:-east}" --peer-context "${PEER_CONTEXT:-west}" ${KEEP:+--keep} ${DEMO_FLAGS:-} || result=$?
if [ -n "${CONTEXT:-}" ]; then exit $result; fi
if [ -n "${KEEP:-}" ]; then
  echo "the clusters are yours: export KUBECONFIG=$KUBECONFIG; bin/lifeboat status --context east,west; make clusters-down ends them"
else
  bin/clusters down
fi
exit $result
