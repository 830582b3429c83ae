#!/usr/bin/env bash
# Lints the contracts. buf reads an image made by protoc, which has google's well-known types.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
image=$(mktemp --suffix=.binpb)
trap 'rm -f "$image"' EXIT
"$python" -m grpc_tools.protoc -Iproto --include_imports --include_source_info \
    --descriptor_set_out="$image" dnc/v1/dnc.proto inference/inference.proto
buf lint "$image" --config buf.yaml
