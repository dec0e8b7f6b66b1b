// Package image writes container images FROM scratch, without Docker: files in, one archive out that ctr, podman, kind and docker load
// read. The same files make the same bytes: no time, owner or order of the machine gets in.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// Image is what is in an image.
type Image struct {
	Name       string          // "malha.dev/malhad:v1.2.3"
	Arch       string          // GOARCH
	Files      map[string]File // by absolute path
	Entrypoint []string
	User       string            // "65532:65532"
	Labels     map[string]string // org.opencontainers.image.…
}

// File is a file in an image.
type File struct {
	Data       []byte
	Executable bool
}

// descriptor is of https://github.com/opencontainers/image-spec/blob/main/descriptor.md.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Write writes the archive: an OCI image layout, with the manifest.json beside it that older tools read.
func (img *Image) Write(w io.Writer) error {
	layer, err := img.layer()
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": img.Arch, "os": "linux",
		"config": map[string]any{"Entrypoint": img.Entrypoint, "User": img.User, "WorkingDir": "/", "Labels": img.Labels},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": descriptor{MediaType: "application/vnd.oci.image.config.v1+json", Digest: digest(config), Size: len(config)},
		"layers": []descriptor{{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: digest(layer), Size: len(layer)}},
	})
	if err != nil {
		return err
	}
	tag := img.Name[strings.LastIndexByte(img.Name, ':')+1:]
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
		"manifests": []descriptor{{
			MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest(manifest), Size: len(manifest), Platform: &platform{img.Arch, "linux"},
			Annotations: map[string]string{"io.containerd.image.name": img.Name, "org.opencontainers.image.ref.name": tag},
		}},
	})
	if err != nil {
		return err
	}
	blob := func(b []byte) string { return "blobs/sha256/" + strings.TrimPrefix(digest(b), "sha256:") }
	docker, err := json.Marshal([]map[string]any{{"Config": blob(config), "RepoTags": []string{img.Name}, "Layers": []string{blob(layer)}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{blob(config), config}, {blob(layer), layer}, {blob(manifest), manifest}, {"index.json", index}, {"manifest.json", docker},
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
	} {
		if err := add(t, f.name, f.data, 0o644); err != nil {
			return err
		}
	}
	return t.Close()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func add(t *tar.Writer, name string, data []byte, mode int64) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: mode, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := t.Write(data)
	return err
}

// layer is the root file system as a tar archive, folders before what is in them.
func (img *Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	made := map[string]bool{".": true, "/": true}
	var folder func(string) error
	folder = func(dir string) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		if err := folder(path.Dir(dir)); err != nil {
			return err
		}
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, Format: tar.FormatUSTAR})
	}
	for _, name := range slices.Sorted(maps.Keys(img.Files)) {
		rel := strings.TrimPrefix(path.Clean(name), "/")
		if !strings.HasPrefix(name, "/") || rel == "" {
			return nil, fmt.Errorf("%q is not an absolute path of a file", name)
		}
		if err := folder(path.Dir(rel)); err != nil {
			return nil, err
		}
		mode := int64(0o644)
		if img.Files[name].Executable {
			mode = 0o755
		}
		if err := add(t, rel, img.Files[name].Data, mode); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), t.Close()
}
