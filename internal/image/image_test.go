package image

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"path"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() *Image {
	return &Image{
		Name: "malha.dev/malhad:v1", Arch: "amd64", User: "65532:65532", Entrypoint: []string{"/malhad"}, Labels: map[string]string{"a": "b"},
		Files: map[string]File{"/malhad": {Data: []byte("\x7fELF"), Executable: true}, "/usr/share/sbom/malhad.cdx.json": {Data: []byte("{}")}},
	}
}

func unpack(t *testing.T, data []byte) (files map[string][]byte, order []string) {
	t.Helper()
	files = map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 || h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s carries time or owner of the machine", h.Name)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = b
		order = append(order, h.Name)
	}
}

// TestWrite follows the archive as a runtime does: index, manifest, config and layer, each by its digest.
func TestWrite(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	files, _ := unpack(t, b.Bytes())
	read := func(d descriptor) []byte {
		t.Helper()
		data := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if digest(data) != d.Digest || len(data) != d.Size {
			t.Fatalf("%s: %d bytes of digest %s, want %d of %s", d.MediaType, len(data), digest(data), d.Size, d.Digest)
		}
		return data
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "malha.dev/malhad:v1" {
		t.Fatalf("index: %v %+v", err, index)
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(read(index.Manifests[0]), &manifest); err != nil {
		t.Fatal(err)
	}
	var config struct {
		OS, Architecture string
		Config           struct {
			User       string
			Entrypoint []string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(read(manifest.Config), &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" || config.OS != "linux" || config.Rootfs.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Errorf("config: %+v", config)
	}
	layer, order := unpack(t, read(manifest.Layers[0]))
	if d := cmp.Diff([]string{"malhad", "usr/", "usr/share/", "usr/share/sbom/", "usr/share/sbom/malhad.cdx.json"}, order); d != "" {
		t.Errorf("folders stand before what is in them (-want +got):\n%s", d)
	}
	if string(layer["malhad"]) != "\x7fELF" {
		t.Errorf("the program is %q", layer["malhad"])
	}
	var docker []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &docker); err != nil || len(docker) != 1 || files[docker[0].Config] == nil || files[docker[0].Layers[0]] == nil {
		t.Errorf("manifest.json: %v %+v", err, docker)
	}
}

func TestSameBytes(t *testing.T) {
	var a, b bytes.Buffer
	if err := sample().Write(&a); err != nil {
		t.Fatal(err)
	}
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same files make different archives")
	}
}

func TestRelativePath(t *testing.T) {
	img := sample()
	img.Files["etc/passwd"] = File{}
	if err := img.Write(io.Discard); err == nil {
		t.Error("a relative path is taken")
	}
}

func TestSBOM(t *testing.T) {
	info := &buildinfo.BuildInfo{
		GoVersion: "go1.26.8", Main: debug.Module{Path: "github.com/malha-mesh/malha", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "github.com/google/go-cmp", Version: "v0.7.0", Sum: "h1:x="},
			{Path: "example.com/Old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/new", Version: "v1.0.1"}},
		},
		Settings: []debug.BuildSetting{{Key: "CGO_ENABLED", Value: "0"}, {Key: "vcs.time", Value: "2026-01-01"}},
	}
	data, err := SBOM("malhad", "v1.2.3+x", info)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		BomFormat, SpecVersion string
		Metadata               struct{ Component component }
		Components             []component
		Dependencies           []struct{ DependsOn []string }
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	names := map[string]component{}
	for _, c := range got.Components {
		names[path.Base(c.Name)] = c
	}
	if got.BomFormat != "CycloneDX" || got.Metadata.Component.Version != "v1.2.3+x" || names["std"].Version == "" {
		t.Errorf("%s", data)
	}
	if strings.Contains(string(data), "2026") || names["new"].Version != "v1.0.1" || names["Old"].Name != "" {
		t.Errorf("a time in it, or a module that is not: %s", data)
	}
	if c := names["go-cmp"]; !strings.HasPrefix(c.PURL, "pkg:golang/github.com/google/go-cmp@v") || len(c.Properties) != 1 {
		t.Errorf("go-cmp: %+v", c)
	}
	if len(got.Dependencies[0].DependsOn) != len(got.Components) {
		t.Error("dependencies are not the components")
	}
	if _, err := SBOM("x", "v1", &buildinfo.BuildInfo{}); err == nil {
		t.Error("a program without modules has a bill of materials")
	}
}
