package hook

import (
	"context"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

// +kubebuilder:rbac:groups="",resources=pods,verbs=list
// +kubebuilder:rbac:groups="",resources=pods/exec,verbs=create

// Container is where a command runs.
type Container struct{ Namespace, Pod, Name string }

func (c Container) String() string { return "container " + c.Name + " of pod " + c.Pod }

// Exec runs commands in containers.
type Exec interface {
	// Run runs a command until it ends. Stdin may be nil; otherwise the command's standard input ends when stdin does, and when the
	// connection breaks. An *Exited error tells that it ended with another code than 0; after any other error nobody knows what became of
	// it. When ctx ends, Run returns and the command goes on without its standard input.
	Run(ctx context.Context, in Container, command []string, stdin io.Reader, out, errs io.Writer) error
}

// Exited is the end of a command with a code that is not 0.
type Exited struct{ Code int }

func (e *Exited) Error() string { return fmt.Sprintf("it ended with code %d", e.Code) }

// podExec asks the API server. It uses the protocol that begins with a POST: for the other one, which begins with a GET, clusters differ in
// whether "create" on pods/exec is enough.
type podExec struct {
	config *rest.Config
	client rest.Interface
}

// NewExec runs commands through the API server.
func NewExec(config *rest.Config) (Exec, error) {
	own := rest.CopyConfig(config)
	own.APIPath, own.GroupVersion, own.NegotiatedSerializer = "/api", &corev1.SchemeGroupVersion, scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("make a client for commands in pods: %w", err)
	}
	return &podExec{own, client}, nil
}

func (e *podExec) Run(ctx context.Context, in Container, command []string, stdin io.Reader, out, errs io.Writer) error {
	url := e.client.Post().Namespace(in.Namespace).Resource("pods").Name(in.Pod).SubResource("exec").VersionedParams(&corev1.PodExecOptions{
		Container: in.Name, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true,
	}, scheme.ParameterCodec).URL()
	stream, err := remotecommand.NewSPDYExecutor(e.config, "POST", url)
	if err != nil {
		return fmt.Errorf("run a command in %s: %w", in, err)
	}
	err = stream.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: out, Stderr: errs})
	var exited utilexec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exited) && exited.Exited():
		return &Exited{Code: exited.ExitStatus()}
	}
	return fmt.Errorf("run a command in %s: %w", in, err)
}
