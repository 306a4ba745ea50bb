// Package image makes container images without a registry and without a daemon: an OCI archive is a tar of files that
// are named by their hash, so the same content always gives the same bytes.
//
// It knows files and image configurations. It never runs a container and never talks to a registry. Write makes an
// archive from files and a base; Base (Linux, root) makes a base from Debian packages; Inspect reads an archive's name.
package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec says what an image holds.
type Spec struct {
	// Name is the reference under which clusters find the image, such as "lifeboat:dev".
	Name string
	// Base is the folder of a file tree that the function Base made. Empty: an empty root.
	Base string
	// Files are laid over the base.
	Files []File

	Entrypoint, Cmd []string
	// Env are NAME=VALUE pairs. PATH is set when it is not among them.
	Env []string
	// User is a name or number of the image's user, as in "postgres" or "65535:65535". Empty: root.
	User    string
	WorkDir string
}

// File is a file of the host and its place in the image. It keeps its permission bits and belongs to root.
// When From is empty the file's content is Text and its mode 0644, or Mode.
type File struct {
	From, To string
	Text     string
	Mode     os.FileMode
}

// The archive says who it is for in the annotation that containerd's import reads.
const nameAnnotation = "io.containerd.image.name"

// Write makes the archive at path and returns the digest of its manifest. The same Spec over the same files gives
// the same bytes. The file appears whole or not at all.
func Write(s Spec, path string) (string, error) {
	full, err := fullName(s.Name)
	if err != nil {
		return "", err
	}
	half := path + ".half"
	if err := errors.Join(os.RemoveAll(half), os.Mkdir(half, 0o755)); err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(half) }()
	img, err := build(s, filepath.Join(half, "files"))
	if err != nil {
		return "", fmt.Errorf("image %s: %w", s.Name, err)
	}
	archive := filepath.Join(half, "archive")
	f, err := os.Create(archive)
	if err != nil {
		return "", err
	}
	digest, err := writeArchive(img, full, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("write image %s: %w", s.Name, err)
	}
	return digest, os.Rename(archive, path)
}

// fullName is the reference as containerd keeps it: with its registry's name, of which nobody is asked anything.
func fullName(short string) (string, error) {
	ref, err := name.ParseReference(short)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", short, err)
	}
	return strings.Replace(ref.Name(), name.DefaultRegistry+"/", "docker.io/", 1), nil
}

// build makes the image; the layer of its own files is kept in the folder scratch.
func build(s Spec, scratch string) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	var layers []v1.Layer
	if s.Base != "" {
		base, err := openLayer(s.Base)
		if err != nil {
			return nil, fmt.Errorf("base %s: %w", s.Base, err)
		}
		layers = append(layers, base)
	}
	if len(s.Files) > 0 {
		files, err := layerOf(s.Files, scratch)
		if err != nil {
			return nil, err
		}
		layers = append(layers, files)
	}
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{
		Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: withPath(s.Env), User: s.User, WorkingDir: s.WorkDir,
	}
	return mutate.ConfigFile(img, config)
}

func withPath(env []string) []string {
	for _, pair := range env {
		if strings.HasPrefix(pair, "PATH=") {
			return env
		}
	}
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
}

// layerOf is a tar of the files and of the folders above them.
func layerOf(files []File, dir string) (v1.Layer, error) {
	files = append([]File(nil), files...)
	sort.Slice(files, func(i, j int) bool { return files[i].To < files[j].To })
	for i, f := range files {
		if !path.IsAbs(f.To) || path.Clean(f.To) != f.To || f.To == "/" {
			return nil, fmt.Errorf("file %q -> %q: want a clean absolute path in the image", f.From, f.To)
		}
		if i > 0 && files[i-1].To == f.To {
			return nil, fmt.Errorf("two files for %s in the image", f.To)
		}
		if f.From == "" {
			continue
		}
		info, err := os.Stat(f.From)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", f.From)
		}
	}
	return makeLayer(dir, func(to io.Writer) error { return writeFiles(files, to) })
}

