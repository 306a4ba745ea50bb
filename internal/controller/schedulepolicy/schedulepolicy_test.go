package schedulepolicy

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
)

var servers apiserver.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// stork is the policy of Stork's documentation.
func stork() *v1alpha1.SchedulePolicy {
	return &v1alpha1.SchedulePolicy{ObjectMeta: metav1.ObjectMeta{Name: "testpolicy"}, Policy: v1alpha1.SchedulePolicyItem{
		Interval: &v1alpha1.IntervalPolicy{IntervalMinutes: 1}, Daily: &v1alpha1.DailyPolicy{Time: "10:14PM"},
		Weekly: &v1alpha1.WeeklyPolicy{Day: "Thursday", Time: "10:13PM"}, Monthly: &v1alpha1.MonthlyPolicy{Date: 14, Time: "8:05PM"},
	}}
}

// M-030, M-031: the columns and what stands in them; one policy by its name, all without one. M-019: a policy alone does nothing else.
func TestAPolicyIsShown(t *testing.T) {
	kube := servers.Client(t, "east")
	r := &Reconciler{Client: kube, Live: kube}
	elsewhere := &v1alpha1.SchedulePolicy{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"},
		Policy: v1alpha1.SchedulePolicyItem{Daily: &v1alpha1.DailyPolicy{Time: "1:02pm"}, TimeZone: "Mars/Olympus"}}
	for _, p := range []*v1alpha1.SchedulePolicy{stork(), elsewhere} {
		if err := kube.Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time changes nothing
			if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(p)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"schedulepolicy", "testpolicy"}, "NAME INTERVAL-MINUTES DAILY WEEKLY MONTHLY\ntestpolicy 1 10:14PM Thursday@10:13PM 14@8:05PM"},
		{[]string{"sp"}, "NAME INTERVAL-MINUTES DAILY WEEKLY MONTHLY\nelsewhere N/A Invalid N/A N/A\ntestpolicy 1 10:14PM Thursday@10:13PM 14@8:05PM"},
	} {
		if got := servers.Kubectl(t, "east", append([]string{"get"}, c.args...)...); got != c.want {
			t.Errorf("%v:\n%s\nwant\n%s", c.args, got, c.want)
		}
	}
	if err := kube.Get(t.Context(), client.ObjectKeyFromObject(elsewhere), elsewhere); err != nil {
		t.Fatal(err)
	}
	ready := meta.FindStatusCondition(elsewhere.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status != metav1.ConditionFalse || !strings.Contains(ready.Message, `policy.timeZone is "Mars/Olympus"`) {
		t.Errorf("Ready: %+v", ready)
	}
}
