#!/usr/bin/env bash
# Runs the garden: installs the servers that are missing when it may, and compares what the proxy forwards with what they see.
# MESSAGES is how many (default 20000), SEED makes a run again, ORIGINS picks some by name. "run.sh missing" only names the packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin"

packages=(nginx:nginx-light apache2:apache2-bin lighttpd:lighttpd haproxy:haproxy caddy:caddy node:nodejs python3:python3-minimal gunicorn:gunicorn
  uvicorn:uvicorn php:php-cli puma:puma javac:default-jdk-headless /usr/share/java/tomcat10-coyote.jar:libtomcat10-java /usr/share/java/jetty9-server.jar:libjetty9-java)
[ "${1:-}" != missing ] || exec test/install.sh -n "${packages[@]}"
# A server that a release does not have is one origin less.
test/install.sh -s "${packages[@]}" || echo "garden: without them"

CGO_ENABLED=0 go build -o bin/ ./cmd/malha-proxy
go build -o bin/malha-garden ./test/garden
exec bin/malha-garden -proxy bin/malha-proxy -messages "${MESSAGES:-20000}" ${SEED:+-seed "$SEED"} ${ORIGINS:+-only "$ORIGINS"}
