package main

import (
	"math"
	"net/http"
	"strings"
	"testing"
)

func TestACallIsNamedAsTheServerDoes(t *testing.T) {
	for _, c := range []struct{ method, url, want string }{
		{"GET", "/api/v1/namespaces/shop-1/pods/a", "GET pods"},
		{"GET", "/api/v1/namespaces/shop-1/pods?limit=500", "LIST pods"},
		{"GET", "/api/v1/pods?watch=true", "WATCH pods"},
		{"POST", "/api/v1/namespaces", "POST namespaces"},
		{"GET", "/api/v1/namespaces/shop-1", "GET namespaces"},
		{"PATCH", "/apis/lifeboat.dev/v1alpha1/namespaces/shop-1/replications/app/status", "PATCH replications/status"},
		{"PUT", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents/c/status", "PUT volumesnapshotcontents/status"},
		{"DELETE", "/apis/batch/v1/namespaces/shop-1/jobs", "DELETECOLLECTION jobs"},
		{"GET", "/metrics", "GET -"},
	} {
		r, err := http.NewRequest(c.method, "https://127.0.0.1"+c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := callOf(r); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.method, c.url, got, c.want)
		}
	}
}

func TestQuantilesAreOfWhatCameSince(t *testing.T) {
	text := `# TYPE looks histogram
looks_bucket{controller="replication",le="0.1"} %d
looks_bucket{controller="replication",le="1"} %d
looks_bucket{controller="replication",le="+Inf"} %d
looks_sum{controller="replication"} 17.3
looks_count 12
`
	read := func(numbers ...string) series {
		for _, n := range numbers {
			text = strings.Replace(text, "%d", n, 1)
		}
		s := series{}
		err := eachMetric(strings.NewReader(text), func(name string, labels map[string]string, value float64) {
			if name == "looks_bucket" && labels["controller"] == "replication" {
				s[map[string]float64{"0.1": 0.1, "1": 1, "+Inf": math.Inf(1)}[labels["le"]]] = value
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	since := read("90", "99", "100").since(series{0.1: 90, 1: 90, math.Inf(1): 90})
	if since.count() != 10 || since.quantile(0.5) != 1 || !math.IsInf(since.quantile(0.99), 1) {
		t.Errorf("%v: %g of them, half within %g, 99 %% within %g", since, since.count(), since.quantile(0.5), since.quantile(0.99))
	}
}
