package localcsi

import "golang.org/x/sys/unix"

const serveVariable = "LIFEBOAT_LOCALCSI_TEST_SERVE"

func serveHere(dir string) int { return 0 }

func unmountLazily(point string) error { return unix.Unmount(point, unix.MNT_DETACH) }
