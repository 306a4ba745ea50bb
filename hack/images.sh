#!/usr/bin/env bash
# Makes the images of Lifeboat and of the demo's database as archives in bin/images, without a registry.
set -eu
cd "$(dirname "$0")/.."
hack/need.sh root
mkdir -p bin/images
bin/clusters build-image --name lifeboat:dev --base debian-tools --add bin/lifeboat=/usr/local/bin/lifeboat \
  --entrypoint /usr/local/bin/lifeboat -o bin/images/lifeboat.tar
bin/clusters build-image --name lifeboat-demo/postgres:15 --base postgres -o bin/images/postgres.tar
