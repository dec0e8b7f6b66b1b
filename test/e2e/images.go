// Package e2e runs what introductions to this subject deploy, and the mesh, on a real Kubernetes: see docs/cluster.md. The
// tests are behind MALHA_E2E=1 (make e2e).
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/malha-mesh/malha/test/cluster"
)

const loadImage = "malha.test/load:1"

// Images makes the images of the applications but Bookinfo, which BuildMesh makes: Go programs of these tests, and nginx, PHP-FPM
// and BusyBox of Debian, which are installed where they are missing. dir keeps the built programs.
func Images(ctx context.Context, dir string) ([]cluster.Image, error) {
	images := []cluster.Image{
		{Name: "malha.test/goweb:1", Entrypoint: []string{"/goweb"}},
		{Name: "malha.test/workload:1", Entrypoint: []string{"/workload"}, User: "65532:65532"},
		{Name: loadImage, Entrypoint: []string{"/load"}, User: "65532:65532"},
	}
	for i, name := range []string{"goweb", "workload", "load"} {
		program := filepath.Join(dir, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "./"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
		images[i].Files = map[string]string{"/" + name: program}
	}
	debian, err := debianImages(ctx)
	return append(images, debian...), err
}

// debianImages makes images of Debian's binaries with the libraries that they are linked to.
func debianImages(ctx context.Context) ([]cluster.Image, error) {
	if err := installDebian(ctx, [][2]string{{"/usr/sbin/nginx", "nginx-light"}, {"/usr/sbin/php-fpm*", "php-fpm"}, {"/bin/busybox", "busybox-static"}}); err != nil {
		return nil, err
	}
	fpms, err := filepath.Glob("/usr/sbin/php-fpm?*")
	if err != nil || len(fpms) == 0 {
		return nil, errors.Join(err, errors.New("the package php-fpm has no program /usr/sbin/php-fpm*"))
	}
	users := map[string]string{"/etc/passwd": "files/passwd", "/etc/group": "files/group"}
	nginx := cluster.Image{
		Name: "malha.test/nginx:1", Entrypoint: []string{"/usr/sbin/nginx", "-g", "daemon off;"}, Folders: []string{"/var/log/nginx", "/var/lib/nginx"},
		Files: map[string]string{
			"/etc/nginx/nginx.conf": "files/nginx.conf", "/etc/nginx/mime.types": "/etc/nginx/mime.types", "/etc/nginx/fastcgi_params": "/etc/nginx/fastcgi_params",
		},
	}
	php := cluster.Image{
		Name: "malha.test/php:8-fpm", Entrypoint: []string{"/usr/sbin/php-fpm", "-n", "-F", "-y", "/etc/php-fpm.conf"},
		Files: map[string]string{"/etc/php-fpm.conf": "files/php-fpm.conf"},
	}
	for _, img := range []struct {
		to            *cluster.Image
		program, name string
	}{{&nginx, "/usr/sbin/nginx", "/usr/sbin/nginx"}, {&php, fpms[0], "/usr/sbin/php-fpm"}} {
		img.to.Files[img.name] = img.program
		libraries, err := linked(ctx, img.program)
		if err != nil {
			return nil, err
		}
		for _, files := range []map[string]string{users, libraries} {
			for path, from := range files {
				img.to.Files[path] = from
			}
		}
	}
	busybox := cluster.Image{Name: "malha.test/busybox:1", Files: map[string]string{"/bin/busybox": "/bin/busybox", "/etc/passwd": "files/passwd"}, Links: map[string]string{}, Entrypoint: []string{"/bin/sh"}}
	for _, applet := range []string{"sh", "wget", "httpd", "cat", "ls", "sleep", "nslookup", "nc"} {
		busybox.Links["/bin/"+applet] = "busybox"
	}
	return []cluster.Image{nginx, php, busybox}, nil
}

// linked lists the shared libraries of a program and its loader, as ldd finds them.
func linked(ctx context.Context, program string) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		for _, f := range strings.Fields(line) {
			if strings.HasPrefix(f, "/") {
				files[f] = f
			}
		}
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("ldd %s: %s", program, strings.TrimSpace(line))
		}
	}
	return files, nil
}

// installDebian installs packages whose program is missing. Their services are not started.
func installDebian(ctx context.Context, wanted [][2]string) error {
	var missing []string
	for _, w := range wanted {
		if found, err := filepath.Glob(w[0]); err != nil || len(found) == 0 {
			missing = append(missing, w[1])
		}
	}
	return cluster.InstallPackages(ctx, missing...)
}
