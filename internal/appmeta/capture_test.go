package appmeta

import (
	"context"
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// whole is everything of testdata/shop.yaml that another cluster can take, in the order of its restore.
const whole = `Namespace capture
ServiceAccount app
ServiceAccount default
NetworkPolicy closed
Role reader
ConfigMap settings
Secret credentials
Secret widget-password
RoleBinding reader
PersistentVolume capture-share
PersistentVolumeClaim data
PersistentVolumeClaim share
Service db
Service outside
Service web
EndpointSlice outside-1
Widget one
Pod tool
DaemonSet agent
Deployment web
StatefulSet db
Job import
HorizontalPodAutoscaler web
CronJob report
Ingress web
PodDisruptionBudget web`

func TestCaptureTakesWhatAUserWroteAndLeavesWhatTheClusterMade(t *testing.T) {
	east := open(t, "east")
	east.serveWidgets(t)
	east.makeNamespace(t, "capture", map[string]string{"pod-security.kubernetes.io/warn": "restricted"})
	east.run(t, "testdata/shop.yaml", "capture")

	all := Request{Namespace: "capture", ReplicatedClaims: []string{"data"}}
	t.Run("everything", func(t *testing.T) {
		captured := east.capture(t, all)
		if got := strings.Join(names(captured.Objects), "\n"); got != whole {
			t.Errorf("captured:\n%s\nwant:\n%s", got, whole)
		}
		if len(captured.Warnings) > 0 {
			t.Errorf("warnings: %v", captured.Warnings)
		}
	})
	t.Run("twice is the same, byte for byte", func(t *testing.T) {
		a, _, _ := pack("capture", east.capture(t, all).Objects, nil, nil)
		b, _, _ := pack("capture", east.capture(t, all).Objects, nil, nil)
		if a.digest() != b.digest() {
			t.Errorf("%s, then %s", a.digest(), b.digest())
		}
	})
	for _, c := range []struct {
		name, want string
		req        Request
	}{
		{"by label", "Namespace, ConfigMap settings, Deployment web", Request{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}},
		// Nobody makes widget-state again when its Widget is left behind.
		{"included kinds only", "Namespace, ConfigMap settings, ConfigMap widget-state, Deployment web", Request{Include: []string{"deployments.apps", "ConfigMaps"}}},
		{"excluded wins", "Namespace, Deployment web", Request{Include: []string{"deployments.apps", "configmaps"}, Exclude: []string{"configmaps"}}},
		{"owner left behind", "Namespace, ReplicaSet web-5d4f", Request{Include: []string{"replicasets.apps"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.req.Namespace = "capture"
			want := strings.ReplaceAll(strings.Replace(c.want, "Namespace", "Namespace capture", 1), ", ", "\n")
			if got := strings.Join(names(east.capture(t, c.req).Objects), "\n"); got != want {
				t.Errorf("captured:\n%s\nwant:\n%s", got, want)
			}
		})
	}
	t.Run("a port a user wrote stays, one the cluster chose does not", func(t *testing.T) {
		for _, o := range east.capture(t, all).Objects {
			if o.GetKind() != "Service" || o.GetName() != "web" {
				continue
			}
			ports := field[[]any](t, o, "spec", "ports")
			fixed, free := ports[0].(map[string]any), ports[1].(map[string]any)
			if fixed["nodePort"] != int64(30123) || free["nodePort"] != nil {
				t.Errorf("ports: %v", ports)
			}
			if ip := field[string](t, o, "spec", "clusterIP"); ip != "" {
				t.Errorf("clusterIP %s", ip)
			}
		}
	})
}

func TestCaptureRefusesWhatItCannotMean(t *testing.T) {
	east := open(t, "east")
	for _, c := range []struct {
		name string
		req  Request
		want string
	}{
		{"unknown kind", Request{Namespace: "default", Include: []string{"gadgets.example.com"}}, `spec.includeResources[0] names "gadgets.example.com"`},
		{"group forgotten", Request{Namespace: "default", Include: []string{"configmaps", "deployments"}}, "did you mean deployments.apps?"},
		{"Lifeboat's own namespace", Request{Namespace: v1alpha1.SystemNamespace}, "never captured"},
		{"bad selector", Request{Namespace: "default", Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}}, "spec.selector"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := east.capturer.Capture(context.Background(), c.req)
			var unknown *UnknownResource
			var bad *BadRequest
			if !errors.As(err, &unknown) && !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	t.Run("namespace not there", func(t *testing.T) {
		if _, err := east.capturer.Capture(context.Background(), Request{Namespace: "nowhere"}); err == nil || !strings.Contains(err.Error(), "read namespace nowhere") {
			t.Errorf("%v", err)
		}
	})
}
