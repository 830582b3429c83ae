#!/usr/bin/env bash
# A software bill of materials (CycloneDX 1.6, JSON) on stdout: each Python distribution with its version and licence.
#
#   deploy/sbom.sh               of this checkout's virtual environment (.venv, or $VENV)
#   deploy/sbom.sh IMAGE         of what is installed in an image, asked for with docker, or $CONTAINER (podman, …)
#
# Of an image it lists what pip installed (no licences: pip doesn't tell them). Debian's packages below it are the base
# image's: its publisher has their list.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
tool=$venv/bin/cyclonedx-py
# Without the check of the result against its schema, which takes twenty times as long as all else.
options=(--pyproject pyproject.toml --output-reproducible --spec-version 1.6 --no-validate)

case $# in
    0) "$tool" environment "${options[@]}" "$venv/bin/python" ;;
    1)
        # Several words are meant to be split: CONTAINER="sudo podman".
        read -ra container <<<"${CONTAINER:-docker}"
        "${container[@]}" run --rm --entrypoint python "$1" -m pip freeze --all --exclude dnc-serve |
            "$tool" requirements "${options[@]}" -
        ;;
    *) echo "usage: deploy/sbom.sh [IMAGE]" >&2 && exit 2 ;;
esac
