//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// A cut in the middle of a transfer: the session waits, says so, goes on where it was, and nothing that was
// acknowledged is sent twice.
func TestCutInTheMiddleOfATransfer(t *testing.T) {
	s := tell(t)
	for _, chapter := range []func(context.Context) error{s.StartDatabase, s.FillDatabase, s.Protect} {
		must(t, chapter(t.Context()))
	}
	limit := resource.MustParse("8M")
	editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) {
		spec.Rlinks[0].BandwidthLimit, spec.Rlinks[0].Compression = &limit, v1alpha1.CompressionOff
	})
	until(t, 2*time.Minute, "the first copy is under way", func() (bool, string) {
		l := rlink(t, s, s.Home)
		if l.Session == nil {
			return false, "no session: " + l.WaitingFor
		}
		return l.Session.Percent >= 5, fmt.Sprintf("%s %d%%", l.Session.Phase, l.Session.Percent)
	})
	clusters(t, "cut")
	cut := time.Now()
	healed := false
	defer func() {
		if !healed {
			clusters(t, "heal")
		}
	}()
	until(t, time.Minute, "the session says that it waits for the link", func() (bool, string) {
		l := rlink(t, s, s.Home)
		if l.Session == nil {
			return false, "no session"
		}
		return l.Session.Phase == "Waiting" && l.Session.Message != "", l.Session.Phase + ": " + l.Session.Message
	})
	said := time.Now()
	clusters(t, "heal")
	healed = true
	until(t, time.Minute, "the session goes on", func() (bool, string) {
		l := rlink(t, s, s.Home)
		if l.Session == nil {
			return true, ""
		}
		return l.Session.Phase == "Transferring", l.Session.Phase + ": " + l.Session.Message
	})
	t.Logf("it said that it waits %s after the cut, and went on %s after it was healed", said.Sub(cut).Round(time.Millisecond), time.Since(said).Round(time.Millisecond))
	must(t, s.WaitSessions(t.Context(), s.Home, 1, "resumed"))
	report := rlink(t, s, s.Home).LastSession
	t.Logf("sent %d bytes for %d changed in %d attempts, %d of them twice", report.BytesSent, report.BytesChanged, report.Attempts, report.BytesResent)
	if report.Attempts < 2 {
		t.Errorf("the session took %d attempts: the cut was not felt", report.Attempts)
	}
	if report.BytesResent != 0 {
		t.Errorf("%d acknowledged bytes were sent again", report.BytesResent)
	}
}
