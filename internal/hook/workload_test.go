package hook

import (
	"encoding/json"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return o
}

func text(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	data, err := json.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestStopKeepsHowAWorkloadRanAndUndoPutsItBack(t *testing.T) {
	for _, c := range []struct {
		name          string
		from, stopped string
		// back is what Undo makes of it; empty means from.
		back string
	}{
		{
			"a Deployment keeps its count",
			`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":{"replicas":3}}`,
			`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"annotations":{"lifeboat.dev/offline-by":"op","lifeboat.dev/replicas":"3"},"name":"a"},"spec":{"replicas":0}}`, "",
		},
		{
			"no count means one",
			`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"a"},"spec":{}}`,
			`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"annotations":{"lifeboat.dev/offline-by":"op","lifeboat.dev/replicas":"1"},"name":"a"},"spec":{"replicas":0}}`,
			`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"a"},"spec":{"replicas":1}}`,
		},
		{
			"already at 0 by its user: nothing to keep, nothing to put back",
			`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":{"replicas":0}}`, "", "",
		},
		{
			"already at 0 by an operation: the count is carried forward",
			`{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"annotations":{"lifeboat.dev/replicas":"4"},"name":"a"},"spec":{"replicas":0}}`, "",
			`{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"name":"a"},"spec":{"replicas":4}}`,
		},
		{
			"scaled up behind an operation's back: the new count counts",
			`{"apiVersion":"v1","kind":"ReplicationController","metadata":{"annotations":{"lifeboat.dev/replicas":"4"},"name":"a"},"spec":{"replicas":2}}`,
			`{"apiVersion":"v1","kind":"ReplicationController","metadata":{"annotations":{"lifeboat.dev/offline-by":"op","lifeboat.dev/replicas":"2"},"name":"a"},"spec":{"replicas":0}}`,
			`{"apiVersion":"v1","kind":"ReplicationController","metadata":{"name":"a"},"spec":{"replicas":2}}`,
		},
		{
			"a CronJob",
			`{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"annotations":{"team":"x"},"name":"a"},"spec":{}}`,
			`{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"annotations":{"lifeboat.dev/offline-by":"op","lifeboat.dev/suspended":"false","team":"x"},"name":"a"},"spec":{"suspend":true}}`,
			`{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"annotations":{"team":"x"},"name":"a"},"spec":{"suspend":false}}`,
		},
		{
			"a CronJob its user suspended stays so",
			`{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"name":"a"},"spec":{"suspend":true}}`, "", "",
		},
		{
			"a Job that ended is left alone",
			`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"a"},"spec":{},"status":{"conditions":[{"status":"True","type":"Complete"}]}}`, "", "",
		},
		{
			"a Job that runs",
			`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"a"},"spec":{"suspend":false},"status":{"active":1}}`,
			`{"apiVersion":"batch/v1","kind":"Job","metadata":{"annotations":{"lifeboat.dev/offline-by":"op","lifeboat.dev/suspended":"false"},"name":"a"},"spec":{"suspend":true},"status":{"active":1}}`, "",
		},
		{
			"a DaemonSet",
			`{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"a"},"spec":{"template":{"spec":{"nodeSelector":{"disk":"ssd"}}}}}`,
			`{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"annotations":{"lifeboat.dev/offline-by":"op"},"name":"a"},"spec":{"template":{"spec":{"nodeSelector":{"disk":"ssd","lifeboat.dev/offline":"true"}}}}}`, "",
		},
		{
			"a DaemonSet without a node selector has none afterwards",
			`{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"a"},"spec":{"template":{"spec":{}}}}`,
			`{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"annotations":{"lifeboat.dev/offline-by":"op"},"name":"a"},"spec":{"template":{"spec":{"nodeSelector":{"lifeboat.dev/offline":"true"}}}}}`, "",
		},
		{
			"what is no workload",
			`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, "", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := parse(t, c.from)
			want := c.stopped
			if want == "" {
				want = c.from
			}
			if did := stop(o, "op"); did != (c.stopped != "") || text(t, o) != want {
				t.Fatalf("stop: %v\n%s, want\n%s", did, text(t, o), want)
			}
			if stop(o, "op-2") || text(t, o) != want {
				t.Fatalf("stopped twice is not once:\n%s", text(t, o))
			}
			want = c.back
			if want == "" {
				want = c.from
			}
			if marked := Marked(o); Undo(o) != marked || text(t, o) != want {
				t.Fatalf("undo:\n%s, want\n%s", text(t, o), want)
			}
			if Undo(o) || Marked(o) {
				t.Fatalf("undone twice is not once:\n%s", text(t, o))
			}
		})
	}
}
