// Command malha is the command line of Malha: it starts a mesh on this machine and works with it.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/malha-mesh/malha/internal/ctl"
)

// version is set by the release build: -ldflags "-X main.version=v1.2.3".
var version string

func main() {
	if version == "" {
		version = "devel"
		if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
			version = info.Main.Version
		}
	}
	os.Exit(ctl.Main(context.Background(), version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
