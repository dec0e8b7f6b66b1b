#!/usr/bin/env bash
# Runs the garden: installs the servers that are missing when it may, and compares what the proxy forwards with what they see.
# MESSAGES is how many (default 20000), SEED makes a run again, ORIGINS picks some by name.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=(nginx-light:nginx apache2-bin:apache2 lighttpd:lighttpd haproxy:haproxy caddy:caddy nodejs:node python3-minimal:python3 gunicorn:gunicorn
  uvicorn:uvicorn php-cli:php puma:puma openjdk-17-jdk-headless:javac libtomcat10-java:/usr/share/java/tomcat10-coyote.jar libjetty9-java:/usr/share/java/jetty9-server.jar)
missing=()
for p in "${packages[@]}"; do
  command -v "${p#*:}" >/dev/null 2>&1 || [ -e "${p#*:}" ] || missing+=("${p%%:*}")
done
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "garden: installing ${missing[*]}"
  apt-get update -qq
  # One by one where all at once does not go: a server that a release does not have is one origin less. None of them may start
  # as a service (policy-rc.d), as the garden runs its own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
    trap 'rm -f '$policy EXIT
  fi
  install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1; }
  install "${missing[@]}" || for p in "${missing[@]}"; do install "$p" || echo "garden: $p can't be installed"; done
fi

CGO_ENABLED=0 go build -o bin/ ./cmd/malha-proxy
garden=$(mktemp)
go build -o "$garden" ./test/garden
status=0
"$garden" -proxy bin/malha-proxy -messages "${MESSAGES:-20000}" ${SEED:+-seed "$SEED"} ${ORIGINS:+-only "$ORIGINS"} || status=$?
rm -f "$garden"
exit $status
