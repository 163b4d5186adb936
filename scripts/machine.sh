#!/bin/sh
# What the tests and benches need besides Python, by Debian's packages. Does nothing where it is all there.
set -eu
missing=""
for need in curl:curl openssl:openssl chromium:chromium wrk:wrk; do
  command -v "${need%%:*}" >/dev/null 2>&1 || missing="$missing ${need##*:}"
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
  echo "please install:$missing" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 -- one word for each package
apt-get install -y -qq --no-install-recommends $missing >/dev/null
