#!/usr/bin/env bash
# Installs Debian packages that are not there yet: hack/apt.sh PACKAGE...
set -eu
missing=()
for p in "$@"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || { echo "Debian packages are missing: ${missing[*]}; install them, or run this as root" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get install -y --no-install-recommends "${missing[@]}" >/tmp/apt.$$ 2>&1 || {
  apt-get update >/dev/null && apt-get install -y --no-install-recommends "${missing[@]}" >/tmp/apt.$$ 2>&1
} || { cat /tmp/apt.$$ >&2; exit 1; }
rm -f /tmp/apt.$$
