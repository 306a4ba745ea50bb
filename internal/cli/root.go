// Package cli holds the verbs of the lifeboat command: what users type and what pods run.
//
// It knows flags, screens and exit codes. It never decides what an operation does next (internal/runbook
// does) and never wires controllers (cmd/lifeboat does). Begin with NewRootCommand; each verb is one file.
package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/internal/version"
)

// NewRootCommand builds the lifeboat command with every verb of this package. Verbs that need the whole
// program, such as manager, are added by the caller.
func NewRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "lifeboat",
		Short:         "Disaster recovery for Kubernetes applications and their data",
		Long:          "Lifeboat keeps a Kubernetes application and its data ready to run on a second cluster, and moves it there and back.",
		Version:       version.Software,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: groupUser, Title: "What you do:"},
		&cobra.Group{ID: groupPod, Title: "What runs in pods:"},
	)
	for _, verb := range []*cobra.Command{
		newInstallCommand(), newPairCommand(), newCheckCommand(), newStatusCommand(), newMigrateCommand(), newRecoveryPointsCommand(), newRestoreCommand(),
		newDemoCommand(), newDeltaCommand(),
		newIdentityCommand(), newReceiveCommand(), newReplicateCommand(),
	} {
		verb.GroupID = groupUser
		root.AddCommand(verb)
	}
	for _, verb := range []*cobra.Command{
		newGatewayCommand(), newMoverCommand(), newCSICommand(),
	} {
		verb.GroupID = groupPod
		root.AddCommand(verb)
	}
	return root
}

const (
	groupUser = "user"
	groupPod  = "pod"
)

// PodGroup is the group of verbs that run in pods, for verbs added by the caller of NewRootCommand.
const PodGroup = groupPod

// exitError carries the exit code a verb ends with. Scripts branch on it.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// Report prints err for a person and returns the process's exit code: 0 without an error, the verb's own
// code where it has one, else 1.
func Report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(w, "lifeboat: %v\n", err)
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return 1
}
