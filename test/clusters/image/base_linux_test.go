package image

import "testing"

func TestBaseKeyFollowsContentOnly(t *testing.T) {
	a := Debian{Packages: []string{"b", "a"}, Files: map[string]string{"/x": "1", "/y": "2"}}
	same := Debian{Suite: "bookworm", Packages: []string{"a", "b"}, Files: map[string]string{"/y": "2", "/x": "1"}}
	if a.key() != same.key() {
		t.Error("order or a default changed the key")
	}
	for _, other := range []Debian{
		{Packages: []string{"a"}, Files: a.Files},
		{Packages: a.Packages, Files: map[string]string{"/x": "1", "/y": "3"}},
		{Suite: "trixie", Packages: a.Packages, Files: a.Files},
	} {
		if a.key() == other.key() {
			t.Errorf("%+v has the same key as %+v", other, a)
		}
	}
}
