#!/usr/bin/env bash
# Installs the Debian packages of programs that are missing: test/install.sh nginx:nginx-light haproxy:haproxy
# A path stands for a file. With -n it only names the packages that are missing; with -s a package that a release does not have is
# left out. Who is not root, or not on Debian, is told what to install.
set -euo pipefail
export PATH="$PATH:/usr/sbin"

only= some=
while getopts ns option; do
  case $option in
    n) only=yes ;;
    s) some=yes ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))

missing=()
for p in "$@"; do
  command -v "${p%%:*}" >/dev/null 2>&1 || [ -e "${p%%:*}" ] || missing+=("${p#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ -n "$only" ]; then
  echo "${missing[*]}"
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "install these packages (their names in Debian) and run it again: ${missing[*]}" >&2
  exit 1
fi

# None of them may start as a service: tests run their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
  trap 'rm -f '$policy EXIT
fi
install() { # quiet, unless it fails
  local out
  out=$(DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 -y -qq --no-install-recommends install "$@" 2>&1) || {
    echo "$out" >&2
    return 1
  }
}
echo "installing ${missing[*]}"
apt-get -o Acquire::Retries=3 update -qq
[ -n "$some" ] || { install "${missing[@]}" && exit 0; exit 1; }
install "${missing[@]}" 2>/dev/null || for p in "${missing[@]}"; do
  install "$p" 2>/dev/null || echo "$p can't be installed"
done