func writeFiles(files []File, to io.Writer) error {
	out := tar.NewWriter(to)
	made := map[string]bool{"/": true, ".": true}
	var folder func(dir string) error
	folder = func(dir string) error {
		if made[dir] {
			return nil
		}
		if err := folder(path.Dir(dir)); err != nil {
			return err
		}
		made[dir] = true
		return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
	}
	for _, f := range files {
		if err := folder(path.Dir(f.To)); err != nil {
			return err
		}
		if err := writeOne(f, out); err != nil {
			return fmt.Errorf("%s: %w", f.To, err)
		}
	}
	return out.Close()
}

func writeOne(f File, out *tar.Writer) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(f.To, "/"), ModTime: time.Unix(0, 0)}
	if f.From == "" {
		header.Size, header.Mode = int64(len(f.Text)), 0o644
		if f.Mode != 0 {
			header.Mode = int64(f.Mode.Perm())
		}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.WriteString(out, f.Text)
		return err
	}
	in, err := os.Open(f.From)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	header.Size, header.Mode = info.Size(), int64(info.Mode().Perm())
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}

// writeArchive writes an OCI image layout as a tar:
//
//	oci-layout                 {"imageLayoutVersion":"1.0.0"}
//	index.json                 names the manifest, and says what the image is called
//	blobs/sha256/HASH          manifest, configuration, layers
func writeArchive(img v1.Image, full string, to io.Writer) (string, error) {
	out := tar.NewWriter(to)
	put := func(file string, size int64, content io.Reader) error {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: file, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.Copy(out, content)
		return err
	}
	blob := func(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

	descriptor, err := partial.Descriptor(img)
	if err != nil {
		return "", err
	}
	descriptor.Annotations = map[string]string{nameAnnotation: full, "org.opencontainers.image.ref.name": full[strings.LastIndex(full, ":")+1:]}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*descriptor}})
	if err != nil {
		return "", err
	}
	layout := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	if err := put("oci-layout", int64(len(layout)), bytes.NewReader(layout)); err != nil {
		return "", err
	}
	if err := put("index.json", int64(len(index)), bytes.NewReader(index)); err != nil {
		return "", err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return "", err
	}
	if err := put(blob(descriptor.Digest), int64(len(manifest)), bytes.NewReader(manifest)); err != nil {
		return "", err
	}
	configHash, err := img.ConfigName()
	if err != nil {
		return "", err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return "", err
	}
	if err := put(blob(configHash), int64(len(config)), bytes.NewReader(config)); err != nil {
		return "", err
	}
	layers, err := img.Layers()
	if err != nil {
		return "", err
	}
	for _, l := range layers {
		if err := putLayer(l, blob, put); err != nil {
			return "", err
		}
	}
	return descriptor.Digest.String(), out.Close()
}

func putLayer(l v1.Layer, blob func(v1.Hash) string, put func(string, int64, io.Reader) error) error {
	hash, err := l.Digest()
	if err != nil {
		return err
	}
	size, err := l.Size()
	if err != nil {
		return err
	}
	content, err := l.Compressed()
	if err != nil {
		return err
	}
	defer content.Close()
	return put(blob(hash), size, content)
}

// Named is an image in an archive: what it is called and the digest of its manifest.
type Named struct{ Name, Digest string }

// Inspect tells which images an OCI archive holds. An archive of another kind (one that `docker save` wrote) gives
// none and no error: it can be loaded, but not be compared with what a cluster has.
func Inspect(path string) ([]Named, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for in := tar.NewReader(f); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s is not an image archive (want a tar, as build-image or `docker save` write it): %w", path, err)
		}
		if header.Name != "index.json" {
			continue
		}
		var index v1.IndexManifest
		if err := json.NewDecoder(in).Decode(&index); err != nil {
			return nil, fmt.Errorf("%s: index.json: %w", path, err)
		}
		var all []Named
		for _, m := range index.Manifests {
			if full := m.Annotations[nameAnnotation]; full != "" {
				all = append(all, Named{full, m.Digest.String()})
			}
		}
		return all, nil
	}
}
