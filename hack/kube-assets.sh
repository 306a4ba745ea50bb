# Sourced: KUBEBUILDER_ASSETS, the servers that tests on an API server start. The first build takes minutes.
if [ -z "${KUBEBUILDER_ASSETS:-}" ]; then
  built=$(bin/clusters build)
  # One program is every server; it goes by the name it is called by.
  mkdir -p bin/kube-assets
  for server in kube-apiserver etcd kubectl; do ln -sf "$built/kube" bin/kube-assets/$server; done
  export KUBEBUILDER_ASSETS=$PWD/bin/kube-assets
fi
