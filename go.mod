module lifeboat.dev/lifeboat

go 1.26.0
