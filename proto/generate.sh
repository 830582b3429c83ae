#!/usr/bin/env bash
# Regenerates the code of the contracts, here or below the folder that is named, with the oldest supported grpcio-tools:
# generated code sets the floors of its runtimes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$python" -m grpc_tools.protoc -Idnc_serve/proto=proto -Iproto \
    --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    dnc_serve/proto/{dnc/v1/dnc,inference/inference}.proto
for folder in dnc/v1 inference; do
    mkdir -p "${1:-proto}/$folder"
    cp "$out/dnc_serve/proto/$folder"/*_pb2* "${1:-proto}/$folder/"
done
