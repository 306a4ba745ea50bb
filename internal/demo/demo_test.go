package demo

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

func TestALogSaysWhichCommitsWereAcknowledged(t *testing.T) {
	dir := t.TempDir()
	log := "0 0 1200 0 1700000000 500000 10\n1 0 1300 0 1700000000 600000 10\n0 1 failed 0 1700000000 650000\n0 2 900 0 1700000001 0 10\n"
	if err := os.WriteFile(filepath.Join(dir, "run7.4711"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	acks, err := (&Load{Dir: dir}).Acks()
	if err != nil {
		t.Fatal(err)
	}
	want := []Ack{
		{7, 0, 1, time.Unix(1700000000, 500000000)},
		{7, 1, 1, time.Unix(1700000000, 600000000)},
		{7, 0, 2, time.Unix(1700000001, 0)},
	}
	if len(acks) != len(want) {
		t.Fatalf("got %v, want %v", acks, want)
	}
	for i := range want {
		if !acks[i].At.Equal(want[i].At) || acks[i].Run != want[i].Run || acks[i].Client != want[i].Client || acks[i].N != want[i].N {
			t.Errorf("got %v, want %v", acks[i], want[i])
		}
	}
}

func TestDowntimeIsTheLongestGapOfTheMove(t *testing.T) {
	at := func(second int64) Ack { return Ack{At: time.Unix(second, 0)} }
	acks := []Ack{at(0), at(50), at(51), at(52), at(70), at(71), at(100)}
	gap, began := LongestGap(acks, time.Unix(51, 500), time.Unix(80, 0))
	// The gap before 50 is over when the move begins; that after 71 began before its end and counts.
	if gap != 29*time.Second || !began.Equal(time.Unix(71, 0)) {
		t.Errorf("got %s from %s", gap, began)
	}
	if gap, _ := LongestGap(acks, time.Unix(51, 500), time.Unix(70, 0)); gap != 18*time.Second {
		t.Errorf("the move's own gap: got %s, want 18s", gap)
	}
}

func TestWhatWasNotMeasuredHasNoFigure(t *testing.T) {
	var out bytes.Buffer
	(&Figures{AckedCommits: 5, MigrateTime: time.Second}).Print(Options{Out: &out})
	for _, line := range []string{"figure lost_commits unknown", "figure downtime_home_s unknown", "figure migrate_s 1.00"} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("no line %q in:\n%s", line, out.String())
		}
	}
	out.Reset()
	(&Figures{Checked: true}).Print(Options{Out: &out})
	if !strings.Contains(out.String(), "figure lost_commits 0\n") {
		t.Errorf("checked, and no figure:\n%s", out.String())
	}
}

func TestTheTableTellsHowChangesWereFoundAndWhy(t *testing.T) {
	row := func(point string, tier v1alpha1.Tier, why string, read int64) SessionRow {
		return SessionRow{From: "east", What: "scheduled", Report: v1alpha1.SessionReport{Point: point, Result: "Committed", Tier: tier, TierReason: why, BytesRead: read}}
	}
	var out bytes.Buffer
	(&Figures{Sessions: []SessionRow{row("p1", v1alpha1.TierDigest, "no list since 20260131t120000-1a2b3c", 1<<30), row("p2", v1alpha1.TierCBT, "a list", 1<<20), row("p3", v1alpha1.TierDigest, "no list since 20260131t120100-1a2b3d", 1<<30)}}).Print(Options{Out: &out})
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"p1 east scheduled digest 1024.0 MiB", "p2 east scheduled cbt 1.0 MiB", "digest: no list since 20260131t120000-1a2b3c cbt: a list moved", "figure sessions_by_change_list 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}
