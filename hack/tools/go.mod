module lifeboat.dev/lifeboat/hack/tools

go 1.26.0

require sigs.k8s.io/controller-tools v0.22.0 // indirect
