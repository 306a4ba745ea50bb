package internal_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every number that a test names is explained in docs/capabilities.md, so that a stranger understands the test; and every promise that
// stands there is named by a test, so that none is only said.
func TestCapabilitiesAreExplainedAndProven(t *testing.T) {
	text, err := os.ReadFile("../docs/capabilities.md")
	if err != nil {
		t.Fatal(err)
	}
	explained, proven := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| (M-\d{3}) \| \S`).FindAllStringSubmatch(string(text), -1) {
		if explained[m[1]] {
			t.Errorf("%s is explained twice", m[1])
		}
		explained[m[1]] = true
	}
	number := regexp.MustCompile(`\bM-\d{3}\b`)
	err = filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." || entry.Name() == "bin"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range number.FindAllString(string(source), -1) {
			proven[m] = true
			if !explained[m] {
				t.Errorf("%s names %s, which docs/capabilities.md does not explain", path, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Sorted(maps.Keys(explained)) {
		if !proven[m] {
			t.Errorf("no test names %s, which docs/capabilities.md promises", m)
		}
	}
}
