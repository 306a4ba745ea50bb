// Package machine is the inside of one cluster's machine: the file tree, the network set-up and the processes that its
// pid 1 brings up inside namespaces that were made for it. It knows no Kubernetes: what to mount and to run is in a Spec.
//
// Begin with Spec, then Run.
package machine

// Spec is all that pid 1 of a machine is told. It is written to a file by the side that makes the namespaces.
type Spec struct {
	// Hostname is the machine's own name (its uts namespace).
	Hostname string `json:"hostname"`
	// Root is the folder on the host over which the machine's root, a small tmpfs, is mounted. Nobody else sees the mount.
	Root string `json:"root"`
	// Binds are folders of the host that the machine sees. Everything else of the host is out of its sight.
	Binds []Bind `json:"binds"`
	// Masks are files of /proc/sys that show the given text and swallow writes, because the kernel has only one of each
	// for the whole host and the kubelet would change it.
	Masks map[string]string `json:"masks"`
	// Sysctls are written, in the machine's own network namespace, before anything starts.
	Sysctls map[string]string `json:"sysctls"`
	// Setup are commands that run one after the other; the first that fails ends the machine.
	Setup [][]string `json:"setup"`
	// Components are the processes to keep running.
	Components []Component `json:"components"`
	// Path is the PATH of all of them.
	Path string `json:"path"`
	// Logs is the folder, in the machine's sight, that gets one file for each component.
	Logs string `json:"logs"`
}

// Bind shows the host's folder From at To. With Tree, what is mounted below From comes along. With File, both are files,
// and To is covered only if there is one.
type Bind struct {
	From     string `json:"from"`
	To       string `json:"to"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Tree     bool   `json:"tree,omitempty"`
	File     bool   `json:"file,omitempty"`
}

// Component is one process. It is started again whenever it ends.
type Component struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
	// After is an https address that has to answer 200 before the first start; empty means at once.
	After string `json:"after,omitempty"`
}

// Go is the line that pid 1 waits for on its standard input. End of file in its place means that whoever made the
// namespaces died before they were complete; the machine then ends without having started anything.
const Go = "go\n"
