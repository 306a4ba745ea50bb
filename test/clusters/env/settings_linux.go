package env

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lifeboat.dev/lifeboat/test/clusters/machine"
)

// What the machine sees of the host, besides /usr, /etc and /dev.
const (
	inNode = "/node"             // the cluster's own folder
	inBin  = "/opt/lifeboat/bin" // the built binaries
	socket = "/run/containerd/containerd.sock"
)

// settings writes every file that the cluster's servers read and returns the machine's Spec. It is done anew at each
// start, so a changed setting takes effect with the next restart.
func (e *Env) settings(c Cluster, b *Build) (machine.Spec, error) {
	for _, dir := range []string{"root", "etc/cni", "etcd", "log", "var/lib/kubelet", "var/lib/containerd", "var/lib/cni",
		"var/lib/lifeboat-csi", "var/log/pods", "var/log/containers", "var/tmp"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return machine.Spec{}, err
		}
	}
	if err := os.Symlink("/run", c.path("var/run")); err != nil && !os.IsExist(err) {
		return machine.Spec{}, err
	}
	for _, user := range []string{"kubelet", "controller-manager", "scheduler", "proxy", "admin"} {
		text, err := kubeconfig([]Cluster{c}, user)
		if err != nil {
			return machine.Spec{}, err
		}
		if err := os.WriteFile(c.path("etc", user+".kubeconfig"), text, 0o600); err != nil {
			return machine.Spec{}, err
		}
	}
	files := map[string]string{
		"etc/containerd.toml":        containerdConfig,
		"etc/kubelet.yaml":           fmt.Sprintf(kubeletConfig, c.cgroup()),
		"etc/cni/10-bridge.conflist": fmt.Sprintf(cniConfig, c.Pods),
		"etc/resolv.conf":            "# This cluster has no DNS.\n",
	}
	for name, text := range files {
		if err := os.WriteFile(c.path(name), []byte(text), 0o644); err != nil {
			return machine.Spec{}, err
		}
	}
	return machine.Spec{
		Hostname: c.Name,
		Root:     c.path("root"),
		Binds: []machine.Bind{
			{From: "/usr", To: "/usr", ReadOnly: true},
			{From: "/etc", To: "/etc", ReadOnly: true},
			// Nothing inside asks the host's name servers: what is not on this machine is an error at once.
			{From: c.path("etc/resolv.conf"), To: "/etc/resolv.conf", File: true},
			{From: "/dev", To: "/dev", Tree: true},
			{From: "/sys/fs/cgroup", To: "/sys/fs/cgroup", Tree: true},
			{From: c.Dir, To: inNode},
			{From: c.path("var"), To: "/var"},
			{From: b.Dir, To: inBin, ReadOnly: true},
		},
		Masks: map[string]string{
			"/proc/sys/vm/overcommit_memory":      "1",
			"/proc/sys/vm/panic_on_oom":           "0",
			"/proc/sys/kernel/panic":              "10",
			"/proc/sys/kernel/panic_on_oops":      "1",
			"/proc/sys/kernel/keys/root_maxkeys":  "1000000",
			"/proc/sys/kernel/keys/root_maxbytes": "25000000",
		},
		Sysctls:    map[string]string{"net.ipv4.ip_forward": "1"},
		Setup:      e.inside(c),
		Components: components(c),
		Path:       inBin + ":/usr/sbin:/usr/bin:/sbin:/bin",
		Logs:       inNode + "/log",
	}, nil
}

