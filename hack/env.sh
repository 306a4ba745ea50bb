# Sourced by the Makefile's recipes and by hand: one set of build flags everywhere, because
# -trimpath and cgo are part of Go's cache key and a second set would compile Kubernetes twice.
export CGO_ENABLED=0
export GOFLAGS="-buildvcs=false -trimpath"
