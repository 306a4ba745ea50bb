#!/usr/bin/env bash
# Makes the images of Lifeboat and of the demo's database as archives in bin/images, without a registry.
set -eu
cd "$(dirname "$0")/.."
# Clusters of the user's own have their images already.
[ -z "${CONTEXT:-}" ] || exit 0
hack/need.sh root
mkdir -p bin/images
# The tag is the binary's digest, so that a cluster that runs another build notices.
name=lifeboat:$(sha256sum bin/lifeboat | cut -c1-12)
bin/clusters build-image --name "$name" --base debian-tools --add bin/lifeboat=/usr/local/bin/lifeboat \
  --entrypoint /usr/local/bin/lifeboat -o bin/images/lifeboat.tar
echo "$name" > bin/images/lifeboat.name
bin/clusters build-image --name lifeboat-demo/postgres:15 --base debian-postgres --user postgres -o bin/images/postgres.tar
