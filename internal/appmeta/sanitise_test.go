package appmeta

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// Each testdata/sanitise/<case>.in.yaml becomes <case>.out.yaml.
func TestSanitiseLeavesWhatAnyClusterCanTake(t *testing.T) {
	inputs, _ := filepath.Glob("testdata/sanitise/*.in.yaml")
	if len(inputs) == 0 {
		t.Fatal("testdata/sanitise is empty")
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			o := readObject(t, input)
			before := o.DeepCopy()
			got, err := yaml.Marshal(Sanitise(o).Object)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(o.Object, before.Object) {
				t.Error("Sanitise changed the object it was given")
			}
			golden(t, "testdata/sanitise/"+name+".out.yaml", got)
			again, _ := yaml.Marshal(Sanitise(Sanitise(o)).Object)
			// A node port a user wrote is known by managedFields, which are gone after the first time.
			if name != "service" && string(again) != string(got) {
				t.Errorf("twice is not once:\n%s", again)
			}
		})
	}
}

func readObject(t *testing.T, path string) *unstructured.Unstructured {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	o := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(asJSON, &o.Object); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return o
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}
