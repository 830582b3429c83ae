#!/usr/bin/env bash
# Lints the contract. buf reads an image made by protoc, because google's imports come from a Python package.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
image=$(mktemp --suffix=.binpb)
trap 'rm -f "$image"' EXIT
includes=$("$python" -c 'import pathlib, google.rpc, grpc_tools
print(pathlib.Path(google.rpc.__path__[0]).parents[1], pathlib.Path(grpc_tools.__file__).parent / "_proto")')
read -r googleapis wellknown <<<"$includes"
"$python" -m grpc_tools.protoc -Iproto -I"$googleapis" -I"$wellknown" --include_imports --include_source_info \
    --descriptor_set_out="$image" dnc/v1/dnc.proto
buf lint "$image" --config buf.yaml
