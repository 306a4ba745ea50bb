package env

import (
	"context"
	"fmt"
	"strings"

	"lifeboat.dev/lifeboat/test/clusters/image"
)

// Base gives the path of a base for image.Spec: the name of one of image.Bases, or "packages:" and a list of Debian
// packages. It is made once and kept in the Config's cache.
func (c Config) Base(ctx context.Context, base string) (string, error) {
	c, err := c.complete()
	if err != nil {
		return "", err
	}
	d, ok := image.Bases[base]
	if packages, listed := strings.CutPrefix(base, "packages:"); listed {
		d, ok = image.Debian{Packages: strings.Split(packages, ",")}, packages != ""
	}
	if !ok {
		return "", fmt.Errorf("base %q: want the name of a base, or packages:a,b", base)
	}
	return image.Base(ctx, c.Cache, d, InstallPackages, c.Progress)
}
