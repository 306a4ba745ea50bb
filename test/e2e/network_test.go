//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// check runs lifeboat check as a user does.
func check(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), lifeboatProgram, append([]string{"check", "--context", "east,west"}, args...)...)
	raw, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(raw)
}

// M-164, M-178, M-179, M-015: from inside both clusters every way to the other is tried; a cut link is named with its address, and heals.
func TestCheckFromInsideBothClusters(t *testing.T) {
	s := running(t)
	code, out := check(t)
	t.Log(out)
	if code != 0 || strings.Count(out, " gateway ") < 2 || !strings.Contains(out, "its receiver answers") || !strings.Contains(out, "claims fit") {
		t.Errorf("exit code %d", code)
	}
	clusters(t, "cut")
	healed := false
	defer func() {
		if !healed {
			clusters(t, "heal")
		}
	}()
	code, out = check(t)
	t.Log(out)
	if code != 2 || !strings.Contains(out, "do not reach the gateway of cluster west") || !strings.Contains(out, s.Away.Address+":9002") {
		t.Errorf("with the link cut: exit code %d", code)
	}
	clusters(t, "heal")
	healed = true
	must(t, s.Check(t.Context()))
}

// M-160, M-157, M-109: a session that runs moves to the receiver's own address, behind a Service with another port, and goes on.
func TestAReceiverWithAnAddressOfItsOwn(t *testing.T) {
	s := tell(t)
	for _, chapter := range []func(context.Context) error{s.StartDatabase, s.FillDatabase, s.Protect} {
		must(t, chapter(t.Context()))
	}
	slow(t, s, "8M")
	r, err := s.Replication(t.Context(), s.Home)
	must(t, err)
	until(t, 2*time.Minute, "the first copy is under way", func() (bool, string) {
		l := rlink(t, s, s.Home)
		return l.Session != nil && l.Session.Percent >= 5, fmt.Sprint(l.WaitingFor, l.Session)
	})
	point := rlink(t, s, s.Home).Session.Point
	must(t, s.Away.Client.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "db-in"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": r.Name + r.Spec.Rlinks[0].RlinkName}, ExternalIPs: []string{s.Away.Address},
			Ports: []corev1.ServicePort{{Port: 9102, TargetPort: intstr.FromInt32(9005)}}},
	}))
	editReplication(t, s, s.Away, func(spec *v1alpha1.ReplicationSpec) { spec.Rlinks[0].LocalEndpoint = "db-in:9005" })
	address := s.Away.Address + ":9102"
	editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) {
		fast := resource.MustParse("1G")
		spec.Rlinks[0].RemoteAddress, spec.Rlinks[0].BandwidthLimit = address, &fast
	})
	until(t, 2*time.Minute, "the session ends", func() (bool, string) {
		l := rlink(t, s, s.Home)
		return l.LastSession != nil, fmt.Sprintf("%+v", l.Session)
	})
	last := rlink(t, s, s.Home).LastSession
	if last.Point != point || last.Result != "Committed" || last.BytesResent != 0 {
		t.Errorf("the session ended as %+v", last)
	}
	t.Logf("tier %s (%s), changed %d bytes; the last mover sent %d", last.Tier, last.TierReason, last.BytesChanged, last.BytesSent)
	if e := rlink(t, s, s.Away).Endpoint; e == nil || e.Address != address || e.Message != "" {
		t.Errorf("endpoint %+v", e)
	}
	if code, out := check(t); code != 0 || !strings.Contains(out, address+" (its remoteAddress)") {
		t.Errorf("check: %d\n%s", code, out)
	}
}

// M-156: the source's node loses power in the middle of a transfer. The session goes on afterwards, none is recorded as failed, and what
// the target had acknowledged does not cross again.
func TestANodeThatIsRestartedInTheMiddleOfATransfer(t *testing.T) {
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
		return l.Session != nil && l.Session.Percent >= 10, fmt.Sprint(l.WaitingFor, l.Session)
	})
	point := rlink(t, s, s.Home).Session.Point
	clusters(t, "kill", s.Home.Name)
	clusters(t, "restart", s.Home.Name)
	until(t, 5*time.Minute, "the session ends", func() (bool, string) {
		r, err := s.Replication(t.Context(), s.Home)
		if err != nil {
			return false, err.Error() // the API server is on its way back
		}
		l := r.Status.Rlinks[0]
		return l.LastSession != nil, fmt.Sprintf("%+v", l.Session)
	})
	l := rlink(t, s, s.Home)
	if l.LastSession.Point != point || l.LastSession.Result != "Committed" || len(l.History) != 0 {
		t.Errorf("the session ended as %+v, before it %+v", l.LastSession, l.History)
	}
	t.Logf("tier %s (%s), changed %d bytes; the last mover sent %d, resent %d, in %d attempts", l.LastSession.Tier, l.LastSession.TierReason, l.LastSession.BytesChanged,
		l.LastSession.BytesSent, l.LastSession.BytesResent, l.LastSession.Attempts)
	if l.LastSession.Tier != v1alpha1.TierAllocated {
		t.Errorf("went on in tier %s: the storage driver, which was restarted as well, was not waited for", l.LastSession.Tier)
	}
}