func components(c Cluster) []machine.Component {
	const ready = "https://127.0.0.1:6443/readyz"
	etc := func(name string) string { return inNode + "/etc/" + name }
	pki := func(name string) string { return inNode + "/pki/" + name }
	credentials := func(name string) []string {
		path := etc(name + ".kubeconfig")
		return []string{"--kubeconfig=" + path, "--authentication-kubeconfig=" + path, "--authorization-kubeconfig=" + path}
	}
	kube := func(name string, flags ...string) []string { return append([]string{inBin + "/kube", name}, flags...) }
	return []machine.Component{
		{Name: "etcd", Command: kube("etcd", "--name="+c.Name, "--data-dir="+inNode+"/etcd",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster="+c.Name+"=http://127.0.0.1:2380",
			// What was written survives the death of the process, not the loss of power: enough for a test, and much faster.
			"--unsafe-no-fsync", "--log-level=warn")},
		{Name: "containerd", Command: []string{"containerd", "--config=" + etc("containerd.toml")}},
		{Name: "kube-apiserver", Command: kube("kube-apiserver",
			"--advertise-address="+c.Node.String(), "--secure-port=6443", "--etcd-servers=http://127.0.0.1:2379",
			"--client-ca-file="+pki("ca.crt"), "--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
			"--kubelet-certificate-authority="+pki("ca.crt"), "--kubelet-client-certificate="+pki("apiserver-kubelet-client.crt"),
			"--kubelet-client-key="+pki("apiserver-kubelet-client.key"), "--kubelet-preferred-address-types=InternalIP",
			"--proxy-client-cert-file="+pki("front-proxy-client.crt"), "--proxy-client-key-file="+pki("front-proxy-client.key"),
			"--requestheader-client-ca-file="+pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file="+pki("service-account.key"), "--service-account-signing-key-file="+pki("service-account.key"),
			"--service-cluster-ip-range="+c.Services.String(), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--allow-privileged", "--profiling=false")},
		{Name: "kubelet", Command: kube("kubelet", "--config="+etc("kubelet.yaml"), "--kubeconfig="+etc("kubelet.kubeconfig"),
			"--hostname-override="+c.Name, "--node-ip="+c.Node.String()), After: ready},
		{Name: "kube-controller-manager", Command: kube("kube-controller-manager", append(credentials("controller-manager"),
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials", "--profiling=false",
			"--service-account-private-key-file="+pki("service-account.key"), "--root-ca-file="+pki("ca.crt"),
			"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
			"--allocate-node-cidrs", "--cluster-cidr="+c.Pods.String(), "--node-cidr-mask-size="+fmt.Sprint(c.Pods.Bits()), "--service-cluster-ip-range="+c.Services.String(),
			"--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins",
			// At the default of 20 requests a second the start of its many controllers takes five seconds longer.
			"--kube-api-qps=500", "--kube-api-burst=1000")...), After: ready},
		{Name: "kube-scheduler", Command: kube("kube-scheduler", append(credentials("scheduler"),
			"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false")...), After: ready},
		{Name: "kube-proxy", Command: kube("kube-proxy", "--kubeconfig="+etc("proxy.kubeconfig"), "--hostname-override="+c.Name,
			"--proxy-mode=nftables", "--cluster-cidr="+c.Pods.String(), "--oom-score-adj=0",
			// The connection tracking table's size is the host's, not this machine's: leave it alone.
			"--conntrack-max-per-core=0", "--conntrack-min=0",
			"--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"), After: ready},
	}
}

// containerd 1.6, as Debian 12 has it. Without CAP_SYS_RESOURCE (a sandboxed root) nobody may lower an OOM score.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_unprivileged_ports = true
  max_container_log_line_size = 16384
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/node/etc/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /node/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /node/pki/kubelet.crt
tlsPrivateKeyFile: /node/pki/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: %s
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.available: 1%%, imagefs.inodesFree: 1%%}
volumePluginDir: /var/lib/kubelet/volumeplugins
resolvConf: /node/etc/resolv.conf
healthzBindAddress: 127.0.0.1
`

const cniConfig = `{
  "cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}
`

// kubeconfig names one context for each cluster, with the certificate that has the given file name in its key folder.
// The first is the current one.
func kubeconfig(clusters []Cluster, certificate string) ([]byte, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "apiVersion: v1\nkind: Config\npreferences: {}\ncurrent-context: %s\n", clusters[0].Name)
	section := func(title string, entry func(c Cluster) (string, error)) error {
		fmt.Fprintf(&out, "%s:\n", title)
		for _, c := range clusters {
			text, err := entry(c)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "- name: %s\n%s", c.Name, text)
		}
		return nil
	}
	encoded := func(c Cluster, file string) (string, error) {
		data, err := os.ReadFile(filepath.Join(c.path("pki"), file))
		return base64.StdEncoding.EncodeToString(data), err
	}
	err := section("clusters", func(c Cluster) (string, error) {
		ca, err := encoded(c, "ca.crt")
		return fmt.Sprintf("  cluster:\n    server: %s\n    certificate-authority-data: %s\n", c.API(), ca), err
	})
	if err != nil {
		return nil, err
	}
	err = section("users", func(c Cluster) (string, error) {
		cert, err := encoded(c, certificate+".crt")
		if err != nil {
			return "", err
		}
		key, err := encoded(c, certificate+".key")
		return fmt.Sprintf("  user:\n    client-certificate-data: %s\n    client-key-data: %s\n", cert, key), err
	})
	if err != nil {
		return nil, err
	}
	err = section("contexts", func(c Cluster) (string, error) {
		return fmt.Sprintf("  context: {cluster: %s, user: %s}\n", c.Name, c.Name), nil
	})
	return []byte(out.String()), err
}
