package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, s Spec) (path, digest string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image.tar")
	digest, err := Write(s, path)
	if err != nil {
		t.Fatal(err)
	}
	return path, digest
}

func TestSameContentGivesSameBytes(t *testing.T) {
	spec := func(text string) Spec {
		return Spec{Name: "app:dev", Files: []File{{From: program(t, text), To: "/bin/x"}, {Text: "conf", To: "/etc/x"}}, Entrypoint: []string{"/bin/x"}}
	}
	a, digestA := write(t, spec("one"))
	b, digestB := write(t, spec("one"))
	_, digestC := write(t, spec("two"))
	if digestA != digestB || !bytes.Equal(read(t, a), read(t, b)) {
		t.Error("the same files gave two different archives")
	}
	if digestA == digestC {
		t.Error("different files gave the same digest")
	}
}

func TestArchiveHoldsWhatTheSpecSays(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	var tree bytes.Buffer
	_, err := makeLayer(base, func(to io.Writer) error {
		out := tar.NewWriter(io.MultiWriter(to, &tree))
		if err := out.WriteHeader(&tar.Header{Name: "base-file", Typeflag: tar.TypeReg, Mode: 0o600}); err != nil {
			return err
		}
		return out.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	path, digest := write(t, Spec{
		Name: "team/app:1", Base: base,
		Files:      []File{{From: program(t, "run"), To: "/usr/local/bin/x"}, {Text: "a", To: "/etc/x/conf", Mode: 0o640}},
		Entrypoint: []string{"/usr/local/bin/x"}, Cmd: []string{"serve"}, Env: []string{"A=b"}, User: "65535", WorkDir: "/srv",
	})
	files := entries(t, bytes.NewReader(read(t, path)))
	blob := func(h v1.Hash) []byte { return files["blobs/sha256/"+h.Hex].text }

	var index v1.IndexManifest
	decode(t, files["index.json"].text, &index)
	if got := index.Manifests[0].Digest.String(); got != digest {
		t.Errorf("index names %s, Write returned %s", got, digest)
	}
	var manifest v1.Manifest
	decode(t, blob(index.Manifests[0].Digest), &manifest)
	var config v1.ConfigFile
	decode(t, blob(manifest.Config.Digest), &config)
	c := config.Config
	if strings.Join(append(append(c.Entrypoint, c.Cmd...), c.User, c.WorkingDir), " ") != "/usr/local/bin/x serve 65535 /srv" {
		t.Errorf("configuration is %+v", c)
	}
	if len(c.Env) != 2 || !strings.HasPrefix(c.Env[0], "PATH=") || c.Env[1] != "A=b" {
		t.Errorf("environment is %q", c.Env)
	}
	if len(manifest.Layers) != 2 || len(config.RootFS.DiffIDs) != 2 {
		t.Fatalf("%d layers, %d diff ids; want base and files", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	for i, l := range manifest.Layers {
		text := blob(l.Digest)
		hash, _, err := v1.SHA256(bytes.NewReader(text))
		if err != nil || hash != l.Digest || int64(len(text)) != l.Size {
			t.Errorf("layer %d has %d bytes of %s (%v), the manifest says %d of %s", i, len(text), hash, err, l.Size, l.Digest)
		}
		hash, _, err = v1.SHA256(bytes.NewReader(inflate(t, text)))
		if err != nil || hash != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d unpacks to %s (%v), the configuration says %s", i, hash, err, config.RootFS.DiffIDs[i])
		}
	}
	if !bytes.Equal(inflate(t, blob(manifest.Layers[0].Digest)), tree.Bytes()) {
		t.Error("the base layer is not the base")
	}
	layer := entries(t, bytes.NewReader(inflate(t, blob(manifest.Layers[1].Digest))))
	if got := layer["usr/local/bin/x"]; string(got.text) != "run" || got.mode != 0o755 {
		t.Errorf("program is %q with mode %o", got.text, got.mode)
	}
	if got := layer["etc/x/conf"]; string(got.text) != "a" || got.mode != 0o640 {
		t.Errorf("text file is %q with mode %o", got.text, got.mode)
	}
	if _, ok := layer["usr/local/"]; !ok {
		t.Error("the folders above the files are missing")
	}
}

func TestInspectReadsBackTheFullName(t *testing.T) {
	for short, full := range map[string]string{
		"app:dev":                "docker.io/library/app:dev",
		"team/app:1":             "docker.io/team/app:1",
		"app":                    "docker.io/library/app:latest",
		"registry.example/app:2": "registry.example/app:2",
	} {
		path, digest := write(t, Spec{Name: short, Files: []File{{Text: "", To: "/x"}}})
		got, err := Inspect(path)
		if err != nil || len(got) != 1 || got[0] != (Named{full, digest}) {
			t.Errorf("%s: got %v, %v; want %s %s", short, got, err, full, digest)
		}
	}
}

func TestBadSpecsAreRefused(t *testing.T) {
	good := program(t, "x")
	for want, s := range map[string]Spec{
		`image name "UPPER CASE"`: {Name: "UPPER CASE"},
		"clean absolute path":     {Name: "app", Files: []File{{From: good, To: "bin/x"}}},
		`"/a/../b"`:               {Name: "app", Files: []File{{From: good, To: "/a/../b"}}},
		"two files for /x":        {Name: "app", Files: []File{{From: good, To: "/x"}, {From: good, To: "/x"}}},
		"no such file":            {Name: "app", Files: []File{{From: "/does/not/exist", To: "/x"}}},
		"not a regular file":      {Name: "app", Files: []File{{From: t.TempDir(), To: "/x"}}},
		"base /no/base":           {Name: "app", Base: "/no/base"},
	} {
		path := filepath.Join(t.TempDir(), "image.tar")
		if _, err := Write(s, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want an error with %q", s, err, want)
		}
		if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
			t.Errorf("%+v left %v behind", s, left)
		}
	}
	if _, err := Inspect(good); err == nil {
		t.Error("a file that is no archive was not refused")
	}
}

func inflate(t *testing.T, text []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

type entry struct {
	text []byte
	mode int64
}

func entries(t *testing.T, from io.Reader) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for in := tar.NewReader(from); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		all[header.Name] = entry{text, header.Mode}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}
