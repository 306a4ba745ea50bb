package main

import (
	"context"
	"errors"

	"lifeboat.dev/lifeboat/test/clusters/env"
)

func buildImage(ctx context.Context, config env.Config, args []string) error {
	return errors.New("not yet")
}
