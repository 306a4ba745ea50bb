// Package deploy holds the manifests that `lifeboat install` applies. It knows YAML files; it never talks
// to a cluster. crds and rbac are generated from markers in the code, manifests and localcsi are written
// by hand.
package deploy

import "embed"

// Files are the manifests, by folder: crds, rbac, manifests, localcsi.
//
//go:embed crds/*.yaml rbac/*.yaml manifests/*.yaml localcsi/*.yaml
var Files embed.FS
