package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/standalone"
)

// identityEnv names the identity folder where --identity does not.
const identityEnv = "LIFEBOAT_IDENTITY"

// newIdentityCommand is `lifeboat identity`: who this host is and whom it trusts, for replication without Kubernetes.
func newIdentityCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "identity NAME",
		Short: "Make this host's identity, and trust another host's, to replicate without Kubernetes",
		Long: `Identity makes a certificate authority for this host, good for ten years, and a certificate that is renewed by itself.
What is there already stays. The key never leaves the folder; another host needs only the CA's certificate.

Two hosts trust each other after two commands, here on the host east:

  lifeboat identity show --certificate | ssh west lifeboat identity trust -
  ssh west lifeboat identity show --certificate | lifeboat identity trust -`,
		Example: "  lifeboat identity east\n  lifeboat identity show\n  lifeboat identity trust west.crt",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := standalone.CreateHost(dir, args[0], time.Now)
			if err != nil {
				return coded(err)
			}
			return showHost(cmd.OutOrStdout(), h)
		},
	}
	identityFlag(cmd.PersistentFlags().StringVar, "dir", &dir)
	cmd.AddCommand(newIdentityShowCommand(&dir), newIdentityTrustCommand(&dir), newIdentityDistrustCommand(&dir))
	return cmd
}

// identityFlag adds the flag that names the identity's folder.
func identityFlag(add func(into *string, name, value, usage string), name string, into *string) {
	value := os.Getenv(identityEnv)
	if value == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "."
		}
		value = filepath.Join(home, ".lifeboat")
	}
	add(into, name, value, "folder of this host's identity ($"+identityEnv+")")
}

func newIdentityShowCommand(dir *string) *cobra.Command {
	var certificate bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show who this host is and whom it trusts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := standalone.OpenHost(*dir, time.Now)
			if err != nil {
				return coded(err)
			}
			if certificate {
				_, err := cmd.OutOrStdout().Write(h.Certificate())
				return err
			}
			return showHost(cmd.OutOrStdout(), h)
		},
	}
	cmd.Flags().BoolVar(&certificate, "certificate", false, "only print the CA's certificate, which another host needs to trust this one")
	return cmd
}

func newIdentityTrustCommand(dir *string) *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "trust CERTIFICATE",
		Short: "Trust the host whose CA's certificate is in a file (-: standard input)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := standalone.OpenHost(*dir, time.Now)
			if err != nil {
				return coded(err)
			}
			raw, err := readCertificate(cmd.InOrStdin(), args[0])
			if err != nil {
				return coded(&engine.ConfigError{Field: "certificate", Found: args[0], Want: err.Error()})
			}
			p, err := h.Trust(raw, replace)
			if err != nil {
				return coded(err)
			}
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%s trusts %s from now on, CA %s\n", h.Name, p.Name, p.Fingerprint)
			return nil
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "accept that the host has another CA than the one that is trusted")
	return cmd
}

func newIdentityDistrustCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "distrust NAME",
		Short: "Trust a host no more; restart lifeboat receive afterwards",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := standalone.OpenHost(*dir, time.Now)
			if err == nil {
				err = h.Distrust(args[0])
			}
			if err != nil {
				return coded(err)
			}
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%s trusts %s no more\n", h.Name, args[0])
			return nil
		},
	}
}

// maxCertificate bounds what is read as a certificate, in bytes.
const maxCertificate = 64 << 10

func readCertificate(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, maxCertificate))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxCertificate))
}

func showHost(out io.Writer, h *standalone.Host) error {
	peers, err := h.Peers()
	if err != nil {
		return coded(err)
	}
	line := func(what string, p standalone.Peer) {
		_, _ = fmt.Fprintf(out, "%-6s %-20s CA %s until %s\n", what, p.Name, p.Fingerprint, p.NotAfter.Format(time.DateOnly))
	}
	line("host", h.Self())
	for _, p := range peers {
		line("trusts", p)
	}
	if len(peers) == 0 {
		_, _ = fmt.Fprintf(out, "trusts nobody yet: on the other host, lifeboat identity show --certificate, and here lifeboat identity trust FILE\n")
	}
	return nil
}

// coded gives an error the exit code that goes with its kind: 2 for a wrong configuration, 3 for a refusal.
func coded(err error) error {
	kind := engine.KindOf(err)
	switch {
	case err == nil:
		return nil
	case kind == engine.KindConfiguration:
		return &exitError{engine.ExitConfiguration, err}
	case kind.ForGood():
		return &exitError{engine.ExitRefused, err}
	}
	return err
}
