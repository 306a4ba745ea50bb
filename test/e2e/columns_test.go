//go:build e2e

package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"lifeboat.dev/lifeboat/internal/demo"
)

// replicationIsShown looks at what a user sees of the source's replication. M-107: role, schedule, suspension, whether a session runs,
// the newest point and how far behind it is.
func replicationIsShown(t *testing.T, s *demo.Story, c demo.Cluster) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), clustersProgram, "kubectl", c.Name, "get", "replication", "-n", s.Namespace).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl get replication: %v\n%s", err, out)
	}
	t.Logf("kubectl get replication\n%s", out)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if got := strings.Join(strings.Fields(lines[0]), " "); got != "NAME ROLE PHASE SCHEDULE SUSPEND ACTIVE LAST RECOVERY POINT LAG OBJECTIVE AGE" {
		t.Errorf("columns: %s", got)
	}
	if fields := strings.Join(strings.Fields(lines[len(lines)-1]), " "); len(lines) != 2 || !strings.Contains(fields, " source ") || !strings.Contains(fields, " * * * * * False ") {
		t.Errorf("the source is shown as %s", fields)
	}
}
