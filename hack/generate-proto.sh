#!/bin/sh
# Generates the Go code of every .proto file. Needs protoc (Debian: apt-get install protobuf-compiler); the two
# Go plugins are built from the Go modules at the versions below. The generated files are committed.
set -eu
cd "$(dirname "$0")/.."
. hack/env.sh

GRPC_PLUGIN=google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.0

command -v protoc >/dev/null || { echo "protoc is missing: apt-get install protobuf-compiler" >&2; exit 1; }
go build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
GOBIN="$PWD/bin" go install "$GRPC_PLUGIN"

PATH="$PWD/bin:$PATH" protoc -I internal/link/control/linkpb \
	--go_out=. --go_opt=module=lifeboat.dev/lifeboat \
	--go-grpc_out=. --go-grpc_opt=module=lifeboat.dev/lifeboat \
	link.proto
