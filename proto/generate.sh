#!/usr/bin/env bash
# Regenerates proto/dnc/v1/*_pb2* with the oldest supported grpcio-tools: generated code sets the floors of its runtimes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
includes=$("$python" -c 'import pathlib, google.rpc, grpc_tools
print(pathlib.Path(google.rpc.__path__[0]).parents[1], pathlib.Path(grpc_tools.__file__).parent / "_proto")')
read -r googleapis wellknown <<<"$includes"
"$python" -m grpc_tools.protoc -Idnc_serve/proto=proto -I"$googleapis" -I"$wellknown" \
    --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" dnc_serve/proto/dnc/v1/dnc.proto
cp "$out"/dnc_serve/proto/dnc/v1/dnc_pb2* "${1:-proto/dnc/v1}/"
