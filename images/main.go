// Command images packs the programs into container images FROM scratch, each with its bill of materials: `make images`.
package main

import (
	"cmp"
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/malha-mesh/malha/internal/image"
)

func main() {
	var o options
	flag.StringVar(&o.version, "version", "dev", "of the programs; the tag")
	flag.StringVar(&o.registry, "registry", "malha.dev", "what names begin with")
	flag.StringVar(&o.from, "from", "bin", "folder of the programs")
	flag.StringVar(&o.to, "to", "bin/images", "folder for the archives")
	flag.StringVar(&o.arch, "arch", runtime.GOARCH, "GOARCH of the programs")
	flag.StringVar(&o.roots, "roots", "", "PEM file of the authorities that servers outside of the mesh are trusted by, for TLS origination")
	flag.Parse()
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

type options struct{ version, registry, from, to, arch, roots string }

// programs, who they run as, and the tag of those whose manifests are not rendered for a version.
var programs = []struct{ file, name, user, tag string }{
	{"malhad", "malhad", "65532:65532", ""},
	{"malha-proxy", "malha-proxy", "1337:1337", ""},
	// samples/bookinfo/kubernetes
	{"productpage", "bookinfo-productpage", "65532:65532", "1"},
	{"details", "bookinfo-details", "65532:65532", "1"},
	{"reviews", "bookinfo-reviews", "65532:65532", "1"},
	{"ratings", "bookinfo-ratings", "65532:65532", "1"},
}

func run(o *options) error {
	if err := os.MkdirAll(o.to, 0o755); err != nil {
		return err
	}
	for _, p := range programs {
		file, tag := filepath.Join(o.from, p.file), cmp.Or(p.tag, o.version)
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w; run `make build` first", err)
		}
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, s := range info.Settings {
			if s.Key == "CGO_ENABLED" && s.Value != "0" {
				return fmt.Errorf("%s is linked against C libraries, which the image has not; build it with CGO_ENABLED=0", file)
			}
		}
		sbom, err := image.SBOM(p.name, o.version, info)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		img := image.Image{
			Name: o.registry + "/" + p.name + ":" + tag, Arch: o.arch, User: p.user, Entrypoint: []string{"/" + p.file},
			Files: map[string]image.File{"/" + p.file: {Data: data, Executable: true}, "/usr/share/sbom/" + p.name + ".cdx.json": {Data: sbom}},
			Labels: map[string]string{
				"org.opencontainers.image.title": p.name, "org.opencontainers.image.version": o.version,
				"org.opencontainers.image.source": "https://github.com/malha-mesh/malha", "org.opencontainers.image.licenses": "Apache-2.0",
			},
		}
		if o.roots != "" {
			pem, err := os.ReadFile(o.roots)
			if err != nil {
				return err
			}
			img.Files["/etc/ssl/certs/ca-certificates.crt"] = image.File{Data: pem}
		}
		if err := os.WriteFile(filepath.Join(o.to, p.name+".cdx.json"), sbom, 0o644); err != nil {
			return err
		}
		archive := filepath.Join(o.to, p.name+".tar")
		if err := write(archive, &img); err != nil {
			return err
		}
		fmt.Printf("%s  %s\n", archive, img.Name)
	}
	return nil
}

// write makes the archive beside its place first: a half one is never there.
func write(to string, img *image.Image) error {
	f, err := os.Create(to + ".new")
	if err != nil {
		return err
	}
	if err := img.Write(f); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}
