#!/usr/bin/env bash
# Says what is missing before anything long begins: hack/need.sh go | root | postgres
set -eu
for what in "$@"; do
  case $what in
  go)
    want=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")
    command -v go >/dev/null || { echo "Go $want or newer is missing: install it from go.dev and put it on the PATH" >&2; exit 1; }
    ;;
  root)
    [ "$(uname -s)" = Linux ] || { echo "the two clusters need Linux; this is $(uname -s): pass two kubeconfig contexts of your own instead (README.md)" >&2; exit 1; }
    [ "$(id -u)" = 0 ] || { echo "the two clusters need root (network namespaces, mounts, loop devices): run it as root, or pass two kubeconfig contexts of your own (README.md)" >&2; exit 1; }
    ;;
  postgres)
    for program in psql pgbench pg_amcheck; do
      command -v $program >/dev/null || [ -x /usr/lib/postgresql/15/bin/$program ] || missing=1
    done
    [ -n "${missing:-}" ] || continue
    echo "installing psql, pgbench and pg_amcheck (Debian's postgresql-15)"
    # Debian's package would make and start a server of its own; only the programs are wanted.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf
    hack/apt.sh postgresql-15 postgresql-client-15
    ;;
  esac
done
