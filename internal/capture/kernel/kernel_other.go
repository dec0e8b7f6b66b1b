//go:build !linux

package kernel

import (
	"errors"

	"github.com/malha-mesh/malha/internal/capture"
)

var errLinux = errors.New("the rules can't be set: they are nftables', which only Linux has")

// Apply refuses.
func Apply(*capture.Ruleset) error { return errLinux }

// Clean refuses.
func Clean() error { return errLinux }
