#!/usr/bin/env bash
# A software bill of materials (CycloneDX 1.6, JSON) on stdout: each Python distribution with its version and licence.
#
#   deploy/sbom.sh               of this checkout's virtual environment (.venv, or $VENV)
#   deploy/sbom.sh IMAGE         of what is installed in an image, asked for with docker, or $CONTAINER (podman, …)
#
# Nothing of the image is run: what its distributions say of themselves is read from its files. Debian's packages below
# them are the base image's: its publisher has their list.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
# Several words are meant to be split: CONTAINER="sudo podman".
read -ra container <<<"${CONTAINER:-docker}"
# Without the check of the result against its schema, which takes twenty times as long as all else.
options=(--pyproject pyproject.toml --output-reproducible --spec-version 1.6 --no-validate)

case $# in
    0) "$venv/bin/cyclonedx-py" environment "${options[@]}" "$venv/bin/python" ;;
    1)
        scratch=$(mktemp -d)
        made=
        # shellcheck disable=SC2317  # called by the trap
        clean() {
            rm -rf "$scratch"
            if [ -n "$made" ]; then "${container[@]}" rm "$made" >/dev/null; fi
        }
        trap clean EXIT
        made=$("${container[@]}" create "$1")
        "${container[@]}" export "$made" |
            tar -x -C "$scratch" --no-same-owner --wildcards 'opt/venv/lib/python3*/site-packages/*.dist-info/*'
        # The tool asks a Python for its path: one that sees nothing but these files, and its own standard library.
        PYTHONPATH=$(echo "$scratch"/opt/venv/lib/python3*/site-packages) "$venv/bin/python" -I -m cyclonedx_py \
            environment "${options[@]}" -S "$(readlink -f "$venv/bin/python")"
        ;;
    *) echo "usage: deploy/sbom.sh [IMAGE]" >&2 && exit 2 ;;
esac
