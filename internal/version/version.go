// Package version says which software this is. It holds one value, set by the linker.
package version

// Software is the version of this build, as shown to users and told to peers.
var Software = "v0.1.0-dev"
