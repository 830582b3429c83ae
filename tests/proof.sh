#!/usr/bin/env bash
# The given run of the tests, ten times in a row, every second time beside two processes that keep two cores busy.
# Ends with the first failure.
set -euo pipefail
busy=()
calm() {
    [ ${#busy[@]} = 0 ] || kill "${busy[@]}"
    busy=()
}
trap calm EXIT
for run in {1..10}; do
    if ((run % 2 == 0)); then
        for _ in 1 2; do
            while :; do :; done &
            busy+=($!)
        done
    fi
    printf '\n== run %s of 10%s\n' "$run" "${busy:+, on a busy machine}"
    "$@"
    calm
done
