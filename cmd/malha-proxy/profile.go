//go:build profile

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
)

// profile records where the CPU time goes until the function that it returns is called, into the folder that
// MALHA_PROFILE names. Only a program built with -tags profile has it: bin/malha-bench -proxy takes such a program, too
// (docs/design/0010-data-path.md).
func profile() (stop func()) {
	dir := os.Getenv("MALHA_PROFILE")
	if dir == "" {
		return func() {}
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("cpu-%d.pprof", os.Getpid())))
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "malha-proxy: no profile is recorded:", err)
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "malha-proxy: the profile is not complete:", err)
		}
	}
}
