#!/usr/bin/env bash
# Generate exo/networking/grpc/node_service_pb2.py from its .proto (needs grpcio-tools, which the `test` extra brings).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. exo/networking/grpc/node_service.proto
