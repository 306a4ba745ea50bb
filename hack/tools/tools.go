//go:build tools

// Package tools pins the generators at the versions of this module.
package tools

import _ "sigs.k8s.io/controller-tools/cmd/controller-gen"
