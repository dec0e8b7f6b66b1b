#!/usr/bin/env bash
# Builds the proxy and compares its CPU time per request with nginx's and HAProxy's in one run.
# ROUNDS, SECONDS_PER_ROUND and BENCH_OUTPUT change the defaults (7, 5, docs/benchmarks.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=()
for tool in nginx haproxy wrk taskset; do
  PATH="$PATH:/usr/sbin" command -v "$tool" >/dev/null 2>&1 || missing+=("${tool/#nginx/nginx-light}")
done
if [ ${#missing[@]} -gt 0 ]; then
  packages=("${missing[@]/#taskset/util-linux}")
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  else
    echo "the benchmark needs ${packages[*]}: install them (Debian package names) and run it again" >&2
    exit 1
  fi
fi
mkdir -p bin
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/malha-proxy ./cmd/malha-proxy
go build -o bin/malha-bench ./test/bench
exec env PATH="$PATH:/usr/sbin" bin/malha-bench -proxy bin/malha-proxy -rounds "${ROUNDS:-7}" -seconds "${SECONDS_PER_ROUND:-5}" -output "${BENCH_OUTPUT:-docs/benchmarks.md}"
