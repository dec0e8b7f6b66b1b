package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestImage(t *testing.T) {
	program := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(program, []byte("binary"), 0o700); err != nil {
		t.Fatal(err)
	}
	img := Image{
		Name: "malha.test/app:1", Files: map[string]string{"/usr/bin/app": program}, Links: map[string]string{"/bin/sh": "busybox"},
		Folders: []string{"/var/cache"}, Entrypoint: []string{"/usr/bin/app"}, User: "65532:65532",
	}
	var once, twice bytes.Buffer
	for _, w := range []io.Writer{&once, &twice} {
		if err := img.Write(w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(once.Bytes(), twice.Bytes()) {
		t.Error("the same image twice is not the same")
	}
	outer := members(t, once.Bytes())
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(outer["manifest.json"].data, &manifest); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Config struct{ User string }
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(outer[manifest[0].Config].data, &config); err != nil {
		t.Fatal(err)
	}
	layer := outer[manifest[0].Layers[0]].data
	sum := sha256.Sum256(layer)
	if want := "sha256:" + hex.EncodeToString(sum[:]); config.Rootfs.DiffIDs[0] != want {
		t.Errorf("the config names layer %s, and it is %s", config.Rootfs.DiffIDs[0], want)
	}
	if config.Config.User != "65532:65532" || manifest[0].RepoTags[0] != img.Name {
		t.Errorf("config %+v, manifest %+v", config, manifest)
	}
	inner := members(t, layer)
	for path, mode := range map[string]int64{"tmp/": 0o1777, "usr/": 0o755, "usr/bin/": 0o755, "var/": 0o755, "var/cache/": 0o1777, "usr/bin/app": 0o755} {
		if m, ok := inner[path]; !ok || m.header.Mode != mode {
			t.Errorf("%s: %+v, want mode %o", path, m.header, mode)
		}
	}
	if inner["bin/sh"].header.Linkname != "busybox" || string(inner["usr/bin/app"].data) != "binary" {
		t.Errorf("layer: %+v", inner)
	}
}

type member struct {
	header *tar.Header
	data   []byte
}

func members(t *testing.T, archive []byte) map[string]member {
	t.Helper()
	all := map[string]member{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = member{h, data}
	}
}
