#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME (default 20s), two at once for each processor, one worker each.
# Making inputs small has a second each: without that limit it took two thirds of the time of some targets.
# A finding fails the run when all are through, and leaves its input in the package's testdata.
set -euo pipefail
cd "$(dirname "$0")/.."

timeIsUp() { # on a busy machine go test calls it a failure when the time is over in the middle of an input; a finding names its file
  grep -q '^ *context deadline exceeded' "$1" && ! grep -qE 'Failing input|hung or terminated|panic' "$1"
}

fuzz() { # fuzz DIR TARGET
  local log
  log=$(mktemp)
  if go test "./$1" -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-20s}" -parallel 1 -fuzzminimizetime 1s >"$log" 2>&1 </dev/null || timeIsUp "$log"; then
    printf 'ok    %-32s %s: %s\n' "$2" "$1" "$(grep -oE 'execs: [0-9]+' "$log" | tail -n 1)"
    rm -f "$log"
  else
    printf 'FAIL  %-32s %s\n' "$2" "$1"
    cat "$log"
    rm -f "$log"
    return 1
  fi
}
export -f fuzz timeIsUp

grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' internal cmd | while read -r file; do
  grep -ohE '^func Fuzz[A-Za-z0-9_]+' "$file" | sed "s|^func |$(dirname "$file") |"
done | sort -u | xargs -P "$((2 * $(nproc)))" -L 1 bash -c 'fuzz "$@"' fuzz
