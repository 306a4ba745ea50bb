#!/usr/bin/env bash
# Two clusters, Lifeboat installed in both and paired. Doing it twice is the same as once.
# With CONTEXT and PEER_CONTEXT set, two clusters of the user's own are used as they are: Lifeboat must be
# installed and paired there (README.md).
set -eu
cd "$(dirname "$0")/.."
[ -z "${CONTEXT:-}" ] || exit 0
bin/clusters up
export KUBECONFIG=$(bin/clusters kubeconfig --path)
bin/clusters load-image bin/images/lifeboat.tar bin/images/postgres.tar
pids=()
for cluster in east west; do
  address=$(bin/clusters kubectl $cluster get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
  bin/lifeboat install --context $cluster --cluster-name $cluster --gateway-address "$address:9002" \
    --gateway-expose HostPort --local-storage --image "$(cat bin/images/lifeboat.name)" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
bin/lifeboat pair --context east --peer-context west --namespaces '*'
echo "clusters east and west are paired; export KUBECONFIG=$KUBECONFIG"
