package cli

import (
	"bytes"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-084: every link of a replication has its line, with what it waits for.
func TestStatusShowsEveryLink(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	r := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Status: v1alpha1.ReplicationStatus{
		Role: v1alpha1.RoleSource, Phase: "Waiting",
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}},
		Rlinks: []v1alpha1.RlinkStatus{
			{RlinkName: "north", Phase: "Waiting", WaitingFor: "the link to cluster north is lost"},
			{RlinkName: "west", Phase: "Idle", RecoveryPoint: &v1alpha1.RecoveryPoint{Point: "p7", Time: metav1.NewTime(now.Add(-time.Minute))}},
		}}}
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 4, 1, ' ', 0)
	printReplication(w, r, now)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"shop/db north source Waiting none yet - - - the link to cluster north is lost",
		"shop/db west source Idle p7 60s - - -",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", out.String())
	}
}
